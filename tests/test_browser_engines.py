"""The page in a real Chromium while its engine loads, and with each kind of engine behind it."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browsers import Tab
from checkpoints import info_of
from pictures import png
from playwright.sync_api import expect
from servers import free_port, serving, serving_with
from test_loading import Load

from llava_demo.engines.generate import GenerateEngine
from llava_demo.engines.load import load_engine
from llava_demo.engines.loading import LoadingEngine
from llava_demo.errors import EngineUnavailable
from llava_demo.model.llava import Llava
from llava_demo.settings import Settings

CIRCLE_AND_SQUARE = Path(__file__).parents[1] / "examples" / "circle-and-square.png"
SOMETHING = re.compile(r"\S")

Open = Callable[..., Tab]


def upload() -> dict[str, Any]:
    return {"name": "red.png", "mimeType": "image/png", "buffer": png()}


# --- while the model is loaded


def test_a_question_asked_while_the_model_is_loaded_is_answered_then(
    miniature_engine: GenerateEngine, open_tab: Open
) -> None:
    load, info = Load(), miniature_engine.info
    planned = replace(info, precision="as planned", reasons=("As planned.",))
    with serving(LoadingEngine(planned, load, miniature_engine.seen, most=2)) as server:
        tab = open_tab(server.url)
        tab.set("temperature", 0)
        masthead, about = tab.page.locator(".masthead"), tab.page.locator("#about")
        expect(masthead).to_contain_text("fetching 3.1 of 14.1 GB")
        expect(masthead).to_contain_text("as planned")
        tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
        expect(tab.notes.last).to_contain_text("The model is being loaded · fetching 3.1 of 14.1 GB")
        expect(tab.page.locator("#seen img")).to_have_count(1)
        load.ends_with(GenerateEngine(miniature_engine.llava, info, max_queue=2))
        tab.wait_for_end()
        expect(tab.answers.last).to_have_text("The image shows a red circle and a blue square.")
        expect(masthead).not_to_contain_text("fetching")
        expect(masthead).to_contain_text(info.precision)
        expect(about).to_contain_text("The built-in miniature, as asked.")
        expect(about).not_to_contain_text("As planned.")
        tab.page.close()


def test_a_model_that_cannot_be_loaded_is_said_on_the_page(miniature_engine: GenerateEngine, open_tab: Open) -> None:
    load = Load()
    with serving(LoadingEngine(miniature_engine.info, load, miniature_engine.seen, most=2)) as server:
        tab = open_tab(server.url)
        tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
        load.ends_with(EngineUnavailable("The Hub cannot be reached."))
        tab.wait_for_end()
        expect(tab.failures.last).to_contain_text("The Hub cannot be reached.")
        expect(tab.page.locator(".masthead")).to_contain_text("failed")
        tab.page.close()


def test_a_page_that_is_up_before_its_remote_server_shows_what_answers_once_it_is_known(
    miniature_engine: GenerateEngine, open_tab: Open
) -> None:
    """`docker compose up` starts both at once, and the page is there first."""
    port = free_port()
    info = replace(miniature_engine.info, context_tokens=300)
    with serving(load_engine(Settings(remote_url=f"http://127.0.0.1:{port}"))) as front:
        early = open_tab(front.url)
        expect(early.page.locator(".masthead")).to_contain_text("not known yet")
        expect(early.page.locator("#seen")).to_be_hidden()  # nothing is promised that another server may not show
        with serving(GenerateEngine(miniature_engine.llava, info, 2), port=port):
            for tab in (early, open_tab(front.url)):
                expect(tab.page.locator(".masthead")).to_contain_text("Miniature LLaVA")
                expect(tab.page.locator(".masthead")).not_to_contain_text("not known yet")
                expect(tab.page.locator("#max_tokens input[type=number]")).to_have_attribute("max", "300")
                expect(tab.page.locator("#max_tokens input[type=number]")).to_have_value("300")
                expect(tab.page.locator("#about")).to_contain_text("300 tokens")
                expect(tab.page.locator("#seen")).to_be_visible()
                expect(tab.cards.first).to_contain_text("What is in this picture?")
                tab.page.close()


# --- other engines behind the page; `pytest --engine batched` or `remote` runs all of the above with them


@pytest.mark.parametrize(("kind", "device"), [("batched", "CPU"), ("remote", "another server")])
def test_the_page_works_as_well_with_another_engine(
    kind: str, device: str, miniature_engine: GenerateEngine, open_tab: Open
) -> None:
    with serving_with(kind, miniature_engine.llava, miniature_engine.info) as server:
        tab = open_tab(server.url)
        expect(tab.page.locator(".masthead")).to_contain_text(device)
        expect(tab.page.locator(".masthead")).to_contain_text(f"{kind} engine")
        tab.set("temperature", 0)
        tab.ask("What is in this picture?", CIRCLE_AND_SQUARE)
        tab.wait_for_end()
        expect(tab.answers.last).to_have_text("The image shows a red circle and a blue square.")
        expect(tab.page.locator("#seen img")).to_have_count(1)
        tab.ask("What color is the circle?")
        tab.wait_for_end()
        expect(tab.answers.last).to_contain_text("red")
        tab.page.close()  # before its server


@pytest.mark.parametrize("kind", ["batched", "remote"])
def test_stopping_an_answer_frees_the_engine_and_the_server_behind_it(
    kind: str, tiny_llava: Llava, open_tab: Open
) -> None:
    with serving_with(kind, tiny_llava, info_of(tiny_llava, "generate")) as server, server.slow():
        tab = open_tab(server.url)
        tab.ask("Tell me a long story.", upload())
        expect(tab.answers.last).to_have_text(SOMETHING)
        tab.page.keyboard.press("Escape")
        (server.behind or server).wait_until_free()
        server.wait_until_free()
        expect(tab.notes.last).to_have_text("Stopped")
        tab.page.close()
