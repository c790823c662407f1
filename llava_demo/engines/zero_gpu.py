"""ZeroGpuEngine: answers on a Hugging Face ZeroGPU Space, where there is a GPU only for as long as an answer takes.

There `spaces.GPU` runs a generator in a process that is forked for the call and that alone has the GPU; the threads of
this process do not exist in it. So each answer is one call: `generate`, in that process, from prompt to end.
"""

import asyncio
import contextvars
import logging
import threading
from collections.abc import Iterator
from contextlib import closing

import gradio as gr
import spaces  # type: ignore[import-untyped]  # before anything uses CUDA

from llava_demo.chat import ChatRequest, Chunk
from llava_demo.engines import EngineInfo, EngineStatus
from llava_demo.engines.generate import GenerateEngine
from llava_demo.engines.jobs import SHUTTING_DOWN, Job, JobEngine, failure_of
from llava_demo.engines.turns import Turns
from llava_demo.errors import DemoError, EngineUnavailable, GenerationFailed
from llava_demo.model.llava import Llava

CHATS_AT_ONCE = 16  # calls of the platform; the other requests wait here, where callers take turns
# The platform cuts an answer off at the reserved time; a long reservation waits longer and is refused sooner.
# Assumed, not measured: 15 s to move 4-bit weights to the GPU, and 15 tokens a second.
START_S, PICTURE_S, TOKENS_PER_S, LONGEST_S = 15, 1, 15, 120

_log = logging.getLogger(__name__)


def duration_of(request: ChatRequest) -> int:
    """GPU seconds to reserve for a request."""
    seconds = START_S + PICTURE_S * len(request.images) + request.sampling.max_tokens / TOKENS_PER_S
    return min(round(seconds), LONGEST_S)


class ZeroGpuEngine(JobEngine):
    """The platform's own queue schedules the GPU and charges the quota of the user in Gradio's request context.

    It must be made before `gr.Blocks.launch`, which tells the platform that there is a function for the GPU.
    """

    def __init__(self, llava: Llava, info: EngineInfo, max_queue: int, slots: int = CHATS_AT_ONCE) -> None:
        super().__init__(llava, info)
        self._turns = Turns(slots, max_queue, self._begin)
        self._contexts: dict[Job, contextvars.Context] = {}  # for queued jobs; Gradio's names whose quota is charged
        self._on_gpu = spaces.GPU(duration=duration_of)(self._answer)

    def status(self) -> EngineStatus:
        return EngineStatus("failed" if self._turns.refusal else "ready", *self._turns.counts)

    async def aclose(self) -> None:
        """Cancel what runs and refuse what will come."""
        self._turns.refuse_all(SHUTTING_DOWN)

    def _check_room(self, caller: str) -> None:
        self._turns.check(caller)

    def _admit(self, job: Job) -> None:
        self._contexts[job] = contextvars.copy_context()
        try:
            self._turns.join(job)
        except DemoError:
            del self._contexts[job]
            raise

    def _begin(self, job: Job) -> None:
        context = self._contexts.pop(job, None)
        if context is None:  # its caller has gone in this moment
            return
        threading.Thread(target=context.run, args=(self._work, job), name="zero-gpu", daemon=True).start()

    def _cancel(self, job: Job) -> None:
        job.is_cancelled.set()
        if self._contexts.pop(job, None) is not None:  # it has not begun; else its thread lets go of it
            self._turns.leave(job)

    def _work(self, job: Job) -> None:
        """The thread of one answer: hands on what the process with the GPU yields."""
        try:
            with closing(self._on_gpu(job.request)) as items:
                for item in items:
                    if job.is_cancelled.is_set():
                        break  # closing ends the other process's work, and gives the GPU back
                    if isinstance(item, DemoError) or item.finish_reason:
                        self._turns.leave(job)
                    job.put(item)
        except gr.Error as error:
            job.put(_refusal_of(error))
        except Exception as error:  # noqa: BLE001, the top of a thread: the caller must be told of any failure
            job.put(failure_of(error))
        finally:
            self._turns.leave(job)

    def _answer(self, request: ChatRequest) -> Iterator[Chunk | DemoError]:
        """One answer by `generate`, in the forked process, or in this process without ZeroGPU.

        Our errors are yielded as values: of a raised one only the class name would arrive. Heartbeats are
        how `spaces` notices, twice a second, that the caller has disconnected.
        """
        loop = asyncio.new_event_loop()
        chunks = GenerateEngine(self.llava, self.info, max_queue=0).stream(request)
        try:
            while True:
                try:
                    chunk = loop.run_until_complete(anext(chunks))
                except DemoError as error:
                    yield error
                    return
                yield chunk
                if chunk.finish_reason:
                    return
        finally:
            loop.run_until_complete(chunks.aclose())
            loop.close()


def _refusal_of(error: gr.Error) -> DemoError:
    """The platform's refusal (quota, waiting), in its own words where they are meant for the caller."""
    _log.warning("ZeroGPU: %s", error.title)
    if error.title == "ZeroGPU worker error":
        return GenerationFailed("The GPU was taken away before the answer was whole; please try again.")
    return EngineUnavailable(f"{error.title}: {str(error.message).strip()}")
