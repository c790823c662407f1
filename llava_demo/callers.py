"""Callers: requests are told apart by key, else by address; the page adds a login. Callers are never logged."""

import hashlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope, Send

from llava_demo.errors import TooManyRequests

Network = IPv4Network | IPv6Network

WRONG_KEYS = 10  # wrong keys a caller may try at once; one more every KEY_S seconds
KEY_S = 6.0
CANCELLED = "notifications/cancelled"  # as the Model Context Protocol has it
SESSION_CALLS = 64  # the last calls of a session can be cancelled, up to this many

_SCOPE_KEY = "llava_demo.caller"
_GONE_KEY = "llava_demo.caller_is_gone"
_HEADER = b"x-llava-demo-caller"
_SESSION = re.compile(rb"session_id=([0-9a-f]{32})")  # as MCP over SSE has it
_SITE_BITS = 64  # network part of an IPv6 address; a caller can vary the rest


def caller_of(connection: HTTPConnection | None) -> str:
    """The name of the caller of an HTTP request; "" outside of one."""
    return caller_name(connection.scope) if connection else ""


def caller_name(scope: Scope) -> str:
    """The same for the ASGI scope of a request that `Callers` has named."""
    name: str = scope.get(_SCOPE_KEY, "")
    return name


def is_gone(connection: HTTPConnection | None) -> bool:
    """Whether a request of our MCP server is for a caller that has disconnected, or has cancelled its call.

    Gradio 6.31 continues such a request.
    """
    gone: threading.Event | None = connection.scope.get(_GONE_KEY) if connection else None
    return gone is not None and gone.is_set()


@dataclass(frozen=True)
class _McpCall:
    """A request to our MCP server; its `id` is unique within `place`, the name of a session or else of a caller."""

    place: bytes
    id: str
    is_over: threading.Event = field(default_factory=threading.Event)  # the caller waits no more


