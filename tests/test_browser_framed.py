"""The page in a frame of another site whose cookies are blocked, which is how a Space is shown; in a real Chromium."""

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import OPTIONS, PATIENCE_MS, Tab
from playwright.sync_api import Browser, Page, expect
from servers import Server

CIRCLE_AND_SQUARE = Path(__file__).parents[1] / "examples" / "circle-and-square.png"
BLOCKED = {"profile": {"block_third_party_cookies": True, "cookie_controls_mode": 1}}


@pytest.fixture
def framing(miniature: Server, tmp_path: Path) -> Iterator[str]:
    """The address of another site's web page that shows ours in a frame."""
    frame = f'<iframe src="{miniature.url}" width="1200" height="680"></iframe>'
    (tmp_path / "index.html").write_text(f'<link rel="icon" href="data:,">{frame}')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def blocking(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """A tab of a browser that blocks the cookies of third parties."""
    profile = tmp_path / "profile" / "Default"
    profile.mkdir(parents=True)
    (profile / "Preferences").write_text(json.dumps(BLOCKED))
    chromium = shutil.which("chromium")
    context = browser.browser_type.launch_persistent_context(profile.parent, executable_path=chromium, args=OPTIONS)
    yield context.new_page()
    context.close()


def test_in_a_frame_all_works_but_the_keeping_and_one_line_says_so(framing: str, blocking: Page) -> None:
    troubles: list[str] = []
    blocking.set_default_timeout(PATIENCE_MS)
    blocking.on("pageerror", lambda error: troubles.append(str(error)))
    blocking.on("console", lambda line: troubles.append(line.text) if line.type == "error" else None)
    blocking.goto(framing)
    tab = Tab(blocking.frames[1])  # type: ignore[arg-type]
    blocking.frames[1].locator("#theme-switch:enabled").wait_for(state="attached")
    blocked = "() => { try { return Boolean(localStorage); } catch (error) { return error.name; } }"
    assert tab.page.evaluate(blocked) == "SecurityError"
    expect(tab.page.locator("#unkept")).to_contain_text("the browser stores nothing here")
    tab.set("temperature", 0)
    tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
    expect(tab.answers.last).to_contain_text("red circle")
    tab.wait_for_end()
    tab.page.get_by_role("button", name="New chat").first.click()
    expect(tab.answers).to_have_count(0)
    tab.page.get_by_role("button", name="Conversations").click()
    tab.page.locator("#drawer li .open").click()
    expect(tab.answers.last).to_contain_text("red circle")
    assert not troubles
