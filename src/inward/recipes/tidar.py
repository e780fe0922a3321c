"""Runs of TiDAR: a small joint model, draft-only adapters for models one has, the published ones.

The two ways differ in what they change. Joint training (the paper's) moves all weights: the model
learns to draft and its words change with it. A draft-only adapter leaves the words alone and is
trained on what the model itself says, which a recipe first lets it write (`OwnText`; kept in a
file, so a second run reads it).

Base models are found by `inward.common.bases`.

The published recipes carry the paper's numbers (arXiv 2511.08923, section 4.1) and are marked *not
run here* with their cost; the paper does not disclose its data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from inward.common.files import read_text
from inward.data.drawn import drawn
from inward.data.texts.packed import PackedSource, PackedTokens
from inward.methods.tidar.settings import AdapterSettings, TiDARSettings
from inward.train.settings import OptimSettings, TrainSettings

if TYPE_CHECKING:
    from torch import nn

    from inward.train.loop import Run


@dataclass(frozen=True)
class OwnText:
    """What the base model writes when it is asked questions, or when it just begins.

    A chat model needs no questions: put where a user's turn begins, it writes one (Magpie, arXiv
    2406.08464), and then answers it.
    """

    path: str = "runs/own-text/stories260k.jsonl"
    """where it is kept; a run that was killed goes on writing there; empty: a file for each model
    and its prompts in runs/own-text"""
    questions: str = ""
    """JSON lines with questions: a path, or a file in $INWARD_DATA; empty: the model begins texts
    of its own, or asks itself, in `opening` tokens or fewer"""
    field: str = "question"
    opening: int = 8
    opening_temperature: float = 1.0
    """so that the beginnings differ"""
    requested: int = 0
    """of num_texts, how many answer requests from `inward.data.texts.requests`, half of each kind,
    instead of questions that the model asks itself; they come last"""
    num_texts: int = 2000
    max_new_tokens: int = 200
    temperature: float = 0.0
    """0: greedy, the text that greedy decoding will have to draft"""
    batch_size: int = 100
    num_valid: int = 64
    """texts held out, the last ones"""
    seq_len: int = 256
    seed: int = 0

    def tokens(self, model: Any, tokenizer: Any) -> tuple[PackedTokens, PackedTokens]:
        """Texts for training and for validation; written now, or read if they are there.

        Raises:
            FileNotFoundError, ValueError: no such questions, or fewer than are needed.
        """
        from inward.methods.tidar.own_text import own_text

        if self.num_texts <= self.num_valid:
            raise ValueError(
                f"num_texts is {self.num_texts}, of which {self.num_valid} are held out; nothing "
                "is left to train on"
            )
        begins = not self.questions and tokenizer.chat_template is None
        if not 0 <= self.requested <= self.num_texts or (self.requested and begins):
            raise ValueError(
                f"requested is {self.requested}; it must be 0 to num_texts, {self.num_texts}, and "
                "the model must have a chat template to be asked"
            )
        if self.requested == self.num_texts:
            asked = []
        elif self.questions:
            asked = self._asked(tokenizer)
        elif begins:
            known = getattr(model.config.get_text_config(), "bos_token_id", None)
            asked = self._openings(model, [known])
        else:
            asked = self._own_questions(model, tokenizer)
        asked += self._requests(tokenizer)
        pairs = own_text(
            model,
            asked,
            self.path or None,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            batch_size=self.batch_size,
            seed=self.seed,
            progress=tell,
        )
        if begins:  # an opening is the model's own text as well
            pairs = [([], [*opening, *rest]) for opening, rest in pairs]
        if self.requested:  # kinds apart would be trained and held out apart
            order = np.random.default_rng(self.seed).permutation(len(pairs))
            pairs = [pairs[i] for i in order]
        train, valid = pairs[: -self.num_valid], pairs[-self.num_valid :]
        return PackedTokens.from_answers(train), PackedTokens.from_answers(valid)

    def _requests(self, tokenizer: Any) -> list[list[int]]:
        """Prompts from templates, one of each kind in turn."""
        from inward.data.texts.requests import KINDS, requests

        each = -(-self.requested // len(KINDS))
        asked = zip(*(requests(kind, each, seed=self.seed) for kind in KINDS), strict=True)
        return [prompt_ids(tokenizer, text) for turn in asked for text in turn][: self.requested]

    def _openings(self, model: Any, start: list[int | None]) -> list[list[int]]:
        """`start`, each time with other tokens after it."""
        from inward.methods.tidar.own_text import own_text

        if not start or None in start:
            raise ValueError("this model has no beginning token; give it questions to answer")
        pairs = own_text(
            model,
            [cast("list[int]", start)] * (self.num_texts - self.requested),
            f"{self.path}.openings" if self.path else None,
            max_new_tokens=self.opening,
            temperature=self.opening_temperature,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        return [[*begin, *rest] for begin, rest in pairs]

    def _own_questions(self, model: Any, tokenizer: Any) -> list[list[int]]:
        """Prompts with what the model says where a user would speak."""
        start, end = _around_question(tokenizer)
        ids = tokenizer(start, add_special_tokens=False).input_ids
        rows = [row[len(ids) :] for row in self._openings(model, ids)]
        texts = tokenizer.batch_decode(rows, skip_special_tokens=False)
        # its own end of turn, where it came to one, ends the question
        return [prompt_ids(tokenizer, text.split(end)[0].strip() or "?") for text in texts]

    def _asked(self, tokenizer: Any) -> list[list[int]]:
        path = Path(self.questions)
        if not path.exists():
            path = Path(os.environ.get("INWARD_DATA", "data")) / self.questions
        if not path.exists():
            raise FileNotFoundError(
                f"there are no questions at {self.questions}; give a file of JSON lines with "
                f"a field {self.field!r}, or set INWARD_DATA to the folder it lies in"
            )
        wanted = self.num_texts - self.requested
        lines = read_text(path).splitlines()
        if len(lines) < wanted:
            raise ValueError(f"{path} holds {len(lines)} questions, {wanted} are to be asked")
        some = drawn(len(lines), wanted, seed=self.seed, what="questions") if wanted else ()
        return [prompt_ids(tokenizer, self._question(path, lines, i)) for i in some]

    def _question(self, path: Path, lines: list[str], row: int) -> str:
        try:
            return json.loads(lines[row])[self.field]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {row + 1} is no JSON object with a field {self.field!r}: {error!r}"
            ) from error

    def sources(self, model: Any, tokenizer: Any) -> tuple[PackedSource, PackedSource]:
        """Training and validation."""
        parts = self.tokens(model, tokenizer)
        first, second = (PackedSource(t, seq_len=self.seq_len, seed=self.seed) for t in parts)
        return first, second


def prompt_ids(tokenizer: Any, question: str) -> list[int]:
    """A question as tokens: through the chat template, where there is one."""
    if tokenizer.chat_template is None:
        return tokenizer(question).input_ids
    message = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)


def _around_question(tokenizer: Any) -> tuple[str, str]:
    """What a chat template writes before a user's words, and the first line after them."""
    words = "QUESTION"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": words}], tokenize=False)
    before, _, after = chat.partition(words)
    return before, after.strip().split("\n")[0]


