"""Replies that come piece by piece, and work that ends when its client goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

log = logging.getLogger("inward.serve")

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}
PULSE = b": thinking\n\n"
"""A comment that clients skip, so that nobody on the way thinks the connection dead."""


class EventStream(Response):
    """Server-sent events. It ends with its client, with one that does not read for `stall_seconds`,
    or with its chunks, and closes these in each case.

    close: called then.
    pulse_seconds: of silence after which a comment is sent.
    """

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        close: Callable[[], None],
        *,
        stall_seconds: float,
        pulse_seconds: float = 15.0,
    ):
        super().__init__(headers=HEADERS)
        self.chunks, self.close = chunks, close
        self.stall_seconds, self.pulse_seconds = stall_seconds, pulse_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        raw = [(k, v) for k, v in self.raw_headers if k != b"content-length"]
        pump = asyncio.ensure_future(self._pump(raw, send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
        except TimeoutError:
            log.warning("a reader left its stream unread for %s s; ended", self.stall_seconds)
        finally:
            for task in (pump, gone):
                task.cancel()
            await asyncio.gather(pump, gone, return_exceptions=True)
            self.close()
            await self.chunks.aclose()  # pyright: ignore[reportAttributeAccessIssue]

    async def _pump(self, headers: list[tuple[bytes, bytes]], send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        waiting: asyncio.Future[bytes] | None = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(anext(self.chunks))
                done, _ = await asyncio.wait({waiting}, timeout=self.pulse_seconds)
                if not done:
                    await self._send(send, PULSE)
                    continue
                try:
                    chunk = waiting.result()
                except StopAsyncIteration:
                    break
                waiting = None
                await self._send(send, chunk)
        finally:
            if waiting is not None and not waiting.done():
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, chunk: bytes) -> None:
        message = {"type": "http.response.body", "body": chunk, "more_body": True}
        # not wait_for: before Python 3.12 it may swallow a cancellation
        async with asyncio.timeout(self.stall_seconds):
            await send(message)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """What the work comes to; it is cancelled if the client goes (None then: nobody will see)."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
