"""`inward ask`: any model answers what you type.

The options of the methods come from their doors, so that each has its own help here and is refused
by name where it does not belong.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import tyro

from inward.cli.options import UsageError, _console, _go
from inward.common.files import check_targets, read_text

if TYPE_CHECKING:
    from inward.common.thinking import Answer
    from inward.thinker import Thinker


def ask(words: list[str]) -> int:
    """Ask a model."""
    return _go(command(Ask), "ask", spelled_out(words))


def spelled_out(words: list[str]) -> list[str]:
    """Options that are True or False may stand without a value: `--abstain` is `--abstain True`,
    `--no-boundaries` is `--boundaries False`."""
    from inward.hub import doors

    options = [item for method in doors() for item in method.options.items()]
    switches = {"--" + name.replace("_", "-") for name, option in options if option.kind is bool}
    found: list[str] = []
    for place, word in enumerate(words):
        positive = word.replace("--no-", "--", 1)
        if word in switches and words[place + 1 : place + 2] not in (["True"], ["False"]):
            found += [word, "True"]
        elif word not in switches and positive in switches:
            found += [positive, "False"]
        else:
            found.append(word)
    return found


def effort_of(text: str | None) -> int | str | None:
    """An effort as typed: a number in the method's unit, or a word."""
    if text is None:
        return None
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else text


def command(base: type) -> type:
    """A command (`Asking` or below) with every method's options besides its own."""
    from inward.hub import doors

    found: dict[str, tuple[Any, dict[str, str]]] = {}
    for method in doors():
        for name, option in method.options.items():
            kind = option.kind
            if kind is not None and name not in _TAKEN:
                found.setdefault(name, (kind, {}))[1][method.name] = option.about
    entries: list[Any] = [
        (
            f"own_{name}",
            Annotated[
                Optional[kind],  # noqa: UP045 - a type made at run time
                tyro.conf.arg(
                    name=name.replace("_", "-"), help=_told_of(owners), help_behavior_hint=""
                ),
            ],
            field(default=None, kw_only=True),
        )
        for name, (kind, owners) in sorted(found.items(), key=lambda kv: (*kv[1][1], kv[0]))
    ]
    return make_dataclass(
        base.__name__, entries, bases=(base,), namespace={"__doc__": base.__doc__}
    )


_TAKEN = ("trace", "seed", "effort", "puzzle")
"""Said in another way here"""


def _told_of(owners: dict[str, str]) -> str:
    """An option's meaning for each method that has it; one for those that mean the same."""
    told: dict[str, list[str]] = {}
    for method, about in owners.items():
        told.setdefault(about, []).append(method)
    return "; ".join(f"{'/'.join(methods)}: {about}" for about, methods in told.items())


@dataclass(kw_only=True)
class Asking:
    """What `ask` and `chat` share."""

    model: str
    """a shipped model's name, the folder of a run or a model, or of any causal LM"""
    effort: str | None = None
    """low, medium, high, or a number in the method's own unit"""
    max_new_tokens: int | None = None
    """tokens to say at most"""
    sample: bool = False
    """draw tokens instead of taking the likeliest"""
    temperature: float = 1.0
    """with --sample"""
    top_k: int = 0
    """with --sample: only the so many likeliest tokens; 0: all"""
    top_p: float = 1.0
    """with --sample: only the likeliest tokens that have this share together"""
    seed: int = 0
    """of all that is drawn"""
    stop: tuple[str, ...] = ()
    """texts that end the answer"""
    base: str | None = None
    """the model below an adapter, or its folder"""
    tokenizer: str | None = None
    """folder of a tokenizer, instead of the model's own"""
    threads: int | None = None
    """threads of torch"""

    def thinker(self) -> Thinker:
        """The model, opened."""
        from inward.thinker import open_thinker

        if self.threads is not None:
            import torch

            if self.threads < 1:
                raise ValueError(f"threads is {self.threads}; use at least 1")
            torch.set_num_threads(self.threads)
        return open_thinker(self.model, base=self.base, tokenizer=self.tokenizer)

    def options(self) -> dict[str, Any]:
        """Arguments of `Thinker.ask`, those that were given."""
        from inward.common.sampling import Sampling

        found: dict[str, Any] = {"effort": effort_of(self.effort), "stop": self.stop}
        if self.sample:
            found["sampling"] = Sampling(
                "gumbel", temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
            )
        elif (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0):
            raise UsageError("--temperature, --top-k and --top-p act on drawn tokens; add --sample")
        if self.max_new_tokens is not None:
            found["max_new_tokens"] = self.max_new_tokens
        prefix = "own_"
        own = {
            name.removeprefix(prefix): value
            for name, value in vars(self).items()
            if name.startswith(prefix) and value is not None
        }
        return {name: value for name, value in found.items() if value not in (None, ())} | own


