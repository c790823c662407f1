"""What every engine on this machine does around the model: it serves callers, counts room and names failures.

It knows neither batches nor `generate`.
"""

import logging
import traceback
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing

import PIL.Image
import torch

from llava_demo.chat import ChatRequest, Chunk
from llava_demo.engines import EngineInfo
from llava_demo.engines.jobs import Job, check_pictures
from llava_demo.errors import DemoError, EngineUnavailable, GenerationFailed, PromptTooLong
from llava_demo.images import Image
from llava_demo.model.llava import Llava

MIN_ANSWER_TOKENS = 16  # a prompt that leaves less than this (or than `max_tokens`, if that is less) does not fit
BROKEN_GPU = "The GPU reported an error that only a restart of the server mends."

_log = logging.getLogger(__name__)


class LocalEngine(ABC):
    """An `Engine` that answers jobs with a `Llava`, for callers on any number of threads and event loops."""

    def __init__(self, llava: Llava, info: EngineInfo) -> None:
        self.llava, self.info = llava, info

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        """Answer `request`; see `Engine.stream`."""
        check_pictures(request, self.info)
        job = Job(request)
        self._admit(job)
        try:
            async with aclosing(job.chunks()) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._cancel(job)

    def seen(self, image: Image) -> PIL.Image.Image:
        """The square that the model looks at for `image`."""
        return self.llava.seen(image)

    @abstractmethod
    def _admit(self, job: Job) -> None:
        """Take a job in.

        Raises:
            EngineUnavailable: nothing is answered any more, or too many wait.
        """

    @abstractmethod
    def _cancel(self, job: Job) -> None:
        """Let go of a job, whether it has ended or its caller has gone."""


def answer_room(llava: Llava, prompt_tokens: int, max_tokens: int, held_tokens: int) -> int:
    """How many tokens the answer may have: `max_tokens`, or what the prompt leaves of the `held_tokens`.

    Raises:
        PromptTooLong: that is too little for an answer.
    """
    left, needed = held_tokens - prompt_tokens, min(max_tokens, MIN_ANSWER_TOKENS)
    if left < needed:
        holder = "the model holds" if held_tokens == llava.context_tokens else "the memory of this machine holds"
        raise PromptTooLong(
            f"The conversation takes {prompt_tokens:,} tokens (a picture takes {llava.image_tokens:,}), and "
            f"its answer at least {needed}; {holder} {held_tokens:,}. Send less, or start a new conversation.",
            "messages",
        )
    return min(max_tokens, left)


def failure_of(error: Exception) -> DemoError:
    """What a caller is told of an exception below; the log gets its class and its places, not its words.

    The words of an exception may quote a prompt.
    """
    trace = "".join(traceback.format_tb(error.__traceback__))
    _log.error("generation failed: %s", type(error).__name__, extra={"trace": trace})
    if is_out_of_memory(error):
        return EngineUnavailable("Out of memory: try again with fewer pictures, or with a shorter conversation.")
    if isinstance(error, torch.AcceleratorError):
        return EngineUnavailable("The GPU reported an error.")
    return GenerationFailed("The model failed while it answered; please try again.")


def is_out_of_memory(error: Exception) -> bool:
    """True for the GPU's memory and the machine's."""
    is_cpu_memory = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's words
    return is_cpu_memory or isinstance(error, torch.OutOfMemoryError | MemoryError)
