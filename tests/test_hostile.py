"""Programs that speak HTTP as no client should: each gets an answer or is let go, and the server goes on for others."""

import gzip
import json
import os
import socket
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest
from checkpoints import engine_of
from pictures import png
from servers import Server, serving
from test_guard import connected, part_of_upload, wait_until

from llava_demo.model.llava import Llava
from llava_demo.serve.connections import LimitedProtocol

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


@pytest.fixture(autouse=True)
def server_goes_on(tiny: Server) -> Iterator[None]:
    yield
    assert httpx.post(f"{tiny.url}v1/chat/completions", json=CHAT, timeout=60).status_code == 200
    tiny.wait_until_free()


def told(server: Server, *parts: bytes) -> bytes:
    """All that comes back for what is sent, until the server closes the connection or says nothing for a while."""
    with connected(server) as connection:
        answer = b""
        try:
            for part in parts:
                connection.sendall(part)
            while piece := connection.recv(65_536):
                answer += piece
        except (ConnectionError, TimeoutError):
            pass
        return answer


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *lines, "", ""]).encode()


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def test_a_body_in_chunks_without_a_length_is_read_and_bounded(tiny: Server) -> None:
    lines = ("Transfer-Encoding: chunked", "Content-Type: application/json")
    whole = json.dumps(CHAT).encode()
    letters = [bytes([letter]) for letter in whole]
    assert status_of(told(tiny, head("/v1/chat/completions", *lines), chunked(*letters))) == 200
    form = ("Transfer-Encoding: chunked", "Content-Type: application/x-www-form-urlencoded")
    assert status_of(told(tiny, head("/gradio_api/reset", *lines), chunked(*[b" " * 2**20] * 4))) == 413
    # FastAPI tells of whatever happens to a form with a 400.
    assert status_of(told(tiny, head("/login", *form), chunked(*[b"a&" * 2**13] * 4))) == 400


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/gradio_api/queue/join", "/gradio_api/upload", "/login"])
def test_a_refusal_reaches_a_client_that_is_still_sending(tiny: Server, path: str) -> None:
    """A socket that is closed before all is read resets the connection."""
    with connected(tiny) as connection:
        connection.sendall(head(path, f"Content-Length: {2**32}"))
        assert connection.recv(1, socket.MSG_PEEK)  # the refusal is here
        for _ in range(8):
            connection.sendall(bytes(2**20))
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert status_of(answer) == 413


def test_a_client_that_sends_on_after_its_refusal_is_let_go(tiny: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LimitedProtocol, "discard_s", 0.2)
    with connected(tiny) as connection:
        connection.sendall(head("/gradio_api/upload", f"Content-Length: {2**32}"))
        with pytest.raises(ConnectionError):
            while True:
                connection.sendall(bytes(2**16))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/gradio_api/queue/join", "/gradio_api/upload", "/login"])
def test_chunks_and_lengths_that_lie_are_refused(tiny: Server, path: str) -> None:
    for wrong in (
        head(path, "Content-Length: -1"),
        head(path, "Content-Length: 5", "Content-Length: 6") + b"hello!",
        head(path, "Content-Length: " + "9" * 5000),
        head(path, "Transfer-Encoding: chunked") + b"zz\r\n",
        head(path, "Transfer-Encoding: gzip, chunked") + chunked(b"x"),
        head(path, "Transfer-Encoding: chunked", "Content-Length: 3") + chunked(b"x"),
    ):
        answer = told(tiny, wrong)
        assert not answer or 400 <= status_of(answer) < 502, answer


@pytest.mark.parametrize(
    "line",
    [
        "GET /?" + "a" * 3_000_000 + " HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + "X: y\r\n" * 50_000 + "\r\n",
        "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + "y" * 3_000_000 + "\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
        "GET /%00%ff%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        "GET /gradio_api/file=/etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        "GET /gradio_api/file=../../../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        "GET //gradio_api//upload HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01",
        "hello\r\n\r\n",
    ],
)
def test_heads_that_no_client_sends_are_refused(tiny: Server, line: str) -> None:
    answer = told(tiny, line.encode("latin-1"))
    assert not answer or 400 <= status_of(answer) < 500, answer[:200]


