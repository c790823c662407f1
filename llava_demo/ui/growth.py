"""An answer as it grows, for endpoints that show the whole text anew at each update: the page and its API."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

import gradio as gr
from gradio.context import LocalContext

from llava_demo.callers import caller_of
from llava_demo.chat import ChatRequest
from llava_demo.engines import Engine, stream_recorded
from llava_demo.log import AnswerRecord

UPDATE_S = 0.1  # a page with six turns and four pictures takes 79 updates/s in all; more per stream shows nothing


@dataclass(frozen=True)
class Growth:
    """The answer up to now, "" before its first word."""

    text: str
    measured: AnswerRecord
    is_whole: bool = False


async def growing_answer(engine: Engine, request: ChatRequest, endpoint: str) -> AsyncGenerator[Growth, None]:
    """Ask the engine; closing the generator cancels the work. Raises what `Engine.stream` raises.

    Yields:
        About ten times a second while text comes, twice a second while none does (so that Gradio, which looks only
        then, notices a caller that has gone), and exactly one whole answer, the last.
    """
    request = replace(request, caller=_caller())
    text, yielded_at, record = "", 0.0, AnswerRecord(endpoint)
    async with aclosing(stream_recorded(engine, request, record)) as chunks:
        async for chunk in chunks:
            text += chunk.text
            is_due = time.monotonic() - yielded_at >= UPDATE_S
            if chunk.finish_reason or not chunk.text or is_due:
                yielded_at = time.monotonic()
                yield Growth(text, record, chunk.finish_reason is not None)


def _caller() -> str:
    """The caller of the Gradio event that is handled: its login, which others may share, and its address."""
    event: gr.Request | None = LocalContext.request.get(None)
    if event is None:
        return ""
    address = caller_of(event.request)
    return f"{event.username} at {address}" if event.username else address


def numbers_of(measured: AnswerRecord) -> str:
    """The quiet line under a finished answer: its tokens, the wait for the first, and the speed after it."""
    if measured.usage is None or measured.first_token_s is None:
        return "No words"
    tokens = measured.usage.completion_tokens
    words = [f"{tokens:,} token{'s' * (tokens != 1)}", f"first after {measured.first_token_s:.2f} s"]
    writing_s = measured.total_s - measured.first_token_s
    if tokens > 1 and writing_s > 0:
        words.append(f"{(tokens - 1) / writing_s:.0f} tokens/s")
    if measured.finish_reason == "length":
        words.append("cut at max tokens")
    return " · ".join(words)
