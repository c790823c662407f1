"""The parts of the page that need no browser: history to messages and back, controls, panels, growing answers."""

import asyncio
import html
import random
import time
from contextlib import aclosing
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import PIL.Image
import pytest
from pictures import png
from servers import serving

from llava_demo.chat import KNOBS, ChatRequest, Chunk, Message, SamplingParams, Usage
from llava_demo.engines import complete, stream_recorded
from llava_demo.engines.generate import GenerateEngine
from llava_demo.errors import InvalidImage, InvalidRequest
from llava_demo.images import Image, ImageLimits
from llava_demo.metrics import AnswerRecord
from llava_demo.ui import conversation, panels
from llava_demo.ui.answering import UPDATE_S, Growth, numbers_of
from llava_demo.ui.controls import SamplingControls
from llava_demo.ui.examples import Examples, examples_for
from llava_demo.ui.handlers import Handlers
from llava_demo.ui.uploads import ReadUploads

RED, BLUE = Image.from_bytes(png("red")), Image.from_bytes(png("blue"))


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str]:
    """Files of RED and BLUE."""
    for name, image in (("red", RED), ("blue", BLUE)):
        (tmp_path / name).with_suffix(".png").write_bytes(image.data)
    return {name: str(tmp_path / f"{name}.png") for name in ("red", "blue")}


