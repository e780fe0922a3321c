"""A Huginn of yours, data of yours: `inward train huginn-finetune --base FOLDER --data FILE`.

Chats and questions are written by the base's chat template, with its own name for who answers;
what is learned are the replies alone, at a depth that is drawn for every step, as in pre-training
and as the authors advise (arXiv 2502.05171). A run is saved as a whole model with its tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from inward.common.checks import need
from inward.data.texts.anyfile import Passage, TextFile, TextKind, read_texts, split_texts
from inward.data.texts.dialogue import Dialogue, DialogueSource
from inward.data.thoughts.anyfile import Names
from inward.methods.huginn.settings import Depth, Watch
from inward.train.settings import OptimSettings, TrainSettings

if TYPE_CHECKING:
    from torch import nn

    from inward.train.run import Run


@dataclass(frozen=True)
class FineTuneRecipe:
    """Train a Huginn of your own on texts, chats or questions."""

    name: str
    about: str
    base: str = ""
    """the Huginn: its folder, or a name in $INWARD_MODELS"""
    data: str = ""
    """texts, chats or questions; a path, or a name in $INWARD_DATA"""
    valid: str = ""
    """a file of its own for validation; empty: texts of the data are held out"""
    format: TextKind = "auto"
    """what the files are; auto: told by their first row"""
    question: str = "question"
    """what a file of records calls the question"""
    steps: str = "steps"
    """and the steps"""
    answer: str = "answer"
    """and the answer"""
    num_valid: int = 0
    """texts held out, drawn by the seed; 0: a tenth, 64 at most"""
    num_train: int = 0
    """so many of the other texts, drawn by the seed; 0: all"""
    role: str = ""
    """who answers, in the base's chat template; empty: what the template itself begins replies
    with"""
    learn: Literal["answers", "all"] = "answers"
    """what counts in the loss: what is said, or what is asked too"""
    max_len: int = 1024
    """leave out texts of more tokens (told)"""
    lora_rank: int = 16
    """train low-rank weights of this rank; 0: all weights (then with a rate of 1e-5 or so)"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the base; low-rank weights are float32"""
    depth: Depth = field(default_factory=lambda: Depth(mean=32, backprop=8))
    """of a step; the base was trained at a mean of its own, which is told if it differs"""
    depths: tuple[int, ...] = (4, 8, 32)
    """at which the held-out loss is measured, rising"""
    valid_rows: int = 16
    """texts that an evaluation looks at"""
    watch: Watch = field(default_factory=lambda: Watch(action="warn"))
    train: TrainSettings = field(default_factory=TrainSettings)

    has_test = False

    def check(self) -> None:
        """Raise a ValueError for what could be refused only after the model is read, or never."""
        if not self.base:
            raise ValueError(f"name the model that {self.name} shall train: --base FOLDER")
        if not self.data:
            raise ValueError(f"name the texts to train {self.name} on: --data FILE")
        for name in ("num_valid", "num_train", "lora_rank"):
            need(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        need(self.valid_rows >= 1, "valid_rows", self.valid_rows, "1 or more")
        need(self.max_len >= 2, "max_len", self.max_len, "2 or more")
        rising = list(self.depths) == sorted(set(self.depths)) and min(self.depths, default=0) >= 1
        need(rising, "depths", self.depths, "one or more rising numbers of 1 or more")
        if self.valid and self.num_valid:
            raise ValueError(
                f"num_valid is {self.num_valid}, but {self.valid} is the validation; leave one out"
            )
        if self.dtype == "bfloat16" and not self.lora_rank:
            raise ValueError(
                "dtype is bfloat16 and lora_rank 0: steps of all weights are lost in bfloat16's "
                "rounding; take float32 with --train.precision bfloat16, or low-rank weights"
            )

    @cached_property
    def dialogue(self) -> Dialogue:
        """The base's tokenizer with its answering role."""
        from inward.common.bases import open_base_tokenizer

        return Dialogue.of(open_base_tokenizer(self.base), self.role)

    @cached_property
    def files(self) -> tuple[TextFile, ...]:
        """What was read: the data, and the validation if it is a file of its own."""
        names = Names(self.question, self.steps, self.answer)
        try:
            role = self.dialogue.role
        except (OSError, ValueError):  # the base has moved since; `build` opened it
            role = self.role
        replies = ("assistant", *([role] if role else []))
        named = [name for name in (self.data, self.valid) if name]
        return tuple(read_texts(name, self.format, names=names, replies=replies) for name in named)

    def parts(self) -> tuple[list[Passage], list[Passage]]:
        """Training and validation."""
        found = self.files[0].passages
        if self.valid:
            train, held = found, self.files[1].passages
        else:
            num = self.num_valid or max(1, min(64, len(found) // 10))
            train, held = split_texts(found, num, seed=self.train.seed)
        if self.num_train:
            from inward.data.drawn import drawn

            some = drawn(len(train), self.num_train, seed=self.train.seed, what="texts")
            train = [train[i] for i in some]
        return train, held

    def sources(self, longest: int) -> tuple[DialogueSource, DialogueSource, list[str]]:
        """Training, validation, and what is to be told of them.

        longest: tokens of a text that the model takes.
        """
        dialogue = self.dialogue
        longest, seed, made = min(self.max_len, longest), self.train.seed, []
        told = [file.told() for file in self.files]
        for name, part in zip(("train", "valid"), self.parts(), strict=True):
            pairs = [dialogue.pair(passage) for passage in part]
            kept = [pair for pair in pairs if sum(map(len, pair)) <= longest]
            if not kept:
                raise ValueError(
                    f"all {len(pairs)} texts of {name} are longer than {longest} tokens; raise "
                    "max_len, up to the model's block_size, or give shorter ones"
                )
            left = len(pairs) - len(kept)
            source = DialogueSource(kept, seed=seed, whole=self.learn == "all")
            made.append(source)
            told.append(
                f"{name}: {len(kept)} texts, {source.describe()['num_tokens']:,} tokens, "
                f"{source.learned:,} of them learned"
                + (f"; left out {left} of more than {longest} tokens" if left else "")
            )
        if dialogue.role:
            told.append(f"chat template: the answering role is {dialogue.role!r}")
        else:
            told.append("no chat template: an answer follows its question after a line end")
        return made[0], made[1], told

    def build(self) -> Run:
        """Model, source and evaluation, ready for `train`.

        Raises:
            FileNotFoundError: no base or data at the given place.
            ValueError: a base that is no Huginn or has no tokenizer, or options and data that do
                not fit; before the weights are read.
        """
        import torch

        from inward.common.bases import find_base, load_causal_lm, model_type
        from inward.methods.huginn.tune import HuginnTuning, low_rank
        from inward.train.loop import Run

        self.check()
        place = find_base(self.base)
        if model_type(place) != "huginn_raven":
            raise ValueError(
                f"{self.base} is a model of type {model_type(place)!r}; {self.name} trains a "
                "Huginn (huginn_raven). For other models: cot, coconut, interleaved, tidar"
            )
        config = _config_of(place)
        source, held, told = self.sources(config.block_size)
        _check_ids(source, config, self.base)
        torch.manual_seed(self.train.seed)
        model = load_causal_lm(self.base, dtype=getattr(torch, self.dtype))
        if self.lora_rank:
            low_rank(model, self.lora_rank)
        tuned = HuginnTuning(model, depth=self.depth, watch=self.watch)
        tuned.tokenizer = self.dialogue.tokenizer
        usual = config.mean_recurrence, config.mean_backprop_depth
        if (self.depth.mean, self.depth.backprop) != usual:
            told.append(
                f"depth: mean {self.depth.mean}, gradient of {self.depth.backprop}; the base was "
                f"trained with {usual[0]} and {usual[1]}"
            )
        trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
        told.append(f"trained: {trained:,} weights")
        return Run(
            tuned,
            source,
            self.evaluation(held),
            asdict(self),
            notes=tuple(told),
            read={file.path.name: file.sha256 for file in self.files},
            data_keys=("data", "valid", "format", "question", "steps", "answer", "num_valid",
                       "num_train", "max_len"),
        )  # fmt: skip

    def evaluation(self, held: DialogueSource) -> Callable[[nn.Module], dict[str, float]]:
        """Loss of a token of held-out texts at each of `depths`."""
        rows = min(self.valid_rows, len(held))

        def evaluate(tuned: Any) -> dict[str, float]:
            import torch

            from inward.common.draws import Draws
            from inward.methods.huginn.train import loss

            device, found = next(tuned.parameters()).device, {}
            batch = held.batch(0, range(rows), rows)
            batch = {name: value.to(device) for name, value in batch.items()}
            with torch.no_grad():
                for r in self.depths:
                    draws = Draws(0, 0, range(rows), rows, device=device)
                    fixed = Depth(mean=r, backprop=1, sampling="fixed")
                    said = loss(tuned.model, batch, draws, depth=fixed).metrics
                    for name in ("token_loss", "token_accuracy"):
                        total, count = said[name]
                        found[f"{name}_r{r}"] = float(total / count)
            return found

        return evaluate

    def records(self) -> list[Any]:
        """Held-out records, for `inward eval`; ValueError where the data are no records."""
        found = [passage.record for passage in self.parts()[1] if passage.record]
        if not found:
            raise ValueError(
                f"the data of {self.name} are texts or chats without right answers; name a file of "
                "questions with --data"
            )
        return found

    def asked(self, model: Any) -> dict[str, Any]:
        """How models of this recipe are asked, for inward.json."""
        return {}


def _config_of(place: Any) -> Any:
    from inward.methods.huginn.config import HuginnConfig

    return HuginnConfig.from_pretrained(place)


def _check_ids(source: DialogueSource, config: Any, name: str) -> None:
    largest = max(max([*asked, *said]) for asked, said in source.pairs)
    if largest >= config.vocab_size:
        raise ValueError(
            f"the tokenizer of {name} writes token {largest}, but the model embeds "
            f"{config.vocab_size}; give it the tokenizer that it was trained with"
        )


def finetune() -> FineTuneRecipe:
    """Low-rank weights; the published model's depths."""
    return FineTuneRecipe(
        name="huginn-finetune",
        about="your Huginn, your chats or questions, LoRA; --base FOLDER --data FILE",
        train=TrainSettings(
            steps=300,
            batch_rows=8,
            optim=OptimSettings(name="adamw", lr=2e-4, weight_decay=0.0, betas=(0.9, 0.95)),
            clip=1.0,
            schedule="cosine",
            warmup=20,
            min_ratio=0.1,
            ema_decay=0.0,
            save_every=50,
            log_every=5,
        ),
    )
