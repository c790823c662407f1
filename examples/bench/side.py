"""One side of the comparison, in a process of its own, so that its memory, CPU seconds and patches are its own."""

import asyncio
import multiprocessing
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from examples.bench.machine import Limits, limits_of
from llava_demo.engines import Engine, EngineInfo
from llava_demo.engines.load import load_engine
from llava_demo.errors import DemoError
from llava_demo.settings import Settings

Maker = Callable[[Settings], Engine]
ENDING_S = 30.0


def our_engine(settings: Settings) -> Engine:
    """What `serve` would run."""
    return load_engine(settings)


def plain_way(settings: Settings) -> Engine:
    """The model card's way with the same weights, loaded as ours are.

    8-bit integers on a CPU are the exception: the model card has no such way there, so float32 stands beside them.
    """
    import torch

    from examples.bench.plain import PlainWay

    is_int8 = settings.quantize in ("auto", "8bit") and not torch.cuda.is_available()
    quantize = "none" if is_int8 else settings.quantize
    engine = load_engine(settings.model_copy(update={"engine": "generate", "quantize": quantize}))
    return PlainWay(engine.llava, engine.info)  # type: ignore[attr-defined]


def on_the_cpu(settings: Settings) -> Engine:
    """The same on the CPU, whatever else there is: the reference for right answers."""
    engine = plain_way(settings)
    engine.model.to("cpu")  # type: ignore[attr-defined]
    return engine


@dataclass(frozen=True)
class Loaded:
    """What a side is, once it can answer."""

    info: EngineInfo
    seconds: float
    limits: Limits


class SideFailed(DemoError):
    """A side could not be loaded or failed while it was measured."""


class Side:
    """A process that loads an engine with `make` and then does one job after the other.

    Raises:
        SideFailed: from every method, if the other process raised or died.
    """

    def __init__(self, name: str, make: Maker, settings: Settings) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")  # CUDA cannot be used in a fork
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, make, settings), name=name, daemon=True)
        self._process.start()
        theirs.close()
        self.loaded: Loaded = self._result()

    def run(self, job: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """What `await job(engine, *arguments)` returns there; `job` is a function of a module."""
        self._pipe.send((job, arguments))
        return self._result()

    def close(self) -> None:
        """End the process; it gets some seconds to put its engine to rest."""
        self._pipe.close()
        self._process.join(ENDING_S)
        self._process.kill()
        self._process.join()

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # Ctrl-C: a job that nobody waits for may take minutes
            self._process.kill()
        self.close()

    def _result(self) -> Any:
        try:
            result = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(ENDING_S)
            code = self._process.exitcode
            raise SideFailed(f"{self.name}: its process ended with exit code {code}.") from error
        if isinstance(result, str):
            raise SideFailed(f"{self.name}: {result}")
        return result


def _work(pipe: Connection, make: Maker, settings: Settings) -> None:
    """The other process: load, then do what comes through the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the command, and the command ends us
    with asyncio.Runner() as runner:
        try:
            engine, loaded = _load(make, settings)
        except Exception as error:  # noqa: BLE001, the top of a process: whatever it is, the other side must hear of it
            pipe.send(_words(error))
            return
        pipe.send(loaded)
        while True:
            try:
                job, arguments = pipe.recv()
            except EOFError:
                break
            try:
                pipe.send(runner.run(job(engine, *arguments)))
            except Exception as error:  # noqa: BLE001, as above
                pipe.send(_words(error))
        runner.run(engine.aclose())


def _load(make: Maker, settings: Settings) -> tuple[Engine, Loaded]:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the command draws its own
    start = time.perf_counter()
    engine = make(settings)
    seconds = time.perf_counter() - start
    limits = engine.limits if hasattr(engine, "limits") else limits_of(engine.llava)  # type: ignore[attr-defined]
    return engine, Loaded(engine.info, seconds, limits)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, DemoError) else f"{type(error).__name__}: {error}"
