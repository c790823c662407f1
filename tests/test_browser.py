"""The page in a real Chromium, on a real engine. Each test is what somebody does, and what they must see."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsers import Tab
from gradio.utils import get_upload_folder
from pictures import png
from playwright.sync_api import Browser, Locator, Route, expect
from servers import Server
from test_browser_keeping import wait_until_kept

from llava_demo.model import FOR_PHOTOS

EXAMPLES = Path(__file__).parents[1] / "examples"
CIRCLE_AND_SQUARE = EXAMPLES / "circle-and-square.png"
STAR = EXAMPLES / "night-star.png"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
FAILED = re.compile("The model('s server)? failed while it answered")
SOMETHING = re.compile(r"\S")

Open = Callable[..., Tab]


def upload(name: str = "red.png", data: bytes | None = None, mime_type: str = "image/png") -> dict[str, Any]:
    return {"name": name, "mimeType": mime_type, "buffer": png() if data is None else data}


# --- asking


def test_an_uploaded_drawing_is_answered_truthfully_and_a_follow_up_knows_the_history(
    miniature: Server, open_tab: Open
) -> None:
    tab = open_tab(miniature.url)
    tab.set("temperature", 0)
    tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
    tab.wait_for_end()
    expect(tab.answers.last).to_contain_text("red circle")
    expect(tab.answers.last).to_contain_text("blue square")
    expect(tab.notes.last).to_contain_text("tokens/s")
    tab.ask("What color is the circle?")
    tab.wait_for_end()
    expect(tab.answers.last).to_contain_text("red")


def test_a_new_picture_in_the_second_turn_is_seen_beside_the_first(miniature: Server, open_tab: Open) -> None:
    tab = open_tab(miniature.url)
    tab.set("temperature", 0)
    tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
    tab.wait_for_end()
    tab.ask("What is in the second picture?", STAR)
    tab.wait_for_end()
    expect(tab.answers.last).to_contain_text("yellow star")
    expect(tab.pictures).to_have_count(2)
    expect(tab.page.locator("#seen img")).to_have_count(2)


def test_an_answer_that_declines_says_once_a_conversation_which_model_knows_photos(
    miniature: Server, open_tab: Open
) -> None:
    tab = open_tab(miniature.url)
    tab.set("temperature", 0)
    tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
    tab.wait_for_end()
    expect(tab.conversation).not_to_contain_text(FOR_PHOTOS)
    for asked in range(2):
        tab.ask(f"Who owns the dog {asked}?")
        tab.wait_for_end()
        expect(tab.answers.last).to_contain_text("Sorry")
        expect(tab.conversation.get_by_text(FOR_PHOTOS)).to_have_count(1)
    tab.ask("How many shapes are there?")
    tab.wait_for_end()
    expect(tab.answers.last).to_contain_text("two")


def test_an_example_card_asks_its_question_about_its_picture(miniature: Server, open_tab: Open) -> None:
    examples = [e for e in json.loads((EXAMPLES / "examples.json").read_text()) if e["for"] == "miniature"]
    tab = open_tab(miniature.url)
    tab.set("temperature", 0)
    expect(tab.cards).to_have_count(len(examples))
    tab.cards.first.click()
    tab.wait_for_end()
    expect(tab.conversation).to_contain_text(examples[0]["prompt"])
    expect(tab.answers.last).to_contain_text("red circle")


# --- while an answer streams, and after it


def test_stop_retry_edit_undo_clear(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url)
    with tiny.slow():
        tab.ask("Tell me a long story.", upload())
        expect(tab.answers.last).to_have_text(SOMETHING)
        first_words = tab.answers.last.inner_text()
        expect(tab.answers.last).not_to_have_text(first_words)  # it streams
        tab.page.keyboard.press("Escape")
        tiny.wait_until_free()
        tab.wait_for_end()
        expect(tab.notes.last).to_have_text("Stopped")
        expect(tab.answers.last).to_have_text(SOMETHING)  # what was said stays

    tab.set("max_tokens", 5)
    tab.button("Retry").click()
    expect(tab.notes.last).to_contain_text("5 tokens")
    tab.wait_for_end()
    expect(tab.pictures).to_have_count(1)

    tab.set("max_tokens", 6)
    tab.conversation.locator("[data-testid=user]", has_text="story").hover()
    tab.button("Edit").last.click()
    tab.conversation.locator("textarea").fill("Tell me a short story.")
    tab.button("Submit").click()
    expect(tab.conversation.get_by_text("Tell me a short story.")).to_be_visible()
    expect(tab.notes.last).to_contain_text("6 tokens")
    tab.wait_for_end()
    expect(tab.pictures).to_have_count(1)

    tab.button("Undo").click()
    expect(tab.question).to_have_value("Tell me a short story.")
    expect(tab.thumbnails).to_have_count(1)
    expect(tab.pictures).to_have_count(0)

    tab.question.press("Enter")
    expect(tab.notes.last).to_contain_text("6 tokens")
    tab.button("Clear").click()
    expect(tab.cards.first).to_be_visible()
    expect(tab.page.locator("#seen img")).to_have_count(0)


def test_clearing_while_an_answer_streams_frees_the_engine(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url)
    with tiny.slow():
        tab.ask("Tell me a long story.")
        expect(tab.answers.last).to_have_text(SOMETHING)
        tab.button("Clear").click()
        tiny.wait_until_free()
    expect(tab.cards.first).to_be_visible()
    expect(tab.answers).to_have_count(0)


def test_stop_before_the_first_word_frees_the_engine(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url)
    with tiny.slow(0.7):
        tab.ask("Tell me a long story.")
        tiny.wait_until(running=1, waiting=0)
        tab.stop.click()
        tiny.wait_until_free()
    expect(tab.notes.last).to_have_text("Stopped")
    tab.set("max_tokens", 5)
    tab.ask("And now?")
    tab.wait_for_end()
    expect(tab.question).to_be_focused()  # ready for the next question
    expect(tab.notes.last).to_contain_text("tokens")


@pytest.mark.parametrize("step_s", [0.02, 0.6], ids=["while it streams", "before the first word"])
def test_closing_the_tab_frees_the_engine(tiny: Server, open_tab: Open, step_s: float) -> None:
    tab = open_tab(tiny.url)
    with tiny.slow(step_s):
        tab.ask("Tell me a long story.")
        tiny.wait_until(running=1, waiting=0)
        tab.page.close()
        tiny.wait_until_free()


def test_enter_sends_nothing_while_an_answer_streams_and_shift_enter_is_a_new_line(
    tiny: Server, open_tab: Open
) -> None:
    tab = open_tab(tiny.url)
    with tiny.slow():
        tab.cards.first.click()
        expect(tab.answers.last).to_have_text(SOMETHING)
        tab.question.fill("One")
        tab.question.press("Shift+Enter")
        tab.question.press_sequentially("two")
        tab.question.press("Enter")
        expect(tab.question).to_have_value("One\ntwo")
        tab.stop.click()
    tab.wait_for_end()
    expect(tab.answers).to_have_count(1)


# --- when something is wrong


def test_a_failure_is_told_in_place_and_the_next_question_is_answered(miniature: Server, open_tab: Open) -> None:
    tab = open_tab(miniature.url)
    tab.set("temperature", 0)
    with miniature.broken():
        tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
        expect(tab.failures).to_contain_text(FAILED)
        tab.wait_for_end()
    expect(tab.conversation).not_to_contain_text("secret")
    tab.button("Retry").click()
    expect(tab.answers.last).to_contain_text("red circle")
    tab.wait_for_end()
    expect(tab.failures).to_have_count(0)

    with miniature.broken():
        tab.ask("How many shapes are there?")
        expect(tab.failures).to_be_visible()
        tab.wait_for_end()
    tab.ask("What color is the square?")  # the failure and its question are not part of the history
    expect(tab.answers.last).to_contain_text("blue")


def test_a_seed_that_is_none_and_an_empty_question_are_refused_in_words(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url)
    tab.question.press("Enter")
    expect(tab.refusal).to_contain_text("write a question or add a picture")
    tab.page.locator("#panel-switch").click()
    tab.page.get_by_role("button", name="More").click()
    tab.page.get_by_label("Seed").fill("lucky")
    tab.question.fill("Hello")
    tab.question.press("Enter")
    expect(tab.refusal).to_contain_text("Seed is 'lucky'; it must be a whole number")


def test_what_people_write_is_shown_and_copied_as_they_wrote_it(tiny: Server, open_tab: Open) -> None:
    written = "Is <image> a tag? </s> **x** &lt; R&D, 1 < 2 <b>bold</b>"
    tab = open_tab(tiny.url, permissions=["clipboard-read", "clipboard-write"])
    tab.set("max_tokens", 5)
    tab.ask(written)
    tab.wait_for_end()
    question = tab.conversation.locator("[data-testid=user]")
    expect(question).to_have_text(written)
    question.hover()
    tab.button("Copy message").first.click()
    assert tab.page.evaluate("navigator.clipboard.readText()") == written


# --- how it looks


STILL = """() => new Promise((resolve) => {
    const still = () => setTimeout(resolve, 1000);
    let timer = still();
    const moved = () => { clearTimeout(timer); timer = still(); };
    new MutationObserver(moved).observe(document, { childList: true, subtree: true });
})"""


def test_scripts_that_arrive_after_the_page_was_drawn_start_all_the_same(tiny: Server, browser: Browser) -> None:
    page, held = browser.new_page(), []
    page.route("**/main.js", lambda route: held.append(route))
    page.goto(tiny.url, wait_until="commit")
    expect(page.locator("#box textarea")).to_be_visible()
    page.evaluate(STILL)
    held[0].continue_()
    expect(page.locator("#theme-switch")).to_be_enabled()
    page.close()


def test_a_phone_needs_no_sideways_scroll(miniature: Server, open_tab: Open) -> None:
    tab = open_tab(miniature.url, **PHONE)
    is_too_wide = "document.documentElement.scrollWidth > window.innerWidth"
    assert not tab.page.evaluate(is_too_wide)
    expect(tab.page.get_by_role("heading", name="Show a picture")).to_be_in_viewport()
    expect(tab.page.get_by_text("Drop a picture anywhere")).to_be_hidden()  # as nobody can with a finger
    tab.cards.first.tap()
    expect(tab.answers.last).to_contain_text("red circle")
    tab.wait_for_end()
    assert not tab.page.evaluate(is_too_wide)
    tab.page.get_by_role("button", name="Settings").tap()
    expect(tab.page.locator("#temperature")).to_be_in_viewport()
    assert not tab.page.evaluate(is_too_wide)
    tab.page.locator("#panel .toggle-button").tap()
    expect(tab.page.locator("#temperature")).not_to_be_in_viewport()
    tab.page.get_by_role("button", name="Settings").tap()
    expect(tab.page.locator("#temperature")).to_be_in_viewport()
    tab.page.keyboard.press("Escape")
    expect(tab.page.locator("#temperature")).not_to_be_in_viewport()


def test_dark_follows_the_system_until_somebody_chooses(tiny: Server, open_tab: Open) -> None:
    tab = open_tab(tiny.url, color_scheme="dark")
    background = "getComputedStyle(document.querySelector('gradio-app')).backgroundColor"
    scheme = "getComputedStyle(document.documentElement).colorScheme"  # the browser's own parts, as scroll bars
    dark = tab.page.evaluate(background)
    assert tab.page.evaluate(scheme) == "dark"
    expect(tab.page.locator("#theme-switch .sun")).to_be_visible()
    expect(tab.page.locator("#theme-switch .moon")).to_be_hidden()
    tab.page.get_by_role("button", name="Light colours").click()
    expect(tab.page.locator("#theme-switch .sun")).to_be_hidden()
    light = tab.page.evaluate(background)
    assert tab.page.evaluate(scheme) != "dark"
    assert sum(map(int, re.findall(r"\d+", dark)[:3])) < 100 < 600 < sum(map(int, re.findall(r"\d+", light)[:3]))
    tab.page.reload()
    expect(tab.page.get_by_role("button", name="Dark colours")).to_be_visible()
    assert tab.page.evaluate(background) == light


def test_everything_has_a_name_for_those_who_cannot_see_it(miniature: Server, open_tab: Open) -> None:
    tab = open_tab(miniature.url)
    tab.set("temperature", 0)
    tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
    tab.wait_for_end()
    expect(tab.conversation.get_by_alt_text("Your picture circle-and-square.png")).to_be_visible()
    expect(tab.page.get_by_alt_text("Picture 1 as the model sees it")).to_be_visible()
    expect(tab.page.get_by_role("textbox", name="Your question")).to_be_visible()
    giving = tab.page.get_by_role("button", name="Add a picture", exact=True)
    expect(giving).to_be_visible()
    tab.add(STAR)
    expect(giving).to_be_visible()
    nameless = tab.page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, img")].filter(e => e.checkVisibility())
            .filter(e => ![e, ...e.querySelectorAll("img")].some(x => x.ariaLabel || x.alt || x.title))
            .filter(e => !e.textContent.trim() && !e.labels?.length).map(e => e.outerHTML.slice(0, 200))"""
    )
    assert nameless == []


