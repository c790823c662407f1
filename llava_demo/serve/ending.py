"""How a server ends: on a signal it refuses new requests, finishes answers, refuses the rest, and deletes uploads."""

import asyncio
import os
import queue
import signal
from collections.abc import Callable
from types import FrameType

from llava_demo.engines import Engine
from llava_demo.engines.loading import LoadingEngine
from llava_demo.log import logger
from llava_demo.serve.gate import Gate

TELL_S = 3.0  # for the engine's refusals to reach their callers
LOOK_S = 0.5


class Ending:
    """Waits in the main thread for the end of a server. `clean_up` closes the page and deletes uploads."""

    def __init__(self, engine: Engine, gate: Gate, grace_s: float, clean_up: Callable[[], None]) -> None:
        self._engine, self._gate, self._grace_s, self._clean_up = engine, gate, grace_s, clean_up
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()  # `put` is safe in a signal handler

    def listen(self) -> None:
        """Handle the signals from now on. SIGHUP stays ignored under nohup."""
        wanted = [signal.SIGTERM, signal.SIGINT]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            wanted.append(signal.SIGHUP)
        for number in wanted:
            signal.signal(number, self._heard)

    def wait(self) -> None:
        """Return when the server has ended.

        Raises:
            Exception: loading the model failed with it; the server has ended then too.
        """
        while True:
            try:
                self._signals.get(timeout=LOOK_S)
                break
            except queue.Empty:
                pass
            if isinstance(self._engine, LoadingEngine) and self._engine.status().state == "failed":
                try:
                    self._engine.loaded()  # raises the reason, unless the engine was loaded and failed later
                except BaseException:
                    self._gate.close()
                    self._clean_up()
                    raise
        self._end()

    def _end(self) -> None:
        is_loading = self._engine.status().state == "loading"
        logger.info("ending: %d requests are under way", self._gate.under_way)
        self._gate.close()
        if not is_loading and not self._gate.is_idle_within(self._grace_s, self._is_engine_idle):
            logger.warning("ending: %g s have passed, the remaining answers are ended", self._grace_s)
        asyncio.run(self._engine.aclose())
        self._gate.is_idle_within(TELL_S, lambda: True)
        self._clean_up()

    def _is_engine_idle(self) -> bool:
        status = self._engine.status()
        return status.running + status.waiting == 0

    def _heard(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002, the signature of handlers
        if self._gate.is_closing:  # a second time: now
            self._clean_up()
            os._exit(128 + number)
        self._signals.put(number)
