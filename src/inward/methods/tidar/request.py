"""What a caller of TiDAR decoding may ask for, and the refusals, before any long work starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from inward.common.bases import parameters_of
from inward.common.checks import takes
from inward.common.requests import check_prompt, end_tokens
from inward.common.sampling import Sampling, sampling_of
from inward.common.speaking import StopWords
from inward.common.thinking import Request
from inward.methods.tidar.base import lm_of, num_embedded, refuse_mask, tidar_of
from inward.methods.tidar.choose import Chooser
from inward.methods.tidar.schemes import Costs, Scheme

if TYPE_CHECKING:
    from inward.methods.tidar.model import TiDAR

Drafter = Callable[[Sequence[int], int], Sequence[int]]
"""(tokens of a text, how many) -> guesses for what follows, none if it has no idea"""

TRACES = ("canvas", "drafts")
"""What a trace can hold beside the plain record: the guesses and masks behind the final tokens, as
a forward was given them."""

MAX_NEW_TOKENS = 128
"""Where a request names no number."""

_OURS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "logits_to_keep")
_OURS = (*_OURS, "cache", "past_key_values", "use_cache")
"""Arguments of a forward that decoding gives itself"""


@dataclass(frozen=True)
class DecodeSettings:
    """How texts are decoded that share their forwards.

    scheme: see `Scheme`; "auto": the fastest by measured costs and running acceptance.
    K: tokens of a draft; None: the block size of the TiDAR model (8 for others).
    num_blocks: of "partial".
    beta: trust in the autoregressive logits, 1 all, 0 none; below 1 for plain and one_pass only,
        since the others lack f_j.
    threshold: of "diffusion": probability above which a drafted token is kept unverified.
    drafter: a further source of guesses (`PromptLookup`); where it has any they are judged instead
        of the drafted ones.
    costs: for "auto", instead of measuring. chooser: for "auto", one that other texts have taught.
    stopping_criteria: transformers' ones, asked after every new token with the (1, length) ids of
        the text and no scores.
    packed: whether weights are packed for a CPU first (`inward.common.cpu.linears`); None: if they
        can be and are 4 GiB or less; False: nor is anything else done to be faster there
        (`inward.common.cpu.decoding`).
    options: further arguments of the model's forward.
    draft, verify: those of mask rows and of all other rows, whole numbers by name, of a model that
        takes one for each position (Huginn: {"num_steps": 2}). Nothing else reads a mask row, so
        the text is that of plain decoding as `verify` says.
    mask_id: the mask token of a model that is no TiDAR model.
    """

    scheme: str = "one_pass"
    K: int | None = None
    num_blocks: int = 2
    beta: float = 1.0
    threshold: float = 0.9
    drafter: Drafter | None = None
    costs: Costs | None = None
    chooser: Chooser | None = None
    stopping_criteria: Sequence[Callable[..., Any]] = ()
    packed: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    mask_id: int | None = None
    draft: Mapping[str, int] = field(default_factory=dict)
    verify: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_kinds()
        name = "one_pass" if self.scheme == "auto" else self.scheme
        Scheme(name, 8 if self.K is None else self.K, self.num_blocks)
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"beta is {self.beta}, must lie in [0, 1]; 1 trusts AR alone")
        if self.beta < 1.0 and self.scheme not in ("plain", "one_pass"):
            raise ValueError(
                f"beta is {self.beta}, but scheme {self.scheme!r} has no mask block for every "
                "outcome to mix with; use 'one_pass' (or 'plain'), or beta=1"
            )
        if self.beta < 1.0 and self.drafter is not None:
            raise ValueError("a drafter's guesses have no mask blocks to mix with; use beta=1")
        if self.scheme == "diffusion" and self.drafter is not None:
            raise ValueError("scheme 'diffusion' judges nothing, so it has no use for a drafter")
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold is {self.threshold}, must be a probability")
        clash = sorted(set(self.options) & set(_OURS))
        if clash:
            raise ValueError(f"options name {clash}, which decoding gives the forward itself")

    def _check_kinds(self) -> None:
        for name, (good, what) in _KINDS.items():
            value = getattr(self, name)
            if not good(value):
                raise ValueError(f"{name} is {value!r}, must be {what}")

    @property
    def shared(self) -> tuple[Any, ...]:
        """Equal for settings under which texts may share a forward."""
        # whose guesses are judged is each text's own affair
        given = ("options", "draft", "verify")
        names = [f.name for f in fields(self) if f.name not in (*given, "drafter")]
        values = [_same(getattr(self, name)) for name in names]
        options = [(name, getattr(self, name)) for name in given]
        pairs = [(kind, n, _same(said[n])) for kind, said in options for n in sorted(said)]
        return (*values, *pairs)


def _same(value: Any) -> Any:
    """Plain values are compared, objects are the same only if they are one."""
    plain = value is None or isinstance(value, bool | int | float | str)
    if isinstance(value, list | tuple):
        return tuple(map(_same, value))
    return (type(value).__name__, value) if plain else id(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "scheme": (lambda v: isinstance(v, str), "the name of a scheme"),
    "K": (lambda v: v is None or _is_int(v), "a number of tokens, or None"),
    "num_blocks": (_is_int, "a number of blocks"),
    "beta": (_is_number, "a number"),
    "threshold": (_is_number, "a number"),
    "drafter": (lambda v: v is None or takes(v, 2), "a function of tokens and a number, or None"),
    "costs": (lambda v: v is None or isinstance(v, Costs), "Costs, or None"),
    "chooser": (lambda v: v is None or isinstance(v, Chooser), "a Chooser, or None"),
    "stopping_criteria": (
        lambda v: isinstance(v, Sequence) and all(takes(stop, 2) for stop in v),
        "a list of functions of ids and scores",
    ),
    "packed": (lambda v: v is None or isinstance(v, bool), "True, False or None"),
    "options": (
        lambda v: isinstance(v, Mapping) and all(isinstance(name, str) for name in v),
        "arguments by name",
    ),
    **dict.fromkeys(
        ("draft", "verify"),
        (
            lambda v: isinstance(v, Mapping) and all(_is_int(n) and n >= 1 for n in v.values()),
            'whole numbers of at least 1 by name, such as {"num_steps": 2}',
        ),
    ),
    "mask_id": (lambda v: v is None or _is_int(v), "a token, or None"),
}


@dataclass
class PromptLookup:
    """Guesses what followed the last time the last few tokens occurred: free, and right where text
    is copied. At least `least` tokens have to agree, at most `most` are compared."""

    least: int = 3
    most: int = 6

    def __call__(self, tokens: Sequence[int], num: int) -> Sequence[int]:
        """Up to `num` guesses."""
        text = np.asarray(tokens)
        for length in range(min(self.most, len(text) - 1), self.least - 1, -1):
            windows = np.lib.stride_tricks.sliding_window_view(text[:-1], length)
            found = np.flatnonzero((windows == text[-length:]).all(axis=1))
            if len(found):
                begin = int(found[-1]) + length
                return text[begin : begin + num].tolist()
        return []


def tokens_of(guesses: Any, vocab_size: int) -> list[int]:
    """What a drafter gave, if these are tokens."""
    found = guesses.tolist() if isinstance(guesses, Tensor | np.ndarray) else guesses
    good = isinstance(found, Sequence) and all(isinstance(t, int | np.integer) for t in found)
    if not good or any(not 0 <= t < vocab_size for t in found):
        raise ValueError(
            f"drafter gave {guesses!r:.60}; it must give a list of tokens, 0 to {vocab_size - 1}"
        )
    return list(map(int, found))


# --------------------------------------------------------------------------------------------------
# Checks of a model with its settings


def find_mask(model: TiDAR | PreTrainedModel, settings: DecodeSettings) -> int | None:
    """The mask token's id; None if nothing will be drafted by masks."""
    tidar, mask_id = tidar_of(model), settings.mask_id
    if tidar is not None:
        if mask_id is not None and mask_id != tidar.mask_id:
            raise ValueError(f"mask_id is {mask_id}, but the model's own is {tidar.mask_id}")
        if tidar.settings.shifted and (settings.beta < 1.0 or settings.scheme == "diffusion"):
            raise ValueError(
                f"scheme {settings.scheme!r} with beta {settings.beta} needs a mask that predicts "
                "the first token of a block; this model, trained with shifted=True, has none: use "
                "beta=1 and a scheme that verifies"
            )
        return tidar.mask_id
    size = num_embedded(lm_of(model))
    if mask_id is not None and not 0 <= mask_id < size:
        raise ValueError(f"mask_id is {mask_id}, but the model embeds ids 0..{size - 1}")
    if mask_id is None and (settings.scheme != "plain" or settings.beta < 1.0):
        raise ValueError(
            f"scheme {settings.scheme!r} with beta {settings.beta} drafts with a mask token; pass "
            "mask_id=, or a TiDAR model, or scheme='plain'"
        )
    return mask_id


