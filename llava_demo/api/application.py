"""One FastAPI application with all REST routes, and the route that puts it before the page's own."""

import re
import uuid

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_demo import __version__
from llava_demo.api import documents, failures, monitoring
from llava_demo.api.access import Access
from llava_demo.api.cloudflare import CloudflareRoutes
from llava_demo.api.openai import OpenAIRoutes
from llava_demo.engines import Engine
from llava_demo.errors import DemoError
from llava_demo.images import ImageLimits
from llava_demo.images.download import Downloads
from llava_demo.log import logger

# No path of Gradio's begins with one of these (6.31).
PREFIXES = ("/v1", "/client", "/ai", "/health", "/healthz", "/metrics")

_SAFE_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class RestRoutes(BaseRoute):
    """A route for everything under `PREFIXES`, so that unknown paths there get the error form of their interface."""

    def __init__(self, engine: Engine, limits: ImageLimits, access: Access, downloads: Downloads | None = None) -> None:
        self.app = _application(engine, limits, access, downloads)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """FULL for the paths that are answered here, whatever the method."""
        path = scope["path"]
        is_ours = scope["type"] == "http" and any(
            path == prefix or path.startswith(f"{prefix}/") for prefix in PREFIXES
        )
        return (Match.FULL if is_ours else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self.app(scope, receive, send)


def _application(engine: Engine, limits: ImageLimits, access: Access, downloads: Downloads | None) -> FastAPI:
    app = FastAPIOffline(
        title="llava_demo",
        version=__version__,
        description=documents.DESCRIPTION,
        openapi_url="/v1/openapi.json",
        docs_url="/v1/docs",
        redoc_url=None,
        static_url="/v1/docs/assets",
        favicon_url="data:,",
        swagger_ui_oauth2_redirect_url="/v1/docs/oauth2-redirect",
        swagger_ui_parameters={"validatorUrl": None},  # else documents of public servers are sent to swagger.io
        redirect_slashes=False,
        exception_handlers={
            DemoError: failures.demo_error,
            HTTPException: failures.http_error,
            ClientDisconnect: failures.hung_up,
        },
    )
    app.add_middleware(_Outermost)
    keys = access.dependencies
    openai = OpenAIRoutes(engine, limits, downloads).router()
    app.include_router(openai, prefix="/v1", dependencies=keys)
    app.include_router(openai, prefix="/v1/openai", dependencies=keys, include_in_schema=False)  # DeepInfra's
    app.include_router(CloudflareRoutes(engine, limits).router(), dependencies=keys)
    app.include_router(monitoring.router(engine))
    return app


class _Outermost:
    """Gives each request an id, the caller's own if it sent one, and each defect of ours an answer.

    A defect goes no further, for servers log an exception's words, which may quote a prompt.
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
        except Exception:  # noqa: BLE001, the top of a request: whatever it is, the caller must hear of it
            logger.exception("a defect ended a request")
            if not has_started:
                failure = await failures.demo_error(request, DemoError("The server failed; please report this."))
                await failure(scope, receive, send_with_id)
