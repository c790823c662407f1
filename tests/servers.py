"""The demo, serving on a free port of this machine, in the process of the tests.

tiny        on a checkpoint with random weights, whose answers are long and make no sense
miniature   on the miniature that the project ships, whose answers are true
"""

import asyncio
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from checkpoints import engine_of
from torch import nn

from llava_demo.engines.generate import GenerateEngine
from llava_demo.engines.load import load_engine
from llava_demo.llava import Llava
from llava_demo.serve import launch
from llava_demo.settings import Settings

FREED_WITHIN_S = 1.0
MAX_QUEUE = 4


@dataclass(frozen=True)
class Server:
    url: str
    engine: GenerateEngine

    def health(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}health/ready").json()

    def wait_until(self, running: int, waiting: int, limit_s: float = 20) -> None:
        deadline = time.monotonic() + limit_s
        while (health := self.health())["running"] != running or health["waiting"] != waiting:
            assert time.monotonic() < deadline, f"not {running} running and {waiting} waiting in {limit_s} s: {health}"
            time.sleep(0.02)

    def wait_until_free(self) -> None:
        self.wait_until(running=0, waiting=0, limit_s=FREED_WITHIN_S)

    @contextmanager
    def slow(self, step_s: float = 0.02) -> Iterator[None]:
        """Within the block every step of the model takes `step_s` longer, the prompt's too."""
        with self._before_each_step(lambda *_: time.sleep(step_s)):
            yield

    @contextmanager
    def broken(self) -> Iterator[None]:
        """Within the block the model raises inside `generate`."""

        def fail(*_: object) -> None:
            raise RuntimeError("an injected failure with a secret in it")

        with self._before_each_step(fail):
            yield

    @contextmanager
    def _before_each_step(self, hook: Any) -> Iterator[None]:
        model: nn.Module = self.engine.llava.model
        handle = model.register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(engine: GenerateEngine, **settings: Any) -> Iterator[Server]:
    page, url = launch(Settings(port=free_port(), **settings), engine, prevent_thread_lock=True)
    try:
        yield Server(url, engine)
    finally:
        page.close(verbose=False)
        with ThreadPoolExecutor() as elsewhere:  # a browser may have this thread's event loop
            elsewhere.submit(asyncio.run, engine.aclose()).result()


@pytest.fixture(scope="session")
def tiny(tiny_llava: Llava) -> Iterator[Server]:
    with serving(engine_of(tiny_llava, max_queue=MAX_QUEUE)) as server:
        yield server


@pytest.fixture(scope="session")
def miniature() -> Iterator[Server]:
    engine = load_engine(Settings(model="miniature", engine="generate"))
    assert isinstance(engine, GenerateEngine)
    with serving(engine) as server:
        yield server