def check_model(lm: PreTrainedModel, settings: DecodeSettings, K: int, context: int) -> None:
    """Raise ValueError unless the model can decode so."""
    if context < K:
        raise ValueError(f"K is {K}, but this model attends over {context} tokens; use a smaller K")
    strange = sorted(set(settings.options) - parameters_of(lm)) if settings.options else []
    if strange:
        raise ValueError(f"the forward of {type(lm).__name__} knows no {strange}, see options")
    known = getattr(lm, "per_position", {})
    if strange := sorted({*settings.draft, *settings.verify} - set(known)):
        raise ValueError(
            f"draft and verify name {strange}, but {type(lm).__name__} takes "
            f"{', '.join(known) or 'nothing'} for each position; other arguments go into options"
        )


def check_ids(lm: PreTrainedModel, input_ids: Tensor) -> None:
    """Raise ValueError unless these are ids of texts, where the model is."""
    if not isinstance(input_ids, Tensor):
        raise ValueError(
            f"input_ids is a {type(input_ids).__name__}, must be a tensor (texts, tokens) int64"
        )
    if input_ids.ndim != 2 or input_ids.dtype != torch.long:
        raise ValueError(
            f"input_ids must be (texts, tokens) int64; got {tuple(input_ids.shape)} "
            f"{input_ids.dtype}"
        )
    if input_ids.device != lm.device:
        raise ValueError(f"input_ids lie on {input_ids.device}, the model on {lm.device}")