def through_gradio(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a handler gets back of the history that a handler gave out."""
    chat = gr.Chatbot(group_consecutive_messages=False)
    return chat.preprocess(chat.postprocess(entries))  # type: ignore[arg-type, return-value]


def messages_of(*turns: list[dict[str, Any]]) -> tuple[Message, ...]:
    return conversation.messages_from(through_gradio([*chain(*turns)]), Image.from_path)


# --- conversation


def test_a_third_turn_holds_both_turns_before_it_and_their_pictures(paths: dict[str, str]) -> None:
    assert messages_of(
        conversation.question_entries("What is this?", [paths["red"]]),
        [conversation.byline_entry("3 tokens"), conversation.answer_entry("Red.")],
        conversation.question_entries("And this?", [paths["blue"], paths["red"]]),
        [conversation.byline_entry("3 tokens"), conversation.answer_entry("Blue.")],
        conversation.question_entries("Which came first?", []),
    ) == (
        Message("user", "What is this?", (RED,)),
        Message("assistant", "Red."),
        Message("user", "And this?", (BLUE, RED)),
        Message("assistant", "Blue."),
        Message("user", "Which came first?"),
    )


@pytest.mark.parametrize(
    "end",
    [
        [conversation.failure_entry("No answer", "The model failed.")],
        [conversation.byline_entry("Stopped")],
        [conversation.byline_entry("Stopped"), conversation.answer_entry("")],
    ],
    ids=["failed", "stopped before the first word", "empty"],
)
def test_of_a_question_without_an_answer_only_the_pictures_stay(end: list[Any], paths: dict[str, str]) -> None:
    assert messages_of(
        conversation.question_entries("What is this?", [paths["red"]]),
        end,
        conversation.question_entries("And which color?", [paths["blue"]]),
    ) == (Message("user", "And which color?", (RED, BLUE)),)


def test_an_answer_that_broke_off_stays_without_its_failure(paths: dict[str, str]) -> None:
    messages = messages_of(
        conversation.question_entries("What is this?", [paths["red"]]),
        [conversation.answer_entry("It is"), conversation.failure_entry("The answer broke off", "Out of memory.")],
        conversation.question_entries("Go on.", []),
    )
    assert [message.text for message in messages] == ["What is this?", "It is", "Go on."]


NASTY = ["<image>", "</s> <s>", "1 < 2 && 3 > 2", "R&D", "&lt;b&gt;", "&amp;lt;", "&copy me", "<!-- x -->", "\n  a\n\n"]


@pytest.mark.parametrize("text", NASTY)
def test_a_text_comes_back_from_the_page_as_it_was(text: str) -> None:
    messages = messages_of(conversation.question_entries(f"{text} x", []))
    assert messages[0].text == f"{text} x"


def test_any_text_comes_back_from_the_page_and_no_tag_of_it_is_obeyed() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choices(["<", ">", "&", "a", "lt;", "amp;", "#60;", "/", "!", " ", "copy", "é"], k=8))
        shown = conversation.shown(text)
        assert html.unescape(shown) == text
        assert not any(f"<{first}" in shown for first in "a!/lc")


def test_undo_gives_back_the_whole_turn(paths: dict[str, str]) -> None:
    before = [
        *conversation.question_entries("First", []),
        conversation.byline_entry("1 token"),
        conversation.answer_entry("A"),
    ]
    history = through_gradio([*before, *conversation.question_entries("Is <b> a tag?", [paths["red"], paths["blue"]])])
    last = len(history) - 1
    assert conversation.question_of(history, last) == {
        "text": "Is <b> a tag?",
        "files": [paths["red"], paths["blue"]],
    }
    assert conversation.turn_start(history, last) == len(before)


def test_an_edited_text_is_shown_as_it_was_typed() -> None:
    typed = [{"role": "user", "content": [{"type": "text", "text": "Is <b> a tag?"}], "metadata": None}]
    assert conversation.edited(typed) == conversation.question_entries("Is <b> a tag?", [])


# --- controls and panels


@pytest.fixture
def controls() -> SamplingControls:
    with gr.Blocks():
        return SamplingControls(lambda: 4096)


def values_of(controls: SamplingControls) -> dict[str, Any]:
    return {str(component.elem_id): getattr(component, "value", None) for component in controls.components}


def test_every_sampling_parameter_has_a_control_that_starts_at_the_pages_default(controls: SamplingControls) -> None:
    values = values_of(controls)
    for_programs = {"top_logprobs", "ignore_eos", "stop_token_ids", "json_schema"}
    assert values.keys() == {field.name for field in fields(SamplingParams)} - for_programs
    sampling = controls.sampling_from(tuple(values.values()))
    for name, knob in KNOBS.items():
        default = getattr(SamplingParams(), name) if knob.page_default is None else knob.page_default
        assert getattr(sampling, name) == default
    assert (sampling.seed, sampling.stop) == (None, ())


def test_the_longest_answer_is_never_above_the_context() -> None:
    with gr.Blocks():
        assert values_of(SamplingControls(lambda: 300))["max_tokens"] == 300


def test_seed_and_stop_are_read_from_text(controls: SamplingControls) -> None:
    given = values_of(controls) | {"seed": " 7 ", "stop": "END\n\n . "}
    sampling = controls.sampling_from(tuple(given.values()))
    assert (sampling.seed, sampling.stop) == (7, ("END", " . "))


@pytest.mark.parametrize("seed", ["-1", "1.5", "lucky", "9" * 30, "²"])
def test_a_seed_that_is_none_is_refused(controls: SamplingControls, seed: str) -> None:
    with pytest.raises(InvalidRequest, match="it must be a whole number from 0"):
        controls.sampling_from(tuple((values_of(controls) | {"seed": seed}).values()))


def test_the_cards_are_those_that_the_model_can_answer(tmp_path: Path) -> None:
    for is_miniature in (True, False):
        examples = examples_for(is_miniature)
        assert len(examples) >= 4
        assert all(Path(example.path).is_file() and example.prompt for example in examples)
    assert examples_for(True) != examples_for(False)
    assert examples_for(True, tmp_path) == []


def test_the_patches_are_drawn_over_what_the_model_sees() -> None:
    square = PIL.Image.new("RGB", (336, 336))
    shown = panels.seen_html([square], image_tokens=576)
    assert "--patches:24" in shown
    assert "24 by 24 patches" in shown
    assert "patches" not in panels.seen_html([square], image_tokens=577).replace("--patches", "")


# --- growing answers


def test_a_growing_answer_grows_and_ends_with_the_whole(tiny_engine: GenerateEngine) -> None:
    request = ChatRequest((Message("user", "Hello", (RED,)),), SamplingParams(temperature=0, max_tokens=60))

    growth = Growth(AnswerRecord("test"))

    async def read() -> list[str]:
        async with aclosing(stream_recorded(tiny_engine, request, growth.record)) as chunks:
            return [growth.text async for chunk in chunks if growth.takes(chunk)]

    texts = asyncio.run(read())
    assert texts == sorted(texts, key=len)
    assert texts[-1] == asyncio.run(complete(tiny_engine, request)).text
    numbers = numbers_of(growth.record, tiny_engine.info.context_tokens)
    assert "60 tokens" in numbers
    assert "cut at max tokens" in numbers
    assert "tokens/s" in numbers
    growth.record.first_token_s = growth.record.total_s  # as of another server that sends an answer in one piece
    assert "tokens/s" not in numbers_of(growth.record, tiny_engine.info.context_tokens)
    assert growth.record.usage
    assert "cut at the end of the context" in numbers_of(growth.record, growth.record.usage.total_tokens)


def test_an_answer_updates_the_page_ten_times_a_second_at_most(
    tiny_engine: GenerateEngine, paths: dict[str, str]
) -> None:
    """Within any second, the updates of the question and of the end included."""
    with gr.Blocks():
        controls = SamplingControls(lambda: tiny_engine.info.context_tokens)
    handlers = Handlers(tiny_engine, controls, Examples(lambda: True), ReadUploads(ImageLimits()))
    knobs = controls.values_of(SamplingParams(temperature=0, max_tokens=120))

    async def times() -> list[float]:
        updates = handlers.send({"text": "Hello", "files": [paths["red"]]}, [], *knobs)
        return [time.monotonic() async for _ in updates]

    hook = tiny_engine.llava.model.register_forward_pre_hook(lambda *_: time.sleep(0.01))
    shown = asyncio.run(times())
    hook.remove()
    assert len(shown) > 10
    assert all(eleventh - first > 1 for first, eleventh in zip(shown, shown[10:], strict=False))


def test_text_that_comes_fast_is_shown_about_eight_times_a_second() -> None:
    growth = Growth(AnswerRecord("test"))
    shown = sum(growth.takes(Chunk("a")) for _ in range(1000))
    assert 1 <= shown <= 1 + growth.record.total_s / UPDATE_S
    assert growth.takes(Chunk()), "a heartbeat"
    assert growth.takes(Chunk("", "stop", Usage(1, 1000))), "the end"
    assert growth.text == "a" * 1000


def test_an_answer_without_a_word_has_no_speed() -> None:
    measured = AnswerRecord("test")
    measured.saw(Chunk("", "stop", Usage(5, 0)))
    assert numbers_of(measured, 4096) == "No words"


def test_a_picture_is_decoded_once_however_many_turns_read_it(paths: dict[str, str]) -> None:
    read = ReadUploads(ImageLimits())
    red, blue = read(paths["red"]), read(paths["blue"])
    assert (red, blue) == (RED, BLUE)
    assert read(paths["red"]) is red
    Path(paths["red"]).write_bytes(png("green"))  # another file of that name
    assert read(paths["red"]) == Image.from_bytes(png("green"))
    Path(paths["blue"]).unlink()
    with pytest.raises(InvalidImage, match="no such picture"):
        read(paths["blue"])


def test_decoded_pictures_take_bounded_memory(paths: dict[str, str]) -> None:
    read = ReadUploads(ImageLimits(), max_bytes=1)
    assert read(paths["red"]) is not read(paths["red"])


def test_a_picture_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    entries = conversation.question_entries("What is this?", [str(tmp_path / "gone.png")])
    with pytest.raises(InvalidImage, match="no such picture"):
        conversation.messages_from(entries, Image.from_path)


@pytest.mark.parametrize(
    ("model", "name"),
    [("llava-hf/llava-1.5-13b-hf", "LLaVA-1.5-13B"), ("llava-hf/bakLlava-v1-hf", "bakLlava-v1-hf"), ("tiny", "tiny")],
)
def test_a_model_is_called_as_people_call_it(tiny_engine: GenerateEngine, model: str, name: str) -> None:
    assert panels.model_name(replace(tiny_engine.info, model=model)) == name


def test_behind_a_proxy_the_preview_names_the_public_address(tiny_engine: GenerateEngine) -> None:
    headers = {"host": "me-demo.example", "x-forwarded-proto": "https", "x-forwarded-host": "me-demo.example"}
    with serving(tiny_engine, trusted_proxy="127.0.0.1") as server:
        html = httpx.get(server.url, headers=headers).text
    assert '<meta property="og:image" content="https://me-demo.example/card.png">' in html
