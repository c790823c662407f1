"""Cloudflare's routes: the model's run through the HTTP API, and what a Worker's `env.AI.run` gives."""

from fastapi import APIRouter
from starlette.requests import Request

from llava_demo.api.asking import Asking, body_document, error_documents, json_from
from llava_demo.chat import ChatRequest
from llava_demo.errors import ModelNotFound
from llava_demo.images import MIME_TYPES
from llava_demo.wire import cloudflare
from llava_demo.wire.cloudflare import MODEL, DescriptionJSON, EnvelopeJSON

HTTP_API = "/client/v4/accounts/{account_id}/ai/run"
BINDING = "/ai/run"


class CloudflareRoutes:
    """The routes; any account is one of ours."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    def router(self) -> APIRouter:
        router = APIRouter(
            tags=["Cloudflare"], responses=error_documents(EnvelopeJSON, 400, 401, 403, 404, 413, 429, 500, 503)
        )
        body = body_document(cloudflare.RunRequest, "application/octet-stream", *MIME_TYPES.values())
        for place, run in ((HTTP_API, self.run), (BINDING, self.run_bare)):
            router.post(f"{place}/{MODEL}", openapi_extra=body)(run)
            router.post(f"{place}/{{model:path}}", include_in_schema=False)(self.other_model)
        return router

    async def run(self, request: Request, account_id: str) -> EnvelopeJSON:  # noqa: ARG002, for the documentation
        """Answer a question about one picture; a body that is nothing but a picture asks for a description."""
        return cloudflare.envelope(await self._text(request))

    async def run_bare(self, request: Request) -> DescriptionJSON:
        """The same without Cloudflare's envelope, as a Worker's binding answers."""
        return {"description": await self._text(request)}

    async def other_model(self, model: str) -> None:
        """Refuse what is not served."""
        raise ModelNotFound(f"No such model {model[:100]} or task; {MODEL} is served here.")

    async def _text(self, request: Request) -> str:
        limits, kind = self._asking.limits, request.headers.get("content-type", "")

        def asked_by(body: bytes) -> ChatRequest:
            # curl sends JSON as a form unless it is told otherwise, but no picture begins with a brace.
            if "json" in kind or body[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
                return cloudflare.request_from(json_from(body), limits)
            return cloudflare.request_from_file(body, limits)

        asked = await self._asking.body(request, asked_by)
        [completion] = await self._asking.whole(request, [asked], "cloudflare")
        return completion.text
