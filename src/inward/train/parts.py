"""Parts of tensors in safetensors files: written by the processes that hold them, found by their
rows by whoever wants some.

The header says where a part begins, as torch.distributed.checkpoint says it; the files are what its
HuggingFaceStorageReader reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from inward.train.shards import Held

_PLACES, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"
"""Where the header says which part of a tensor a file holds, in DCP's words"""
_SLICE_BYTES = 1 << 26
"""Tensors larger than this are read in slices: a table of identifiers has gigabytes."""


@contextmanager
def opened(path: Path, remedy: str = "delete its folder") -> Iterator[Any]:
    """The file, open; a ValueError that names it if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {path} ({error}); {remedy}") from error


@dataclass(frozen=True)
class FilePart:
    """Rows of a tensor in a file: those from `first` on."""

    path: Path
    first: int
    shape: tuple[int, ...]


def parts_of(path: Path, remedy: str = "delete its folder") -> dict[str, FilePart]:
    """Name -> what a file holds of each tensor."""
    with opened(path, remedy) as file:
        places = json.loads((file.metadata() or {}).get(_PLACES, "{}"))
        found = {}
        for name in file.keys():  # noqa: SIM118 (no mapping)
            first = places.get(name, {_OFFSETS: [0]})[_OFFSETS]
            shape = tuple(file.get_slice(name).get_shape())
            found[name] = FilePart(path, first[0] if first else 0, shape)
        return found


def header(parts: Mapping[str, Held]) -> dict[str, str]:
    """Words for the header of a file that holds these parts."""
    places = {n: {_OFFSETS: [p.first, *[0] * (p.tensor.ndim - 1)]} for n, p in parts.items()}
    return {_PLACES: json.dumps(places, sort_keys=True)}


def whole_shape(parts: list[FilePart], folder: Path, name: str) -> tuple[int, ...]:
    """Of the tensor whose parts these are."""
    if len(parts) == 1 and not parts[0].shape:
        return ()
    rows = sum(part.shape[0] for part in parts)
    if rows != max(part.first + part.shape[0] for part in parts):
        raise ValueError(f"{folder} does not hold all rows of {name}; copy all of its files")
    return (rows, *parts[0].shape[1:])


def beginning(path: Path, prefix: str, remedy: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that beginning."""
    with opened(path, remedy) as file:
        names = [n for n in file.keys() if n.startswith(prefix)]  # noqa: SIM118 (no mapping)
        # Cloned, because kernels may add in another order on memory that torch did not align.
        return {n.removeprefix(prefix): file.get_tensor(n).clone() for n in names}


def number_of(parts: list[FilePart], name: str) -> Tensor:
    """A count of an optimizer's; those stay on the CPU."""
    with opened(parts[0].path) as file:
        return file.get_tensor(name).reshape(()).clone()


def beside(parts: list[FilePart], name: str, like: Held) -> Tensor:
    """A new tensor for optimizer state: on the parameter's device, as many rows."""
    with opened(parts[0].path) as file:
        dtype = file.get_slice(name)[:0].dtype
    into = torch.empty_like(like.tensor, dtype=dtype)
    fill(parts, name, like.of(into))
    return into


def fill(parts: list[FilePart], name: str, own: Held) -> None:
    """Copy this process's rows out of the files that have them."""
    if own.tensor.ndim == 0 or not own.tensor.numel():
        if own.tensor.numel():
            copy_rows(parts[0].path, name, own.tensor)
        return
    end = own.first + own.tensor.shape[0]
    for part in parts:
        first, last = max(own.first, part.first), min(end, part.first + part.shape[0])
        if first < last:
            into = own.tensor[first - own.first : last - own.first]
            copy_rows(part.path, name, into, first - part.first)


def copy_rows(path: Path, name: str, into: Tensor, skip: int = 0) -> None:
    """Fill `into` from the file's rows after the first `skip`. The file is opened anew for every
    tensor and every large slice.

    What was read of a mapped file counts as memory of the process until the file is closed; a
    table of identifiers would be there twice.
    """
    if into.ndim == 0:
        with opened(path) as file:
            into.copy_(file.get_tensor(name).reshape(()))
        return
    size = into.numel() * into.element_size()
    rows = max(1, min(into.shape[0], _SLICE_BYTES * into.shape[0] // max(1, size)))
    for first in range(0, into.shape[0], rows):
        last = min(first + rows, into.shape[0])
        with opened(path) as file:
            into[first:last].copy_(file.get_slice(name)[skip + first : skip + last])
