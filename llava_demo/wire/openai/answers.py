"""OpenAI's answers, to and from our values: a `chat.completion`, or the `chat.completion.chunk`s of a stream."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llava_demo.chat import Chunk, Completion, FinishReason, TokenLogprob, Usage

LEAST_LOGPROB = -9999.0  # as OpenAI writes "impossible"; JSON knows no infinity


@dataclass(frozen=True)
class Head:
    """What every part of one answer repeats. Its methods write the parts; choices are counted from 0."""

    id: str  # "chatcmpl-..."
    model: str
    created: int  # seconds since 1970

    def completion(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The whole answer, one choice for each completion."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": completion.text, "refusal": None},
                "logprobs": _logprobs_json(completion.logprobs),
                "finish_reason": completion.finish_reason,
            }
            for index, completion in enumerate(completions)
        ]
        usage = _usage_json([completion.usage for completion in completions])
        return self._object("chat.completion", choices) | {"usage": usage}

    def first(self, index: int) -> dict[str, Any]:
        """The event before all text: whose words follow."""
        return self._event(index, {"role": "assistant", "content": "", "refusal": None})

    def events(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        """The events of one chunk: its text, and why it is the last one; none for a heart-beat."""
        events = []
        if chunk.text or chunk.logprobs:
            events.append(self._event(index, {"content": chunk.text}, _logprobs_json(chunk.logprobs)))
        if chunk.finish_reason:
            events.append(self._event(index, {}, finish_reason=chunk.finish_reason))
        return events

    def last(self, usages: Sequence[Usage]) -> dict[str, Any]:
        """The event with the token counts of all choices, which has no choice itself."""
        return self._object("chat.completion.chunk", []) | {"usage": _usage_json(usages)}

    def _event(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: FinishReason | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._object("chat.completion.chunk", [choice])

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
            "choices": choices,
        }


def chunk_from(event: dict[str, Any]) -> Chunk:
    """Read the first choice of a stream's event; `Chunk()` where it says nothing new, as the first one does.

    Servers send the finish reason and the usage in two events, so a chunk made here may have one without the other:
    who reads a stream joins them.

    Raises:
        ValueError: it is no `chat.completion.chunk`.
    """
    with _form_of("chat.completion.chunk"):
        choices = event["choices"]
        choice = choices[0] if choices else {}
        text = choice.get("delta", {}).get("content") or ""
        return Chunk(text, _finish_reason(choice), _usage_from(event), _logprobs_from(choice.get("logprobs")))


@contextmanager
def _form_of(kind: str) -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not of the form of a {kind}") from error


def _finish_reason(choice: dict[str, Any]) -> FinishReason | None:
    reason = choice.get("finish_reason")
    return None if reason is None else "length" if reason == "length" else "stop"  # content_filter and others: it ended


def _usage_json(usages: Sequence[Usage]) -> dict[str, Any]:
    """The counts of one prompt, asked once, and all its answers."""
    prompt, completion = usages[0].prompt_tokens, sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usages[0].cached_tokens},
    }


def _usage_from(body: dict[str, Any]) -> Usage | None:
    usage = body.get("usage")
    if not usage:
        return None
    details = usage.get("prompt_tokens_details") or {}
    return Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]), int(details.get("cached_tokens") or 0))


def _logprobs_json(logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if not logprobs:
        return None
    content = [_logprob_json(token) | {"top_logprobs": [_logprob_json(top) for top in token.top]} for token in logprobs]
    return {"content": content, "refusal": None}


def _logprob_json(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": max(token.logprob, LEAST_LOGPROB), "bytes": list(token.token.encode())}


def _logprobs_from(logprobs: dict[str, Any] | None) -> tuple[TokenLogprob, ...]:
    content = (logprobs or {}).get("content") or ()
    return tuple(
        TokenLogprob(
            token["token"],
            float(token["logprob"]),
            tuple(TokenLogprob(top["token"], float(top["logprob"])) for top in token.get("top_logprobs") or ()),
        )
        for token in content
    )
