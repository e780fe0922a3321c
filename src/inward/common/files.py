"""Writing files so that nothing is lost: a temporary name, flushed, then renamed; and reading them
so that an error names the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` if the block succeeds.

    Missing parent folders are made. After an error, or a kill, `path` is what it was before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a hidden folder to write into; it takes the place of `target` if nothing fails."""
    hidden = target.with_name(f".new-{target.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    yield hidden
    publish(hidden, target)


def publish(hidden: Path, target: Path) -> None:
    """Flush a finished folder to the disk and give it its name; an older one there goes away."""
    for path in [*hidden.rglob("*"), hidden]:
        flush(path)
    remove_folder(target)
    os.replace(hidden, target)
    flush(target.parent)


def remove_folder(folder: Path) -> None:
    """Delete a folder so that a kill on the way leaves no half of it under its name."""
    hidden = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    if folder.exists():
        os.replace(folder, hidden)
        shutil.rmtree(hidden)


def read_text(path: str | os.PathLike) -> str:
    """A file as UTF-8 text; FileNotFoundError or ValueError names the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:  # it says where, but not in which file
        raise ValueError(f"{path} is not UTF-8 text: {error}. Write it again as UTF-8") from error


def read_json(path: str | os.PathLike) -> Any:
    """Parse a JSON file; FileNotFoundError or ValueError names the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not JSON ({path.stat().st_size} bytes): {error}. Copy or write it again"
        ) from error


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """Parse a JSON file that holds an object; errors as `read_json`."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected names with values")
    return content


def write_json(path: Path, content: object) -> None:
    """Write JSON to a temporary name, then rename."""
    hidden = path.with_name(f".new-{path.name}")
    hidden.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    flush(hidden)
    os.replace(hidden, path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Save tensors of any layout; safetensors itself refuses strided and shared memory."""
    from safetensors.torch import save_file  # puzzles and traces are written without torch

    seen: set[int] = set()
    ready: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().contiguous()
        memory = plain.untyped_storage().data_ptr()
        ready[name] = plain.clone() if memory in seen and plain.numel() else plain
        seen.add(memory)
    save_file(ready, path)


def flush(path: Path) -> None:
    """Ask the disk to keep what was written, so that a rename never outlives its content."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
