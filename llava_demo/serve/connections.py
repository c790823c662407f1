"""Limits of connections: their number, and deadlines for request heads and for reading answers."""

import asyncio
import logging
import resource
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 15.0  # from the connection to the last byte of a request's head
# The same from the end of an answer. A client or proxy must close a kept connection before the server does, or its next
# request fails: httpx keeps one for 5 seconds, aiohttp for 15, nginx and AWS for 60.
NEXT_HEAD_S = 75.0
UNREAD_S = 60.0  # how long a client may read nothing of its answer
LINGER_S = 5.0  # how long a closed connection may take the end of its answer
DISCARD_S = 30.0  # how long the rest of a body is read after an answer that came before its end; nginx has the same
MAX_CONNECTIONS = 4096
SHARE = 4  # one address may have a quarter of them
SPARE_HANDLES = 64  # for the model's files, uploads, sockets to other servers, and refusals
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n\r\nToo many connections; try again in a few seconds.\n"
)

_log = logging.getLogger(__name__)


def max_connections() -> int:
    """The number of connections that leaves enough file handles (`ulimit -n`); asyncio fails without them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_HANDLES
    if soft < wanted and (hard == resource.RLIM_INFINITY or soft < hard):
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(8, min(MAX_CONNECTIONS, soft - SPARE_HANDLES)) if soft > 2 * SPARE_HANDLES else max(8, soft // 2)


class LimitedProtocol(H11Protocol):
    """At most `most` connections, with deadlines for heads and for reading; `limit_connections` gives it to uvicorn.

    uvicorn 0.54 keeps a connection that sends or reads nothing for ever: a closed transport waits for its client to
    read what is left.
    """

    most = MAX_CONNECTIONS
    is_proxy: Callable[[str], bool] = staticmethod(lambda _: False)  # the clients of a proxy share its address
    head_s, next_head_s, unread_s, linger_s, discard_s = HEAD_S, NEXT_HEAD_S, UNREAD_S, LINGER_S, DISCARD_S
    _head_deadline: asyncio.TimerHandle | None = None
    _read_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Unhurried(transport, self))  # type: ignore[arg-type]
        if len(self.connections) > self.most or self._has_its_share():
            _log.warning("a connection was refused: there are %d of %d", len(self.connections), self.most)
            transport.write(BUSY)
            self._give_up()
            return
        self._await_head(self.head_s)

    def _has_its_share(self) -> bool:
        if self.client is None or self.is_proxy(host := self.client[0]) or ip_address(host).is_loopback:
            return False  # tunnels and proxies on this machine carry all clients
        clients = [getattr(each, "client", None) for each in self.connections]
        return sum(client is not None and client[0] == host for client in clients) > self.most // SHARE

    @property
    def has_unread_body(self) -> bool:
        """Whether the client is still sending a body; or something else that is no HTTP."""
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)

    def handle_events(self) -> None:
        cycle = self.cycle
        super().handle_events()
        if self.cycle is not cycle:  # a head is complete
            self._drop_deadline()

    def on_response_complete(self) -> None:
        cycle = self.cycle
        super().on_response_complete()
        if self.cycle is cycle:  # no pipelined request has begun
            self._await_head(self.next_head_s)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_deadline = self.loop.call_later(self.unread_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._read_deadline is not None:
            self._read_deadline.cancel()
            self._read_deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop_deadline()
        super().connection_lost(exc)

    def _await_head(self, limit_s: float) -> None:
        self._drop_deadline()
        self._head_deadline = self.loop.call_later(limit_s, self._give_up)

    def _give_up(self) -> None:
        self.transport.close()
        self.loop.call_later(self.linger_s, self.transport.abort)

    def _drop_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None


class _Unhurried:
    """A connection's transport, whose `close` first reads what the client is still sending.

    A socket that is closed with bytes unread resets the connection, and the client loses the answer: it sees a broken
    network instead of the refusal of its request. (nginx calls it lingering close.)
    """

    def __init__(self, transport: asyncio.Transport, protocol: LimitedProtocol) -> None:
        self._transport, self._protocol = transport, protocol
        self._is_closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._is_closing or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing() or not (self._protocol.has_unread_body and self._transport.can_write_eof()):
            self._transport.close()
            return
        self._is_closing = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._protocol.loop.call_later(self._protocol.discard_s, self._transport.abort)


def limit_connections(config: Config, app: Any, is_proxy: Callable[[str], bool]) -> None:
    """Make a running uvicorn use `LimitedProtocol` for new connections.

    `app` is served without uvicorn's ProxyHeadersMiddleware, which trusts `X-Forwarded-For` from this machine.
    """
    LimitedProtocol.most = max_connections()
    LimitedProtocol.is_proxy = staticmethod(is_proxy)
    config.http_protocol_class = LimitedProtocol
    config.loaded_app = app
    config.timeout_keep_alive = round(NEXT_HEAD_S)
    config.timeout_graceful_shutdown = 2  # seconds; without it a silent connection keeps the server from ending