# --- sharing


def test_a_link_fills_the_page_and_sends_nothing(miniature: Server, open_tab: Open) -> None:
    query = "?prompt=What+color+is+the+star%3F&image=night-star.png&temperature=0&max_tokens=33&seed=7&top_p=9"
    tab = open_tab(miniature.url + query)
    expect(tab.question).to_have_value("What color is the star?")
    expect(tab.thumbnails).to_have_count(1)
    expect(tab.page.locator("#temperature input[type=number]")).to_have_value("0")
    expect(tab.page.locator("#max_tokens input[type=number]")).to_have_value("33")
    expect(tab.refusal).to_have_text("top_p is 9; it must be a number from 0 to 1. The link's value was left out.")
    expect(tab.cards.first).to_be_visible()
    tab.question.press("Enter")
    expect(tab.answers.last).to_contain_text("yellow")


def test_the_link_that_the_page_makes_brings_the_question_back(miniature: Server, open_tab: Open) -> None:
    tab = open_tab(miniature.url)
    tab.set("temperature", 0)
    tab.cards.first.click()
    expect(tab.answers.last).to_contain_text("red circle")
    tab.wait_for_end()
    tab.page.locator("#share-switch").click()
    tab.page.locator("#make-link").click()
    link = tab.page.locator("#link textarea, #link input").first
    expect(link).to_have_value(re.compile("temperature=0"))
    other = open_tab(link.input_value())
    expect(other.question).to_have_value("What is in this picture?")
    expect(other.thumbnails).to_have_count(1)
    expect(other.page.locator("#temperature input[type=number]")).to_have_value("0")
    other.page.reload()
    expect(other.question).to_have_value("What is in this picture?")
    other.page.get_by_role("button", name="Conversations").click()
    expect(other.page.locator("#drawer .kept")).to_have_text(SOMETHING)
    expect(other.page.locator("#drawer li")).to_have_count(0)  # what the link brings back is not kept
    other.page.keyboard.press("Escape")
    other.question.press("Enter")
    wait_until_kept(other, "red circle")
    other.page.reload()
    expect(other.answers.last).to_contain_text("red circle")
    expect(other.question).to_have_value("")


