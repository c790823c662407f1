"""Serving: one port, the health routes, the login, and what is said at the start."""

import asyncio
import errno
import socket
from collections.abc import Iterator

import httpx
import pytest
from checkpoints import engine_of
from pictures import png
from processes import other_server
from servers import Server, free_port, serving

from llava_demo.engines.generate import GenerateEngine
from llava_demo.model.llava import Llava
from llava_demo.serve import launch
from llava_demo.settings import SettingError, Settings


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(("::1", 9)) == errno.ECONNREFUSED


def test_the_page_and_the_health_routes_are_on_one_port(tiny: Server) -> None:
    assert "Ask a picture" in httpx.get(tiny.url).text
    live, ready = httpx.get(f"{tiny.url}health/live"), httpx.get(f"{tiny.url}health/ready")
    assert live.status_code == ready.status_code == 200
    assert live.json() == ready.json()
    load = {"running": 0, "waiting": 0, "cached_tokens": 0}
    assert ready.json() == {"status": "ready", "model": "tiny", "engine": "generate"} | load


def test_a_closed_engine_is_alive_but_not_ready(tiny_llava: Llava) -> None:
    with serving(engine_of(tiny_llava)) as server:
        asyncio.run(server.engine.aclose())
        assert httpx.get(f"{server.url}health/live").status_code == 200
        ready = httpx.get(f"{server.url}health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "failed")


def test_a_space_that_asks_for_server_side_rendering_still_answers_health(
    tiny_engine: GenerateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_SSR_MODE", "True")
    with serving(tiny_engine) as server:
        assert server.health()["status"] == "ready"


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
def test_it_listens_on_an_address_of_ipv6(tiny_llava: Llava, host: str) -> None:
    with serving(engine_of(tiny_llava), host=host) as server:
        assert server.url.startswith(f"http://[{host.strip('[]')}]:")
        assert server.health()["status"] == "ready"


def test_the_queue_is_as_long_as_it_was_set(tiny_llava: Llava) -> None:
    """Gradio by itself holds back what is over 40, so that neither the engine nor the callers know of it."""
    call = {"messages": [{"role": "user", "content": "Tell me a long story."}], "max_tokens": 900}
    with serving(engine_of(tiny_llava, max_queue=64), max_queue=64) as server, server.slow(0.1):
        with httpx.Client(base_url=server.url) as client:
            for _ in range(45):
                assert client.post("gradio_api/call/v2/chat", json=call).status_code == 200
        server.wait_until(running=1, waiting=44)


def test_a_login_is_asked_for_where_one_is_set(tiny_engine: GenerateEngine) -> None:
    with serving(tiny_engine, auth="ada:secret") as server:
        assert httpx.get(f"{server.url}config").status_code == 401
        assert server.health()["status"] == "ready"
        with httpx.Client(base_url=server.url) as browser:
            assert browser.post("login", data={"username": "ada", "password": "wrong"}).status_code == 400
            assert browser.post("login", data={"username": "ada", "password": "secret"}).status_code == 200
            assert browser.get("config").status_code == 200


def test_a_file_over_the_limit_is_refused_while_it_is_uploaded(tiny_engine: GenerateEngine) -> None:
    with serving(tiny_engine, max_image_mb=1) as server:
        for size, status in ((2**19, 200), (2**21, 413)):
            files = {"files": ("a.png", png() + bytes(size))}
            assert httpx.post(f"{server.url}gradio_api/upload", files=files).status_code == status


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_port_in_use_is_said_before_anything_is_loaded(taken_port: int) -> None:
    with pytest.raises(SettingError, match=rf"Port {taken_port} on 127\.0\.0\.1 .* choose another with --port"):
        launch(Settings(port=taken_port, model="/there/is/no/such/model"))


def test_the_start_says_where_and_what_and_why(tiny_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    page, url = launch(Settings(port=port, model=tiny_folder), prevent_thread_lock=True)
    said = capsys.readouterr().out
    assert url == f"http://127.0.0.1:{port}/"
    assert url in said
    for words in ("Ask a picture", "tiny", "batched on CPU, float32, SDPA", "as asked"):
        assert words in said
    page.close(verbose=False)


def test_a_link_that_cannot_be_shared_is_said_and_the_page_goes_on(tiny_folder: str) -> None:
    """No way out of this machine: every proxy is dead."""
    nowhere = dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"
    )
    variables = nowhere | {"LLAVA_SHARE": "true", "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    command = ["llava_demo", "serve", "--model", tiny_folder, "--engine", "generate", "--port", "PORT"]
    with other_server(*command, health="health/ready", variables=variables) as server:
        server.wait_until_said("there is no public link")
        assert "Ask a picture" in httpx.get(server.url).text
