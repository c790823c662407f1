"""From requests to answers, for as long as the caller is there: a caller that hangs up frees the engine at once."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from llava_demo.callers import caller_of
from llava_demo.chat import ChatRequest, Chunk, Completion
from llava_demo.engines import Engine, completion_of, stream_recorded
from llava_demo.log import AnswerRecord

T = TypeVar("T")

Pieces = AsyncGenerator[tuple[int, Chunk], None]  # of several answers, each with the number of its request


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do `work`, and stop it when the caller hangs up; the body must have been read before.

    Raises:
        ClientDisconnect: the caller has gone; or whatever `work` raises.
    """
    working, watching = asyncio.create_task(work), asyncio.create_task(_hang_up(request))
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        watching.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def pieces_of(engine: Engine, requests: Sequence[ChatRequest], endpoint: str, http: Request) -> Pieces:
    """Ask all `requests`, which came in `http`, at the same time. Closing the generator, or a failure, cancels all.

    Raises:
        DemoError: as `Engine.stream` does.
    """
    pieces: asyncio.Queue[tuple[int, Chunk] | BaseException | None] = asyncio.Queue()

    async def ask(index: int, request: ChatRequest) -> None:
        request = replace(request, caller=caller_of(http))
        async with aclosing(stream_recorded(engine, request, AnswerRecord(endpoint, http.state.id))) as chunks:
            async for chunk in chunks:
                pieces.put_nowait((index, chunk))

    def ended(task: asyncio.Task[None]) -> None:
        pieces.put_nowait(None if task.cancelled() else task.exception())

    tasks = [asyncio.create_task(ask(index, request)) for index, request in enumerate(requests)]
    for task in tasks:
        task.add_done_callback(ended)
    try:
        running = len(tasks)
        while running:
            piece = await pieces.get()
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                running -= 1
            else:
                yield piece
    finally:
        for task in tasks:
            task.cancel()


async def completions_of(pieces: Pieces, count: int) -> list[Completion]:
    """The `count` whole answers. Raises what `pieces_of` raises."""
    chunks: list[list[Chunk]] = [[] for _ in range(count)]
    async with aclosing(pieces):
        async for index, chunk in pieces:
            chunks[index].append(chunk)
    return [completion_of(answer) for answer in chunks]
