"""Cloudflare's routes: the model's run through the HTTP API, and what a Worker's `env.AI.run` gives."""

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from llava_demo.api import documents
from llava_demo.api.asking import completions_of, pieces_of, while_connected
from llava_demo.api.bodies import body_of, json_from, max_body_bytes
from llava_demo.chat import ChatRequest
from llava_demo.engines import Engine
from llava_demo.errors import ModelNotFound
from llava_demo.images import ImageLimits
from llava_demo.wire.cloudflare import MODEL, answer, envelope, request_from, request_from_file

HTTP_API = "/client/v4/accounts/{account_id}/ai/run"
BINDING = "/ai/run"


class CloudflareRoutes:
    """The routes; any account is one of ours."""

    def __init__(self, engine: Engine, limits: ImageLimits) -> None:
        self._engine, self._limits = engine, limits

    def router(self) -> APIRouter:
        router = APIRouter(tags=["Cloudflare"])
        document = documents.cloudflare_run
        router.post(f"{HTTP_API}/{MODEL}", **document(self._limits, is_bare=False))(self.run)
        router.post(f"{BINDING}/{MODEL}", **document(self._limits, is_bare=True))(self.run_bare)
        for place in (HTTP_API, BINDING):
            router.post(f"{place}/{{model:path}}", include_in_schema=False)(self.other_model)
        return router

    async def run(self, request: Request, account_id: str) -> dict[str, Any]:  # noqa: ARG002, for the documentation
        """Answer a question about one picture; a body that is nothing but a picture asks for a description."""
        return envelope(await self._text(request))

    async def run_bare(self, request: Request) -> dict[str, Any]:
        """The same without Cloudflare's envelope."""
        return answer(await self._text(request))

    async def other_model(self, model: str) -> None:
        """Refuse what is not served."""
        raise ModelNotFound(f"No such model {model[:100]} or task; {MODEL} is served here.")

    async def _text(self, request: Request) -> str:
        body = await body_of(request, max_body_bytes(self._limits))
        is_json = "json" in request.headers.get("content-type", "") or body[:64].lstrip().startswith(b"{")
        asked = await while_connected(request, asyncio.to_thread(self._asked, body, is_json))
        pieces = pieces_of(self._engine, [asked], "cloudflare", request)
        [completion] = await while_connected(request, completions_of(pieces, 1))
        return completion.text

    def _asked(self, body: bytes, is_json: bool) -> ChatRequest:
        """What is asked; curl sends JSON as a form unless it is told otherwise, but no picture begins with a brace."""
        return request_from(json_from(body), self._limits) if is_json else request_from_file(body, self._limits)
