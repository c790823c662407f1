"""Jobs: requests on their way between the event loops of callers and whatever answers them, here or elsewhere."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from llava_demo.chat import ChatRequest, Chunk
from llava_demo.engines import EngineInfo
from llava_demo.errors import DemoError, InvalidRequest

HEARTBEAT_S = 0.5
SHUTTING_DOWN = "The server is shutting down."


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
