"""A growing answer for the page and its API, where each update shows the whole text."""

import time

import gradio as gr
from gradio.context import LocalContext
from starlette.requests import HTTPConnection

from llava_demo.callers import caller_of
from llava_demo.chat import Chunk
from llava_demo.metrics import AnswerRecord

# At most ten updates/s, with the question's and the last one; a page with six turns and four pictures manages 79.
UPDATE_S = 0.125
_ONE_PIECE_S = 0.005  # an answer that was written in less came in one piece, whose speed nobody knows


class Growth:
    """The text of an answer so far, and whether it is time to show it again."""

    def __init__(self, record: AnswerRecord, begun: str = "") -> None:
        """`begun` is the beginning of an answer that is continued."""
        self.text, self.record = begun, record
        self._pieces = 0
        self._shown_at = 0.0

    def takes(self, chunk: Chunk) -> bool:
        """Add a chunk; returns whether to yield the text now.

        True about eight times a second while text comes, for each heartbeat, since Gradio notices a disconnected caller
        only when something is yielded, and for the last chunk.
        """
        self.text += chunk.text
        self._pieces += bool(chunk.text)
        now = time.monotonic()
        is_due = not chunk.text or chunk.finish_reason is not None or now - self._shown_at >= UPDATE_S
        self._shown_at = now if is_due else self._shown_at
        return is_due

    @property
    def has_new_text(self) -> bool:
        return self._pieces > 0

    @property
    def tokens_per_s(self) -> float:
        """An estimate: most chunks have one token. 0 until it can be told."""
        writing_s = self.record.total_s - (self.record.first_token_s or 0)
        return (self._pieces - 1) / writing_s if self._pieces > 4 and writing_s > 0 else 0


def caller_of_event() -> str:
    """The caller of the current Gradio event: its login, which others may share, and its address."""
    event: gr.Request | None = LocalContext.request.get(None)
    if event is None:
        return ""
    address = caller_of(event.request)
    return f"{event.username} at {address}" if event.username else address


def request_of_event() -> HTTPConnection | None:
    """The HTTP request of the current Gradio event."""
    event: gr.Request | None = LocalContext.request.get(None)
    return event and event.request


def numbers_of(measured: AnswerRecord, context_tokens: int) -> str:
    """The line below a finished answer: its tokens, the wait for the first one, the speed, and what cut it."""
    if measured.usage is None or measured.first_token_s is None:
        return "No words"
    tokens = measured.usage.completion_tokens
    words = [f"{tokens:,} token{'s' * (tokens != 1)}", f"first after {measured.first_token_s:.2f} s"]
    writing_s = measured.total_s - measured.first_token_s
    if tokens > 1 and writing_s > _ONE_PIECE_S:
        words.append(f"{(tokens - 1) / writing_s:.0f} tokens/s")
    if measured.finish_reason == "length":
        is_full = measured.usage.total_tokens >= context_tokens
        words.append("cut at the end of the context" if is_full else "cut at max tokens")
    return " · ".join(words)
