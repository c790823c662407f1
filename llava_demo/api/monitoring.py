"""For load balancers and Prometheus: is the server alive, is it ready, and what has it done."""

import logging
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import JSONResponse, Response

from llava_demo.api import documents
from llava_demo.engines import Engine

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


def router(engine: Engine, metrics: "Metrics") -> APIRouter:
    """The routes, which need no key."""
    routes = APIRouter(tags=["Watching"])

    def health() -> dict[str, Any]:
        load, info = engine.load(), engine.info
        counts = {"running": load.running, "waiting": load.waiting, "cached_tokens": load.cached_tokens}
        stage = {"stage": load.stage} if load.stage else {}
        return {"status": load.state, "model": info.model, "engine": info.engine, **counts, **stage}

    async def live() -> JSONResponse:
        """The process answers."""
        return JSONResponse(health())

    async def ready() -> JSONResponse:
        """The model is loaded and its engine works."""
        state = health()
        return JSONResponse(state, 200 if state["status"] == "ready" else 503)

    async def numbers() -> Response:
        """What has been answered, and how fast."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    for path, route, document in (
        ("/health/live", live, documents.health(is_always_200=True)),
        ("/health/ready", ready, documents.health(is_always_200=False)),
        ("/healthz", ready, documents.health(is_always_200=False)),
        ("/metrics", numbers, documents.metrics()),
    ):
        routes.get(path, name=path, **document)(route)
        routes.head(path, include_in_schema=False)(route)
    return routes


class Metrics(logging.Handler):
    """The log's lines, counted: attached to the log, it hears of every way in without their knowing of it."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(logging.INFO)
        self._engine = engine
        self._registry = CollectorRegistry()
        labels = ["door", "engine"]
        self._answers = Counter(
            "llava_answers", "Answers, by how they ended", [*labels, "finish"], registry=self._registry
        )
        self._tokens = Counter("llava_tokens", "Tokens read and written", [*labels, "kind"], registry=self._registry)
        self._images = Counter("llava_images", "Pictures asked about", labels, registry=self._registry)
        self._first_s = self._histogram("llava_first_token_seconds", "From the request to its first token", labels)
        self._total_s = self._histogram("llava_answer_seconds", "From the request to the end of its answer", labels)
        self._load = {
            name: Gauge(f"llava_{name}", words, registry=self._registry)
            for name, words in (
                ("ready", "1 while the engine answers"),
                ("running", "Answers under way"),
                ("waiting", "Requests in line"),
                ("cached_tokens", "Tokens that prompts can share"),
            )
        }

    def emit(self, record: logging.LogRecord) -> None:
        """Count a line, if it is of an answer."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        if "finish" not in fields:
            return
        labels = (fields["door"], fields["engine"])
        self._answers.labels(*labels, fields["finish"]).inc()
        self._images.labels(*labels).inc(fields["images"])
        for kind in ("prompt", "completion"):
            self._tokens.labels(*labels, kind).inc(fields.get(f"{kind}_tokens", 0))
        self._total_s.labels(*labels).observe(fields["total_ms"] / 1000)
        if "first_token_ms" in fields:
            self._first_s.labels(*labels).observe(fields["first_token_ms"] / 1000)

    def text(self) -> bytes:
        """Prometheus' text form."""
        load = self._engine.load()
        self._load["ready"].set(load.state == "ready")
        for name in ("running", "waiting", "cached_tokens"):
            self._load[name].set(getattr(load, name))
        return generate_latest(self._registry)

    def _histogram(self, name: str, words: str, labels: list[str]) -> Histogram:
        return Histogram(name, words, labels, registry=self._registry, buckets=_SECONDS)
