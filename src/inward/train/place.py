"""The folder of a run while it is written into: locked, and every failure told in one line that
says what is safe: a full disk, a folder that is gone, a process that is gone."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from inward.common.files import LOCK, FolderLock, as_os_error, lock_file
from inward.train.process import agreement
from inward.train.state import OtherProcessError

_PRESENT = ".processes"
"""Folder in a run of several processes where each holds a lock"""


class Presence:
    """Which processes of a run are there: each holds a lock, of which the system lets go when the
    process dies, however it does. Whoever leaves in order takes the file of his lock away."""

    def __init__(self, out: Path, rank: int, world_size: int) -> None:
        self.folder, self.rank, self.world_size = out / _PRESENT, rank, world_size
        self._lock = FolderLock(self._place(rank)) if world_size > 1 else None

    def _place(self, rank: int) -> Path:
        return self.folder / f"{rank:05d}"

    def gone(self, patience: float = 2.0) -> list[int]:
        """Numbers of the processes that died; looks for so many seconds until there is one."""
        end = time.monotonic() + patience
        while self._lock is not None:
            found = [n for n in range(self.world_size) if n != self.rank and self._died(n)]
            if found or time.monotonic() > end:
                return found
            time.sleep(0.05)
        return []

    def _died(self, rank: int) -> bool:
        lock = self._place(rank) / LOCK
        if not lock.exists():
            return False
        try:
            with lock.open("a") as file:
                lock_file(file)
        except (BlockingIOError, FileNotFoundError):
            return False
        return True

    def leave(self) -> None:
        """In order."""
        if self._lock is not None:
            self._lock.release()
            with suppress(OSError):
                self._place(self.rank).rmdir()
                self.folder.rmdir()  # the last one's


class RunFolder:
    """`out`, with its lock on the main process; elsewhere the lock is None."""

    def __init__(self, out: Path, lock: FolderLock | None, presence: Presence) -> None:
        self.out = out
        self.lock = lock
        self.presence = presence

    def gone(self) -> bool:
        """Somebody deleted or moved the folder."""
        return self.lock is not None and not self.lock.held()

    def told_gone(self, step: int) -> FileNotFoundError:
        """The error for that."""
        return FileNotFoundError(
            f"{self.out} was deleted or moved while the run wrote into it; stopped after step "
            f"{step}, begin again or go on where the folder is now"
        )

    def told_lost(self, step: int, saved: int | None) -> ConnectionError | None:
        """The error for processes that died, after which the others cannot go on; None if all are
        there."""
        gone = self.presence.gone()
        if not gone:
            return None
        numbers = " and ".join(map(str, gone))
        who = f"process {numbers} is" if len(gone) == 1 else f"processes {numbers} are"
        return ConnectionError(
            f"{who} gone (of {self.presence.world_size}, counted from 0): killed, or the machine "
            f"is lost. {self.out} stopped after step {step}, {_safe(saved)}; the same command goes "
            "on from there, with as many processes as there are"
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
        return (
            f"cannot write into {self.out}: {why}. Stopped after step {step}, {_safe(saved)}; make "
            "room, then the same command goes on from there"
        )


def _safe(saved: int | None) -> str:
    return "no state was saved yet" if saved is None else f"the state of step {saved} is safe"


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
    presence = Presence(out, accelerator.process_index, accelerator.num_processes)
    try:
        yield RunFolder(out, lock, presence)
    finally:
        presence.leave()
        if lock is not None:
            lock.release()
