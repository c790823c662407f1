"""Connections: how many there may be, and how long one may take to send the head of a request."""

import asyncio
import logging
import resource
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 15.0  # from the connection, or the end of the last answer, to the last byte of a request's head
MAX_CONNECTIONS = 4096
SPARE_HANDLES = 64  # for the model's files, uploads, sockets to other servers, and refusals
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n\r\nToo many connections; try again in a few seconds.\n"
)

_log = logging.getLogger(__name__)


def max_connections() -> int:
    """How many connections leave the process enough file handles (`ulimit -n`); asyncio fails loudly without them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_HANDLES
    if soft < wanted and (hard == resource.RLIM_INFINITY or soft < hard):
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(8, min(MAX_CONNECTIONS, soft - SPARE_HANDLES)) if soft > 2 * SPARE_HANDLES else max(8, soft // 2)


class LimitedProtocol(H11Protocol):
    """At most `most` connections, each with a deadline for its heads; `limit_connections` makes it uvicorn's.

    uvicorn 0.54 by itself keeps a connection that says nothing for ever.
    """

    most = MAX_CONNECTIONS
    head_s = HEAD_S
    _head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            _log.warning("a connection was refused: there are %d, the most that may be", self.most)
            transport.write(BUSY)
            transport.close()
            return
        self._await_head()

    def handle_events(self) -> None:
        cycle = self.cycle
        super().handle_events()
        if self.cycle is not cycle:  # a head is complete
            self._drop_deadline()

    def on_response_complete(self) -> None:
        cycle = self.cycle
        super().on_response_complete()
        if self.cycle is cycle:  # no pipelined request has begun
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop_deadline()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._drop_deadline()
        self._head_deadline = self.loop.call_later(self.head_s, self.transport.close)

    def _drop_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None


def limit_connections(config: Config, app: Any) -> None:
    """Have a running uvicorn, as Gradio starts it, treat the connections to come so.

    `app` is served as it is: uvicorn's own trust in `X-Forwarded-For` from this machine is left out.
    """
    LimitedProtocol.most = max_connections()
    config.http_protocol_class = LimitedProtocol
    config.loaded_app = app
    config.timeout_graceful_shutdown = 2  # seconds; a silent connection would hold the server's end up for ever
