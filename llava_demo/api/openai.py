"""OpenAI's routes, which DeepInfra serves under /v1/openai: chat completions and the list of models."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from llava_demo.api import documents, failures
from llava_demo.api.asking import Pieces, completions_of, pieces_of, while_connected
from llava_demo.api.bodies import body_of, json_from, max_body_bytes
from llava_demo.chat import Usage
from llava_demo.engines import Engine
from llava_demo.engines.load import LLAVA_7B
from llava_demo.errors import DemoError, InvalidRequest, ModelNotFound
from llava_demo.images import Image, ImageLimits
from llava_demo.images.download import Downloads
from llava_demo.wire.openai import Call, Head, call_from, web_addresses

# An error that comes before the headers has a status. So they wait for the first word, or for so many heart-beats (two
# a second); then they go out, and comments after them, lest somebody between here and the caller gives the silence up.
HELD_HEARTBEATS = 4

_SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class OpenAIRoutes:
    """The routes; each request's pictures are fetched and decoded off the event loop before the engine is asked."""

    def __init__(self, engine: Engine, limits: ImageLimits, downloads: Downloads | None) -> None:
        self._engine, self._limits, self._downloads = engine, limits, downloads
        self._started = int(time.time())

    def router(self) -> APIRouter:
        router = APIRouter(tags=["OpenAI"])
        router.post("/chat/completions", **documents.chat_completions(self._limits))(self.chat_completions)
        router.get("/models", **documents.models())(self.models)
        router.get("/models/{model:path}", **documents.model())(self.model)
        return router

    async def chat_completions(self, request: Request) -> Response:
        """Answer a conversation with pictures, whole or as a stream of server-sent events."""
        body = await body_of(request, max_body_bytes(self._limits))
        call = await while_connected(request, self._call(body))
        head = Head(f"chatcmpl-{uuid.uuid4().hex}", self._engine.info.model, int(time.time()))
        pieces = pieces_of(self._engine, call.requests, "openai", request)
        if not call.is_stream:
            completions = await while_connected(request, completions_of(pieces, call.choices))
            return JSONResponse(head.completion(completions))
        begun = await while_connected(request, _begun(pieces))
        events = _events(head, call, begun, lambda error: failures.body_of(request, error))
        return StreamingResponse(events, media_type="text/event-stream", headers=_SSE_HEADERS)

    async def models(self) -> dict[str, Any]:
        """What is served: one model."""
        return {"object": "list", "data": [self._model_json()]}

    async def model(self, model: str) -> dict[str, Any]:
        """The served model, by its own name or by the one that it has where it is hosted."""
        self._check_name(model)
        return self._model_json()

    def _model_json(self) -> dict[str, Any]:
        info = self._engine.info
        return {
            "id": info.model,
            "object": "model",
            "created": self._started,
            "owned_by": "llava_demo",
            "max_model_len": info.context_tokens,  # vLLM's word
            "image_tokens": info.image_tokens,
            "image_side": info.image_side,
            "max_images": info.max_images,
        }

    def _check_name(self, name: str) -> None:
        # Who changes only the base URL of a program keeps the name that the hosted model has there.
        if name not in (self._engine.info.model, LLAVA_7B):
            served = self._engine.info.model
            raise ModelNotFound(f"The model {name[:100]!r} is not served here; {served!r} is.", "model")

    async def _call(self, body: bytes) -> Call:
        given = await asyncio.to_thread(json_from, body)
        model = given.get("model") if isinstance(given, dict) else None
        if isinstance(model, str):
            self._check_name(model)
        image_from_url = await self._fetched(given) if self._downloads else None
        return await asyncio.to_thread(call_from, given, self._limits, image_from_url)

    async def _fetched(self, given: Any) -> Callable[[str], Image]:
        assert self._downloads is not None
        urls = web_addresses(given.get("messages")) if isinstance(given, dict) else ()
        if len(urls) > self._engine.info.max_images:
            most = f"at most {self._engine.info.max_images} are allowed"
            raise InvalidRequest(f"The conversation has {len(urls)} pictures to fetch; {most}.", "messages")
        return await self._downloads.pictures(urls)


async def _begun(pieces: Pieces) -> Pieces:
    """The same pieces, once the first that says something is there, or a while has passed."""
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


async def _events(
    head: Head, call: Call, pieces: Pieces, error_json: Callable[[DemoError], dict[str, Any]]
) -> AsyncGenerator[str, None]:
    usages: dict[int, Usage] = {}
    for index in range(call.choices):
        yield _sse(head.first(index))
    try:
        async with aclosing(pieces):
            async for index, chunk in pieces:
                for event in head.events(index, chunk):
                    yield _sse(event)
                if chunk.usage:
                    usages[index] = chunk.usage
                if not (chunk.text or chunk.finish_reason):
                    yield ": still there\n\n"
    except DemoError as error:
        yield f"event: error\n{_sse(error_json(error))}"
        return
    if call.has_usage:
        yield _sse(head.last([usages[index] for index in range(call.choices)]))
    yield "data: [DONE]\n\n"


def _sse(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, separators=(',', ':'))}\n\n"  # in ASCII: some clients break lines at U+2028
