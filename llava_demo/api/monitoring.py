"""For load balancers and Prometheus: is the server alive, is it ready, and what has it done?"""

from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from starlette.responses import JSONResponse, Response

from llava_demo.api import documents
from llava_demo.engines import Engine
from llava_demo.metrics import REGISTRY


def router(engine: Engine) -> APIRouter:
    """The routes, which need no key."""
    routes = APIRouter(tags=["Watching"])

    def health() -> dict[str, Any]:
        status, info = engine.status(), engine.info
        counts = {"running": status.running, "waiting": status.waiting, "cached_tokens": status.cached_tokens}
        stage = {"stage": status.stage} if status.stage else {}
        return {"status": status.state, "model": info.model, "engine": info.engine, **counts, **stage}

    async def live() -> JSONResponse:
        """The process answers."""
        return JSONResponse(health())

    async def ready() -> JSONResponse:
        """The model is loaded and its engine works."""
        state = health()
        return JSONResponse(state, 200 if state["status"] == "ready" else 503)

    async def numbers() -> Response:
        """What has been answered, and how fast."""
        return Response(generate_latest(REGISTRY) + _gauges(engine), media_type=CONTENT_TYPE_LATEST)

    for path, route, document in (
        ("/health/live", live, documents.health(is_always_200=True)),
        ("/health/ready", ready, documents.health(is_always_200=False)),
        ("/healthz", ready, documents.health(is_always_200=False)),
        ("/metrics", numbers, documents.metrics()),
    ):
        routes.get(path, name=path, **document)(route)
        routes.head(path, include_in_schema=False)(route)
    return routes


def _gauges(engine: Engine) -> bytes:
    registry, status = CollectorRegistry(), engine.status()
    for name, words, value in (
        ("ready", "1 while the engine answers", status.state == "ready"),
        ("running", "Answers under way", status.running),
        ("waiting", "Requests in the queue", status.waiting),
        ("cached_tokens", "Tokens that prompts can share", status.cached_tokens),
    ):
        Gauge(f"llava_{name}", words, registry=registry).set(value)
    return generate_latest(registry)
