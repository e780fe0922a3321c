"""Your model, your data: `inward train cot | coconut | interleaved --base FOLDER --data FILE`.

    cot           every step is spoken; also what the other two can start from (--start RUN)
    coconut       stage s hides the first s steps behind s * thoughts (arXiv 2412.06769)
    interleaved   think, speak, think again: each block hides a step, the next one is spoken

One flat recipe, so that everything can be set from the command line, and all of it is saved with
the run; `whole` is the `CoconutRecipe` that it stands for. Two numbers are found out if they are
left at 0 (`settled`): how many steps the curriculum takes, and how long an answer may be.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from inward.common.checks import need
from inward.data.thoughts.anyfile import RecordKind
from inward.data.thoughts.curriculum import AnyPattern, BlockLayout, Curriculum, Stages
from inward.data.thoughts.patterns import (
    Cot,
    EntropySteps,
    Fixed,
    HiddenTokens,
    NextOnly,
    NoCot,
    Prefix,
    RandomSteps,
    Rhythm,
)
from inward.data.thoughts.records import Record
from inward.methods.coconut.settings import CoconutSettings, Feedback
from inward.recipes.coconut import CoconutRecipe, PretrainedBase
from inward.recipes.coconut_data import AnyTask, FileData
from inward.train.settings import OptimSettings, TrainSettings

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut
    from inward.train.run import Run

PatternName = Literal[
    "cot",
    "coconut",
    "one-at-a-time",
    "interleaved",
    "random",
    "entropy",
    "next-only",
    "tokens",
    "fixed",
    "no-cot",
]
_UNSCRIPTED = ("random", "entropy")
"""Patterns that only a model which says its own boundaries can follow"""
_STEPLESS = ("fixed", "no-cot")


@dataclass(frozen=True)
class CurriculumTraining(TrainSettings):
    """Settings of a run whose curriculum says how long it takes."""

    least_steps: ClassVar[int] = 0

    steps: int = 0
    """Optimizer steps of the whole run; 0: as many as the stages take."""


@dataclass(frozen=True)
class ThoughtsRecipe:
    """Train a model of your own to think, on records of your own."""

    name: str
    about: str
    base: str = ""
    """the model: a folder of transformers, a GGUF file, a name in $INWARD_MODELS or of the hub"""
    data: str = ""
    """the records: JSON, JSON lines, iCoT's lines or chats; a path, or a name in $INWARD_DATA"""
    valid: str = ""
    """a file of its own for validation; empty: questions of the data are held out"""
    test: str = ""
    """a file that `inward eval` asks after training"""
    start: str = ""
    """a run (or its model) whose weights this one goes on from, with a new optimizer"""
    format: RecordKind = "auto"
    """what the files are; auto: told by their first row"""
    question: str = "question"
    """what the files call the question"""
    steps: str = "steps"
    """and the steps: a list, or a text of lines"""
    answer: str = "answer"
    """and the answer"""
    split_field: str = ""
    """the field that says which split a record belongs to"""
    num_valid: int = 0
    """questions held out for validation; 0: a tenth, 200 at most"""
    num_test: int = 0
    """questions held out for the test"""
    num_train: int = 0
    """so many of the other records, drawn by the seed; 0: all"""
    longest: int = 0
    """leave out records of more characters; 0: none but those beyond the context"""
    without_steps: Literal["skip", "refuse"] = "skip"
    """records without steps: leave them out (told), or stop"""
    score_by: Literal["auto", "exact", "equations", "prosqa"] = "auto"
    """how answers are judged; auto: the strictest that the records allow"""
    pattern: PatternName = "coconut"
    """which steps hide behind thoughts"""
    thoughts: int = 2
    """thoughts of a hidden step (of coconut) or of a block; of fixed: all"""
    stages: int = 3
    """hidden steps at most (coconut, random, entropy, next-only), or blocks (interleaved)"""
    hidden: int = 1
    """interleaved: steps that a block hides; 0: it hides none, thoughts are added"""
    sentences: int = 1
    """interleaved: sentences spoken between two blocks"""
    lead: int = 0
    """interleaved: sentences spoken before the first block"""
    thought: Literal["latent", "pause", "nothing"] = "latent"
    """what a thought is: the last hidden state, a learned pause token, or nothing at all"""
    boundaries: Literal["given", "supervised", "none"] = "given"
    """who sets the marks around thoughts: the data, the model itself (supervised), or nobody"""
    feedback: Feedback = "none"
    """what becomes of a thought before it is fed in: none, norm, projector, adapter, or mixture (of
    the embeddings, by what the head says)"""
    superpose: float = 0.0
    """thoughts hold the words of the step they hide, to be read out exactly: the ratio of the
    weights of neighbouring words, 0.5 or less; they are fed back as the mixture. 0: not"""
    span: int = 4
    """superpose: words that a thought holds at most"""
    spoken_epochs: int = 1
    """passes over the data in which every step is spoken, before the first is hidden"""
    epochs: int = 1
    """passes over the data of every later stage, the last one too"""
    mix: float = 0.0
    """probability that a record is shown at another stage than its epoch's"""
    reset: Literal["never", "stage", "epoch"] = "never"
    """when the optimizer starts afresh"""
    lora_rank: int = 16
    """train low-rank weights of this rank; 0: all weights (then with a rate of 1e-4 or less)"""
    start_like: str = "<<"
    """token that the new tokens start like, if the tokenizer has it as one; else the mean"""
    max_new_tokens: int = 0
    """of an answer; 0: what the longest validation record takes, and some more"""
    num_evaluated: int = 64
    """validation questions answered at every evaluation"""
    train: CurriculumTraining = field(default_factory=CurriculumTraining)

    # -- what it stands for

    def curriculum(self) -> Curriculum:
        """Pattern, layout and stages.

        Raises ValueError for a pattern that needs boundaries of the model's own, or options that
        this pattern would not heed.
        """
        self._check_options()
        pattern = self._pattern()
        later = max(0, pattern.last_stage - 1)
        if not pattern.last_stage:
            return Curriculum(pattern, self._layout())
        first = 0 if self.spoken_epochs else 1
        lengths = (*((self.spoken_epochs,) if self.spoken_epochs else ()), *(self.epochs,) * later)
        stages = Stages(lengths, first=first, uniform_prob=self.mix, reset=self.reset)
        return Curriculum(pattern, self._layout(), stages)

    def _layout(self) -> BlockLayout:
        return BlockLayout(self.thought, self.boundaries)

    def _pattern(self) -> AnyPattern:
        c, stages = self.thoughts, self.stages
        rhythm = {"hidden": self.hidden, "sentences": self.sentences, "lead": self.lead}
        made: dict[str, Any] = {
            "cot": lambda: Cot(),
            "no-cot": lambda: NoCot(),
            "fixed": lambda: Fixed(c),
            "coconut": lambda: Prefix(c=c, max_stage=stages),
            "one-at-a-time": lambda: Prefix(c=c, max_stage=stages, one_at_a_time=True),
            "interleaved": lambda: Rhythm(c, blocks=stages, **rhythm),
            "random": lambda: RandomSteps(c, max_stage=stages),
            "entropy": lambda: EntropySteps(c, max_stage=stages),
            "next-only": lambda: NextOnly(c, max_stage=stages),
            "tokens": lambda: HiddenTokens(),
        }
        return made[self.pattern]()

    def _check_options(self) -> None:
        """Options out of range, or that the chosen pattern would not heed, are refused."""
        for name in ("spoken_epochs", "lora_rank", "max_new_tokens", "num_valid", "num_test"):
            need(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("stages", "epochs", "num_evaluated"):
            need(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        need(self.thoughts >= 1, "thoughts", self.thoughts, "1 or more; for none set thought to "
             "nothing")  # fmt: skip
        default, used = type(self)("", ""), _USED[self.pattern]
        for name in ("thoughts", "stages", "hidden", "sentences", "lead", "spoken_epochs", "mix"):
            value, usual = getattr(self, name), getattr(default, name)
            if name not in used and value != usual:
                raise ValueError(
                    f"{name} is {value}, but the pattern {self.pattern} does not use it; leave it "
                    "out, or choose a pattern that does"
                )
        if self.pattern in ("cot", "no-cot", "tokens") and self.thought != "latent":
            raise ValueError(f"thought is {self.thought!r}, but {self.pattern} has no thoughts")
        self._thinking()
        if self.pattern in _UNSCRIPTED and self.boundaries != "supervised":
            raise ValueError(
                f"pattern {self.pattern} hides steps that no rhythm could tell: only a model that "
                "says its own boundaries can follow it; set boundaries to supervised"
            )
        if self.boundaries == "supervised" and self.thought != "latent":
            raise ValueError(
                f"boundaries are supervised and thought is {self.thought!r}; only latent thoughts "
                "begin and end where the model says so"
            )

    def files(self) -> FileData:
        """What is read.

        Raises ValueError, FileNotFoundError: no data named, or not there.
        """
        if not self.data:
            raise ValueError(f"name the records to train {self.name} on: --data FILE")
        held = self.num_valid
        files = FileData(
            *(self.data, self.valid, self.test, self.format),
            num_valid=held or (0 if self.valid or self.split_field else 1),
            num_test=self.num_test,
            num_train=self.num_train,
            longest=self.longest,
            seed=self.train.seed,
            split_field=self.split_field,
            question=self.question,
            steps=self.steps,
            answer=self.answer,
            without_steps="keep" if self.pattern in _STEPLESS else self.without_steps,
            score_by=self.score_by,
        )
        if held or self.valid or self.split_field:
            return files
        num = len(files.read(self.data).records)
        return replace(files, num_valid=max(1, min(200, num // 10)))

    def whole(self) -> CoconutRecipe:
        """The recipe that this one stands for."""
        base = self.base or self._base_of_start()
        return CoconutRecipe(
            name=self.name,
            about=self.about,
            curriculum=self.curriculum(),
            base=PretrainedBase(base, self.start_like, self.lora_rank, pause=True),
            data=self.files(),
            train=self.train,
            max_new_tokens=self.max_new_tokens,
            num_evaluated=self.num_evaluated,
            start=self.start,
            thinking=self._thinking(),
        )

    def _thinking(self) -> CoconutSettings:
        """Options of the wrapper."""
        if self.superpose and self.feedback not in ("none", "mixture"):
            raise ValueError(
                f"superpose is {self.superpose} and feedback {self.feedback!r}: superposed "
                "thoughts are fed back as the mixture that they hold; leave feedback out"
            )
        feedback = "mixture" if self.superpose else self.feedback
        return CoconutSettings(feedback, superpose=self.superpose, span=self.span)

    def _base_of_start(self) -> str:
        if self.start:
            from inward.recipes.of import recipe_of

            base = getattr(recipe_of(self.start), "base", "")
            if isinstance(base, str) and base:
                return base
        raise ValueError(f"name the model that {self.name} shall train: --base FOLDER")

    def settled(self) -> ThoughtsRecipe:
        """The same with the numbers that were left open.

        Raises ValueError: fewer steps than the curriculum takes to its last stage, in which the
        model will be asked.
        """
        whole = self.whole()
        stages, rows = whole.curriculum.stages, self.train.batch_rows
        long = -(-len(whole.data.split("train")) // rows)
        first = stages.starts[-1] * long
        steps = self.train.steps or first + self.epochs * long
        if steps <= first:
            raise ValueError(
                f"train.steps is {steps}, but the last stage of the curriculum, in which the model "
                f"will be asked, begins after step {first} ({long} steps a pass); give more than "
                "that, or 0, or fewer stages, or less data (num_train)"
            )
        tokens = self.max_new_tokens or self._longest_answer(whole)
        return replace(self, train=replace(self.train, steps=steps), max_new_tokens=tokens)

    def _longest_answer(self, whole: CoconutRecipe) -> int:
        """Tokens of the longest validation record's steps and answer, a quarter more."""
        from inward.common.bases import open_base_tokenizer
        from inward.data.thoughts.tokenizers import encode_record

        assert isinstance(whole.base, PretrainedBase), "an own model is a trained one"
        tokenizer = open_base_tokenizer(whole.base.path)
        spoken = whole.curriculum.pattern
        longest = 0
        for record in whole.asked_records(whole.task()):
            pieces = encode_record(record, tokenizer)
            steps = 0 if isinstance(spoken, NoCot | Fixed) else sum(map(len, pieces.steps))
            longest = max(longest, steps + len(pieces.answer))
        return longest + max(4, longest // 4)

    # -- what a recipe is asked for

    def build(self) -> Run:
        """Model, source and evaluation, ready for `train`; see `CoconutRecipe.build`."""
        settled = self.settled()
        whole = settled.whole()
        run = whole.build()
        told = (*run.notes, _tokens_told(run.source), *_schedule_told(run.source, settled.train))
        return replace(
            run,
            config=asdict(settled),
            notes=told,
            data_keys=(
                *("data", "valid", "test", "format", "question", "steps", "answer", "split_field"),
                *("num_valid", "num_test", "num_train", "longest", "without_steps"),
                "max_new_tokens",  # left open, it follows from the data
            ),
        )

    def task(self) -> AnyTask:
        """How to ask and score."""
        return self.files().task()

    def asked(self, model: Coconut) -> dict[str, Any]:
        """How models of this recipe are asked, for inward.json."""
        return self.settled().whole().asked(model)


def _tokens_told(source: Any) -> str:
    """How much there is to learn from: counted, of many records estimated from some."""
    from inward.data.thoughts.tokenizers import encode_record

    records: list[Record] = source.records
    some = records
    if len(records) > 4000:
        chosen = np.random.default_rng(0).permutation(len(records))[:2000]
        some = [records[i] for i in chosen]
    tokens = steps = 0
    for record in some:
        pieces = encode_record(record, source.tokenizer, form=source.form)
        parts = (pieces.question, *pieces.steps, pieces.answer)
        tokens, steps = tokens + sum(map(len, parts)), steps + len(pieces.steps)
    share, about = len(records) / len(some), "" if some is records else "about "
    return (
        f"training: {len(records)} records, {about}{round(tokens * share):,} tokens, "
        f"{about}{round(steps * share):,} steps"
    )


def _schedule_told(source: Any, train: TrainSettings) -> list[str]:
    """Which stage begins when."""
    begins = source.stage_steps(train.batch_rows)
    stages = ", ".join(f"{stage} from step {step + 1}" for step, stage in begins.items())
    return [f"stages: {stages}; {train.steps} steps of {train.batch_rows} records in all"]


_ALL = ("thoughts", "stages", "spoken_epochs", "mix")
_USED: dict[str, tuple[str, ...]] = {
    "cot": (),
    "no-cot": (),
    "fixed": ("thoughts",),
    "coconut": _ALL,
    "one-at-a-time": _ALL,
    "interleaved": (*_ALL, "hidden", "sentences", "lead"),
    "random": _ALL,
    "entropy": _ALL,
    "next-only": _ALL,
    "tokens": ("spoken_epochs",),
}
"""The options of `ThoughtsRecipe` that each pattern heeds"""

_TRAIN = CurriculumTraining(
    batch_rows=8,
    optim=OptimSettings(name="adamw", lr=5e-4, weight_decay=0.0, betas=(0.9, 0.98)),
    clip=1.0,
    warmup=20,
    schedule="cosine",
    min_ratio=0.1,
    ema_decay=0.0,
    save_every=50,
    log_every=5,
)
"""As in `gsm8k-smollm-interleaved`"""


def cot() -> ThoughtsRecipe:
    """Every step spoken."""
    return ThoughtsRecipe(
        name="cot",
        about="your model, your records: every step is spoken; --base FOLDER --data FILE",
        pattern="cot",
        train=_TRAIN,
    )


def coconut() -> ThoughtsRecipe:
    """Steps hide behind thoughts, the first ones first."""
    return ThoughtsRecipe(
        name="coconut",
        about="your model, your records: thoughts in place of steps; --base FOLDER --data FILE",
        pattern="coconut",
        train=_TRAIN,
    )


def interleaved() -> ThoughtsRecipe:
    """Think, speak, think again."""
    return ThoughtsRecipe(
        name="interleaved",
        about="your model, your records: thoughts between spoken steps; --base FOLDER --data FILE",
        pattern="interleaved",
        train=_TRAIN,
    )
