"""Ollama's routes: chat and generate as lines of JSON, and what its clients ask about models."""

import hashlib
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from llava_demo import __version__
from llava_demo.api.asking import Asking, Pieces, body_document, error_documents, json_from, while_connected
from llava_demo.chat import Chunk
from llava_demo.engines import completion_of
from llava_demo.errors import DemoError, UnsupportedParameter
from llava_demo.wire import ollama
from llava_demo.wire.bodies import body_from

VERSION = f"0.12.0+llava-demo-{__version__}"  # the version of Ollama's API; clients check it
NOT_DONE = ("pull", "push", "create", "copy", "delete", "embed", "embeddings", "blobs/{digest:path}")
NAMES = ("llava:latest", "llava:7b")  # the names at ollama.com; clients look for them in the list before they ask
_LINES = "The answer; unless `stream` is false, lines of JSON."


class OllamaRoutes:
    def __init__(self, asking: Asking) -> None:
        self._asking, self._loaded_at = asking, ollama.now()

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/api", tags=["Ollama"])
        errors = error_documents(ollama.OllamaError)
        lines = {"application/x-ndjson": {"itemSchema": {"$ref": "#/components/schemas/OllamaAnswer"}}}
        answer: dict[str, Any] = {"model": ollama.OllamaAnswer, "description": _LINES, "content": lines}
        for path, route, body in (
            ("/chat", self.chat, ollama.OllamaChatRequest),
            ("/generate", self.generate, ollama.OllamaGenerateRequest),
        ):
            router.post(path, openapi_extra=body_document(body), responses={200: answer, **errors})(route)
        router.post("/show", openapi_extra=body_document(ollama.OllamaShowRequest), responses=errors)(self.show)
        for path, about in (("/tags", self.tags), ("/ps", self.ps), ("/version", self.version)):
            router.get(path, responses=error_documents(ollama.OllamaError, 401, 403))(about)
        for path in NOT_DONE:
            methods = ["POST", "DELETE", "GET"]
            router.api_route(f"/{path}", methods=methods, include_in_schema=False)(self.not_done)
        return router

    async def chat(self, request: Request) -> Response:
        """Answer a conversation with pictures, as lines of JSON or whole."""
        body = await self._asking.body(request, lambda data: body_from(ollama.OllamaChatRequest, json_from(data)))
        return await self._answer(request, body, is_chat=True)

    async def generate(self, request: Request) -> Response:
        """Answer a prompt with pictures, as lines of JSON or whole."""
        body = await self._asking.body(request, lambda data: body_from(ollama.OllamaGenerateRequest, json_from(data)))
        return await self._answer(request, body, is_chat=False)

    async def show(self, request: Request) -> dict[str, Any]:
        """What the model is and can do."""
        body = await self._asking.body(request, lambda data: body_from(ollama.OllamaShowRequest, json_from(data)))
        self._asking.check_model(body.model or body.name)
        info = self._asking.engine.info
        known = {"general.architecture": "llama", "llama.context_length": info.context_tokens}
        return {
            "modelfile": f"FROM {info.model}",
            "parameters": "",
            "template": "",
            "details": self._details(),
            "model_info": known,
            "capabilities": ["completion", "vision"],
            "modified_at": self._loaded_at,
        }

    async def tags(self) -> dict[str, Any]:
        """The one model that is served, by its own name and by those at ollama.com."""
        names = dict.fromkeys((self._asking.engine.info.model, *NAMES))
        about = self._model_json() | {"modified_at": self._loaded_at}
        return {"models": [about | {"name": name, "model": name} for name in names]}

    async def ps(self) -> dict[str, Any]:
        """The loaded model; it stays loaded."""
        info = self._asking.engine.info
        is_loaded = self._asking.engine.status().state == "ready"
        stays = {"expires_at": "9999-12-31T00:00:00Z", "size_vram": 0, "context_length": info.context_tokens}
        return {"models": [self._model_json() | stays] if is_loaded else []}

    async def version(self) -> dict[str, str]:
        """The version of Ollama's API, and of this program."""
        return {"version": VERSION}

    async def not_done(self, request: Request) -> None:
        """Refuse requests that would change models, or ask for anything but an answer."""
        raise UnsupportedParameter(f"{request.url.path} is not supported here; this server answers with one model.")

    def _model_json(self) -> dict[str, Any]:
        model = self._asking.engine.info.model
        digest = hashlib.sha256(model.encode()).hexdigest()
        return {"name": model, "model": model, "size": 0, "digest": digest, "details": self._details()}

    def _details(self) -> dict[str, Any]:
        info = self._asking.engine.info
        kind = {"parent_model": "", "format": "safetensors", "family": "llama", "families": ["llama", "clip"]}
        return kind | {"parameter_size": "", "quantization_level": info.precision}

    async def _answer(
        self, request: Request, body: ollama.OllamaChatRequest | ollama.OllamaGenerateRequest, is_chat: bool
    ) -> Response:
        asking = self._asking
        asking.check_model(body.model)
        writer = ollama.Writer(body.model, is_chat)
        if not body.turns:
            return JSONResponse(writer.loaded())
        asked = await asking.pictured(request, body.turns, body.request)
        pieces = await asking.streamed(request, [asked], "ollama")
        if body.is_stream:
            return StreamingResponse(_lines(writer, pieces), media_type="application/x-ndjson")
        return JSONResponse(await while_connected(request, _whole(writer, pieces)))


async def _whole(writer: ollama.Writer, pieces: Pieces) -> ollama.OllamaAnswer:
    chunks: list[Chunk] = []
    async with aclosing(pieces):
        async for _, chunk in pieces:
            writer.line(chunk)
            chunks.append(chunk)
    return writer.whole(completion_of(chunks))


async def _lines(writer: ollama.Writer, pieces: Pieces) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(pieces):
            async for _, chunk in pieces:
                yield _line(writer.line(chunk))
    except DemoError as error:
        yield _line(ollama.error_of(error))


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
