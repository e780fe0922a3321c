"""What the thoughts of a trained row do: causal ablation, readability, the search in them, and what
is lost if they are all thought at once (Jacobi) in fewer iterations than there are thoughts.

    python benchmarks/coconut/thoughts.py --model runs/.../prosqa-coconut-0/model --row coconut
    python benchmarks/coconut/thoughts.py --model runs/.../chains-interleaved-0/model --task chains
        --row interleaved --figures docs/thoughts
    python benchmarks/coconut/thoughts.py --model runs/gsm8k-smollm-interleaved/model --task gsm8k
        --row interleaved --num 40

Test questions, greedy answers. Prints tables, adds one row to coconut_thoughts.jsonl, and draws the
first answer with its thoughts under the lens, the loss of the run if its log lies beside the model,
and for ProsQA with given boundaries the search of the first question and what each thought holds.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from inward.data.drawn import drawn
from inward.data.thoughts.tokenizers import encode_text
from inward.evals.rows import append_row, machine
from inward.evals.stats import Interval
from inward.hub import load
from inward.methods.coconut.model import Coconut
from inward.recipes import coconut
from inward.recipes.coconut import CoconutRecipe
from inward.studies.thoughts_ablate import Ablation, Swap, ablate, swap_block
from inward.studies.thoughts_jacobi import JacobiError, jacobi_errors
from inward.studies.thoughts_read import Readability, Target, before_end, readability
from inward.studies.thoughts_search import by_height, parallelism, read_out, superposition
from inward.tasks.prosqa import final_answer
from inward.viz import plots
from inward.viz import studies as viz
from inward.viz.thoughts import lens

ROWS = Path(__file__).with_suffix(".jsonl")
TASKS: dict[str, Callable[..., CoconutRecipe]] = {
    "prosqa": coconut.prosqa_symbolic,
    "chains": coconut.chains_symbolic,
    "gsm8k": coconut.gsm8k_smollm,
}


def result_of(model: Coconut) -> Target:
    """The first digit of what a spoken equation comes to, or of the answer."""
    equals, mark = (encode_text(model.tokenizer, text)[0] for text in ("=", "###"))

    def target(step: tuple[int, ...]) -> int | None:
        places = [i for i, token in enumerate(step) if token in (equals, mark)]
        return step[places[-1] + 1] if places and places[-1] + 1 < len(step) else None

    return target


def thinking(
    model: Coconut, recipe: CoconutRecipe, asked: Sequence[Any], target: Target
) -> tuple[list[Ablation], Readability, list[Swap], list[JacobiError]]:
    """Ablations of all thoughts and of the first eight, readability, swaps of two blocks, and
    the errors of the Jacobi executor."""
    newline = {encode_text(model.tokenizer, "\n")[0]}
    prompts = recipe.prompts(model, [record.question for record in asked])
    options = recipe.options(model)

    def answer(tokens: list[int]) -> str:
        return final_answer(model.tokenizer.decode(tokens, skip_special_tokens=True))

    shared: dict[str, Any] = {"answer": answer, "ends": newline, **options}
    golds = [record.answer for record in asked]
    found = ablate(model, prompts, golds, **shared)
    samples = [s for made in recipe.generated(model, asked) for s in made.samples]
    for number in range(min(8, max(sample.num_thoughts for sample in samples))):
        found += ablate(model, prompts, golds, kinds=["other"], which=[number], **shared)
    swaps = []
    for block in range(2):
        if sum(len(sample.blocks) > block for sample in samples) >= 2:
            swaps += swap_block(model, samples, block=block, ends=newline)
    read = readability(model, samples, ends=newline, target=target)
    return found, read, swaps, jacobi_errors(model, samples)


def searching(model: Coconut, asked: Sequence[Any], num: int, figures: Path | None) -> dict:
    """The search tree and what thoughts hold; figures on request."""
    held = superposition(model, asked, num=num)
    trees = read_out(model, asked, num=num)
    tables = [by_height(trees, hops=hops, kind="longest") for hops in range(1, min(num, 2) + 1)]
    if figures is not None:
        plots.save(viz.tree(trees[0]), figures / "tree.svg")
        plots.save(viz.held(held), figures / "held.svg")
        sums = [parallelism(trees, hops=hops) for hops in range(1, min(num, 3) + 1)]
        plots.save(viz.gaps(sums), figures / "parallel.svg")
        plots.save(viz.height_lines(tables[0]), figures / "height.svg")
    viz.show_tree(trees[0])
    return {"superposition": asdict(held), "heights": [asdict(table) for table in tables]}


def draw(model: Coconut, recipe: CoconutRecipe, first: Any, log: Path, figures: Path) -> None:
    """The first answer's thoughts under the lens; the loss of the run, if there is a log."""
    figures.mkdir(parents=True, exist_ok=True)
    (made,) = recipe.generated(model, [first], trace=("lens",), lens=5)
    said = lens(made.traces[0], lambda token: model.tokenizer.decode([token]))
    plots.save(said, figures / "lens.svg")
    if not log.exists():
        return
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    loss = [(r["step"], r["metrics"]["token_loss"]) for r in rows if r["kind"] == "train"]
    line = [(float(step), Interval(value, value, value)) for step, value in loss]
    plots.save(
        plots.curves({"loss": line}, x_label="step", y_label="nats a token"), figures / "loss.svg"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--task", choices=list(TASKS), default="prosqa")
    parser.add_argument("--row", default="coconut")
    parser.add_argument("--num", type=int, default=200, help="test questions, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figures", type=Path, default=None, help="folder for the SVGs")
    parser.add_argument("--jsonl", type=Path, default=ROWS)
    args = parser.parse_args(arguments)
    recipe, model = TASKS[args.task](args.row), load(args.model)
    task = recipe.task()
    test = recipe.data.split("test")
    some = drawn(len(test), min(args.num, len(test)), seed=args.seed, what="questions")
    asked = task.ask([test[i] for i in some])
    target = before_end if args.task == "prosqa" else result_of(model)
    ablations, read, swaps, jacobi = thinking(model, recipe, asked, target)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(viz.ablation_table(ablations), viz.readability_table(read, swaps))
    for error in jacobi:
        console.print(
            f"{error.iterations} Jacobi iterations: thoughts {error.thoughts:.2g} off, "
            f"{error.loss:+.3f} nats a token, {100 * error.words:.1f} % other words"
        )
    row: dict[str, Any] = {
        "task": args.task,
        "row": args.row,
        "model": str(args.model),
        "num": len(asked),
        "ablations": [asdict(a) for a in ablations],
        "readability": asdict(read),
        "swaps": [asdict(s) for s in swaps],
        "jacobi": [asdict(e) for e in jacobi],
    }
    if args.figures is not None:
        draw(model, recipe, asked[0], args.model.parent / "log.jsonl", args.figures)
    pattern, layout = recipe.curriculum.pattern, recipe.curriculum.layout
    if args.task == "prosqa" and layout.boundaries == "given":
        num = getattr(pattern, "max_stage", None) or getattr(pattern, "thoughts", 2)
        row |= searching(model, asked, num, args.figures)
    made = {"machine": machine(), "command": shlex.join(sys.argv)}
    append_row(args.jsonl, json.loads(json.dumps(row | made)))


if __name__ == "__main__":
    main()
