"""Which web pages may call the server. Browsers send a page's origin; other programs send none and are let through.

    this server's own page                     everything
    a page of this machine, no login           everything
    another page, a server with a login        nothing but REST with one of the --api-key
    another page, a server on loopback only    nothing; a form's POST as text/plain comes without a CORS preflight
    another page, a public server              everything that any program may do, without the visitor's cookies

No origin ever gets `Access-Control-Allow-Credentials`. A server on loopback answers to this machine's names only, so a
name rebound to 127.0.0.1 (DNS rebinding) gives a web page no rights.
"""

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Scope

from llava_demo.errors import ForeignOrigin

_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST",
    "Access-Control-Max-Age": "600",
}
_EXPOSED = "x-request-id, retry-after, x-ratelimit-limit-requests, x-ratelimit-remaining-requests"
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Origins:
    """The rules of one server."""

    is_local: bool  # it listens on a loopback address, and no tunnel or proxy leads there
    has_login: bool
    has_keys: bool

    def check(self, scope: Scope, is_rest: bool) -> None:
        """Let a request pass, or raise.

        Raises:
            ForeignOrigin: its page may not call this server, or it names a host that is not this server.
        """
        headers = Headers(scope=scope)
        host = headers.get("host")  # HTTP/1.0 may lack it (health checks of old load balancers); no browser speaks that
        if self.is_local and host is not None and not _is_loopback(_name_of(f"//{host}")):
            raise ForeignOrigin(
                "This server listens on this machine only and is asked under another name; behind a proxy, start it "
                "with --trusted-proxy and the proxy's address."
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, headers) and not self._is_allowed(origin, is_rest):
            raise ForeignOrigin("Web pages of other sites may not call this server.")

    def allow(self, origin: str, headers: MutableHeaders) -> None:
        """Add the headers of an answer that let the browser's page read it; call `check` before."""
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = _EXPOSED
        headers.add_vary_header("Origin")

    def preflight_headers(self, asked: str | None) -> dict[str, str]:
        """The headers that answer a preflight; `asked` are the headers that the browser wants to send."""
        return _PREFLIGHT | ({"Access-Control-Allow-Headers": asked} if asked else {})

    def _is_own(self, origin: str, headers: Headers) -> bool:
        """X-Forwarded-Host is safe here: a page cannot send it without a preflight, which is refused."""
        given = [headers.get("host"), headers.get("x-forwarded-host")]
        own = {_place_of(f"//{host}", urlsplit(origin).scheme) for host in given if host}
        return _place_of(origin) in own

    def _is_allowed(self, origin: str, is_rest: bool) -> bool:
        if self.has_login:
            return is_rest and self.has_keys
        return not self.is_local or _is_loopback(_name_of(origin))


def _place_of(url: str, scheme: str = "") -> tuple[str, int | None]:
    try:
        parts = urlsplit(url)
        return (parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme or scheme))
    except ValueError:  # an invalid port or IPv6 address
        return ("", None)


def _name_of(url: str) -> str:
    return _place_of(url)[0]


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback or name == "0.0.0.0"
    except ValueError:
        return False


def listens_locally(host: str) -> bool:
    """Whether an address to listen on is reachable from this machine only."""
    return host != "0.0.0.0" and _is_loopback(host.strip("[]"))
