"""Tokenizers for small models made offline, the special tokens of thinking, records into ids.

    tokenizer = word_tokenizer(texts)         every word, mark and line end is a token
    tokenizer = byte_tokenizer()              256 bytes, any text
    specials = add_specials(tokenizer)        the same call for GPT-2's or Qwen's own tokenizer
    pieces = encode_record(record, tokenizer) what a curriculum arranges

Both are built with `tokenizers` and wrapped as `PreTrainedTokenizerFast`, so saving, batching and
streaming are those of transformers. What is unusual:

- The strings are those of the released Coconut code (arXiv 2412.06769), but they are registered as
  *special*: `skip_special_tokens` hides them from a reader, and a user who types one gets an error
  (or its letters, with literal="keep"), never a thought.
- Records are tokenized piece by piece, as the released code does; that a whole string might give
  other ids (Llama-3 merges `>>` with a line end) does not matter, since nothing tokenizes it whole.
- A word tokenizer promises `decode(encode(text)) == text` for the texts it was made from, and says
  which text breaks the promise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from inward.data.thoughts.patterns import Pieces
from inward.data.thoughts.records import Record
from inward.data.thoughts.segments import Specials

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

BOT, EOT, LATENT = "<|start-latent|>", "<|end-latent|>", "<|latent|>"
"""Boundaries and placeholder of thoughts, as the released code names them, in its order."""
PAUSE = "<|pause|>"
"""What "pause as thought" says instead of a thought; the paper's control, not in its code."""
EOS, UNKNOWN = "<|eos|>", "<|unknown|>"

_WORD = r"\[\w+\]|<<|>>|###|\w+|[^\w\s]|\n"
_DIGIT = r"\[\w+\]|<<|>>|###|\d|[^\W\d]+|[^\w\s]|\n"


@dataclass(frozen=True)
class Form:
    """How a record is written: what follows question and step, and what stands before the answer.

    The defaults are the released code's.
    """

    after_question: str = "\n"
    after_step: str = "\n"
    before_answer: str = "### "

    def text(self, record: Record) -> str:
        """The whole record as a reader sees it: the plain chain of thought."""
        steps = "".join(step + self.after_step for step in record.steps)
        return record.question + self.after_question + steps + self.before_answer + record.answer


def word_tokenizer(texts: Iterable[str], *, digits: bool = False) -> PreTrainedTokenizerFast:
    """A token for every word, punctuation mark, `[X]`, `<<`, `>>`, `###` and line end in `texts`.

    Spaces are implied: one between two words, none before . , ? ! or around line ends. Other words
    become an unknown token, which `encode_text` refuses.

    digits   every digit is a token, so that numbers have any length; no spaces within a number or
             around + - * / = ( ) < > (`<<12+3=15>>`). False: a number is a word
    Raises ValueError if `texts` is empty, or names a text that would not be decoded to itself.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    texts = sorted(set(texts))
    if not texts:
        raise ValueError("no texts to take words from; give those of the training records")
    split = pre_tokenizers.Split(Regex(_DIGIT if digits else _WORD), "removed", invert=True)
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: i for i, word in enumerate([EOS, UNKNOWN, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = split
    tight = [r" (?=[.,?!])", r" ?\n ?"]
    if digits:
        tight += [r"(?<=[+*/=<>()-]) ", r" (?=[+*/=<>()-])", r"(?<=\d) (?=\d)", r"(?<=\d\.) (?=\d)"]
    backend.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            decoders.WordPiece(prefix="\0", cleanup=False),  # joins with spaces; no word begins so
            decoders.Fuse(),
            *(decoders.Replace(Regex(p), "\n" if "n" in p else "") for p in tight),
        ]
    )
    tokenizer = _wrapped(backend, unk_token=UNKNOWN)
    for text in texts:
        again = str(tokenizer.decode(tokenizer.encode(text)))
        if again != text:
            same = [a == b for a, b in zip(text, again, strict=False)]
            at = max(0, [*same, False].index(False) - 20)  # show where they part
            raise ValueError(
                f"a word tokenizer cannot keep {text[at : at + 60]!r}: it would read "
                f"{again[at : at + 60]!r}; use single spaces between words, digits=False, or "
                "byte_tokenizer()"
            )
    return tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Token i is byte i of UTF-8, 256 the end of text: any text, about one token a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = {letter: byte for byte, letter in enumerate(_byte_letters())}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _wrapped(backend)


def _byte_letters() -> list[str]:
    """The letter that stands for each byte inside `tokenizers`: a printable one for itself."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _wrapped(backend: object, **special: str) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS,
        pad_token=EOS,  # as the released code: padding is masked, so it needs no token of its own
        clean_up_tokenization_spaces=False,
        padding_side="right",
        **special,  # pyright: ignore[reportArgumentType]
    )


