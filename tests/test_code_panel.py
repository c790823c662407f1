"""The panel "Use in code" in a real Chromium: what it shows is what was asked, and what is copied runs."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsers import Tab
from checkpoints import engine_of
from pictures import png
from playwright.sync_api import Locator, expect
from servers import Server, serving

from llava_demo.model.llava import Llava
from llava_demo.ui.code import Snippet
from llava_demo.ui.code_panel import panel_html, unused_name

DRAWING = Path(__file__).parents[1] / "examples" / "circle-and-square.png"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
CLIPBOARD = {"permissions": ["clipboard-read", "clipboard-write"]}
WAYS = ["Python", "OpenAI", "Responses", "Ollama", "Cloudflare", "JavaScript", "curl"]

Open = Callable[..., Tab]


def dialog_of(tab: Tab) -> Locator:
    tab.page.get_by_role("button", name="Use in code").click()
    dialog = tab.page.get_by_role("dialog", name="Use in code")
    expect(dialog).to_be_visible()
    return dialog


def choose(dialog: Locator, way: str) -> str:
    dialog.get_by_role("radio", name=way).check(force=True)
    return dialog.locator("section:not([hidden])").inner_text()


def test_the_copied_code_asks_again_what_was_asked(miniature: Server, open_tab: Open, tmp_path: Path) -> None:
    tab = open_tab(miniature.url, **CLIPBOARD)
    tab.set("temperature", 0)
    tab.ask("What is in this picture?", DRAWING)
    tab.wait_for_end()
    dialog = dialog_of(tab)
    dialog.get_by_role("button", name="Copy").click()
    expect(dialog.get_by_role("button", name="Copied")).to_be_visible()
    code = tab.page.evaluate("navigator.clipboard.readText()")
    assert miniature.url.rstrip("/") in code
    (tmp_path / DRAWING.name).write_bytes(DRAWING.read_bytes())
    (tmp_path / "code.py").write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, "code.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert tab.answers.last.inner_text() in done.stdout, done.stderr


def test_what_is_still_in_the_message_box_counts_and_any_text_is_shown_as_it_is(tiny: Server, open_tab: Open) -> None:
    written = "Is <image> a tag? &lt;b&gt; 'x' \"y\" ``` $(id) \\n"
    tab = open_tab(tiny.url, **CLIPBOARD)
    tab.set("max_tokens", 3)
    tab.ask("First", {"name": "a.png", "mimeType": "image/png", "buffer": png("red")})
    tab.wait_for_end()
    tab.add({"name": "a.png", "mimeType": "image/png", "buffer": png("blue")})  # another picture, the same name
    tab.question.fill(written)
    dialog = dialog_of(tab)
    code = choose(dialog, "Python")
    assert 'handle_file("a.png")' in code and 'handle_file("a-2.png")' in code
    assert '"First"' in code and "max_tokens=3" in code
    assert '"Is <image> a tag? &lt;b&gt; \'x\' \\"y\\" ``` $(id) \\\\n"' in code
    dialog.get_by_role("button", name="Copy").click()
    expect(dialog.get_by_role("button", name="Copied")).to_be_visible()
    assert tab.page.evaluate("navigator.clipboard.readText()").rstrip() == code.rstrip()
    assert "exactly one picture" in choose(dialog, "Cloudflare")
    expect(dialog.get_by_role("button", name="Copy")).to_be_hidden()


def test_the_last_question_is_asked_when_nothing_new_is_written(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url)
    tab.set("max_tokens", 3)
    tab.ask("First")
    tab.wait_for_end()
    tab.ask("Second")
    tab.wait_for_end()
    code = choose(dialog_of(tab), "OpenAI")
    assert code.count('"assistant"') == 1
    assert code.index('"First"') < code.index('"assistant"') < code.index('"Second"')


def test_before_the_first_question_an_example_is_shown_and_a_bad_setting_is_told(
    miniature: Server, open_tab: Open
) -> None:
    tab = open_tab(miniature.url)
    dialog = dialog_of(tab)
    assert "circle-and-square.png" in choose(dialog, "Python")
    expect(dialog).to_contain_text("no conversation yet")
    dialog.get_by_role("button", name="Close").click()
    tab.page.locator("#panel-switch").click()
    tab.page.get_by_role("button", name="More").click()
    tab.page.get_by_label("Seed").fill("lucky")
    expect(dialog_of(tab)).to_contain_text("Seed is 'lucky'; it must be a whole number")


def test_the_dialog_closes_with_escape_its_button_and_a_click_beside_it_and_keeps_the_choice(
    tiny: Server, open_tab: Open
) -> None:
    tab = open_tab(tiny.url)
    with tiny.slow(0.2):
        tab.ask("Tell me a long story.")
        dialog = dialog_of(tab)
        choose(dialog, "curl")
        tab.page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        assert tiny.health()["running"] == 1  # Escape closed the dialog; it did not stop the answer
        tab.page.keyboard.press("Escape")
        tiny.wait_until_free()
    dialog = dialog_of(tab)
    expect(dialog.get_by_role("radio", name="curl")).to_be_checked()
    expect(dialog.locator("section:not([hidden])")).to_contain_text("/v1/chat/completions")
    dialog.get_by_role("radio", name="curl").press("ArrowLeft")
    expect(dialog.get_by_role("radio", name="JavaScript")).to_be_checked()
    expect(dialog.locator("section:not([hidden])")).to_contain_text("@gradio/client")
    tab.page.mouse.click(8, 400)
    expect(dialog).to_be_hidden()
    dialog_of(tab).get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


def test_it_fits_a_phone(miniature: Server, open_tab: Open) -> None:
    tab = open_tab(miniature.url, **PHONE)
    tab.page.get_by_role("button", name="Use in code").tap()
    dialog = tab.page.get_by_role("dialog")
    for way in WAYS:
        choose(dialog, way)
        expect(dialog.get_by_role("radio", name=way)).to_be_in_viewport()
        expect(dialog.get_by_role("button", name="Copy")).to_be_in_viewport()
    assert not tab.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    nameless = "[...document.querySelectorAll('dialog button')].filter(b => !b.ariaLabel && !b.textContent.trim())"
    assert tab.page.evaluate(nameless) == []


def test_the_address_is_the_one_that_the_page_was_reached_at(tiny: Server) -> None:
    """Behind a proxy, as a Space is; asked as the page asks it."""
    headers = {"x-forwarded-host": "ada-llava.hf.space", "x-forwarded-proto": "https"}
    shown = written_by(tiny, headers)
    assert "https://ada-llava.hf.space/v1/chat/completions" in shown
    assert tiny.url not in shown
    assert f"{tiny.url}v1/chat/completions" in written_by(tiny, {})


def test_a_key_that_the_server_asks_for_is_read_from_a_variable(tiny_llava: Llava) -> None:
    with serving(engine_of(tiny_llava), api_key=["secret"]) as server:
        shown = written_by(server, {})
    assert "LLAVA_API_KEY" in shown
    assert "secret" not in shown


def written_by(server: Server, headers: dict[str, str]) -> str:
    """The text of the panel for an empty page, as the page's own event gives it."""
    config = httpx.get(f"{server.url}config").json()
    button = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "write-code")
    event = next(event for event in config["dependencies"] if [button, "click"] in event["targets"])
    values: dict[int, Any] = {c["id"]: c["props"].get("value") for c in config["components"]}
    _, _, *knobs = event["inputs"]
    data = [{"text": "Hello", "files": []}, [], *(values[knob] for knob in knobs)]
    call = {"fn_index": event["id"], "data": data, "session_hash": "somebody"}
    answer = httpx.post(f"{server.url}gradio_api/run/predict", json=call, headers=headers)
    assert answer.status_code == 200, answer.text
    return re.sub(r"<[^>]+>", "", answer.json()["data"][0])


# --- its parts


def test_pictures_of_the_same_name_are_told_apart() -> None:
    assert unused_name("image.png", set()) == "image.png"
    assert unused_name("image.png", {"image.png"}) == "image-2.png"
    assert unused_name("image.png", {"image.png", "image-2.png"}) == "image-3.png"
    assert unused_name("photo", {"photo"}) == "photo-2"


@pytest.mark.parametrize("language", ["python", "javascript", "bash"])
def test_nothing_in_a_code_becomes_markup(language: str) -> None:
    code = "x = '<b>' & \"</code></pre><script>alert(1)</script>\" # <!--"
    shown = panel_html([Snippet("Python", language, code)], "<i>")
    assert "<script" not in shown and "<b>" not in shown and "<i>" not in shown
