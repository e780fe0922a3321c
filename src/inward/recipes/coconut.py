"""Runs of Coconut and of interleaved thinking that fit a laptop; the published ones are in
`inward.recipes.coconut_published`.

    rows(...)            the rows of a comparison: one `Curriculum` each, same budget
    prosqa_symbolic()    two layers, width 64, small graphs whose edges are one word each
    chains_symbolic()    the same model, arithmetic as equations
    gsm8k_smollm()       SmolLM2-135M with LoRA on GSM8K

Every run of one table shares data, model, steps and batch; rows differ in the curriculum alone.
Sources: arXiv 2412.06769 (section 4 and appendix), the released args/*.yaml and README
(facebookresearch/coconut, 27273cb), and its issues where they say what the files do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from inward.data.drawn import drawn
from inward.data.thoughts import chains, prosqa
from inward.data.thoughts.curriculum import BlockLayout, Curriculum, Stages
from inward.data.thoughts.patterns import (
    Cot,
    EntropySteps,
    Fixed,
    NoCot,
    Pieces,
    Prefix,
    Rhythm,
)
from inward.data.thoughts.records import Record
from inward.data.thoughts.segments import Sample, Text
from inward.data.thoughts.tokenizers import Form
from inward.methods.coconut.settings import CoconutSettings
from inward.recipes.coconut_base import (
    PretrainedBase,
    SmallBase,
    adapted,
    check_thinking,
    start_from,
)
from inward.recipes.coconut_data import AnyTask, ChainData, FileData, ProsQAData
from inward.tasks.exact import ExactTask
from inward.tasks.prosqa import ProsQATask
from inward.train.settings import OptimSettings, TrainSettings

if TYPE_CHECKING:
    from torch import nn

    from inward.data.thoughts.latents import LatentSource
    from inward.methods.coconut.generate import CoconutGenerated
    from inward.methods.coconut.model import Coconut
    from inward.train.loop import Run

# --------------------------------------------------------------------------------------------------
# The recipe


@dataclass(frozen=True)
class CoconutRecipe:
    """One complete run.

    thinking  options of the wrapper: what is fed back, superposed thoughts
    start   folder of a trained model (or its run) whose base the run starts from: weights alone, a
            new optimizer. Rows of a table share a CoT run so, and begin with `Stages(first=1)`
    """

    name: str
    about: str
    curriculum: Curriculum = field(default_factory=Curriculum)
    base: SmallBase | PretrainedBase = field(default_factory=SmallBase)
    data: ProsQAData | ChainData | FileData = field(default_factory=ProsQAData)
    train: TrainSettings = field(default_factory=TrainSettings)
    max_new_tokens: int = 64
    num_evaluated: int = 100
    """validation records answered, each with its swap, at every evaluation"""
    start: str = ""
    thinking: CoconutSettings = field(default_factory=CoconutSettings)

    def task(self) -> AnyTask:
        """How to ask and score."""
        return self.data.task()

    def build(self) -> Run:
        """Model, source and evaluation, ready for `train`.

        Raises ValueError before any work: a curriculum, context or data that do not fit, or a
        start of another vocabulary or shape; FileNotFoundError for a start that is not there.
        """
        import torch

        from inward.train.loop import Run

        check_thinking(self.thinking, self.curriculum)
        files = isinstance(self.data, FileData)
        parts = self.data.parts() if isinstance(self.data, FileData) else None
        torch.manual_seed(self.train.seed)
        model = self.model()
        if self.start:
            start_from(model, self.start)
        if files:  # what is generated is written for its task
            self.check_evaluation(model)
        records, notes = self.records(model)
        source = self.source(model, records)
        return Run(
            model=model,
            source=source,
            evaluate=cast("Callable[[nn.Module], dict[str, float]]", self.evaluation()),
            config=asdict(self),
            resets=source.reset_steps(self.train.batch_rows, self.train.steps),
            notes=() if parts is None else (*parts.told(), *notes),
            read={} if parts is None else dict(parts.read),
            data_keys=("data",) if files else (),
        )

    def superposed(self) -> Curriculum:
        """The curriculum, which tells thoughts what to hold if they are superposed.

        Raises ValueError if its thoughts stand for no step.
        """
        span = self.thinking.span if self.thinking.superpose else 0
        return replace(self.curriculum, span=span) if span else self.curriculum

    def check_evaluation(self, model: Coconut) -> None:
        """Before long work: see that the right answers of held-out questions would be told to be
        right, and fit into what the model may say.

        Raises ValueError that names the question and the remedy.
        """
        from inward.data.thoughts.tokenizers import encode_record

        task, tokenizer = self.task(), model.tokenizer
        asked = self.asked_records(task)
        for record in asked:
            pieces = encode_record(record, tokenizer)
            said = [i for part in (*pieces.steps, pieces.answer[:-1]) for i in part]
            text = tokenizer.batch_decode([said], skip_special_tokens=True)[0]
            if not task.score(record, text).right:
                raise ValueError(
                    f"evaluation ({task.name}) would not see that {record.answer[:60]!r} answers "
                    f"{record.question[:60]!r}: this tokenizer turns record and answer into "
                    f"{text[-80:]!r}; write the answers in another way, or choose another score_by"
                )
            if len(pieces.answer) > self.max_new_tokens:
                raise ValueError(
                    f"the answer to {record.question[:60]!r} takes {len(pieces.answer)} tokens, "
                    f"but max_new_tokens is {self.max_new_tokens}: it could never be right; allow "
                    "more"
                )

    def records(self, model: Coconut) -> tuple[list[Record], list[str]]:
        """Training records, and what is to be told of them: those of files that are too long for
        the model's context are left out; `EntropySteps` gets its scores."""
        from inward.data.thoughts.latents import scored
        from inward.methods.coconut.base import unwrapped

        found, notes = self.data.split("train"), []
        if isinstance(self.data, FileData):
            found, notes = _fitting(found, model, self.curriculum)
        if isinstance(self.curriculum.pattern, EntropySteps):
            found = scored(found, unwrapped(model.base), model.tokenizer)
        return found, notes

    def model(self) -> Coconut:
        """The wrapped base with its tokenizer, untrained or as published."""
        from inward.data.thoughts.tokenizers import add_specials, pause_of, word_tokenizer
        from inward.methods.coconut.model import Coconut

        if isinstance(self.base, PretrainedBase):
            return self._pretrained(self.base)
        if isinstance(self.data, FileData):
            raise ValueError(
                f"recipe {self.name}: a small base takes its words from generated data; use a "
                "PretrainedBase with files, or generated data"
            )
        tokenizer = word_tokenizer(self.data.words(), digits=isinstance(self.data, ChainData))
        # Every row of a table gets the same vocabulary, the pause token included.
        specials = add_specials(tokenizer, pause=True)
        assert pause_of(tokenizer) is not None, "the pause token was just added"
        eos = tokenizer.eos_token_id
        assert isinstance(eos, int), "word tokenizers have one EOS"
        base = self.base.build(len(tokenizer), eos)
        return Coconut(base, specials, self.thinking, tokenizer=tokenizer)

    def _pretrained(self, base: PretrainedBase) -> Coconut:
        from inward.common.bases import open_base
        from inward.methods.coconut.base import add_specials, own_tokens
        from inward.methods.coconut.model import Coconut

        model, tokenizer = open_base(base.path)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        like = tokenizer.encode(base.start_like, add_special_tokens=False)
        specials = add_specials(
            *(tokenizer, model),
            init_from=like[0] if len(like) == 1 else None,
            pause=base.pause or self.curriculum.layout.thought == "pause",
        )
        if base.lora_rank:
            model = adapted(model, base, own_tokens(tokenizer, specials))
        return Coconut(model, specials, self.thinking, tokenizer=tokenizer)

    def source(self, model: Coconut, records: Sequence[Record] | None = None) -> LatentSource:
        """Training batches of these records (default: `records`)."""
        from inward.data.thoughts.latents import LatentSource

        task = self.task()
        made = not isinstance(self.data, FileData) and not isinstance(task, ExactTask)
        return LatentSource(
            self.records(model)[0] if records is None else records,
            model.tokenizer,
            self.superposed(),
            seed=self.train.seed,
            rewrite=task.rewrite if made and not isinstance(task, ExactTask) else None,
            group=self.data.group,
            max_positions=model.max_positions,
            learned_stop=self.curriculum.layout.boundaries == "supervised",
        )

    def evaluation(self) -> Callable[[Coconut], dict[str, float]]:
        """Answers to validation questions and their swaps, at the last stage of the curriculum."""
        task = self.task()
        asked = self.asked_records(task)
        made = not isinstance(self.data, FileData) and not isinstance(task, ExactTask)
        swaps = task.swap(asked) if made and not isinstance(task, ExactTask) else None

        def evaluate(model: Coconut) -> dict[str, float]:
            texts = self.answers(model, asked)
            other = None if swaps is None else self.answers(model, swaps)
            return score(task, asked, texts, other)

        return evaluate

    def asked_records(self, task: AnyTask) -> list[Record]:
        """The validation records that an evaluation asks."""
        valid = self.data.split("valid")
        some = drawn(len(valid), min(self.num_evaluated, len(valid)), what="questions")
        return task.ask([valid[i] for i in some])

    def answers(
        self, model: Coconut, asked: Sequence[Record], *, batch: int = 50, **options: Any
    ) -> list[str]:
        """What the model says after each question, boundary tokens left out (greedy)."""
        said: list[str] = []
        for made in self.generated(model, asked, batch=batch, **options):
            said += model.tokenizer.batch_decode(made.tokens, skip_special_tokens=True)
        return said

    def generated(
        self, model: Coconut, asked: Sequence[Record], *, batch: int = 50, **options: Any
    ) -> Iterator[CoconutGenerated]:
        """The same with all that generation knows, batch by batch."""
        from inward.methods.coconut.generate import generate

        stage = options.pop("stage", None)
        prompts = self.prompts(model, [record.question for record in asked], stage=stage)
        options = self.options(model, stage=stage) | options
        for start in range(0, len(prompts), batch):
            yield generate(model, prompts[start : start + batch], **options)

    def options(self, model: Coconut, *, stage: int | None = None) -> dict[str, Any]:
        """Of `generate`, and of the measurements in `inward.studies.thoughts_ablate`, for this
        run; `stage`: as the model was asked there, None: at the last one."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "switch": self.switch(model, stage=stage),
            "boundaries": self.curriculum.layout.boundaries != "none",
            "do_sample": False,
        }

    def prompts(
        self, model: Coconut, questions: Sequence[str], *, stage: int | None = None
    ) -> list[Sample]:
        """Questions with the thoughts that a stage (None: the last one) opens with."""
        from inward.data.thoughts.tokenizers import encode_question, pause_of

        stage = self.curriculum.pattern.last_stage if stage is None else stage
        pause = pause_of(model.tokenizer)
        pieces = [Pieces(encode_question(q, model.tokenizer), (), ()) for q in questions]
        return [self.curriculum.prompt(p, stage, model.specials, pause=pause) for p in pieces]

    def asked(self, model: Coconut) -> dict[str, Any]:
        """How models of this recipe are asked, for inward.json: what follows a question, and who
        switches."""
        from inward.data.thoughts.tokenizers import pause_of

        mark = model.specials.latent + 1  # any token will do
        pattern, pause = self.curriculum.pattern, pause_of(model.tokenizer)
        pieces = Pieces((mark,), (), ())
        prompt = self.curriculum.prompt(pieces, pattern.last_stage, model.specials, pause=pause)
        return {
            "after": Form().after_question,
            "opening": opening_of(prompt, mark),
            "switch": self._switching(model),
            "own": {"boundaries": self.curriculum.layout.boundaries != "none"},
            "max_new_tokens": self.max_new_tokens,
        }

    def _switching(self, model: Coconut, stage: int | None = None) -> dict[str, Any]:
        """Who switches at inference: the model if boundaries are learned, else the rhythm, which
        at an early stage has fewer blocks."""
        from inward.data.thoughts.tokenizers import encode_text

        pattern, layout = self.curriculum.pattern, self.curriculum.layout
        if layout.boundaries == "supervised":
            return {"name": "boundary"}
        last = stage is None or stage >= pattern.last_stage
        num = self.max_new_tokens if last else stage  # more than will ever be needed
        if not isinstance(pattern, Rhythm) or layout.thought != "latent" or not num:
            return {"name": "speak"}
        return {
            "name": "scripted",
            "thoughts": [pattern.thoughts] * num,
            "sentences": pattern.sentences,
            "ends": [encode_text(model.tokenizer, Form().after_step)[-1]],
        }

    def switch(self, model: Coconut, *, stage: int | None = None) -> Any:
        """The same as a function of a view."""
        from inward.methods.coconut.asking import switch_from

        return switch_from(self._switching(model, stage))


def _fitting(
    records: list[Record], model: Coconut, curriculum: Curriculum
) -> tuple[list[Record], list[str]]:
    """Records that fit into the context at every stage, and what is to be told of the others.

    Raises ValueError if none fits.
    """
    from inward.data.thoughts.latents import longest_sample

    limit = model.max_positions
    if limit is None:
        return records, []
    kept = [r for r in records if longest_sample(r, model.tokenizer, curriculum, limit) <= limit]
    if not kept:
        raise ValueError(
            f"none of {len(records)} records fits into the context of the base, {limit} positions, "
            "thoughts included; take shorter records, or a base with a longer context"
        )
    left = len(records) - len(kept)
    note = f"left out {left} training records: longer than the context of {limit} positions"
    return kept, [note] if left else []


def opening_of(prompt: Sample, mark: int) -> list[list[Any]]:
    """What follows the question in a prompt whose question is the one token `mark`, as JSON:
    ["text", ids] and ["latent", number] in order."""
    first, *rest = prompt.segments
    assert isinstance(first, Text) and first.ids[0] == mark, "prompts begin with their question"
    told: list[list[Any]] = [["text", list(first.ids[1:])]] if len(first.ids) > 1 else []
    for segment in rest:
        if isinstance(segment, Text):
            told.append(["text", list(segment.ids)])
        else:
            told.append(["latent", segment.num])
    return told


def score(
    task: AnyTask,
    asked: Sequence[Record],
    texts: Sequence[str],
    other: Sequence[str] | None,
) -> dict[str, float]:
    """The task's metrics of what was said to the questions, and to their swaps."""
    from inward.tasks import chains as chain_scores
    from inward.tasks import exact as exact_scores
    from inward.tasks import prosqa as prosqa_scores

    if isinstance(task, ExactTask):
        return exact_scores.report(task, asked, texts).metrics
    if isinstance(task, ProsQATask):
        return prosqa_scores.report(task, asked, texts, other).metrics
    return chain_scores.report(task, asked, texts, other).metrics


