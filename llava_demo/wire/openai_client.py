"""OpenAI's chat completions as a client writes and reads them: the remote engine's requests, and servers' answers.

vLLM, SGLang, llama.cpp and others differ in details; `openai` is the server's side.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llava_demo.chat import KNOBS, ChatRequest, Chunk, FinishReason, SamplingParams, TokenLogprob, Usage
from llava_demo.errors import (
    DemoError,
    EngineBusy,
    EngineUnavailable,
    GenerationFailed,
    ImageTooLarge,
    InvalidImage,
    InvalidRequest,
    ModelNotFound,
    PromptTooLong,
    RequestTooLarge,
    UnsupportedParameter,
)
from llava_demo.wire.dialects import EXTENSIONS, UNKNOWN, Dialect, dialect_of
from llava_demo.wire.messages import messages_json

STREAMED = {
    "stream": True,
    "stream_options": {"include_usage": True},
}  # added to `request_json`: a stream with token counts
MAX_MESSAGE_CHARACTERS = 500  # longest part of another server's message that is passed on

_BROKEN_OFF = ("abort", "aborted", "cancelled", "error")  # finish reasons
# Matches the messages of OpenAI, vLLM, SGLang, llama.cpp, Ollama, LM Studio and TGI; most have only the status as code.
_TOO_LONG = re.compile(
    r"context (length|size)|(maximum|max_)[ _]?model[ _]len|`inputs` (tokens|must have)", re.IGNORECASE
)
_BY_CODE: dict[str, type[InvalidRequest]] = {
    error.code: error
    for error in (
        InvalidImage,
        ImageTooLarge,
        ModelNotFound,
        PromptTooLong,
        RequestTooLarge,
        UnsupportedParameter,
    )
}


def request_json(request: ChatRequest, model: str | None, dialect: Dialect = UNKNOWN) -> dict[str, Any]:
    """The body of a chat completion by `model`, or by the server's only model.

    Raises:
        InvalidRequest: a raw prompt, which a chat completion cannot hold.
        UnsupportedParameter: the server would silently ignore a parameter.
    """
    if request.is_raw:
        raise InvalidRequest("A raw prompt cannot be sent as a chat completion.", "raw")
    sampling, neutral = request.sampling, SamplingParams()
    stated = {"temperature", "top_p", "max_tokens"}  # servers differ in their defaults
    knobs = {
        name: getattr(sampling, name)
        for name in KNOBS
        if name not in EXTENSIONS and (name in stated or getattr(sampling, name) != getattr(neutral, name))
    }
    if dialect.needs_partial_top_p and sampling.top_p == 1:
        del knobs["top_p"]
    body: dict[str, Any] = {"messages": messages_json(request.messages)} | knobs | dialect.fields_of(request)
    if model is not None:
        body["model"] = model
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    return body


class AnswerReader:
    """Reads one answer, event by event. Servers send its end and its token counts in one event or in two."""

    def __init__(self, has_logprobs: bool = False) -> None:
        self._has_logprobs = has_logprobs
        self._finish_reason: FinishReason | None = None
        self._usage: Usage | None = None
        self._pieces = 0  # with text
        self._half = ""  # a high surrogate: servers in JavaScript may cut a character beyond 16 bits in two
        self.is_done = False  # `[DONE]` came

    def chunk_from(self, data: str) -> Chunk:
        """The text and log-probabilities of one event's data; never the last chunk.

        Raises:
            DemoError: the event is an error, or unreadable.
            UnsupportedParameter: the first text lacks the log-probabilities that were asked for.
        """
        if data.strip() == "[DONE]":
            self.is_done = True
            return Chunk()
        if not data.lstrip().startswith(("{", "[")):  # empty, or a keep-alive such as "ping"
            return Chunk()
        event = _event_from(data)
        try:
            chunk = chunk_from(event)
        except ValueError as error:
            raise GenerationFailed("The model's server sent what cannot be read.") from error
        self._finish_reason = chunk.finish_reason or self._finish_reason
        self._usage = chunk.usage or self._usage
        text = self._whole(chunk.text)
        if text and not self._pieces and self._has_logprobs and not chunk.logprobs:
            raise UnsupportedParameter("The server that answers gives no logprobs; leave it out.", "logprobs")
        if not self._pieces:
            text = text.removeprefix(" ")  # SentencePiece's; not every server drops it
        self._pieces += bool(text)
        return Chunk(text, logprobs=chunk.logprobs)

    def _whole(self, text: str) -> str:
        text = self._half + text
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return text.removesuffix(self._half).encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def last_chunk(self) -> Chunk:
        """The chunk that ends the answer, when the stream has ended.

        Raises:
            GenerationFailed: the stream ended before the answer did.
        """
        if self._finish_reason is None:
            raise GenerationFailed("The answer broke off: the server that wrote it is gone. Please try again.")
        # A server without token counts still sent about one token in each piece.
        return Chunk(finish_reason=self._finish_reason, usage=self._usage or Usage(0, self._pieces))


def _event_from(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise GenerationFailed("The model's server sent what cannot be read.")
    if event.get("error") or event.get("object") == "error":  # null in every chunk of some servers
        raise error_from(_status_of(event), event)
    return event


def _status_of(event: dict[str, Any]) -> int:
    """The HTTP status of an error within a stream: servers write it as a number, or the kind as a word."""
    error = event.get("error")
    fields = error if isinstance(error, dict) else event
    for name in ("code", "http_status_code", "status_code"):  # vLLM, SGLang and llama.cpp; TGI; others
        if isinstance(fields.get(name), int):
            return fields[name]  # type: ignore[no-any-return]
    kind = fields.get("type") or fields.get("error_type")
    return {"invalid_request_error": 400, "validation": 400, "overloaded": 429}.get(str(kind), 500)


def chunk_from(event: dict[str, Any]) -> Chunk:
    """Read the first choice of a stream's event; `Chunk()` if it has no text, like the first one.

    Servers send the finish reason and the usage in two events: a chunk made here may have one without the other, and
    `AnswerReader` joins them.

    Raises:
        ValueError: it is not a `chat.completion.chunk`.
    """
    with _form_of("chat.completion.chunk"):
        choices = event.get("choices") or ()  # keep-alives and counts have none
        choice = choices[0] if choices else {}
        text = _text_of((choice.get("delta") or choice.get("message") or {}).get("content"))
        return Chunk(text, _finish_reason(choice), _usage_from(event), _logprobs_from(choice.get("logprobs")))


@contextmanager
def _form_of(kind: str) -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not of the form of a {kind}") from error


def _text_of(content: Any) -> str:
    """The text of a delta: a string, null, or a list of parts."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if part.get("type") == "text")
    return content or ""


