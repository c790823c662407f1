"""Engines turn a `ChatRequest` into a stream of `Chunk`s. All give the same answers; they differ in where and how."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, Protocol

import PIL.Image

from llava_demo.chat import ChatRequest, Chunk, Completion
from llava_demo.errors import GenerationFailed
from llava_demo.images import Image
from llava_demo.log import log_answer
from llava_demo.metrics import AnswerRecord
from llava_demo.model import FOR_PHOTOS, MINIATURE_DECLINES


@dataclass(frozen=True)
class EngineInfo:
    """What was decided when the engine was made, and why; the page, `/info`, `check` and the log show it."""

    model: str  # Hub id, folder name, or "miniature"
    engine: str  # "generate"
    device: str  # "CPU", "NVIDIA L4"
    precision: str  # "4-bit NF4, float16 compute", "float32"
    attention: str  # "sdpa", "flash_attention_2"
    context_tokens: int
    image_tokens: int  # tokens an ordinary picture takes
    max_images: int  # per conversation
    is_miniature: bool
    reasons: tuple[str, ...] = ()  # one sentence for each decision
    image_side: int | None = None  # pixels; side of the square that the model sees, None where it sees tiles
    # How a picture becomes that square; None where the model sees tiles, or where another server prepares it.
    image_mode: Literal["pad", "crop", "resize"] | None = None

    def advice_on(self, answer: str) -> str:
        """Where the miniature declines to answer: which model knows photos, to show beside `answer`. Else ""."""
        return FOR_PHOTOS if self.is_miniature and answer.lstrip().startswith(MINIATURE_DECLINES) else ""


@dataclass(frozen=True)
class EngineStatus:
    """How busy the engine is now."""

    state: Literal["loading", "ready", "restarting", "failed"]
    running: int  # generations under way
    waiting: int  # queued requests
    cached_tokens: int = 0  # tokens in the prefix cache
    held_tokens: int = 0  # room in the cache, in tokens, that running requests hold
    held_pictures: int = 0  # pictures that running requests hold
    stage: str = ""  # while loading: "fetching 3.1 of 14.1 GB"


class Engine(Protocol):
    @property
    def info(self) -> EngineInfo: ...

    def stream(self, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        """Answer `request`. Closing the generator early (`aclose`) cancels the work.

        Yields:
            Text as it comes; while there is none, `Chunk()` as a heartbeat about twice a second, so that an endpoint
            notices that its caller has disconnected. Only the last chunk has `finish_reason` and `usage`.

        Raises:
            InvalidRequest: the request is wrong; before the first text, unless a JSON schema proves too complex later.
            GenerationFailed: the model failed; the next request works.
            EngineUnavailable: temporary; the caller may try again.
        """

    def status(self) -> EngineStatus: ...

    def seen(self, image: Image) -> PIL.Image.Image | None:
        """The square that the model sees of `image`; None where another server prepares it."""

    async def aclose(self) -> None: ...


async def stream_recorded(engine: Engine, request: ChatRequest, record: AnswerRecord) -> AsyncGenerator[Chunk, None]:
    """`engine.stream(request)`, measured by `record`, then logged and counted."""
    with log_answer(record, engine.info.engine, len(request.images)):
        async with aclosing(engine.stream(request)) as chunks:
            async for chunk in chunks:
                record.saw(chunk)
                yield chunk


async def complete(engine: Engine, request: ChatRequest) -> Completion:
    """The whole answer at once. Raises what `stream` raises."""
    async with aclosing(engine.stream(request)) as chunks:
        return completion_of([chunk async for chunk in chunks])


def completion_of(chunks: Sequence[Chunk]) -> Completion:
    """Join the chunks of an answer.

    Raises:
        GenerationFailed: the last chunk is missing.
    """
    last = chunks[-1] if chunks else Chunk()
    if last.finish_reason is None or last.usage is None:
        raise GenerationFailed("The engine ended its stream without a last chunk.")
    logprobs = tuple(logprob for chunk in chunks for logprob in chunk.logprobs)
    return Completion("".join(chunk.text for chunk in chunks), last.finish_reason, last.usage, logprobs)
