"""Which web pages may call the server. A browser tells a page's origin; other programs send none and are let through.

    this server's own page          everything
    pages of this machine           everything but with a login; a server that listens on this machine only is theirs
    other pages, a login is asked   nothing, but REST with one of the --api-key
    other pages, on this machine    nothing: without a question of CORS, a form's POST as text/plain would be answered
    other pages, a public server    everything that any program may do, without the visitor's cookies

No origin ever gets `Access-Control-Allow-Credentials`. A server that listens on this machine only, answers to this
machine's names only, so a name rebound to 127.0.0.1 (DNS rebinding) gives a web page no rights.
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
    """The rules for one server."""

    is_local: bool  # it listens on a loopback address, and no tunnel or proxy leads there
    has_login: bool
    has_keys: bool

    def check(self, scope: Scope, is_rest: bool) -> None:
        """Let a request pass, or not.

        Raises:
            ForeignOrigin: it comes from a page that may not, or under a name that is not this server's.
        """
        headers = Headers(scope=scope)
        host = headers.get("host")  # HTTP/1.0 may lack it, as checks of old load balancers do; no browser speaks it
        if self.is_local and host is not None and not _is_loopback(_name_of(f"//{host}")):
            raise ForeignOrigin(
                "This server listens on this machine only and is asked under another name; behind a proxy, start it "
                "with --trusted-proxy and the proxy's address."
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, headers) and not self._is_allowed(origin, is_rest):
            raise ForeignOrigin("Web pages of other sites may not call this server.")

    def allow(self, origin: str, headers: MutableHeaders) -> None:
        """Tell the browser, in the headers of an answer to a request that passed, that its page may read it."""
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = _EXPOSED
        headers.add_vary_header("Origin")

    def preflight_headers(self, asked: str | None) -> dict[str, str]:
        """The headers that answer a browser's question before a request that passed; `asked` are the headers it has."""
        return _PREFLIGHT | ({"Access-Control-Allow-Headers": asked} if asked else {})

    def _is_own(self, origin: str, headers: Headers) -> bool:
        """X-Forwarded-Host is no risk: a page cannot send it unasked, and its question before is refused."""
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
    except ValueError:  # no port, or half an IPv6 address
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
    """Whether an address to listen on can be reached from this machine only."""
    return host != "0.0.0.0" and _is_loopback(host.strip("[]"))
