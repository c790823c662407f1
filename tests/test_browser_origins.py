"""What web pages of other sites get from the server, and what they can make it do, in a real Chromium."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from checkpoints import engine_of
from playwright.sync_api import Browser, BrowserContext
from servers import Server, serving

from llava_demo.model.llava import Llava

FETCH = """async ([url, options]) => {
    try {
        const answer = await fetch(url, options);
        return answer.type === "opaque" ? "sent" : await answer.text();
    } catch (error) {
        return error.name;
    }
}"""
HELLO = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1})
UNASKED = {"method": "POST", "mode": "no-cors", "headers": {"Content-Type": "text/plain"}, "body": HELLO}
FORM = """url => {
    const form = document.createElement("form");
    Object.assign(form, {action: url, method: "post", enctype: "text/plain"});
    form.append(Object.assign(document.createElement("input"), {name: '{"prompt": "Hello", "a": "', value: '"}'}));
    document.body.append(form);
    form.submit();
}"""
WITH_COOKIES = {"credentials": "include"}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of another site on this machine; Chromium finds evil.example here too."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "index.html").write_text("<link rel=icon href=data:,>")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield site.server_port
        site.shutdown()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    yield context
    context.close()


def test_a_page_of_another_site_reads_nothing_and_asks_nothing(
    tiny: Server, context: BrowserContext, port: int
) -> None:
    page, statuses = context.new_page(), dict[str, int]()
    page.on("response", lambda answer: statuses.update({answer.url.removeprefix(tiny.url): answer.status}))

    def fetched(path: str, **options: Any) -> Any:
        return page.evaluate(FETCH, [f"{tiny.url}{path}", options])

    page.goto(f"http://localhost:{port}/")
    assert "ready" in fetched("health/ready"), "another page of this machine"
    page.goto(f"http://evil.example:{port}/")
    statuses.clear()  # Chromium tells those of what the page may not read only where it asked for nothing to read
    for path in ("config", "health/ready", "v1/models"):
        assert fetched(path) == "TypeError"
    asking = ("v1/chat/completions", "gradio_api/call/chat", "api/chat")
    for path in asking:
        assert fetched(path, **UNASKED) == "sent"
    with page.expect_navigation():
        page.evaluate(FORM, f"{tiny.url}api/generate")
    assert statuses == dict.fromkeys([*asking, "api/generate"], 403)
    rebound = page.goto(f"http://evil.example:{httpx.URL(tiny.url).port}/config")
    assert rebound is not None and rebound.status == 403, "a name that leads here from now on"


def test_with_a_login_no_other_page_reads_with_the_visitors_cookies(
    tiny_llava: Llava, context: BrowserContext, port: int
) -> None:
    """Cookies do not tell ports apart, so that the browser sends them."""
    with serving(engine_of(tiny_llava), auth="ada:secret") as server:
        page = context.new_page()
        login = context.request.post(f"{server.url}login", form={"username": "ada", "password": "secret"})
        assert login.ok and context.cookies()
        page.goto(f"{server.url}gradio_api/info")
        assert "/ask" in page.evaluate(FETCH, [f"{server.url}gradio_api/info", {}]), "the server's own page"
        page.goto(f"http://127.0.0.1:{port}/")
        for path in ("gradio_api/info", "config", "v1/models"):
            for options in (WITH_COOKIES, WITH_COOKIES | {"headers": {"X-Asked": "first"}}, {}):
                assert page.evaluate(FETCH, [f"{server.url}{path}", options]) == "TypeError", (path, options)
