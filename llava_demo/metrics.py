"""What the server has answered: `AnswerRecord` measures one answer, Prometheus counters sum them up for `/metrics`."""

import time
import uuid

from prometheus_client import CollectorRegistry, Counter, Histogram

from llava_demo.chat import Chunk, FinishReason, Usage

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


class AnswerRecord:
    """Measures one answer while its chunks go by. Times are in seconds since the record was made."""

    def __init__(self, endpoint: str, id: str | None = None) -> None:
        self.endpoint = endpoint  # "page", "ask", "openai": where the request came in
        self.id = id or uuid.uuid4().hex[:12]
        self._start = time.perf_counter()
        self.first_token_s: float | None = None  # None until there is text
        self.usage: Usage | None = None  # None until the last chunk
        self.finish_reason: FinishReason | None = None

    def saw(self, chunk: Chunk) -> None:
        """Note a chunk; call it for each one, heartbeats included."""
        if chunk.text and self.first_token_s is None:
            self.first_token_s = self.total_s
        self.usage = chunk.usage or self.usage
        self.finish_reason = chunk.finish_reason or self.finish_reason

    @property
    def total_s(self) -> float:
        """Seconds until now."""
        return time.perf_counter() - self._start


def count_answer(answer: AnswerRecord, engine: str, images: int, finish: str) -> None:
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
