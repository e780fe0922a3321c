"""The paper's runs of Coconut. NOT RUN HERE.

All: GPT-2 (124M), AdamW of PyTorch's defaults, lr 1e-4, weight decay 0.01, fp32, no schedule, no
clipping, 128 rows (4 GPUs x 32; 32 rows did not replicate, issue 3 of facebookresearch/coconut).
The optimizer starts afresh every epoch in the code (every stage in the paper). Costs are
6 * parameters * tokens, with the token counts named; thoughts add passes, not FLOPs. Sources as in
`inward.recipes.coconut`.
"""

from __future__ import annotations

from dataclasses import replace

from inward.data.thoughts.curriculum import Curriculum, Stages
from inward.data.thoughts.patterns import Cot, Prefix
from inward.recipes.coconut import CoconutRecipe, PretrainedBase
from inward.recipes.coconut_data import FileData
from inward.train.settings import OptimSettings, TrainSettings


def _json(stem: str) -> FileData:
    return FileData(f"{stem}_train.json", f"{stem}_valid.json", f"{stem}_test.json")


_PUBLISHED = TrainSettings(
    steps=7000,
    batch_rows=128,
    optim=OptimSettings(name="adamw", lr=1e-4, weight_decay=0.01, betas=(0.9, 0.999)),
    schedule="constant",
    ema_decay=0.0,
    log_every=10,
)

GSM8K_COT = Curriculum(Cot())
"""args/gsm_cot.yaml: stage 0 alone; the epoch-6 checkpoint (about 40 % valid) starts Coconut."""

GSM8K_COCONUT = Curriculum(
    Prefix(c=2, max_stage=3, mark_zero=False), stages=Stages((3, 3, 3), first=1, reset="epoch")
)
"""args/gsm_coconut.yaml: c_thought 2, 3 epochs a stage, resume 3 skips stage 0, 25 epochs in all;
then the extra stage without text. Inference: 6 thoughts."""

PRONTOQA_COCONUT = Curriculum(
    Prefix(c=1, max_stage=6), stages=Stages((5,) * 7, first=0, reset="epoch")
)
"""args/prontoqa_coconut.yaml: c_thought 1, 5 epochs a stage, 50 epochs. Inference: 6 thoughts."""

PROSQA_COCONUT = PRONTOQA_COCONUT
"""args/prosqa_coconut.yaml: the same values."""


def published_gsm8k_cot() -> CoconutRecipe:
    """42.9 % in the paper; 385,620 records are 3,013 steps an epoch."""
    return CoconutRecipe(
        name="coconut-gsm8k-cot",
        about="NOT RUN HERE: GSM8k-Aug, CoT stage, 6 epochs; ~0.2 EFLOP at 100 tokens a record",
        curriculum=GSM8K_COT,
        base=PretrainedBase(),
        data=FileData("data/gsm/train.txt", "data/gsm/valid.txt", "data/gsm/test.txt", "icot"),
        train=replace(_PUBLISHED, steps=6 * 3013, eval_every=3013, save_every=3013),
    )


def published_gsm8k() -> CoconutRecipe:
    """34.1 % in the paper. It starts from the run of `coconut-gsm8k-cot` (--start names another
    folder); epochs 3 to 24 of the released 25."""
    return CoconutRecipe(
        name="coconut-gsm8k",
        about="NOT RUN HERE: GSM8k-Aug, Coconut from CoT; ~0.6 EFLOP at 100 tokens a record",
        curriculum=GSM8K_COCONUT,
        base=PretrainedBase(),
        start="runs/coconut-gsm8k-cot",
        data=FileData("data/gsm/train.txt", "data/gsm/valid.txt", "data/gsm/test.txt", "icot"),
        train=replace(_PUBLISHED, steps=22 * 3013, eval_every=3013, save_every=3013),
    )


def published_prontoqa() -> CoconutRecipe:
    """99.8 % in the paper; 9,000 records are 71 steps an epoch."""
    return CoconutRecipe(
        name="coconut-prontoqa",
        about="NOT RUN HERE: ProntoQA 5 hops, 50 epochs; ~0.13 EFLOP at 400 tokens a record",
        curriculum=PRONTOQA_COCONUT,
        base=PretrainedBase(),
        data=_json("data/prontoqa"),
        train=replace(_PUBLISHED, steps=50 * 71, eval_every=5 * 71, save_every=71),
    )


def published_prosqa() -> CoconutRecipe:
    """97.0 % in the paper, CoT 77.5 %, pause as thought 96.6 %; 17,886 records, 140 steps."""
    return CoconutRecipe(
        name="coconut-prosqa",
        about="NOT RUN HERE: ProsQA, 50 epochs; ~0.33 EFLOP at 500 tokens a record",
        curriculum=PROSQA_COCONUT,
        base=PretrainedBase(),
        data=_json("data/prosqa"),
        train=replace(_PUBLISHED, steps=50 * 140, eval_every=5 * 140, save_every=140),
    )
