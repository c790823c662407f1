"""What another server streams as its answer, event by event, whatever form it has and however it is labelled."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import httpx
from httpx_sse import EventSource

from llava_demo.errors import EngineUnavailable


async def events_of(answer: httpx.Response) -> AsyncGenerator[str, None]:
    """The data of each event: of server-sent events, of JSON lines, or the one JSON of a server that does not stream.

    Raises:
        EngineUnavailable: it is a web page: the address is another program's.
        httpx.HTTPError: the connection broke.
    """
    answer.encoding = "utf-8-sig"  # server-sent events have no other, and may begin with a byte order mark
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
    """One object of JSON, or one on each line."""
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
            else:  # [DONE]; or several events without the blank line that ends each
                for line in event.data.split("\n"):
                    yield line


class _Opened:
    """As much of an `httpx.Response` as httpx_sse 0.4 reads, its first text taken already."""

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