def tell(done: int, num: int) -> None:
    """How far the model's writing is, in a line that is written over."""
    print(f"\rthe model writes: {done} of {num} texts", end="\n" if done == num else "", flush=True)


@dataclass(frozen=True)
class TokenFolder:
    """Tokens that `inward.data.texts.packed.PackedTokens.save` wrote: `train` and `valid` in one
    folder."""

    path: str = "data/tokens"
    seq_len: int = 4096
    seed: int = 0

    def sources(self, model: Any, tokenizer: Any) -> tuple[PackedSource, PackedSource]:
        """Training and validation."""
        del model, tokenizer  # the tokens are there
        parts = [PackedTokens.open(Path(self.path) / name) for name in ("train", "valid")]
        first, second = (PackedSource(t, seq_len=self.seq_len, seed=self.seed) for t in parts)
        return first, second


class TextSources(Protocol):
    """Whatever gives rows to learn from."""

    def sources(self, model: Any, tokenizer: Any) -> tuple[PackedSource, PackedSource]:
        """Training and validation."""
        ...


# --------------------------------------------------------------------------------------------------
# The recipe


@dataclass(frozen=True)
class TiDARRecipe:
    """One complete run of TiDAR."""

    name: str
    about: str
    base: str = "stories260k"
    """folder of the base model, or a name that `inward.common.bases` knows"""
    dtype: str = "float32"
    """of the base; with bfloat16 a draft-only adapter, itself float32, trains twice as fast"""
    attention: str = "sdpa"
    """flex_attention on GPUs: then no mask of (2S)^2 entries is ever made"""
    draft_only: bool = False
    """True: train an adapter that acts on mask rows only; the base stays as it is"""
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    method: TiDARSettings = field(default_factory=TiDARSettings)
    data: OwnText | TokenFolder | TextSources = field(default_factory=OwnText)
    train: TrainSettings = field(default_factory=TrainSettings)
    valid_rows: int = 16
    """rows that an evaluation looks at"""

    def build(self) -> Run:
        """Model, source and evaluation, ready for `train`; lets the model write its text first.

        Raises:
            FileNotFoundError: no base model or data at the given place.
            ValueError: the model does not honour masks, or the data do not fit.
        """
        import torch

        from inward.common.bases import open_base
        from inward.methods.tidar.adapter import DraftAdapter
        from inward.methods.tidar.base import add_mask_token, num_embedded
        from inward.methods.tidar.model import TiDAR
        from inward.train.loop import Run

        options = {"attn_implementation": self.attention, "dtype": getattr(torch, self.dtype)}
        model, tokenizer = open_base(self.base, **options)
        source, held = self.data.sources(model, tokenizer)
        check_tokens(source, model, self.base)
        more: dict[str, Any] = {"tokenizer": tokenizer}
        if self.draft_only:
            adapter = DraftAdapter(model, self.adapter)
            tidar = TiDAR(model, num_embedded(model), self.method, adapter=adapter, **more)
        else:
            tidar = TiDAR(model, add_mask_token(model, tokenizer), self.method, **more)
        told = getattr(self.data, "notes", None)
        notes = () if told is None else tuple(told())
        return Run(
            tidar,
            source,
            self.evaluation(held),
            asdict(self),
            notes=(*notes, _size_told(source, held)),
        )

    def evaluation(self, held: PackedSource) -> Callable[[nn.Module], dict[str, float]]:
        """Losses, and how many drafts are accepted, on held-out rows."""
        rows = min(self.valid_rows, len(held))

        def evaluate(model: Any) -> dict[str, float]:
            from inward.methods.tidar.acceptance import acceptance

            batch = held.batch(0, range(rows), rows)
            batch = {name: value.to(model.device) for name, value in batch.items()}
            found = model.loss(batch, None, None).metrics | acceptance(model, batch)
            return {name: float(total / count) for name, (total, count) in found.items()}

        return evaluate


