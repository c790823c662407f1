"""While a model is loaded: the page is there, questions wait, and everybody is told how far it is."""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest
from checkpoints import engine_of
from hub import models_hub
from pictures import png
from processes import ROOT
from servers import free_port, serving
from test_generate import request, until

from llava_demo.chat import Chunk, Message
from llava_demo.engines import Engine, EngineStatus, complete
from llava_demo.engines.load import engine_at_once
from llava_demo.engines.loading import LoadingEngine, Report
from llava_demo.engines.progress import weights_told
from llava_demo.errors import EngineBusy, EngineUnavailable, InvalidRequest, TooManyRequests
from llava_demo.images import Image
from llava_demo.model.llava import Llava
from llava_demo.settings import Settings
from tests.fork_server import run

PICTURE = Image.from_bytes(png())


@dataclass
class Load:
    """Loading that goes on until it is told what it comes to."""

    result: Engine | Exception | None = None
    go_on: threading.Event = field(default_factory=threading.Event)

    def __call__(self, report: Report) -> Engine:
        report("fetching 3.1 of 14.1 GB")
        assert self.go_on.wait(60)
        if isinstance(self.result, Exception):
            raise self.result
        assert self.result
        return self.result

    def ends_with(self, result: Engine | Exception) -> None:
        self.result = result
        self.go_on.set()


@pytest.fixture
def load() -> Iterator[Load]:
    load = Load()
    yield load
    load.go_on.set()


@pytest.fixture
def engine(load: Load, tiny_llava: Llava) -> LoadingEngine:
    planned = replace(engine_of(tiny_llava).info, engine="batched", max_images=2)
    return LoadingEngine(planned, load, tiny_llava.seen, most=4)


def test_a_question_that_comes_meanwhile_waits_and_is_answered(
    engine: LoadingEngine, load: Load, tiny_llava: Llava
) -> None:
    async def scenario() -> tuple[str, str]:
        chunks = engine.stream(request(max_tokens=5))
        assert await anext(chunks) == Chunk()
        assert engine.status() == EngineStatus("loading", 0, 1, stage="fetching 3.1 of 14.1 GB")
        load.ends_with(engine_of(tiny_llava))
        text = ""
        async with aclosing(chunks):
            async for chunk in chunks:
                text += chunk.text
        return text, (await complete(engine, request(max_tokens=5))).text

    assert engine.info.engine == "batched"
    waited, at_once = asyncio.run(scenario())
    assert waited == at_once != ""
    assert engine.info.engine == "generate"
    assert engine.status() == EngineStatus("ready", 0, 0)


def test_who_goes_away_waits_no_longer(engine: LoadingEngine) -> None:
    async def scenario() -> None:
        chunks = engine.stream(request())
        await anext(chunks)
        await chunks.aclose()
        assert engine.status().waiting == 0

    asyncio.run(scenario())


def test_only_so_many_wait_and_the_others_hear_why(engine: LoadingEngine) -> None:
    async def scenario() -> None:
        waiting = [engine.stream(replace(request(), caller=caller)) for caller in "aaab"]
        for chunks in waiting[:3]:
            await anext(chunks)
        with pytest.raises(TooManyRequests, match="3 of your requests are running or waiting"):
            await anext(engine.stream(replace(request(), caller="a")))
        await anext(waiting[3])
        with pytest.raises(EngineBusy, match=r"loaded \(fetching 3.1 of 14.1 GB\) and 4 questions are waiting"):
            await anext(engine.stream(replace(request(), caller="c")))
        for chunks in waiting:
            await chunks.aclose()

    asyncio.run(scenario())


def test_what_can_be_refused_at_once_is(engine: LoadingEngine) -> None:
    with pytest.raises(InvalidRequest, match="has 3 pictures; at most 2 are allowed"):
        asyncio.run(complete(engine, request(messages=(Message("user", "?", 3 * (PICTURE,)),))))


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (EngineUnavailable("The Hub is down."), "The Hub is down."),
        (RuntimeError("at a secret place"), "The model could not be loaded."),
    ],
)
def test_a_model_that_cannot_be_loaded_is_said_to_all(
    engine: LoadingEngine, load: Load, failure: Exception, words: str
) -> None:
    called: list[int] = []
    engine.when_loaded(lambda: called.append(1))

    async def scenario() -> None:
        waiting = engine.stream(request())
        await anext(waiting)
        load.ends_with(failure)
        with pytest.raises(EngineUnavailable, match=words):
            async for _ in waiting:
                pass
        with pytest.raises(EngineUnavailable, match=words):
            await complete(engine, request())

    asyncio.run(scenario())
    assert engine.status().state == "failed"
    assert called == []
    with pytest.raises(type(failure), match=str(failure)):
        engine.loaded()


