"""What is measured: questions asked of an engine as an endpoint asks them, and the time until each chunk of text comes.

Knows engines by their `stream` only, so that every figure is what a user sees.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median

from examples.bench.machine import copy_speed, most_bytes
from examples.bench.pictures import picture
from llava_demo.chat import ChatRequest, Message, SamplingParams, Usage
from llava_demo.engines import Engine

QUESTION = "What is in this picture? Name the things and their colours."
FOLLOW_UP = "And which of these things is the largest one?"
ANOTHER = "Is there any text to be read, and if so, what does it say?"
SHORT = 8  # tokens, where only the first one matters
AT_WORK = 12  # tokens that each of the running chats has had before the newcomer comes
RUNNING = 4


@dataclass
class Reply:
    """One answer as it came; times in seconds since it was asked for, CPU seconds of the whole process."""

    started: float = 0.0  # on the clock of `perf_counter`
    started_cpu: float = 0.0
    arrivals: list[float] = field(default_factory=list)  # time of each chunk of text
    first_cpu_s: float = 0.0
    text: str = ""
    usage: Usage = field(default_factory=lambda: Usage(0, 0))

    @property
    def first_s(self) -> float:
        return self.arrivals[0] - self.started


@dataclass(frozen=True)
class First:
    """The time to a first token."""

    seconds: float
    cpu_s: float
    cached_tokens: int = 0


@dataclass(frozen=True)
class Crowd:
    """Chats that all began at once, each with its own picture."""

    seconds: float
    cpu_s: float
    tokens: int  # tokens of all answers
    step_s: float  # the median time between two tokens of a chat
    firsts: tuple[First, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Visits:
    """A picture never seen before, then again by the same user, then by another."""

    new: First
    follow_up: First
    another_user: First


@dataclass(frozen=True)
class Newcomer:
    """What running chats felt when one more came with a new picture, and how long that one waited."""

    step_s: float  # the median time between two tokens of a chat before
    worst_s: float  # the longest such time from then until the newcomer's first token
    first: First

    @property
    def steps(self) -> float:
        """The pause in units of a normal step."""
        return self.worst_s / self.step_s if self.step_s else 0.0


@dataclass(frozen=True)
class Memory:
    """Of the GPU where there is one, else of the machine."""

    most_bytes: int  # peak memory of the process
    bytes_per_s: float  # memory bandwidth of a copy


async def crowd(engine: Engine, label: str, chats: int, max_tokens: int) -> Crowd:
    """All chats at once. `label` makes their pictures: one never used before finds nothing cached."""
    requests = [request_of(QUESTION, f"{label} {chat}", max_tokens) for chat in range(chats)]
    start, start_cpu = time.perf_counter(), time.process_time()
    replies = await asyncio.gather(*(ask(engine, request, Reply()) for request in requests))
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    tokens = sum(reply.usage.completion_tokens for reply in replies)
    texts = tuple(reply.text.strip() for reply in replies)  # transformers' streamer keeps the first word's space
    step_s = _median([gap for reply in replies for gap in _gaps(reply.arrivals)])
    return Crowd(seconds, cpu_s, tokens, step_s, tuple(_first(reply) for reply in replies), texts)


async def visits(engine: Engine, label: str, max_tokens: int) -> Visits:
    request = request_of(QUESTION, label, max_tokens)
    reply = await ask(engine, request, Reply())
    history = (*request.messages, Message("assistant", reply.text), Message("user", FOLLOW_UP))
    follow_up = await ask(engine, ChatRequest(history, replace(request.sampling, max_tokens=SHORT)), Reply())
    another = await ask(engine, request_of(ANOTHER, label, SHORT), Reply())
    return Visits(_first(reply), _first(follow_up), _first(another))


async def newcomer(engine: Engine, label: str, max_tokens: int, running: int = RUNNING) -> Newcomer:
    """One more chat comes when `running` are at work, or, where an engine lets fewer run, when the first has ended."""
    replies = [Reply() for _ in range(running)]
    is_time = asyncio.Event()

    def look() -> None:
        if all(len(reply.arrivals) >= AT_WORK for reply in replies):
            is_time.set()

    async with asyncio.TaskGroup() as group:
        for chat, reply in enumerate(replies):
            task = group.create_task(ask(engine, request_of(QUESTION, f"{label} {chat}", max_tokens), reply, look))
            task.add_done_callback(lambda _: is_time.set())
        late = request_of(QUESTION, f"{label} late", SHORT)
        await is_time.wait()
        before = [gap for reply in replies for gap in _gaps(reply.arrivals[-AT_WORK:])]
        came = await ask(engine, late, Reply())
    after = [gap for reply in replies for gap in _gaps(reply.arrivals, came.started, came.arrivals[0])]
    return Newcomer(_median(before), max(after, default=0.0), _first(came))


async def memory(engine: Engine) -> Memory:  # noqa: ARG001, all jobs are alike
    """The most bytes that this process has held so far, and after that how fast memory is."""
    return Memory(most_bytes(), copy_speed())


def request_of(question: str, label: str, max_tokens: int) -> ChatRequest:
    """A question about the picture that `label` makes."""
    message = Message("user", question, (picture(label),))
    return ChatRequest((message,), SamplingParams(temperature=0, max_tokens=max_tokens))


async def ask(engine: Engine, request: ChatRequest, reply: Reply, look: Callable[[], None] = lambda: None) -> Reply:
    """The answer, noted in `reply` as it comes; `look` is called after each piece of it."""
    reply.started, reply.started_cpu = time.perf_counter(), time.process_time()
    async with aclosing(engine.stream(request)) as chunks:
        async for chunk in chunks:
            if chunk.text:
                reply.arrivals.append(time.perf_counter())
                reply.first_cpu_s = reply.first_cpu_s or time.process_time() - reply.started_cpu
                reply.text += chunk.text
                look()
            reply.usage = chunk.usage or reply.usage
    if not reply.arrivals:  # an answer without any text has its first token at its end
        reply.arrivals.append(time.perf_counter())
        reply.first_cpu_s = time.process_time() - reply.started_cpu
    return reply


def _median(gaps: Sequence[float]) -> float:
    return median(gaps) if gaps else 0.0  # answers of one piece have none


def _first(reply: Reply) -> First:
    return First(reply.first_s, reply.first_cpu_s, reply.usage.cached_tokens)


def _gaps(arrivals: Sequence[float], begin: float = 0.0, end: float = float("inf")) -> list[float]:
    """The times between one arrival and the next, of those that touch the time from `begin` to `end`."""
    return [later - earlier for earlier, later in pairwise(arrivals) if later > begin and earlier < end]
