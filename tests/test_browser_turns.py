"""What a turn and a full conversation offer: versions, the rest of a cut answer, pictures that are left out."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from browsers import Tab
from playwright.sync_api import Route, expect
from servers import Server, serving
from test_browser_keeping import wait_until_kept

from llava_demo.engines.generate import GenerateEngine

EXAMPLES = Path(__file__).parents[1] / "examples"
CIRCLE_AND_SQUARE, STAR = EXAMPLES / "circle-and-square.png", EXAMPLES / "night-star.png"

Open = Callable[..., Tab]


@pytest.fixture(scope="module")
def small(miniature_engine: GenerateEngine) -> Iterator[Server]:
    """The miniature, with room for two pictures in a conversation."""
    with serving(GenerateEngine(miniature_engine.llava, replace(miniature_engine.info, max_images=2), 4)) as server:
        yield server


def asked(tab: Tab, text: str, *files: Path) -> None:
    ended = tab.notes.count()
    tab.ask(text, *files)
    expect(tab.notes).to_have_count(ended + 1)
    tab.wait_for_end()


def start(url: str, open_tab: Open) -> Tab:
    tab = open_tab(url)
    tab.set("temperature", 0)
    asked(tab, "What is in this picture?", CIRCLE_AND_SQUARE)
    return tab


def edit(tab: Tab, question: str, text: str) -> None:
    tab.conversation.locator("[data-testid=user]", has_text=question).hover()
    row = tab.page.locator(".message-row", has_text=question)
    row.locator("+ .message-buttons").get_by_role("button", name="Edit").click()
    editor = tab.conversation.locator("textarea")
    editor.fill(text)
    editor.press("Enter")


def test_retry_and_edit_keep_the_earlier_versions_through_a_reload(miniature: Server, open_tab: Open) -> None:
    tab = start(miniature.url, open_tab)
    versions = tab.page.locator(".versions")
    places = versions.locator("span")
    tab.set("max_tokens", 3)
    tab.button("Retry").click()
    expect(places).to_have_text("2/2")
    expect(tab.notes).to_contain_text("cut at max tokens")
    tab.wait_for_end()
    expect(tab.question).to_be_focused()
    asked(tab, "What color is the square?")
    edit(tab, "What is in this picture?", "How many shapes are there?")
    expect(tab.notes).to_have_count(1)  # the later turn is replaced
    tab.wait_for_end()
    expect(tab.question).to_be_focused()
    expect(places).to_have_text("2/2")
    wait_until_kept(tab, "How many shapes")
    tab.page.reload()
    expect(tab.conversation).to_contain_text("How many shapes are there?")
    versions.get_by_role("button", name="Earlier version").click()
    expect(tab.notes).to_have_count(2)
    expect(tab.conversation).to_contain_text("What color is the square?")
    expect(places).to_have_text(["1/2", "2/2"])
    versions.last.get_by_role("button", name="Earlier version").click()
    expect(tab.notes).to_have_count(1)
    expect(tab.answers).to_have_text("The image shows a red circle and a blue square.")
    expect(tab.pictures).to_have_count(1)


def test_the_editor_says_what_it_replaces_and_keys_drive_it(miniature: Server, open_tab: Open) -> None:
    tab = start(miniature.url, open_tab)
    asked(tab, "What color is the square?")
    asked(tab, "What color is the circle?")
    editor = tab.conversation.locator("textarea")
    tab.question.press("ArrowUp")  # in the empty box
    expect(editor).to_have_value("What color is the circle?")
    expect(editor).to_be_focused()
    editor.fill("Never mind")
    editor.press("Escape")
    expect(editor).to_have_count(0)
    expect(tab.conversation).to_contain_text("What color is the circle?")
    tab.conversation.locator("[data-testid=user]", has_text="in this picture").hover()
    tab.button("Edit").first.click()
    expect(tab.page.locator(".replaces")).to_contain_text("replaces the answer and 2 later turns")
    assert editor.bounding_box()["width"] > 600  # type: ignore[index]


@pytest.mark.parametrize("cut", ["at max tokens", "by Stop"])
def test_an_answer_that_was_cut_is_continued(cut: str, miniature: Server, open_tab: Open) -> None:
    tab = open_tab(miniature.url)
    tab.set("temperature", 0)
    if cut == "by Stop":
        with miniature.held(after=4):
            tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
            expect(tab.answers.last).to_contain_text("The")
            tab.stop.click()
            expect(tab.notes).to_have_text("Stopped")
    else:
        tab.set("max_tokens", 4)
        asked(tab, "What is in this picture?", CIRCLE_AND_SQUARE)
        tab.set("max_tokens", 100)
    tab.wait_for_end()
    tab.page.get_by_role("button", name="Continue", exact=True).click()
    expect(tab.answers).to_have_text("The image shows a red circle and a blue square.")
    expect(tab.notes).to_contain_text("tokens/s")
    tab.wait_for_end()
    expect(tab.page.get_by_role("button", name="Continue", exact=True)).to_have_count(0)


def test_a_full_conversation_says_so_and_goes_on_without_its_oldest_picture(small: Server, open_tab: Open) -> None:
    tab = start(small.url, open_tab)
    meter = tab.page.locator("#meter")
    expect(tab.page.locator("#box #meter")).to_contain_text("1 of 2 pictures")
    asked(tab, "What is in the second picture?", STAR)
    tab.add(STAR)
    expect(meter).to_contain_text("3 of 2 pictures")
    tab.question.fill("And in this one?")
    tab.question.press("Enter")
    expect(tab.refusal).to_contain_text("The conversation has 3 pictures; at most 2 are allowed.")
    expect(tab.question).to_have_value("And in this one?")
    expect(tab.thumbnails).to_have_count(1)
    tab.page.get_by_role("button", name="Leave out the oldest picture").click()
    expect(tab.notes).to_have_count(3)
    tab.wait_for_end()
    expect(tab.refusal).to_have_count(0)
    expect(meter).to_contain_text("2 of 2 pictures")
    expect(tab.page.locator(".is-left-out img")).to_have_count(1)
    expect(tab.page.locator("#seen img")).to_have_count(2)
    expect(tab.thumbnails).to_have_count(0)


def test_a_picture_can_be_forgotten_and_taken_back(small: Server, open_tab: Open) -> None:
    tab = start(small.url, open_tab)
    with small.slow(0.1):
        tab.ask("How many shapes are there?")
        expect(tab.answers.last).to_contain_text("There")
        tab.page.locator("#conversation .image-container").hover()
        tab.page.get_by_role("button", name="Forget this picture").click()  # while an answer is on its way
        expect(tab.page.locator(".is-left-out img")).to_have_count(1)
    tab.wait_for_end()
    expect(tab.answers.last).to_contain_text("two shapes")
    expect(tab.page.locator("#meter")).to_have_text("")
    asked(tab, "What is in this picture?")
    expect(tab.answers.last).not_to_contain_text("red circle")
    expect(tab.page.locator("#seen img")).to_have_count(0)
    wait_until_kept(tab, "Left out")
    tab.page.reload()
    tab.page.get_by_role("button", name="Use this picture again").click()
    expect(tab.page.get_by_role("button", name="Use this picture again")).to_have_count(0)
    tab.question.fill("What color is the circle?")
    tab.question.press("Enter")
    expect(tab.answers.last).to_contain_text("red")


def test_what_is_refused_stays_where_it_was_written(small: Server, open_tab: Open) -> None:
    tab = start(small.url, open_tab)
    long = "word " * 9000
    editor = tab.conversation.locator("textarea")
    tab.question.fill("typed")
    edit(tab, "What is in this picture?", long)
    expect(tab.refusal).to_contain_text("tokens")
    expect(tab.refusal.get_by_role("button")).to_have_text("New chat")  # without its picture it would not fit either
    expect(editor).to_have_value(long)
    expect(editor).to_be_focused()
    editor.press("Escape")
    expect(tab.refusal).to_have_count(0)
    expect(tab.answers).to_have_text("The image shows a red circle and a blue square.")
    expect(tab.question).to_have_value("typed")
    tab.question.fill(long)
    tab.question.press("Enter")
    expect(tab.refusal).to_contain_text("tokens")
    expect(tab.question).to_have_value(long)
    tab.question.fill("typed")
    tab.button("Undo").click()
    expect(tab.question).to_have_value("What is in this picture?\ntyped")
    expect(tab.thumbnails).to_have_count(1)


def test_what_does_not_fit_goes_to_a_new_chat_with_its_draft(small: Server, open_tab: Open) -> None:
    tab = start(small.url, open_tab)
    tab.add(STAR, CIRCLE_AND_SQUARE)
    tab.question.fill("What is in this picture?")
    tab.question.press("Enter")
    tab.page.locator("#refusal").get_by_role("button", name="New chat").click()
    expect(tab.answers).to_have_count(0)
    expect(tab.refusal).to_have_count(0)
    expect(tab.thumbnails).to_have_count(2)
    expect(tab.question).to_have_value("What is in this picture?")
    expect(tab.page.locator("#meter")).to_contain_text("2 of 2 pictures")


def test_a_changed_question_that_does_not_fit_goes_to_a_new_chat_with_its_picture(
    small: Server, open_tab: Open
) -> None:
    tab = start(small.url, open_tab)
    long = "word " * 9000
    edit(tab, "What is in this picture?", long)
    tab.page.locator("#refusal").get_by_role("button", name="New chat").click()
    expect(tab.answers).to_have_count(0)
    expect(tab.thumbnails).to_have_count(1)
    expect(tab.question).to_have_value(long)
    expect(tab.page.locator("#meter")).to_contain_text("of 4,096 tokens")


@contextmanager
def untaken(tab: Tab) -> Iterator[Callable[[], None]]:
    """Within the block no question reaches the server; the function given here waits until one is asked."""
    held: list[Route] = []

    def wait() -> None:
        while not held:
            tab.page.wait_for_timeout(50)

    tab.page.route("**/queue/join*", lambda route: held.append(route))
    yield wait
    assert len(held) == 1
    held[0].continue_()
    tab.page.unroute("**/queue/join*")


def test_a_question_shows_that_it_is_sent_before_any_answer_of_the_server_and_is_sent_once(
    miniature: Server, open_tab: Open
) -> None:
    tab = start(miniature.url, open_tab)
    doing = tab.page.locator("#doing")
    with untaken(tab) as wait:
        tab.question.fill("What color is the square?")
        tab.question.press("Enter")
        expect(doing).to_have_text("Sending…")
        tab.question.press_sequentially("more")  # would be lost when the question is taken
        tab.question.press("Enter")
        tab.send.click()
        tab.page.locator("#box input[type=file]").set_input_files(STAR)  # is uploaded, and waits
        expect(tab.question).to_have_value("What color is the square?")
        wait()
    expect(tab.answers.last).to_contain_text("blue")
    expect(doing).to_have_count(0)
    expect(tab.thumbnails).to_have_count(1)
    expect(tab.answers).to_have_count(2)
    tab.wait_for_end()
    for ask in (lambda: tab.button("Retry").click(), lambda: edit(tab, "What color", "How many shapes are there?")):
        with untaken(tab) as wait:
            ask()
            expect(doing).to_have_text("Sending…")
            wait()
        expect(doing).to_have_count(0)
        tab.wait_for_end()
    expect(tab.answers.last).to_contain_text("two")


def test_a_question_that_was_not_taken_yet_stays_behind_when_a_new_chat_is_begun(
    miniature: Server, open_tab: Open
) -> None:
    tab = start(miniature.url, open_tab)
    with untaken(tab) as wait:
        tab.question.fill("What color is the square?")
        tab.question.press("Enter")
        wait()
        tab.page.locator("#new-chat").click()
        expect(tab.answers).to_have_count(0)
        expect(tab.page.locator("#doing")).to_have_count(0)
    tab.set("max_tokens", 5)
    tab.ask("How many shapes are there?")
    tab.wait_for_end()
    expect(tab.conversation.locator("[data-testid=user]")).to_have_text("How many shapes are there?")
    tab.page.get_by_role("button", name="Conversations").click()
    tab.page.locator("#drawer li .open").last.click()
    expect(tab.answers).to_have_text("The image shows a red circle and a blue square.")
    expect(tab.question).to_have_value("What color is the square?")


# What the server says of an event that has ended stays on its way until it is let go.
HOLDS_ENDS = """{
    const fetch = window.fetch;
    let letGo;
    window.holdEnds = () => { window.held = new Promise(go => { letGo = go; }); };
    window.letEndsGo = () => letGo();
    window.fetch = async (asked, options) => {
        const answer = await fetch(asked, options);
        if (!String(asked.url ?? asked).includes("/queue/data")) return answer;
        const messages = new TransformStream({ async transform(text, controller) {
            for (const message of text.split(/(?<=\\n\\n)/)) {
                if (message.includes("process_completed")) await window.held;
                controller.enqueue(message);
            }
        } });
        const body = answer.body.pipeThrough(new TextDecoderStream()).pipeThrough(messages);
        return new Response(body.pipeThrough(new TextEncoderStream()), answer);
    };
}"""


def test_a_button_that_can_be_pressed_is_obeyed_however_late_gradio_hears_that_the_event_before_has_ended(
    tiny: Server, open_tab: Open
) -> None:
    """Between the last words of an answer and the end of its event, Gradio dropped a click on the same button."""
    tab = open_tab(tiny.url)
    tab.page.add_init_script(HOLDS_ENDS)
    tab.page.reload()
    tab.set("max_tokens", 3)
    asked(tab, "Tell me a story.", CIRCLE_AND_SQUARE)
    tab.page.evaluate("window.holdEnds()")
    tab.button("Retry").click()
    expect(tab.page.locator(".versions span")).to_have_text("2/2")
    expect(tab.notes.last).to_contain_text("3 tokens")
    expect(tab.stop).to_be_visible()
    expect(tab.button("Retry")).to_be_hidden()
    tab.page.evaluate("window.letEndsGo()")
    tab.button("Retry").click()
    expect(tab.page.locator(".versions span")).to_have_text("3/3")
    tab.wait_for_end()


def test_a_question_sent_right_after_stop_is_asked(tiny: Server, open_tab: Open) -> None:
    """Gradio dropped it for as long as it drew what was left of the stopped answer, which was over a second."""
    tab = open_tab(tiny.url)
    with tiny.slow():
        tab.ask("Tell me a story.")
        expect(tab.answers.last).to_have_text(re.compile(r"\S"))
        tab.question.fill("And then?")
        tab.page.evaluate("""async () => {
            document.querySelector("#box .stop-button").click();
            while (!document.querySelector("#box .submit-button")) await new Promise(requestAnimationFrame);
            document.querySelector("#box .submit-button").click();
        }""")
        expect(tab.conversation.locator("[data-testid=user]")).to_have_text(["Tell me a story.", "And then?"])
        tab.stop.click()
        tab.wait_for_end()
