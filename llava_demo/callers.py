"""Callers: how requests are told apart for fairness, by key, else by address. What names a caller is never logged."""

import hashlib
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address, ip_network

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

_SCOPE_KEY = "llava_demo.caller"
_SITE_BITS = 64  # of an IPv6 address: the rest is the caller's own to vary


def caller_of(connection: HTTPConnection | None) -> str:
    """The name that `NameCallers` gave to the caller of an HTTP request; "" outside of one."""
    return connection.scope.get(_SCOPE_KEY, "") if connection else ""


class NameCallers:
    """ASGI middleware: names the caller of each request. A bearer token counts only where it is one of `keys`."""

    def __init__(self, app: ASGIApp, keys: Sequence[str] = ()) -> None:
        self._app = app
        self._names = {f"Bearer {key}": f"key {hashlib.sha256(key.encode()).hexdigest()[:16]}" for key in keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = Headers(scope=scope).get("authorization", "")
            host = scope["client"][0] if scope.get("client") else ""
            scope[_SCOPE_KEY] = self._names.get(given) or site_of(host)
        await self._app(scope, receive, send)


def site_of(host: str) -> str:
    """The address that a caller cannot vary: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return host
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ip_network((address, _SITE_BITS), strict=False))