class Callers:
    """Names the callers of a server.

    A bearer token counts only if it is one of `keys`. `X-Forwarded-For` counts only if one of `proxies` sent it; the
    caller is the last address in it that is not a proxy.
    """

    def __init__(self, keys: Sequence[str] = (), proxies: Sequence[Network] = ()) -> None:
        self._names = {key: f"key {hashlib.sha256(key.encode()).hexdigest()[:16]}" for key in keys}
        self._proxies = tuple(proxies)
        self._secret = secrets.token_hex(16).encode()
        self._asking: dict[bytes, _McpCall] = {}  # requests to our MCP server, by the number in their header
        self._sessions = set[bytes]()  # open sessions of MCP over SSE
        self._wrong_keys: dict[str, float] = {}  # by caller, the time when all of its attempts are forgotten

    def name(self, scope: Scope) -> None:
        """Write the caller's name, and its true address and scheme, into an HTTP scope."""
        headers = Headers(scope=scope)
        peer = scope["client"][0] if scope.get("client") else ""
        if self.is_proxy(peer):
            peer = self._forwarded(headers.getlist("x-forwarded-for")) or peer
            scope["client"] = (peer, 0)
            if (scheme := headers.get("x-forwarded-proto", "").strip()) in ("http", "https"):
                scope["scheme"] = scheme
        secret, _, passed_on = headers.get(_HEADER.decode(), "").encode("latin-1").partition(b" ")
        if secrets.compare_digest(secret, self._secret):
            number, _, name = passed_on.partition(b" ")
            call = self._asking.get(number)
            scope[_SCOPE_KEY], scope[_GONE_KEY] = name.decode(), call and call.is_over
        else:
            scheme, key = get_authorization_scheme_param(headers.get("authorization"))  # as api.access reads it
            is_bearer = scheme.lower() == "bearer"  # in any case: RFC 9110, 11.1
            scope[_SCOPE_KEY] = (self._names.get(key) if is_bearer else None) or _site_of(peer)
        scope["headers"] = [(key, value) for key, value in scope["headers"] if key != _HEADER]

    @contextmanager
    def asked_through_mcp(self, scope: Scope, receive: Receive, message: Any) -> Iterator[Receive]:
        """Within the block, requests of Gradio's MCP server to this server count as requests of the MCP caller.

        Gradio copies the caller's headers into them; a header of ours, which `name` drops where it is forged, names the
        caller. The yielded `receive` notes when the caller disconnects. A message to a session is accepted at once and
        answered on the session's connection, so that connection counts instead. A `message` may cancel an earlier call.
        """
        found, fields = _SESSION.search(scope.get("query_string", b"")), message if isinstance(message, dict) else {}
        session = found[1] if found and found[1] in self._sessions else None
        place = session or caller_name(scope).encode()
        if fields.get("method") == CANCELLED and isinstance(fields.get("params"), dict):
            self._cancel(place, repr(fields["params"].get("requestId")))
        number, call = secrets.token_hex(8).encode(), _McpCall(place, repr(fields.get("id")))
        scope["headers"].append((_HEADER, b" ".join((self._secret, number, caller_name(scope).encode()))))
        self._asking[number] = call
        if session:
            for old in [name for name, each in self._asking.items() if each.place == place][:-SESSION_CALLS]:
                del self._asking[old]
            yield receive
            return
        try:
            yield _noting(receive, call.is_over.set)
        finally:
            del self._asking[number]

    @contextmanager
    def session_through_mcp(self, receive: Receive, send: Send) -> Iterator[tuple[Receive, Send]]:
        """The same for the connection of a session (MCP over SSE), whose first event holds its name."""
        own = set[bytes]()  # the session's name, once it is known

        async def learning(message: Message) -> None:
            if not own and (found := _SESSION.search(message.get("body", b""))):
                own.add(found[1])
                self._sessions |= own
            await send(message)

        def end() -> None:
            self._sessions -= own
            for number, call in list(self._asking.items()):
                if call.place in own:
                    call.is_over.set()
                    del self._asking[number]

        try:
            yield _noting(receive, end), learning
        finally:
            end()

    def _cancel(self, place: bytes, id: str) -> None:
        """End a call, unless two calls have this id, as those of two clients at one address without sessions may."""
        calls = [call for call in self._asking.values() if (call.place, call.id) == (place, id)]
        if len(calls) == 1:
            calls[0].is_over.set()

    def check_attempts(self, scope: Scope) -> None:
        """Raises:
        TooManyRequests: this caller tried too many wrong keys or passwords.
        """
        over_s = self._wrong_keys.get(caller_name(scope), 0) - time.monotonic() - (WRONG_KEYS - 1) * KEY_S
        if over_s > 0:
            words = "Too many wrong keys or passwords; try again in a while."
            raise TooManyRequests(words, limit=WRONG_KEYS, retry_after_s=int(over_s) + 1)

    def note_wrong_key(self, scope: Scope) -> None:
        """Count a wrong key or password."""
        caller, now = caller_name(scope), time.monotonic()
        if caller not in self._wrong_keys:
            self._wrong_keys = {name: until for name, until in self._wrong_keys.items() if until > now}
        self._wrong_keys[caller] = max(self._wrong_keys.get(caller, 0), now) + KEY_S

    def _forwarded(self, values: Sequence[str]) -> str | None:
        hosts = [host.strip() for value in values for host in value.split(",")]
        hosts = [host for host in hosts if _address(host)]
        return next((host for host in reversed(hosts) if not self.is_proxy(host)), hosts[0] if hosts else None)

    def is_proxy(self, host: str) -> bool:
        """Whether an address belongs to a trusted proxy."""
        address = _address(host)
        return address is not None and any(address in network for network in self._proxies)


def _noting(receive: Receive, leave: Callable[[], None]) -> Receive:
    """A `receive` that calls `leave` when the caller disconnects."""

    async def noting() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect":
            leave()
        return message

    return noting


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _site_of(host: str) -> str:
    """The part of an address that a caller cannot vary: all of IPv4, the /64 network of IPv6."""
    address = _address(host)
    if isinstance(address, IPv6Address):
        return str(ip_network((address, _SITE_BITS), strict=False))
    return str(address or host)
