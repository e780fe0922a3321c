"""Reading weights strictly: what is missing, unexpected, of wrong shape or not a number is
named."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

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


def strict(from_pretrained: Callable[..., Any], source: object, *args: Any, **kwargs: Any) -> Any:
    """Run transformers' `from_pretrained` and turn what it only warns about into one ValueError."""
    wanted = kwargs.pop("output_loading_info", False)
    kwargs.pop("ignore_mismatched_sizes", None)  # of a strict call around this one
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
