"""Jobs: requests on their way between the event loops of callers and the threads that answer them.

`JobEngine` is the part of an engine that faces callers. torch is imported inside functions: the remote engine needs
none.
"""

import asyncio
import contextvars
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import PIL.Image

from llava_demo.chat import ChatRequest, Chunk
from llava_demo.engines import EngineInfo
from llava_demo.errors import (
    DemoError,
    EngineUnavailable,
    GenerationFailed,
    ImageTooLarge,
    PromptTooLong,
    TooManyImages,
)
from llava_demo.images import Fit, Image
from llava_demo.log import trace_of

if TYPE_CHECKING:
    from llava_demo.model.llava import Llava

HEARTBEAT_S = 0.5
MIN_ANSWER_TOKENS = 16  # a prompt that leaves less than this (or than `max_tokens`, if that is less) does not fit
MAX_PIXELS_TOGETHER = 300_000_000  # in all pictures of a conversation: six of the largest allowed by default
SHUTTING_DOWN = "The server is shutting down."
BROKEN_GPU = "The GPU reported an error; the server must be restarted."

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """One request on its way: made in the caller's event loop and context, answered in an engine's threads."""

    request: ChatRequest
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    items: asyncio.Queue[Chunk | DemoError] = field(default_factory=asyncio.Queue)
    is_cancelled: threading.Event = field(default_factory=threading.Event)
    turn: asyncio.Event = field(default_factory=asyncio.Event)  # set in its loop, by the remote engine: it has a slot

    def put(self, item: Chunk | DemoError) -> None:
        """Hand `item` to the caller, from any thread."""
        try:
            self.loop.call_soon_threadsafe(self.items.put_nowait, item)
        except RuntimeError:  # the caller's loop is closed
            self.is_cancelled.set()

    async def next(self) -> Chunk:
        """The next item, or a heartbeat if none comes for HEARTBEAT_S seconds.

        Raises:
            DemoError: the one that was put.
        """
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                item = await self.items.get()
        except TimeoutError:
            return Chunk()
        if isinstance(item, DemoError):
            raise item
        return item


class JobEngine(ABC):
    """An `Engine` that answers jobs with a `Llava`, for callers on any number of threads and event loops."""

    def __init__(self, llava: "Llava", info: EngineInfo) -> None:
        self.llava, self.info = llava, info

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        """Answer `request`; see `Engine.stream`."""
        check_pictures(request, self.info)
        self._check_room(request.caller)
        # Before the queue: a slow picture delays its own request only.
        async with aclosing(while_decoding(request.images, self.llava.fit)) as heartbeats:
            async for heartbeat in heartbeats:
                yield heartbeat
        job = Job(request)
        self._admit(job)
        try:
            while True:
                chunk = await job.next()
                yield chunk
                if chunk.finish_reason:
                    return
        finally:
            self._cancel(job)

    def seen(self, image: Image) -> PIL.Image.Image:
        """The square that the model looks at for `image`."""
        return self.llava.seen(image)

    @abstractmethod
    def _check_room(self, caller: str) -> None:
        """Raise what `_admit` would raise now for a request of `caller`."""

    @abstractmethod
    def _admit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            EngineUnavailable: nothing is answered any more, or the queue is full.
            TooManyRequests: the caller has its share of the queue.
        """

    @abstractmethod
    def _cancel(self, job: Job) -> None:
        """Forget a job that has ended, or whose caller has disconnected."""


async def while_decoding(images: Sequence[Image], fit: Fit | None) -> AsyncGenerator[Chunk, None]:
    """Heartbeats until all are decoded; closing the generator ends the decoding.

    Raises:
        InvalidImage: a picture is damaged, or takes too long.
    """
    waiting = [image for image in images if not image.is_decoded(fit)]
    if not waiting:
        return

    async def decode() -> None:
        for image in waiting:
            await image.decode(fit)

    decoding = asyncio.create_task(decode())
    try:
        while not (await asyncio.wait([decoding], timeout=HEARTBEAT_S))[0]:
            yield Chunk()
        decoding.result()
    finally:
        decoding.cancel()


def check_pictures(request: ChatRequest, info: EngineInfo) -> None:
    """Check number and sizes of the pictures by their headers, before any is decoded.

    Raises:
        TooManyImages: more pictures than a conversation may have.
        ImageTooLarge: more pixels in all than a conversation may have.
    """
    if len(request.images) > info.max_images:
        raise TooManyImages(
            f"The conversation has {len(request.images)} pictures; at most {info.max_images} are allowed.",
            "messages",
        )
    pixels = sum(width * height for width, height in (image.size for image in request.images))
    if pixels > MAX_PIXELS_TOGETHER:
        most = f"at most {MAX_PIXELS_TOGETHER / 1e6:g} are allowed"
        raise ImageTooLarge(f"The pictures have {pixels / 1e6:.0f} megapixels together; {most}.", "messages")


def answer_room(llava: "Llava", max_tokens: int, prompt_tokens: int, of_pictures: int, held_tokens: int) -> int:
    """How many tokens the answer may have: `max_tokens`, or what the prompt leaves of `held_tokens`.

    `of_pictures` is the number of the prompt's tokens that stand for pictures.

    Raises:
        PromptTooLong: too few are left for an answer.
    """
    left, needed = held_tokens - prompt_tokens, min(max_tokens, MIN_ANSWER_TOKENS)
    if left < needed:
        holder = "the model holds" if held_tokens == llava.context_tokens else "the memory of this machine holds"
        each = f" ({of_pictures:,} of them for pictures)" if of_pictures else ""
        raise PromptTooLong(
            f"The conversation takes {prompt_tokens:,} tokens{each}, and its answer at least {needed}; "
            f"{holder} {held_tokens:,}. Send less, or start a new conversation.",
            "messages",
            fits_without_pictures=needed <= left + of_pictures,
        )
    return min(max_tokens, left)


def failure_of(error: Exception) -> DemoError:
    """The error for the caller: `error` itself, or for an exception of other code one with words of ours.

    The log gets the exception's traceback without its words, which may quote a prompt.
    """
    if isinstance(error, DemoError):
        return error
    _log.error("generation failed: %s", type(error).__name__, extra={"trace": trace_of(error)})
    if is_out_of_memory(error):
        return EngineUnavailable("Out of memory: try again with fewer pictures, or with a shorter conversation.")
    if is_broken_gpu(error):
        return EngineUnavailable("The GPU reported an error.")
    if isinstance(error, FloatingPointError):
        return GenerationFailed("The model computed NaN or infinity in place of a word; try again, or ask otherwise.")
    return GenerationFailed("The model failed while it answered; please try again.")


def is_out_of_memory(error: Exception) -> bool:
    """True where the GPU's memory or the machine's ran out."""
    import torch

    is_cpu_memory = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's words
    return is_cpu_memory or isinstance(error, torch.OutOfMemoryError | MemoryError)


def is_broken_gpu(error: Exception) -> bool:
    """True for an error after which CUDA answers every call with it."""
    import torch

    return isinstance(error, torch.AcceleratorError)
