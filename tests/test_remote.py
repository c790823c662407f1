"""The remote engine against real servers: `transformers serve` with the miniature, and this project's own."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from pictures import encoded
from processes import OtherServer, other_server
from servers import free_port, serving

from llava_demo.chat import ChatRequest, Chunk, Message, SamplingParams
from llava_demo.engines import Engine, complete
from llava_demo.engines.load import load_engine
from llava_demo.engines.remote import RemoteEngine
from llava_demo.errors import DemoError, EngineUnavailable, InvalidRequest
from llava_demo.images import Image
from llava_demo.miniature import FOLDER
from llava_demo.settings import SettingError, Settings

EXAMPLES = Path(__file__).parents[1] / "examples"
GREEDY = SamplingParams(temperature=0, max_tokens=40)
NOWHERE = "http://127.0.0.1:9"  # nobody listens on it


def example(name: str) -> Image:
    return Image.from_path(EXAMPLES / f"{name}.png")


def asking(*words: str, images: tuple[Image, ...] = (), **knobs: Any) -> ChatRequest:
    """The first of `words` about the pictures; the others are the turns that follow."""
    turns = [Message("user", words[0], images)]
    for index, text in enumerate(words[1:]):
        turns.append(Message("user" if index % 2 else "assistant", text))
    return ChatRequest(tuple(turns), SamplingParams(**{"temperature": 0, "max_tokens": 40} | knobs))


@contextmanager
def remote(*urls: str, **settings: Any) -> Iterator[RemoteEngine]:
    engine = load_engine(Settings(remote_url=urls, **settings))
    assert isinstance(engine, RemoteEngine)
    try:
        yield engine
    finally:
        asyncio.run(engine.aclose())


QUESTIONS = {
    "a picture": asking("What is in this picture?", images=(example("circle-and-square"),)),
    "a follow-up": asking(
        "Is there a square?", "Yes, there is a square.", "And what color is it?", images=(example("two-squares"),)
    ),
    "two pictures": asking("What is in the second picture?", images=(example("seven"), example("night-star"))),
    "no picture": asking("What can you do?"),
    "a picture on its side": asking(
        "What is in this picture?",
        images=(Image.from_bytes(encoded(PIL.Image.new("RGB", (80, 40), "red"), "TIFF")),),
    ),
}


# --- transformers serve


@pytest.fixture(scope="module")
def transformers_serve() -> Iterator[OtherServer]:
    command = ["serve", str(FOLDER), "--device", "cpu", "--host", "127.0.0.1", "--port", "PORT"]
    with other_server("transformers.cli.transformers", *command, health="health") as server:
        yield server


@pytest.fixture(scope="module")
def local_miniature() -> Iterator[Engine]:
    """Crops, as everybody's processor does."""
    engine = load_engine(Settings(model="miniature", engine="generate", image_mode="crop"))
    yield engine
    asyncio.run(engine.aclose())


@pytest.mark.parametrize("question", QUESTIONS)
def test_transformers_serve_answers_as_the_local_engine(
    question: str, transformers_serve: OtherServer, local_miniature: Engine
) -> None:
    expected = asyncio.run(complete(local_miniature, QUESTIONS[question]))
    with remote(transformers_serve.url) as engine:
        assert asyncio.run(complete(engine, QUESTIONS[question])) == expected


def test_an_answer_of_transformers_serve_streams(transformers_serve: OtherServer) -> None:
    async def read(engine: Engine) -> list[Chunk]:
        return [chunk async for chunk in engine.stream(QUESTIONS["a picture"])]

    with remote(transformers_serve.url) as engine:
        chunks = asyncio.run(read(engine))
    assert len([chunk for chunk in chunks if chunk.text]) > 5
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]


def test_what_a_server_does_not_take_is_the_callers_to_hear(transformers_serve: OtherServer) -> None:
    with remote(transformers_serve.url) as engine, pytest.raises(InvalidRequest, match="top_k"):
        asyncio.run(complete(engine, asking("Hello", top_k=5)))


def test_a_model_that_a_server_does_not_serve_is_said(transformers_serve: OtherServer) -> None:
    with remote(transformers_serve.url, model="other") as engine, pytest.raises(DemoError, match="pinned to"):
        asyncio.run(complete(engine, asking("Hello")))


def test_the_page_of_a_remote_engine_answers(transformers_serve: OtherServer) -> None:
    from gradio_client import Client, handle_file

    with remote(transformers_serve.url) as engine, serving(engine) as server:  # type: ignore[arg-type]
        client = Client(server.url, verbose=False)
        picture = handle_file(EXAMPLES / "circle-and-square.png")
        answer = client.predict(image=picture, prompt="What is in this picture?", temperature=0, api_name="/ask")
    assert answer == "The image shows a red circle and a blue square."


# --- servers that fail


def test_without_an_address_there_is_no_remote_engine() -> None:
    with pytest.raises(SettingError, match="needs --remote-url"):
        load_engine(Settings(engine="remote"))


def test_servers_that_are_all_down_are_said_to_be_and_the_start_goes_on() -> None:
    with remote(NOWHERE, f"http://127.0.0.1:{free_port()}") as engine:
        assert engine.load().state == "failed"
        with pytest.raises(EngineUnavailable, match="None of the 2 servers") as caught:
            asyncio.run(complete(engine, asking("Hello")))
        assert (caught.value.status, engine.load().waiting) == (503, 0)


def test_a_server_that_says_nothing_does_not_hang_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    from llava_demo.engines import remote as module

    monkeypatch.setattr(module, "SILENCE_S", 1.2)

    async def read(engine: Engine) -> list[Chunk]:
        chunks = []
        with pytest.raises(EngineUnavailable, match=r"said nothing for 1\.2 seconds"):
            async for chunk in engine.stream(asking("Hello")):
                chunks.append(chunk)
        return chunks

    with (
        socket.create_server(("127.0.0.1", 0)) as silent,  # accepts, and never answers
        remote(f"http://127.0.0.1:{silent.getsockname()[1]}") as engine,
    ):
        chunks = asyncio.run(read(engine))
    assert set(chunks) == {Chunk()}  # heart-beats
    assert len(chunks) >= 2


def test_a_raw_prompt_is_refused() -> None:
    request = ChatRequest((Message("user", "USER: hi ASSISTANT:"),), GREEDY, is_raw=True)
    with remote(NOWHERE) as engine, pytest.raises(InvalidRequest, match="raw prompt"):
        asyncio.run(complete(engine, request))


def test_neither_torch_nor_transformers_is_imported() -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None  # importing them would raise\n"
        "from llava_demo.serve import launch\n"
        "from llava_demo.settings import Settings\n"
        f"page, url = launch(Settings(remote_url='{NOWHERE}', port={free_port()}), prevent_thread_lock=True)\n"
        "page.close(verbose=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "remote on another server" in done.stdout