@pytest.mark.parametrize("host", ["127.0.0.1", "x"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/gradio_api/upload", "/gradio_api/call/ask"])
def test_broken_chunks_are_refused_and_leave_no_traceback(
    tiny: Server, path: str, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    assert status_of(told(tiny, head.encode())) in (400, 403)
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    "path", ["/", "/config", "/v1/models", "/gradio_api/info", "/health/live?x=http://a/b", "?x=1"]
)
def test_a_whole_address_is_a_target_and_its_host_the_one_that_counts(tiny: Server, path: str) -> None:
    """RFC 9112, 3.2.2: a server MUST accept it, and MUST ignore the header."""
    for host, header, status in (
        ("127.0.0.1:80", "evil.example", 200),
        ("LOCALHOST", "127.0.0.1", 200),
        ("evil.example", "127.0.0.1", 403),
        ("127.0.0.1@evil.example", "127.0.0.1", 403),
    ):
        request = f"GET HTTP://{host}{path} HTTP/1.1\r\nHost: {header}\r\nConnection: close\r\n\r\n"
        assert status_of(told(tiny, request.encode())) == status, host


def test_a_check_in_http_1_0_without_a_host_is_answered(tiny: Server) -> None:
    """As those of HAProxy and keepalived are."""
    assert status_of(told(tiny, b"GET /health/ready HTTP/1.0\r\n\r\n")) == 200


@pytest.mark.parametrize("wanted", ["bytes=0-1,4-5", "bytes=9-2", "bytes=-", "lines=1-2", "bytes=0-9"])
def test_ranges_of_a_picture_are_sent_or_all_of_it(tiny: Server, wanted: str) -> None:
    [path] = httpx.post(f"{tiny.url}gradio_api/upload", files={"files": ("a.png", png())}).json()
    answer = httpx.get(f"{tiny.url}gradio_api/file={path}", headers={"range": wanted})
    assert (answer.status_code, len(answer.content)) == ((206, 10) if wanted == "bytes=0-9" else (200, len(png())))


def test_requests_that_do_not_wait_for_answers_get_them_in_order(tiny: Server) -> None:
    get = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    body = json.dumps(CHAT).encode()
    ask = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    last = head("/metrics", method="GET")
    answer = told(tiny, (get + ask) * 20 + last)
    assert answer.count(b"HTTP/1.1 200") == 41
    assert answer.rindex(b"chat.completion") < answer.rindex(b"llava_answers")


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "QUERY"])
@pytest.mark.parametrize("path", ["", "config", "v1/chat/completions", "gradio_api/upload", "gradio_api/queue/join"])
def test_other_methods_are_answered(tiny: Server, method: str, path: str) -> None:
    response = httpx.request(method, tiny.url + path)
    assert response.status_code < 500
    if response.status_code >= 400 and method != "HEAD":
        assert response.text
    assert response.status_code != 405 or response.headers["allow"]


@pytest.mark.parametrize("path", ["v1/chat/completions", "gradio_api/call/ask", "api/chat", "gradio_api/upload"])
def test_a_packed_body_is_not_unpacked(tiny: Server, path: str) -> None:
    """A gigabyte of zeros takes a megabyte."""
    body = gzip.compress(bytes(30_000_000))
    for encoding in ("gzip", "deflate", "br", "gzip, gzip"):
        headers = {"content-encoding": encoding, "content-type": "application/json"}
        response = httpx.post(tiny.url + path, content=body, headers=headers)
        assert 400 <= response.status_code < 500
        assert response.text
        if not path.startswith("gradio_api"):
            assert response.status_code == 415
            assert f"has the encoding '{encoding}'" in response.text


@pytest.mark.parametrize("path", ["", "v1/chat/completions", "gradio_api/queue/join", "gradio_api/heartbeat/a"])
def test_web_sockets_are_refused(tiny: Server, path: str) -> None:
    lines = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    request = head(f"/{path}", *lines, method="GET").replace(b"Connection: close", b"Connection: Upgrade")
    assert status_of(told(tiny, request)) in (400, 403, 404)


def test_an_upload_of_thousands_of_tiny_parts_is_refused_early(tiny: Server) -> None:
    part = part_of_upload() + b"\r\n"
    field = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n'
    lines = ("Content-Type: multipart/form-data; boundary=b", "Content-Length: 9000000")
    for many in (part * 20_000, field * 20_000, b"--b\r\nX: y\r\n" + b"X: y\r\n" * 100_000):
        assert status_of(told(tiny, head("/gradio_api/upload", *lines), many)) in (400, 413)


def test_an_answer_that_nobody_reads_is_given_up(tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed connection waits for its client to take the rest: for ever, if it takes nothing."""
    monkeypatch.setattr(LimitedProtocol, "unread_s", 0.5)
    monkeypatch.setattr(LimitedProtocol, "head_s", 1.0)
    monkeypatch.setattr(LimitedProtocol, "linger_s", 0.5)
    with serving(engine_of(tiny_llava)) as server:
        files = {"files": ("a.png", png() + os.urandom(15_000_000))}
        [path] = httpx.post(f"{server.url}gradio_api/upload", files=files).json()
        port = httpx.URL(server.url).port
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", port))
            deaf.sendall(f"GET /gradio_api/file={path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            mine = deaf.getsockname()[1]

            def is_held() -> bool:
                found = psutil.Process().net_connections("tcp")
                return any(each.laddr.port == port and each.raddr and each.raddr.port == mine for each in found)

            wait_until(is_held)
            wait_until(lambda: not is_held())


def test_a_stream_that_is_read_slowly_is_whole(tiny: Server) -> None:
    body = json.dumps(CHAT | {"max_tokens": 200, "ignore_eos": True, "stream": True}).encode()
    with connected(tiny) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.sendall(head("/v1/chat/completions", f"Content-Length: {len(body)}") + body)
        answer = b""
        while piece := connection.recv(700):
            answer += piece
            time.sleep(0.002)
    assert b"[DONE]" in answer


def test_thousands_of_requests_on_one_connection_leave_nothing(tiny: Server) -> None:
    process = psutil.Process()
    with httpx.Client(base_url=tiny.url) as client:
        client.get("health/live")
        before = process.num_fds()
        for _ in range(300):
            client.get("health/live")
            client.get("gradio_api/nothing")
        assert process.num_fds() <= before + 2