def test_a_conversation_is_saved_to_a_file_and_opened_in_another_browser(
    miniature: Server, open_tab: Open, tmp_path: Path
) -> None:
    tab = open_tab(miniature.url)
    tab.set("temperature", 0)
    tab.page.locator("#share-switch").click()
    tab.page.locator("#save-conversation").click()
    expect(tab.page.locator("#share-said")).to_contain_text("no conversation to save")
    tab.ask("What is in the first picture?", CIRCLE_AND_SQUARE, STAR)
    tab.wait_for_end()
    tab.page.locator("#conversation .image-container").last.hover()
    tab.page.get_by_role("button", name="Forget this picture").last.click()
    tab.set("max_tokens", 4)
    tab.ask("What is in this picture?")
    tab.wait_for_end()
    told = tab.notes.all_inner_texts()
    assert "cut at max tokens" in told[-1]
    tab.page.locator("#share-switch").click()
    with tab.page.expect_download() as download:
        tab.page.locator("#save-conversation").click()
    download.value.save_as(tmp_path / "conversation.zip")
    other = open_tab(miniature.url)
    chooser = other.page.locator("input[type=file][accept*='.zip']").first
    other.question.press("Enter")
    expect(other.refusal).to_have_count(1)
    chooser.set_input_files(str(tmp_path / "conversation.zip"))
    expect(other.answers.first).to_contain_text("red circle")
    expect(other.refusal).to_have_count(0)  # it was about another conversation
    expect(other.pictures).to_have_count(2)
    expect(other.page.locator(".is-left-out img")).to_have_count(1)
    expect(other.notes).to_have_text(told)
    expect(other.page.get_by_role("button", name="Continue", exact=True)).to_be_visible()
    other.set("max_tokens", 100)
    expect(other.page.locator("#temperature input[type=number]")).to_have_value("0")
    other.ask("What color is the square?")
    other.wait_for_end()
    expect(other.answers.last).to_contain_text("blue")
    chooser.set_input_files({"name": "x.json", "mimeType": "application/json", "buffer": b"{}"})
    expect(other.page.locator("#share-said")).to_contain_text("no saved conversation")
    expect(other.answers.last).to_contain_text("blue")
    assert not [path for path in Path(get_upload_folder()).iterdir() if path.is_file()]  # as unfinished uploads are
    chooser.set_input_files({"name": "notes.zip", "mimeType": "application/zip", "buffer": b"Buy milk."})
    expect(other.page.locator("#not-opened")).to_contain_text("notes.zip is no saved conversation")
    chooser.set_input_files(str(tmp_path / "conversation.zip"))
    expect(other.page.locator("#not-opened")).to_have_count(0)


