"""How fast a model that writes answers here, beside transformers' own ways with the same weights.

    inward bench runs/drafts              a run: its held-out texts or questions
    inward bench FOLDER --prompts FILE    any causal LM, any texts

Sides, each over the same prompts, greedy, `batch` texts at a time, in turn within every repeat:

    ours                        as `inward ask` answers: drafts, thoughts, or plainly
    ours, plain                 the same loop without drafts (of models that draft)
    transformers, plain         generate
    transformers, look-up       generate with prompt_lookup_num_tokens
    transformers, assisted      generate with an assistant: a smaller model (--assistant), or the
                                same weights left after half of their layers
                                (assistant_early_exit)

The last two take one text at a time, as transformers does. Beside the speed stands how many tokens
a forward of the model said of a text, and how many texts are those of transformers' plain decoding,
token for token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inward.common.thinking import Request, answers

if TYPE_CHECKING:
    from rich.table import Table

    from inward.thinker import Thinker

Measured = tuple[str, str, list[float], str]
"""what, unit, one value per repeat, a note"""


@dataclass(frozen=True, kw_only=True)
class TextBench:
    """What is measured.

    prompts: a file of texts or questions; None: the run's own held-out ones.
    num: prompts. batch: texts at a time. max_new_tokens: of each.
    own: options of our side, such as scheme and K. assistant: folder of a smaller model.
    base: the model below an adapter.
    """

    prompts: Path | None = None
    num: int = 8
    batch: int = 1
    max_new_tokens: int = 64
    own: Mapping[str, Any] = field(default_factory=dict)
    assistant: str | None = None
    base: str | None = None

    def __post_init__(self) -> None:
        for name in ("num", "batch", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, eq=False)
class _Run:
    """What one side said: tokens of each text, forwards of the model, seconds of all."""

    said: list[list[int]]
    forwards: int
    seconds: float
    batch: int
    note: str = ""


Side = Callable[[], _Run]
_PLAIN = "transformers, plain"
UNITS = ("tokens/s", "s a text", "tokens a forward", "texts as plain")
"""What is told of each side: medians over repeats; the last two are the same in every repeat"""


def job(
    subject: str, settings: TextBench, say: Callable[[str], None] = lambda _: None
) -> Callable[[int], Iterator[Measured]]:
    """The measurement of a model that writes.

    Raises:
        FileNotFoundError, ValueError: no such model, no prompts, options that it refuses; before
            anything is measured.
    """
    from inward.thinker import open_thinker

    thinker = open_thinker(subject, base=settings.base)
    thinker.check(max_new_tokens=settings.max_new_tokens, **settings.own)
    requests = _requests(subject, thinker, settings)
    _check(thinker, requests, settings.batch)
    sides = _sides(thinker, requests, settings)

    def measure(repeats: int) -> Iterator[Measured]:
        runs: dict[str, list[_Run]] = {name: [] for name in sides}
        for turn in range(repeats + 1):  # the first is not counted: packing, caches
            for name, side in sides.items():
                say(f"  {name}, {turn} of {repeats}")
                found = side()
                if turn:
                    runs[name].append(found)
        plain = runs[_PLAIN][0].said if _PLAIN in runs else None
        for name, found in runs.items():
            yield from _measured(name, found, plain)

    return measure


def _measured(
    name: str, runs: Sequence[_Run], plain: Sequence[list[int]] | None
) -> Iterator[Measured]:
    """The numbers of one side, one for each of `UNITS` that it has."""
    first = runs[0]
    tokens, num = sum(map(len, first.said)), len(first.said)
    told = f"{num} texts, {first.batch} at a time{', ' if first.note else ''}{first.note}"
    yield name, UNITS[0], [tokens / run.seconds for run in runs], told
    yield name, UNITS[1], [run.seconds / num for run in runs], told
    if first.forwards:
        yield name, UNITS[2], [tokens / first.forwards], told
    if plain is not None:
        same = sum(a == b for a, b in zip(first.said, plain, strict=True))
        yield name, UNITS[3], [float(same)], f"of {num}"


def sides_table(rows: Sequence[Any]) -> Table:
    """A line a side: `BenchRow`s of one model."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, title=rows[0].subject, title_justify="left")
    table.add_column("side", no_wrap=True)
    for unit in UNITS:
        table.add_column(unit, justify="right")
    table.add_column("")
    for what in dict.fromkeys(row.what for row in rows):
        own = {row.unit: row for row in rows if row.what == what}
        cells = [f"{own[unit].median:.4g}" if unit in own else "-" for unit in UNITS]
        table.add_row(what, *cells, own[UNITS[0]].note)
    return table


