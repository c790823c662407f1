"""ZeroGpuEngine: answers on a Hugging Face ZeroGPU Space, which has a GPU only while an answer is written.

There `spaces.GPU` runs a generator in a forked process. Only that process has the GPU, and it has none of our threads.
So each answer is one call: `generate`, in that process, from prompt to end.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import closing

import gradio as gr
import spaces  # type: ignore[import-untyped]  # before anything uses CUDA

from llava_demo.chat import ChatRequest, Chunk
from llava_demo.engines import EngineInfo
from llava_demo.engines.generate import GenerateEngine
from llava_demo.engines.jobs import Job, failure_of
from llava_demo.engines.turns import ThreadEngine
from llava_demo.errors import DemoError, EngineUnavailable, GenerationFailed
from llava_demo.model.llava import Llava

CHATS_AT_ONCE = 16  # calls of the platform; the other requests wait here, where callers take turns
# The platform cuts an answer off at the reserved time; a long reservation waits longer and is refused sooner.
# Assumed, not measured: 15 s to move 4-bit weights to the GPU, and 15 tokens a second.
START_S, PICTURE_S, TOKENS_PER_S, LONGEST_S = 15, 1, 15, 120

_TAKEN_AWAY = "The GPU was taken away before the answer was whole; please try again."

_log = logging.getLogger(__name__)


def duration_of(request: ChatRequest) -> int:
    """GPU seconds to reserve for a request."""
    seconds = START_S + PICTURE_S * len(request.images) + request.sampling.max_tokens / TOKENS_PER_S
    return min(round(seconds), LONGEST_S)


class ZeroGpuEngine(ThreadEngine):
    """The platform's own queue schedules the GPU and charges the quota of the user in Gradio's request context.

    It must be made before `gr.Blocks.launch`, which tells the platform that there is a function for the GPU.
    """

    def __init__(self, llava: Llava, info: EngineInfo, max_queue: int, slots: int = CHATS_AT_ONCE) -> None:
        super().__init__(llava, info, max_queue, slots)
        self._on_gpu = spaces.GPU(duration=duration_of)(self._answer)

    def _outcome(self, job: Job) -> Chunk | DemoError:
        """Pass on what the process with the GPU yields."""
        try:
            with closing(self._on_gpu(job.request)) as items:
                for item in items:
                    if job.is_cancelled.is_set():
                        break  # closing ends the other process's work, and gives the GPU back
                    if isinstance(item, DemoError) or item.finish_reason:
                        self._turns.leave(job)  # now: the platform takes its time to end the call
                    job.put(item)
        except gr.Error as error:
            return _refusal_of(error)
        except Exception as error:  # noqa: BLE001, the top of a thread: the caller must be told of any failure
            return failure_of(error)
        return GenerationFailed(_TAKEN_AWAY)  # read only where no last chunk came before it

    def _answer(self, request: ChatRequest) -> Iterator[Chunk | DemoError]:
        """One answer by `generate`, in the forked process, or in this process without ZeroGPU.

        Our errors are yielded as values: only the class name of a raised one would arrive. At each heartbeat, twice a
        second, `spaces` notices whether the call was cancelled.
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
    """The platform's refusal (quota, waiting), in its own words where they are for the caller."""
    _log.warning("ZeroGPU: %s", error.title)
    if error.title == "ZeroGPU worker error":
        return GenerationFailed(_TAKEN_AWAY)
    return EngineUnavailable(f"{error.title}: {str(error.message).strip()}")
