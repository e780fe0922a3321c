"""A row of results: the machine, the command, appended as a line of JSON."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inward.common.files import read_text, replacing


def machine() -> str:
    """Processor, cores, threads and versions in one line, for result rows."""
    import torch

    where = processor()
    if torch.cuda.is_available():
        where += f", {torch.cuda.get_device_name()}"
    return (
        f"{where}; {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"python {platform.python_version()}, torch {torch.__version__}"
    )


def processor() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command as one could type it again."""
    return shlex.join(["inward", *(sys.argv[1:] if arguments is None else arguments)])


def append_row(path: str | os.PathLike, row: Mapping[str, Any]) -> None:
    """Add one JSON line to a file; a kill in the middle leaves the old file."""
    path = Path(path)
    before = read_text(path) if path.exists() else ""
    if before and not before.endswith("\n"):
        before += "\n"
    with replacing(path) as partial:
        partial.write_text(before + json.dumps(row) + "\n", encoding="utf-8")
