"""`AnswerReader`: the server-sent events of one streamed answer, read into chunks. It opens no connection."""

import json
from typing import Any

from llava_demo.chat import Chunk, FinishReason, Usage
from llava_demo.errors import GenerationFailed
from llava_demo.wire.openai.answers import chunk_from
from llava_demo.wire.openai.failures import error_from


class AnswerReader:
    """One answer, event by event; servers send its end and its token counts in one event or in two."""

    def __init__(self) -> None:
        self._finish_reason: FinishReason | None = None
        self._usage: Usage | None = None
        self._pieces = 0  # with text
        self.is_done = False  # `[DONE]` came

    def chunk_from(self, data: str) -> Chunk:
        """The text of one event's data, and its log-probabilities; never the last chunk.

        Raises:
            DemoError: the event is an error, or nothing that can be read.
        """
        if data.strip() == "[DONE]":
            self.is_done = True
            return Chunk()
        event = _event_from(data)
        try:
            chunk = chunk_from(event)
        except ValueError as error:
            raise GenerationFailed("The model's server sent what cannot be read.") from error
        self._finish_reason = chunk.finish_reason or self._finish_reason
        self._usage = chunk.usage or self._usage
        text = chunk.text
        if not self._pieces:
            text = text.removeprefix(" ")  # that many vocabularies put before a first word; not every server drops it
        self._pieces += bool(text)
        return Chunk(text, logprobs=chunk.logprobs)

    def last_chunk(self) -> Chunk:
        """The chunk that ends the answer, when the stream has ended.

        Raises:
            GenerationFailed: the stream ended before the answer did.
        """
        if self._finish_reason is None:
            raise GenerationFailed("The answer broke off: the server that wrote it is gone. Please try again.")
        # A server that counts nothing still sent about one token in each piece.
        return Chunk(finish_reason=self._finish_reason, usage=self._usage or Usage(0, self._pieces))


def _event_from(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise GenerationFailed("The model's server sent what cannot be read.")
    if "error" in event:
        raise error_from(_status_of(event), event)
    return event


def _status_of(event: dict[str, Any]) -> int:
    """An error within a stream has no status; vLLM writes it as `code`, this server the kind as `type`."""
    error = event["error"] if isinstance(event["error"], dict) else {}
    if isinstance(error.get("code"), int):
        return error["code"]
    return 400 if error.get("type") == "invalid_request_error" else 500
