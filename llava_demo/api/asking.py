"""From a request's body to its answers, until the caller disconnects, and how FastAPI documents both."""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from llava_demo.callers import caller_of
from llava_demo.chat import ChatRequest, Chunk, Completion
from llava_demo.engines import Engine, completion_of, stream_recorded
from llava_demo.engines.checkpoint import LLAVA_7B
from llava_demo.errors import CompressedBody, InvalidRequest, ModelNotFound
from llava_demo.images import ImageLimits, bytes_from_numbers
from llava_demo.images.download import Downloads
from llava_demo.metrics import AnswerRecord
from llava_demo.wire import cloudflare
from llava_demo.wire.messages import Pictures, Turn, is_web_address, web_addresses

# The model's names at other hosts, and those that clients send if they know none, as in the documentation of TGI and LM
# Studio. Hugging Face's JavaScript client sends the server's address.
OTHER_NAMES = (LLAVA_7B, cloudflare.MODEL, "llava", "llava:7b", "dummy", "default", "tgi", "local-model")

LETTERS_PER_BYTE = 5  # longest form of a picture's bytes: a list of numbers, "255, "
WORDS_BYTES = 2**20  # for everything else in a body
MAX_VALUES = 100_000  # beside the picture's; a string of 20 MB in latin-1 has 80,000 commas

# Only an error before the headers has a status. So they wait for the first text, or for this many heartbeats (two a
# second). Then they are sent, and comments after them, so that no proxy takes the silence for the end.
HELD_HEARTBEATS = 4

_IMAGE_KEY = re.compile(rb'"image"\s*:\s*(?=\[)')
_PART_BYTES = 100_000  # with fewer values than MAX_VALUES, however short they are

T = TypeVar("T")

Pieces = AsyncGenerator[tuple[int, Chunk], None]  # chunks of several answers, each with the index of its request


# --- documentation

STATUSES = {
    400: "The request is wrong; the message names the field and what is allowed.",
    401: "The server has API keys, and none of them was given.",
    403: "The server has a login and no API keys.",
    404: "The model or the path is not served here.",
    413: "The request or a picture in it is too large.",
    415: "The body is compressed.",
    429: "The caller has its share of the queue; `Retry-After` says when to try again.",
    500: "The model failed while it answered.",
    503: "Busy, starting or broken; `Retry-After` says when to try again.",
}

# The events of a stream, documented as FastAPI 0.165 does: OpenAPI 3.1 cannot describe one item.
_EVENT = {"event": {"type": "string"}, "data": {"type": "string"}}
EVENTS = {"text/event-stream": {"itemSchema": {"type": "object", "properties": _EVENT, "required": ["data"]}}}


def body_document(model: type[BaseModel], *other_types: str) -> dict[str, Any]:
    """FastAPI's `openapi_extra` for a route that reads its body itself; the application adds the model's schema."""
    content: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in other_types}
    content["application/json"] = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    return {"requestBody": {"required": True, "content": content}}


