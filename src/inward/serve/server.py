"""The process around the application: models are opened, a port is bound, signals end it well.

On SIGTERM or SIGINT nothing new is taken, what runs goes on for `grace` seconds and is then ended
with what it has said, so that every reader gets its last line.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from inward.serve.app import Field, Server, create_app
from inward.serve.limits import Limits
from inward.serve.shield import LOCAL, Shield, is_loopback
from inward.serve.workers import in_touch, serve_many, threads_of

if TYPE_CHECKING:
    from inward.thinker import Thinker

log = logging.getLogger("inward.serve")

KEY = "INWARD_API_KEY"
"""Environment variable of the key, which a command line would show to everybody."""


@dataclass(frozen=True)
class Address:
    """Where a server listens, and who may use it.

    keys: () for none, which only a server that other machines cannot reach may have.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}, must lie in 0..65535 (0: any free one)")
        if any(len(key) < 8 or not key.isascii() or key.split() != [key] for key in self.keys):
            raise ValueError("a key is 8 ASCII characters or more, without blanks")
        if not self.keys and not is_loopback(self.host):
            raise ValueError(
                f"{self.host} can be reached from other machines, so a key is needed: --api-key, "
                f"or the environment variable {KEY}"
            )

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names under which it may be called: without a key only those of this machine."""
        return () if self.keys else (*LOCAL, self.host)

    def bind(self) -> socket.socket:
        """A socket that listens there.

        Raises:
            OSError: the port is taken, or the host is not this machine's.
        """
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((self.host, self.port))
        except OSError as error:
            bound.close()
            raise OSError(f"{self.host}:{self.port}: {error.strerror or error}") from error
        bound.set_inheritable(True)
        return bound


@dataclass(frozen=True)
class Settings:
    """All that a serving process is told beside its place.

    models: names and folders, "name=folder" where the name shall be another. grace: seconds.
    workers: processes, each with the models of its own.
    Others as in `app.create_app`.
    """

    models: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    batch_size: int | None = None
    threads: int | None = None
    thoughts_as: Field = "reasoning_content"
    reasoning: bool = True
    grace: float = 20.0
    workers: int = 1
    log_level: str = "info"
    playground: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, must be at least 1")
        if not 0 <= self.grace < float("inf"):
            raise ValueError(f"grace is {self.grace}, must be 0 or more seconds")
        named(self.models)


def named(models: Sequence[str]) -> dict[str, str]:
    """Names by which requests call models -> what to open.

    Raises:
        ValueError: none, or one name twice.
    """
    found: dict[str, str] = {}
    for given in models:
        name, equals, folder = given.partition("=")
        if not equals:
            name, folder = Path(given).name or given, given
        if not name or not folder:
            raise ValueError(f"{given!r}: write a model, or name=model")
        if name in found:
            raise ValueError(f"two models are called {name!r}; name one: other={folder}")
        found[name] = folder
    if not found:
        raise ValueError("there is no model to serve; name at least one")
    return found


def opened(models: Sequence[str]) -> dict[str, Thinker]:
    """The models, opened under their names."""
    from dataclasses import replace

    from inward.thinker import open_thinker

    return {name: replace(open_thinker(of), name=name) for name, of in named(models).items()}


def application(
    settings: Settings, *, worker: int | None = None, offices: Path | None = None
) -> FastAPI:
    """The application with its models, behind nothing yet; of a worker as `create_app` says."""
    several = settings.workers > 1
    return create_app(
        opened(settings.models),
        limits=settings.limits,
        batch_size=settings.batch_size,
        threads=threads_of(settings, settings.workers) if several else settings.threads,
        thoughts_as=settings.thoughts_as,
        reasoning=settings.reasoning,
        worker=worker,
        offices=offices,
        playground=settings.playground,
    )


class GracefulServer(uvicorn.Server):
    """uvicorn's server, which lets answers end before it closes."""

    def __init__(self, config: uvicorn.Config, state: Server, grace: float):
        super().__init__(config)
        self.state, self.grace = state, grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new; after the grace end what still runs; then close."""
        self.state.draining = True
        for served in self.state.models.values():
            served.scheduler.finish()
        ending = asyncio.ensure_future(self._end())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end(self) -> None:
        await asyncio.sleep(self.grace)
        for served in self.state.models.values():
            served.scheduler.finish(ended_by="stop")


def configured(app: FastAPI, place: Address, settings: Settings) -> uvicorn.Config:
    """How uvicorn runs the application behind its shield."""
    shield = Shield(app, place.keys, place.hosts, settings.limits.max_body)
    return uvicorn.Config(
        shield,
        log_level=settings.log_level,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(settings.grace) + 10,
        h11_max_incomplete_event_size=1 << 16,
    )


def serve(place: Address, settings: Settings) -> None:
    """Serve until a signal comes.

    Raises:
        FileNotFoundError, ValueError: a model that there is not, or that cannot be served.
        OSError: the port is taken.
    """
    bound = place.bind()  # before models are opened, which may take long
    host, port = bound.getsockname()[:2]
    at = f"[{host}]" if ":" in host else host
    names = ", ".join(named(settings.models))

    def greet() -> None:
        print(f"inward serves {names} at http://{at}:{port}", flush=True)

    try:
        if settings.workers > 1:
            serve_many(run_worker, place, settings, bound, greet)
            return
        app = application(settings)
        server = GracefulServer(configured(app, place, settings), app.state.server, settings.grace)
        greet()
        server.run(sockets=[bound])
    finally:
        bound.close()


def run_worker(
    number: int,
    folder: Path,
    bound: socket.socket,
    place: Address,
    settings: Settings,
    parent: Connection,
) -> None:
    """The process of one of several workers, see `workers.Target`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until uvicorn minds it; the parent ends all
    try:
        app = application(settings, worker=number, offices=folder)
    except (OSError, ValueError) as error:
        parent.send_bytes(f"{error}".encode())
        return
    server = GracefulServer(configured(app, place, settings), app.state.server, settings.grace)
    in_touch(server, parent)
    server.run(sockets=[bound])


def key_of_environment() -> tuple[str, ...]:
    """The key in the environment, if there is one."""
    given = os.environ.get(KEY, "")
    return (given,) if given else ()
