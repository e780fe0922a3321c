"""A small Huginn that speaks text, and drafts for it: it learns from stories of stories260k.

Pointer chasing shows that depth helps; to measure drafts, depth per position and speech one needs a
Huginn with words. Its text is sampled from a model at hand (`OwnText` of the TiDAR recipes, kept in
a file), so nothing has to be downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inward.common.files import replacing
from inward.data.texts.text import TokenSource
from inward.methods.huginn.settings import Depth, HuginnSettings, Watch
from inward.methods.tidar.settings import AdapterSettings, TiDARSettings
from inward.recipes.huginn import HuginnRecipe, TokenData, hops
from inward.recipes.tidar import OwnText, TiDARRecipe
from inward.train.settings import OptimSettings, TrainSettings

if TYPE_CHECKING:
    from inward.train.loop import Run


@dataclass(frozen=True)
class StoryTokens(TokenData):
    """Rows that begin where a story begins; what is shorter is followed by the next story."""

    path: str = "runs/huginn-stories-tokens"
    length: int = 161
    vocab_size: int = 512
    base: str = "stories260k"
    """who tells the stories"""
    text: OwnText = field(
        default_factory=lambda: OwnText(
            path="runs/own-text/stories260k-6000.jsonl", num_texts=6000, temperature=1.0
        )
    )

    def source(self, seed: int) -> TokenSource:
        """Write the rows, if they are not there, and map them."""
        folder = Path(self.path)
        if not (folder / "train.npy").exists():
            self._write(folder)
        return super().source(seed)

    def _write(self, folder: Path) -> None:
        from inward.common.bases import open_base

        model, tokenizer = open_base(self.base)
        tokens, _ = self.text.tokens(model, tokenizer)
        ids, starts = np.asarray(tokens.ids), np.asarray(tokens.starts)
        rows = rows_of([ids[a:b] for a, b in pairwise(starts)], self.length)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "train.npy") as partial, partial.open("wb") as file:
            np.save(file, rows, allow_pickle=False)

    def tokenizer(self) -> Any:
        """The storyteller's."""
        from inward.common.bases import open_base

        return open_base(self.base)[1]


def rows_of(texts: Sequence[np.ndarray], length: int) -> np.ndarray:
    """(N, length) int32: each row begins with a text; a text shorter than a row is followed by the
    next ones, what does not fit is left out.

    Raises:
        ValueError: all texts together are shorter than a row.
    """
    rows, row = [], np.zeros(0, dtype=np.int32)
    for text in texts:
        row = np.concatenate([row, np.asarray(text, dtype=np.int32)])
        if len(row) >= length:
            rows.append(row[:length])
            row = np.zeros(0, dtype=np.int32)
    if not rows:
        raise ValueError(f"{len(texts)} texts do not fill one row of {length} tokens; write more")
    return np.stack(rows)


@dataclass(frozen=True)
class StoriesRecipe(HuginnRecipe):
    """A run of Huginn on stories, saved with the storyteller's tokenizer."""

    data: StoryTokens = field(default_factory=StoryTokens)

    def build(self) -> Run:
        """See `HuginnRecipe.build`; lets the storyteller write first."""
        run = super().build()
        trained: Any = run.model
        trained.tokenizer = tokenizer = self.data.tokenizer()
        for name in ("bos_token_id", "eos_token_id"):
            for config in (trained.model.config, trained.model.generation_config):
                setattr(config, name, getattr(tokenizer, name))
        return run


def stories() -> StoriesRecipe:
    """One block before the core, two in it, one after it; mean depth 6."""
    return StoriesRecipe(
        name="huginn-stories",
        about="a Huginn that tells stories, learned from stories260k; four core-minutes",
        model=HuginnSettings(width=96, num_heads=3, mlp_width=256, prelude=1, core=2, coda=1),
        depth=Depth(mean=6, backprop=3, ramp=200, longest=3.0),
        watch=Watch(action="warn"),
        block_size=512,
        train=TrainSettings(
            steps=700,
            batch_rows=8,
            optim=hops().train.optim,
            clip=1.0,
            schedule="linear",
            warmup=40,
            min_ratio=0.02,
            ema_decay=0.98,
            ema_ramp=True,
            save_every=50,
            log_every=10,
        ),
    )


def drafts() -> TiDARRecipe:
    """Drafts of six tokens for the Huginn of `stories`, whose words stay as they are: mask rows
    think two recurrences, the words that they are to guess as many as the model says (six)."""
    return TiDARRecipe(
        name="tidar-huginn-stories",
        about="draft-only adapter for huginn-stories, drafts of 2 recurrences; 10 minutes",
        base="runs/huginn-stories/model",
        draft_only=True,
        adapter=AdapterSettings(rank=16, alpha=32.0),
        method=TiDARSettings(
            block_size=6, draft_steps=2, dense_masks="batch", align_answers=False, decay=0.9
        ),
        data=OwnText(
            path="runs/own-text/huginn-stories-greedy.jsonl",
            num_texts=1000,
            max_new_tokens=150,
            seq_len=160,
        ),
        train=TrainSettings(
            steps=400,
            batch_rows=8,
            optim=OptimSettings(name="adamw", lr=5e-3, weight_decay=0.0, betas=(0.9, 0.99)),
            clip=1.0,
            schedule="cosine",
            warmup=30,
            min_ratio=0.05,
            ema_decay=0.0,
            eval_every=200,
            save_every=50,
            log_every=10,
        ),
    )
