"""What every engine on this machine does around the model: it waits for chunks, counts room and names failures.

It knows neither batches nor `generate`.
"""

import asyncio
import logging
import threading
import traceback
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import torch

from llava_demo.chat import ChatRequest, Chunk
from llava_demo.engines import EngineInfo
from llava_demo.errors import DemoError, EngineUnavailable, GenerationFailed, InvalidRequest, PromptTooLong
from llava_demo.llava import Llava

HEARTBEAT_S = 0.5
MIN_ANSWER_TOKENS = 16  # a prompt that leaves less than this (or than `max_tokens`, if that is less) does not fit
BROKEN_GPU = "The GPU reported an error that only a restart of the server mends."
SHUTTING_DOWN = "The server is shutting down."

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """One request on its way: made on the caller's event loop, worked on in an engine's threads."""

    request: ChatRequest
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    items: asyncio.Queue[Chunk | DemoError] = field(default_factory=asyncio.Queue)
    is_cancelled: threading.Event = field(default_factory=threading.Event)

    def put(self, item: Chunk | DemoError) -> None:
        """Hand `item` to the caller, from any thread."""
        try:
            self.loop.call_soon_threadsafe(self.items.put_nowait, item)
        except RuntimeError:  # the caller's loop is closed: nobody reads any more
            self.is_cancelled.set()

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """What was put, as it comes, up to the last chunk; heart-beats while nothing does.

        Raises:
            DemoError: the one that was put.
        """
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    item = await self.items.get()
            except TimeoutError:
                item = Chunk()
            if isinstance(item, DemoError):
                raise item
            yield item
            if item.finish_reason:
                return


def check_pictures(request: ChatRequest, info: EngineInfo) -> None:
    """Raises:
    InvalidRequest: more pictures than a conversation may have.
    """
    if len(request.images) > info.max_images:
        raise InvalidRequest(
            f"The conversation has {len(request.images)} pictures; at most {info.max_images} are allowed.",
            "messages",
        )


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
