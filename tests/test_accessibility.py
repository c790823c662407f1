"""The page for everyone, in a real Chromium: axe-core's findings, sizes to touch, order of keys, languages."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from browsers import Tab
from playwright.sync_api import expect
from servers import Server, serving

from llava_demo.engines.generate import GenerateEngine

CIRCLE_AND_SQUARE = Path(__file__).parents[1] / "examples" / "circle-and-square.png"

Open = Callable[..., Tab]


GRAVE = """async (look) => {
    document.body.classList.toggle("dark", look.includes("dark"));
    const { violations } = await axe.run({ resultTypes: ["violations"], preload: false });
    document.body.classList.remove("dark");
    return violations.filter(({ impact }) => ["serious", "critical"].includes(impact))
        .flatMap(({ id, nodes }) => nodes.map(({ html }) => `${look}: ${id}: ${html.slice(0, 200)}`)); }"""


# Buttons that a finger may miss: they are smaller than 44 pixels.
SMALL = """() => [...document.querySelectorAll(".switches button, #box button, #chips button, .thumbnails button")]
    .filter(button => button.checkVisibility())
    .map(button => [button.id || button.className, button.getBoundingClientRect()])
    .filter(([, { width, height }]) => Math.min(width, height) < 43.5).map(([name]) => name)"""


@contextmanager
def as_phone(tab: Tab, width: int = 390, height: int = 844) -> Iterator[None]:
    """Within the block the window has this size and is touched: a page of its own would have to be loaded."""
    devices = tab.page.context.new_cdp_session(tab.page)
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
    devices.send("Emulation.setDeviceMetricsOverride", size)
    devices.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    assert tab.page.evaluate("matchMedia('(pointer: coarse) and (hover: none)').matches")
    yield
    devices.send("Emulation.setTouchEmulationEnabled", {"enabled": False})
    devices.send("Emulation.clearDeviceMetricsOverride")
    devices.detach()


def expect_nothing_grave(tab: Tab) -> None:
    """Ask axe-core what it finds serious or critical by any rule: light and dark, in a window and on a phone."""
    if not tab.page.evaluate("'axe' in window"):
        tab.page.evaluate(Axe().axe_script)
        tab.page.add_style_tag(
            content="*, ::before, ::after { transition: none !important; animation: none !important; }"
        )
    found = [finding for look in ("light", "dark") for finding in tab.page.evaluate(GRAVE, look)]
    with as_phone(tab):
        found += [finding for look in ("phone", "dark phone") for finding in tab.page.evaluate(GRAVE, look)]
    assert found == []


def test_axe_finds_nothing_grave_whatever_the_page_shows(miniature_engine: GenerateEngine, open_tab: Open) -> None:
    """One walk through all that the page can show, since a page takes longer to load than to be judged."""
    info = replace(miniature_engine.info, max_images=1)
    with serving(GenerateEngine(miniature_engine.llava, info, 2)) as server:
        tab = open_tab(f"{server.url}?max_tokens=3", may_log="status of 400")
        walk_before_a_question(tab)
        walk_through_answers(tab)
        with server.broken():
            tab.ask("And now?")
            expect(tab.failures).to_be_visible()
            tab.wait_for_end()
        tab.add(CIRCLE_AND_SQUARE)
        tab.question.press("Enter")
        expect(tab.page.locator(".choices")).to_be_visible()
        expect_nothing_grave(tab)
        tab.page.get_by_role("button", name="Leave out the oldest picture").click()
        expect(tab.page.locator(".is-left-out")).to_be_visible()
        tab.wait_for_end()
        tab.page.locator("#panel-switch").click()
        tab.page.get_by_role("button", name="More").click()
        expect_nothing_grave(tab)
        tab.page.close()


def walk_before_a_question(tab: Tab) -> None:
    expect(tab.page.locator("#conversation .examples[role=list]")).to_have_count(0)
    expect_nothing_grave(tab)
    tab.page.get_by_role("button", name="Share").first.click()
    tab.page.locator("#make-link").click()
    expect(tab.page.locator("#link textarea")).to_be_visible()
    expect_nothing_grave(tab)
    tab.page.keyboard.press("Escape")
    expect(tab.page.locator("#share-switch")).to_be_focused()
    tab.add(CIRCLE_AND_SQUARE)
    pdf: Any = {"name": "notes.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.4 x"}
    tab.page.locator("#box input[type=file]").set_input_files(pdf)
    expect(tab.page.locator("#refused li")).to_be_visible()
    expect_nothing_grave(tab)
    tab.thumbnails.locator("img").click(position={"x": 20, "y": 40})
    expect(tab.page.get_by_role("dialog")).to_contain_text("pixels")
    expect_nothing_grave(tab)
    tab.page.keyboard.press("Escape")


def walk_through_answers(tab: Tab) -> None:
    tab.ask("What is in this picture?")
    tab.wait_for_end()
    tab.button("Retry").click()
    expect(tab.page.locator(".versions")).to_be_visible()
    tab.wait_for_end()
    expect(tab.page.get_by_role("button", name="Continue", exact=True)).to_be_visible()
    expect_nothing_grave(tab)
    tab.page.get_by_role("button", name="Conversations").click()
    expect(tab.page.locator("#drawer li")).to_have_count(1)
    expect_nothing_grave(tab)
    tab.page.keyboard.press("Escape")
    tab.question.press("ArrowUp")
    expect(tab.page.locator(".replaces")).to_be_visible()
    expect_nothing_grave(tab)
    tab.page.keyboard.press("Escape")


def test_keys_reach_only_what_can_be_seen(miniature: Server, open_tab: Open) -> None:
    tab = open_tab(miniature.url, viewport={"width": 1000, "height": 800})
    tab.add(CIRCLE_AND_SQUARE)
    tab.question.focus()
    seen = set()
    for _ in range(40):
        tab.page.keyboard.press("Tab")
        where = tab.page.evaluate(
            """() => { const e = document.activeElement, r = e.getBoundingClientRect();
                const isOut = !e.checkVisibility() || r.right <= 0 || r.left >= innerWidth || !r.width;
                return e === document.body ? "" : (isOut ? "HIDDEN " : "") + e.outerHTML.slice(0, 120); }"""
        )
        seen.add(where)
    assert not [where for where in seen if where.startswith("HIDDEN")]


def test_the_language_is_that_of_the_words_and_texts_begin_at_their_own_side(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url, locale="de-DE")
    expect(tab.page.locator("html")).to_have_attribute("lang", "en")
    expect(tab.question).to_have_attribute("dir", "auto")
    tab.set("max_tokens", 4)
    tab.ask("ما هذا؟")
    tab.wait_for_end()
    question = tab.conversation.locator("[data-testid=user] span").first
    assert question.evaluate("text => [text.dir, getComputedStyle(text).direction]") == ["auto", "rtl"]


def test_where_motion_is_to_be_reduced_nothing_moves(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url, reduced_motion="reduce")
    tab.add(CIRCLE_AND_SQUARE)
    moving = """() => [...document.querySelectorAll("*")].filter(element => {
            const { transitionDuration, animationName, animationDuration, animationIterationCount, scrollBehavior }
                = getComputedStyle(element);
            const longest = Math.max(...`${transitionDuration}, ${animationDuration}`.split(", ").map(parseFloat));
            const isEndless = animationName !== "none" && animationIterationCount !== "1";
            return longest > 0.01 || isEndless || scrollBehavior !== "auto";
        }).map(element => element.outerHTML.slice(0, 120))"""
    with tiny.slow(0.1):
        tab.ask("Tell me a story.")
        assert tab.page.evaluate(moving) == []
        tab.stop.click()
    tab.wait_for_end()


def test_in_a_small_window_one_can_still_ask_and_read_and_buttons_are_large_enough(
    miniature: Server, open_tab: Open
) -> None:
    sizes = """() => [...document.querySelectorAll("#conversation .message-buttons button")]
        .filter(button => button.checkVisibility()).map(button => button.getBoundingClientRect())
        .map(({ width, height }) => Math.min(width, height))"""
    tab = open_tab(f"{miniature.url}?temperature=0")
    tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
    tab.wait_for_end()
    assert min(tab.page.evaluate(sizes)) >= 32
    for name, size in {"200 % zoom": (640, 410), "landscape": (844, 390), "keyboard open": (390, 420)}.items():
        with as_phone(tab, *size):
            expect(tab.question, name).to_be_in_viewport(ratio=1)
            expect(tab.page.locator("#status .lamp"), name).to_be_in_viewport(ratio=0.9)
            expect(tab.answers.last, name).to_be_in_viewport()
            assert not tab.page.evaluate("document.documentElement.scrollWidth > innerWidth"), name
            assert min(tab.page.evaluate(sizes)) >= 44
            tab.page.wait_for_function(f"({SMALL})().length === 0")
            if size[0] > 600:  # else there is room for the lamp only
                expect(tab.page.locator("#served b"), name).to_be_in_viewport(ratio=0.9)
    tab.page.evaluate(
        """() => {
            Object.defineProperty(visualViewport, "height", { value: innerHeight - 300 }); // Safari's keyboard
            visualViewport.dispatchEvent(new Event("resize")); }"""
    )
    expect(tab.answers.last).to_be_in_viewport()
    assert tab.question.bounding_box()["y"] < 820 - 300 - 20  # type: ignore[index]