def check_tokens(source: PackedSource, model: Any, name: str) -> None:
    """Refuse tokens of another vocabulary before any step.

    Raises:
        ValueError: a token that the model has no row for.
    """
    from inward.methods.tidar.base import num_embedded

    largest, rows = int(source.tokens.ids.max()), num_embedded(model)
    if largest >= rows:
        raise ValueError(
            f"the data holds token {largest}, but {name} embeds {rows} tokens: it was tokenized "
            "for another vocabulary; tokenize it again with this model's tokenizer"
        )


def _size_told(source: PackedSource, held: PackedSource) -> str:
    said = source.tokens.supervised
    learned = len(source.tokens.ids) if said is None else int(said.sum())
    return (
        f"training: {len(source.tokens)} texts, {len(source.tokens.ids):,} tokens, {learned:,} of "
        f"them to be drafted, in {len(source)} rows of {source.seq_len}; held out: "
        f"{len(held.tokens)} texts"
    )


# --------------------------------------------------------------------------------------------------
# Small recipes

_FAST = TrainSettings(
    steps=1500,
    batch_rows=16,
    optim=OptimSettings(name="adamw", lr=2e-3, weight_decay=0.0, betas=(0.9, 0.99)),
    clip=1.0,
    schedule="cosine",
    warmup=50,
    min_ratio=0.05,
    ema_decay=0.0,
    eval_every=250,
    save_every=100,
    log_every=10,
)


def stories() -> TiDARRecipe:
    """Joint training. The text is sampled at temperature 1, so that the autoregressive part has
    little to unlearn."""
    return TiDARRecipe(
        name="tidar-stories",
        about="joint: stories260k learns to draft 8 tokens at once; minutes on one core",
        data=OwnText(path="runs/own-text/stories260k-sampled.jsonl", temperature=1.0),
        method=TiDARSettings(dense_masks="batch"),
        train=_FAST,
    )


