"""Arrays on disk: only the .npy format, mapped and never unpickled; an error names the file."""

import struct
import tokenize
from pathlib import Path

import numpy as np

# What numpy's header parser and mmap raise on damaged bytes (found by flipping every byte).
_DAMAGE = (
    EOFError, KeyError, MemoryError, OSError, OverflowError, SyntaxError, TypeError, ValueError,
    struct.error, tokenize.TokenError,
)  # fmt: skip


def mapped(path: Path) -> np.ndarray:
    """Map a .npy file; FileNotFoundError or ValueError names it."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except _DAMAGE as error:
        raise ValueError(
            f"cannot read {path} ({path.stat().st_size} bytes): {error}. "
            "If it is empty, truncated or damaged, copy or build it again"
        ) from error
