"""Measuring what forwards of a model cost on this machine."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from inward.methods.tidar.schemes import Costs

if TYPE_CHECKING:
    from inward.methods.tidar.batch import Runner


ROWS = (1, 2, 3, 4, 5, 6, 7, 9, 12, 16, 20, 24, 32, 48, 72)


MOST_CLEAN = 24
"""Rows without masks that `measure` times: a verification seldom has more."""


def measure(
    runner: Runner,
    *,
    num_texts: int = 1,
    num_cached: int = 256,
    rows: Sequence[int] = ROWS,
    repeats: int = 5,
) -> Costs:
    """Time forwards of q rows behind a filled cache: the median of `repeats` rounds, in each of
    which every q has a turn, so that a machine that slows down slows them all.

    Where the model has mask rows, all rows but one are some, so that an adapter's work is counted;
    then up to MOST_CLEAN rows are timed without masks as well.
    The head runs on all rows, but on READ_AHEAD of all texts together at most, much as in decoding.
    Several texts are of different lengths, as they become in decoding: that has its price.
    """
    import torch

    from inward.common.ragged import RaggedCache
    from inward.methods.tidar.batch import READ_AHEAD, Layout, Piece

    mask_id = None if runner.tidar is None else runner.tidar.mask_id
    clean_rows = () if mask_id is None else tuple(q for q in rows if q <= MOST_CLEAN)

    def clean(q: int) -> Piece:
        return Piece(Layout(q), [1] * q)

    def usual(q: int) -> Piece:
        if mask_id is None or q == 1:
            return clean(q)
        return Piece(Layout(1, ((1, q - 1),)), [1] + [mask_id] * (q - 1))

    pieces = [*map(usual, rows), *map(clean, clean_rows)]

    def forward(cache: RaggedCache, piece: Piece) -> float:
        began = time.perf_counter()
        output = runner(cache, [piece] * num_texts)
        read = min(max(1, READ_AHEAD // num_texts), piece.layout.num_rows)
        output.logits([(b, i) for b in range(num_texts) for i in range(read)]).argmax(-1).tolist()
        return time.perf_counter() - began

    with torch.no_grad():
        cache = runner.new_cache(num_texts, num_cached + max(rows))
        runner(cache, [Piece(Layout(num_cached), [1] * num_cached)] * num_texts)
        cache.commit([max(1, num_cached - b) for b in range(num_texts)])
        for piece in pieces:  # kernels and masks are made
            forward(cache, piece)
        rounds = [[forward(cache, piece) for piece in pieces] for _ in range(repeats)]
    middle = [sorted(column)[repeats // 2] for column in zip(*rounds, strict=True)]
    note = f"{num_texts} texts of {num_cached} tokens, {runner.lm.dtype}, {torch.get_num_threads()}"
    note = f"{note} threads, {runner.device}"
    seconds, clean_seconds = tuple(middle[: len(rows)]), tuple(middle[len(rows) :])
    bare = None
    if len(clean_rows) > 1:
        bare = Costs(clean_rows, clean_seconds, note, num_texts)
    return Costs(tuple(rows), seconds, note, num_texts, bare)


_STEPS = 8
"""Steps that are timed to learn what one takes outside its forward."""


def around(runner: Runner, costs: Costs, *, num_cached: int = 256) -> tuple[float, float]:
    """Seconds outside the forward, of a step without drafts and of one with: as many texts as the
    costs are of are decoded for a moment, from `num_cached` tokens on; the median of the steps,
    less what their rows cost."""
    from inward.common.sampling import Sampling
    from inward.common.thinking import Request
    from inward.methods.tidar.base import context_limit
    from inward.methods.tidar.decoder import Decoder
    from inward.methods.tidar.request import DecodeSettings

    model, K = runner.model, 3
    names = ["plain"] if runner.tidar is None else ["plain", "two_pass"]
    room = min(num_cached, context_limit(runner.lm) - K * (_STEPS + 2))
    if room < 1:
        return 0.0, 0.0  # a context too short for long work
    request = Request([1] * room, sampling=Sampling(), ends=frozenset())
    found = []
    for name in names:
        own: dict[str, Any] = {"draft": runner.draft, "verify": runner.verify}
        settings = DecodeSettings(name, K, options=runner.options, packed=runner.packed, **own)
        decoder = Decoder(model, settings, batch_size=costs.num_texts)
        for _ in range(costs.num_texts):
            decoder.add(request)
        decoder.step()  # the prompt
        outside = []
        for _ in range(_STEPS):
            began = time.perf_counter()
            decoder.step()
            seconds = time.perf_counter() - began
            layouts = [row.layout for row in decoder.rows]
            cost = costs if any(layout.blocks for layout in layouts) else costs.without_masks
            outside.append(seconds - cost(max(layout.num_rows for layout in layouts)))
        found.append(max(0.0, sorted(outside)[_STEPS // 2]))
    return found[0], found[-1]


_MEASURED: weakref.WeakKeyDictionary[Any, dict[tuple[Any, ...], Costs]] = (
    weakref.WeakKeyDictionary()
)


def measured(runner: Runner, num_texts: int, context: int) -> Costs:
    """`measure` with the usual rows, and `around`, once per model, dtype, thread count and number
    of texts."""
    import torch

    known = _MEASURED.setdefault(runner.model, {})
    key = (runner.lm.dtype, runner.device, torch.get_num_threads(), num_texts, *runner.fast.kind)
    if key not in known:
        num_cached = max(1, min(256, context // 2))
        costs = measure(runner, num_texts=num_texts, num_cached=num_cached)
        known[key] = replace(costs, around=around(runner, costs, num_cached=num_cached))
    return known[key]
