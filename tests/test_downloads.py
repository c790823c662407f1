"""Pictures from the web: fetched whole where they may be, and never from where only this machine may go.

The tests have no Internet. Names lead where a test's `resolve` says, and where pictures do come, addresses of this
machine are allowed by the test, one by one; the canary's never is.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pictures import png

from llava_demo.errors import ImageTooLarge, InvalidImage
from llava_demo.images import ImageLimits
from llava_demo.images.download import MAX_REDIRECTS, WITHIN_S, Downloads, _alternating, is_public

LIMITS = ImageLimits(max_bytes=200_000)
PICTURE = png("red")
HERE, CANARY = "127.0.0.2", "127.0.0.1"  # both this machine's; only the first is allowed in these tests
HANG_GUARD_S = WITHIN_S + 60


class Web:
    """A web server on both addresses; `reached` are the paths that were asked for on the canary's."""

    def __init__(self) -> None:
        self.reached: list[str] = []
        self.heads: list[dict[str, str]] = []
        self.servers = [ThreadingHTTPServer((HERE, 0), self._handler(self._serve))]
        self.port = self.servers[0].server_address[1]
        self.servers.append(ThreadingHTTPServer((CANARY, self.port), self._handler(self._sing)))
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, path: str, host: str = "pictures.test") -> str:
        return f"http://{host}:{self.port}{path}"

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def _handler(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with suppress(OSError):  # the caller has had enough
                    answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def _sing(self, call: BaseHTTPRequestHandler) -> None:
        self.reached.append(call.path)
        _send(call, 200, PICTURE)

    def _serve(self, call: BaseHTTPRequestHandler) -> None:
        self.heads.append(dict(call.headers))
        kind, _, rest = call.path[1:].partition("/")
        if kind == "to":  # a redirect to the rest of the path
            _send(call, 302, b"", Location=rest.replace("PORT", str(self.port)))
        elif kind == "times":  # so many redirects
            left = int(rest)
            _send(call, 302 if left else 200, PICTURE, **({"Location": f"/times/{left - 1}"} if left else {}))
        elif kind == "status":
            _send(call, int(rest), b"no")
        elif kind == "endless":
            call.send_response(200)
            call.end_headers()
            while True:
                call.wfile.write(bytes(10_000))
        elif kind == "drip":
            call.send_response(200)
            call.end_headers()
            for value in PICTURE:
                call.wfile.write(bytes([value]))
                call.wfile.flush()
                time.sleep(0.5)
        elif kind == "silent":
            time.sleep(20)
        else:
            _send(call, 200, PICTURE)


def _send(call: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    call.send_response(status)
    for name, value in headers.items():
        call.send_header(name, value)
    call.send_header("Content-Length", str(len(body)))
    call.end_headers()
    call.wfile.write(body)


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    web = Web()
    yield web
    web.close()


@pytest.fixture(autouse=True)
def the_canary_is_never_reached(web: Web) -> Iterator[None]:
    yield
    assert web.reached == []


async def resolve(host: str, port: int) -> list[str]:
    names = {"pictures.test": [HERE], "inside.test": [CANARY], "both.test": [HERE, CANARY]}
    if host in names:
        return names[host]
    return [str(found[4][0]) for found in await asyncio.get_running_loop().getaddrinfo(host, port)]


GUARDED = Downloads(LIMITS)  # as the product has it
DOWNLOADS = Downloads(LIMITS, resolve, is_allowed=lambda address: address == HERE)


def fetched(url: str, downloads: Downloads = DOWNLOADS) -> bytes:
    async def fetch() -> bytes:
        async with asyncio.timeout(HANG_GUARD_S):
            return await downloads.fetch(url)

    return asyncio.run(fetch())


# --- what comes


@pytest.mark.parametrize("path", ["/cat.png", "/to//cat.png", f"/times/{MAX_REDIRECTS}", "/cat.png?a=b#c", "/ä ö.png"])
def test_a_picture_comes_also_through_redirects(web: Web, path: str) -> None:
    assert fetched(web.url(path)) == PICTURE
    assert web.heads[-1]["Host"] == f"pictures.test:{web.port}"
    assert web.heads[-1]["Accept-Encoding"] == "identity"


def test_several_pictures_come_at_once_and_one_that_fails_does_not_cost_the_others(web: Web) -> None:
    urls = [web.url("/a.png"), web.url("/status/404"), web.url("/b.png")]
    picture = asyncio.run(DOWNLOADS.pictures(urls))
    assert picture(urls[0]) == picture(urls[2])
    assert picture(urls[0]).data == PICTURE
    with pytest.raises(InvalidImage, match="answered with status 404"):
        picture(urls[1])


def test_a_slow_host_delays_nobody_else(web: Web) -> None:
    async def race() -> tuple[bytes, bool]:
        slow = asyncio.create_task(DOWNLOADS.fetch(web.url("/silent")))
        await asyncio.sleep(0.1)
        quick = await DOWNLOADS.fetch(web.url("/cat.png"))
        was_waiting = not slow.done()
        slow.cancel()
        return quick, was_waiting

    assert asyncio.run(race()) == (PICTURE, True)


# --- what is refused by its size, its status, its time


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (f"/times/{MAX_REDIRECTS + 1}", "redirects more than 3 times"),
        ("/status/404", "answered with status 404"),
        ("/status/204", "answered with status 204"),
        ("/status/500", "answered with status 500"),
        ("/status/301", "answered with status 301"),
        ("/to/file:///etc/passwd", "http and https addresses only; this one has no host"),
        ("/to/ftp://pictures.test/a", "http and https addresses only; this one begins with ftp:"),
    ],
)
def test_what_is_no_answer_with_a_picture_is_refused(web: Web, path: str, words: str) -> None:
    with pytest.raises(InvalidImage, match=words) as caught:
        fetched(web.url(path))
    assert "pictures.test" not in str(caught.value)


