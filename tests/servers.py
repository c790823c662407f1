"""The demo, serving on a free port of this machine, in the process of the tests.

tiny        on a checkpoint with random weights, whose answers are long and make no sense
miniature   on the miniature that the project ships, whose answers are true

Both answer one question at a time, so that it is known who waits. `pytest --engine batched` or `remote` runs the same
tests with another engine behind the page and the APIs.
"""

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from checkpoints import info_of
from processes import free_port
from torch import nn

from llava_demo.engines import EngineInfo
from llava_demo.engines.batched.engine import BatchedEngine
from llava_demo.engines.batched.schedule import BatchSize
from llava_demo.engines.generate import GenerateEngine
from llava_demo.engines.load import load_engine
from llava_demo.engines.remote import RemoteEngine
from llava_demo.model.llava import Llava
from llava_demo.serve import launch
from llava_demo.settings import Settings

FREED_WITHIN_S = 30.0  # on a busy machine; answers that are hung up in tests would take longer
MAX_QUEUE = 4
STEPS_TILL_LATER, LATER_STEP_S = 60, 0.4  # 512 tokens take 3 minutes


@dataclass(frozen=True)
class Server:
    url: str
    engine: GenerateEngine | BatchedEngine | RemoteEngine
    behind: "Server | None" = None  # the one that a remote engine asks

    def health(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}health/ready").json()

    def wait_until(self, running: int, waiting: int, limit_s: float = 60) -> None:
        deadline = time.monotonic() + limit_s
        while (health := self.health())["running"] != running or health["waiting"] != waiting:
            assert time.monotonic() < deadline, f"not {running} running and {waiting} waiting in {limit_s} s: {health}"
            time.sleep(0.02)

    def wait_until_free(self) -> None:
        self.wait_until(running=0, waiting=0, limit_s=FREED_WITHIN_S)

    @contextmanager
    def slow(self, step_s: float = 0.02) -> Iterator[None]:
        """Within the block every step of the model takes `step_s` longer, the prompt's too.

        From step `STEPS_TILL_LATER` on, it takes `LATER_STEP_S` at least: a long answer outlasts any browser that a
        busy machine holds up.
        """
        steps = itertools.count()

        def wait(*_: object) -> None:
            time.sleep(step_s if next(steps) < STEPS_TILL_LATER else max(step_s, LATER_STEP_S))

        with self._before_each_step(wait):
            yield

    @contextmanager
    def held(self, after: int) -> Iterator[None]:
        """Within the block the model takes `after` steps, the prompt's too, then waits: however fast the machine is."""
        steps, is_over = itertools.count(), threading.Event()

        def wait(*_: object) -> None:
            if next(steps) >= after:
                is_over.wait()

        with self._before_each_step(wait):
            try:
                yield
            finally:
                is_over.set()

    @contextmanager
    def broken(self) -> Iterator[None]:
        """Within the block the model raises inside `generate`."""

        def fail(*_: object) -> None:
            raise RuntimeError("an injected failure with a secret in it")

        with self._before_each_step(fail):
            yield

    @contextmanager
    def _before_each_step(self, hook: Any) -> Iterator[None]:
        if self.behind:
            with self.behind._before_each_step(hook):
                yield
            return
        model: nn.Module = self.engine.batch.model if self.engine.info.engine == "batched" else self.engine.llava.model
        handle = model.register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def serving(engine: Any, **settings: Any) -> Iterator[Server]:
    page, url = launch(Settings(**{"port": free_port()} | settings), engine, prevent_thread_lock=True)
    try:
        yield Server(url, engine)
    finally:
        for files in page.temp_file_sets:  # else they are deleted, and other servers here may show the same pictures
            files.clear()
        page.close(verbose=False)
        with ThreadPoolExecutor() as elsewhere:  # a browser may have this thread's event loop
            elsewhere.submit(asyncio.run, engine.aclose()).result()


@contextmanager
def serving_with(kind: str, llava: Llava, info: EngineInfo) -> Iterator[Server]:
    """Engine generate, batched, or remote with a server with generate behind it; one question at a time."""
    if kind == "batched":
        size = BatchSize(pages=600, requests=1)
        with serving(BatchedEngine(llava, replace(info, engine="batched"), MAX_QUEUE, size)) as server:
            yield server
        return
    with serving(GenerateEngine(llava, info, MAX_QUEUE)) as server:
        if kind == "generate":
            yield server
            return
        with serving(load_engine(Settings(remote_url=server.url))) as front:
            yield replace(front, behind=server)


@pytest.fixture(scope="session")
def tiny(tiny_llava: Llava, pytestconfig: pytest.Config) -> Iterator[Server]:
    with serving_with(pytestconfig.getoption("engine"), tiny_llava, info_of(tiny_llava, "generate")) as server:
        yield server


@pytest.fixture(scope="session")
def miniature_engine() -> GenerateEngine:
    engine = load_engine(Settings(model="miniature", engine="generate"))
    assert isinstance(engine, GenerateEngine)
    return engine


@pytest.fixture(scope="session")
def miniature(miniature_engine: GenerateEngine, pytestconfig: pytest.Config) -> Iterator[Server]:
    llava, info = miniature_engine.llava, miniature_engine.info
    with serving_with(pytestconfig.getoption("engine"), llava, info) as server:
        yield server
