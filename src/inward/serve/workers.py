"""Several processes that serve the same models at one port.

A parent binds the port and starts the workers, which share it; whoever is free takes the next
connection. A worker that dies is started again under its number; one that never comes up stops
all. Requests belong to the worker that took them, whose number their ids name:

    chatcmpl-w1-2f...      of worker 1

Each worker has an office, a socket in a folder that only this user can enter: what concerns a
request of another worker is handed on there. Numbers for prometheus lie in files of the same folder
(`prometheus_client.multiprocess`), so that any worker can tell those of all, the dead included.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, Listener, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inward.serve.errors import ApiError

if TYPE_CHECKING:
    from inward.serve.server import Address, Settings

log = logging.getLogger("inward.serve")

METRICS = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable by which prometheus_client keeps its numbers in files."""

_ID = re.compile(r"[a-z]+-w(\d+)-[0-9a-f]+")
_PATIENCE = 10.0
"""Seconds that a worker waits for another's answer."""


def worker_of(id: str) -> int | None:
    """The number of the worker that an id names; None: it names none."""
    found = _ID.fullmatch(id)
    return None if found is None else int(found[1])


# --------------------------------------------------------------------------------------------------
# Between workers


class Office:
    """Where a worker hears of requests of its own that another worker was told about.

    Args:
        folder: of all offices, which only this user can enter. number: of the worker.
        control: (id, action) -> whether it was done; called on the loop, may raise ApiError.
    """

    def __init__(self, folder: Path, number: int, control: Callable[[str, str], bool]):
        self.folder, self.number, self.control = folder, number, control
        self._listener: Listener | None = None

    def open(self) -> None:
        """Listen from now on; to be called on the loop."""
        place = self._place(self.number)
        place.unlink(missing_ok=True)  # of one that was killed
        key = multiprocessing.current_process().authkey
        self._listener = Listener(str(place), "AF_UNIX", authkey=key)
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=(self._listener, loop), daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        if self._listener is not None:
            with suppress(FileNotFoundError):  # another has taken its place
                self._listener.close()

    async def tell(self, number: int, id: str, action: str) -> bool:
        """Hand on to worker `number`; what its `control` says.

        Raises:
            ApiError: as there; 404 if nobody answers: what it had in work is lost with it.
        """
        try:
            told = await asyncio.to_thread(self._tell, number, {"id": id, "action": action})
        except (OSError, EOFError, multiprocessing.AuthenticationError) as error:
            raise ApiError(
                404, f"no answer {id!r} is under way: its worker is gone", param="id",
                code="not_found",
            ) from error  # fmt: skip
        if "status" in told:
            raise ApiError(told.pop("status"), told.pop("message"), **told)
        return bool(told["done"])

    def _place(self, number: int) -> Path:
        return self.folder / f"w{number}"

    def _tell(self, number: int, what: dict[str, str]) -> dict[str, Any]:
        key = multiprocessing.current_process().authkey
        with Client(str(self._place(number)), "AF_UNIX", authkey=key) as other:
            other.send_bytes(json.dumps(what).encode())
            if not other.poll(_PATIENCE):
                raise EOFError
            return json.loads(other.recv_bytes())

    def _listen(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            try:
                other = listener.accept()
            except (EOFError, multiprocessing.AuthenticationError):
                continue
            except OSError:  # closed
                return
            threading.Thread(target=self._answer, args=(other, loop), daemon=True).start()

    def _answer(self, other: Connection, loop: asyncio.AbstractEventLoop) -> None:
        with other, suppress(OSError, EOFError):
            if not other.poll(_PATIENCE):
                return
            what = json.loads(other.recv_bytes())
            asked = asyncio.run_coroutine_threadsafe(self._control(what), loop)
            other.send_bytes(json.dumps(asked.result(_PATIENCE)).encode())

    async def _control(self, what: dict[str, str]) -> dict[str, Any]:
        try:
            return {"done": self.control(what["id"], what["action"])}
        except ApiError as error:
            told = {"status": error.status, "message": error.message}
            return told | {"param": error.param, "code": error.code}


# --------------------------------------------------------------------------------------------------
# A worker


def threads_of(settings: Settings, num: int) -> int:
    """Threads of torch of each model of a worker: as told, else the cores, shared out."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return settings.threads or max(1, (cores or 1) // num)


Target = Callable[[int, Path, socket.socket, "Address", "Settings", Connection], None]
"""(number, folder of offices, bound socket, place, settings, to the parent): a worker's process"""


def in_touch(server: Any, parent: Connection) -> None:
    """Tell the parent when the server has started, and stop when the parent is gone."""
    threading.Thread(target=_mind_the_parent, daemon=True).start()
    threading.Thread(target=_tell_when_ready, args=(server, parent), daemon=True).start()


def _tell_when_ready(server: Any, parent: Connection) -> None:
    pause = threading.Event()
    while not server.started:
        pause.wait(0.02)
    with suppress(OSError):
        parent.send_bytes(b"ready")


def _mind_the_parent() -> None:
    """A worker whose parent was killed stops, as if it had been told so."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


# --------------------------------------------------------------------------------------------------
# The parent


@dataclass(eq=False)
class Worker:
    """A process and what it has told."""

    number: int
    process: SpawnProcess
    news: Connection
    ready: bool = False


@dataclass(eq=False)
class Workers:
    """Starts workers, and starts again what dies. target: what each of them runs, which tells the
    parent "ready", or why it will never be."""

    target: Target
    place: Address
    settings: Settings
    num: int
    bound: socket.socket
    folder: Path
    on_ready: Callable[[], None]
    stopping: bool = False
    all: list[Worker] = field(default_factory=list)

    def run(self) -> None:
        """Until a signal comes.

        Raises:
            ValueError: a worker could not begin.
        """
        told = False
        try:
            with _signals(self._stop):
                self.all = [self._started(number) for number in range(self.num)]
                while not self.stopping:
                    wait([w.process.sentinel for w in self.all] + self._news(), timeout=0.5)
                    for worker in list(self.all):
                        self._look_after(worker)
                    if not told and all(worker.ready for worker in self.all):
                        told = True
                        self.on_ready()
        finally:
            self._end()

    def _news(self) -> list[Connection]:
        return [worker.news for worker in self.all if not worker.ready]

    def _stop(self, *_: Any) -> None:
        self.stopping = True

    def _started(self, number: int) -> Worker:
        spawn = multiprocessing.get_context("spawn")
        news, child = spawn.Pipe(duplex=False)
        process = spawn.Process(
            target=self.target,
            name=f"inward worker {number}",
            args=(number, self.folder, self.bound, self.place, self.settings, child),
        )
        process.start()
        child.close()
        return Worker(number, process, news)

    def _look_after(self, worker: Worker) -> None:
        if not worker.ready and worker.news.poll():
            with suppress(EOFError):
                told = worker.news.recv_bytes().decode()
                if told != "ready":
                    raise ValueError(told)
                worker.ready = True
        if worker.process.is_alive() or self.stopping:
            return
        self._bury(worker)
        code = worker.process.exitcode
        if not worker.ready:
            raise ValueError(f"worker {worker.number} ended with code {code} before it could serve")
        log.warning("worker %s ended with code %s; it is started again", worker.number, code)
        self.all[self.all.index(worker)] = self._started(worker.number)

    def _bury(self, worker: Worker) -> None:
        """Its gauges, requests in work, go with it; its counters stay."""
        from prometheus_client.multiprocess import mark_process_dead

        worker.process.join()
        worker.news.close()
        mark_process_dead(worker.process.pid, str(self.folder / "metrics"))

    def _end(self) -> None:
        """All stop, each with its grace."""
        for worker in self.all:
            if worker.process.is_alive():
                worker.process.terminate()
        for worker in self.all:
            worker.process.join(self.settings.grace + 20)
            if worker.process.is_alive():
                log.warning("worker %s does not end; killed", worker.number)
                worker.process.kill()
                worker.process.join()


@contextmanager
def _signals(handler: Callable[..., None]) -> Iterator[None]:
    before = {name: signal.signal(name, handler) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for name, old in before.items():
            signal.signal(name, old)


def serve_many(
    target: Target,
    place: Address,
    settings: Settings,
    bound: socket.socket,
    on_ready: Callable[[], None],
) -> None:
    """Serve with `settings.workers` processes at a bound socket until a signal comes.

    Raises:
        ValueError: there are no sockets of files here; a worker could not begin.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise ValueError(
            f"workers is {settings.workers}; without sockets of files (AF_UNIX) there can be 1"
        )
    folder = Path(tempfile.mkdtemp(prefix="inward-"))  # nobody else may enter
    given = os.environ.get(METRICS)
    try:
        (folder / "metrics").mkdir()
        os.environ[METRICS] = str(folder / "metrics")  # the workers' prometheus_client reads it
        Workers(target, place, settings, settings.workers, bound, folder, on_ready).run()
    finally:
        os.environ.pop(METRICS, None)
        if given is not None:
            os.environ[METRICS] = given
        shutil.rmtree(folder, ignore_errors=True)
