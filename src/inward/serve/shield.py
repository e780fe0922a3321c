"""What stands before every route: key, host, origin, size and kind of the body, headers.

A browser must not be able to use a server on the same machine for a page from elsewhere: requests
of another origin are refused, so are hosts by which nobody should know a server without a key (a
name that an attacker points to 127.0.0.1), and so are bodies that a plain form could send.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inward.serve.errors import ApiError

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Of all replies that do not say otherwise."""

OPEN = ("/", "/health")
"""Paths that need no key: the playground is a page that brings the key with what it asks."""

LOCAL = ("localhost", "127.0.0.1", "::1")
"""Names of this machine."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server there."""
    return host in LOCAL or host.startswith("127.")


@dataclass(eq=False)
class Shield:
    """An ASGI application around another.

    keys: one of them is needed; none: everybody is let in. hosts: names under which the server may
    be called; (): any. max_body: bytes. body_seconds: within which a body must have come.
    """

    app: ASGIApp
    keys: Sequence[str] = ()
    hosts: Sequence[str] = ()
    max_body: int = 1 << 20
    body_seconds: float = 30.0
    _digests: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._digests = [_digest(key.encode()) for key in self.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                have = {name.lower() for name, _ in message.get("headers", ())}
                more = [
                    (name.lower().encode(), value.encode())
                    for name, value in HEADERS.items()
                    if name.lower().encode() not in have
                ]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        try:
            headers = _headers(scope)
            self._check(scope, headers)
            body = await self._body(headers, receive) if scope["method"] == "POST" else None
        except ApiError as error:
            await error.reply()(scope, receive, headed)
            return
        await self.app(scope, receive if body is None else _replayed(body, receive), headed)

    def _check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        host = headers.get("host", "")
        name = (urlsplit(f"//{host}").hostname or "") if host else ""
        if self.hosts and name not in self.hosts:
            raise ApiError(403, f"this server is not called {name!r}", code="host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise ApiError(403, "pages of other origins may not use this server", code="origin")
        if self._digests and scope["path"] not in OPEN:
            self._check_key(headers.get("authorization", ""))
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            empty = not kind and headers.get("content-length", "0") == "0"
            if kind != "application/json" and not (empty and "transfer-encoding" not in headers):
                raise ApiError(415, f"the body is {kind or 'of no kind'}; send application/json")

    def _check_key(self, given: str) -> None:
        scheme, _, key = given.partition(" ")
        digest = _digest(key.strip().encode("utf-8", "replace"))
        # all keys, whichever it is, so that the time tells nothing
        right = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(right):
            raise ApiError(
                401,
                "this server needs a key: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        said = headers.get("content-length", "0")
        if said.isascii() and said.isdigit() and int(said) > self.max_body:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.body_seconds):
                return await self._read(receive)
        except TimeoutError:
            raise ApiError(408, f"no body within {self.body_seconds:g} s") from None

    async def _read(self, receive: Receive) -> bytes:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "the body ended early")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_body:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is too large; at most {self.max_body} bytes")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _headers(scope: Scope) -> dict[str, str]:
    return {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body again, then what follows it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