def test_a_server_that_is_shut_down_meanwhile_keeps_nobody(engine: LoadingEngine) -> None:
    async def scenario() -> None:
        waiting = engine.stream(request())
        await anext(waiting)
        await engine.aclose()
        for chunks in (waiting, engine.stream(request())):
            with pytest.raises(EngineUnavailable, match="shutting down"):
                async for _ in chunks:
                    pass

    asyncio.run(scenario())
    assert engine.status().state == "failed"


def test_callbacks_come_when_it_is_loaded_and_at_once_after_that(
    engine: LoadingEngine, load: Load, tiny_llava: Llava
) -> None:
    called: list[str] = []
    engine.when_loaded(lambda: called.append("first"))
    assert called == []
    load.ends_with(engine_of(tiny_llava))
    asyncio.run(until(lambda: called == ["first"]))
    engine.when_loaded(lambda: called.append("second"))
    assert called == ["first", "second"]


# --- how far it is


def test_the_weights_of_a_real_checkpoint_are_counted(tiny_folder: str) -> None:
    stages: list[str] = []
    from transformers import AutoModelForImageTextToText

    with weights_told(stages.append):
        AutoModelForImageTextToText.from_pretrained(tiny_folder)
    assert stages[0].startswith("loading the weights, ")
    assert stages[-1] == "loading the weights, 100%"
    assert len(set(stages)) > 10


def test_what_is_fetched_is_counted_and_other_formats_are_left(tiny_folder: str, tmp_path: Path) -> None:
    folder, weights = tmp_path / "in two formats", 60_000_000  # bytes, of which nothing is read here
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").write_bytes(bytes(weights))
    (folder / "pytorch_model.bin").write_bytes(bytes(1000))
    code = 'from llava_demo.engines.progress import fetch; fetch("someone/tiny", print)'
    with models_hub("someone/tiny", folder) as hub:
        variables = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "fetching 0.1 of 0.1 GB"
    assert "fetching 0.0 of 0.1 GB" in done.stdout
    fetched = {path.name for path in (tmp_path / "home").rglob("snapshots/*/*")}
    assert fetched == {path.name for path in Path(tiny_folder).iterdir()}


# --- in the whole program


def test_sizes_are_known_before_the_weights(tiny_folder: str) -> None:
    engine = engine_at_once(Settings(model=tiny_folder))
    assert isinstance(engine, LoadingEngine)
    planned, seen = engine.info, engine.seen(PICTURE)
    loaded = engine.loaded()
    assert replace(planned, reasons=()) == replace(loaded.info, reasons=())
    assert seen.tobytes() == loaded.seen(PICTURE).tobytes()  # type: ignore[attr-defined]
    asyncio.run(loaded.aclose())


def test_the_server_is_alive_but_not_ready_until_then(engine: LoadingEngine, load: Load, tiny_llava: Llava) -> None:
    with serving(engine) as server:  # type: ignore[arg-type]
        live, ready = (httpx.get(f"{server.url}health/{which}") for which in ("live", "ready"))
        assert (live.status_code, ready.status_code) == (200, 503)
        assert live.json()["status"] == "loading"
        assert live.json()["stage"] == "fetching 3.1 of 14.1 GB"
        assert "batched engine" in httpx.get(server.url).text
        load.ends_with(engine_of(tiny_llava))
        engine.loaded()
        assert "stage" not in server.health()
        assert server.health()["status"] == "ready"
        assert server.health()["engine"] == "generate"


def test_serve_ends_with_the_reason_where_the_weights_cannot_be_read(tiny_folder: str, tmp_path: Path) -> None:
    for path in Path(tiny_folder).iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[:100] if path.suffix == ".safetensors" else content)
    done = run(["-m", "llava_demo", "serve", "--model", tmp_path, "--port", str(free_port())], ROOT, timeout=240)
    assert done.returncode == 1
    assert f"{tmp_path.name} could not be loaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_threads_that_loading_started_end_with_it() -> None:
    """More of them than cores would be sent to sleep after every product; see `load.engine_at_once`."""
    code = """
import os, time, torch
from llava_demo.engines.loading import LoadingEngine
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
load = lambda _: [torch.randn(500, 500) @ torch.randn(500, 500), print(threads() - before)]
LoadingEngine(None, load, None, 1).loaded()
deadline = time.monotonic() + 10
while threads() > before and time.monotonic() < deadline:  # the system takes a moment
    time.sleep(0.01)
print(threads() - before)
"""
    variables = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, check=True)
    meanwhile, after = map(int, done.stdout.split())
    assert meanwhile >= 2  # the thread itself, and at least one of OpenMP
    assert after == 0
