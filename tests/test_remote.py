"""The remote engine against real servers: `transformers serve` with the miniature, and this project's own."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from checkpoints import SIDE, engine_of
from pictures import encoded
from processes import OtherServer, other_server
from servers import Server, free_port, serving

from llava_demo.chat import ChatRequest, Chunk, Completion, Message, SamplingParams
from llava_demo.engines import Engine, complete
from llava_demo.engines.generate import GenerateEngine
from llava_demo.engines.load import load_engine
from llava_demo.engines.remote import RemoteEngine
from llava_demo.errors import (
    DemoError,
    EngineBusy,
    EngineUnavailable,
    GenerationFailed,
    InvalidRequest,
    PromptTooLong,
    TooManyRequests,
)
from llava_demo.images import Image
from llava_demo.model import MINIATURE
from llava_demo.model.llava import Llava
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


@pytest.fixture(autouse=True)
def a_busy_machine_may_take_long_to_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_demo.engines.remote.CONNECT_S", 60.0)


@pytest.fixture(scope="module")
def transformers_serve() -> Iterator[OtherServer]:
    command = ["serve", str(MINIATURE), "--device", "cpu", "--host", "127.0.0.1", "--port", "PORT"]
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


# --- this project's own server


def noise(seed: int, size: tuple[int, int] = (120, 80)) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.from_bytes(encoded(PIL.Image.fromarray(pixels), "PNG"))


OWN = {
    "greedy, a wide picture": asking("What?", images=(noise(0),)),
    "drawn with a seed": asking("What?", images=(noise(1),), temperature=1.2, top_p=0.9, top_k=50, min_p=0.01, seed=7),
    "penalties": asking("What?", repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.5),
    "log-probabilities": asking("What?", images=(noise(2),), top_logprobs=3, max_tokens=8),
    "the rest of an answer": asking("What?", "It is"),
    "past the end": asking("What?", ignore_eos=True, stop_token_ids=(30, 31)),
    "JSON": asking("What?", json_schema='{"enum": [{"color": "red"}, ["blue", "green"], "black"]}'),
    "a system message and turns": ChatRequest(
        (
            Message("system", "Be brief."),
            Message("user", "What? é 日本 😀", (noise(3), noise(4, (50, 90)))),
            Message("assistant", "A circle."),
            Message("user", "Sure?"),
        ),
        GREEDY,
    ),
}


@pytest.mark.parametrize("question", OWN)
def test_our_own_server_answers_as_the_engine_behind_it(question: str, padding: Server) -> None:
    """Pictures go as the square that the model sees, so that wide ones are the same here and there."""
    expected = asyncio.run(complete(padding.engine, OWN[question]))
    with remote(padding.url) as engine:
        answer = asyncio.run(complete(engine, OWN[question]))
    assert (answer.text, answer.finish_reason) == (expected.text, expected.finish_reason)
    assert [token.token for token in answer.logprobs] == [token.token for token in expected.logprobs]
    for ours, theirs in zip(answer.logprobs, expected.logprobs, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.completion_tokens == expected.usage.completion_tokens


@pytest.fixture(scope="module")
def padding(tiny_folder: str) -> Iterator[Server]:
    """A tiny model, loaded as by anybody: pictures are padded."""
    engine = load_engine(Settings(model=tiny_folder, engine="generate"))
    assert isinstance(engine, GenerateEngine)
    with serving(engine) as server:
        yield server


def test_what_our_own_server_tells_is_known_here(padding: Server) -> None:
    with remote(padding.url) as engine:
        info = engine.info
        assert (info.model, info.engine, info.context_tokens) == ("tiny", "remote", 1024)
        assert (info.image_tokens, info.image_side, info.max_images) == (16, SIDE, padding.engine.info.max_images)
        assert engine.status().state == "ready"
        square = engine.seen(noise(0))
        assert square is not None
        assert square.tobytes() == padding.engine.seen(noise(0)).tobytes()


def test_closing_the_stream_frees_the_server(padding: Server) -> None:
    async def begin(engine: RemoteEngine) -> None:
        async with aclosing(engine.stream(asking("Tell me a long story.", max_tokens=900))) as chunks:
            async for chunk in chunks:
                if chunk.text:
                    assert (engine.status().running, engine.status().waiting) == (1, 0)
                    return

    with remote(padding.url) as engine, padding.slow():
        asyncio.run(begin(engine))
        padding.wait_until_free()
        assert (engine.status().running, engine.status().waiting) == (0, 0)


def test_a_conversation_that_does_not_fit_is_the_callers_to_hear(padding: Server) -> None:
    with remote(padding.url) as engine, pytest.raises(PromptTooLong, match="tokens"):
        asyncio.run(complete(engine, asking("word " * 1200)))


def test_no_more_may_wait_than_was_set(padding: Server) -> None:
    async def ask_three(engine: RemoteEngine) -> list[Any]:
        answers = (complete(engine, asking("Hello", max_tokens=3)) for _ in range(3))
        return await asyncio.gather(*answers, return_exceptions=True)

    with remote(padding.url, max_concurrent=1, max_queue=1) as engine, padding.slow(0.2):
        assert [type(answer) for answer in asyncio.run(ask_three(engine))].count(EngineBusy) == 1


def test_callers_take_turns_in_front_of_the_servers(padding: Server) -> None:
    ended: list[str] = []

    async def ask(engine: RemoteEngine, caller: str) -> None:
        await complete(engine, replace(asking("Hello", max_tokens=3), caller=caller))
        ended.append(caller)

    async def ask_all(engine: RemoteEngine) -> None:
        tasks = [asyncio.create_task(ask(engine, caller)) for caller in ("greedy",) * 4]
        await asyncio.sleep(0)  # they are in the queue before the others
        tasks += [asyncio.create_task(ask(engine, caller)) for caller in ("polite", "third")]
        await asyncio.gather(*tasks)
        assert engine.status().waiting == 0

    with remote(padding.url, max_concurrent=1, max_queue=8) as engine:
        asyncio.run(ask_all(engine))
    assert ended.index("polite") < 3 > ended.index("third"), ended


def test_a_caller_past_its_share_is_told_so_while_another_one_still_finds_a_place(padding: Server) -> None:
    async def ask_many(engine: RemoteEngine) -> list[Any]:
        callers = ["greedy"] * 12 + ["polite"]
        asked = (complete(engine, replace(asking("Hello", max_tokens=2), caller=caller)) for caller in callers)
        return await asyncio.gather(*asked, return_exceptions=True)

    with remote(padding.url, max_concurrent=1, max_queue=8) as engine, padding.slow(0.05):
        *greedy, polite = asyncio.run(ask_many(engine))
    assert {type(answer) for answer in greedy} == {Completion, TooManyRequests}
    assert isinstance(polite, Completion)


def test_servers_that_are_busy_are_said_to_be(tiny_llava: Llava) -> None:
    async def ask_two(engine: RemoteEngine) -> list[Any]:
        answers = (complete(engine, asking("Hello", max_tokens=30)) for _ in range(2))
        return await asyncio.gather(*answers, return_exceptions=True)

    with (
        serving(engine_of(tiny_llava, max_queue=0), max_queue=0) as server,
        server.slow(),
        remote(server.url) as engine,
    ):
        assert [type(answer) for answer in asyncio.run(ask_two(engine))].count(EngineBusy) == 1


def test_the_least_busy_server_is_asked(padding: Server, tiny_llava: Llava) -> None:
    async def ask_two(engine: RemoteEngine, both: list[Server]) -> None:
        asking_two = [asyncio.create_task(complete(engine, asking("Hello", max_tokens=30))) for _ in both]
        await asyncio.to_thread(lambda: [server.wait_until(running=1, waiting=0) for server in both])
        await asyncio.gather(*asking_two)

    with (
        serving(engine_of(tiny_llava)) as second,
        padding.slow(),
        second.slow(),
        remote(padding.url, second.url) as engine,
    ):
        asyncio.run(ask_two(engine, [padding, second]))


def test_a_key_is_sent_and_a_wrong_one_is_said(tiny_llava: Llava) -> None:
    with serving(engine_of(tiny_llava), api_key=("k3y",)) as server:
        with remote(server.url, remote_key="k3y") as engine:
            assert asyncio.run(complete(engine, asking("Hello", max_tokens=3))).usage.completion_tokens == 3
        with remote(server.url, remote_key="wrong") as engine, pytest.raises(EngineUnavailable, match="key"):
            asyncio.run(complete(engine, asking("Hello")))


def test_a_server_killed_in_mid_answer_is_said_and_the_next_question_goes_to_the_other(
    tiny_folder: str, padding: Server
) -> None:
    async def ask(engine: RemoteEngine, dying: OtherServer) -> None:
        async with aclosing(engine.stream(asking("Tell me a long story.", max_tokens=900))) as chunks:
            async for chunk in chunks:
                if chunk.text:
                    dying.kill()

    command = ["llava_demo", "serve", "--model", tiny_folder, "--engine", "generate", "--port", "PORT"]
    with other_server(*command, health="health/ready") as dying, remote(dying.url, padding.url) as engine:
        with pytest.raises(GenerationFailed, match="broke off"):
            asyncio.run(ask(engine, dying))
        answer = asyncio.run(complete(engine, OWN["greedy, a wide picture"]))
        assert answer.text == asyncio.run(complete(padding.engine, OWN["greedy, a wide picture"])).text
        assert engine.status().state == "ready"


# --- servers that fail


def test_without_an_address_there_is_no_remote_engine() -> None:
    with pytest.raises(SettingError, match="needs --remote-url"):
        load_engine(Settings(engine="remote"))


def test_servers_that_are_all_down_are_said_to_be_and_the_start_goes_on() -> None:
    with remote(NOWHERE, f"http://127.0.0.1:{free_port()}") as engine:
        assert engine.status().state == "failed"
        with pytest.raises(EngineUnavailable, match="None of the 2 servers") as caught:
            asyncio.run(complete(engine, asking("Hello")))
        assert (caught.value.status, engine.status().waiting) == (503, 0)


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
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "remote on another server" in done.stdout
