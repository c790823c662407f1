"""The page for everyone, in a real Chromium: axe-core's findings, sizes to touch, order of keys, languages."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsers import Tab
from playwright.sync_api import expect
from servers import Server, serving

from llava_demo.engines.generate import GenerateEngine

CIRCLE_AND_SQUARE = Path(__file__).parents[1] / "examples" / "circle-and-square.png"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}

Open = Callable[..., Tab]


def findings(tab: Tab) -> list[str]:
    """What axe-core finds that is serious or critical."""
    violations = Axe().run(tab.page, options={"resultTypes": ["violations"]}).response["violations"]
    grave = [violation for violation in violations if violation["impact"] in ("serious", "critical")]
    return [f"{violation['id']}: {node['html'][:200]}" for violation in grave for node in violation["nodes"]]


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"])
def test_axe_finds_nothing_grave(miniature: Server, open_tab: Open, options: dict[str, Any]) -> None:
    tab = open_tab(miniature.url, may_log="status of 400", **options)
    expect(tab.page.locator("#conversation .examples[role=list]")).to_have_count(0)
    expect(tab.page.locator("#new-chat:enabled")).to_have_css("opacity", "1")  # no longer on its way there
    assert findings(tab) == []
    tab.add(CIRCLE_AND_SQUARE)
    pdf = {"name": "notes.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.4 x"}
    tab.page.locator("#box input[type=file]").set_input_files(pdf)  # type: ignore[arg-type]
    expect(tab.page.locator("#refused li")).to_be_visible()
    assert findings(tab) == []
    tab.thumbnails.locator("img").click(position={"x": 20, "y": 40})
    expect(tab.page.get_by_role("dialog")).to_contain_text("pixels")
    assert findings(tab) == []
    tab.page.keyboard.press("Escape")
    tab.ask("What is in this picture?")
    tab.wait_for_end()
    assert findings(tab) == []


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}], ids=["light", "dark"])
def test_axe_finds_nothing_grave_in_a_conversation_whatever_it_shows(
    miniature_engine: GenerateEngine, open_tab: Open, options: dict[str, Any]
) -> None:
    info = replace(miniature_engine.info, max_images=1)
    with serving(GenerateEngine(miniature_engine.llava, info, 2)) as server:
        tab = open_tab(server.url, **options)
        tab.page.get_by_role("button", name="Share").first.click()
        tab.page.locator("#make-link").click()
        expect(tab.page.locator("#link textarea")).to_be_visible()
        assert findings(tab) == []
        tab.page.keyboard.press("Escape")
        expect(tab.page.locator("#share-switch")).to_be_focused()
        tab.set("max_tokens", 3)
        tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
        tab.wait_for_end()
        tab.button("Retry").click()
        expect(tab.page.locator(".versions")).to_be_visible()
        tab.wait_for_end()
        expect(tab.page.get_by_role("button", name="Continue", exact=True)).to_be_visible()
        assert findings(tab) == []
        tab.page.get_by_role("button", name="Conversations").click()
        expect(tab.page.locator("#drawer li")).to_have_count(1)
        assert findings(tab) == []
        tab.page.keyboard.press("Escape")
        tab.question.press("ArrowUp")
        expect(tab.page.locator(".replaces")).to_be_visible()
        assert findings(tab) == []
        tab.page.keyboard.press("Escape")
        with server.broken():
            tab.ask("And now?")
            expect(tab.failures).to_be_visible()
            tab.wait_for_end()
        tab.add(CIRCLE_AND_SQUARE)
        tab.question.press("Enter")
        expect(tab.page.locator(".choices")).to_be_visible()
        assert findings(tab) == []
        tab.page.get_by_role("button", name="Leave out the oldest picture").click()
        expect(tab.page.locator(".is-left-out")).to_be_visible()
        tab.wait_for_end()
        assert findings(tab) == []
        tab.page.close()


@pytest.mark.parametrize(("options", "least"), [({}, 32), (PHONE, 44)], ids=["mouse", "touch"])
def test_buttons_of_messages_are_large_enough_and_alike_ones_have_words(
    miniature: Server, open_tab: Open, options: dict[str, Any], least: int
) -> None:
    tab = open_tab(miniature.url, **options)
    tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
    tab.wait_for_end()
    sizes = tab.page.evaluate(
        """() => [...document.querySelectorAll("#conversation .message-buttons button")]
            .filter(button => button.checkVisibility()).map(button => button.getBoundingClientRect())
            .map(({ width, height }) => Math.min(width, height))"""
    )
    assert sizes
    assert min(sizes) >= least


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


@pytest.mark.parametrize("size", [(640, 410), (844, 390), (390, 420)], ids=["200 % zoom", "landscape", "keyboard open"])
def test_in_a_small_window_one_can_still_ask_and_read(miniature: Server, open_tab: Open, size: tuple[int, int]) -> None:
    tab = open_tab(f"{miniature.url}?temperature=0", viewport={"width": size[0], "height": size[1]})
    tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
    tab.wait_for_end()
    expect(tab.question).to_be_in_viewport(ratio=1)
    expect(tab.answers.last).to_be_in_viewport()
    assert not tab.page.evaluate("document.documentElement.scrollWidth > innerWidth")
