"""OpenAI's routes, which DeepInfra serves under /v1/openai: chat completions and the list of models."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llava_demo.api.asking import Asking, Pieces, body_document, error_documents, json_from
from llava_demo.chat import Usage
from llava_demo.errors import DemoError
from llava_demo.wire import openai
from llava_demo.wire.bodies import body_from

_STREAM = "The answer; with `stream` as server-sent events, each a `chat.completion.chunk`."
_SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # FastAPI adds them to generators only


class OpenAIRoutes:
    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._started = int(time.time())

    def router(self) -> APIRouter:
        router = APIRouter(tags=["OpenAI"])
        content = {"text/event-stream": {"schema": {"type": "string"}}}
        answer: dict[str, Any] = {"model": openai.ChatCompletion, "description": _STREAM, "content": content}
        router.post(
            "/chat/completions",
            openapi_extra=body_document(openai.ChatCompletionRequest),
            responses={200: answer, **error_documents(openai.ErrorJSON, 400, 401, 403, 404, 413, 429, 500, 503)},
        )(self.chat_completions)
        router.get("/models", responses=error_documents(openai.ErrorJSON, 401, 403))(self.models)
        router.get("/models/{model:path}", responses=error_documents(openai.ErrorJSON, 401, 403, 404))(self.model)
        return router

    async def chat_completions(self, request: Request) -> Response:
        """Answer a conversation with pictures, whole or as a stream of server-sent events."""
        asking = self._asking
        head = openai.Head(f"chatcmpl-{uuid.uuid4().hex}", asking.engine.info.model, int(time.time()))
        body = await asking.body(request, lambda data: body_from(openai.ChatCompletionRequest, json_from(data)))
        asking.check_model(body.model)
        from_url = await asking.fetched(request, body.messages)
        call = await asyncio.to_thread(openai.call_from, body, asking.limits, from_url)
        if not call.is_stream:
            return JSONResponse(head.completion(await asking.whole(request, call.requests, "openai")))
        events = _events(head, call, await asking.streamed(request, call.requests, "openai"))
        return EventSourceResponse(events, headers=_SSE_HEADERS)

    async def models(self) -> openai.ModelsJSON:
        """What is served: one model."""
        return {"object": "list", "data": [self._model_json()]}

    async def model(self, model: str) -> openai.ModelJSON:
        """The served model, by its own name or by the one that it has where it is hosted."""
        self._asking.check_model(model)
        return self._model_json()

    def _model_json(self) -> openai.ModelJSON:
        info = self._asking.engine.info
        return {
            "id": info.model,
            "object": "model",
            "created": self._started,
            "owned_by": "llava_demo",
            "max_model_len": info.context_tokens,
            "image_tokens": info.image_tokens,
            "image_side": info.image_side,
            "max_images": info.max_images,
        }


async def _events(head: openai.Head, call: openai.Call, pieces: Pieces) -> AsyncGenerator[bytes, None]:
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
                    yield format_sse_event(comment="still there")
    except DemoError as error:
        yield _sse(openai.error_of(error), event="error")
        return
    if call.has_usage:
        yield _sse(head.last([usages[index] for index in range(call.choices)]))
    yield format_sse_event(data_str="[DONE]")


def _sse(data: Any, event: str | None = None) -> bytes:
    return format_sse_event(data_str=json.dumps(data, separators=(",", ":")), event=event)  # ASCII: no U+2028
