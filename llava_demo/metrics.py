"""What the server has answered, for Prometheus: `log.log_answer` counts, `/metrics` shows this process's counts."""

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram

from llava_demo.chat import Usage

REGISTRY = CollectorRegistry()

_LABELS = ["endpoint", "engine"]
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ANSWERS = Counter("llava_answers", "Answers, by how they ended", [*_LABELS, "finish"], registry=REGISTRY)
_TOKENS = Counter("llava_tokens", "Tokens read and written", [*_LABELS, "kind"], registry=REGISTRY)
_IMAGES = Counter("llava_images", "Pictures asked about", _LABELS, registry=REGISTRY)
_FIRST_TOKEN = Histogram(
    "llava_first_token_seconds", "From the request to its first token", _LABELS, registry=REGISTRY, buckets=_SECONDS
)
_ANSWER = Histogram(
    "llava_answer_seconds", "From the request to the end of its answer", _LABELS, registry=REGISTRY, buckets=_SECONDS
)


class Measured(Protocol):
    """What is counted of an answer; `log.AnswerRecord` has it."""

    endpoint: str
    usage: Usage | None
    first_token_s: float | None

    @property
    def total_s(self) -> float: ...


def count_answer(answer: Measured, engine: str, images: int, finish: str) -> None:
    """Count an answer that has ended; `finish` as in the log."""
    labels = (answer.endpoint, engine)
    _ANSWERS.labels(*labels, finish).inc()
    _IMAGES.labels(*labels).inc(images)
    if answer.usage:
        _TOKENS.labels(*labels, "prompt").inc(answer.usage.prompt_tokens)
        _TOKENS.labels(*labels, "completion").inc(answer.usage.completion_tokens)
    _ANSWER.labels(*labels).observe(answer.total_s)
    if answer.first_token_s is not None:
        _FIRST_TOKEN.labels(*labels).observe(answer.first_token_s)
