"""Are thoughts that can be read also used, and may there be more of them than in training?

    recipe(row, seed, start)          one row of the comparison on arithmetic chains
    exactness(model, curriculum, asked)   what superposed thoughts hold beside what they should
    dial(model, run, asked, times)    accuracy with a half, one, two times as many thoughts

Rows of one seed start from the same chain of thought and differ in what a thought is:

    superposed            holds its half of the step, is fed back as that mixture (MUX)
    soft                  the control: fed back the same way, and told nothing
    coconut               the last hidden state (the paper)
    superposed-interleaved, interleaved     one step silent, the next one spoken
    norm, surplus, norm-surplus, superposed-surplus     may more thoughts come at inference? scaled
                          to the embeddings' size; 0 to 4 thoughts more, drawn at every visit
    cot                   every step spoken: also what a silent chain of thought says, whose
                          thoughts are its words one by one

A step has at most 10 tokens ("<<48+9=57>>" and its end), so two thoughts of 5 words hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inward.data.thoughts import chains
from inward.data.thoughts.curriculum import Curriculum, Stages
from inward.data.thoughts.patterns import Cot, Pieces, Prefix, Rhythm
from inward.data.thoughts.records import Record
from inward.data.thoughts.segments import Latent, Sample, Text
from inward.data.thoughts.tokenizers import encode_question, encode_record
from inward.evals.stats import Interval, wilson
from inward.methods.coconut.settings import CoconutSettings
from inward.recipes.coconut import CoconutRecipe, chains_symbolic
from inward.recipes.coconut_data import ChainData
from inward.tasks.chains import final_answer

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut

CHAINS = chains.ChainSettings(
    min_steps=2, max_steps=3, num_branches=1, max_term=9, max_factor=3, shuffled=False
)
"""Two or three operations up to 99, and one quantity that nobody asks for"""
SMALL = chains.ChainSettings(
    min_steps=2, max_steps=2, num_branches=0, max_term=9, max_factor=1, max_value=30, shuffled=False
)
"""For a few minutes of one core: two sums up to 30"""
C, STAGES, SPAN = 2, 3, 5
HELD = CoconutSettings("mixture", superpose=0.5, span=SPAN)
_THINKING = {
    "superposed": HELD,
    "superposed-interleaved": HELD,
    "superposed-surplus": HELD,
    "soft": CoconutSettings("mixture"),
    "norm": CoconutSettings("norm"),
    "norm-surplus": CoconutSettings("norm"),
}
ROWS = (*_THINKING, "coconut", "surplus", "interleaved", "cot")


def recipe(row: str, seed: int, start: str = "", *, small: bool = False) -> CoconutRecipe:
    """One row; without a start the chain of thought that the rows of a seed share.

    A stage is an epoch of 400 steps of 32 rows. small: `SMALL` chains, a stage of 100 steps

    Raises ValueError for a row that there is not.
    """
    if row not in ROWS:
        raise ValueError(f"there is no row {row!r}; rows are {', '.join(ROWS)}")
    whole = chains_symbolic("cot", start=start)
    num_stages = 2 if small else STAGES
    stages = Stages((1,) * num_stages, first=1)
    curriculum = Curriculum(Cot())
    if row.endswith("interleaved"):
        rhythm = Rhythm(C, hidden=1, sentences=1, blocks=2)
        curriculum = Curriculum(rhythm, stages=Stages((1,), first=1))
    elif row != "cot":
        surplus = 2 * C if row.endswith("surplus") else 0
        curriculum = Curriculum(Prefix(c=C, max_stage=num_stages, surplus=surplus), stages=stages)
    long = 100 if small else 400
    steps = long * (num_stages + 3 if small else num_stages + 1) if start else 3 * long
    return replace(
        whole,
        name=f"held-{row}",
        about=f"chains of two or three steps: {row}",
        curriculum=curriculum,
        thinking=_THINKING.get(row, CoconutSettings()),
        data=ChainData(settings=SMALL if small else CHAINS, num_train=32 * long, pairs=True),
        train=replace(whole.train, steps=steps, seed=seed, eval_every=steps, save_every=50),
        max_new_tokens=28 if small else 40,
        num_evaluated=50,
        start=start,
    )


# --------------------------------------------------------------------------------------------------
# What thoughts hold


@dataclass(frozen=True)
class Exactness:
    """Read-outs of test questions beside their steps.

    num: thoughts that stand for a part of a step. thoughts: those that read out to exactly their
    words, in order. steps: steps of which every thought does. first: thoughts whose first word is
    right. other: thoughts that read out to what they should of *another* question (chance).
    """

    num: int
    thoughts: Interval
    steps: Interval
    first: Interval
    other: Interval


def exactness(model: Coconut, curriculum: Curriculum, asked: Sequence[Record]) -> Exactness:
    """See `Exactness`; the model thinks as at the last stage, by itself.

    Raises ValueError for a model whose thoughts are not superposed, or no questions.
    """
    from inward.methods.coconut.generate import generate

    how = model.settings.superposing
    if how is None or len(asked) < 2:
        raise ValueError("exactness is of superposed thoughts, over two questions or more")
    pattern, filler = curriculum.pattern, model.specials.latent
    last, told = pattern.last_stage, replace(curriculum, span=how.span)
    wanted: list[list[list[int]]] = []
    prompts: list[Sample] = []
    for record in asked:
        pieces = encode_record(record, model.tokenizer)
        sample = _first_block(told, pieces, last, model)
        (block,) = [s for s in sample.segments if isinstance(s, Latent)]
        wanted.append([[w for w in span if w != filler] for span in block.spans])
        prompts.append(_untold(sample))
    found: list[list[list[int]]] = []
    for begin in range(0, len(prompts), 50):
        some = prompts[begin : begin + 50]
        made = generate(model, some, trace=True, max_new_tokens=1, do_sample=False)
        for trace in made.traces:
            steps = [s for s in trace.steps if s.kind == "thought"]
            found.append([s.view["words"].ids.tolist() for s in steps])
    return _counted(wanted, found)


def _first_block(curriculum: Curriculum, pieces: Pieces, stage: int, model: Coconut) -> Sample:
    """Question and first block, which says what it is to hold."""
    import numpy as np

    from inward.data.thoughts.curriculum import arrange

    plan = curriculum.pattern.plan(pieces, stage, np.random.default_rng(0))
    sample = arrange(pieces, plan, curriculum.layout, model.specials, span=curriculum.span)
    place = next(i for i, s in enumerate(sample.segments) if isinstance(s, Latent))
    closed = Text((model.specials.eot,), False)
    return Sample((*sample.segments[: place + 1], closed))


def _untold(sample: Sample) -> Sample:
    return Sample(tuple(Latent(s.num) if isinstance(s, Latent) else s for s in sample.segments))


def _counted(wanted: list[list[list[int]]], found: list[list[list[int]]]) -> Exactness:
    thoughts = steps = first = other = num = num_steps = 0
    for r, (want, have) in enumerate(zip(wanted, found, strict=True)):
        stranger = found[(r + 1) % len(found)]
        right = [w == h for w, h in zip(want, have, strict=True)]
        real = [j for j, span in enumerate(want) if span]
        num += len(real)
        thoughts += sum(right[j] for j in real)
        first += sum(bool(have[j]) and have[j][0] == want[j][0] for j in real)
        other += sum(want[j] == stranger[j] for j in real if j < len(stranger))
        for begin in range(0, len(real), C):
            num_steps += 1
            steps += all(right[j] for j in real[begin : begin + C])
    shares = (thoughts, num), (steps, num_steps), (first, num), (other, num)
    return Exactness(num, *(wilson(a, b) for a, b in shares))


# --------------------------------------------------------------------------------------------------
# The number of thoughts as a dial


def dial(
    model: Coconut, run: CoconutRecipe, asked: Sequence[Record], numbers: Sequence[int]
) -> dict[int, Interval]:
    """Accuracy with so many thoughts after the question."""
    from inward.methods.coconut.generate import generate

    bot, eot = model.specials.bot, model.specials.eot
    found = {}
    for num in numbers:
        right = 0
        for begin in range(0, len(asked), 50):
            some = asked[begin : begin + 50]
            prompts = [
                Sample(
                    (
                        Text((*encode_question(r.question, model.tokenizer), bot), False),
                        Latent(num),
                        Text((eot,), False),
                    )
                )
                for r in some
            ]
            options: dict[str, Any] = run.options(model)
            made = generate(model, prompts, **options)
            said = model.tokenizer.batch_decode(made.tokens, skip_special_tokens=True)
            right += sum(final_answer(t) == r.answer for t, r in zip(said, some, strict=True))
        found[num] = wilson(right, len(asked))
    return found
