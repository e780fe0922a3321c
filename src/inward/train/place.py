"""The folder of a run while it is written into: locked, and every failure told in one line that
says what is safe."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from inward.common.files import FolderLock, as_os_error
from inward.train.process import agreement
from inward.train.state import OtherProcessError


class RunFolder:
    """`out`, with its lock on the main process; elsewhere the lock is None."""

    def __init__(self, out: Path, lock: FolderLock | None) -> None:
        self.out = out
        self.lock = lock

    def gone(self) -> bool:
        """Somebody deleted or moved the folder."""
        return self.lock is not None and not self.lock.held()

    def told_gone(self, step: int) -> FileNotFoundError:
        """The error for that."""
        return FileNotFoundError(
            f"{self.out} was deleted or moved while the run wrote into it; stopped after step "
            f"{step}, begin again or go on where the folder is now"
        )

    @contextmanager
    def writing(self, step: int, saved: int | None) -> Iterator[None]:
        """Around whatever is written after `step`, with the last state at `saved`.

        Raises:
            FileNotFoundError: the folder is gone; nothing makes it anew.
            OSError: the system refused; what is safe is said.
        """
        if self.gone():
            raise self.told_gone(step)
        try:
            yield
        except (OSError, SafetensorError) as error:
            if self.gone():
                raise self.told_gone(step) from error
            if isinstance(error, SafetensorError):
                error = as_os_error(error, self.out)
            raise OSError(self._not_written(error, step, saved)) from error

    def _not_written(self, error: OSError, step: int, saved: int | None) -> str:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else f"{error.strerror or error}"
        if isinstance(error, OtherProcessError):
            why = f"{why} for process {error.process} (of {error.of}, counted from 0)"
        safe = "no state was saved yet" if saved is None else f"the state of step {saved} is safe"
        return (
            f"cannot write into {self.out}: {why}. Stopped after step {step}, {safe}; make room, "
            "then the same command goes on from there"
        )


@contextmanager
def locked(accelerator: Accelerator, out: Path) -> Iterator[RunFolder]:
    """The run's folder for this run alone.

    Raises:
        BlockingIOError: another process (or thread) trains into it; on all processes of this run.
    """
    lock, fault = None, ""
    if accelerator.is_main_process:
        try:
            lock = FolderLock(out)
        except BlockingIOError as error:
            fault = str(error)
    if fault := agreement(accelerator)(fault):
        raise BlockingIOError(fault)
    try:
        yield RunFolder(out, lock)
    finally:
        if lock is not None:
            lock.release()
