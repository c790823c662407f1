"""The page without its server for a while: no network, or a server that was restarted; in a real Chromium.

Gradio by itself refuses every further event then, and reloads the page once the server answers again.
"""

import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
import pytest
from browsers import Tab
from pictures import png
from playwright.sync_api import expect
from servers import Server, free_port, serving

from llava_demo.engines.generate import GenerateEngine

CIRCLE_AND_SQUARE = Path(__file__).parents[1] / "examples" / "circle-and-square.png"
RED = {"name": "red.png", "mimeType": "image/png", "buffer": png()}
SOMETHING = re.compile(r"\S")
MAY_LOG = "Failed to load resource"  # the browser's own words for each request without a network

Open = Callable[..., Tab]


def mark(tab: Tab) -> None:
    tab.page.evaluate("window.isTheSamePage = true")


def expect_the_same_page(tab: Tab) -> None:
    assert tab.page.evaluate("window.isTheSamePage"), "the page was reloaded"


class Cable:
    """Between the browser and a server. Chromium's own emulation of a lost network leaves open streams alone."""

    def __init__(self, url: str) -> None:
        self._server = (urlsplit(url).hostname, urlsplit(url).port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/"
        self._open: set[socket.socket] = set()
        self._is_cut = self._is_silent = False
        self.events = 0  # that were passed on to the server
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def cut(self) -> Iterator[None]:
        self._is_cut = True
        self._close_all()
        yield
        self._is_cut = False

    @contextmanager
    def silent(self) -> Iterator[None]:
        """All packets are lost, and nobody is told; then the connections break, and browsers send some again."""
        self._is_silent = True
        yield
        self._is_silent = False
        self._close_all()

    def close(self) -> None:
        self._listening.close()
        self._close_all()

    def _close_all(self) -> None:
        for end in list(self._open):
            _close(end)

    def _accept(self) -> None:
        while True:
            try:
                browser, _ = self._listening.accept()
            except OSError:  # closed
                return
            if self._is_cut:
                _close(browser)
                continue
            server = socket.create_connection(self._server)
            self._open |= {browser, server}
            for source, sink in ((browser, server), (server, browser)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):  # one end is closed
            while data := source.recv(2**16):
                if not self._is_silent:
                    self.events += data.startswith(b"POST /gradio_api/queue/join")
                    sink.sendall(data)
        _close(source)
        _close(sink)


def _close(end: socket.socket) -> None:
    with suppress(OSError):  # it was closed before
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@pytest.fixture
def cable_to() -> Iterator[Callable[[Server], Cable]]:
    cables = []

    def cable(server: Server) -> Cable:
        cables.append(Cable(server.url))
        return cables[-1]

    yield cable
    for made in cables:
        made.close()


def expect_reachable(tab: Tab, state: str = "ready") -> None:
    expect(tab.page.locator(".masthead .lamp")).to_have_attribute("data-state", state)


def test_an_answer_that_loses_its_connection_keeps_its_words_and_can_be_asked_for_again(
    tiny: Server, open_tab: Open, cable_to: Callable[[Server], Cable]
) -> None:
    cable = cable_to(tiny)
    tab = open_tab(cable.url, may_log=MAY_LOG)
    mark(tab)
    with tiny.slow():
        tab.ask("Tell me a long story.", RED)
        expect(tab.answers.last).to_have_text(SOMETHING)
        tab.question.fill("And then")
        with cable.cut():
            expect(tab.failures).to_contain_text("The connection to the server was lost.")
            expect(tab.notes.last).to_contain_text("The answer broke off")
            expect(tab.answers.last).to_have_text(SOMETHING)
            tiny.wait_until_free()
            expect_reachable(tab, "unreachable")
            expect(tab.page.locator(".toast-body")).to_have_count(0)
        expect_reachable(tab)
    tab.set("max_tokens", 5)
    tab.button("Retry").click()
    expect(tab.notes.last).to_contain_text("5 tokens")
    expect(tab.question).to_have_value("And then")
    expect_the_same_page(tab)


def test_nothing_that_is_done_without_a_network_is_lost(
    miniature: Server, open_tab: Open, cable_to: Callable[[Server], Cable]
) -> None:
    cable = cable_to(miniature)
    tab = open_tab(f"{cable.url}?temperature=0", may_log=MAY_LOG)
    mark(tab)
    tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
    tab.wait_for_end()
    editor = tab.conversation.locator("textarea")
    kept_back = tab.page.locator("#refused li")
    tab.question.fill("What color is the square?")
    with cable.cut():
        expect_reachable(tab, "unreachable")  # idle all the time until the page has noticed
        for _ in range(2):
            tab.question.press("Enter")
            expect(tab.refusal).to_contain_text("The server cannot be reached. Nothing was sent, and nothing is lost")
        tab.button("Retry").click()
        expect(tab.answers.last).to_contain_text("red circle")  # the answer that was there stays
        expect(tab.question).to_have_value("What color is the square?")
        tab.page.locator("#box input[type=file]").set_input_files([RED])  # type: ignore[list-item]
        expect(kept_back).to_contain_text("cannot be reached")
        tab.conversation.locator("[data-testid=user]").last.hover()
        tab.button("Edit").click()
        editor.fill("How many shapes are there?")
        editor.press("Enter")
        expect(tab.refusal).to_have_count(1)
        expect(editor).to_have_value("How many shapes are there?")
        expect(tab.answers.last).to_contain_text("red circle")
        expect(tab.page.locator(".toast-body")).to_have_count(0)
    expect_reachable(tab)
    expect(tab.thumbnails).to_have_count(1)  # it was uploaded as soon as that could be
    expect(kept_back).to_have_count(0)
    editor.press("Enter")
    expect(tab.answers.last).to_contain_text("two")
    expect(tab.refusal).to_have_count(0)
    tab.wait_for_end()
    with cable.cut():
        tab.button("Undo").click()
        expect(tab.question).to_have_value("How many shapes are there?\nWhat color is the square?")
        expect(tab.thumbnails).to_have_count(2)
        tab.page.locator("#box input[type=file]").set_input_files([RED])  # type: ignore[list-item]
        expect(kept_back).to_contain_text("cannot be reached")
    tab.question.press("Enter")  # with the picture that was kept back
    expect(tab.pictures).to_have_count(3)
    expect(kept_back).to_have_count(0)
    expect_the_same_page(tab)


# In place of our server's answers: what a hotel's Wi-Fi says, or a head whose body never comes.
STRANGE = """{
    const fetch = window.fetch;
    const broken = () => new ReadableStream({ start: (body) => body.error(new TypeError()) });
    const says = { "a hotel": () => ["<h1>Welcome! Please log in.</h1>", "text/html"],
        "a broken body": () => [broken(), "application/json"] };
    window.fetch = (...asked) => {
        const isEvent = /queue.join|run/.test(asked[0].url ?? asked[0]);
        if (!window.strange || !isEvent) return fetch(...asked);
        window.strangeRuns = (window.strangeRuns ?? 0) + /run/.test(asked[0].url ?? asked[0]);
        const [body, type] = says[window.strange]();
        return Promise.resolve(new Response(body, { headers: { "content-type": type } }));
    };
}"""


@pytest.mark.parametrize("strange", ["a hotel", "a broken body"])
def test_what_is_not_a_whole_answer_of_our_server_is_none(tiny: Server, open_tab: Open, strange: str) -> None:
    """Gradio reloaded the page, or was never done."""
    tab = open_tab(tiny.url, may_log=MAY_LOG)
    tab.page.add_init_script(STRANGE)
    tab.page.reload()
    mark(tab)
    tab.page.evaluate("strange => { window.strange = strange; }", strange)
    tab.question.fill("What is this?")
    tab.question.press("Enter")
    expect(tab.refusal).to_contain_text("The server cannot be reached. Nothing was sent, and nothing is lost")
    tab.page.locator("#code-switch").click()  # an event without the queue
    tab.page.wait_for_function("window.strangeRuns > 0")
    tab.page.evaluate("window.strange = ''")
    tab.page.locator("#code-switch").click()
    tab.page.locator("#code dialog .close").click()
    tab.question.press("Enter")
    expect(tab.answers.last).to_have_text(SOMETHING)
    expect_the_same_page(tab)


def test_an_upload_that_something_else_answers_can_be_tried_again(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url)
    page = {"content_type": "text/html", "body": "<h1>Welcome! Please log in.</h1>"}
    tab.page.route("**/gradio_api/upload*", lambda route: route.fulfill(**page))
    tab.page.locator("#box input[type=file]").set_input_files([RED])  # type: ignore[list-item]
    refused = tab.page.locator("#refused li")
    expect(refused).to_contain_text("The server cannot be reached.")
    tab.page.unroute_all()
    refused.get_by_role("button", name="Try again").click()
    expect(tab.thumbnails).to_have_count(1)


# The page's patience with a silent network is under the test's control: no time passes, and no machine is too slow.
PATIENCE = """{
    const [set, clear] = [window.setTimeout, window.clearTimeout];
    const waits = new Map();
    window.setTimeout = (act, ms, ...given) => {
        const timer = set(() => { waits.delete(timer); act(...given); }, ms);
        if (ms === 20_000) waits.set(timer, act);
        return timer;
    };
    window.clearTimeout = (timer) => { waits.delete(timer); clear(timer); };
    window.isPatient = () => waits.size > 0;
    window.losePatience = () => { for (const [timer, act] of waits) { window.clearTimeout(timer); act(); } };
}"""


def lose_patience(tab: Tab) -> None:
    tab.page.wait_for_function("window.isPatient()")
    tab.page.evaluate("window.losePatience()")


def test_a_network_that_swallows_everything_and_closes_nothing_is_noticed(
    tiny: Server, open_tab: Open, cable_to: Callable[[Server], Cable]
) -> None:
    cable = cable_to(tiny)
    tab = open_tab(cable.url, may_log=MAY_LOG)
    tab.page.add_init_script(PATIENCE)
    tab.page.reload()
    with tiny.slow(0.1):
        tab.ask("Tell me a long story.")
        expect(tab.answers.last).to_have_text(SOMETHING)
        with cable.silent():
            tab.stop.click()
            expect(tab.notes.last).to_have_text("Stopped")
        tiny.wait_until_free()
        tab.ask("Tell me another one.")
        expect(tab.answers).to_have_count(2)
        tab.page.evaluate("fetch('health/live')")  # what is sent over a used connection is sent again when that breaks
        with cable.silent():
            lose_patience(tab)
            expect(tab.failures).to_contain_text("The connection to the server was lost.")
            tab.question.fill("And then?")
            tab.question.press("Enter")
            lose_patience(tab)
            expect(tab.refusal).to_contain_text("The server cannot be reached.")
            expect(tab.question).to_have_value("And then?")
        tiny.wait_until_free()
    events = cable.events
    tab.question.press("Enter")
    expect(tab.answers).to_have_count(3)
    expect(tab.refusal).to_have_count(0)
    tab.wait_for_end()
    assert (events, cable.events) == (2, 3), "a question that was given up was sent, unseen"


def test_a_server_that_was_restarted_under_the_open_page_answers_about_pictures_of_before(
    miniature_engine: GenerateEngine, open_tab: Open
) -> None:
    port = free_port()
    llava, info = miniature_engine.llava, miniature_engine.info
    with serving(GenerateEngine(llava, info, 2), port=port) as server:
        tab = open_tab(server.url, may_log=MAY_LOG)
        mark(tab)
        tab.set("temperature", 0)
        tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
        expect(tab.answers.last).to_contain_text("red circle")
        tab.wait_for_end()
        tab.question.fill("What color is the square?")
    shutil.rmtree(gr.utils.get_upload_folder())
    with serving(GenerateEngine(llava, info, 2), port=port):
        tab.question.press("Enter")
        expect(tab.answers.last).to_contain_text("blue")
        tab.wait_for_end()
        tab.button("Retry").click()
        expect(tab.notes.last).to_contain_text("tokens")
        expect_the_same_page(tab)
        tab.page.close()
