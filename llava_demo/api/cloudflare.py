"""Cloudflare's routes: a model's run, through the HTTP API and as a Worker's `env.AI.run` answers."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
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
from llava_demo.chat import ChatRequest
from llava_demo.errors import DemoError, ModelNotFound
from llava_demo.images import MIME_TYPES
from llava_demo.wire import cloudflare
from llava_demo.wire.bodies import body_from
from llava_demo.wire.cloudflare import MODEL, DescriptionJSON, EnvelopeJSON

ACCOUNT = "/client/v4/accounts/{account_id}/ai"
HTTP_API = f"{ACCOUNT}/run"
BINDING = "/ai/run"
_ANSWER = "The answer; with `stream` as server-sent events."


class CloudflareRoutes:
    """The routes; any account id is accepted."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    def router(self) -> APIRouter:
        router = APIRouter(tags=["Cloudflare"])
        errors = error_documents(EnvelopeJSON)
        body = body_document(cloudflare.RunRequest, "application/octet-stream", *MIME_TYPES.values())
        for place, run, model in ((HTTP_API, self.run, EnvelopeJSON), (BINDING, self.run_bare, DescriptionJSON)):
            answer: dict[str, Any] = {"model": model, "description": _ANSWER, "content": EVENTS}
            router.post(f"{place}/{MODEL}", openapi_extra=body, responses={200: answer, **errors})(run)
            router.post(f"{place}/{{model:path}}", include_in_schema=False)(self.other_model)
        router.get(f"{ACCOUNT}/models/search", responses=error_documents(EnvelopeJSON, 401, 403))(self.models)
        return router

    async def run(self, request: Request, account_id: str) -> Response:  # noqa: ARG002, for the documentation
        """Answer a question about one picture; a body that is only a picture asks for a description."""
        return await self._answer(request, cloudflare.envelope)

    async def run_bare(self, request: Request) -> Response:
        """The same without Cloudflare's envelope, as a Worker's binding answers."""
        return await self._answer(request, cloudflare.description)

    async def models(self, request: Request, account_id: str) -> dict[str, Any]:  # noqa: ARG002, for the documentation
        """The one model that is served, on `?page=1`."""
        return cloudflare.models_json(1 if request.query_params.get("page", "1") == "1" else 2)

    async def other_model(self, model: str) -> None:
        """Refuse other models."""
        raise ModelNotFound(f"No such model {model[:100]} or task; {MODEL} is served here.")

    async def _answer(self, request: Request, form: Callable[[str], Any]) -> Response:
        limits, kind = self._asking.limits, request.headers.get("content-type", "")

        def asked_by(data: bytes) -> tuple[ChatRequest, bool]:
            # curl labels JSON as a form by default, but no picture begins with a brace.
            if "json" in kind or data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
                body = body_from(cloudflare.RunRequest, json_from(data))
                return cloudflare.request_of(body, limits), bool(body.stream)
            return cloudflare.request_from_file(data, limits), False

        asked, is_stream = await self._asking.body(request, asked_by)
        if is_stream:
            return event_stream(_events(await self._asking.streamed(request, [asked], "cloudflare")))
        [completion] = await self._asking.whole(request, [asked], "cloudflare")
        return JSONResponse(form(completion.text))


async def _events(pieces: Pieces) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(pieces):
            async for _, chunk in pieces:
                yield sse(cloudflare.event(chunk)) if chunk.text or chunk.usage else STILL_THERE
    except DemoError as error:
        yield sse(cloudflare.error_of(error))
        return
    yield DONE
