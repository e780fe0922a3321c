"""Evaluate a model that drafts: how well it says what is said, and how much of its drafts stands.

    result = evaluate(thinker, texts, dataset="stories.txt")

Three numbers that answer three questions. `perplexity`: of the words, by the autoregressive half
alone (an adapter leaves it what it was). `accepted`: tokens that a decode step commits on these
texts by teacher forcing, as during training. `decoded`: the same of texts that the model goes on
from, by the scheme that is asked for: what a user gets.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from inward.data.texts.packed import PackedSource, PackedTokens
from inward.evals.rows import machine
from inward.evals.stats import paired_difference
from inward.methods.tidar.base import context_limit, lm_of, tidar_of
from inward.recipes.own_drafts import given, opening

if TYPE_CHECKING:
    from inward.data.texts.anyfile import Passage, TextKind
    from inward.data.thoughts.anyfile import Names
    from inward.recipes.own_drafts import TextData
    from inward.thinker import Thinker

_ROW = 256
"""Tokens of a row on which drafts are judged"""


@dataclass(frozen=True, eq=False)
class HeldText:
    """ids (n,) of a text; said (n,) bool, which of them the model says; begin: what it is given to
    go on from."""

    ids: np.ndarray
    said: np.ndarray
    begin: list[int]


@dataclass(frozen=True)
class DraftResult:
    """What was measured, on what, where and by which command.

    loss: nats a token, perplexity: its exponential, with the 95 % interval over texts.
    accepted, first: see `inward.methods.tidar.acceptance`; None for a model that does not draft.
    decoded: tokens that a forward said, of `num_decoded` texts gone on from; forwards: for each of
    these texts; tokens_per_second: of all together.
    """

    what: str
    method: str
    dataset: str
    num: int
    tokens: int
    loss: float
    perplexity: float
    interval: tuple[float, float]
    accepted: float | None
    first: float | None
    block: int | None
    num_decoded: int
    decoded: float
    forwards: float
    tokens_per_second: float
    settings: dict[str, Any] = field(default_factory=dict)
    parameters: int = 0
    machine: str = ""
    command: str = ""

    def to_row(self) -> dict[str, Any]:
        """JSON values, for `append_row`."""
        return asdict(self)


def evaluate(
    thinker: Thinker,
    texts: Sequence[HeldText],
    *,
    what: str = "",
    dataset: str = "",
    num_decoded: int = 16,
    max_new_tokens: int = 64,
    command: str = "",
    **options: Any,
) -> DraftResult:
    """Read all texts, and go on from some.

    Args:
        num_decoded: of the first so many. options: of `Thinker.ask`: scheme, K, ...

    Raises:
        ValueError: no texts, or none with a token to predict; options that the method refuses.
    """
    thinker.check(max_new_tokens=max_new_tokens, **options)
    losses = [row for text in texts for row in [_losses(thinker.model, text)] if len(row)]
    if not losses:
        raise ValueError("there is no text with a token to predict; the set is empty")
    mean, interval = _perplexity(losses)
    accepted = _accepted(thinker.model, texts)
    said, forwards, seconds, num = _decoded(thinker, texts[:num_decoded], max_new_tokens, options)
    tidar = tidar_of(thinker.model)
    return DraftResult(
        what=what or thinker.name,
        method=thinker.method.name,
        dataset=dataset,
        num=len(losses),
        tokens=sum(map(len, losses)),
        loss=mean,
        perplexity=math.exp(mean),
        interval=interval,
        accepted=accepted.get("accepted"),
        first=accepted.get("first"),
        block=None if tidar is None else tidar.block_size,
        num_decoded=num,
        decoded=said / max(forwards, 1),
        forwards=forwards / max(num, 1),
        tokens_per_second=said / max(seconds, 1e-9),
        settings={name: repr(value) for name, value in options.items()},
        parameters=sum(p.numel() for p in thinker.model.parameters()),
        machine=machine(),
        command=command or "python: inward.evals.drafts.evaluate",
    )


@torch.no_grad()
def _losses(model: Any, text: HeldText) -> np.ndarray:
    """Nats of every token that is said, given what stands before it; of texts beyond the context
    the beginning."""
    lm, tidar = lm_of(model), tidar_of(model)
    limit = context_limit(lm)
    ids = torch.as_tensor(text.ids[:limit].astype(np.int64), device=lm.device)[None]
    logits = cast(Any, lm)(input_ids=ids, use_cache=False).logits
    if tidar is not None:
        logits = tidar.ban(logits)
    losses = -logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return losses.cpu().numpy()[text.said[1:limit]]


def _perplexity(losses: Sequence[np.ndarray]) -> tuple[float, tuple[float, float]]:
    """Mean nats a token, and the interval of the perplexity over texts (bootstrap)."""
    sums = np.array([row.sum() for row in losses])
    nums = np.array([len(row) for row in losses])
    mean = float(sums.sum() / nums.sum())
    if len(losses) < 2:
        return mean, (math.exp(mean), math.exp(mean))
    # a ratio of sums: its error is that of the residuals
    spread = paired_difference(sums, mean * nums).difference
    scale = float(nums.mean())
    return mean, (math.exp(mean + spread.low / scale), math.exp(mean + spread.high / scale))


def _accepted(model: Any, texts: Sequence[HeldText]) -> dict[str, float]:
    from inward.methods.tidar.acceptance import acceptance

    tidar = tidar_of(model)
    if tidar is None:
        return {}
    sums: dict[str, list[float]] = {}
    for batch in _batches(texts, min(_ROW, context_limit(lm_of(model)))):
        batch = {name: value.to(tidar.device) for name, value in batch.items()}
        for name, (total, count) in acceptance(tidar, batch).items():
            found = sums.setdefault(name, [0.0, 0.0])
            found[0] += float(total)
            found[1] += float(count)
    return {name: total / count for name, (total, count) in sums.items() if count}


def _batches(texts: Sequence[HeldText], length: int) -> Iterator[dict[str, torch.Tensor]]:
    pairs = [(text.ids[~text.said].tolist(), text.ids[text.said].tolist()) for text in texts]
    source = PackedSource(
        PackedTokens.from_answers(pair for pair in pairs if pair[1]), seq_len=length, seed=0
    )
    num = len(source)
    for first in range(0, num, 8):
        yield source.batch(0, range(first, min(first + 8, num)), num)


def _decoded(
    thinker: Thinker, texts: Sequence[HeldText], max_new_tokens: int, options: dict[str, Any]
) -> tuple[int, int, float, int]:
    """Tokens said, forwards, seconds and number of texts gone on from."""
    from inward.common.thinking import Request, answers

    requests = [
        Request(prompt=text.begin, max_new_tokens=max_new_tokens, own=dict(options))
        for text in texts
        if text.begin
    ]
    if not requests:
        return 0, 0, 0.0, 0
    began = time.perf_counter()
    said = answers(thinker.begin(), requests)
    seconds = time.perf_counter() - began
    return sum(len(a.tokens) for a in said), sum(a.steps for a in said), seconds, len(said)


# --------------------------------------------------------------------------------------------------
# Texts


def texts_of_file(
    path: Any,
    tokenizer: Any,
    *,
    num: int | None,
    seed: int,
    kind: TextKind = "auto",
    names: Names | None = None,
) -> list[HeldText]:
    """Texts of a file of any kind that `inward.data.texts.anyfile` reads.

    Raises FileNotFoundError, ValueError: see there.
    """
    from inward.data.drawn import drawn
    from inward.data.texts.anyfile import read_texts

    passages = read_texts(path, kind, names=names).passages
    some = drawn(len(passages), num, seed=seed, what="texts")
    return [_held(passages[i], tokenizer, 8) for i in some]


def held_in(data: TextData, tokenizer: Any) -> list[HeldText]:
    """The texts that a run of one's own data held out, as they stand in its file."""
    return [_held(passage, tokenizer, data.recipe.opening) for passage in data.parts()[1]]


