"""LoadingEngine: stands in for an engine while a thread loads it. Requests wait until then."""

import logging
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import aclosing

import PIL.Image

from llava_demo.chat import ChatRequest, Chunk
from llava_demo.engines import Engine, EngineInfo, EngineStatus
from llava_demo.engines.jobs import SHUTTING_DOWN, Job, check_pictures
from llava_demo.engines.turns import Turns
from llava_demo.errors import DemoError, EngineBusy, EngineUnavailable
from llava_demo.images import Image

Report = Callable[[str], None]  # is told the stage of loading: "fetching 3.1 of 14.1 GB"

_GO_ON = Chunk(finish_reason="stop")  # the end of a wait
_UNBOUNDED = 10**6  # slots

_log = logging.getLogger(__name__)


class LoadingEngine:
    """An `Engine` that accepts requests at once; its `info` is the plan until the model is loaded.

    `load` makes the engine, in a thread that ends then; `seen` shows what the model will see of a picture; at most
    `most` requests wait.
    """

    def __init__(
        self, planned: EngineInfo, load: Callable[[Report], Engine], seen: Callable[[Image], PIL.Image.Image], most: int
    ) -> None:
        self._seen, self._planned = seen, planned
        self._made: Future[Engine] = Future()
        self._stage = "starting"
        self._turns = Turns(0, most, lambda job: job.put(_GO_ON))
        self._thread = threading.Thread(target=self._run, args=(load,), name="load", daemon=True)
        self._thread.start()

    @property
    def info(self) -> EngineInfo:
        return self._made.result().info if self._is_loaded else self._planned

    def seen(self, image: Image) -> PIL.Image.Image | None:
        return self._made.result().seen(image) if self._is_loaded else self._seen(image)

    def status(self) -> EngineStatus:
        if self._is_loaded:
            return self._made.result().status()
        if self._made.done() or self._turns.refusal:
            return EngineStatus("failed", 0, 0)
        return EngineStatus("loading", 0, sum(self._turns.counts), stage=self._stage)

    def loaded(self) -> Engine:
        """Wait for the engine.

        Raises:
            Exception: whatever `load` raised.
        """
        engine = self._made.result()
        self._thread.join()
        return engine

    def when_loaded(self, do: Callable[[], None]) -> None:
        """Call `do` as soon as the engine is loaded; never if it cannot be loaded."""
        self._made.add_done_callback(lambda _: do() if self._is_loaded else None)

    def stream(self, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        """Answer `request`; see `Engine.stream`. It yields heartbeats while the model is being loaded.

        Raises:
            EngineBusy: the queue is full.
            EngineUnavailable: the model could not be loaded, or the server is shutting down.
        """
        return self._made.result().stream(request) if self._is_loaded else self._stream_once_loaded(request)

    async def _stream_once_loaded(self, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        if not self._made.done():
            check_pictures(request, self.info)
            async with aclosing(self._heartbeats(Job(request))) as heartbeats:
                async for heartbeat in heartbeats:
                    yield heartbeat
        async with aclosing(self._engine().stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def aclose(self) -> None:
        """Refuse what waits and what will come. Loading cannot be cancelled; its engine ends with the process."""
        self._turns.refuse_all(SHUTTING_DOWN)
        if self._is_loaded:
            await self._made.result().aclose()

    @property
    def _is_loaded(self) -> bool:
        return self._made.done() and self._made.exception() is None

    def _engine(self) -> Engine:
        error = self._made.exception()
        if error is None:
            return self._made.result()
        words = str(error) if isinstance(error, DemoError) else "The model could not be loaded."
        raise EngineUnavailable(words) from error

    async def _heartbeats(self, job: Job) -> AsyncGenerator[Chunk, None]:
        """Heartbeats until loading has ended."""
        try:
            self._turns.join(job)
        except EngineBusy as error:
            words = f"The model is being loaded ({self._stage}) and {sum(self._turns.counts)} questions are waiting"
            raise EngineBusy(f"{words}, the most that may wait; try again in a minute.", 60) from error
        try:
            while (chunk := await job.next()) is not _GO_ON:
                yield chunk
        finally:
            self._turns.leave(job)

    def _run(self, load: Callable[[Report], Engine]) -> None:
        try:
            self._made.set_result(load(self._report))
        except BaseException as error:  # noqa: BLE001, the top of a thread: waiting callers must be told
            _log.error("loading failed: %s", error if isinstance(error, DemoError) else type(error).__name__)
            self._made.set_exception(error)
        self._turns.open(slots=_UNBOUNDED)  # all move on to the engine's own queue

    def _report(self, stage: str) -> None:
        self._stage = stage