# --------------------------------------------------------------------------------------------------
# Prompts


def _requests(subject: str, thinker: Thinker, settings: TextBench) -> list[Request]:
    """What our side is asked; transformers continues the same tokens, thoughts aside."""
    from inward.common.sampling import Sampling

    greedy = Sampling("greedy")
    options = {"max_new_tokens": settings.max_new_tokens, "sampling": greedy}
    own = settings.own
    questions = _questions(subject, thinker, settings)
    if thinker.method.name in ("tidar", "plain"):
        return [Request(prompt=ids, own=own, **options) for ids in questions]
    return [thinker.request(question, **options, **own) for question in questions]


def _check(thinker: Thinker, requests: Sequence[Request], batch: int) -> None:
    """A prompt that our side cannot answer is refused before the others are measured."""
    work = thinker.method.begin(thinker.model, batch_size=batch)
    for number, request in enumerate(requests, start=1):
        try:
            work.add(request)
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from error


def _questions(subject: str, thinker: Thinker, settings: TextBench) -> list[Any]:
    """Tokens to go on from, for models that decode; questions for those that think."""
    from inward.evals import drafts, questions
    from inward.recipes.of import recipe_of
    from inward.recipes.own_drafts import TextData

    decodes = thinker.method.name in ("tidar", "plain")
    tokenizer = getattr(thinker.processor, "tokenizer", None)
    if settings.prompts is not None and decodes:
        texts = drafts.texts_of_file(settings.prompts, tokenizer, num=None, seed=0)
        return [text.begin for text in texts][: settings.num]
    if settings.prompts is not None:
        _, found, _ = questions.of_file(settings.prompts)
        return [one.question for one in found][: settings.num]
    try:
        whole = questions.whole_of(recipe_of(subject))
    except FileNotFoundError as error:
        raise ValueError(
            f"{subject} has no recipe that names texts; give some: --prompts FILE"
        ) from error
    if not decodes:
        found = questions.questions_of(whole, "valid")
        return [one.question for one in found][: settings.num]
    if isinstance(whole.data, TextData):
        texts = drafts.held_in(whole.data, tokenizer)
    else:
        texts = drafts.own_texts(thinker, whole, num=settings.num, seed=1000)
    return [text.begin for text in texts][: settings.num]


# --------------------------------------------------------------------------------------------------
# Sides


def _sides(thinker: Thinker, requests: list[Request], settings: TextBench) -> dict[str, Side]:
    from inward import hub
    from inward.methods.tidar.base import tidar_of

    lm = _inner(thinker.model)
    prompts = [_tokens(request.prompt) for request in requests]
    ours = _ours(thinker.method, thinker.model, requests, settings)
    sides = {f"ours, {_told(thinker, settings)}": ours}
    if lm is None:
        if settings.assistant is not None:
            raise ValueError(f"{thinker.name}: no decoding of transformers' to be assisted")
        return sides  # its own loop is the only one that knows its depth
    if tidar_of(thinker.model) is not None:
        bare = [Request(prompt=r.prompt, max_new_tokens=r.max_new_tokens, sampling=r.sampling)
                for r in requests]  # fmt: skip
        sides["ours, plain"] = _ours(hub.door("plain"), lm, bare, settings)
    K = int(settings.own.get("K") or getattr(thinker.model, "block_size", 8))
    assistant = _assistant(settings, lm)
    sides[_PLAIN] = _theirs(lm, prompts, settings, settings.batch, {})
    sides["transformers, look-up"] = _theirs(
        lm, prompts, settings, 1, {"prompt_lookup_num_tokens": K}
    )
    if assistant:
        sides["transformers, assisted"] = _theirs(lm, prompts, settings, 1, assistant)
    return sides


