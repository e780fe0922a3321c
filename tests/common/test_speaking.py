"""A growing text is that of all its tokens, whatever the vocabulary; each costs the same."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from inward.common.speaking import WINDOW, Speaker, StopWords
from inward.tasks.processors import TextProcessor

TEXTS = [
    "Once upon a time, there was a girl. She said: \u201cna\u00efve caf\u00e9\u201d!\n\n",
    "\u4f60\u597d \U0001f600\U0001f469\u200d\U0001f680 \u0395\u03bb \u00df  two  blanks\t",
]


def byte_level():
    """A small byte-level BPE, as GPT-2's and SmolLM2's are."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def models_at():
    return Path(os.environ.get("INWARD_MODELS", "models"))


def folder(name):
    found = models_at() / name
    if not (found / "tokenizer.json").exists():
        pytest.skip(f"no {name} in $INWARD_MODELS")
    return AutoTokenizer.from_pretrained(found)


VOCABULARIES = {
    "byte-level BPE": byte_level,
    "sentencepiece with bytes": lambda: folder("stories260k"),
    "SmolLM2": lambda: folder("SmolLM2-135M-Instruct"),
}


@pytest.fixture(scope="module", params=VOCABULARIES)
def processor(request):
    return TextProcessor(VOCABULARIES[request.param]())


def spoken(processor, tokens, stop=()):
    """All that is given, piece by piece; and how many tokens were decoded for it."""
    num = 0

    def decode(ids):
        nonlocal num
        num += len(ids)
        return processor.write(ids)

    words = StopWords(tuple(stop), processor.write) if stop else None
    speaker = Speaker(decode, words, processor.unsettled)
    pieces = [speaker.say([token]) for token in tokens] + [speaker.rest()]
    assert speaker.given == sum(map(len, pieces))
    return pieces, num


ANY_CHECK: Any = list(HealthCheck)


@settings(max_examples=80, deadline=None, suppress_health_check=ANY_CHECK)
@given(data=st.data())
def test_words_joined_are_the_text_of_all_tokens(processor, data):
    """Of tokens at random (half characters, special ones, runs of blanks) and of real texts."""
    vocabulary = len(processor.tokenizer)
    wild = st.lists(st.integers(0, vocabulary - 1), max_size=30)
    real = st.sampled_from(TEXTS).map(
        lambda text: processor.tokenizer(text, add_special_tokens=False).input_ids
    )
    parts = data.draw(st.lists(wild | real, max_size=6))
    tokens = [token for part in parts for token in part]
    whole = processor.write(tokens)
    pieces, _ = spoken(processor, tokens)
    assert "".join(pieces) == whole
    stop = data.draw(st.sampled_from([["a"], ["said", "caf"], ["  "], ["\n\n", "girl. S"]]))
    cut = StopWords(tuple(stop), processor.write).cut(whole)
    assert "".join(spoken(processor, tokens, stop)[0]) == cut


def test_nothing_that_is_given_is_half_a_character(processor):
    tokens = processor.tokenizer(TEXTS[1] * 4, add_special_tokens=False).input_ids
    pieces, _ = spoken(processor, tokens)
    assert "".join(pieces) == processor.write(tokens)
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_token_costs_the_same_however_long_the_answer_is(processor):
    tokens = processor.tokenizer(TEXTS[0] * 60, add_special_tokens=False).input_ids
    assert len(tokens) > 1000
    pieces, num = spoken(processor, tokens)
    assert "".join(pieces) == processor.write(tokens)
    assert num < 4 * WINDOW * len(tokens)


def test_several_tokens_at_once_say_the_same(processor):
    tokens = processor.tokenizer("".join(TEXTS) * 5, add_special_tokens=False).input_ids
    speaker = Speaker(processor.write, None, processor.unsettled)
    pieces = [speaker.say(tokens[i : i + 7]) for i in range(0, len(tokens), 7)]
    assert "".join([*pieces, speaker.rest()]) == processor.write(tokens)


def test_a_decoder_that_looks_at_everything_is_asked_for_everything():
    def decode(ids):  # the text of each token depends on how many there are before it
        return "".join(f"{place}:{token} " for place, token in enumerate(ids))

    speaker = Speaker(decode)
    tokens = list(range(200))
    pieces = [speaker.say([token]) for token in tokens]
    assert "".join([*pieces, speaker.rest()]) == decode(tokens)
