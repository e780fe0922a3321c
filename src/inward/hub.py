"""Load, save, and translate checkpoints. Weights are safetensors; a file that does not fit says
how.

    load("maze11")                      a model that ships with the package
    load("runs/mine/model")             a folder written by save_pretrained (any method)
    load_reference("step_65104", ...)   a checkpoint of the TRM paper's own code
    save_reference(model, "back.safetensors")

Importing a method's module registers its Auto classes with transformers; `load` does that itself.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

CLASSES = {
    "inward_trm": ("inward.methods.trm.model", "TRM"),
    "huginn_raven": ("inward.methods.huginn.model", "HuginnForCausalLM"),
    "inward_coconut": ("inward.methods.coconut.model", "Coconut"),
    "inward_tidar": ("inward.methods.tidar.model", "TiDAR"),
}
"""config.json's model_type -> where the class lives"""

TIDAR = "tidar.json"
"""beside the files of the model that TiDAR wraps"""

SHIPPED = Path(__file__).parent / "checkpoints"


def shipped() -> dict[str, Path]:
    """Names and folders of the checkpoints that come with the package."""
    found = [path for name in ("config.json", TIDAR) for path in SHIPPED.glob(f"*/{name}")]
    return {path.parent.name: path.parent for path in sorted(found)}


def resolve(name_or_path: str | Path) -> Path:
    """A folder with a model: itself, or the shipped one of that name.

    Raises:
        FileNotFoundError: neither exists, or the folder holds no config.json.
    """
    path = Path(name_or_path)
    if not path.exists() and str(name_or_path) in shipped():
        return shipped()[str(name_or_path)]
    if (path / "model").is_dir() and (path / "summary.json").exists():
        return path / "model"  # a run folder
    if not any((path / name).exists() for name in ("config.json", TIDAR)):
        raise FileNotFoundError(
            f"{name_or_path} is no model folder (no config.json in it) and no shipped model; "
            f"shipped are: {', '.join(shipped()) or 'none'}"
        )
    return path


def load(name_or_path: str | Path, **kwargs: Any) -> Any:
    """Load a model of any method (TRM, HuginnForCausalLM, Coconut, TiDAR), in evaluation mode.

    Raises:
        FileNotFoundError: there is no such folder or shipped model.
        ValueError: an unknown model type, or weights that do not fit (missing, unexpected, wrong
            shape, NaN).
    """
    path = resolve(name_or_path)
    model_type = _model_type(path)
    if model_type not in CLASSES:
        raise ValueError(f"{path}: model_type is {model_type!r}, known are {sorted(CLASSES)}")
    module, name = CLASSES[model_type]
    return getattr(import_module(module), name).from_pretrained(path, **kwargs).eval()


def _model_type(path: Path) -> str | None:
    """A TiDAR model's config.json is that of the model it wraps: its own file says what it is."""
    if (path / TIDAR).exists():
        return "inward_tidar"
    return json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")


# --------------------------------------------------------------------------------------------------
# Checks


# --------------------------------------------------------------------------------------------------
# The TRM paper's own checkpoints
