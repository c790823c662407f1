"""OpenAI's chat completions as a client sends and reads them, for any server that speaks them. It opens no connection.

Source: https://platform.openai.com/docs/api-reference/chat, and what vLLM, SGLang, TGI and `transformers serve` make
of it. Knobs that OpenAI lacks go by the names that vLLM and SGLang gave them, which are ours too.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llava_demo.chat import KNOBS, ChatRequest, Chunk, FinishReason, Message, SamplingParams, TokenLogprob, Usage
from llava_demo.errors import (
    DemoError,
    EngineBusy,
    EngineUnavailable,
    GenerationFailed,
    InvalidRequest,
    PromptTooLong,
)
from llava_demo.images import Image

UrlOf = Callable[[Image], str]  # a picture as a data URL

_ALWAYS_SENT = ("temperature", "top_p", "max_tokens")
_FINISHES: dict[str, FinishReason] = {"length": "length", "stop": "stop", "eos_token": "stop", "stop_sequence": "stop"}
_LONGEST_QUOTE = 400


@dataclass(frozen=True)
class Served:
    """What a server tells about its first model, or about the one that is wanted. None where it does not tell.

    The last three are fields of this project's own server; the context's is vLLM's and SGLang's too.
    """

    model: str | None = None
    context_tokens: int | None = None
    image_tokens: int | None = None
    image_side: int | None = None
    max_images: int | None = None


def served_from(listing: Any, wanted: str | None = None) -> Served:
    """Read the answer of `GET /v1/models`, whatever it is; a listing that cannot be read tells nothing."""
    models = listing.get("data") if isinstance(listing, dict) else None
    entries = [entry for entry in models or () if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    entry = next((entry for entry in entries if wanted in (None, entry["id"])), {})

    def number(name: str) -> int | None:
        value = entry.get(name)
        return value if isinstance(value, int) and value > 0 else None

    return Served(
        model=wanted or entry.get("id"),
        context_tokens=number("max_model_len"),
        image_tokens=number("image_tokens"),
        image_side=number("image_side"),
        max_images=number("max_images"),
    )


def body_of(request: ChatRequest, model: str | None, url_of: UrlOf) -> dict[str, Any]:
    """The request as JSON for `POST /v1/chat/completions`, streamed, with its token counts asked for.

    Knobs beyond OpenAI's are sent only where they are not neutral: `transformers serve` refuses fields that it does not
    know, and so does a caller hear that its knob has no effect there.

    Raises:
        InvalidRequest: a raw prompt, which this interface has no place for.
    """
    if request.is_raw:
        raise InvalidRequest("Raw prompts are not taken here: the server that answers takes conversations only.", "raw")
    sampling, neutral = request.sampling, SamplingParams()
    knobs = {name: getattr(sampling, name) for name in KNOBS}
    extra = {
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "logprobs": sampling.top_logprobs is not None or None,
        "top_logprobs": sampling.top_logprobs,
        "model": model,
    }
    return {
        "messages": [_message_of(message, url_of) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **{name: v for name, v in knobs.items() if name in _ALWAYS_SENT or v != getattr(neutral, name)},
        **{name: value for name, value in extra.items() if value is not None},
    }


def error_of(status: int, body: bytes) -> DemoError:
    """What an HTTP status and its body mean to whoever asked the question."""
    try:
        payload = json.loads(body)
    except ValueError:
        payload = None
    words, code = _complaint_in(payload)
    if status in (401, 403):
        return EngineUnavailable("The server that answers refuses this one's key; see --remote-key.")
    if status == 404:
        return EngineUnavailable("The server that answers does not know the model, or is no chat server.")
    if status == 429 or code == EngineBusy.code:
        return EngineBusy("Every server that could answer is busy; try again in a few seconds.")
    if status >= 500:
        return EngineUnavailable(f"The server that answers failed (HTTP {status}); try again in a few seconds.")
    return _refusal(words, code)


class AnswerReader:
    """The events of one streamed answer, read into chunks."""

    def __init__(self) -> None:
        self._finish_reason: FinishReason | None = None
        self._usage: Usage | None = None
        self._pieces = 0  # with text
        self.is_done = False  # `[DONE]` came

    def chunk_from(self, data: str) -> Chunk:
        """Read the data of one server-sent event; the chunk has no text where the event has none.

        Raises:
            InvalidRequest, EngineUnavailable, GenerationFailed: the event is an error, or nothing that can be read.
        """
        if data.strip() == "[DONE]":
            self.is_done = True
            return Chunk()
        try:
            event = json.loads(data)
        except ValueError:
            raise GenerationFailed("The server that answers sent what cannot be read.") from None
        if not isinstance(event, dict) or "error" in event:
            raise _event_error(event)
        usage = event.get("usage")
        if isinstance(usage, dict):
            details = usage.get("prompt_tokens_details") or {}
            self._usage = Usage(
                usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0, details.get("cached_tokens") or 0
            )
        choices = event.get("choices") or ()
        return self._chunk_from(choices[0]) if choices else Chunk()

    def last_chunk(self) -> Chunk:
        """The chunk that ends the answer, when the stream has ended.

        Raises:
            GenerationFailed: the stream ended before the answer did.
        """
        if self._finish_reason is None:
            raise GenerationFailed("The answer broke off: the server that wrote it is gone. Please try again.")
        # A server that counts nothing still sent about one token in each piece.
        return Chunk(finish_reason=self._finish_reason, usage=self._usage or Usage(0, self._pieces))

    def _chunk_from(self, choice: dict[str, Any]) -> Chunk:
        reason = choice.get("finish_reason")
        if reason is not None:
            if reason not in _FINISHES:
                raise GenerationFailed("The server that answers gave the answer up; please try again.")
            self._finish_reason = _FINISHES[reason]
        text = (choice.get("delta") or {}).get("content") or ""
        if not self._pieces:
            text = text.removeprefix(" ")  # that many vocabularies put before a first word; not every server drops it
        self._pieces += bool(text)
        entries = (choice.get("logprobs") or {}).get("content") or ()
        return Chunk(text, logprobs=tuple(map(_logprob_from, entries)))


def _message_of(message: Message, url_of: UrlOf) -> dict[str, Any]:
    if not message.images:
        return {"role": message.role, "content": message.text}
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url_of(image)}} for image in message.images
    ]
    if message.text:
        parts.append({"type": "text", "text": message.text})
    return {"role": message.role, "content": parts}


def _logprob_from(entry: dict[str, Any]) -> TokenLogprob:
    top = tuple(TokenLogprob(other["token"], other["logprob"]) for other in entry.get("top_logprobs") or ())
    return TokenLogprob(entry["token"], entry["logprob"], top)


def _complaint_in(payload: Any) -> tuple[str, str]:
    """The words and the code of an error: OpenAI's `{"error": {...}}`, vLLM's `{"message"}`, FastAPI's `{"detail"}`."""
    if not isinstance(payload, dict):
        return "", ""
    error = payload.get("error", payload)
    if not isinstance(error, dict):
        return str(error), ""
    words = error.get("message") or error.get("detail") or ""
    return (words if isinstance(words, str) else json.dumps(words)), str(error.get("code") or "")


def _refusal(words: str, code: str) -> InvalidRequest:
    said = words if len(words) <= _LONGEST_QUOTE else words[:_LONGEST_QUOTE] + "…"
    said = said or "no reason given"
    is_too_long = code == PromptTooLong.code or "maximum context length" in words  # vLLM's words
    kind = PromptTooLong if is_too_long else InvalidRequest
    return kind(f"The server that answers refused the question: {said}")


def _event_error(event: Any) -> DemoError:
    words, code = _complaint_in(event)
    if code == PromptTooLong.code or code.startswith("invalid_"):
        return _refusal(words, code)
    if code in (EngineBusy.code, EngineUnavailable.code):
        return EngineUnavailable("The server that answers cannot answer now; try again in a few seconds.")
    return GenerationFailed("The server that answers failed while it answered; please try again.")