def test_keys_of_an_input_method_are_its_own(tiny: Server, open_tab: Open) -> None:
    """In Japanese and Chinese, Enter ends the choice of a word and Escape drops it."""
    tab = open_tab(tiny.url)

    def compose(target: Locator, key: str) -> None:
        event = {"key": key, "isComposing": True, "bubbles": True, "cancelable": True}
        press = "(element, event) => element.dispatchEvent(new KeyboardEvent('keydown', event))"
        assert target.evaluate(press, event), "the input method would not get the key"

    with tiny.slow():
        tab.ask("Tell me a long story.")
        expect(tab.answers.last).to_have_text(SOMETHING)
        compose(tab.question, "Enter")
        compose(tab.question, "Escape")
        words = tab.answers.last.inner_text()
        expect(tab.answers.last).not_to_have_text(words)  # it was not stopped
        tab.page.keyboard.press("Escape")
        tab.wait_for_end()
    tab.conversation.locator("[data-testid=user]").hover()
    tab.button("Edit").last.click()
    editor = tab.conversation.locator("textarea")
    for key in ("Enter", "Escape"):
        compose(editor, key)
    expect(editor).to_be_visible()
    editor.press("Escape")
    arriving: list[Route] = []
    tab.page.route("**/upload*", lambda route: arriving.append(route))
    tab.page.locator("#box input[type=file]").set_input_files([upload()])
    tab.question.fill("かん")
    compose(tab.question, "Enter")
    expect(tab.page.locator("#doing")).to_have_count(0)  # it is not sent as soon as the picture is there
    tab.page.get_by_role("button", name="Conversations").click()
    tab.page.locator("#drawer .rename").click()
    name = tab.page.locator("#drawer li input")
    compose(name, "Enter")
    expect(name).to_be_visible()
