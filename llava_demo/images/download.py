"""Fetches pictures from web addresses, and keeps callers from addresses that only this server can reach (SSRF).

An address is checked where a connection is opened, and the connection goes to that very address: so neither a name that
resolves differently the second time, nor a decimal or octal host, nor a redirect gets around the check. Nothing is
decompressed or decoded here; the size is limited, and `Image` checks the bytes.
"""

import asyncio
import ipaddress
import socket
from asyncio import FIRST_COMPLETED
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import httpcore
import httpx

from llava_demo.errors import ImageTooLarge, InvalidImage, InvalidRequest
from llava_demo.images.decode import ImageLimits
from llava_demo.images.image import Image

HEAD_START_S = 0.25  # delay before the next address is tried (RFC 8305, 8)
WITHIN_S = 5.0  # for a whole download, redirects included; as in vLLM
MAX_REDIRECTS = 3
HEADERS = (
    ("User-Agent", "llava_demo"),
    ("Accept", "image/*,*/*;q=0.8"),  # some servers refuse clients that do not accept everything
    ("Accept-Encoding", "identity"),
    ("Connection", "close"),
)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]  # host and port to IP addresses; raises OSError

_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_FAILURES = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
    OSError,  # raised by the DNS lookup
    UnicodeError,  # a name too long for DNS
)
_WHY = {
    socket.gaierror: "its host is not known",
    UnicodeError: "its host is no name",
    httpcore.ProtocolError: "it does not answer in HTTP",
}


def is_public(address: str) -> bool:
    """True where an IP address is the same host for the whole Internet.

    IPv6 forms that hold an IPv4 address (mapped, NAT64, 6to4, Teredo) are never public: their real target is unknown.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        return ip in _GLOBAL_UNICAST and ip.is_global and ip.sixtofour is None and ip.teredo is None
    return ip.is_global and not ip.is_multicast


class Downloads:
    """Fetches pictures. `resolve` and `is_allowed` are there for tests, which have no Internet."""

    def __init__(
        self,
        limits: ImageLimits,
        resolve: Resolve | None = None,
        is_allowed: Callable[[str], bool] = is_public,
    ) -> None:
        self._limits = limits
        self._backend = _GuardedBackend(resolve or _Resolver(), is_allowed)
        self._ssl_context = httpcore.default_ssl_context()

    async def pictures(self, urls: Iterable[str]) -> Callable[[str], Image]:
        """Fetch all at once; returns a function from an address to its picture, which raises where there is none.

        That function reads the picture's header, which takes a while, and so belongs into a thread.
        """
        wanted = list(urls)
        found = dict(zip(wanted, await asyncio.gather(*map(self._outcome, wanted)), strict=True))

        def picture(url: str) -> Image:
            outcome = found[url]
            if isinstance(outcome, InvalidRequest):
                raise outcome
            return Image.from_bytes(outcome, self._limits)

        return picture

    async def fetch(self, url: str) -> bytes:
        """The bytes at an http or https address.

        Raises:
            InvalidImage: the address is not allowed, or did not deliver in time; the message never holds the address.
            ImageTooLarge: more bytes than a picture may have.
        """
        try:
            async with asyncio.timeout(WITHIN_S), self._pool() as pool:
                return await self._body(pool, _checked(url))
        except TimeoutError as error:
            raise InvalidImage(f"The picture's address did not deliver it within {WITHIN_S:g} seconds.") from error
        except _FAILURES as error:
            why = next((words for kind, words in _WHY.items() if isinstance(error, kind)), "it cannot be reached")
            raise InvalidImage(f"The picture could not be fetched from its address: {why}.") from error

    async def _outcome(self, url: str) -> bytes | InvalidRequest:
        try:
            return await self.fetch(url)
        except InvalidRequest as error:
            return error

    def _pool(self) -> httpcore.AsyncConnectionPool:
        return httpcore.AsyncConnectionPool(ssl_context=self._ssl_context, network_backend=self._backend)

    async def _body(self, pool: httpcore.AsyncConnectionPool, url: httpx.URL) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
            headers = (("Host", url.netloc.decode("ascii")), *HEADERS)
            async with pool.stream("GET", target, headers=headers) as response:
                location = next((value for name, value in response.headers if name.lower() == b"location"), None)
                if response.status in (301, 302, 303, 307, 308) and location is not None:
                    url = _checked(location.decode("latin-1"), url)
                elif response.status != 200:
                    raise InvalidImage(f"The picture's address answered with status {response.status}.")
                else:
                    return await self._capped(response)
        raise InvalidImage(f"The picture's address redirects more than {MAX_REDIRECTS} times.")

    async def _capped(self, response: httpcore.Response) -> bytes:
        data = bytearray()
        async for part in response.aiter_stream():
            data += part
            if len(data) > self._limits.max_bytes:
                raise ImageTooLarge(f"The picture has more than {self._limits.max_bytes / 2**20:g} MB.")
        return bytes(data)


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to an address that the name has now, if all of its addresses are allowed."""

    def __init__(self, resolve: Resolve, is_allowed: Callable[[str], bool]) -> None:
        self._resolve, self._is_allowed = resolve, is_allowed
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109, httpcore's signature
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        if not addresses or not all(map(self._is_allowed, addresses)):
            raise InvalidImage("The picture's address is not one that this server fetches from: it is not public.")

        def connect(address: str) -> Awaitable[httpcore.AsyncNetworkStream]:
            return self._backend.connect_tcp(address, port, timeout, local_address, socket_options)

        return await _first_connected(_alternating(addresses), connect)

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