def _finish_reason(choice: dict[str, Any]) -> FinishReason | None:
    """Why the answer ended; "content_filter", "eos_token" and others count as stop.

    Raises:
        GenerationFailed: the server aborted it: "abort" of vLLM and SGLang, "error" of vLLM.
    """
    reason = choice.get("finish_reason") or None  # "" in every chunk of some servers
    if reason in _BROKEN_OFF:
        raise GenerationFailed("The answer broke off: the server that wrote it gave it up. Please try again.")
    return "length" if reason == "length" else reason and "stop"


def _usage_from(body: dict[str, Any]) -> Usage | None:
    usage = body.get("usage")
    if not usage:
        return None
    details = usage.get("prompt_tokens_details") or {}
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"), details.get("cached_tokens"))
    return Usage(*(int(count or 0) for count in counts))


def _logprobs_from(logprobs: dict[str, Any] | None) -> tuple[TokenLogprob, ...]:
    content = (logprobs or {}).get("content") or ()
    return tuple(
        TokenLogprob(
            token["token"],
            float(token["logprob"]),
            tuple(
                TokenLogprob(top["token"], float(top["logprob"]), (), _data(top))
                for top in token.get("top_logprobs") or ()
            ),
            _data(token),
        )
        for token in content
    )


def _data(token: dict[str, Any]) -> bytes | None:
    given = token.get("bytes")
    return bytes(given) if given is not None and bytes(given) != token["token"].encode() else None


def error_from(status: int, body: Any, retry_after_s: int = 5) -> DemoError:
    """The error for our callers when a server refuses; `body` is its JSON, or whatever it sent instead.

    If that server refuses our key, its message is not passed on: our callers cannot do anything about it.
    """
    fields = _fields_of(body)
    message = str(fields.get("message") or f"The model's server answered with status {status}.")
    message = message[:MAX_MESSAGE_CHARACTERS]
    code, param = fields.get("code"), fields.get("param")
    kind = _BY_CODE.get(code) if isinstance(code, str) else None
    is_elsewhere = status in (404, 405) and "model" not in str(fields.get("message")).lower()
    if kind is None and (status < 400 or is_elsewhere):
        words = "has no chat completions at --remote-url, which ends in /v1 as a rule"
        return EngineUnavailable(f"The model's server {words}: it answered with status {status}.", retry_after_s)
    if kind is None and status == 413:
        return RequestTooLarge("The request is larger than the model's server takes; send fewer or smaller pictures.")
    if status in (401, 403):
        return EngineUnavailable("The model's server does not take this server's key.")
    if status in (408, 429) or code == EngineBusy.code:
        return EngineBusy(message, retry_after_s)
    if status in (502, 503, 504):
        return EngineUnavailable(message, retry_after_s)
    if status >= 500:
        return GenerationFailed("The model's server failed while it answered; please try again.")
    if _TOO_LONG.search(message):
        kind = PromptTooLong
    return (kind or InvalidRequest)(message, param if isinstance(param, str) else None)


def _fields_of(body: Any) -> dict[str, Any]:
    """The error of a body: OpenAI's `{"error": {...}}`, vLLM's `{"message": ...}`, FastAPI's `{"detail": ...}`."""
    if not isinstance(body, dict):
        return {}
    error = body.get("error", body)
    fields = error if isinstance(error, dict) else {"message": error}
    return {"message": fields.get("detail")} | fields


@dataclass(frozen=True)
class Served:
    """What a server says about the wanted model, or about its first one; None for what it does not say.

    `context_tokens` is `max_model_len` of vLLM and SGLang; only this project's own server has the fields after it.
    """

    model: str | None = None
    dialect: Dialect = UNKNOWN
    context_tokens: int | None = None
    image_tokens: int | None = None
    image_side: int | None = None
    max_images: int | None = None


def served_from(listing: Any, wanted: str | None = None) -> Served:
    """Read a list of models; an unreadable one gives an empty `Served`."""
    models = listing.get("data") if isinstance(listing, dict) else None
    entries = models if isinstance(models, list) else []
    named = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    entry = next((entry for entry in named if wanted in (None, entry["id"])), {})

    def number(name: str) -> int | None:
        value = entry.get(name)
        return value if isinstance(value, int) and value > 0 else None

    return Served(
        model=wanted or entry.get("id"),
        dialect=dialect_of(entry),
        context_tokens=number("max_model_len"),
        image_tokens=number("image_tokens"),
        image_side=number("image_side"),
        max_images=number("max_images"),
    )