@dataclass(kw_only=True)
class Ask(Asking):
    """Ask a model: a text, a puzzle (digits and dots for a Sudoku, lines of '# SG' for a maze)."""

    question: tuple[str, ...]
    """questions (quote them); - reads one from standard input"""
    file: Path | None = None
    """puzzles: text with one Sudoku a line, or mazes with an empty line between, or .npz, .csv"""
    show: bool = False
    """how the answer came about, step by step"""
    json: bool = False
    """one JSON object a line, for programs"""
    trace: Path | None = None
    """write all traces to this file, one JSON line each"""
    svg: Path | None = None
    """draw how the first puzzle was solved to this file"""
    png: Path | None = None
    """the same as PNG"""
    page: Path | None = None
    """write a page that shows how the answers came about, for any browser; asks more than once"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.common.trace import write_traces

        self._check_files()
        options, thinker = self.options(), self.thinker()
        if (self.svg or self.png) and thinker.method.reads != "puzzle":
            raise ValueError(f"{self.svg or self.png}: only puzzles are drawn; use --show")
        questions = self.questions(thinker)
        if self.page is not None:
            from inward.viz.page import wanted

            options["trace"] = wanted(thinker.method.name, options)
        elif self.show or self.trace is not None or self.svg or self.png:
            options["trace"] = "lens" if "lens" in thinker.method.traces and self.show else True
        answers = thinker.ask(questions, seed=self.seed, **options)
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1):
            answer = _with_fault(thinker, question, answer)
            self.tell(thinker, answer, f"question {number}" if len(answers) > 1 else "")
        traces = [answer.trace for answer in answers if answer.trace is not None]
        if self.trace is not None:
            write_traces(traces, self.trace)
        self._draw(traces)
        if self.page is not None:
            self._page(thinker, questions, answers, options)
        return 0 if all(_solved(answer) for answer in answers) else 1

    def _check_files(self) -> None:
        """Refuse files that cannot be written before any work."""
        check_targets(self.trace, self.svg, self.png, self.page)
        if self.svg or self.png:
            from inward.viz import plots

            for path in (self.svg, self.png):
                if path is not None:
                    plots.kind_of(path)
            if not plots.available():
                raise ValueError(plots.MISSING)

    def questions(self, thinker: Thinker) -> list[Any]:
        """What was typed, read from standard input or from a file."""
        texts: list[Any] = [sys.stdin.read() if t == "-" else t for t in self.question]
        if self.file is not None:
            texts += self._of_file(thinker)
        if not texts:
            raise UsageError("no question given; type one after the model, or - or --file FILE")
        return texts

    def _of_file(self, thinker: Thinker) -> list[Any]:
        from inward.tasks.named import puzzle_texts, read_puzzles

        assert self.file is not None
        if thinker.method.reads == "text":
            return [read_text(self.file)]
        task = getattr(thinker.processor, "task", None)
        if self.file.suffix in (".npz", ".csv"):
            kept = read_puzzles(self.file, task)
            return [row.astype("int64").reshape(kept.grid) for row in kept.inputs]
        return puzzle_texts(read_text(self.file), task)

    def tell(self, thinker: Thinker, answer: Answer, title: str) -> None:
        """Print one answer, and what it took."""
        if self.json:
            print(json.dumps(told(answer)))
            return
        if title:
            print(title)
        if answer.error:
            print(f"  no answer: {answer.error}", file=sys.stderr)
            return
        if self.show and answer.trace is not None:
            from inward.viz.show import show

            show(answer.trace, console=_console())
        if answer.details.get("answered") is False:
            print("no answer: withheld, as asked; what it would have been:")
        print(answer.text)
        if fault := answer.details.get("fault"):
            print(f"  {_FAULTS[fault]}")
        print(f"  [{summary(thinker, answer)}]")

    def _page(
        self, thinker: Thinker, questions: list[Any], answers: list[Answer], options: dict[str, Any]
    ) -> None:
        """The page; what stands beside a trace in it is asked for now."""
        from inward.studies.pictured import beside
        from inward.viz.page import page

        assert self.page is not None
        pairs = [pair for pair in zip(questions, answers, strict=True) if pair[1].trace is not None]
        if not pairs:
            raise ValueError(f"{self.page}: no question was answered, so there is nothing to show")
        for i, (question, answer) in enumerate(pairs):
            other = pairs[(i + 1) % len(pairs)][0] if len(pairs) > 1 else None
            beside(thinker, question, answer, other=other, seed=self.seed, **options)
        page([answer for _, answer in pairs], self.page, title=Path(self.model).name)
        print(f"page: {self.page}", file=sys.stderr)

    def _draw(self, traces: list[Any]) -> None:
        from inward.viz.show import TracedBoard

        for path in (self.svg, self.png):
            if path is not None:
                from inward.viz import plots

                if not traces or traces[0].method != "trm":
                    raise ValueError(f"{path}: only puzzles are drawn step by step")
                meta = traces[0].meta
                board = TracedBoard(meta["task"], (int(meta["grid"][0]), int(meta["grid"][1])))
                plots.save(plots.refinement(traces[0], board), path)


_FAULTS = {
    "no solution": "no solution: the clues exclude each other, so no answer can be right",
    "several solutions": "several solutions: the puzzle allows more than one answer",
}


def _with_fault(thinker: Thinker, question: Any, answer: Answer) -> Answer:
    """The answer with what is wrong with the question itself, where rules can tell."""
    judge = getattr(thinker.processor, "fault", None)
    if judge is None or answer.error:
        return answer
    return replace(answer, details={**answer.details, "fault": judge(question)})


def _solved(answer: Answer) -> bool:
    """An answer is there, was not withheld, and no rule speaks against it."""
    details = answer.details
    return not (
        answer.error or details.get("answered") is False or details.get("obeys_rules") is False
    )


def told(answer: Answer) -> dict[str, Any]:
    """An answer as JSON."""
    row: dict[str, Any] = {
        "text": answer.text,
        "tokens": list(answer.tokens),
        "steps": answer.steps,
        "stopped": answer.stopped,
        "cost": answer.cost.to_dict(),
    }
    if answer.believed is not None:
        row["believed"] = answer.believed
    if answer.logprobs is not None:
        row["logprobs"] = list(answer.logprobs)
    if answer.error:
        row["error"] = answer.error
    if "answered" in answer.details:
        row["answered"] = bool(answer.details["answered"])
    if answer.details.get("fault"):
        row["fault"] = answer.details["fault"]
    if answer.details.get("obeys_rules") is not None:
        row["obeys_rules"] = answer.details["obeys_rules"]
    return row


def summary(thinker: Thinker, answer: Answer) -> str:
    """One line: what the rules say, belief, tokens, steps and cost."""
    from inward.common.trace import flops_text

    parts = []
    rules = answer.details.get("obeys_rules")
    if rules is not None:
        parts.append("solved, by the rules" if rules else "NOT solved, by the rules")
    if answer.believed is not None:
        parts.append(f"belief {answer.believed:.2f}")
    if thinker.method.reads == "text":
        parts.append(f"{len(answer.tokens)} tokens")
    steps = f"{answer.steps} {thinker.method.steps}"
    parts += [steps, flops_text(answer.cost.flops), answer.stopped]
    return ", ".join(parts)
