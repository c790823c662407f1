"""Conversations are kept in the visitor's browser: reload, restart, other tabs, other visitors; in a real Chromium."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import pytest
from browsers import PATIENCE_MS, Tab
from playwright.sync_api import Route, expect
from servers import Server, free_port, serving

from llava_demo.engines.generate import GenerateEngine

CIRCLE_AND_SQUARE = Path(__file__).parents[1] / "examples" / "circle-and-square.png"
KEPT = """async () => (await new Promise(done => {
    const opening = indexedDB.open("ask-a-picture", 1);
    opening.onsuccess = () => {
        const asking = opening.result.transaction("conversations").objectStore("conversations").getAll();
        asking.onsuccess = () => done(asking.result);
    };
}))"""

Open = Callable[..., Tab]


def wait_until_kept(tab: Tab, words: str) -> None:
    """Until the browser has kept a conversation with these words (`wait_for_function` takes a promise for a yes)."""
    tab.page.evaluate(
        f"""async ([words, limit]) => {{
            for (const begin = Date.now(); ; await new Promise(done => setTimeout(done, 50))) {{
                const kept = JSON.stringify(await ({KEPT})());
                if (kept.includes(words)) return;
                if (Date.now() - begin > limit) throw new Error(`without ${{words}}: ${{kept}}`);
            }}
        }}""",
        [words, PATIENCE_MS],
    )


def asked(tab: Tab) -> None:
    tab.set("temperature", 0)
    tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
    expect(tab.notes.last).to_contain_text("tokens")
    tab.wait_for_end()
    wait_until_kept(tab, "tokens/s")


def expect_all_of_it(tab: Tab) -> None:
    expect(tab.answers.last).to_contain_text("red circle")
    expect(tab.pictures).to_have_count(1)
    expect(tab.page.locator("#conversation [data-testid=user]").last).to_contain_text("What is in this picture?")


def test_a_reload_brings_back_the_conversation_its_picture_and_what_was_being_typed(
    miniature: Server, open_tab: Open
) -> None:
    tab = open_tab(miniature.url)
    asked(tab)
    tab.question.fill("And what color")
    wait_until_kept(tab, "And what color")
    tab.page.reload()
    expect_all_of_it(tab)
    expect(tab.question).to_have_value("And what color")
    tab.question.fill("What color is the square?")
    tab.question.press("Enter")
    expect(tab.answers.last).to_contain_text("blue")


def test_settings_in_the_address_leave_what_was_typed_alone_however_late_they_come(
    miniature: Server, open_tab: Open
) -> None:
    tab = open_tab(f"{miniature.url}?max_tokens=77")
    tab.question.fill("typed")
    wait_until_kept(tab, "typed")
    held: list[Route] = []
    tab.page.route("**/gradio_api/run/**", lambda route: held.append(route))
    tab.page.reload()
    expect(tab.question).to_have_value("typed")
    while not held:
        tab.page.wait_for_timeout(50)
    for route in held:
        route.continue_()
    expect(tab.page.locator("#max_tokens input[type=number]")).to_have_value("77")
    expect(tab.question).to_have_value("typed")


def test_pictures_that_wait_in_the_box_and_settings_come_back_and_what_is_typed_early_stays(
    miniature: Server, open_tab: Open
) -> None:
    tab = open_tab(miniature.url)
    tab.set("temperature", 0.6)
    tab.add(CIRCLE_AND_SQUARE)
    tab.question.fill("Kept")
    wait_until_kept(tab, "Kept")
    tab.page.add_init_script("""{
        const open = indexedDB.open.bind(indexedDB);
        window.restored = new Promise(done => { window.restore = done; });
        Object.defineProperty(indexedDB, "open", { value: (...asked) => {
            const asking = open(...asked);
            asking.addEventListener("success", event => {
                event.stopImmediatePropagation();
                window.restored.then(() => asking.onsuccess());
            }, { once: true });
            return asking;
        } });
    }""")
    tab.page.reload()
    tab.question.press_sequentially("typed")
    tab.page.evaluate("window.restore()")
    expect(tab.question).to_have_value("Kept\ntyped")
    expect(tab.thumbnails).to_have_count(1)
    expect(tab.page.locator("#temperature input[type=number]")).to_have_value("0.6")
    expect(tab.page.locator("#top_p input[type=number]")).to_have_value("0.7")


def test_a_question_is_kept_until_the_conversation_has_it(miniature: Server, open_tab: Open) -> None:
    """Gradio tells of the emptied message box and of the conversation one after the other."""
    tab = open_tab(miniature.url)
    tab.question.fill("How many shapes?")
    wait_until_kept(tab, "How many shapes?")
    tab.page.evaluate("""() => window.addEventListener(
        "conversation-changed", event => event.stopImmediatePropagation(), { capture: true }
    )""")
    tab.question.press("Enter")
    expect(tab.notes.last).to_contain_text("tokens")
    tab.wait_for_end()
    tab.page.reload()
    expect(tab.question).to_have_value("How many shapes?")


def test_what_is_kept_while_a_thumbnail_is_added_stays(miniature: Server, open_tab: Open) -> None:
    """Adding it reads what is kept and writes it back: what comes between must not be lost."""
    tab = open_tab(miniature.url)
    tab.page.evaluate("""() => {
        window.times = 0;
        document.addEventListener("conversation-kept", () => { window.times += 1; });
        const get = IDBObjectStore.prototype.get;
        IDBObjectStore.prototype.get = function (key) {
            if (this.name === "conversations" && !window.between) {
                window.between = this.transaction.db.transaction(this.name, "readwrite");
                window.between.objectStore(this.name).put({ id: key, title: "between" }, key);
            }
            return get.call(this, key);
        };
    }""")
    tab.add(CIRCLE_AND_SQUARE)
    tab.page.wait_for_function("window.between && window.times > 1")
    assert [kept["title"] for kept in tab.page.evaluate(f"({KEPT})()")] == ["between"]


def test_a_conversation_that_another_tab_has_deleted_leaves_the_list(miniature: Server, open_tab: Open) -> None:
    tab = open_tab(miniature.url)
    tab.question.fill("Kept")
    wait_until_kept(tab, "Kept")
    tab.page.get_by_role("button", name="New chat").click()
    tab.page.get_by_role("button", name="Conversations").click()
    rows = tab.page.locator("#drawer li")
    expect(rows).to_have_count(1)
    tab.page.evaluate("""() => new Promise(done => {
        const opening = indexedDB.open("ask-a-picture", 1);
        opening.onsuccess = () => {
            const deleting = opening.result.transaction("conversations", "readwrite")
                .objectStore("conversations").clear();
            deleting.onsuccess = done;
        };
    })""")
    rows.locator(".open").click()
    expect(rows).to_have_count(0)
    expect(tab.question).to_have_value("")


def test_a_tab_that_was_lost_comes_back_in_a_new_one_and_another_visitor_sees_nothing(
    miniature: Server, open_tab: Open
) -> None:
    tab = open_tab(miniature.url)
    asked(tab)
    tab.page.close()
    again = Tab(tab.page.context.new_page())
    again.page.goto(miniature.url)
    expect_all_of_it(again)
    stranger = open_tab(miniature.url)
    expect(stranger.cards.first).to_be_visible()
    stranger.page.get_by_role("button", name="Conversations").click()
    expect(stranger.page.locator("#drawer li")).to_have_count(0)


def test_after_a_restart_the_pictures_are_uploaded_again(miniature_engine: GenerateEngine, open_tab: Open) -> None:
    port = free_port()
    llava, info = miniature_engine.llava, miniature_engine.info
    with serving(GenerateEngine(llava, info, 2), port=port) as server:
        tab = open_tab(server.url)
        asked(tab)
        tab.page.goto("about:blank")
    shutil.rmtree(gr.utils.get_upload_folder())  # the server that comes up has none of the old one's files
    with serving(GenerateEngine(llava, info, 2), port=port) as server:
        tab.page.goto(server.url)
        expect_all_of_it(tab)
        tab.question.fill("What color is the square?")
        tab.question.press("Enter")
        expect(tab.answers.last).to_contain_text("blue")
        tab.wait_for_end()
        tab.page.close()


def test_the_list_opens_renames_and_deletes_and_new_chat_keeps_what_was_there(
    miniature: Server, open_tab: Open
) -> None:
    tab = open_tab(miniature.url)
    asked(tab)
    tab.page.get_by_role("button", name="New chat").first.click()
    expect(tab.cards.first).to_be_visible()
    tab.ask("How many shapes?")
    expect(tab.notes.last).to_contain_text("tokens")
    wait_until_kept(tab, "How many shapes?")
    tab.page.get_by_role("button", name="Conversations").click()
    rows = tab.page.locator("#drawer li")
    expect(rows).to_have_count(2)
    expect(rows.nth(1).locator("img")).to_be_visible()
    rows.nth(1).get_by_role("button", name="Rename").click()
    tab.page.keyboard.type("Shapes")
    tab.page.keyboard.press("Enter")
    expect(rows.nth(1)).to_contain_text("Shapes")
    rows.nth(1).locator(".open").click()
    expect_all_of_it(tab)
    tab.page.get_by_role("button", name="Conversations").click()
    undo = tab.page.locator("#removed").get_by_role("button", name="Undo")
    for button, left in ("Delete Shapes", 1), ("Delete all", 0):
        tab.page.get_by_role("button", name=button).click()
        expect(rows).to_have_count(left)
        expect(undo).to_be_focused()
        undo.click()
        expect(rows).to_have_count(2)
    tab.page.keyboard.press("Escape")
    expect_all_of_it(tab)
    tab.ask("And what color is the circle?")
    wait_until_kept(tab, "And what color")
    tab.page.get_by_role("button", name="Conversations").click()
    expect(rows.first).to_contain_text("Shapes")  # its own name outlasts its change


def test_a_conversation_that_is_open_in_another_tab_is_continued_as_a_copy(miniature: Server, open_tab: Open) -> None:
    tab = open_tab(miniature.url)
    asked(tab)
    second = Tab(tab.page.context.new_page())
    second.page.goto(miniature.url)
    expect(second.cards.first).to_be_visible()
    second.page.get_by_role("button", name="Conversations").click()
    second.page.locator("#drawer li .open").click()
    expect_all_of_it(second)
    for each, words in (tab, "What color is the square?"), (second, "How many shapes are there?"):
        each.ask(words)
        each.wait_for_end()
        wait_until_kept(each, words)
    second.page.reload()
    expect(second.conversation).to_contain_text("How many shapes are there?")
    expect(second.conversation).not_to_contain_text("What color is the square?")
    second.page.get_by_role("button", name="Conversations").click()
    expect(second.page.locator("#drawer li")).to_have_count(2)


def test_what_was_cleared_can_be_brought_back(miniature: Server, open_tab: Open) -> None:
    tab = open_tab(miniature.url)
    asked(tab)
    tab.button("Clear").click()
    expect(tab.cards.first).to_be_visible()
    expect(tab.question).to_be_focused()
    tab.page.locator("#removed").get_by_role("button", name="Undo").click()
    expect_all_of_it(tab)
    tab.page.reload()
    expect_all_of_it(tab)


@pytest.mark.parametrize("blocked", [["indexedDB"], ["localStorage", "sessionStorage"]], ids=["one", "the others"])
def test_without_storage_all_works_but_the_keeping(blocked: list[str], miniature: Server, open_tab: Open) -> None:
    """Where a browser blocks storage, reading its name raises."""
    tab = open_tab(miniature.url)
    for name in blocked:
        tab.page.add_init_script(
            f"Object.defineProperty(window, {name!r}, {{get() {{ throw new DOMException('x', 'SecurityError'); }}}})"
        )
    tab.page.reload()
    tab.set("temperature", 0)
    tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
    expect(tab.answers.last).to_contain_text("red circle")
    tab.page.get_by_role("button", name="Conversations").click()
    words = "Kept in this browser only" if "localStorage" in blocked else "This browser keeps nothing"
    expect(tab.page.locator("#drawer")).to_contain_text(re.compile(words))