# --------------------------------------------------------------------------------------------------
# Rows of a table


def rows(
    *,
    first: int,
    each: int,
    c: int = 1,
    max_stage: int = 6,
    thoughts: int = 2,
    sentences: int = 1,
    reset: Literal["never", "stage", "epoch"] = "never",
) -> dict[str, Curriculum]:
    """The rows of the comparison: the same data and steps, another curriculum each.

    first      epochs of stage 0, which is CoT; 0: the rows of `SHARE_COT` begin at stage 1, for
               runs that start from a CoT run
    each       epochs of every later stage
    c, max_stage          of the prefix curriculum
    thoughts, sentences   of the interleaved rows, which hide one step behind each block
    """
    prefix = Prefix(c=c, max_stage=max_stage)
    rhythm = Rhythm(thoughts, hidden=1, sentences=sentences, blocks=max(1, (max_stage + 1) // 2))

    def later(num: int) -> Stages:
        """Stage 0, `num` stages of equal length, and the last one to the end."""
        if not first:
            return Stages((each,) * num, first=1, reset=reset)
        return Stages((first, *(each,) * num), reset=reset)

    stages, blocks = later(max_stage), later(rhythm.blocks - 1)
    coconut = Curriculum(prefix, stages=stages)
    return {
        "coconut": coconut,
        "interleaved": Curriculum(rhythm, stages=blocks),
        "interleaved-learned": Curriculum(rhythm, BlockLayout(boundaries="supervised"), blocks),
        "cot": Curriculum(Cot()),
        "no-cot": Curriculum(NoCot()),
        "pause-as-thought": replace(coconut, layout=BlockLayout("pause")),
        "pause-tokens": Curriculum(Fixed(c * max_stage), BlockLayout("pause", "none")),
        "without-thought": replace(coconut, layout=BlockLayout("nothing")),
        "without-curriculum": replace(coconut, stages=Stages(first=max_stage + 1)),
        "one-at-a-time": Curriculum(
            replace(prefix, one_at_a_time=True), stages=later(c * max_stage)
        ),
    }


SHARE_COT = (
    *("coconut", "interleaved", "interleaved-learned", "cot", "pause-as-thought"),
    *("without-thought", "one-at-a-time"),
)
"""Rows whose training begins with CoT, so that one CoT run a seed serves them all. The others never
speak a step and are trained from scratch, as in the paper."""


def shares_cot(row: str) -> bool:
    """Whether a row's training begins with CoT; "rhythm-K-M" is K thoughts, then M sentences."""
    return row in SHARE_COT or row.startswith("rhythm-")


_FAST = TrainSettings(
    steps=4000,
    batch_rows=64,
    optim=OptimSettings(name="adamw", lr=1e-3, weight_decay=0.01, betas=(0.9, 0.98)),
    clip=1.0,
    warmup=100,
    ema_decay=0.0,
    eval_every=500,
    save_every=500,
    log_every=20,
)


def _row(row: str, **settings: Any) -> Curriculum:
    """A row of `rows(**settings)`, or of the rhythm that its name gives."""
    found = re.fullmatch(r"rhythm-([1-9]\d*)-([1-9]\d*)", row)
    if found:
        k, m = map(int, found.groups())
        return rows(**settings, thoughts=k, sentences=m)["interleaved"]
    table = rows(**settings)
    if row not in table:
        raise ValueError(f"there is no row {row!r}; rows are {', '.join(table)}, and rhythm-K-M")
    return table[row]


PROSQA_GRAPHS = prosqa.ProsQASettings(
    num_nodes=16, mean_parents=1.2, depth_weight=6.0, min_hops=3, max_hops=4, shortcut=False
)
"""12 nodes and 15 edges in the mean, two options equally deep, almost all three hops."""


def prosqa_symbolic(row: str = "coconut", *, start: str = "") -> CoconutRecipe:
    """One row of the ProsQA table: small graphs without the shortcut, every edge one word.

    start   folder of a CoT run of 3000 steps; then the rows of `SHARE_COT` begin at stage 1 and
            take 3000 more. Without it, a run takes the 6000 steps by itself

    Why this setting: written as pairs ("3 14 | 1 3"), a node's child takes two steps to find (join
    the pair, then match it), and small models stay for long at naming any node of the graph: 27 to
    40 % of the spoken steps were edges after 1 to 3 CPU minutes of 10-node graphs (Llama type; two
    initial spreads, two batch sizes, both orders within a pair). With an edge as one word, 20 CPU
    seconds teach it. At a constant rate the chain stayed at 92 % edges after 3000 steps; hence the
    cosine.
    """
    curriculum = _row(row, first=0 if start else 12, each=2, max_stage=4)
    return CoconutRecipe(
        name=f"prosqa-{row}",
        about=f"ProsQA as symbols, 16 nodes, 2 layers, width 64, from scratch: {row}",
        curriculum=curriculum,
        base=SmallBase("llama", num_layers=2, width=64, num_heads=4, init_std=0.1),
        start=start,
        data=ProsQAData(
            graphs=PROSQA_GRAPHS, num_train=8000, pairs=True, num_symbols=16, joined=True
        ),
        train=replace(
            _FAST,
            steps=3000 if start else 6000,
            batch_rows=32,
            optim=replace(_FAST.optim, lr=2e-3, weight_decay=0.1),
            schedule="cosine",
            min_ratio=0.05,
            eval_every=500,
        ),
        max_new_tokens=24,
    )


def prosqa_interleaved() -> CoconutRecipe:
    """Two thoughts, a spoken step, two thoughts: switching by the rhythm."""
    return prosqa_symbolic("interleaved")


def prosqa_learned() -> CoconutRecipe:
    """The same, but the model says its boundaries itself."""
    return prosqa_symbolic("interleaved-learned")


def prosqa_cot() -> CoconutRecipe:
    """The spoken chain; also the start that the Coconut rows can share."""
    return prosqa_symbolic("cot")


CHAINS = chains.ChainSettings(
    min_steps=2, max_steps=5, num_branches=1, max_term=9, max_factor=3, shuffled=False
)
"""Two to five operations up to 99, told in their order, and one quantity that nobody asks for."""


def chains_symbolic(row: str = "coconut", *, start: str = "") -> CoconutRecipe:
    """One row of the table on arithmetic chains, where the paper's CoT wins.

    start   as in `prosqa_symbolic`, of a CoT run of 2000 steps; rows take 2000 more

    Stages as for GSM8k: c = 2 thoughts a step, three stages and the extra one. Why this setting:
    with shuffled sentences the equations are soon true (98 % after 1000 steps of 32) and the wrong
    ones (20 % of the chain after 2000): this size learns to compute at once and to search late,
    and searching is what ProsQA is there for.
    """
    curriculum = _row(row, first=0 if start else 5, each=1, c=2, max_stage=3)
    return CoconutRecipe(
        name=f"chains-{row}",
        about=f"arithmetic chains, 2 layers, width 64, from scratch: {row}",
        curriculum=curriculum,
        base=SmallBase("llama", num_layers=2, width=64, num_heads=4, init_std=0.1),
        start=start,
        data=ChainData(settings=CHAINS, num_train=12_800, pairs=True),
        train=replace(
            _FAST,
            steps=2000 if start else 4000,
            batch_rows=32,
            optim=replace(_FAST.optim, lr=2e-3, weight_decay=0.1),
            schedule="cosine",
            min_ratio=0.05,
        ),
        max_new_tokens=80,
    )


def gsm8k_smollm(row: str = "interleaved") -> CoconutRecipe:
    """A real model that begins to think: SmolLM2-135M-Instruct, LoRA, GSM8K's equations.

    Not a way to accuracy: the model is small and sees 400 short questions, five times in half an
    hour on one core. One pass of CoT, then the published c = 2 and three stages, a pass each:
    Coconut ends with every step hidden, interleaving with two blocks.
    """
    return CoconutRecipe(
        name=f"gsm8k-smollm-{row}",
        about=f"SmolLM2-135M with LoRA on GSM8K's equations: {row}; half an hour on one core",
        curriculum=_row(row, first=1, each=1, c=2, max_stage=3),
        base=PretrainedBase("smollm2-135m-instruct", lora_rank=16),
        data=FileData(
            *("gsm8k/train.jsonl", "", "gsm8k/test.jsonl", "gsm8k"),
            num_valid=64,
            num_train=400,
            longest=300,
        ),
        train=replace(
            _FAST,
            steps=240,
            batch_rows=8,
            optim=replace(_FAST.optim, lr=5e-4, weight_decay=0.0),
            warmup=20,
            schedule="cosine",
            min_ratio=0.1,
            eval_every=60,
            save_every=30,
            log_every=5,
        ),
        max_new_tokens=40,
        num_evaluated=16,
    )


def gsm8k_smollm_coconut() -> CoconutRecipe:
    """The same with all thoughts right after the question."""
    return gsm8k_smollm("coconut")
