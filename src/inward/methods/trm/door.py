"""How TRM is asked: its options, its unit of effort, and the way in. No torch before `begin`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inward.common.thinking import Acts, Lanes, Method, Option, is_never

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inward.methods.trm.model import TRM


def _several(own: Mapping[str, Any]) -> bool:
    """Whether a puzzle has more than one chain."""
    return own["rollouts"] != 1 or own["views"] != 1 or len(own["symmetries"]) > 0


_ROLLOUTS = Acts(
    "on further rollouts (rollouts=2 or more)",
    lambda _model, _asked, own: own["rollouts"] != 1,
)
_NOISE = Acts(
    "on the noise of further rollouts (rollouts=2 or more, noise above 0)",
    lambda _model, _asked, own: own["rollouts"] != 1 and own["noise"] != 0,
)
_SELECT = Acts(
    "where several chains answer (rollouts, views, symmetries), or where a verifier withholds "
    "answers (abstain_below, abstain) or ends the puzzle (until_right)",
    lambda _model, _asked, own: (
        _several(own)
        or (
            own["select"] != "majority"
            and (own["abstain_below"] is not None or own["abstain"] or own["until_right"])
        )
    ),
)
_RACE = Acts(
    "where several chains answer (rollouts, views, symmetries) and a rule ends them (halt)",
    lambda _model, _asked, own: _several(own) and not is_never(own["halt"]),
)

_OPTIONS = {
    "max_steps": Option(None, "supervision steps per chain at most; None: as in training", int),
    "halt": Option("q+stable", "when a chain ends: q, stable, q+stable, never, or a rule"),
    "rollouts": Option(1, "chains per view of the puzzle; the first is free of noise"),
    "noise": Option(
        0.0, "sigma on the latent before each step of the further rollouts", None, _ROLLOUTS
    ),
    "noise_on": Option("z", "which latent gets the noise: z, y, both", None, _NOISE),
    "noise_when": Option(
        "steps", "noise before each step (steps), or before the first (start)", None, _NOISE
    ),
    "symmetries": Option((), "chains also see the puzzle through each of these"),
    "views": Option(1, "the puzzle is seen in that many ways (turned, renamed), itself first"),
    "select": Option(
        "q", "which chain answers: q, majority, or a verifier function", None, _SELECT
    ),
    "first_to_halt": Option(
        False, "the first chain that halts decides and ends the others", None, _RACE
    ),
    "until_right": Option(False, "the first answer that the verifier accepts ends the puzzle"),
    "abstain_below": Option(None, "withhold an answer believed less than this", float),
    "abstain": Option(False, "withhold an answer that rules, else views and belief, speak against"),
    "grid": Option(None, "rows and columns; None: as the model was built, else a square"),
    "identifier": Option(0, "row of the model's table of puzzle identifiers"),
    "puzzle": Option(0, "number of the puzzle in a set; each draws noise of its own", None, _NOISE),
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
    steps="supervision steps",
    budget=("max_steps", "supervision steps a chain"),
    traces=("runner_up", "shares"),
    reads="puzzle",
    prepare=_prepare,
)