def test_a_body_without_end_is_cut(web: Web) -> None:
    with pytest.raises(ImageTooLarge, match=r"more than 0\.19"):
        fetched(web.url("/endless"))


@pytest.mark.parametrize("path", ["/drip", "/silent"])
def test_a_slow_host_is_given_up(web: Web, path: str) -> None:
    with pytest.raises(InvalidImage, match="within 5 seconds"):
        fetched(web.url(path))


def test_a_slow_look_up_is_given_up() -> None:
    async def forever(host: str, port: int) -> list[str]:  # noqa: ARG001
        await asyncio.sleep(60)
        return []

    with pytest.raises(InvalidImage, match="within 5 seconds"):
        fetched("http://slow.test/", Downloads(LIMITS, forever))


def test_a_host_that_answers_no_http_is_refused() -> None:
    with socket.socket() as mute:
        mute.bind((HERE, 0))
        mute.listen()
        port = mute.getsockname()[1]

        def answer() -> None:
            line, _ = mute.accept()
            line.recv(1000)
            line.sendall(b"SSH-2.0-OpenSSH\r\n")
            line.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(InvalidImage, match="could not be fetched"):
            fetched(f"http://pictures.test:{port}/")


def test_a_closed_port_an_unknown_name_and_a_false_certificate_are_refused(web: Web) -> None:
    with socket.socket() as taken:
        taken.bind((HERE, 0))
        closed = f"http://pictures.test:{taken.getsockname()[1]}/"
    for url in (
        closed,
        "http://no-such-name.invalid/",
        f"https://pictures.test:{web.port}/",
        f"http://{'a' * 70}.test/",
    ):
        with pytest.raises(InvalidImage, match="could not be fetched"):
            fetched(url)


# --- where it must not go


INSIDE = [
    "http://127.0.0.1:PORT/",
    "http://localhost:PORT/",
    "http://LOCALHOST:PORT/",
    "http://127.1:PORT/",
    "http://0:PORT/",
    "http://0.0.0.0:PORT/",
    "http://2130706433:PORT/",
    "http://017700000001:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://0x7f.0.0.1:PORT/",
    "http://0x7f000001:PORT/",
    "http://127.0.0.1.:PORT/",
    "http://[::1]:PORT/",
    "http://[::]:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/",
    "http://[::ffff:7f00:1]:PORT/",
    "http://[0:0:0:0:0:ffff:127.0.0.1]:PORT/",
    "http://[::127.0.0.1]:PORT/",
    "http://[64:ff9b::7f00:1]:PORT/",
    "http://[2002:7f00:1::]:PORT/",
    "http://[fe80::1%25lo]:PORT/",
    "http://①②⑦.⓪.⓪.①:PORT/",
    "http://user:password@127.0.0.1:PORT/",
    "http://example.org@127.0.0.1:PORT/",
    "http://127.0.0.1:PORT\\@pictures.test/",
    "http://inside.test:PORT/",
    "http://both.test:PORT/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://metadata.google.internal/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "ftp://127.0.0.1:PORT/",
    "gopher://127.0.0.1:PORT/",
    "unix:///var/run/docker.sock",
    "//127.0.0.1:PORT/",
    "/etc/passwd",
    "http:///",
    "http://",
    "http://:PORT/",
    "http://127.0.0.1:99999/",
    "",
    "http://pictures.test/" + "a" * 100_000,
]


@pytest.mark.parametrize("url", INSIDE, ids=lambda url: url[:50])
def test_nothing_inside_is_reached(web: Web, url: str) -> None:
    """By the product's own guard, with the system's look-up of names."""
    with pytest.raises(InvalidImage) as caught:
        fetched(url.replace("PORT", str(web.port)), GUARDED)
    assert "127.0.0.1" not in str(caught.value)


# As a Location these lead back to the host that sends them, or cannot stand in a header.
NO_LOCATIONS = {"", "/etc/passwd", "http://", "http:///", INSIDE[-1]}


