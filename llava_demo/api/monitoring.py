"""Health routes for load balancers, and metrics for Prometheus."""

from typing import NotRequired

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from typing_extensions import TypedDict

from llava_demo.engines import Engine
from llava_demo.metrics import REGISTRY


class HealthJSON(TypedDict):
    status: str
    model: str
    engine: str
    running: int
    waiting: int
    cached_tokens: int
    stage: NotRequired[str]  # while the model loads: the stage, and its progress


def router(engine: Engine) -> APIRouter:
    """The routes, which need no key."""
    routes = APIRouter(tags=["Monitoring"])

    def health() -> HealthJSON:
        status, info = engine.status(), engine.info
        state: HealthJSON = {
            "status": status.state,
            "model": info.model,
            "engine": info.engine,
            "running": status.running,
            "waiting": status.waiting,
            "cached_tokens": status.cached_tokens,
        }
        return {**state, "stage": status.stage} if status.stage else state

    async def live() -> Response:
        """The process is up."""
        return JSONResponse(health())

    async def ready() -> Response:
        """The model is loaded and its engine works."""
        state = health()
        return JSONResponse(state, 200 if state["status"] == "ready" else 503)

    async def metrics() -> Response:
        """What was answered, and how fast, in Prometheus' text format."""
        return Response(generate_latest(REGISTRY) + _gauges(engine), media_type=CONTENT_TYPE_LATEST)

    healthy = {200: {"model": HealthJSON}}
    not_now = {503: {"model": HealthJSON, "description": "Not now."}}
    for path, route, documents in (
        ("/health/live", live, {"responses": healthy}),
        ("/health/ready", ready, {"responses": healthy | not_now}),
        ("/healthz", ready, {"responses": healthy | not_now}),
        ("/metrics", metrics, {"response_class": PlainTextResponse}),
    ):
        routes.get(path, name=path, **documents)(route)
    return routes


def _gauges(engine: Engine) -> bytes:
    registry, status = CollectorRegistry(), engine.status()
    for name, words, value in (
        ("ready", "1 while the engine is ready", status.state == "ready"),
        ("running", "Running answers", status.running),
        ("waiting", "Requests in the queue", status.waiting),
        ("cached_tokens", "Tokens in the prefix cache", status.cached_tokens),
        ("held_tokens", "Tokens of room in the cache that running answers hold", status.held_tokens),
        ("held_pictures", "Pictures whose features running answers hold", status.held_pictures),
    ):
        Gauge(f"llava_{name}", words, registry=registry).set(value)
    return generate_latest(registry)
