"""`Gate`: counts the requests in flight, and refuses new ones once the server ends."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from starlette.types import Message, Receive, Scope

from llava_demo.engines.jobs import SHUTTING_DOWN
from llava_demo.errors import EngineUnavailable

# Requests for an answer that has begun, or for the server's health. A Gradio event is started by one request and read
# by others.
_CARRY_ON = (
    "/gradio_api/queue/data",
    "/gradio_api/call/",
    "/gradio_api/cancel",
    "/gradio_api/heartbeat/",
    "/gradio_api/file=",
    "/gradio_api/mcp",
    "/health",
    "/metrics",
)
_LOOK_S = 0.5
# Open as long as a page or a client is.
_IDLE = ("/gradio_api/heartbeat/", "/gradio_api/mcp", "/gradio_api/startup-events")


class Gate:
    """Counts requests on the event loop, for the thread that ends the server."""

    def __init__(self) -> None:
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._under_way = 0

    @property
    def is_closing(self) -> bool:
        return self._closing.is_set()

    @property
    def under_way(self) -> int:
        """The number of requests that are being answered."""
        return self._under_way

    def close(self) -> None:
        """Refuse new requests from now on."""
        self._closing.set()

    @contextmanager
    def passing(self, scope: Scope) -> Iterator[None]:
        """Count a request until the block ends.

        Raises:
            EngineUnavailable: the server is ending, and this is a new request.
        """
        path, is_reading = scope["path"], scope["method"] in ("GET", "HEAD")
        is_cancelling = path == "/gradio_api/cancel"
        if self.is_closing and not (path.startswith(_CARRY_ON) and (is_reading or is_cancelling)):
            raise _ending()
        counts = 0 if path.startswith(_IDLE) and is_reading else 1
        self._add(counts)
        try:
            yield
        finally:
            self._add(-counts)

    async def while_open(self, receive: Receive) -> Message:
        """Receive a piece of a body; a request whose body is incomplete is a new one.

        Raises:
            EngineUnavailable: the server is ending.
        """
        while not self.is_closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    return await receive()
        raise _ending()

    def is_idle_within(self, limit_s: float, is_engine_idle: Callable[[], bool]) -> bool:
        """Wait until no request is in flight here or in the engine; False if that takes longer than `limit_s`.

        Between the request that starts a Gradio event and the one that reads it, only the engine counts it.
        """
        deadline = time.monotonic() + limit_s
        while self._under_way or not is_engine_idle():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def _add(self, count: int) -> None:
        with self._lock:
            self._under_way += count


def _ending() -> EngineUnavailable:
    return EngineUnavailable(SHUTTING_DOWN, retry_after_s=10)
