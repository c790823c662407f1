"""Chromium, one for all tests of the page, and the demo's page in it.

Where there is no Chromium the tests that need one are skipped, unless REQUIRE_BROWSER=1 forbids it.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, expect, sync_playwright

PATIENCE_MS = 60_000  # of a machine that does other things too
# A window of Chromium 156 has two web pages of its own, for what is typed into its address bar: a third of the
# time of a new tab. The others are what Playwright 1.65 switches off, of which the last option on the list counts.
SWITCHED_OFF = [
    *("WebUIOmniboxPopup", "WebUIOmniboxAimPopup", "AimEnabled", "AvoidCorsURLLoaderRestartOnRedirect"),
    *("AvoidUnnecessaryBeforeUnloadCheckSync", "DestroyProfileOnBrowserClose", "HttpsFirstBalancedModeAutoEnable"),
    *("HttpsUpgrades", "LensOverlay", "MediaRouter", "NetworkTimeServiceQuerying", "OptimizationHints"),
    *("PaintHolding", "PreconnectToSearch", "ThirdPartyStoragePartitioning"),
]
OPTIONS = [
    f"--disable-features={','.join(SWITCHED_OFF)}",
    "--disable-extensions",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--use-fake-device-for-media-stream",
    "--host-resolver-rules=MAP *.example 127.0.0.1",
]


WINDOW: dict[str, Any] = {"viewport": {"width": 1280, "height": 820}}


class Tab:
    """The page in one browser tab, with the words of somebody who uses it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.conversation = page.locator("#conversation")
        self.question = page.locator("#box textarea")
        self.send = page.locator("#box button.submit-button")
        self.stop = page.locator("#box button.stop-button")
        self.cards = page.locator("#conversation button.example")
        self.answers = page.locator("#conversation [data-testid=bot]:not(:has(.thought-group))")
        self.notes = page.locator("#conversation .thought-group")
        # An answer's numbers have an empty one for a moment, without height.
        self.failures = page.locator("#conversation .thought-group .content").filter(has_text=re.compile(r"\S"))
        self.pictures = page.locator("#conversation [data-testid=user] img")
        self.thumbnails = page.locator("#box .thumbnail-item")
        self.refusal = page.locator("#refusal p")

    def add(self, *files: str | Path | dict[str, Any]) -> None:
        before = self.thumbnails.count()
        self.page.locator("#box input[type=file]").set_input_files(list(files))  # type: ignore[arg-type]
        self.thumbnails.nth(before + len(files) - 1).wait_for()

    def ask(self, text: str, *files: str | Path | dict[str, Any]) -> None:
        """Send a question with the Enter key; returns when its answer is on its way."""
        if files:
            self.add(*files)
        self.question.fill(text)
        self.question.press("Enter")
        self.conversation.locator("[data-testid=user]", has_text=text).last.wait_for()

    def set(self, knob: str, value: float) -> None:
        """Give a setting a value; the panel is closed before and after it."""
        switch, box = self.page.locator("#panel-switch"), self.page.locator(f"#{knob} input[type=number]")
        switch.click()
        box.fill(str(value))
        box.blur()
        switch.click()

    def wait_for_end(self) -> None:
        self.send.wait_for()

    def button(self, name: str) -> Locator:
        return self.conversation.get_by_role("button", name=name, exact=True)


@pytest.fixture(scope="module")  # one module has all tests that need it; while it lives, asyncio.run is impossible
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        words = "there is no chromium on the PATH (apt-get install chromium)"
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(words)
        pytest.skip(words)
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def usual_context(browser: Browser) -> Iterator[BrowserContext]:
    """For one tab of each test: its cache has the page's 120 files, which take 0.6 s of a CPU to fetch."""
    context = browser.new_context(**WINDOW)
    yield context
    context.close()


@pytest.fixture
def open_tab(browser: Browser, usual_context: BrowserContext) -> Iterator[Callable[..., Tab]]:
    """Opens tabs, each as a visitor of its own. At the end: no error on a console, no request to another host."""
    opened, troubles = dict[BrowserContext, str](), list[str]()

    def open_at(url: str, may_log: str = "", **options: Any) -> Tab:
        """`may_log` is in those errors on the console that the test itself causes."""

        def is_fine(line: ConsoleMessage) -> bool:
            return line.type != "error" or bool(may_log and may_log in line.text)

        is_usual = not (may_log or options or opened)  # what fails on the way must not come from a cache
        context = usual_context if is_usual else browser.new_context(**(WINDOW | options))
        opened[context] = url
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: troubles.append(f"uncaught: {error}"))
        page.on("console", lambda line: None if is_fine(line) else troubles.append(f"console: {line.text}"))
        page.on("request", lambda request: None if _is_own(request.url, url) else troubles.append(request.url))
        page.goto(url)
        tab = Tab(page)
        tab.question.wait_for()
        page.locator("#theme-switch:enabled").wait_for(state="attached")  # the page's scripts listen
        return tab

    yield open_at
    for context, url in opened.items():
        if context is usual_context:
            _forget(context, url)
        else:
            context.close()
    assert not troubles


def _forget(context: BrowserContext, url: str) -> None:
    """Close its tabs and drop all that the page at `url` kept, cookies too; the cache stays."""
    for tab in context.pages:
        tab.close()
    empty = context.new_page()  # one that stays could be the page that Chromium thinks is looked at
    origin = httpx.URL(url).copy_with(raw_path=b"/")
    storage = context.new_cdp_session(empty)
    storage.send("Storage.clearDataForOrigin", {"origin": str(origin), "storageTypes": "all"})
    empty.close()
    context.clear_cookies()


def _is_own(address: str, url: str) -> bool:
    return address.startswith((url.split("?")[0], "data:", "blob:"))
