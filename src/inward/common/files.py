"""Files so that nothing is lost: written under a temporary name, flushed, then renamed; checked by
length and checksum; read within bounds; a folder locked while a process writes into it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
"""length and checksum of every other file below its folder, whatever they are"""

MAX_JSON = 1 << 26
"""Bytes of a configuration, index or state: far more than any has, far less than memory"""

MAX_DATA = 1 << 31
"""Bytes of a file of data that is parsed as one JSON value"""

LOCK = "run.lock"


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
    try:
        yield hidden
        publish(hidden, target)
    except OSError:
        shutil.rmtree(hidden, ignore_errors=True)  # on a full disk its bytes are needed
        raise


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


def write_json(path: Path, content: object) -> None:
    """Write JSON to a temporary name, then rename."""
    hidden = path.with_name(f".new-{path.name}")
    try:
        hidden.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        flush(hidden)
        os.replace(hidden, path)
    except OSError:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)
        raise


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Save tensors of any layout; safetensors itself refuses strided and shared memory.

    metadata: words for the header.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file  # puzzles and traces are written without torch

    seen: set[int] = set()
    ready: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().contiguous()
        memory = plain.untyped_storage().data_ptr()
        ready[name] = plain.clone() if memory in seen and plain.numel() else plain
        seen.add(memory)
    try:
        save_file(ready, path, metadata)
    except SafetensorError as error:
        raise as_os_error(error, path) from error


def as_os_error(error: Exception, path: Path) -> OSError:
    """What the system said to the Rust of safetensors, which tells it in words only."""
    found = re.search(r"os error (\d+)", str(error))
    number = int(found.group(1)) if found else errno.EIO
    return OSError(number, os.strerror(number) if found else str(error), str(path))


def flush(path: Path) -> None:
    """Ask the disk to keep what was written, so that a rename never outlives its content."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_target(path: str | os.PathLike) -> None:
    """Before long work: see that a file (or folder) can be written at `path`; nothing is left.

    Raises:
        OSError: a part of the path is no folder, or cannot be written into.
    """
    path = Path(path)
    place = path if path.is_dir() else path.parent
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"cannot write {path}: {place} is a file; name another place")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise type(error)(
            f"cannot write {path}: {place} takes no files ({error.strerror}); name another place"
        ) from error


def check_target_file(path: str | os.PathLike) -> None:
    """The same for what must be a file; a folder of that name is refused."""
    if Path(path).is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; name a file")
    check_target(path)


def check_targets(*paths: str | os.PathLike | None) -> None:
    """`check_target_file` for each that is given."""
    for path in paths:
        if path is not None:
            check_target_file(path)


# --------------------------------------------------------------------------------------------------
# Reading


def read_text(path: str | os.PathLike) -> str:
    """A file as UTF-8 text; FileNotFoundError or ValueError names the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:  # it says where, but not in which file
        raise ValueError(f"{path} is not UTF-8 text: {error}. Write it again as UTF-8") from error


def read_json(path: str | os.PathLike, *, largest: int = MAX_DATA) -> Any:
    """Parse a JSON file of at most `largest` bytes.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is larger, or no JSON; the file is named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    size = path.stat().st_size
    if size > largest:
        raise ValueError(f"{path} has {size} bytes; at most {largest} are read as JSON")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not JSON ({size} bytes): {error}. Copy or write it again"
        ) from error


def read_object(path: str | os.PathLike, *needed: str, largest: int = MAX_JSON) -> dict[str, Any]:
    """Parse a JSON file of names with values, among them those `needed`; see `read_json`."""
    content = read_json(path, largest=largest)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected names with values")
    if missing := [name for name in needed if name not in content]:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return content


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Whatever the content of a file (or folder) makes a reader raise is an error that names it.

    Parsers beneath us raise what they like on damaged content (that of tokenizers a plain
    Exception), so all is caught here, and nothing is swallowed.

    Raises:
        OSError: the system refused. ValueError: anything else.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if str(path) in str(error):
            raise
        kinds = (FileNotFoundError, OSError, ValueError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        raise kind(f"{path}: {error}") from error
    except ImportError:
        raise  # a package is missing, the file may be good
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or holds something else ({type(error).__name__}: {error})"
        ) from error


# --------------------------------------------------------------------------------------------------
# Manifests


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, path: Path | None = None) -> None:
    """Write length and checksum of every file below `folder` into its manifest.json (or `path`)."""
    path = path or folder / MANIFEST
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != path)
    entries = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": digest(file)}
        for file in files
    }
    write_json(path, {"format": 1, "files": entries})


def manifest_fault(folder: Path, path: Path | None = None) -> str:
    """What differs from the manifest of `folder`, in words that name the file; "" if nothing does.

    Files that the manifest does not name are left alone. Lengths are compared first, for all.
    """
    path = path or folder / MANIFEST
    try:
        files = read_object(path, "files")["files"]
        wanted = {folder / name: (int(e["bytes"]), str(e["sha256"])) for name, e in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path} is damaged ({error})"
    for file, (size, _) in wanted.items():
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != size:
            return f"{file} has {file.stat().st_size} bytes, {size} were written"
    wrong = [str(file) for file, (_, checksum) in wanted.items() if digest(file) != checksum]
    return f"{wrong[0]} is not what was written (its SHA-256 differs)" if wrong else ""


# --------------------------------------------------------------------------------------------------
# Locks


class FolderLock:
    """A folder that one process at a time may write into.

    The system holds the lock, so that it goes with its process however that ends; the number in
    the file is for people. Unlike a number alone, it cannot belong to another process by now.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock; raises BlockingIOError if another process (or thread) has it."""
        self.path = folder / LOCK
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self._taken()
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def _taken(self) -> IO[str]:
        while True:
            file = self.path.open("a+", encoding="utf-8")
            try:
                lock_file(file)
            except BlockingIOError:
                file.seek(0)
                owner = file.read(32).strip() or "unknown"
                file.close()
                raise BlockingIOError(
                    f"{self.path.parent} is in use by process {owner}; wait until it ends, or name "
                    "another folder"
                ) from None
            if self._same(file):
                return file
            file.close()  # its owner removed the file between our two calls

    def _same(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        except OSError:
            return False

    def held(self) -> bool:
        """False once the folder, or the lock in it, was deleted or moved away."""
        return self._same(self._file)

    def release(self) -> None:
        """Give the folder free; safe to call twice."""
        if not self._file.closed:
            if fcntl is not None and self.held():
                self.path.unlink(missing_ok=True)
            self._file.close()


def check_free(folder: Path) -> None:
    """Before long work: see that nobody else writes into `folder` and that it can be written.

    Raises:
        BlockingIOError: another process has it.
        OSError: it cannot be written, see `check_target`.
    """
    check_target(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"cannot write into {folder}: it is a file; name a folder")
    if (folder / LOCK).exists():
        FolderLock(folder).release()


def lock_file(file: IO[str]) -> None:
    """Lock an open file until it is closed; BlockingIOError if another process (or thread) has."""
    if fcntl is None:  # without it nothing is locked, as before there were locks
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        warnings.warn(f"{file.name} cannot be locked ({error}): start no second run", stacklevel=4)
