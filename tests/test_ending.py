"""How a server ends: on each signal it takes no more, finishes what runs, tells the rest, deletes uploads, exits 0."""

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from pictures import png
from processes import OtherServer, other_server

SECONDS = 120  # on a machine that does other things too


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "temporary"


@pytest.fixture
def server(tiny_folder: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[OtherServer]:
    folder.mkdir()
    grace = str(getattr(request, "param", 60))
    command = ["llava_demo", "serve", "--model", tiny_folder, "--port", "PORT", "--grace", grace]
    with other_server(*command, health="health/ready", variables={"GRADIO_TEMP_DIR": str(folder)}) as server:
        yield server


def streamed(server: OtherServer, tokens: int, has_begun: threading.Event) -> list[str]:
    """The data of the events of a streamed answer."""
    body = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": tokens, "stream": True}
    events = []
    with httpx.stream("POST", f"{server.url}v1/chat/completions", json=body, timeout=SECONDS) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
            if len(events) > 2:
                has_begun.set()
    return events


def grown(server: OtherServer, tokens: int, has_begun: threading.Event) -> list[str]:
    """The events of an answer of gradio_client's endpoint."""
    body = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": tokens}
    place = f"{server.url}gradio_api/call/v2/chat"
    event = httpx.post(place, json=body, timeout=SECONDS).json()["event_id"]
    events = []
    with httpx.stream("GET", f"{server.url}gradio_api/call/chat/{event}", timeout=SECONDS) as response:
        for line in response.iter_lines():
            if line.startswith("event: "):
                events.append(line.removeprefix("event: "))
                has_begun.set()
    return events


def half_sent(server: OtherServer) -> socket.socket:
    """A request whose body is under way."""
    address = urlsplit(server.url)
    caller = socket.create_connection((address.hostname, address.port), timeout=SECONDS)
    caller.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
    return caller


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_running_answers_finish_new_ones_are_refused_and_uploads_are_deleted(
    server: OtherServer, folder: Path, name: str
) -> None:
    uploaded = httpx.post(f"{server.url}gradio_api/upload", files={"files": ("a.png", png())}).json()
    assert Path(uploaded[0]).is_file()
    assert folder in Path(uploaded[0]).parents
    begun = [threading.Event(), threading.Event()]
    with ThreadPoolExecutor() as threads:
        by_rest = threads.submit(streamed, server, 300, begun[0])
        by_gradio = threads.submit(grown, server, 300, begun[1])
        assert all(each.wait(SECONDS) for each in begun)
        half = half_sent(server)
        server.process.send_signal(getattr(signal, name))
        refusals = 0
        deadline = time.monotonic() + SECONDS
        while not refusals and time.monotonic() < deadline and not by_rest.done():
            body = {"messages": [{"role": "user", "content": "more"}], "max_tokens": 1}
            for path in ("v1/chat/completions", "gradio_api/call/v2/chat", ""):
                response = httpx.request("POST" if path else "GET", server.url + path, json=body if path else None)
                if response.status_code == 503:
                    assert int(response.headers["retry-after"]) > 0
                    refusals += 1
        assert refusals
        assert half.recv(2**16).startswith(b"HTTP/1.1 503")
        half.close()
        assert by_rest.result()[-1] == "[DONE]"
        assert by_gradio.result()[-1] == "complete"
    assert server.process.wait(SECONDS) == 0
    assert not list(folder.rglob("*.png"))
    assert server.said().rstrip().endswith("were deleted")  # nothing is said of "leaked" objects after that


@pytest.mark.parametrize("server", [0], indirect=True)
def test_what_does_not_finish_in_time_is_told(server: OtherServer) -> None:
    begun = [threading.Event(), threading.Event()]
    with ThreadPoolExecutor() as threads:
        by_rest = threads.submit(streamed, server, 900, begun[0])
        by_gradio = threads.submit(grown, server, 900, begun[1])
        assert all(each.wait(SECONDS) for each in begun)
        server.process.send_signal(signal.SIGTERM)
        assert "shutting down" in json.loads(by_rest.result()[-1])["error"]["message"]
        assert by_gradio.result()[-1] == "error"
    assert server.process.wait(SECONDS) == 0
