"""Name -> folder -> model, and what a model's folder says of how it is asked.

    load("maze11")                  a model that ships with the package
    load("runs/mine")               a run's model
    load("folder")                  a folder of save_pretrained (any method), or any causal LM

One row a method: its config's model_type, its class, its door (`common.thinking.Method`). The last
row is that of models which think in none of our ways. `inward.json` beside the weights is what
`inward.open` needs and no paper's code would read: the processor, how the model was trained to be
asked, and its measured points of effort.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inward.common.bases import load_causal_lm, model_type
from inward.common.files import read_object, reading, write_json

if TYPE_CHECKING:
    from inward.common.thinking import Method


@dataclass(frozen=True)
class Entry:
    """Where a method lives: "module:name" of its class and of its door."""

    model_type: str
    model: str
    door: str


METHODS = {
    "trm": Entry("inward_trm", "inward.methods.trm.model:TRM", "inward.methods.trm.door:METHOD"),
    "huginn": Entry(
        "huginn_raven",
        "inward.methods.huginn.model:HuginnForCausalLM",
        "inward.methods.huginn.door:METHOD",
    ),
    "coconut": Entry(
        "inward_coconut",
        "inward.methods.coconut.model:Coconut",
        "inward.methods.coconut.door:METHOD",
    ),
    "tidar": Entry(
        "inward_tidar", "inward.methods.tidar.model:TiDAR", "inward.methods.tidar.door:METHOD"
    ),
    "plain": Entry("", "", "inward.methods.tidar.door:PLAIN"),
}

TIDAR = "tidar.json"
"""beside the files of the model that TiDAR wraps"""

ABOUT = "inward.json"
"""what `inward.open` needs beside weights: see `read_about`"""

_WEIGHTS = ("safetensors", "gguf", "bin", "pt", "pth")
"""endings of weights, readable or not"""

SHIPPED = Path(__file__).parent / "checkpoints"


def door(name: str) -> Method:
    """What the loops must know of a method."""
    return _found(METHODS[name].door)


def doors() -> list[Method]:
    """Of all methods."""
    return [door(name) for name in METHODS]


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def shipped() -> dict[str, Path]:
    """Names and folders of the checkpoints that come with the package."""
    found = [path for name in ("config.json", TIDAR) for path in SHIPPED.glob(f"*/{name}")]
    return {path.parent.name: path.parent for path in sorted(found)}


def resolve(name_or_path: str | Path) -> Path:
    """A folder with a model: itself, a run's, or the shipped one of that name.

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


def method_of(folder: Path) -> str:
    """The row that a model folder belongs to."""
    if (folder / TIDAR).exists():
        return "tidar"  # its config.json is that of the model it wraps
    return _method_named(model_type(folder))


def _method_named(kind: str) -> str:
    rows = [name for name, row in METHODS.items() if row.model_type == kind and kind]
    return rows[0] if rows else "plain"


def load(name_or_path: str | Path, **kwargs: Any) -> Any:
    """Load a model (TRM, HuginnForCausalLM, Coconut, TiDAR, or another causal LM), in evaluation
    mode and without a word.

    kwargs: of the class's `from_pretrained`: `base=` for adapters, dtype, ...

    Raises:
        FileNotFoundError: there is no such folder or shipped model.
        ValueError: an unknown model type, or weights that do not fit (missing, unexpected, wrong
            shape, NaN).
    """
    folder = resolve(name_or_path)
    kind = model_type(folder)
    name = "tidar" if (folder / TIDAR).exists() else _method_named(kind)
    with quiet():
        if name == "plain":
            _known_to_transformers(folder, kind)
        try:
            if name == "plain":
                return load_causal_lm(folder, **kwargs)
            with reading(folder):
                return _found(METHODS[name].model).from_pretrained(folder, **kwargs).eval()
        except (OSError, ValueError) as error:
            if any(next(folder.rglob(f"*.{ending}"), None) for ending in _WEIGHTS):
                raise
            raise FileNotFoundError(
                f"{folder} holds a configuration and no weights (*.safetensors); copy them there, "
                "or name the folder that has them"
            ) from error


def _known_to_transformers(folder: Path, kind: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if kind not in KNOWN:
        ours = sorted(row.model_type for row in METHODS.values() if row.model_type)
        raise ValueError(
            f"{folder}: model_type is {kind or None!r}, which is neither one of ours "
            f"({', '.join(ours)}) nor a causal language model of the installed transformers"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars with which transformers reports each load and save."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


# --------------------------------------------------------------------------------------------------
# What else the folder says


def read_about(folder: Path) -> dict[str, Any]:
    """Contents of inward.json, {} where there is none:

        processor   how questions become tokens and back (`inward.tasks.processors`)
        ask         how the model was trained to be asked: options, and what follows a question
        effort      measured points (`inward.evals.effort`)

    Raises:
        ValueError: the file is no JSON object, or a part of it is none.
    """
    path = folder / ABOUT
    if not path.is_file():
        return {}
    content = read_object(path)
    for name in ("processor", "ask", "effort"):
        if not isinstance(content.get(name, {}), dict):
            found = type(content[name]).__name__
            raise ValueError(f"{path}: {name} holds a {found}; expected names with values")
    return content


def write_about(folder: Path, **parts: Mapping[str, Any]) -> None:
    """Replace these parts of a folder's inward.json, and keep the others."""
    write_json(folder / ABOUT, read_about(folder) | parts)
