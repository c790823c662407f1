"""Web addresses given to gradio_client's endpoints: fetched by our own downloads, or not at all; never by Gradio."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from pictures import png
from servers import Server, serving

from llava_demo.engines.generate import GenerateEngine
from llava_demo.images import ImageLimits
from llava_demo.images.download import Downloads
from llava_demo.ui.endpoints import add_endpoints


class Web(http.server.ThreadingHTTPServer):
    """A picture at /red.png, and who asked for it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Pages)
        self.asked: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/red.png"


class _Pages(http.server.BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        self.server.asked.append(self.headers["User-Agent"])
        body = png("red")
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@contextmanager
def client_of(url: str) -> Iterator[Client]:
    client = Client(url, verbose=False)
    yield client
    client.close()


def chat_with(image_url: Any) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": image_url}, {"type": "text", "text": "Hello"}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 3}


def asked_in_every_way(client: Client, url: str) -> Iterator[Any]:
    """Each way to name a web address, as a call that is still to be made."""
    yield lambda: client.predict(image=handle_file(url), prompt="Hello", max_tokens=3, api_name="/ask")
    yield lambda: client.predict(**chat_with({"url": url}), api_name="/chat")
    yield lambda: client.predict(**chat_with(url), api_name="/chat")
    yield lambda: client.predict(**chat_with(handle_file(url)), api_name="/chat")
    content = [handle_file(url), {"type": "text", "text": "Hello"}]
    yield lambda: client.predict(messages=[{"role": "user", "content": content}], max_tokens=3, api_name="/chat")


def test_an_address_that_is_not_public_is_refused_in_words_and_never_called(tiny: Server, web: Web) -> None:
    with client_of(tiny.url) as client:
        for call in asked_in_every_way(client, web.url):
            with pytest.raises(AppError, match="not public"):
                call()
    assert web.asked == []


def test_where_nothing_is_fetched_nothing_is_fetched(tiny_engine: GenerateEngine, web: Web) -> None:
    with serving(tiny_engine, fetch_urls=False) as server, client_of(server.url) as client:
        for call in asked_in_every_way(client, web.url):
            with pytest.raises(AppError, match="fetches no web addresses"):
                call()
    assert web.asked == []


def test_a_picture_from_the_web_is_answered_as_the_same_file_is(
    tiny_engine: GenerateEngine, web: Web, tmp_path: Any
) -> None:
    """The guard is told that this machine is public, since the tests have no Internet."""
    (tmp_path / "red.png").write_bytes(png("red"))
    limits = ImageLimits()
    with gr.Blocks(analytics_enabled=False) as page:
        add_endpoints(page, tiny_engine, limits, Downloads(limits, is_allowed=lambda _: True))
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    with client_of(url) as client:
        sampling = {"temperature": 0, "max_tokens": 8}
        file = handle_file(tmp_path / "red.png")
        expected = client.predict(image=file, prompt="Hello", **sampling, api_name="/ask")
        assert client.predict(image=handle_file(web.url), prompt="Hello", **sampling, api_name="/ask") == expected
        for image_url in (web.url, {"url": web.url}, handle_file(web.url)):
            assert client.predict(**chat_with(image_url) | sampling, api_name="/chat") == expected
    page.close(verbose=False)
    assert web.asked == ["llava_demo"] * 4


def test_the_pages_own_events_fetch_nothing_either(tiny: Server, web: Web) -> None:
    """Their inputs hold files as well, and anybody can post to them."""
    file = {"path": web.url, "url": web.url, "meta": {"_type": "gradio.FileData"}}
    config = httpx.get(f"{tiny.url}config").json()
    sends = [event for event in config["dependencies"] if "submit" in str(event["targets"])]
    inputs = {component["id"]: component["props"].get("value") for component in config["components"]}
    _, _, *knobs = sends[0]["inputs"]
    data = [{"text": "Hello", "files": [file]}, [], *(inputs[knob] for knob in knobs)]
    call = {"fn_index": sends[0]["id"], "data": data, "session_hash": "somebody"}
    assert httpx.post(f"{tiny.url}gradio_api/queue/join", json=call).status_code == 200
    with httpx.stream("GET", f"{tiny.url}gradio_api/queue/data?session_hash=somebody", timeout=30) as events:
        told = next(line for line in events.iter_lines() if "process_" in line and "starts" not in line)
    assert "There is no such picture file" in told
    assert web.asked == []