def _told(thinker: Thinker, settings: TextBench) -> str:
    """What our side does, in a few words."""
    own = settings.own
    if thinker.method.name == "tidar":
        scheme = own.get("scheme", thinker.method.options["scheme"].default)
        return f"{scheme}, K {own.get('K') or thinker.model.block_size}"
    return {"coconut": "with thoughts", "huginn": "recurrent"}.get(thinker.method.name, "plainly")


def _inner(model: Any) -> Any:
    """The causal LM that transformers can generate with; None: there is none."""
    from inward.methods.coconut.base import unwrapped
    from inward.methods.tidar.base import lm_of

    if type(model).__name__ == "Coconut":
        return unwrapped(model.base)
    inner = lm_of(model)
    return inner if hasattr(inner, "generation_config") and not _recurrent(inner) else None


def _recurrent(model: Any) -> bool:
    return getattr(model.config, "model_type", "") == "huginn_raven"


def _tokens(prompt: Any) -> list[int]:
    """A prompt as tokens alone."""
    segments = getattr(prompt, "segments", None)
    if segments is None:
        return list(prompt)
    return [token for segment in segments for token in getattr(segment, "ids", ())]


def _assistant(settings: TextBench, lm: Any) -> dict[str, Any]:
    """How transformers is to be assisted; {} where it cannot be."""
    if settings.assistant is not None:
        from inward.common.bases import load_causal_lm

        return {"assistant_model": load_causal_lm(settings.assistant)}
    layers = int(lm.config.get_text_config().num_hidden_layers)
    return {"assistant_early_exit": layers // 2} if layers > 1 else {}


def _ours(method: Any, model: Any, requests: list[Request], settings: TextBench) -> Side:
    def run() -> _Run:
        said, forwards, thoughts = [], 0, 0
        began = time.perf_counter()
        for first in range(0, len(requests), settings.batch):
            work = method.begin(model, batch_size=settings.batch)
            for answer in answers(work, requests[first : first + settings.batch]):
                said.append(list(answer.tokens))
                forwards += round(answer.cost.forwards)
                thoughts += answer.steps if method.steps == "thoughts" else 0
        seconds = time.perf_counter() - began
        note = f"{thoughts} thoughts" if thoughts else ""
        return _Run(said, forwards, seconds, settings.batch, note)

    return run


def _theirs(
    lm: Any, prompts: list[list[int]], settings: TextBench, batch: int, options: dict[str, Any]
) -> Side:
    import torch

    layers = lm.config.get_text_config().num_hidden_layers
    seen: list[int] = []

    def count(*_: Any) -> None:
        # an early exit runs the same module with fewer layers
        if lm.config.get_text_config().num_hidden_layers == layers:
            seen.append(1)

    ends = lm.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    pad = lm.generation_config.pad_token_id
    pad = pad if isinstance(pad, int) else next((e for e in ends if isinstance(e, int)), 0)

    def run() -> _Run:
        said: list[list[int]] = []
        seen.clear()
        forwards = 0
        handle = lm.register_forward_pre_hook(count)
        began = time.perf_counter()
        try:
            for first in range(0, len(prompts), batch):
                chosen = prompts[first : first + batch]
                longest = max(map(len, chosen))
                rows = [[pad] * (longest - len(p)) + p for p in chosen]
                mask = [[0] * (longest - len(p)) + [1] * len(p) for p in chosen]
                before = len(seen)
                with torch.no_grad():
                    out = lm.generate(
                        torch.tensor(rows), attention_mask=torch.tensor(mask), do_sample=False,
                        max_new_tokens=settings.max_new_tokens, pad_token_id=pad, **options,
                    )  # fmt: skip
                said += [_until(row, ends) for row in out[:, longest:].tolist()]
                forwards += (len(seen) - before) * len(chosen)
        finally:
            handle.remove()
        return _Run(said, forwards, time.perf_counter() - began, batch)

    return run


def _until(ids: list[int], ends: set[Any]) -> list[int]:
    stop = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: stop + 1]