def error_documents(model: Any, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for the errors of a route: these, or else all."""
    return {status: {"model": model, "description": STATUSES[status]} for status in statuses or STATUSES}


# --- bodies


def max_body_bytes(limits: ImageLimits) -> int:
    """One largest picture as numbers, or three of them in base64."""
    return LETTERS_PER_BYTE * limits.max_bytes + WORDS_BYTES


def json_from(body: bytes) -> Any:
    """Decode JSON; a long list of numbers under "image" becomes `bytes`.

    `json.loads` lets no other thread run until it is done, which takes 5 to 8 s for a picture of 20 MB sent as numbers.
    So such a list is read in parts of some milliseconds, and equally long lists in other places are refused.

    Raises:
        InvalidRequest: it is not JSON, or has too many values.
        InvalidImage: a value of the picture is not a byte.
    """
    # An unescaped quote ends a string: a match is never inside one, and always a key.
    found = _IMAGE_KEY.search(body)
    start = found.end() if found else 0
    end = body.find(b"]", start)
    if found and end - start > _PART_BYTES and body.find(b"[", start + 1, end) < 0:
        place = uuid.uuid4().hex
        outer = _loads(body[:start] + json.dumps(place).encode() + body[end + 1 :])
        if isinstance(outer, dict) and outer.get("image") == place:
            return outer | {"image": _bytes_in(body, start + 1, end)}
    return _loads(body)


def _bytes_in(body: bytes, start: int, end: int) -> bytes:
    data = bytearray()
    while start < end:
        comma = body.find(b",", start + _PART_BYTES, end)
        stop = end if comma < 0 else comma
        data += bytes_from_numbers(_loads(b"[" + body[start:stop] + b"]"))
        start = stop + 1
    return bytes(data)


def _loads(body: bytes) -> Any:
    if body.count(b",") > MAX_VALUES:
        raise InvalidRequest(f"The body has more than {MAX_VALUES:,} values.")
    try:
        text = body.decode(json.detect_encoding(body))  # PowerShell writes UTF-16
        return json.loads(text)  # json.loads(bytes) takes twice as long
    except json.JSONDecodeError as error:
        why = f"{error.msg} at character {error.pos:,}"
    except UnicodeDecodeError as error:
        why = f"its bytes are no {error.encoding.upper()}"
    except ValueError:
        why = "a number has too many digits"  # over 4,300: Python's own limit
    except RecursionError:
        why = "it is nested too deeply"
    raise InvalidRequest(f"The body is not valid JSON: {why}.")


# --- answers

STILL_THERE = format_sse_event(comment="still there")
DONE = format_sse_event(data_str="[DONE]")


def sse(data: Any, event: str | None = None) -> bytes:
    """A server-sent event; in ASCII, since some clients break lines at U+2028."""
    return format_sse_event(data_str=json.dumps(data, separators=(",", ":")), event=event)


def event_stream(events: AsyncGenerator[bytes, None]) -> Response:
    """A streamed response. FastAPI adds these headers for generator routes only, whose errors have no status."""
    return EventSourceResponse(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


@dataclass(frozen=True)
class Asking:
    """What each interface does with a request: it reads the body, fetches the pictures, and asks the engine."""

    engine: Engine
    limits: ImageLimits
    downloads: Downloads | None  # None where the server fetches nothing

    async def body(self, request: Request, parse: Callable[[bytes], T]) -> T:
        """What `parse` makes of the body, off the event loop. `serve.bodies` limits its size.

        Raises:
            CompressedBody: it would have to be decompressed first; or whatever `parse` raises.
        """
        encoding = request.headers.get("content-encoding", "").lower()
        if encoding not in ("", "identity"):
            words = f"The body has the encoding {encoding[:20]!r}; send it as it is, without Content-Encoding."
            raise CompressedBody(words)
        return await while_connected(request, asyncio.to_thread(parse, await request.body()))

    def check_model(self, name: str | None) -> None:
        """Accept the served model's name, and `OTHER_NAMES` from programs that only changed their base URL.

        Raises:
            ModelNotFound: another model is named.
        """
        served = self.engine.info.model
        if name and name.removesuffix(":latest") not in (served, *OTHER_NAMES) and not is_web_address(name):
            raise ModelNotFound(f"The model {name[:100]!r} is not served here; {served!r} is.", "model")

    async def pictured(self, request: Request, turns: Sequence[Turn], make: Callable[[Pictures], T]) -> T:
        """What `make` makes of a body, off the event loop, after the pictures that `turns` name by URL were fetched.

        Raises:
            InvalidRequest: more URLs than a conversation may have pictures; or whatever `make` raises.
        """
        urls, most = web_addresses(turns) if self.downloads else (), self.engine.info.max_images
        if len(urls) > most:
            words = f"The conversation has {len(urls)} pictures to fetch; at most {most} are allowed."
            raise InvalidRequest(words, "messages")
        from_url = await while_connected(request, self.downloads.pictures(urls)) if self.downloads else None
        return await while_connected(request, asyncio.to_thread(make, Pictures(self.limits, from_url)))

    async def whole(self, request: Request, asked: Sequence[ChatRequest], endpoint: str) -> list[Completion]:
        """The whole answers to `asked`. Raises what `Engine.stream` raises."""
        pieces = _pieces_of(self.engine, asked, endpoint, request)
        return await while_connected(request, _completions_of(pieces, len(asked)))

    async def streamed(self, request: Request, asked: Sequence[ChatRequest], endpoint: str) -> Pieces:
        """The answers in pieces, from the first text on, or after `HELD_HEARTBEATS`."""
        return await while_connected(request, _begun(_pieces_of(self.engine, asked, endpoint, request)))


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do `work`, and cancel it when the caller disconnects; the body must have been read before.

    Raises:
        ClientDisconnect: the caller disconnected; or whatever `work` raises.
    """
    working, watching = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        watching.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _pieces_of(engine: Engine, requests: Sequence[ChatRequest], endpoint: str, http: Request) -> Pieces:
    """Ask all `requests` of the HTTP request `http` at once. Closing the generator, or a failure, cancels all.

    Raises:
        DemoError: as `Engine.stream` does.
    """
    pieces: asyncio.Queue[tuple[int, Chunk] | BaseException | None] = asyncio.Queue()

    async def ask(index: int, request: ChatRequest) -> None:
        request = replace(request, caller=caller_of(http))
        async with aclosing(stream_recorded(engine, request, AnswerRecord(endpoint, http.state.id))) as chunks:
            async for chunk in chunks:
                pieces.put_nowait((index, chunk))

    def ended(task: asyncio.Task[None]) -> None:
        pieces.put_nowait(None if task.cancelled() else task.exception())

    tasks = [asyncio.create_task(ask(index, request)) for index, request in enumerate(requests)]
    for task in tasks:
        task.add_done_callback(ended)
    try:
        running = len(tasks)
        while running:
            piece = await pieces.get()
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                running -= 1
            else:
                yield piece
    finally:
        for task in tasks:
            task.cancel()


async def _completions_of(pieces: Pieces, count: int) -> list[Completion]:
    chunks: list[list[Chunk]] = [[] for _ in range(count)]
    async with aclosing(pieces):
        async for index, chunk in pieces:
            chunks[index].append(chunk)
    return [completion_of(answer) for answer in chunks]


async def _begun(pieces: Pieces) -> Pieces:
    """The same pieces, from the first with text or an end on, or after `HELD_HEARTBEATS`."""
    first = []
    async for piece in pieces:
        first.append(piece)
        if piece[1].text or piece[1].finish_reason or len(first) >= HELD_HEARTBEATS:
            break

    async def all_of_them() -> Pieces:
        async with aclosing(pieces):
            for piece in first:
                yield piece
            async for piece in pieces:
                yield piece

    return all_of_them()
