"""TRM's speed beside the official repository's, and beside the matrix products alone.

    inward bench trm --reference CLONE      (of SamsungSAILMontreal/TinyRecursiveModels)

What is measured, at the published Sudoku shape (S = 16 + 81, D = 512, token MLP, T = 3, n = 6):

    step       forward with slots and loss, backward, update: `TRM.loss` here, `ACTLossHead` around
               the official model there; AdamATan2 in plain torch on both sides (theirs exists for
               CUDA only), for the identifier table each side's own sign descent
    forward    one deep recursion and its read-out without gradient
    products   the step's matrix products (shapes and dtype of one evaluation of f, forward and
               backward) by themselves, outputs reused, each in the fastest of several layouts;
               their FLOP-weighted rate is the roofline, and `share` the part of it that is reached

Each side is a process of its own, so neither names nor memory of one touch the other. They load the
same weights and first have to agree on logits, loss and gradient. Then they take turns, one call
each, and the ratio is taken within a turn: a machine that becomes slower meanwhile slows both.
Nothing is written into the clone; what its model files import and is not installed is replaced by
stand-ins, which are told. With one thread, CPU time is taken, otherwise wall time.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inward.bench.process import Process
from inward.bench.trm_sides import MODEL_FILE, TRMOrder

if TYPE_CHECKING:
    from inward.methods.trm.settings import TRMSettings

ROWS = (16, 64)
DTYPES = ("float32", "bfloat16")
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Largest relative difference (of norms) of logits, loss and gradient norm before timing. Logits of
compiled bfloat16 are left out: fused kernels round less often, and 21 evaluations in a row of
random weights make much of that."""

Work = Literal["step", "forward"]


def job(
    reference: Path | None,
    *,
    num_rows: int | None = None,
    dtype: str | None = None,
    compile: bool = False,
    settings: TRMSettings | None = None,
    product_seconds: float = 1.0,
    say: Callable[[str], None] = lambda _: None,
) -> Callable[[int], Iterator[tuple[str, str, list[float], str]]]:
    """What `bench` runs for the subject trm; (what, unit, values, note) per measurement.

    Args:
        reference: the clone; None: ours and the products only.
        num_rows, dtype: one batch size, one dtype; None: 16 and 64, float32 and bfloat16.
        compile: both sides under torch.compile, beside themselves without it.
        settings: another shape, with the token MLP.
        product_seconds: how long the products run per turn.
    Raises:
        FileNotFoundError: `reference` does not hold the official model's file.
    """
    from inward.methods.trm.settings import TRMSettings

    if reference is not None and not (reference / MODEL_FILE).is_file():
        raise FileNotFoundError(
            f"{reference} holds no {MODEL_FILE}; --reference takes a clone of the repository "
            "SamsungSAILMontreal/TinyRecursiveModels"
        )
    shape = TRMSettings() if settings is None else settings
    assert shape.mixer == "mlp", shape.mixer
    cases = [
        TRMOrder(
            side="ours",
            settings=asdict(replace(shape, compute_dtype=kind)),
            rows=rows,
            reference="" if reference is None else str(reference.resolve()),
            compile=compile,
            product_seconds=product_seconds,
        )
        for kind in (DTYPES if dtype is None else (dtype,))
        for rows in (ROWS if num_rows is None else (num_rows,))
    ]

    def measure(repeats: int) -> Iterator[tuple[str, str, list[float], str]]:
        told: set[str] = set()

        def once(text: str) -> None:
            if text not in told:
                told.add(text)
                say(text)

        for order in cases:
            yield from _case(order, repeats, once)

    return measure


def _case(
    order: TRMOrder, repeats: int, say: Callable[[str], None]
) -> Iterator[tuple[str, str, list[float], str]]:
    import torch

    dtype = order.settings["compute_dtype"]
    label = f"{order.rows} x {dtype}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        weights = _write_weights(folder, order.settings)
        order = replace(order, weights=str(weights), threads=torch.get_num_threads())
        orders = {"ours": replace(order, compile=False)}
        if order.reference:
            orders["official"] = replace(orders["ours"], side="official")
        if order.compile:
            orders |= {f"{k} compiled": replace(o, compile=True) for k, o in orders.items()}
        sides = {k: stack.enter_context(_process(o)) for k, o in orders.items()}
        for name, side in sides.items():
            if side.ready["about"]:
                say(f"{name}: {side.ready['about']}")
        outputs, compiling = _outputs(sides)
        if order.reference:
            say(f"{label}: {_agreement(outputs, dtype)}")
        products = stack.enter_context(_process(replace(order, side="products")))
        for work in ("step", "forward"):
            yield from _turns(f"{work} {label}", work, sides, products, repeats, compiling)