# --------------------------------------------------------------------------------------------------
# Checks of one request


def check_request(request: Request) -> None:
    """Raise ValueError for what no model could do."""
    strange = sorted((request.trace or frozenset()) - set(TRACES))
    if strange:
        raise ValueError(f"traces hold no {strange} here; they can hold {list(TRACES)}")
    wanted, seed = request.max_new_tokens, request.seed
    if wanted is not None and not (_is_int(wanted) and wanted >= 1):
        raise ValueError(f"max_new_tokens is {wanted}, must be at least 1")
    if seed is not None and not (_is_int(seed) and seed >= 0):
        raise ValueError(f"seed is {seed}, must be 0 or more")
    if request.stop is not None and not isinstance(request.stop, StopWords):
        raise ValueError(f"stop is {request.stop!r}; build StopWords(words, tokenizer.decode)")
    if request.sampling is not None and not isinstance(request.sampling, Sampling):
        raise ValueError(f"sampling is {request.sampling!r}, must be a Sampling")


def prompt_of(
    request: Request, lm: PreTrainedModel, context: int, mask_id: int | None
) -> list[int]:
    """The tokens of a prompt that the model can continue."""
    given = request.prompt
    if isinstance(given, Tensor | np.ndarray):
        given = given.tolist()
    if not isinstance(given, Sequence) or not all(isinstance(t, int | np.integer) for t in given):
        raise ValueError(
            f"the prompt is {str(given)[:60]!r}; TiDAR continues a list of token ids, which the "
            "tokenizer makes"
        )
    prompt = list(map(int, given))
    if mask_id is not None:
        refuse_mask(torch.tensor(prompt), mask_id)
    check_prompt(prompt, context=context, vocab_size=num_embedded(lm))
    return prompt


def ends_of(request: Request, lm: PreTrainedModel) -> frozenset[int]:
    """The tokens that end its text."""
    if request.ends is None:
        return end_tokens(None, lm.generation_config)
    return end_tokens(sorted(request.ends), None, num_embedded(lm))


def draws_of(request: Request, lm: PreTrainedModel) -> Sampling:
    """How its tokens are drawn, the seed left out."""
    if request.sampling is not None:
        return request.sampling
    return sampling_of(lm.generation_config)
