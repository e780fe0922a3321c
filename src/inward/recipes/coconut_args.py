"""The Coconut paper's YAML arguments as a recipe, and back (facebookresearch/coconut, 27273cb).

    recipe, notes = recipe_of_args("args/gsm_coconut.yaml", processes=4)
    args_of_recipe(recipe, processes=4)

Epochs become steps by the number of training records. What the official trainer counts for each of
its processes is multiplied by their number, 4 in its README.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from inward.common.files import read_text
from inward.data.thoughts.curriculum import BlockLayout, Curriculum, Stages
from inward.data.thoughts.patterns import Cot, Prefix
from inward.methods.coconut.settings import CoconutSettings
from inward.recipes import find
from inward.recipes.coconut import CoconutRecipe, PretrainedBase

DEFAULTS: Mapping[str, Any] = {
    "coconut": False,
    "cot": False,
    "no_thoughts": False,
    "no_cot": False,
    "c_thought": 1,
    "epochs_per_stage": 1,
    "max_latent_stage": 0,
    "pad_latent_to_max": True,
    "uniform_prob": 0.0,
    "model_id": "openai-community/gpt2",
    "load_model_path": "None",
    "seed": 0,
    "resume": 0,
    "bf16": False,
    "train_path": "",
    "val_path": "",
    "reset_optimizer": False,
    "batch_size_training": 32,
    "gradient_accumulation_steps": 1,
    "num_epochs": 1,
    "lr": 1e-4,
    "weight_decay": 0.01,
}
_IDLE = {
    "project": "the name of a tracker's project; see --train.trackers",
    "save_path": "give --out DIR",
    "name": "give --out DIR",
    "save_only_improve": "give --train.best-metric exact_match",
}
_NEUTRAL = {"only_eval": False, "debug": False}
_MODES = ("coconut", "cot", "no_thoughts", "no_cot")


def read_args(path: str | Path) -> dict[str, Any]:
    """The arguments in a file, defaults filled in; those that say nothing about training stay.

    Raises:
        ValueError: no YAML of names with values, or an argument that is not theirs.
    """
    import yaml  # transformers depends on it

    try:
        read = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(read, Mapping):
        raise ValueError(f"{path} holds no arguments (names with values)")
    unknown = sorted(set(map(str, read)) - set(DEFAULTS) - set(_IDLE) - set(_NEUTRAL))
    if unknown:
        raise ValueError(f"{path}: the official trainer has no argument {', '.join(unknown)}")
    for name, value in _NEUTRAL.items():
        if read.get(name, value) != value:
            raise ValueError(f"{path}: {name} is {read[name]!r}, which is no training; set {value}")
    return {**DEFAULTS, **read}


def recipe_of_args(
    args: str | Path | Mapping[str, Any], *, processes: int = 4, num_records: int = 0
) -> tuple[CoconutRecipe, list[str]]:
    """The recipe that trains as these arguments do, and notes on what it leaves to the caller.

    Args:
        num_records: of training; 0: the file is read.

    Raises:
        ValueError: arguments that no recipe can say. FileNotFoundError: the training file is not
            there.
    """
    given = args if isinstance(args, Mapping) else read_args(args)
    modes = [name for name in _MODES if given[name]]
    if len(modes) != 1 or modes == ["no_cot"]:
        raise ValueError(
            f"the arguments ask for {' and '.join(modes) or 'no mode'}; a recipe says one of "
            "coconut, cot and no_thoughts"
        )
    plain = find("coconut-gsm8k-cot" if modes == ["cot"] else "coconut-gsm8k")()
    start = str(given["load_model_path"])
    data = replace(plain.data, train=given["train_path"], valid=given["val_path"], test="")
    recipe = replace(
        plain,
        about=f"from the official arguments: {modes[0]}",
        curriculum=_curriculum(given, modes[0]),
        base=PretrainedBase(given["model_id"]),
        start="" if start == "None" else start,
        data=replace(data, kind="json"),
    )
    epochs = int(given["num_epochs"]) - int(given["resume"])
    if epochs < 1:
        raise ValueError(
            f"resume {given['resume']} is beyond num_epochs {given['num_epochs']}: nothing is left "
            "to train"
        )
    rows = int(given["batch_size_training"]) * processes
    batch = rows * int(given["gradient_accumulation_steps"])
    each = -(-(num_records or len(recipe.data.split("train"))) // batch)
    optim = replace(
        plain.train.optim, lr=float(given["lr"]), weight_decay=float(given["weight_decay"])
    )
    train = replace(
        plain.train,
        steps=epochs * each,
        batch_rows=batch,
        accumulation=int(given["gradient_accumulation_steps"]),
        seed=int(given["seed"]),
        optim=optim,
        eval_every=each,
        save_every=each,
        precision="bfloat16" if given["bf16"] else "float32",
    )
    notes = [f"{name} {given[name]!r} is left out: {why}" for name, why in _IDLE.items()
             if given.get(name)]  # fmt: skip
    if recipe.start:
        notes.append(f"load_model_path {start!r} must be a model of ours: convert it first")
    if given["bf16"]:
        notes.append(
            "bf16: products in bfloat16; weights and optimizer stay float32, theirs do not"
        )
    return replace(recipe, train=train), notes


def _curriculum(given: Mapping[str, Any], mode: str) -> Curriculum:
    each, resume, last = (
        int(given[name]) for name in ("epochs_per_stage", "resume", "max_latent_stage")
    )
    reset = "epoch" if given["reset_optimizer"] else "never"
    prob = float(given["uniform_prob"])
    if mode == "cot":
        return Curriculum(Cot(), stages=Stages(reset=reset))
    first = resume // each
    lengths = [each] * max(0, last + 1 - first)
    if lengths:
        lengths[0] -= resume % each
    pattern = Prefix(
        c=max(1, int(given["c_thought"])),
        max_stage=last,
        pad_to_max=bool(given["pad_latent_to_max"]),
    )
    layout = BlockLayout("nothing" if mode == "no_thoughts" else "latent")
    stages = Stages(tuple(lengths), first=first, uniform_prob=prob, reset=reset)
    return Curriculum(pattern, layout, stages=stages)


def args_of_recipe(recipe: Any, *, processes: int = 4, num_records: int = 0) -> dict[str, Any]:
    """The official arguments of a recipe.

    Raises:
        ValueError: a recipe that the official trainer cannot run, with every reason.
    """
    if not isinstance(recipe, CoconutRecipe):
        raise ValueError(f"{type(recipe).__name__} is no recipe of Coconut")
    if told := _unlike(recipe, processes):
        raise ValueError(f"the official trainer cannot run this recipe: {'; '.join(told)}")
    train, pattern, stages = recipe.train, recipe.curriculum.pattern, recipe.curriculum.stages
    records = num_records or len(recipe.data.split("train"))
    each = -(-records // train.batch_rows)
    cot = isinstance(pattern, Cot)
    mode = "cot" if cot else "coconut"
    if recipe.curriculum.layout.thought == "nothing" and not cot:
        mode = "no_thoughts"
    length = max(stages.lengths, default=1)  # the first stage may have begun before
    resume = 0 if cot else stages.first * length
    if stages.lengths:
        resume += length - stages.lengths[0]
    base: Any = recipe.base
    found = {
        **DEFAULTS,
        mode: True,
        "c_thought": pattern.c if isinstance(pattern, Prefix) else 0,
        "epochs_per_stage": length,
        "max_latent_stage": pattern.max_stage if isinstance(pattern, Prefix) else 0,
        "pad_latent_to_max": pattern.pad_to_max if isinstance(pattern, Prefix) else True,
        "uniform_prob": stages.uniform_prob,
        "model_id": base.path,
        "load_model_path": recipe.start or "None",
        "seed": train.seed,
        "resume": resume,
        "bf16": train.precision == "bfloat16",
        "train_path": recipe.data.train,  # pyright: ignore[reportAttributeAccessIssue]
        "val_path": recipe.data.valid,  # pyright: ignore[reportAttributeAccessIssue]
        "reset_optimizer": stages.reset == "epoch",
        "batch_size_training": train.batch_rows // (processes * train.accumulation),
        "gradient_accumulation_steps": train.accumulation,
        "num_epochs": resume + -(-train.steps // each),
        "lr": train.optim.lr,
        "weight_decay": train.optim.weight_decay,
    }
    return {"project": "coconut", "save_path": "runs", "name": recipe.name, "only_eval": False,
            "save_only_improve": False, "debug": False, **found}  # fmt: skip


def _unlike(recipe: CoconutRecipe, processes: int) -> list[str]:
    """What the official trainer has no argument for."""
    train, pattern, stages = recipe.train, recipe.curriculum.pattern, recipe.curriculum.stages
    layout = recipe.curriculum.layout
    base = recipe.base
    reasons = {
        "its base is not pretrained": not isinstance(base, PretrainedBase),
        "its base wears a LoRA": isinstance(base, PretrainedBase) and base.lora_rank > 0,
        f"pattern {type(pattern).__name__}": not isinstance(pattern, Prefix | Cot),
        "one thought at a time": isinstance(pattern, Prefix) and pattern.one_at_a_time,
        f"boundaries {layout.boundaries}": layout.boundaries != "given",
        "pause as thought": layout.thought == "pause",
        "stages of different lengths": len(set(stages.lengths[1:])) > 1,
        "a first stage that is longer": len(stages.lengths) > 1
        and stages.lengths[0] > stages.lengths[1],
        "a reset at each stage": stages.reset == "stage",
        f"optimizer {train.optim.name}": train.optim.name != "adamw",
        f"schedule {train.schedule}": train.schedule != "constant" or train.warmup > 0,
        f"clip {train.clip}": train.clip > 0,
        f"thinking {recipe.thinking}": recipe.thinking != CoconutSettings(),
        f"ema_decay {train.ema_decay}": train.ema_decay > 0,
        f"batch_rows {train.batch_rows} of {processes} processes": train.batch_rows
        % (processes * train.accumulation)
        > 0,
        "its data is generated": not hasattr(recipe.data, "train"),
    }
    return [name for name, holds in reasons.items() if holds]
