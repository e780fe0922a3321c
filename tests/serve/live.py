"""A real server on a free port of this machine, for tests: uvicorn in a thread of its own."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
import openai
import torch

from inward.common.thinking import Event
from inward.data.thoughts.tokenizers import byte_tokenizer
from inward.serve.app import Server, create_app
from inward.serve.limits import Limits
from inward.serve.server import Address, GracefulServer, Settings, configured
from inward.thinker import Thinker
from tests.methods.tidar.toys import llama

CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def chatty(**more: Any) -> Thinker:
    """A small model with random weights that speaks bytes and reads conversations."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    return Thinker.of(llama(vocab_size=257, **more).eval(), name="chatty", tokenizer=tokenizer)


@dataclass
class Live:
    """Where it is, and what is behind it."""

    url: str
    state: Server
    uvicorn: GracefulServer
    key: str = "none"

    def client(self, **more: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, **more)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0)

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60, **more)

    def open_requests(self) -> int:
        return sum(len(served.scheduler.open) for served in self.state.models.values())

    def wait_until_idle(self, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while self.open_requests() and time.monotonic() < end:
            time.sleep(0.01)
        assert self.open_requests() == 0


@contextmanager
def live(
    thinkers: Mapping[str, Thinker],
    *,
    limits: Limits | None = None,
    keys: tuple[str, ...] = (),
    grace: float = 5.0,
    **more: Any,
) -> Iterator[Live]:
    limits = limits or Limits()
    place = Address(port=0, keys=keys)
    settings = Settings(tuple(thinkers), limits, grace=grace, log_level="error")
    bound = place.bind()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # a reader that is slow shows soon
    app = create_app(thinkers, limits=limits, **more)
    server = GracefulServer(configured(app, place, settings), app.state.server, grace)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        url = "http://{}:{}".format(*bound.getsockname()[:2])
        yield Live(url, app.state.server, server, keys[0] if keys else "none")
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        bound.close()
        assert not thread.is_alive()


def data_of(text: str) -> list[str]:
    """The data of server-sent events."""
    return [line[6:] for line in text.split("\n") if line.startswith("data: ")]


def joined(events: list[Event]) -> str:
    """What was said."""
    return "".join(event.text for event in events if event.kind == "word")
