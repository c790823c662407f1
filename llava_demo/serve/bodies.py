"""Limits of request bodies: their size, number, speed and nesting, checked before anything reads them."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from llava_demo.callers import caller_name
from llava_demo.errors import DemoError, EngineBusy, InvalidRequest, RequestTimeout, RequestTooLarge, TooManyRequests
from llava_demo.images import ImageLimits
from llava_demo.serve.gate import Gate
from llava_demo.serve.multipart import MAX_FILES

MEGABYTE = 2**20
UPLOAD_BYTES = 2**30  # all uploads in flight
JSON_BYTES = 2 * MEGABYTE
FORM_BYTES = 2**15  # the login form, which Starlette parses on the event loop
MAX_VALUES = 20_000  # in a JSON body for the web page; a conversation of a hundred turns has 2,000
MAX_DEPTH = 32
SILENCE_S, BODY_S = 15.0, 300.0  # the longest pause in a body, and the time for all of it: 20 MB at 70 KB/s

_WITH_PICTURES = ("/gradio_api/queue/join", "/gradio_api/call/", "/gradio_api/mcp")


@dataclass(frozen=True)
class BodyLimits:
    """The largest bodies in bytes, by what they may hold."""

    image_bytes: int
    rest_bytes: int  # one picture as a list of numbers, or several in base64
    total_bytes: int  # all requests in flight; one caller may use half

    @classmethod
    def of(cls, limits: ImageLimits, rest_bytes: int) -> "BodyLimits":
        return cls(limits.max_bytes, rest_bytes, 4 * rest_bytes)

    def most(self, path: str, is_rest: bool) -> int:
        """The largest body for `path`."""
        if is_rest:
            return self.rest_bytes
        if path.startswith("/gradio_api/upload"):
            return MAX_FILES * self.image_bytes + MEGABYTE
        if path.startswith(_WITH_PICTURES):
            return self.image_bytes * 4 // 3 + JSON_BYTES
        return JSON_BYTES if path.startswith("/gradio_api/") else FORM_BYTES


class Held:
    """Bytes of the bodies in flight, by caller: at most `total_bytes` together, and half of that for one caller."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._held: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(self._held.values())

    def add(self, caller: str, count: int) -> None:
        """Count bytes that arrived.

        Raises:
            EngineBusy: all callers together send too much at once.
            TooManyRequests: this caller does.
        """
        self._held[caller] = self._held.get(caller, 0) + count
        if len(self) > self._total_bytes:
            raise EngineBusy("Too much is being sent to this server at once; try again in a few seconds.")
        if self._held[caller] > self._total_bytes // 2:
            raise TooManyRequests("You are sending too much at once; try again when a request has ended.", limit=1)

    def drop(self, caller: str, count: int) -> None:
        """Stop counting bytes."""
        self._held[caller] = self._held.get(caller, 0) - count
        if self._held[caller] <= 0:
            del self._held[caller]


class Bodies:
    """The bodies of all requests in flight: uploads go to the disk, the others are held in memory."""

    def __init__(self, limits: BodyLimits, gate: Gate) -> None:
        self.limits, self._gate = limits, gate
        self.in_memory, self.on_disk = Held(limits.total_bytes), Held(UPLOAD_BYTES)

    @contextmanager
    def counted(self, scope: Scope, receive: Receive, is_rest: bool) -> Iterator["IncomingBody"]:
        """The body of a request; its bytes count until the block ends.

        Raises:
            RequestTooLarge: its Content-Length is over the limit.
        """
        path: str = scope["path"]
        held = self.on_disk if path.startswith("/gradio_api/upload") else self.in_memory
        body = IncomingBody(held, scope, receive, self.limits.most(path, is_rest), self._gate)
        try:
            yield body
        finally:
            held.drop(body.caller, body.held_bytes)


class IncomingBody:
    """The body of one request; `receive` is an ASGI `receive` that refuses what is over a limit.

    `receive` and `whole` raise RequestTooLarge, RequestTimeout, EngineBusy, TooManyRequests and EngineUnavailable.
    """

    def __init__(self, held: Held, scope: Scope, receive: Receive, most: int, gate: Gate) -> None:
        headers = Headers(scope=scope)
        self.caller = caller_name(scope)
        self.held_bytes = 0
        self.refusal: DemoError | None = None  # what `receive` raised
        self._held, self._receive, self._most, self._gate = held, receive, most, gate
        self._deadline = asyncio.get_running_loop().time() + BODY_S
        self._is_whole = scope["method"] in ("GET", "HEAD", "OPTIONS")  # these have no body to wait for
        length = headers.get("content-length", "")
        if length.isdecimal() and len(length) < 20 and int(length) > most:
            raise _too_large(most)

    async def receive(self) -> Message:
        """The next message: a piece of the body, or that the caller disconnected."""
        if self._is_whole:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(SILENCE_S, self._deadline - now)):
                message = await self._gate.while_open(self._receive)
        except TimeoutError:
            words = f"nothing came for {SILENCE_S:g} seconds, or not all of it in {BODY_S:g}"
            raise RequestTimeout(f"The body of the request is too slow: {words}.") from None
        if message["type"] == "http.request":
            try:
                self._check(message.get("body", b""))
            except DemoError as error:
                self.refusal = error
                raise
            self._is_whole = not message.get("more_body", False)
        return message

    async def whole(self) -> bytes:
        """All of it.

        Raises:
            ClientDisconnect: the caller disconnected before its end.
        """
        parts = bytearray()
        while not self._is_whole:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            parts += message.get("body", b"")
        return bytes(parts)

    def replayed(self, body: bytes) -> Receive:
        """A `receive` that gives `body` in one piece, then the messages that follow."""
        is_given = False

        async def receive() -> Message:
            nonlocal is_given
            if is_given:
                return await self._receive()
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return receive

    def _check(self, part: bytes) -> None:
        if self.held_bytes + len(part) > self._most:
            raise _too_large(self._most)
        self.held_bytes += len(part)
        self._held.add(self.caller, len(part))


def _too_large(most: int) -> RequestTooLarge:
    return RequestTooLarge(f"The request has more than {most / 2**20:,.3g} MB, the most that this endpoint takes.")


def check_json(body: bytes) -> Any:
    """Decode a JSON body for Gradio's routes, which would parse it on the event loop, whatever its size.

    Raises:
        InvalidRequest: it is no JSON, or has more values or deeper nesting than any conversation.
    """
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_VALUES:
        raise InvalidRequest(f"The body has more than {MAX_VALUES:,} values.")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("The body is not valid JSON.") from error
    waiting = [(value, 1)]
    while waiting:
        inner, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"The body is nested more than {MAX_DEPTH} deep.")
        if isinstance(inner, dict | list):
            waiting += [(each, depth + 1) for each in (inner.values() if isinstance(inner, dict) else inner)]
    return value
