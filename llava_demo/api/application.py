"""One FastAPI application with all REST routes, and the route that precedes the page's own."""

import re
import uuid
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from pydantic.json_schema import models_json_schema
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_demo import __version__
from llava_demo.api import monitoring
from llava_demo.api.access import Access
from llava_demo.api.asking import Asking
from llava_demo.api.cloudflare import ACCOUNT, CloudflareRoutes
from llava_demo.api.ollama import OllamaRoutes
from llava_demo.api.openai import OpenAIRoutes
from llava_demo.engines import Engine
from llava_demo.errors import DemoError, EngineUnavailable, TooManyRequests, UnknownRoute, WrongMethod
from llava_demo.images import ImageLimits
from llava_demo.images.download import Downloads
from llava_demo.log import logger
from llava_demo.wire import cloudflare, ollama, openai, responses

# No path of Gradio 6.31 begins with one of these.
PREFIXES = ("/v1", "/api", "/client", "/ai", "/health", "/healthz", "/metrics")
# The paths of OpenAI's clients whose base URL lacks /v1; the 404 tells them so.
PREFIXES_WITHOUT_V1 = ("/chat/completions", "/completions", "/responses", "/models", "/embeddings", "/openai")

DESCRIPTION = """Ask LLaVA about pictures with programs written for OpenAI (chat completions and Responses), DeepInfra,
Ollama or Cloudflare Workers AI: they only change their base URL. With `gradio_client`, see *Use in code*
on the page."""

DISCONNECTED = 499  # nginx's code for a caller that disconnected

_BODIES = (
    openai.ChatCompletionRequest,
    responses.ResponseRequest,
    ollama.OllamaChatRequest,
    ollama.OllamaGenerateRequest,
    ollama.OllamaShowRequest,
    cloudflare.RunRequest,
)
_SAFE_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


def is_rest(path: str) -> bool:
    """Whether a path belongs to the REST APIs."""
    path = _plain(path)
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in (*PREFIXES, *PREFIXES_WITHOUT_V1))


def _plain(path: str) -> str:
    """The path without the extra slashes that clients leave when they join a base URL and a path."""
    return re.sub("/+", "/", path).rstrip("/")


class RestRoutes(BaseRoute):
    """A route for everything under `PREFIXES`, so that unknown paths there get their interface's error format."""

    def __init__(self, engine: Engine, limits: ImageLimits, access: Access, downloads: Downloads | None = None) -> None:
        self.app = FastAPIOffline(
            title="llava_demo",
            version=__version__,
            description=DESCRIPTION,
            openapi_url="/v1/openapi.json",
            docs_url="/v1/docs",
            redoc_url=None,
            static_url="/v1/docs/assets",
            favicon_url="data:,",
            swagger_ui_oauth2_redirect_url="/v1/docs/oauth2-redirect",
            swagger_ui_parameters={
                "validatorUrl": None
            },  # without it, documents of public servers are sent to swagger.io
            redirect_slashes=False,
            exception_handlers={DemoError: demo_error, HTTPException: _http_error, ClientDisconnect: _disconnected},
        )
        self.app.openapi = partial(_document, self.app)  # type: ignore[method-assign]  # as FastAPI documents it
        self.app.add_middleware(_Outermost)
        asking, keys = Asking(engine, limits, downloads), access.dependencies
        chat = OpenAIRoutes(asking).router()
        self.app.include_router(chat, prefix="/v1", dependencies=keys)
        for elsewhere in ("/v1/openai", f"{ACCOUNT}/v1"):  # at DeepInfra and at Cloudflare
            self.app.include_router(chat, prefix=elsewhere, dependencies=keys, include_in_schema=False)
        self.app.include_router(OllamaRoutes(asking).router(), dependencies=keys)
        self.app.include_router(CloudflareRoutes(asking).router(), dependencies=keys)
        self.app.include_router(monitoring.router(engine))

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """FULL for the paths that are answered here, with any method."""
        is_ours = scope["type"] == "http" and is_rest(scope["path"])
        return (Match.FULL if is_ours else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. HEAD is answered as GET, and uvicorn leaves out the body."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        await self.app({**scope, "path": _plain(scope["path"]), "method": method}, receive, send)


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the bodies that the routes read themselves after the key was checked."""
    if not app.openapi_schema:
        document = FastAPI.openapi(app)
        bodies = [(body, "validation") for body in _BODIES]
        _, schemas = models_json_schema(bodies, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
        document["components"]["schemas"] |= schemas["$defs"]
    return FastAPI.openapi(app)


# --- errors in the form of the interface that was called


async def demo_error(request: Request, error: Exception) -> Response:
    """The response for a `DemoError`."""
    assert isinstance(error, DemoError)
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if isinstance(error, EngineUnavailable | TooManyRequests):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, TooManyRequests):  # OpenAI's names
        headers["x-ratelimit-limit-requests"] = str(error.limit)
        headers["x-ratelimit-remaining-requests"] = "0"
        headers["x-ratelimit-reset-requests"] = f"{error.retry_after_s}s"
    return JSONResponse(_interface_of(request).error_of(error), error.status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """An unknown route, or a wrong method."""
    assert isinstance(error, HTTPException)
    is_known = error.status_code in (404, 405)
    known = unrouted(error.status_code, request.method) if is_known else DemoError(str(error.detail))
    return JSONResponse(_interface_of(request).error_of(known), error.status_code, dict(error.headers or {}))


def unrouted(status: int, method: str) -> DemoError:
    """The error for a path that is not served (404), or not with this method (405)."""
    if status == 405:
        return WrongMethod(f"This route takes no {method}; see /v1/docs.")
    return UnknownRoute(
        "There is no such route. OpenAI's base URL ends in /v1, Ollama's is the bare address, Cloudflare's ends in "
        "/client/v4; see /v1/docs."
    )


def _interface_of(request: Request) -> Any:
    """The module that writes errors in the format of the interface that was called."""
    path = request.url.path
    is_cloudflares_openai = path.startswith("/client") and "/ai/v1/" in path
    other = {"api": ollama, "client": cloudflare, "ai": cloudflare}.get(path.split("/")[1], openai)
    return openai if is_cloudflares_openai else other


async def _disconnected(request: Request, error: Exception) -> Response:  # noqa: ARG001, the signature of all handlers
    return Response(status_code=DISCONNECTED)


class _Outermost:
    """Gives each request an id, the caller's own if it sent one, and answers a defect of ours with 500.

    The exception goes no further: a server would log its message, which may quote a prompt.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        given = request.headers.get("x-request-id", "")
        request.state.id = given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                MutableHeaders(scope=message)["x-request-id"] = request.state.id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:  # noqa: BLE001, the top of a request: the caller must get an answer
            logger.exception("a defect ended a request")
            if not has_started:
                failure = await demo_error(request, DemoError("The server failed; please report this."))
                await failure(scope, receive, send_with_id)