def stories_adapter() -> TiDARRecipe:
    """The same model, untouched, with drafts of its own greedy text."""
    return TiDARRecipe(
        name="tidar-stories-adapter",
        about="draft-only adapter for stories260k, whose words stay as they are; minutes",
        draft_only=True,
        adapter=AdapterSettings(rank=16, alpha=32.0),
        method=TiDARSettings(dense_masks="batch", align_answers=False),
        data=OwnText(path="runs/own-text/stories260k-greedy.jsonl"),
        train=replace(_FAST, steps=600, optim=replace(_FAST.optim, lr=5e-3)),
    )


def smollm_adapter() -> TiDARRecipe:
    """0.4 million tokens of its own answers, half of them to its own questions, half to requests
    from templates, in bfloat16. One layer of a block is adapted, because in decoding a CPU pays by
    the call, and blocks are `shifted`, because it pays by the row; most drafts end at the second or
    third place, hence the decay."""
    return TiDARRecipe(
        name="tidar-smollm-adapter",
        about="draft-only adapter for SmolLM2-135M-Instruct on its own answers; an hour or two",
        base="smollm2-135m-instruct",
        dtype="bfloat16",
        draft_only=True,
        adapter=AdapterSettings(rank=128, alpha=128.0, targets=("down_proj",)),
        method=TiDARSettings(
            block_size=5, shifted=True, dense_masks="batch", align_answers=False, decay=0.8
        ),
        data=OwnText(
            path="runs/own-text/smollm2-mixed.jsonl",
            opening=40,
            opening_temperature=0.8,
            num_texts=2688,
            requested=1344,
            num_valid=64,
            max_new_tokens=160,
            batch_size=96,
            seq_len=256,
        ),
        train=replace(
            _FAST,
            steps=1300,
            batch_rows=4,
            optim=replace(_FAST.optim, lr=2e-3),
            warmup=40,
            eval_every=200,
            save_every=50,
            log_every=10,
        ),
        valid_rows=32,
    )


# --------------------------------------------------------------------------------------------------
# Published recipes: NOT RUN HERE. Section 4.1: continued training of Qwen2.5 1.5B on 50 B and of
# Qwen3 8B on 150 B tokens, 2 M tokens a step, 4,096 clean tokens a row (8,192 with the masks),
# cosine from 1e-5 to 3e-6, 1 % warm-up, bf16, Adam. The paper says neither its betas nor its weight
# decay. Cost: 6 FLOPs per parameter and token, twice for the doubled sequence; H100 hours at 40 %
# of its 989 TFLOP/s in bf16.

_ROWS = 512
"""2 M tokens = 512 rows of 4,096"""


def _published(name: str, about: str, base: str, *, steps: int, K: int) -> TiDARRecipe:
    return TiDARRecipe(
        name=name,
        about=f"NOT RUN HERE: {about}",
        base=base,
        attention="flex_attention",
        method=TiDARSettings(block_size=K, alpha=1.0, masking="full"),
        data=TokenFolder(seq_len=4096),
        train=TrainSettings(
            steps=steps,
            batch_rows=_ROWS,
            accumulation=8,
            optim=OptimSettings(name="adamw", lr=1e-5, weight_decay=0.0, betas=(0.9, 0.95)),
            schedule="cosine",
            warmup=steps // 100,
            min_ratio=0.3,
            ema_decay=0.0,
            eval_every=1000,
            save_every=500,
            precision="bfloat16",
        ),
    )


def published_qwen_1_5b() -> TiDARRecipe:
    """7.45 tokens per forward at K = 16 in the paper; K = 4 and 8 are trained apart."""
    return _published(
        "tidar-qwen2.5-1.5b",
        "Qwen2.5 1.5B on 50 B tokens, K = 16; 0.93 ZFLOP, about 650 H100 hours",
        "Qwen2.5-1.5B",
        steps=23_842,
        K=16,
    )


def published_qwen_8b() -> TiDARRecipe:
    """8.25 tokens per forward in the paper; with activation checkpointing, which the paper uses
    here too, another third of the cost."""
    return _published(
        "tidar-qwen3-8b",
        "Qwen3 8B on 150 B tokens, K = 16; 14.8 ZFLOP, about 10,400 H100 hours",
        "Qwen3-8B-Base",
        steps=71_526,
        K=16,
    )