def _alternating(addresses: Sequence[str]) -> list[str]:
    """The addresses with IPv6 and IPv4 in turn, in the system's order otherwise (RFC 8305, 4)."""
    first = addresses[0]
    alike = [address for address in addresses if (":" in address) == (":" in first)]
    others = [address for address in addresses if (":" in address) != (":" in first)]
    pairs = zip_longest(alike, others)
    return [address for pair in pairs for address in pair if address is not None]


async def _first_connected(
    addresses: Sequence[str], connect: Callable[[str], Awaitable[httpcore.AsyncNetworkStream]]
) -> httpcore.AsyncNetworkStream:
    """The first connection that opens; the next address is tried when one fails, or is silent for HEAD_START_S.

    Browsers do the same (happy eyeballs, RFC 8305): where IPv6 does not work, IPv4 is tried at once.

    Raises:
        httpcore.NetworkError, httpcore.TimeoutException: no address can be reached.
    """
    failure: Exception = httpcore.ConnectError("no address")
    left, trying = list(addresses), set[asyncio.Future[httpcore.AsyncNetworkStream]]()
    try:
        while left or trying:
            if left:
                trying.add(asyncio.ensure_future(connect(left.pop(0))))
            done, _ = await asyncio.wait(trying, timeout=HEAD_START_S if left else None, return_when=FIRST_COMPLETED)
            for attempt in done:
                trying.discard(attempt)
                if (error := attempt.exception()) is None:
                    return attempt.result()
                if not isinstance(error, httpcore.NetworkError | httpcore.TimeoutException):
                    raise error
                failure = error
        raise failure
    finally:
        for attempt in trying:
            attempt.add_done_callback(_close)
            attempt.cancel()


def _close(attempt: "asyncio.Future[httpcore.AsyncNetworkStream]") -> None:
    """Close a connection that opened too late."""
    if not attempt.cancelled() and attempt.exception() is None:
        asyncio.ensure_future(attempt.result().aclose())  # noqa: RUF006, its result is not awaited


class _Resolver:
    """The system's DNS lookup, in threads of its own: a slow lookup delays other lookups only."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=16, thread_name_prefix="dns")

    async def __call__(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [str(address[0]).partition("%")[0] for *_, address in found]


def _checked(url: str, base: httpx.URL | None = None) -> httpx.URL:
    try:
        parsed = httpx.URL(url) if base is None else base.join(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise InvalidImage("The picture's address is no valid URL.") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        scheme = f"begins with {parsed.scheme[:20]}:" if parsed.host else "has no host"
        raise InvalidImage(f"A picture is fetched from http and https addresses only; this one {scheme}.")
    if parsed.userinfo:
        raise InvalidImage("The picture's address holds a user name or a password; leave it out.")
    return parsed
