"""Reading weights strictly: what is missing, unexpected, of wrong shape or not a number is
named."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from inward.common.files import read_object

_LARGEST_HEADER = 100_000_000
"""as in safetensors"""

_PER_BYTE, _ANYWAY, _SPARE_COUNTS = 8, 1 << 26, 256
"""Values of a model for each byte of its files, at most (weights of one bit), and those that may be
no weights (tables of positions); layers or experts beyond the number of tensors (stacked ones)"""

# What safetensors, and torch's reader of pickles without code, raise on other or damaged files.
_DAMAGE = (
    SafetensorError, UnpicklingError, AssertionError, AttributeError, EOFError, IndexError,
    KeyError, MemoryError, OSError, OverflowError, RuntimeError, TypeError, ValueError,
    struct.error,
)  # fmt: skip


def complain(source: object, missing: list[str], unexpected: list[str], wrong: list[str]) -> None:
    """Raise one ValueError that lists every name that does not fit, if there is any."""
    parts = [("missing", missing), ("unexpected", unexpected), ("of wrong shape", wrong)]
    told = [f"{title}: {', '.join(sorted(names))}" for title, names in parts if names]
    if told:
        raise ValueError(f"{source} does not fit the model; " + "; ".join(told))


def check_fit(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: object
) -> None:
    """Compare names and shapes, and look for values that are not numbers.

    Raises:
        ValueError: names are missing, unexpected or of wrong shape; or a tensor holds NaN or
            infinity.
    """
    wrong = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected.keys() & tensors.keys()
        if tensors[name].shape != expected[name].shape
    ]
    complain(
        source,
        list(expected.keys() - tensors.keys()),
        list(tensors.keys() - expected.keys()),
        wrong,
    )
    check_finite(tensors, source)


def check_finite(tensors: Mapping[str, Tensor], source: object) -> None:
    """Raise a ValueError that names every tensor with NaN or infinity in it."""
    bad = [
        name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()
    ]
    if bad:
        raise ValueError(
            f"{source} holds NaN or infinity in {', '.join(sorted(bad))}; the checkpoint is damaged"
        )


def check_files(folder: Path) -> None:
    """See that the files of a model's folder name each other and nothing outside it.

    Raises:
        ValueError: an index, or the configuration, names a file elsewhere or one that is not there;
            a header that is longer than its file.
    """
    for index in sorted(folder.glob("*.safetensors.index.json")):
        names = read_object(index, "weight_map")["weight_map"]
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise ValueError(f"{index}: weight_map must give a file's name for every tensor")
        for name in sorted(set(names.values())):
            _check_inside(index, name)
    if (folder / "config.json").is_file():
        named = read_object(folder / "config.json").get("transformers_weights")
        if named is not None:
            _check_inside(folder / "config.json", str(named))


def _check_inside(source: Path, name: str) -> None:
    if Path(name).is_absolute() or ".." in Path(name).parts or not name:
        raise ValueError(f"{source} names {name!r}, which lies outside its folder; it is not read")
    if not (source.parent / name).is_file():
        raise ValueError(f"{source} names {name!r}, which is not there; copy the folder again")


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file, from its header alone; its length is checked
    before it is read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, _LARGEST_HEADER):
            raise ValueError(f"{path} ({size} bytes) says that its header has {length} bytes")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: the header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the header holds no tensors (names with values)")
    return [name for name in header if name != "__metadata__"]


def check_size(build: Callable[[], nn.Module], folder: Path) -> None:
    """Before memory is taken: refuse a configuration that asks for far more than the files hold.

    build: makes the model; it is called where tensors have shapes and no memory.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return  # the loader says what it looked for
    num_bytes = sum(file.stat().st_size for file in files)
    _check_counts(folder, sum(len(tensor_names(file)) for file in files))
    with torch.device("meta"):
        model = build()
    tensors = {id(t): t.numel() for t in [*model.parameters(), *model.buffers()]}
    asked, most = sum(tensors.values()), _PER_BYTE * num_bytes + _ANYWAY
    if asked > most:
        raise ValueError(
            f"{folder / 'config.json'} asks for {asked} values, but the weights beside it have "
            f"{num_bytes} bytes; the two do not belong together"
        )


def _check_counts(folder: Path, num_tensors: int) -> None:
    """Layers and experts are Python objects that cost time and memory even without weights."""
    waiting: list[Any] = [read_object(folder / "config.json")]
    while waiting:
        value = waiting.pop()
        waiting += value.values() if isinstance(value, dict) else value
        waiting = [inner for inner in waiting if isinstance(inner, dict | list)]
        for name, number in value.items() if isinstance(value, dict) else ():
            counts = isinstance(number, int) and ("layer" in name or "expert" in name)
            if counts and number > num_tensors + _SPARE_COUNTS:
                raise ValueError(
                    f"{folder / 'config.json'}: {name} is {number}, but the weights beside it are "
                    f"{num_tensors} tensors; the two do not belong together"
                )


def strict(from_pretrained: Callable[..., Any], source: object, *args: Any, **kwargs: Any) -> Any:
    """Run transformers' `from_pretrained` and turn what it only warns about into one ValueError."""
    wanted = kwargs.pop("output_loading_info", False)
    nested = kwargs.pop("ignore_mismatched_sizes", False)  # of a strict call around this one
    if Path(str(source)).is_dir() and not nested:
        check_files(Path(str(source)))
        check_size(lambda: _empty(from_pretrained, source, kwargs), Path(str(source)))
    try:
        model, info = from_pretrained(
            source, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    except SafetensorError as error:
        raise ValueError(
            f"{source}: the weights cannot be read ({error}); the file is cut or damaged"
        ) from error
    wrong = [
        f"{name} {tuple(found)} instead of {tuple(want)}"
        for name, found, want in info["mismatched_keys"]
    ]
    complain(source, list(info["missing_keys"]), list(info["unexpected_keys"]), wrong)
    check_finite(model.state_dict(), source)
    return (model, info) if wanted else model


def _empty(from_pretrained: Callable[..., Any], source: object, kwargs: dict[str, Any]) -> Any:
    """The model that `from_pretrained` (a class method) would make, by its configuration alone."""
    from transformers import AutoConfig

    kind: Any = getattr(from_pretrained, "__self__")  # noqa: B009 (functions have none)
    config = kwargs.get("config")
    automatic = hasattr(kind, "from_config")
    if config is None:
        maker: Any = AutoConfig if automatic else kind.config_class
        config = maker.from_pretrained(source, trust_remote_code=False)
    return kind.from_config(config) if automatic else kind(config)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a torch file read with weights_only=True (no code of
    the file runs).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is neither, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"{path} holds no names with tensors; give the state dict itself")
    if not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ValueError(f"{path} holds no names with tensors; give the state dict itself")
    return dict(found)
