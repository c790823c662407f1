"""OpenAI's routes (DeepInfra has them under /v1/openai): chat completions, Responses and the list of models."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llava_demo.api.asking import (
    DONE,
    EVENTS,
    STILL_THERE,
    Asking,
    Pieces,
    body_document,
    error_documents,
    event_stream,
    json_from,
    sse,
)
from llava_demo.chat import Usage
from llava_demo.errors import DemoError
from llava_demo.wire import openai, responses
from llava_demo.wire.bodies import body_from

_EVENTS = "The answer; with `stream` as server-sent events, from `response.created` to `response.completed`."
_STREAM = "The answer; with `stream` as server-sent events, each a `chat.completion.chunk`."


class OpenAIRoutes:
    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._started = int(time.time())

    def router(self) -> APIRouter:
        router = APIRouter(tags=["OpenAI"])
        answer: dict[str, Any] = {"model": openai.ChatCompletion, "description": _STREAM, "content": EVENTS}
        router.post(
            "/chat/completions",
            openapi_extra=body_document(openai.ChatCompletionRequest),
            responses={200: answer, **error_documents(openai.ErrorJSON)},
        )(self.chat_completions)
        events = {"model": responses.ResponseJSON, "description": _EVENTS, "content": EVENTS}
        router.post(
            "/responses",
            openapi_extra=body_document(responses.ResponseRequest),
            responses={200: events, **error_documents(openai.ErrorJSON)},
        )(self.responses)
        router.get("/models", responses=error_documents(openai.ErrorJSON, 401, 403))(self.models)
        router.get("/models/{model:path}", responses=error_documents(openai.ErrorJSON, 401, 403, 404))(self.model)
        return router

    async def chat_completions(self, request: Request) -> Response:
        """Answer a conversation with pictures, whole or as a stream of server-sent events."""
        asking = self._asking
        body = await asking.body(request, lambda data: body_from(openai.ChatCompletionRequest, json_from(data)))
        asking.check_model(body.model)
        call = await asking.pictured(request, body.messages, partial(openai.call_of, body))
        id, model = f"chatcmpl-{uuid.uuid4().hex}", asking.engine.info.model
        head = openai.Head(id, model, int(time.time()), call.has_usage)
        if not call.is_stream:
            return JSONResponse(head.completion(await asking.whole(request, call.requests, "openai")))
        events = _events(head, call, await asking.streamed(request, call.requests, "openai"))
        return event_stream(events)

    async def responses(self, request: Request) -> Response:
        """Answer a conversation with pictures in the form of OpenAI's Responses, whole or as server-sent events."""
        asking = self._asking
        body = await asking.body(request, lambda data: body_from(responses.ResponseRequest, json_from(data)))
        asking.check_model(body.model)
        asked = await asking.pictured(request, body.input, body.request)
        id, model = f"resp_{uuid.uuid4().hex}", asking.engine.info.model
        writer = responses.ResponseWriter(id, model, int(time.time()), asked, body.instructions, body.format)
        if not body.stream:
            [completion] = await asking.whole(request, [asked], "responses")
            return JSONResponse(writer.whole(completion))
        events = _response_events(writer, await asking.streamed(request, [asked], "responses"))
        return event_stream(events)

    async def models(self) -> openai.ModelsJSON:
        """The one model that is served."""
        return {"object": "list", "data": [self._model_json()]}

    async def model(self, model: str) -> openai.ModelJSON:
        """The served model, by its own name or by its name at other hosts."""
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
        yield sse(head.first(index))
    try:
        async with aclosing(pieces):
            async for index, chunk in pieces:
                for event in head.events(index, chunk):
                    yield sse(event)
                if chunk.usage:
                    usages[index] = chunk.usage
                if not (chunk.text or chunk.finish_reason):
                    yield STILL_THERE
    except DemoError as error:
        yield sse(openai.error_of(error), event="error")
        return
    if call.has_usage:
        yield sse(head.last([usages[index] for index in range(call.choices)]))
    yield DONE


async def _response_events(writer: responses.ResponseWriter, pieces: Pieces) -> AsyncGenerator[bytes, None]:
    for event in writer.first():
        yield sse(event, event["type"])
    try:
        async with aclosing(pieces):
            async for _, chunk in pieces:
                for event in writer.events(chunk):
                    yield sse(event, event["type"])
                if not (chunk.text or chunk.finish_reason):
                    yield STILL_THERE
    except DemoError as error:
        yield sse(writer.error(error.code, str(error), getattr(error, "param", None)), "error")
