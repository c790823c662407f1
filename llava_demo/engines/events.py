"""Reads the events of another server's answer, in whichever form it streams and whatever its content type says."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import httpx
from httpx_sse import EventSource

from llava_demo.errors import EngineUnavailable


async def events_of(answer: httpx.Response) -> AsyncGenerator[str, None]:
    """The data of each event: server-sent events, JSON lines, or one JSON object from a server that does not stream.

    Raises:
        EngineUnavailable: the answer is a web page, so the address belongs to another program.
        httpx.HTTPError: the connection broke.
    """
    answer.encoding = "utf-8-sig"  # server-sent events are always UTF-8, and may begin with a byte order mark
    texts, start = answer.aiter_text(), ""
    async for text in texts:
        start += text
        if start.strip():
            break
    first = start.lstrip()[:1]
    if first == "<":
        raise EngineUnavailable("The model's server answers with a web page; is --remote-url right?")
    async with aclosing((_objects if first == "{" else _server_sent)(start, texts)) as events:
        async for event in events:
            yield event


async def _objects(start: str, rest: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    """One JSON object, or one per line."""
    held = start
    async for text in rest:
        held += text
        while "\n" in held and _is_json(held.partition("\n")[0]):
            line, _, held = held.partition("\n")
            yield line
    for line in [held] if _is_json(held) else held.split("\n"):
        yield line


async def _server_sent(start: str, rest: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    async with aclosing(EventSource(cast(httpx.Response, _Opened(start, rest))).aiter_sse()) as events:
        async for event in events:
            if _is_json(event.data):
                yield event.data
            elif event.event == "error":
                yield json.dumps({"error": event.data})
            else:  # [DONE]; or several events that lack the blank lines between them
                for line in event.data.split("\n"):
                    yield line


class _Opened:
    """The part of an `httpx.Response` that httpx_sse 0.4 reads; the text before `rest` was read already."""

    def __init__(self, start: str, rest: AsyncIterator[str]) -> None:
        self._start, self._rest = start, rest
        self.headers = {"content-type": "text/event-stream"}

    async def aiter_text(self) -> AsyncIterator[str]:
        yield self._start
        async for text in self._rest:
            yield text
        yield "\n\n"  # not every server ends its last event


def _is_json(text: str) -> bool:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list)