def _held(passage: Passage, tokenizer: Any, words: int) -> HeldText:
    asked, said = given(passage, tokenizer)
    ids = np.array([*asked, *said])
    return HeldText(ids, np.arange(len(ids)) >= len(asked), opening(passage, tokenizer, words))


def own_texts(thinker: Thinker, recipe: Any, *, num: int, seed: int) -> list[HeldText]:
    """Texts that the model itself writes from beginnings that it was not trained on.

    Args:
        recipe: a `TiDARRecipe`; seed: of the beginnings, another one than the training's.
    """
    import tempfile
    from dataclasses import replace
    from pathlib import Path

    from inward.recipes.tidar import OwnText

    tokenizer = getattr(thinker.processor, "tokenizer", None)
    data = recipe.data if isinstance(recipe.data, OwnText) else OwnText()
    with tempfile.TemporaryDirectory() as folder:
        data = replace(
            data,
            path=str(Path(folder) / "own.jsonl"),
            questions="",
            requested=0,
            num_texts=num + 1,
            num_valid=1,
            seed=seed,
            batch_size=min(data.batch_size, num + 1),
            max_new_tokens=min(data.max_new_tokens, 128),
        )
        tokens, _ = data.tokens(lm_of(thinker.model), tokenizer)
    marks = tokens.supervised
    assert marks is not None, "own texts tell what is said"
    found = []
    for start, stop in zip(tokens.starts, tokens.starts[1:], strict=False):
        ids, said = tokens.ids[start:stop], marks[start:stop]
        begin = ids[~said] if not said.all() else ids[: data.opening]
        found.append(HeldText(ids, said, begin.tolist()))
    return found