def _process(order: TRMOrder) -> Process:
    return Process(order, "inward.bench.trm_sides", bench="trm")


def _write_weights(folder: Path, settings: dict[str, Any]) -> Path:
    """Random weights in the official names; the halting head, zero at the start, is filled too."""
    import torch

    from inward.methods.trm.model import TRM
    from inward.methods.trm.reference import save_reference
    from inward.methods.trm.settings import TRMSettings

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TRM(TRMSettings(**settings))
        torch.nn.init.normal_(model.q_head.weight, std=0.05)
    path = folder / "weights.safetensors"
    save_reference(model, path, prefix="")
    return path


def _outputs(sides: dict[str, Process]) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """What each side computes from the same weights and inputs, and the seconds (wall time) that
    torch.compile took for it: the time beyond that of the same side without it."""
    found, seconds = {}, {}
    for name, side in sides.items():
        began = time.perf_counter()
        found[name] = side.ask("outputs")
        seconds[name] = time.perf_counter() - began
    plain = {name: seconds[name.removesuffix(" compiled")] for name in seconds}
    return found, {n: seconds[n] - plain[n] for n in seconds if n.endswith(" compiled")}


def _agreement(found: dict[str, dict[str, Any]], dtype: str) -> str:
    """Compare the outputs of all sides.

    Raises ValueError if they differ: then the times would compare different things.
    """
    import torch

    want = torch.tensor(found["official"]["logits"])
    worst = 0.0
    for name, outputs in found.items():
        logits = torch.tensor(outputs["logits"])
        gaps = {k: abs(outputs[k] / found["official"][k] - 1) for k in ("loss", "gradient_norm")}
        if not (name.endswith(" compiled") and dtype == "bfloat16"):
            gaps["logits"] = float((logits - want).norm() / want.norm())
        key, gap = max(gaps.items(), key=lambda pair: math.inf if pair[1] != pair[1] else pair[1])
        if not gap <= TOLERANCE[dtype]:
            raise ValueError(
                f"{name} differs from the official code by {gap:.2g} in {key} ({dtype}, allowed "
                f"is {TOLERANCE[dtype]}); is the clone another version than e7b6871?"
            )
        worst = max(worst, gap)
    return f"logits, loss and gradient norm agree within {worst:.1g} before anything is timed"


def _turns(
    what: str,
    work: Work,
    sides: dict[str, Process],
    products: Process,
    repeats: int,
    compiling: dict[str, float],
) -> Iterator[tuple[str, str, list[float], str]]:
    for side in (*sides.values(), products):
        side.ask(work)  # allocators settle
    times: dict[str, list[float]] = {name: [] for name in sides}
    rates: list[float] = []
    for _ in range(repeats):
        for name, side in sides.items():
            times[name].append(side.ask(work)["seconds"])
        answer = products.ask(work)
        rates.append(answer["flops"] / answer["seconds"])
    flops = {name: side.ready["flops"][work] for name, side in sides.items()}
    clock = "CPU" if products.order.threads == 1 else "wall"
    for name, seconds in times.items():
        rate = flops[name] / statistics.median(seconds) / 1e9
        note = f"{rate:.1f} GFLOP/s, {clock} time"
        if name in compiling:
            note += f"; compiling took {compiling[name]:.0f} s"
        yield f"{what}, {name}", "ms", [1000 * s for s in seconds], note
    for name, seconds in times.items():
        if name != "official" and "official" in times:
            ratios = [a / b for a, b in zip(times["official"], seconds, strict=True)]
            yield f"{what}, official / {name}", "x", ratios, "turn by turn"
    yield f"{what}, products", "GFLOP/s", [rate / 1e9 for rate in rates], "alone, the roofline"
    for name, seconds in times.items():
        shares = [100 * flops[name] / s / r for s, r in zip(seconds, rates, strict=True)]
        yield f"{what}, share of {name}", "%", shares, "of the rate of the products"
