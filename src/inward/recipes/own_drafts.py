"""Your model learns to draft: `inward train tidar-adapter | tidar --base FOLDER [--data FILE]`.

    tidar-adapter   low-rank weights on mask rows alone: the words stay what they were. It learns
                    from what the model itself says: to the questions of a file, after the first
                    words of its texts, or (no file) of its own accord
    tidar           the paper's joint training (arXiv 2511.08923): all weights move, on the texts of
                    the file as they stand

What a model writes is kept in a file that says which model wrote it; another model's is refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from inward.common.checks import need
from inward.data.texts.anyfile import Passage, TextFile, TextKind, read_texts, split_texts
from inward.data.texts.packed import PackedSource, PackedTokens
from inward.data.thoughts.anyfile import Names
from inward.methods.tidar.settings import AdapterSettings, TiDARSettings
from inward.recipes.tidar import OwnText, TiDARRecipe, prompt_ids, tell
from inward.train.settings import OptimSettings, TrainSettings

if TYPE_CHECKING:
    from inward.train.run import Run


@dataclass(frozen=True)
class DraftsRecipe:
    """Train a model of your own to draft what it says."""

    name: str
    about: str
    base: str = ""
    """the model: a folder of transformers, a GGUF file, a name in $INWARD_MODELS or of the hub"""
    data: str = ""
    """texts, chats or questions; a path, or a name in $INWARD_DATA; empty (tidar-adapter): the
    model begins texts of its own, or asks itself"""
    format: TextKind = "auto"
    """what the file is; auto: told by its first row"""
    question: str = "question"
    """what a file of records calls the question"""
    steps: str = "steps"
    """and the steps"""
    answer: str = "answer"
    """and the answer"""
    learn_from: Literal["own", "given"] = "own"
    """own: what the model itself says there; given: the texts as they stand"""
    num_texts: int = 0
    """texts to learn from; 0: all of the file, or 500 of the model's own"""
    num_valid: int = 0
    """texts held out; 0: a tenth, 64 at most"""
    own_text: str = ""
    """file in which the model's text is kept; empty: runs/own-text/, a file for each model and
    data"""
    max_new_tokens: int = 128
    """of a text that the model writes"""
    opening: int = 8
    """words of a text that are given to the model, or tokens that it begins with at temperature"""
    temperature: float = 0.0
    """at which it goes on; 0: greedy, the text that greedy decoding will have to draft"""
    seq_len: int = 256
    """tokens of a training row"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the base; with bfloat16 an adapter, itself float32, trains twice as fast on some CPUs"""
    attention: str = "sdpa"
    """flex_attention on GPUs: then no mask of (2S)^2 entries is ever made"""
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    """tidar-adapter: rank, alpha and the layers it acts on"""
    method: TiDARSettings = field(default_factory=TiDARSettings)
    """block size and loss"""
    valid_rows: int = 16
    """rows that an evaluation looks at"""
    train: TrainSettings = field(default_factory=TrainSettings)

    @property
    def draft_only(self) -> bool:
        """Whether the model stays as it is."""
        return self.name == "tidar-adapter"

    def whole(self) -> TiDARRecipe:
        """The recipe that this one stands for.

        Raises ValueError: no model, or no data where it takes some.
        """
        self._check()
        if self.learn_from == "given" and not self.data:
            raise ValueError(f"name the texts to train {self.name} on: --data FILE")
        return TiDARRecipe(
            name=self.name,
            about=self.about,
            base=self.base,
            dtype=self.dtype,
            attention=self.attention,
            draft_only=self.draft_only,
            adapter=self.adapter,
            method=self.method,
            data=TextData(self) if self.data else self._self_written(),
            train=self.train,
            valid_rows=self.valid_rows,
        )

    def _check(self) -> None:
        """What would be refused only after the model has written its texts, or never."""
        if not self.base:
            raise ValueError(f"name the model that {self.name} shall train: --base FOLDER")
        for name in ("num_texts", "num_valid"):
            need(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("max_new_tokens", "opening", "valid_rows"):
            need(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        need(self.temperature >= 0, "temperature", self.temperature, "0 or more")
        need(self.seq_len >= 2, "seq_len", self.seq_len, "2 or more")

    def _self_written(self) -> OwnText:
        num = self.num_texts or 500
        return OwnText(
            path=self.own_text,
            opening=self.opening,
            num_texts=num,
            num_valid=self.num_valid or max(1, min(64, num // 10)),
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            batch_size=min(32, num),
            seq_len=self.seq_len,
            seed=self.train.seed,
        )

    def build(self) -> Run:
        """Model, source and evaluation, ready for `train`; see `TiDARRecipe.build`."""
        whole = self.whole()
        run = whole.build()
        read = {}
        if isinstance(whole.data, TextData):
            read = {whole.data.file.path.name: whole.data.file.sha256}
        keys = ("data", "format", "question", "steps", "answer", "learn_from", "num_texts",
                "num_valid", "own_text")  # fmt: skip
        return replace(run, config=asdict(self), read=read, data_keys=keys)


@dataclass(frozen=True)
class TextData:
    """The texts of a file, as they stand or as the model goes on from them."""

    recipe: DraftsRecipe

    @cached_property
    def file(self) -> TextFile:
        """What was read."""
        recipe = self.recipe
        names = Names(recipe.question, recipe.steps, recipe.answer)
        return read_texts(recipe.data, recipe.format, names=names)

    def parts(self) -> tuple[list[Passage], list[Passage]]:
        """Training and validation."""
        recipe, found = self.recipe, self.file.passages
        if recipe.num_texts:
            from inward.data.drawn import drawn

            some = drawn(len(found), recipe.num_texts, seed=recipe.train.seed, what="texts")
            found = [found[i] for i in some]
        num_valid = recipe.num_valid or max(1, min(64, len(found) // 10))
        return split_texts(found, num_valid, seed=recipe.train.seed)

    def sources(self, model: Any, tokenizer: Any) -> tuple[PackedSource, PackedSource]:
        """Training and validation."""
        length, seed = self.recipe.seq_len, self.recipe.train.seed
        train, valid = self.parts()
        if self.recipe.learn_from == "given":
            made = [PackedTokens.from_answers(given(p, tokenizer) for p in part)
                    for part in (train, valid)]  # fmt: skip
        else:
            made = self._written(model, tokenizer, train, valid)
        first, second = (PackedSource(tokens, seq_len=length, seed=seed) for tokens in made)
        return first, second

    def _written(
        self, model: Any, tokenizer: Any, train: list[Passage], valid: list[Passage]
    ) -> list[PackedTokens]:
        from inward.methods.tidar.own_text import own_text

        recipe = self.recipe
        begins = [opening(passage, tokenizer, recipe.opening) for passage in [*train, *valid]]
        pairs = own_text(
            model,
            begins,
            recipe.own_text or None,
            max_new_tokens=recipe.max_new_tokens,
            temperature=recipe.temperature,
            batch_size=min(32, len(begins)),
            seed=recipe.train.seed,
            progress=tell,
        )
        return [
            PackedTokens.from_answers(pairs[: len(train)]),
            PackedTokens.from_answers(pairs[len(train) :]),
        ]

    def notes(self) -> list[str]:
        """What is to be told of the file."""
        train, valid = self.parts()
        how = "as they stand" if self.recipe.learn_from == "given" else "as the model goes on"
        return [self.file.told(), f"splits: train {len(train)}, valid {len(valid)}, {how}"]


def given(passage: Passage, tokenizer: Any) -> tuple[list[int], list[int]]:
    """A passage as tokens: what is given, and what is said, with the end token."""
    asked = asked_ids(passage, tokenizer)
    if not asked:
        ids = list(tokenizer(passage.said).input_ids)
        return [], _ended(ids, tokenizer)
    said = tokenizer(passage.said, add_special_tokens=False).input_ids
    return asked, _ended(list(said), tokenizer)


def _ended(ids: list[int], tokenizer: Any) -> list[int]:
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def asked_ids(passage: Passage, tokenizer: Any) -> list[int]:
    """What is given, as tokens: through the chat template where there is one."""
    if not passage.asked:
        return []
    if isinstance(passage.asked, str):
        return prompt_ids(tokenizer, passage.asked)
    if tokenizer.chat_template is None:
        raise ValueError(
            "these are chats, and the base has no chat template to write them with; take a chat "
            "model, or texts"
        )
    messages = [{"role": role, "content": content} for role, content in passage.asked]
    return list(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    )


def opening(passage: Passage, tokenizer: Any, words: int) -> list[int]:
    """What a model goes on from: the question, or the first words of a text."""
    asked = asked_ids(passage, tokenizer)
    if asked:
        return asked
    first = " ".join(passage.said.split()[:words])
    ids = list(tokenizer(first).input_ids)
    end = tokenizer.eos_token_id
    return ids[:-1] if len(ids) > 1 and ids[-1] == end else ids


_TRAIN = TrainSettings(
    steps=600,
    batch_rows=8,
    optim=OptimSettings(name="adamw", lr=5e-3, weight_decay=0.0, betas=(0.9, 0.99)),
    clip=1.0,
    schedule="cosine",
    warmup=20,
    min_ratio=0.05,
    ema_decay=0.0,
    save_every=100,
    log_every=10,
)
"""As in `tidar-stories-adapter`"""


def tidar_adapter() -> DraftsRecipe:
    """The model's words stay as they are."""
    return DraftsRecipe(
        name="tidar-adapter",
        about="your model, its words unchanged, learns to draft them; --base FOLDER [--data FILE]",
        adapter=AdapterSettings(rank=16, alpha=32.0),
        method=TiDARSettings(dense_masks="batch", align_answers=False),
        train=_TRAIN,
    )


def tidar() -> DraftsRecipe:
    """All weights learn to draft."""
    return DraftsRecipe(
        name="tidar",
        about="your model, all its weights, learns to draft your texts; --base FOLDER --data FILE",
        learn_from="given",
        method=TiDARSettings(dense_masks="batch"),
        train=replace(_TRAIN, optim=replace(_TRAIN.optim, lr=1e-3)),
    )
