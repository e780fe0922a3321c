"""What a request asks of TRM, read and checked before any work, and the chains that it needs.

A **chain** is one attempt at one puzzle. Chains of a puzzle differ by

    rollout     noise N(0, sigma^2) on the latent before each step     (PTRM, arXiv 2605.19943),
                or before the first alone: another attempt, of models trained with `start_noise`
    symmetry    the puzzle seen through a transform, the answer seen back
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inward.common import halting
from inward.common.checks import takes
from inward.common.costs import parameters
from inward.common.trace import Cost, Step
from inward.data.puzzles.puzzles import Symmetry

if TYPE_CHECKING:
    from inward.common.thinking import Method, Request
    from inward.methods.trm.model import TRM

Verify = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(inputs (B, L), answers (B, L)) -> (B,) bool"""

_NOTHING = np.empty(0)  # what a chain holds before it has run


@dataclass(frozen=True, eq=False)
class PuzzleAsk:
    """A puzzle of L cells and how to answer it; the options are those of the door, checked.

    views: what the chains of a rollout see the puzzle through, None: as it is; seen: (L,) each.
    seed: of the noise, and the puzzle's number in its set.
    trace, logprobs: as in `Request`.
    """

    tokens: np.ndarray
    identifier: int
    grid: tuple[int, int]
    max_steps: int
    rule: halting.Rule
    rollouts: int
    noise: float
    noise_on: str
    noise_when: str
    views: tuple[Symmetry | None, ...]
    seen: tuple[np.ndarray, ...]
    select: str | Verify
    first_to_halt: bool
    until_right: bool
    abstain_below: float | None
    abstain: bool | Verify
    seed: tuple[int, int]
    trace: frozenset[str] | None
    logprobs: bool

    @property
    def verifier(self) -> Verify | None:
        """What judges its answers, by `select` or by `abstain` (one function if both)."""
        return next((judge for judge in (self.select, self.abstain) if callable(judge)), None)

    @property
    def races(self) -> bool:
        """Its chains end each other."""
        return self.first_to_halt or self.until_right


