"""How TRM is asked: its options, its unit of effort, and the way in. No torch before `begin`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inward.common.thinking import Lanes, Method, Option

if TYPE_CHECKING:
    from inward.methods.trm.model import TRM

_OPTIONS = {
    "max_steps": Option(None, "supervision steps per chain at most; None: as in training", int),
    "halt": Option("q+stable", "when a chain ends: q, stable, q+stable, never, or a rule"),
    "rollouts": Option(1, "chains per view of the puzzle; the first is free of noise"),
    "noise": Option(0.0, "sigma on the latent before each step of the further rollouts"),
    "noise_on": Option("z", "which latent gets the noise: z, y, both"),
    "noise_when": Option("steps", "noise before each step (steps), or before the first (start)"),
    "symmetries": Option((), "chains also see the puzzle through each of these"),
    "views": Option(1, "the puzzle is seen in that many ways (turned, renamed), itself first"),
    "select": Option("q", "which chain answers: q, majority, or a verifier function"),
    "first_to_halt": Option(False, "the first chain that halts decides and ends the others"),
    "until_right": Option(False, "the first answer that the verifier accepts ends the puzzle"),
    "abstain_below": Option(None, "withhold an answer believed less than this", float),
    "abstain": Option(False, "withhold an answer that rules, else views and belief, speak against"),
    "grid": Option(None, "rows and columns; None: as the model was built, else a square"),
    "identifier": Option(0, "row of the model's table of puzzle identifiers"),
    "puzzle": Option(0, "number of the puzzle in a set; each draws noise of its own"),
}


def begin(model: TRM, *, batch_size: int = 256, rewrites: bool = True) -> Lanes:
    """Work for puzzles (see `common.thinking`): those of equal length and grid share a forward,
    whatever else they ask for.

    Args:
        batch_size: rows of a forward at most; a row is a chain.
        rewrites: tell of each step; False where nobody listens before the end.
    """
    from inward.methods.trm.asked import layout_of
    from inward.methods.trm.work import PuzzleWork

    if batch_size < 1:
        raise ValueError(f"trm: batch_size is {batch_size}, must be at least 1")
    return Lanes(
        lambda request: layout_of(model, request),
        lambda key: PuzzleWork(model, METHOD, key, batch_size=batch_size, rewrites=rewrites),
    )


def _prepare(model: Any, cells: Any, ask: Any, own: Any) -> tuple[Any, dict[str, Any]]:
    """A puzzle larger than those of training gets more steps in proportion."""
    from inward.methods.trm.asked import default_steps

    steps = {"max_steps": default_steps(model, len(cells))}
    return cells, steps | dict(ask.get("own", {}))


METHOD = Method(
    name="trm",
    begin=begin,
    options=_OPTIONS,
    unit=("max_steps", "supervision steps"),
    traces=("runner_up",),
    reads="puzzle",
    prepare=_prepare,
)
