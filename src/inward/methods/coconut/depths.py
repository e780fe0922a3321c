"""Further arguments of the base's forward; among them depths of their own for thoughts and words.

A base may take a number for each position (Huginn: num_steps), so that thoughts are deep and words
shallow, or the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inward.data.thoughts.columns import LatentBatch
from inward.methods.coconut.base import unwrapped
from inward.methods.coconut.plan import check_names, check_passes

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut

Numbers = Mapping[str, int]


def taken(model: Coconut) -> Numbers:
    """Arguments that the base takes for each position, and the usual number of each."""
    return getattr(unwrapped(model.base), "per_position", {})


def check_positions(model: Coconut, thought: Numbers, word: Numbers) -> None:
    """Refuse what is no whole number, or what the base does not take for each position."""
    known = taken(model)
    for kind, numbers in (("per_thought", thought), ("per_word", word)):
        if strange := sorted(set(numbers) - set(known)):
            raise ValueError(
                f"{kind} names {', '.join(strange)}, but {type(unwrapped(model.base)).__name__} "
                f"takes {', '.join(known) or 'nothing'} for each position; see per_pass"
            )
        for name, number in numbers.items():
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"{kind}: {name} is {number!r}, must be a whole number from 1 on")


def numbers_of(
    latent: Tensor | None, thought: Numbers, word: Numbers, usual: Numbers
) -> dict[str, Any]:
    """Arguments of a forward whose columns hold a thought where latent (B, c) says so (None:
    nowhere): a number, or (B, c) numbers where the two differ."""
    found: dict[str, Any] = {}
    for name in sorted({*thought, *word}):
        deep, shallow = (kind.get(name, usual[name]) for kind in (thought, word))
        if latent is None or deep == shallow or not bool(latent.any()):
            found[name] = shallow
        elif bool(latent.all()):
            found[name] = deep
        else:
            found[name] = torch.where(latent, deep, shallow)
    return found


def trained(model: Coconut) -> tuple[dict[str, int], dict[str, int]]:
    """What the settings say of thoughts and of words; nothing where they say nothing."""
    settings = model.settings
    names = ("num_steps", settings.thought_steps), ("num_steps", settings.word_steps)
    thought, word = ({name: number} if number else {} for name, number in names)
    return thought, word


def passes_of(
    model: Coconut, batch: LatentBatch, thought: Numbers | None = None, word: Numbers | None = None
) -> Callable[[int, int], dict[str, Any]] | None:
    """`per_pass` of `Coconut.forward` for a batch with these numbers; default those of the
    settings; None where nothing is said.

    Raises:
        ValueError: see `check_positions`.
    """
    if thought is None and word is None:
        thought, word = trained(model)
    thought, word = thought or {}, word or {}
    if not thought and not word:
        return None
    check_positions(model, thought, word)
    latent, usual = batch["latent"], taken(model)
    return lambda start, stop: numbers_of(latent[:, start:stop], thought, word, usual)


class Further:
    """What a request's options say of the base's forwards: (start, stop, latent (B, stop - start),
    where thoughts are) -> arguments by name.

    Raises:
        ValueError: arguments that the base does not take.
    """

    def __init__(self, model: Coconut, own: Mapping[str, Any]):
        self.model, self.per_pass = model, own.get("per_pass")
        check_passes(model, self.per_pass)
        said = [own.get(kind) or {} for kind in ("per_thought", "per_word")]
        check_positions(model, *said)
        named = {*self.per_pass} if isinstance(self.per_pass, Mapping) else set()
        known = [{} if named & {*kind} else kind for kind in trained(model)]
        self.depths = tuple({**a, **b} for a, b in zip(known, said, strict=True))

    def __call__(self, start: int, stop: int, latent: Tensor | None = None) -> Mapping[str, Any]:
        asked = self.per_pass
        if asked is not None and not isinstance(asked, Mapping):
            asked = check_names(self.model, asked(start, stop))
        asked = asked or {}
        if not any(self.depths):
            return asked
        thought, word = self.depths
        return {**asked, **numbers_of(latent, thought, word, {**taken(self.model), **asked})}


def lane_of(own: Mapping[str, Any]) -> tuple[Hashable, ...] | None:
    """Packing and further arguments of a request, which rows of one forward share; None: a
    function, which looks at places."""
    asked = own.get("per_pass")
    if asked is not None and not isinstance(asked, Mapping):
        return None
    named = [("per_pass", asked or {})]
    named += [(kind, own.get(kind) or {}) for kind in ("per_thought", "per_word")]
    pairs = [
        (kind, n, _hashable(v))
        for kind, said in named
        if isinstance(said, Mapping)
        for n, v in sorted(said.items())
    ]
    return own.get("packed"), *pairs


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value
