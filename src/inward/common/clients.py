"""What clients of transformers hand to a `generate`, beside prompts: fields of a generation config,
processors, criteria, a tokenizer, a streamer; and what they want back.

    wishes, rest = Wishes.read(model.generation_config, options)
    wishes.limit(len(prompt)), wishes.sampling(prompt, ...), wishes.stop(prompt, ...)
    wishes.output(ids, rows, recorders, ...)
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, MaxTimeCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from inward.common.generation import DRAWN, PROCESSED, check_fields, merged, processors_of
from inward.common.sampling import Rule, Sampling
from inward.common.speaking import StopWords

_GUIDED = "it belongs to guidance_scale, which is not done here"
_ASSISTED = "TiDAR's scheme and drafter draft here"
_REFUSED = {
    "assistant_model": _ASSISTED,
    "assistant_tokenizer": _ASSISTED,
    "negative_prompt_ids": _GUIDED,
    "negative_prompt_attention_mask": _GUIDED,
    "synced_gpus": "every process decodes on its own",
    "custom_generate": "this is one",
    "trust_remote_code": "no code of strangers runs here",
    "use_model_defaults": "the model's own generation config is always the default",
}
"""Arguments of transformers' generate"""


def refuse_arguments(given: Mapping[str, Any]) -> None:
    """Raise a ValueError naming arguments of transformers' generate that cannot act."""
    told = [f"{name}: {_REFUSED[name]}" for name in sorted(given) if name in _REFUSED]
    if told:
        raise ValueError(f"this generate has no {'; '.join(told)}")


@dataclass(frozen=True)
class Criteria(StopWords):
    """transformers' stopping criteria of one row, and its stop strings, which end a text with the
    token that completes one, even where its beginning stands in the prompt.

    prompt: the row's tokens, which criteria see too. asked: with ids (1, length), and no scores.
    """

    prompt: tuple[int, ...] = ()
    asked: tuple[Callable[..., Any], ...] = ()
    device: Any = "cpu"

    def __post_init__(self) -> None:
        if self.words:
            super().__post_init__()

    def found(self, tokens: Sequence[int]) -> bool:
        """Whether the text ends with the last of these tokens."""
        whole = [*self.prompt, *tokens]
        if self.words and self._completed(whole):
            return True
        ids = torch.tensor([whole], device=self.device) if self.asked else None
        return any(bool(torch.as_tensor(stop(ids, None)).all()) for stop in self.asked)

    def _completed(self, tokens: Sequence[int]) -> bool:
        longest = max(len(word.encode()) for word in self.words)
        tail = list(tokens[-(longest + 2) :])
        text, before = self.decode(tail), len(self.decode(tail[:-1]))
        return any(
            (place := text.rfind(word)) >= 0 and place + len(word) > before for word in self.words
        )


