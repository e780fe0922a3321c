"""Tokenizers made offline, special tokens, and records into pieces."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from inward.data.thoughts import chains, prosqa, records
from inward.data.thoughts.records import Record
from inward.data.thoughts.tokenizers import (
    BOT,
    EOS,
    EOT,
    LATENT,
    Form,
    add_specials,
    byte_tokenizer,
    encode_record,
    encode_text,
    pause_of,
    specials_of,
    word_tokenizer,
)

FORM = Form()
PUZZLES = [
    *prosqa.generate(6, seed=0),
    *prosqa.generate(6, seed=1, rendering="symbolic"),
]
CHAINS = [*chains.generate(6, seed=0), *chains.generate(6, seed=1, rendering="symbolic")]


@pytest.fixture(scope="module")
def words():
    tokenizer = word_tokenizer(FORM.text(record) for record in PUZZLES)
    add_specials(tokenizer, pause=True)
    return tokenizer


@pytest.fixture(scope="module")
def letters():
    tokenizer = byte_tokenizer()
    add_specials(tokenizer)
    return tokenizer


def test_words_are_tokens_and_read_back(words):
    ids = encode_text(words, "Every ")
    assert len(ids) == 1
    for record in PUZZLES:
        text = FORM.text(record)
        ids = encode_text(words, text)
        assert words.decode(ids) == text
        marks = sum(text.count(mark) for mark in ".?\n")
        assert len(ids) == len(text.split()) + marks
    symbols = encode_text(words, "3 14 | 1 3 [Q] 14 9 [R] 1")
    assert len(symbols) == 10


def test_digits_are_tokens_and_read_back():
    texts = [FORM.text(record) for record in CHAINS]
    tokenizer = word_tokenizer([*texts, "0123456789"], digits=True)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.tokenize("<<97*3=291>>") == "<< 9 7 * 3 = 2 9 1 >>".split()


def test_a_text_that_cannot_be_kept_is_named():
    with pytest.raises(ValueError, match=r"cannot keep 'two  spaces'.* read 'two spaces'"):
        word_tokenizer(["one space", "two  spaces"])
    with pytest.raises(ValueError, match="'12 5'"):
        word_tokenizer(["12 5"], digits=True)
    with pytest.raises(ValueError, match="no texts"):
        word_tokenizer([])


def test_unknown_words_are_named(words):
    with pytest.raises(ValueError, match="does not know 'wizard'"):
        encode_text(words, "Every wizard is a")


@settings(max_examples=40)
@given(st.text())
def test_bytes_are_tokens(letters, text):
    ids = encode_text(letters, text)
    assert list(ids) == list(text.encode("utf-8"))
    assert letters.decode(ids) == text


def test_special_tokens_are_added_once(words, letters):
    for tokenizer in (words, letters):
        size, specials = len(tokenizer), specials_of(tokenizer)
        assert (specials.bot, specials.eot, specials.latent) == tuple(
            range(specials.bot, specials.bot + 3)
        )
        assert add_specials(tokenizer) == specials and len(tokenizer) == size
    assert pause_of(words) == specials_of(words).latent + 1 and pause_of(letters) is None
    with pytest.raises(ValueError, match="add_specials"):
        specials_of(byte_tokenizer())


def test_a_typed_special_token_is_refused_or_kept_as_letters(letters):
    for typed in (LATENT, BOT, EOS):
        text = f"say {typed} now"
        with pytest.raises(ValueError, match="take it out"):
            encode_text(letters, text)
        ids = encode_text(letters, text, literal="keep")
        assert list(ids) == list(text.encode())
        assert letters.decode(ids) == text
        bad = Record("q?", (text,), "a")
        with pytest.raises(ValueError, match="a special token"):
            encode_record(bad, letters)
        assert encode_record(bad, letters, literal="keep").steps == (tuple(f"{text}\n".encode()),)


def test_letters_of_an_ordinary_token_cannot_be_kept():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([BOT, EOT, LATENT])  # as the released code does
    assert specials_of(tokenizer).latent == 259
    for literal in ("refuse", "keep"):
        with pytest.raises(ValueError, match="take it out"):
            encode_text(tokenizer, f"a {LATENT}", literal=literal)


def test_a_record_becomes_the_released_layout(letters):
    pieces = encode_record(Record("2+2?", ("<<2+2=4>>", "so"), "4"), letters)
    assert bytes(pieces.question) == b"2+2?\n"
    assert [bytes(step) for step in pieces.steps] == [b"<<2+2=4>>\n", b"so\n"]
    assert bytes(pieces.answer[:-1]) == b"### 4" and pieces.answer[-1] == letters.eos_token_id
    assert pieces.scores == ()
    scored = encode_record(Record("q", ("s",), "a", {"scores": [0.5]}), letters)
    assert scored.scores == (0.5,)
    other = encode_record(Record("q", (), "a"), letters, form=Form(" ", " ", "answer "))
    assert bytes(other.question + other.answer[:-1]) == b"q answer a"


def test_saved_and_loaded(words, letters, tmp_path):
    for i, (tokenizer, record) in enumerate(
        [(words, PUZZLES[0]), (words, PUZZLES[7]), (letters, CHAINS[0])]
    ):
        tokenizer.save_pretrained(tmp_path / str(i))
        again = AutoTokenizer.from_pretrained(tmp_path / str(i))
        assert specials_of(again) == specials_of(tokenizer)
        assert pause_of(again) == pause_of(tokenizer)
        pieces = encode_record(record, again)
        assert pieces == encode_record(record, tokenizer)
        assert again.decode(pieces.question) == record.question + "\n"
        with pytest.raises(ValueError, match="take it out"):
            encode_text(again, f"a {LATENT}")


def test_readers_do_not_see_special_tokens(words):
    specials = specials_of(words)
    ids = [*encode_text(words, "Every"), specials.bot, specials.latent, specials.eot]
    assert words.decode(ids, skip_special_tokens=True) == "Every"
    assert LATENT in words.decode(ids)


def test_a_real_tokenizer(shared_data):
    folder = shared_data.parent / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no model folder at {folder}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = len(tokenizer)
    specials = add_specials(tokenizer)
    assert len(tokenizer) == size + 3 and specials.bot == size
    pieces = encode_record(Record("Tom is a cat.", ("A cat is big.",), "Tom is big."), tokenizer)
    assert tokenizer.bos_token_id in pieces.question
    assert tokenizer.bos_token_id not in [i for step in pieces.steps for i in step]
    assert pieces.answer[-1] == tokenizer.eos_token_id
    kept = encode_text(tokenizer, f"hi {LATENT}", literal="keep")
    assert specials.latent not in kept and "latent" in tokenizer.decode(kept)


def test_real_questions_as_bytes(letters, shared_data):
    for record in records.read_icot(shared_data / "gsm8k-icot" / "test.txt")[:30]:
        pieces = encode_record(record, letters)
        assert letters.decode(pieces.question) == record.question + "\n"


def test_released_puzzles_fit_a_generated_vocabulary(shared_data):
    """Word tokenizers made of generated puzzles know every word of the released ones."""
    made = prosqa.generate(60, seed=0)
    tokenizer = word_tokenizer(FORM.text(record) for record in made)
    for record in records.read_json(shared_data / "prosqa" / "prosqa_test.json")[:50]:
        assert encode_record(record, tokenizer).answer
    draws = np.random.default_rng(0)
    made = [prosqa.rendered(r, draws, rendering="symbolic") for r in made]
    assert len(word_tokenizer(FORM.text(r) for r in made)) <= 28 + 8