@pytest.mark.parametrize(
    "url", [url for url in INSIDE if url not in NO_LOCATIONS and url.isascii() and "\\" not in url]
)
def test_nothing_inside_is_reached_through_a_redirect(web: Web, url: str) -> None:
    with pytest.raises(InvalidImage):
        fetched(web.url(f"/to/{url}"))


def test_nothing_inside_is_reached_by_a_name_that_changes_its_address(web: Web) -> None:
    """The second answer is never asked for: the connection goes to the address that was checked."""
    answers = iter([[HERE], [CANARY], [CANARY]])

    async def changing(host: str, port: int) -> list[str]:  # noqa: ARG001
        return next(answers)

    downloads = Downloads(LIMITS, changing, is_allowed=lambda address: address == HERE)
    assert fetched(web.url("/a.png", "changing.test"), downloads) == PICTURE
    for path in ("/a.png", "/to//a.png"):
        with pytest.raises(InvalidImage, match="not public"):
            fetched(web.url(path, "changing.test"), downloads)


def test_a_redirect_is_checked_again_by_a_name_that_changes_its_address(web: Web) -> None:
    answers = iter([[HERE], [CANARY]])

    async def changing(host: str, port: int) -> list[str]:  # noqa: ARG001
        return next(answers)

    with pytest.raises(InvalidImage, match="not public"):
        fetched(
            web.url("/to//a.png", "changing.test"),
            Downloads(LIMITS, changing, is_allowed=lambda address: address == HERE),
        )


def test_proxies_of_the_environment_are_no_way_around(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{web.port}")
    assert fetched(web.url("/a.png")) == PICTURE
    with pytest.raises(InvalidImage, match="not public"):
        fetched("http://10.0.0.1/", GUARDED)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("172.31.255.255", False),
        ("192.0.0.1", False),
        ("192.168.0.1", False),
        ("198.18.0.1", False),
        ("203.0.113.1", False),
        ("224.0.0.1", False),
        ("239.255.255.255", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::ffff:8.8.8.8", False),
        ("::127.0.0.1", False),
        ("64:ff9b::808:808", False),
        ("2001:0:1::1", False),
        ("2001:db8::1", False),
        ("2002:808:808::", False),
        ("fd00::1", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
    ],
)
def test_only_what_everybody_reaches_is_public(address: str, expected: bool) -> None:
    assert is_public(address) is expected


# --- several addresses

DEAF, NOBODY = "127.0.0.3", "127.0.0.4"  # the first accepts no connection and refuses none, the second refuses


@pytest.fixture(scope="module")
def deaf(web: Web) -> Iterator[None]:
    """A listener whose queue is full: whoever connects hears nothing, as at an address that leads nowhere."""
    with socket.socket() as listener:
        listener.bind((DEAF, web.port))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex((DEAF, web.port))
        yield
        for each in waiting:
            each.close()


@pytest.mark.usefixtures("deaf")
@pytest.mark.parametrize(
    "addresses",
    [[DEAF, HERE], [DEAF, DEAF, HERE], [NOBODY, HERE], [NOBODY, DEAF, HERE], ["::1", HERE], [HERE, DEAF]],
    ids=" ".join,
)
def test_every_address_of_a_host_is_tried_soon(web: Web, addresses: list[str]) -> None:
    """As a browser does it: an IPv6 address that leads nowhere would otherwise cost all of the time."""

    async def leads_to(_host: str, _port: int) -> list[str]:
        return addresses

    downloads = Downloads(LIMITS, leads_to, is_allowed=lambda address: address != CANARY)
    assert fetched(web.url("/cat.png", "many.test"), downloads) == PICTURE


@pytest.mark.usefixtures("deaf")
@pytest.mark.parametrize("addresses", [[HERE, CANARY], [DEAF, CANARY, HERE]], ids=" ".join)
def test_one_address_that_is_not_allowed_refuses_the_host(web: Web, addresses: list[str]) -> None:
    async def leads_to(_host: str, _port: int) -> list[str]:
        return addresses

    downloads = Downloads(LIMITS, leads_to, is_allowed=lambda address: address != CANARY)
    with pytest.raises(InvalidImage, match="not public"):
        fetched(web.url("/cat.png", "many.test"), downloads)


@pytest.mark.usefixtures("deaf")
def test_where_no_address_answers_the_time_is_up(web: Web) -> None:
    async def leads_to(_host: str, _port: int) -> list[str]:
        return [NOBODY, DEAF, "::1"]

    with pytest.raises(InvalidImage, match="did not deliver it within 5 seconds"):
        fetched(web.url("/cat.png", "many.test"), Downloads(LIMITS, leads_to, is_allowed=lambda _: True))


def test_ipv6_and_ipv4_take_turns() -> None:
    assert _alternating(["2a::1", "2a::2", "2a::3", "1.1.1.1", "1.1.1.2"]) == [
        "2a::1",
        "1.1.1.1",
        "2a::2",
        "1.1.1.2",
        "2a::3",
    ]
    assert _alternating(["1.1.1.1", "1.1.1.2"]) == ["1.1.1.1", "1.1.1.2"]