@dataclass(eq=False)
class Recorder:
    """The raw logits and the final scores, (V,) each, that the tokens of a row were chosen by.

    `first` and `last` stand around a row's processors. A place that is judged again is written
    again: what stays is what its token was chosen by.
    """

    logits: dict[int, Tensor] = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)

    def first(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Before all processors."""
        self.logits[ids.shape[1]] = scores[0].clone()
        return scores

    def last(self, ids: Tensor, scores: Tensor) -> Tensor:
        """After them."""
        self.scores[ids.shape[1]] = scores[0].clone()
        return scores


@dataclass(eq=False)
class Wishes:
    """A call of `generate`, see the top of the file."""

    config: GenerationConfig
    processors: tuple[Callable[..., Any], ...] = ()
    criteria: tuple[Callable[..., Any], ...] = ()
    allowed: Callable[[int, Any], Any] | None = None
    drawn: Sampling | None = None
    tokenizer: Any = None

    @staticmethod
    def read(
        own: GenerationConfig | None, options: Mapping[str, Any], *, tokenizer: Any = None
    ) -> tuple[Wishes, dict[str, Any]]:
        """The wishes among the options of a call, and the other options.

        Args:
            own: the model's generation config. tokenizer: the model's, where none is given.

        Raises:
            ValueError: what cannot be done, by name.
        """
        rest = {name: value for name, value in options.items() if value is not None}
        given = rest.pop("generation_config", None)
        if given is not None and not isinstance(given, GenerationConfig):
            raise ValueError(f"generation_config is a {type(given).__name__}, not one of theirs")
        refuse_arguments({name: value for name, value in rest.items() if value is not False})
        for name in _REFUSED:
            rest.pop(name, None)
        known = set(vars(GenerationConfig())) | ({"top_h"} - set(vars(GenerationConfig())))
        fields = {name: rest.pop(name) for name in tuple(rest) if name in known}
        tokenizer = rest.pop("tokenizer", tokenizer)
        processors = tuple(rest.pop("logits_processor", ()))
        criteria = list(rest.pop("stopping_criteria", ()))
        allowed, drawn = rest.pop("prefix_allowed_tokens_fn", None), rest.pop("sampling", None)
        config = merged(own, given, fields)
        check_fields(config, own=own)
        check_output(config)
        _check_tokens(config)
        _check_drawn(drawn, fields, processors, allowed)
        if config.max_time is not None:
            criteria.append(MaxTimeCriteria(max_time=config.max_time))
        if config.stop_strings and tokenizer is None:
            raise ValueError("stop_strings need a tokenizer; pass tokenizer=")
        return Wishes(config, processors, tuple(criteria), allowed, drawn, tokenizer), rest

    @property
    def copies(self) -> int:
        """Answers to each prompt."""
        return self.config.num_return_sequences or 1

    @property
    def records(self) -> bool:
        """Whether scores or logits are to come back."""
        return bool(self.config.output_scores or self.config.output_logits)

    def limit(self, length: int, default: int | None) -> int | None:
        """Tokens that may be said behind a prompt of `length` tokens.

        Raises:
            ValueError: `max_length` leaves no room.
        """
        config = self.config
        for name in ("max_new_tokens", "max_length"):
            value = getattr(config, name)
            if value is not None and not (_whole(value) and value >= 1):
                raise ValueError(f"{name} is {value!r}, must be a whole number of 1 or more")
        if config.max_new_tokens is not None:
            return config.max_new_tokens
        if config.max_length is None:
            return default
        if config.max_length <= length:
            raise ValueError(
                f"max_length is {config.max_length}, but a prompt has {length} tokens already; use "
                "max_new_tokens"
            )
        return config.max_length - length

    def sampling(
        self,
        prompt: Sequence[int],
        *,
        row: int,
        rule: Rule,
        limit: int,
        seed: int = 0,
        silent: int = 0,
        vocab_size: int = 0,
        device: Any = "cpu",
        recorder: Recorder | None = None,
    ) -> Sampling:
        """How the tokens of a row are drawn; see `processors_of`. The seed is that of row 0."""
        if self.drawn is not None:
            rule, seed, chain = self.drawn.rule, self.drawn.seed, list(self.drawn.chain)
        else:
            allowed = self.allowed
            one = None if allowed is None else (lambda _, said: allowed(row // self.copies, said))
            first, last = processors_of(
                self.config,
                prompt,
                silent=silent,
                limit=limit,
                allowed=one,
                vocab_size=vocab_size,
                device=device,
            )
            chain = [*first, *self.processors, *last]
            rule = rule if self.config.do_sample else "greedy"
        if recorder is not None:
            chain = [recorder.first, *chain, recorder.last]
        return Sampling(rule, processors=tuple(chain), seed=seed)

    def stop(self, prompt: Sequence[int], device: Any = "cpu") -> Criteria | None:
        """What ends a row's text beside end tokens and its length."""
        words = self.config.stop_strings or ()
        words = (words,) if isinstance(words, str) else tuple(words)
        if not (self.criteria or words):
            return None
        decode = self.tokenizer.decode if words else str
        return Criteria(words, decode, tuple(prompt), self.criteria, device)

    def output(
        self,
        sequences: Tensor,
        said: Sequence[Sequence[int]],
        recorded: Sequence[Recorded],
        *,
        pad: int,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """What the caller wants back: the (B, L) tensor, or transformers' output with it.

        scores, logits: of each new column (B, V); where a row has ended the padding is certain, and
        so is a token that was not drawn.
        """
        if not self.config.return_dict_in_generate:
            return sequences
        found: dict[str, Any] = {"sequences": sequences}
        for name in ("scores", "logits"):
            if getattr(self.config, f"output_{name}"):
                found[name] = _columns(pad, said, [getattr(r, name) for r in recorded])
        return GenerateDecoderOnlyOutput(**found)


@dataclass(frozen=True)
class Recorded:
    """Of a row, place by place: what each new token was chosen by; None: it was not drawn."""

    logits: tuple[Tensor | None, ...]
    scores: tuple[Tensor | None, ...]

    @staticmethod
    def of(recorder: Recorder, places: Sequence[int]) -> Recorded:
        """places: lengths before each new token."""
        return Recorded(
            *(tuple(kept.get(p) for p in places) for kept in (recorder.logits, recorder.scores))
        )


def _columns(
    pad: int, said: Sequence[Sequence[int]], kept: Sequence[Sequence[Tensor | None]]
) -> tuple[Tensor, ...]:
    longest = max(map(len, said))
    some = next(place for row in kept for place in row if place is not None)
    columns = []
    for t in range(longest):
        rows = []
        for r, row in enumerate(kept):
            known = row[t] if t < len(row) else None
            if known is None:
                token = said[r][t] if t < len(said[r]) else pad
                known = torch.full_like(some, -torch.inf)
                known[token] = 0.0
            rows.append(known)
        columns.append(torch.stack(rows))
    return tuple(columns)


def check_output(config: GenerationConfig) -> None:
    """Raise a ValueError for wishes about the output that contradict each other."""
    asked = [name for name in ("output_scores", "output_logits") if getattr(config, name)]
    if asked and not config.return_dict_in_generate:
        raise ValueError(f"{' and '.join(asked)} come back with return_dict_in_generate=True alone")
    copies = config.num_return_sequences or 1
    if not _whole(copies) or copies < 1 or (copies > 1 and not config.do_sample):
        raise ValueError(
            f"num_return_sequences is {copies}; without do_sample=True all answers to a prompt are "
            "the same one"
        )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_tokens(config: GenerationConfig) -> None:
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        value: Any = getattr(config, name)
        each = value if isinstance(value, list | tuple) and name == "eos_token_id" else [value]
        if value is not None and not all(map(_whole, each)):
            raise ValueError(f"{name} is {value!r}; a token is a whole number")


def _check_drawn(drawn: Any, fields: Mapping[str, Any], processors: Any, allowed: Any) -> None:
    if drawn is None:
        return
    if not isinstance(drawn, Sampling):
        raise ValueError(f"sampling is {drawn!r}, must be a Sampling")
    both = sorted({*PROCESSED, *DRAWN, "do_sample"} & set(fields))
    both += [
        n for n, v in (("logits_processor", processors), ("prefix_allowed_tokens_fn", allowed)) if v
    ]
    if both:
        raise ValueError(
            f"sampling= says all about how tokens are drawn, so {', '.join(both)} beside it would "
            "be ignored; give one of the two"
        )


def prompt_ids(
    input_ids: Any, inputs: Any, options: Mapping[str, Any], own: GenerationConfig | None
) -> Any:
    """The prompts of a call, which may come as `inputs`; without any, the beginning token.

    Raises:
        ValueError: both, or neither and no such token.
    """
    if input_ids is not None and inputs is not None:
        raise ValueError("input_ids and inputs are two names of one thing; give one of them")
    found = input_ids if inputs is None else inputs
    if "inputs_embeds" in options:
        raise ValueError("inputs_embeds: prompts are tokens here; give input_ids")
    if found is not None:
        return found
    configs = (options.get("generation_config"), own)
    known = [options.get("bos_token_id"), *(getattr(c, "bos_token_id", None) for c in configs)]
    begin = next((token for token in known if token is not None), None)
    if begin is None:
        raise ValueError("there is no prompt, and no bos_token_id to begin with; give input_ids")
    return torch.tensor([[begin]])


@contextmanager
def streaming(streamer: Any, ids: Tensor | None, num_rows: int) -> Iterator[Callable[..., None]]:
    """What tells a streamer of transformers: first the prompt, as it expects, then each token; at
    the end, whatever the end is, it is told so, or who iterates over it would wait for ever.

    ids: (1, S) the prompt; None: it has been told already.

    Raises:
        ValueError: more than one row.
    """
    if streamer is None:
        yield lambda _: None
        return
    if num_rows != 1:
        raise ValueError(f"a streamer shows one text, the batch has {num_rows}; use `stream`")
    try:
        if ids is not None:
            streamer.put(ids.cpu())
        yield lambda tokens: streamer.put(torch.tensor(tokens))
    finally:
        streamer.end()


# --------------------------------------------------------------------------------------------------
# A function for `custom_generate`


_GIVEN = {
    "tokenizer": "tokenizer",
    "streamer": "given_streamer",
    "assistant_model": "assistant_model",
}
"""What is handed to it, and under which names"""


class CustomGenerate:
    """A function for `model.generate(..., custom_generate=...)` that is handed everything.

    transformers (5.16 to 5.24) drops the tokenizer, the streamer and the assistant when the way to
    generate is a function: a streamer would hear the prompt, and then wait for ever. It asks for
    the function's signature first, in a frame where they still are; there they are put back among
    the arguments of the call, under names of their own.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__, self.__name__ = function.__doc__, function.__name__

    @property
    def __signature__(self) -> inspect.Signature:
        frame, names = sys._getframe(1), []
        for _ in range(8):
            if frame is None:
                break
            names.append(frame.f_code.co_name)
            if frame.f_code.co_name == "_extract_generation_mode_kwargs":
                self._put_back(frame.f_locals)
                break
            frame = frame.f_back
        return inspect.signature(self.function)

    def _put_back(self, known: Mapping[str, Any]) -> None:
        dropped, kwargs = known.get("generation_mode_kwargs", {}), known.get("kwargs", {})
        for name in _GIVEN:
            if dropped.get(name) is not None:
                kwargs[_GIVEN[name]] = dropped[name]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function."""
        return self.function(*args, **kwargs)
