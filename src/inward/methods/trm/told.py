"""What is told of a chain's step: its record, its event, its trace."""

from __future__ import annotations

import numpy as np

from inward.common.thinking import Event
from inward.common.trace import Cost, Span, Step, Trace
from inward.methods.trm.asked import PuzzleChain


def recorded(chain: PuzzleChain, known: dict[str, np.ndarray], i: int, cost: Cost) -> Step:
    """The step that row i of `known` has just taken, as the puzzle has it."""
    ids = chain.back(known["tokens"][i]).astype(np.int64)
    grid = Span(ids, np.array(chain.cells_back(known["confidence"][i])))
    view = {"grid": grid}
    if "runner_up" in (chain.ask.trace or ()):
        second = chain.back(known["second"][i]).astype(np.int64)
        sure = np.array(chain.cells_back(known["second_confidence"][i]))
        view["runner_up"] = Span(second, sure)
    arrays = {}
    if "shares" in (chain.ask.trace or ()):
        arrays["shares"] = shares_back(chain, known["shares"][i])
    scores = {"halt": float(known["q"][i]), "change": float(known["change"][i])}
    return Step(chain.steps, "refine", view=view, scores=scores, cost=cost, arrays=arrays)


def shares_back(chain: PuzzleChain, shares: np.ndarray) -> np.ndarray:
    """(L, V) probability of each token in each cell that the chain saw -> the same of the puzzle:
    cells moved, tokens renamed back."""
    found = np.empty_like(shares)
    for token in range(shares.shape[1]):
        name = chain.back(np.full(len(shares), token, dtype=chain.seen.dtype))[0]
        found[:, name] = chain.cells_back(shares[:, token])
    return found


def rewrite(chain: PuzzleChain, known: dict[str, np.ndarray], i: int) -> Event:
    """The same for those who listen."""
    q = float(known["q"][i])
    scores = {"halt": q, "belief": sigmoid(q), "change": float(known["change"][i])}
    tokens = tuple(known["tokens"][i].tolist())
    return Event("rewrite", chain.owner.number, tokens, step=chain.steps, scores=scores)


def sigmoid(q: float) -> float:
    """Belief of a halting logit."""
    with np.errstate(over="ignore"):  # exp(-q) may be infinite: then it is 0
        return float(1 / (1 + np.exp(-q)))


def trace_of(chain: PuzzleChain, stopped: str) -> Trace | None:
    """The chain's record, if it was asked for."""
    if chain.ask.trace is None:
        return None
    return Trace(
        method="trm",
        question=chain.ask.tokens.astype(np.int64),
        steps=chain.record,
        stopped=stopped,
        meta={"grid": list(chain.ask.grid), "chain": chain.number},
    )