@dataclass(eq=False)
class PuzzleChain:
    """One attempt: what is seen (tokens through the symmetry), and what became of it.

    owner: the request it belongs to. halted: it stopped by the rule; ended: by others.
    """

    owner: Any
    number: int
    ask: PuzzleAsk
    symmetry: Symmetry | None
    seen: np.ndarray
    noise: torch.Generator | None
    steps: int = 0
    halted: bool = False
    ended: bool = False
    q: float = 0.0
    tokens: np.ndarray = field(default_factory=lambda: _NOTHING)
    confidence: np.ndarray = field(default_factory=lambda: _NOTHING)
    record: list[Step] = field(default_factory=list)
    cells: np.ndarray | None = None

    def finish(self, q: float, tokens: np.ndarray, confidence: np.ndarray, *, halted: bool) -> None:
        """Its halting logit and what it answered, as the puzzle has it."""
        self.q, self.halted = q, halted
        self.ended = self.owner.settled and not halted
        self.tokens, self.confidence = self.back(tokens), self.cells_back(confidence)

    def back(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens that the chain answered, as the puzzle has them."""
        return tokens if self.symmetry is None else self.symmetry.invert(tokens)

    def cells_back(self, values: np.ndarray) -> np.ndarray:
        """Numbers that belong to cells, moved as the symmetry moves cells.

        A symmetry may rename tokens too, so the numbers cannot go through it: L grids with one
        marked cell each tell where every cell goes.
        """
        if self.symmetry is None:
            return values
        if self.cells is None:
            marked = self.symmetry.invert(np.eye(len(values), dtype=np.int64))
            blank = self.symmetry.invert(np.zeros(len(values), dtype=np.int64))
            self.cells = np.argmax(marked != blank, axis=0)
        return values[self.cells]


def chains_of(owner: Any, ask: PuzzleAsk) -> list[PuzzleChain]:
    """Rollout 0 in each view, rollout 1, ...; the first is the plain model's."""
    pairs = [(r, view) for r in range(ask.rollouts) for view in range(len(ask.views))]
    return [
        PuzzleChain(owner, number, ask, ask.views[view], ask.seen[view], _noise(ask, r, number))
        for number, (r, view) in enumerate(pairs)
    ]


def _noise(ask: PuzzleAsk, rollout: int, number: int) -> torch.Generator | None:
    if not (rollout and ask.noise):
        return None
    state = np.random.SeedSequence([*ask.seed, number]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


@dataclass(frozen=True)
class StepCosts:
    """What one supervision step of one row takes; weights are read where they multiply."""

    evaluations: float
    flops: float
    bytes: float
    parameters: int

    @staticmethod
    def of(model: TRM, num_cells: int) -> StepCosts:
        """From the model that runs."""
        T, n = model.settings.cycles()
        num = float(T * model.settings.evaluations(n))
        evaluation, read_out = model.flops(num_cells)
        network, *heads = (
            sum(p.numel() * p.element_size() for p in part.parameters())
            for part in (model.network, model.lm_head, model.q_head)
        )
        read = num * network + float(sum(heads))
        return StepCosts(num, num * evaluation + read_out, read, parameters(model))

    def times(self, steps: int, seconds: float) -> Cost:
        """Of that many steps of rows; multiplied, not summed, so that no rounding piles up."""
        return Cost(
            evaluations=steps * self.evaluations,
            flops=steps * self.flops,
            forwards=float(steps),
            bytes=steps * self.bytes,
            seconds=seconds,
            parameters=self.parameters,
        ).under("thinking")


# --------------------------------------------------------------------------------------------------
# Checks


def layout_of(model: TRM, request: Request) -> tuple[int, tuple[int, int]]:
    """Cells and grid of a request: what must be equal for two to share a forward."""
    num = len(_tokens(model, request.prompt))
    return num, model.settings.layout(num, _grid(request.own.get("grid")))


def asked(
    model: TRM, method: Method, request: Request, rules: dict[Any, halting.Rule]
) -> PuzzleAsk:
    """What a request asks. Equal rules become one, which `rules` remembers: so a step finds quickly
    who shares one.

    Raises:
        ValueError: a part of it is out of range, or not for TRM.
    """
    method.check_options(request.own)
    _refuse_speech(request, method)
    own: dict[str, Any] = {name: option.default for name, option in method.options.items()}
    own |= request.own
    tokens = _tokens(model, request.prompt)
    grid = model.settings.layout(len(tokens), _grid(own["grid"]))
    max_steps = model.settings.n_sup if own["max_steps"] is None else own["max_steps"]
    _check_choices(own)
    method.check_acts(model, request)
    return PuzzleAsk(
        tokens=tokens,
        identifier=_identifier(model, own["identifier"]),
        grid=grid,
        max_steps=_whole("max_steps", max_steps, 1),
        rule=_rule(own["halt"], rules),
        rollouts=own["rollouts"],
        noise=float(own["noise"]),
        noise_on=own["noise_on"],
        noise_when=own["noise_when"],
        views=(None, *own["symmetries"]),
        seen=(tokens, *(_through(view, tokens, grid) for view in own["symmetries"])),
        select=own["select"],
        first_to_halt=own["first_to_halt"],
        until_right=own["until_right"],
        abstain_below=own["abstain_below"],
        abstain=own["abstain"],
        seed=(
            _whole("seed", 0 if request.seed is None else request.seed, 0),
            _whole("puzzle", own["puzzle"], 0),
        ),
        trace=request.trace,
        logprobs=request.logprobs,
    )


def _refuse_speech(request: Request, method: Method) -> None:
    for name in ("max_new_tokens", "sampling", "ends", "stop"):
        if getattr(request, name) is not None:
            raise ValueError(
                f"trm: {name} is for methods that say one token after another; trm answers every "
                "cell at once, leave it out"
            )
    strange = sorted((request.trace or frozenset()) - set(method.traces))
    if strange:
        known = ", ".join(method.traces)
        raise ValueError(f"trm: a trace cannot hold {', '.join(strange)}; it can hold {known}")


def _tokens(model: TRM, prompt: Any) -> np.ndarray:
    tokens = prompt.cpu().numpy() if isinstance(prompt, torch.Tensor) else np.asarray(prompt)
    if tokens.ndim != 1 or tokens.size == 0:
        raise ValueError(f"trm: a puzzle has shape {tokens.shape}, expected (cells,), at least 1")
    if tokens.dtype.kind not in "iu":
        raise ValueError(f"trm: the cells are {tokens.dtype}, expected integer tokens")
    low, high, V = int(tokens.min()), int(tokens.max()), model.settings.tokens(len(tokens))
    if low < 0 or high >= V:
        raise ValueError(f"trm: tokens run from {low} to {high}, the model knows 0 to {V - 1}")
    return tokens


def _grid(given: Any) -> tuple[int, int] | None:
    if given is None:
        return None
    if not isinstance(given, Sequence) or len(given) != 2:
        raise ValueError(f"trm: grid is {given!r}, expected (rows, columns)")
    return _whole("rows of grid", given[0], 1), _whole("columns of grid", given[1], 1)


def _identifier(model: TRM, given: Any) -> int:
    table = model.settings.num_identifiers
    identifier = _whole("identifier", given, 0)
    if identifier >= max(1, table):
        known = f"identifiers of the model lie in 0..{table - 1}"
        known = known if table else "the model has no table of identifiers, leave it out"
        raise ValueError(f"trm: identifier is {identifier}; {known}")
    return identifier


def _whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise ValueError(f"trm: {name} is {value!r}, expected a whole number")
    if value < least:
        raise ValueError(f"trm: {name} is {value}, must be at least {least}")
    return int(value)


def _rule(halt: Any, rules: dict[Any, halting.Rule]) -> halting.Rule:
    rule = halting.rule(halt)
    if not takes(rule, 1):
        raise ValueError(f"trm: halt is {halt!r}, expected a name or a rule")
    try:
        return rules.setdefault(rule, rule)
    except TypeError:  # it has no hash
        return rules.setdefault(id(rule), rule)


def _check_choices(own: dict[str, Any]) -> None:
    _whole("rollouts", own["rollouts"], 1)
    noise, select, below = own["noise"], own["select"], own["abstain_below"]
    for name in ("noise", "abstain_below"):
        number = isinstance(own[name], int | float | np.number) and not isinstance(own[name], bool)
        if not number and not (name == "abstain_below" and own[name] is None):
            raise ValueError(f"trm: {name} is {own[name]!r}, expected a number")
    if not isinstance(own["first_to_halt"], bool):
        raise ValueError(f"trm: first_to_halt is {own['first_to_halt']!r}, expected True or False")
    if not 0.0 <= noise < float("inf"):
        raise ValueError(
            f"trm: noise is {noise}, must be finite and not negative (0.3 is the published one)"
        )
    if own["rollouts"] > 1 and noise == 0.0:
        raise ValueError(
            f"trm: {own['rollouts']} rollouts without noise are all the same; set noise=0.3, or "
            "rollouts=1"
        )
    if own["noise_on"] not in ("z", "y", "both"):
        raise ValueError(f"trm: noise_on is {own['noise_on']!r}, must be 'z', 'y' or 'both'")
    if own["noise_when"] not in ("steps", "start"):
        raise ValueError(f"trm: noise_when is {own['noise_when']!r}, must be 'steps' or 'start'")
    if not isinstance(own["until_right"], bool):
        raise ValueError(f"trm: until_right is {own['until_right']!r}, expected True or False")
    if own["until_right"] and not callable(select):
        raise ValueError(
            f"trm: until_right needs a verifier that says what is right, select is {select!r}"
        )
    named = isinstance(select, str) and select in ("q", "majority")
    if not named and not takes(select, 2):
        raise ValueError(
            f"trm: select is {select!r}, must be 'q', 'majority' or a verifier, a function of "
            "(puzzles, answers)"
        )
    if not isinstance(own["abstain"], bool) and not callable(own["abstain"]):
        raise ValueError(
            f"trm: abstain is {own['abstain']!r}, expected True, False or a verifier function"
        )
    if callable(own["abstain"]) and callable(select) and own["abstain"] != select:
        raise ValueError("trm: select and abstain name two verifiers; give one to both")
    if below is not None and not 0.0 <= below <= 1.0:
        raise ValueError(f"trm: abstain_below is {below}, a probability lies in 0..1")
    if not isinstance(own["symmetries"], Sequence) or not all(
        hasattr(view, name) for view in own["symmetries"] for name in ("apply", "invert")
    ):
        raise ValueError(
            f"trm: symmetries are {own['symmetries']!r}, expected objects with apply and invert"
        )
    if own["views"] != 1:
        raise ValueError(
            f"trm: views={own['views']!r} are drawn from the puzzle's task, which is not known "
            "here; give symmetries=[...], or ask through a Thinker that has a task"
        )


def _through(view: Symmetry, tokens: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The puzzle as a view sees it."""
    seen = np.asarray(view.apply(tokens))
    turned = getattr(view, "grid_out", grid)
    if seen.shape != tokens.shape or tuple(turned) != tuple(grid):
        raise ValueError(
            f"trm: a symmetry makes {seen.shape} cells in a grid of {tuple(turned)} out of "
            f"{tokens.shape} in {tuple(grid)}; it must keep the shape"
        )
    return seen


def default_steps(model: Any, num_cells: int) -> int:
    """N_sup for the length the model was trained on; a larger grid gets more in proportion.

    Paths in a maze k times as wide are about k^2 times as long, and a step carries news only so
    far.
    """
    settings = model.settings
    return max(settings.n_sup, round(settings.n_sup * num_cells / settings.seq_len))
