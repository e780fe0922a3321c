"""Any model that speaks under lm-eval's benchmarks: its tasks, its scores, our cost beside them.

    result = evaluate(thinker, ["arc_easy"], include=None)

Tasks that generate ask the model as `ask` does. Tasks that compare log-likelihoods need one word of
explanation for each way to think:

    plain     sum of log p(continuation | context), one forward
    huginn    the same at the depth asked for (`max_steps`); a rule that halts is refused, because a
              continuation that is given is read as one prompt, not said token by token
    tidar     the autoregressive head; drafts do not enter, whatever the scheme
    coconut   after the thoughts that follow a question as the model was trained: the continuation
              is judged behind <eot>. A model that switches between words (a rhythm, its own
              boundaries) has no such number and is refused, as are texts without a question
              (rolling log-likelihoods)

What is unusual: rows of a batch are padded at the right, where nothing real looks, so that a batch
says what single rows say; what had to be cut off at the left is counted and told.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inward.common.costs import forward_cost
from inward.common.sampling import Sampling
from inward.common.trace import Cost
from inward.thinker import Thinker

if TYPE_CHECKING:
    from torch import Tensor

MISSING = (
    "lm-eval is not installed, whose tasks `--harness` runs; pip install 'inward[harness]' (650 MB)"
)
MEANS = {
    "plain": "log p(continuation | context), one forward",
    "huginn": "log p(continuation | context) at the depth asked for",
    "tidar": "log p(continuation | context) of the autoregressive head; drafts do not enter",
    "coconut": "log p(continuation | question, its thoughts), behind <eot>",
}
"""What a log-likelihood is, method by method"""
MAX_NEW_TOKENS = 256
"""Of tasks that name no number, as in lm-eval"""
_GENERATION = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")


@dataclass(frozen=True)
class HarnessResult:
    """What came of some tasks.

    scores: {"task", "metric", "value", "stderr" (None where lm-eval has none), "num"}.
    cost: of everything together. num_requests: of it. truncated: contexts cut at the left.
    means: what a log-likelihood was, where one was asked for.
    """

    model: str
    scores: list[dict[str, Any]]
    cost: Cost
    seconds: float
    num_requests: int
    truncated: int = 0
    means: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "options": {k: str(v) for k, v in self.options.items()}}


def available() -> bool:
    """Whether lm-eval is installed."""
    from importlib.util import find_spec

    return find_spec("lm_eval") is not None


def evaluate(
    thinker: Thinker,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    **options: Any,
) -> HarnessResult:
    """Run tasks of lm-eval.

    Args:
        include: folder with tasks of one's own (YAML); lm-eval's are known besides.
        limit: the first so many documents of each task; shots: examples before a question.
        batch_size: rows of a forward that judges.
        options: of `ask`: effort, drafter, max_steps, ...

    Raises:
        ImportError: lm-eval is not installed. ValueError: no such task; a model that cannot be
            asked so; an option that is not there.
    """
    if not available():
        raise ImportError(MISSING)
    thinker.check(**options)
    if not tasks:
        raise ValueError("no task is named")
    for name, value in {"limit": limit, "shots": shots}.items():
        if value is not None and value < (name == "limit"):
            raise ValueError(f"{name} is {value}, must be {int(name == 'limit')} or more")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, must be 1 or more")
    os.environ.setdefault("HF_DATASETS_OFFLINE", os.environ.get("HF_HUB_OFFLINE", "0"))
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]

    from inward.evals.harness_model import harness_model

    model = harness_model(Judge(thinker, options, batch_size=batch_size, seed=seed))
    manager = _manager(tasks, include)
    started = time.perf_counter()
    found: Any = simple_evaluate(
        model=model,
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        num_fewshot=shots,
        bootstrap_iters=100,
        log_samples=False,
        verbosity="ERROR",
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    judge = model.judge
    return HarnessResult(
        model=thinker.name,
        scores=list(_scores(found)),
        cost=judge.cost,
        seconds=time.perf_counter() - started,
        num_requests=judge.num_requests,
        truncated=judge.truncated,
        means=MEANS[thinker.method.name] if judge.judged else "",
        options=options,
    )


def _manager(tasks: Sequence[str], include: Path | None) -> Any:
    """To know all of lm-eval's tasks takes seconds; those of one's own folder do not need it."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    folder = None if include is None else str(include)
    if include is not None and not include.is_dir():
        raise ValueError(f"{include} is no folder of tasks")
    manager = TaskManager(include_path=folder, include_defaults=False)
    if unknown := sorted(set(tasks) - set(manager.all_tasks)):
        manager = TaskManager(include_path=folder)
        unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        import difflib

        close = difflib.get_close_matches(unknown[0], manager.all_tasks, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "see lm_eval ls tasks"
        raise ValueError(f"lm-eval knows no task {', '.join(unknown)}; {hint}")
    return manager


def _scores(found: Mapping[str, Any]) -> Any:
    for task, metrics in found["results"].items():
        num = found.get("n-samples", {}).get(task, {}).get("effective")
        for name, value in metrics.items():
            metric, _, filtered = name.partition(",")
            if not isinstance(value, int | float) or metric.endswith("_stderr"):
                continue
            if metric == "sample_len":
                continue
            stderr = metrics.get(f"{metric}_stderr,{filtered}")
            shown = metric if filtered in ("none", "") else f"{metric} ({filtered})"
            stderr = stderr if isinstance(stderr, int | float) else None
            yield {
                "task": task,
                "metric": shown,
                "value": float(value),
                "stderr": None if stderr is None else float(stderr),
                "num": num,
            }


class Judge:
    """A thinker, asked as lm-eval asks: no type of lm-eval is known here.

    cost, num_requests, truncated: of all that was asked; judged: whether log-likelihoods were.
    """

    def __init__(
        self, thinker: Thinker, options: Mapping[str, Any], *, batch_size: int, seed: int
    ) -> None:
        self.thinker, self.options = thinker, dict(options)
        self.batch_size, self.seed = batch_size, seed
        self.cost, self.num_requests, self.truncated, self.judged = Cost(), 0, 0, False
        self.tokenizer: Any = getattr(thinker.processor, "tokenizer", None)
        if thinker.method.reads != "text" or self.tokenizer is None:
            kind = type(thinker.processor).__name__
            raise ValueError(
                f"{thinker.name or thinker.method.name} reads no free text ({kind}); lm-eval needs "
                "a model with a tokenizer"
            )
        self.own = thinker.request("a", **options).own
        config = self.lm.config.get_text_config()
        self.context: int = getattr(config, "max_position_embeddings", None) or 2048

    @property
    def lm(self) -> Any:
        """The causal LM inside."""
        inside = {"tidar": "model", "coconut": "base"}.get(self.thinker.method.name)
        return self.thinker.model if inside is None else getattr(self.thinker.model, inside)

    # -- text

    def answers(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """(context, what lm-eval says about the generation) -> what the model says to it; those
        that are asked alike run together."""
        groups: dict[str, list[int]] = {}
        for place, (_, how) in enumerate(asked):
            groups.setdefault(repr(sorted(how.items())), []).append(place)
        texts = [""] * len(asked)
        for places in groups.values():
            how = _generation(asked[places[0]][1])
            questions = [asked[place][0] for place in places]
            found = self.thinker.ask(questions, seed=self.seed, **{**self.options, **how})
            for place, answer in zip(places, found, strict=True):
                if answer.error:
                    raise ValueError(f"{asked[place][0][:60]!r}: {answer.error}")
                texts[place] = answer.text
                self.cost = self.cost + answer.cost
        self.num_requests += len(asked)
        return texts

    # -- log-likelihoods

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """(question, continuation) of a model that thinks after its question."""
        self._begin_judging()
        return self._batched(pairs, lambda pair: len(pair[0]), self._thought_about)

    def judge(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[float, bool]]:
        """(context, continuation) as tokens: log p of the continuation, and whether it is what
        greedy decoding says."""
        self._begin_judging()
        return self._batched(rows, lambda row: len(row[0]) + len(row[1]), self._read)

    def _begin_judging(self) -> None:
        self.judged = True
        halt = self.own.get("halt", "never")
        if self.thinker.method.name == "huginn" and halt != "never":
            raise ValueError(
                f"halt is {halt!r}: a continuation that is given is read at one depth; use "
                "halt='never', or tasks that generate"
            )

    def _batched(self, rows: Sequence[Any], size: Any, read: Any) -> list[tuple[float, bool]]:
        order = sorted(range(len(rows)), key=lambda place: -size(rows[place]))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        for begin in range(0, len(order), self.batch_size):
            places = order[begin : begin + self.batch_size]
            made = read([rows[place] for place in places])
            for place, result in zip(places, made, strict=True):
                found[place] = result
        self.num_requests += len(rows)
        return found

    def _read(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[float, bool]]:
        import torch

        kept, options = [], self._depth()
        for context, continuation in rows:
            whole = [*context, *continuation]
            self.truncated += len(whole) > self.context
            kept.append((whole[-self.context :], len(continuation)))
        longest = max(len(whole) for whole, _ in kept)
        ids = torch.zeros(len(kept), longest, dtype=torch.long, device=self.lm.device)
        mask = torch.zeros_like(ids)
        for r, (whole, _) in enumerate(kept):
            ids[r, : len(whole)] = torch.tensor(whole)
            mask[r, : len(whole)] = 1
        with torch.no_grad():
            logits = self.lm(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits
        found = []
        for r, (whole, num) in enumerate(kept):
            own = self._allowed(logits[r, len(whole) - num - 1 : len(whole) - 1].float())
            wanted = ids[r, len(whole) - num : len(whole)]
            chances = own.log_softmax(-1).gather(1, wanted[:, None])
            found.append((float(chances.sum()), bool((own.argmax(-1) == wanted).all())))
            self._spend(len(whole), 0, num, options)
        return found

    def _allowed(self, logits: Tensor) -> Tensor:
        """A mask token is no answer."""
        name = self.thinker.method.name
        return self.thinker.model.ban(logits) if name == "tidar" else logits

    def _depth(self) -> dict[str, Any]:
        if self.thinker.method.name != "huginn":
            return {}
        depth = self.own.get("max_steps") or self.thinker.model.config.mean_recurrence
        return {"num_steps": depth}

    def _thought_about(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        import torch

        from inward.data.thoughts.segments import Sample, Text

        model, samples = self.thinker.model, []
        for question, continuation in pairs:
            prompt = self.thinker.request(question or "", **self.options).prompt
            said = self.tokenizer.encode(continuation, add_special_tokens=False)
            samples.append(Sample((*prompt.segments, Text(tuple(said), True))))
        with torch.no_grad():
            out = model(model.collate(samples))
        found = []
        for r, sample in enumerate(samples):
            right = bool(out.row_right[r] == out.row_count[r])
            found.append((-float(out.row_loss[r]), right))
            num, thoughts = int(out.row_count[r]), sample.num_thoughts
            first = len(sample) - num - 1 - thoughts if thoughts else len(sample)
            self._spend(first, 0, 0 if thoughts else num, {})
            for t in range(thoughts):
                last = t == thoughts - 1
                rows = len(sample) - first - t if last else 1
                self._spend(rows, first + t, num if last else 0, {})
        return found

    def _spend(self, rows: int, past: int, reads: int, options: Mapping[str, Any]) -> None:
        self.cost = self.cost + forward_cost(self.lm, rows=rows, past=past, reads=reads, **options)


def _generation(how: Mapping[str, Any]) -> dict[str, Any]:
    """What lm-eval says about a generation, as options of `ask`.

    Raises:
        ValueError: something that is not done here.
    """
    if unknown := sorted(set(how) - set(_GENERATION)):
        raise ValueError(
            f"the task sets {', '.join(unknown)} for its generation; here it may say "
            f"{', '.join(_GENERATION)}"
        )
    until = how.get("until") or ()
    found: dict[str, Any] = {
        "stop": tuple([until] if isinstance(until, str) else [w for w in until if w]),
        "max_new_tokens": int(how.get("max_gen_toks", MAX_NEW_TOKENS)),
    }
    if how.get("do_sample"):
        found["sampling"] = Sampling(
            "gumbel",
            temperature=float(how.get("temperature", 1.0)),
            top_k=int(how.get("top_k", 0)),
            top_p=float(how.get("top_p", 1.0)),
        )
    else:
        found["sampling"] = Sampling()
    return found