# --------------------------------------------------------------------------------------------------
# Special tokens


def add_specials(tokenizer: PreTrainedTokenizerBase, *, pause: bool = False) -> Specials:
    """Add <bot>, <eot> and the placeholder (and the pause token) to any tokenizer; give their ids.

    Tokens that are there already keep their ids. Resize the model's embedding afterwards.
    """
    from tokenizers import AddedToken

    wanted = [BOT, EOT, LATENT, *([PAUSE] if pause else [])]
    known = _added(tokenizer)
    new = [AddedToken(token, special=True) for token in wanted if token not in known]
    tokenizer.add_special_tokens({"extra_special_tokens": new}, replace_extra_special_tokens=False)  # pyright: ignore[reportArgumentType]
    return specials_of(tokenizer)


def _added(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return tokenizer.get_added_vocab()  # pyright: ignore[reportCallIssue, reportOptionalCall, reportReturnType]


def specials_of(tokenizer: PreTrainedTokenizerBase) -> Specials:
    """Ids of the three tokens; ValueError if the tokenizer lacks one."""
    known = _added(tokenizer)
    missing = [token for token in (BOT, EOT, LATENT) if token not in known]
    if missing:
        raise ValueError(
            f"the tokenizer lacks {', '.join(missing)}; add them with "
            "inward.data.thoughts.tokenizers.add_specials"
        )
    return Specials(known[BOT], known[EOT], known[LATENT])


def pause_of(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the pause token; None if the tokenizer has none."""
    return _added(tokenizer).get(PAUSE)


# --------------------------------------------------------------------------------------------------
# Text into ids


def encode_text(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    literal: Literal["refuse", "keep"] = "refuse",
    start: bool = False,
) -> tuple[int, ...]:
    """Ids of a text in which no special token can be meant.

    literal   what happens to a special token's string inside the text: "refuse" it with a
              ValueError, or "keep" its letters as ordinary text
    start     with the tokens that the tokenizer puts around a text of its own (BOS of Llama)
    Raises ValueError also for a word that a word tokenizer does not know.
    """
    if literal not in ("refuse", "keep"):
        raise ValueError(f"literal is {literal!r}; choose 'refuse' or 'keep'")
    typed = [token for token in _special_strings(tokenizer) if token in text]
    if typed and literal == "refuse":
        raise ValueError(
            f"the text holds {typed[0]!r}, a special token of this tokenizer; take it out, or ask "
            'for its letters with literal="keep"'
        )
    ids = tokenizer.encode(text, add_special_tokens=start, split_special_tokens=bool(typed))
    if typed and set(ids) & {_added(tokenizer).get(token) for token in typed}:
        raise ValueError(
            f"this tokenizer has {typed[0]!r} as an ordinary token and cannot spell it; "
            "take it out of the text, or add the token with "
            "inward.data.thoughts.tokenizers.add_specials"
        )
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown in ids:
        word = _first_unknown(tokenizer, text)
        raise ValueError(
            f"the tokenizer does not know {word!r} in {text[:60]!r}; make it from texts that hold "
            "the word, or use byte_tokenizer()"
        )
    return tuple(ids)


def _special_strings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return sorted({*tokenizer.all_special_tokens, *_added(tokenizer)})


def _first_unknown(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    for word in text.split():
        if tokenizer.unk_token_id in tokenizer.encode(word, add_special_tokens=False):
            return word
    return text


def encode_question(
    question: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    form: Form | None = None,
    literal: Literal["refuse", "keep"] = "refuse",
) -> tuple[int, ...]:
    """Token ids of a question as a record begins with it; ValueError as in `encode_text`."""
    text = question + (form or Form()).after_question
    return encode_text(tokenizer, text, literal=literal, start=True)


def encode_record(
    record: Record,
    tokenizer: PreTrainedTokenizerBase,
    *,
    form: Form | None = None,
    literal: Literal["refuse", "keep"] = "refuse",
) -> Pieces:
    """Tokenize a record piece by piece; the answer ends with the tokenizer's EOS.

    `record.meta["scores"]`, one number a step, becomes the pieces' scores. Raises ValueError (see
    `encode_text`), also if the tokenizer has no EOS.
    """
    form = form or Form()
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise ValueError("the tokenizer has no EOS token; set tokenizer.eos_token")

    def ids(text: str) -> tuple[int, ...]:
        return encode_text(tokenizer, text, literal=literal)

    return Pieces(
        question=encode_question(record.question, tokenizer, form=form, literal=literal),
        steps=tuple(ids(step + form.after_step) for step in record.steps),
        answer=(*ids(form.before_answer + record.answer), eos),
        scores=tuple(record.meta.get("scores", ())),
    )
