"""The examples: pictures as drawn and answered truthfully by the miniature, and scripts that ask about them."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image as Pictures
from PIL import ImageChops
from servers import Server

from examples.clients.tags import Tags
from llava_demo.chat import ChatRequest, Completion, Message, SamplingParams
from llava_demo.engines import Engine, complete
from llava_demo.engines.load import load_engine
from llava_demo.images import Image
from llava_demo.settings import Settings

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = json.loads((FOLDER / "examples.json").read_text(encoding="utf-8"))
NAMES = [example["image"] for example in EXAMPLES]

# What a true answer to the question on the card must hold, and what every true description of the picture holds.
TRUTHS = {
    "circle-and-square.png": (("red circle", "blue square"), ("red circle", "blue square")),
    "night-star.png": (("yellow",), ("yellow star",)),
    "three-shapes.png": (("three",), ("green triangle", "purple star", "orange circle")),
    "two-squares.png": (("yellow square", "purple square"), ("yellow square", "purple square")),
    "seven.png": (("7",), ("7", "red")),
    "night-four.png": (("4", "green"), ("4", "green")),
}
GREEDY = SamplingParams(temperature=0)
WORDS_OF_THE_WORLD = ("circle", "square", "triangle", "star", "red", "green", "blue", "yellow", "orange", "purple")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = load_engine(Settings(model="miniature"))
    yield engine
    asyncio.run(engine.aclose())


def answer(engine: Engine, name: str, prompt: str) -> str:
    [said] = answers(engine, name, prompt, GREEDY)
    return said


def answers(engine: Engine, name: str, prompt: str, *ways: SamplingParams) -> list[str]:
    """Asked at once."""
    question = Message("user", prompt, (Image.from_path(FOLDER / name),))

    async def ask() -> list[Completion]:
        return await asyncio.gather(*(complete(engine, ChatRequest((question,), sampling)) for sampling in ways))

    return [completion.text for completion in asyncio.run(ask())]


def test_the_script_draws_the_committed_pictures_again_pixel_for_pixel(tmp_path: Path) -> None:
    subprocess.run([sys.executable, FOLDER / "draw.py", tmp_path], check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    for name in NAMES:
        with Pictures.open(tmp_path / name) as drawn, Pictures.open(FOLDER / name) as committed:
            assert drawn.size == committed.size, name
            assert ImageChops.difference(drawn, committed).getbbox() is None, f"{name} is old: run make examples"


@pytest.mark.parametrize("name", TRUTHS)
def test_a_card_is_answered_as_truly_with_the_pages_own_settings(engine: Engine, name: str) -> None:
    """A choice that is nearly even is answered right greedily, and wrong by one draw in four."""
    [prompt] = [example["prompt"] for example in EXAMPLES if example["image"] == name]
    drawn = answers(engine, name, prompt, *(SamplingParams(top_p=0.7, seed=seed) for seed in range(30)))
    assert set(drawn) == {answer(engine, name, prompt)}


def test_every_example_says_what_to_show_and_for_which_model() -> None:
    for example in EXAMPLES:
        assert set(example) == {"image", "title", "prompt", "for"}, example
        assert example["for"] in ("miniature", "7b")
        assert example["title"].strip() and example["prompt"].strip()
    assert len(set(NAMES)) == len(NAMES) >= 10
    assert [e["image"] for e in EXAMPLES if e["for"] == "miniature"] == list(TRUTHS)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_sharp_on_a_card_and_light_on_a_phone(name: str) -> None:
    with Pictures.open(FOLDER / name) as picture:
        width, height = picture.size
    assert 600 <= width <= 1000 and 600 <= height <= 1000
    assert (FOLDER / name).stat().st_size < 200_000


@pytest.mark.parametrize("name", TRUTHS)
def test_the_miniature_answers_its_cards_truthfully(engine: Engine, name: str) -> None:
    prompt = next(example["prompt"] for example in EXAMPLES if example["image"] == name)
    on_card, described = TRUTHS[name]
    assert_true(answer(engine, name, prompt), on_card, described)
    assert_true(answer(engine, name, "What is in this picture?"), described, described)


def assert_true(said: str, needed: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    """`said` holds all that is needed, and names no shape or colour that is not in the picture."""
    assert all(words in said for words in needed), said
    there = " ".join((*needed, *allowed))
    assert not [word for word in WORDS_OF_THE_WORLD if word in said and word not in there], said


@pytest.mark.parametrize("name", [example["image"] for example in EXAMPLES if example["for"] == "7b"])
def test_the_miniature_says_that_it_does_not_know_the_other_pictures(engine: Engine, name: str) -> None:
    assert "only know simple drawings" in answer(engine, name, "What is in this picture?")


# --- the scripts, one for each way in

SCRIPTS = {path.name: path for path in sorted(FOLDER.glob("clients/*_ask.*"))}
PROMPT = 'What is in this "picture"? It\'s $HOME'
RUNS = {
    "curl_ask.sh": ["bash", "{script}"],
    "gradio_client_ask.mjs": ["node", "{script}"],
    "worker_ask.mjs": ["node", "{script}"],
}


def run_script(name: str, words: list[str], folder: Path) -> str:
    """What the script prints, started as its first lines say."""
    script = SCRIPTS[name]
    if name.endswith(".mjs"):
        script = folder / name
        script.write_bytes(SCRIPTS[name].read_bytes())  # Node looks for packages beside the script
    command = RUNS.get(name, [sys.executable, "-m", f"examples.clients.{script.stem}"])
    command = [part.format(script=script) for part in command]
    environment = os.environ | {"LLAVA_MODEL": "miniature", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [*command, *words], cwd=FOLDER.parent, capture_output=True, encoding="utf-8", timeout=180, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_asks_and_prints_the_same_answer(
    miniature: Server, engine: Engine, request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    if name.endswith(".sh") and shutil.which("jq") is None:
        pytest.skip("there is no jq on the PATH")
    folder = request.getfixturevalue("node_folder") if name.endswith(".mjs") else tmp_path
    picture = str(FOLDER / "circle-and-square.png")
    address = [] if name == "python_ask.py" else [miniature.url]
    expected = answer(engine, "circle-and-square.png", PROMPT)
    assert run_script(name, [picture, PROMPT, *address], folder).strip() == expected


def test_tags_come_in_the_form_that_the_script_knows(miniature: Server) -> None:
    command = [sys.executable, "-m", "examples.clients.tags", str(FOLDER / "circle-and-square.png"), miniature.url]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, encoding="utf-8", timeout=180)
    assert done.returncode == 0, done.stderr
    tags = Tags.model_validate_json(done.stdout)
    assert 1 <= len(tags.subjects) <= 3


def test_there_is_a_script_for_every_way_in() -> None:
    ways = {"cloudflare", "curl", "gradio_client", "mcp", "ollama", "openai", "python", "responses", "worker"}
    assert {name.split("_ask")[0] for name in SCRIPTS} == ways
