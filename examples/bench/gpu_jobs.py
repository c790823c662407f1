"""What the suite for a GPU has done in the process of a side, beside what `measures` asks of every engine."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from threading import Thread
from typing import Any

import torch
from torch.profiler import profile, schedule, supported_activities

from examples.bench import measures
from examples.bench.measures import Crowd, Newcomer, Visits
from examples.bench.plain import PlainWay
from examples.bench.run import Measuring
from examples.bench.side import on_the_cpu
from llava_demo.engines import Engine, complete
from llava_demo.engines.batched.engine import BatchedEngine
from llava_demo.engines.batched.memory import batch_size
from llava_demo.engines.generate import GenerateEngine
from llava_demo.settings import Settings

COMPARED = 5  # likeliest tokens, as many as one may ask for
SHORT_TURN_S = 1e-4


@dataclass(frozen=True)
class Work:
    """What a step asks of a GPU, on average; all 0 where there is none."""

    kernels: float
    launches: float  # calls to CUDA that start a kernel or a graph
    kernel_s: float

    def beyond(self, other: "Work", steps: int) -> "Work":
        """What each of `steps` steps took that this one has beyond the other."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Work(*((one - less) / steps for one, less in pairs))


@dataclass(frozen=True)
class Way:
    """A way to call `generate`: as the model card's way does it, but for one thing."""

    is_fresh_thread: bool = False  # else the thread that runs the event loop
    is_again: bool = False  # the same answer for the second time in its thread
    has_streamer: bool = False
    has_cudnn: bool = True  # whether torch may choose cuDNN's attention


async def by_the_card(engine: Engine, job: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """`job` for the model card's way on the weights of `engine`, with the attention that torch chooses by itself."""
    with _attention(has_cudnn=True):
        return await job(_plain(engine), *arguments)


async def in_short_turns(engine: Engine, label: str, tokens: int) -> float:
    """Seconds from one token to the next of the model card's way, with threads that wait for each other SHORT_TURN_S.

    By itself Python lets a thread wait 5 ms for another one that is at work in Python.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SHORT_TURN_S)
    try:
        crowd: Crowd = await by_the_card(engine, measures.crowd, label, 1, tokens)
    finally:
        sys.setswitchinterval(before)
    return crowd.step_s


async def bare(engine: Engine, label: str, tokens: int, way: Way) -> tuple[float, float]:
    """Seconds to the first token and from one to the next of `generate`; `label` makes the picture."""
    plain, request = _plain(engine), measures.request_of(measures.QUESTION, label, tokens)
    found: list[tuple[float, float]] = []

    def ask() -> None:
        found.extend(plain.bare(request, way.has_streamer) for _ in range(1 + way.is_again))

    with _attention(way.has_cudnn):
        if way.is_fresh_thread:
            thread = Thread(target=ask)
            thread.start()
            thread.join()
        else:
            ask()
    return found[-1]


async def work_of_generate(engine: Engine, tokens: int) -> Work:
    """What a step of bare `generate` asks of the GPU."""
    with _attention(has_cudnn=True):
        counted = []
        for count in (1, 1 + tokens):
            request = measures.request_of(measures.QUESTION, "work", count)
            _plain(engine).bare(request)  # warm-up
            with watching() as profiler:
                profiler.step()
                _plain(engine).bare(request)
            counted.append(work_of(profiler, 1))
        return counted[1].beyond(counted[0], tokens)


async def work(engine: Engine, label: str, chats: int, steps: int) -> Work:
    """What is done for some steps of `chats` chats, once all of them decode."""
    replies, profiler = [measures.Reply() for _ in range(chats)], watching()
    is_time, is_over = asyncio.Event(), asyncio.Event()

    def look() -> None:
        arrived = min(len(reply.arrivals) for reply in replies)
        if arrived >= measures.AT_WORK:
            is_time.set()
        if arrived >= measures.AT_WORK + steps:
            is_over.set()

    def ended(_: object) -> None:  # an engine may let fewer run
        is_time.set()
        is_over.set()

    async with asyncio.TaskGroup() as group:
        for chat, reply in enumerate(replies):
            request = measures.request_of(measures.QUESTION, f"{label} {chat}", measures.AT_WORK + 2 * steps)
            group.create_task(measures.ask(engine, request, reply, look)).add_done_callback(ended)
        with profiler:
            await is_time.wait()
            before = len(replies[0].arrivals)
            profiler.step()  # from here on
            await is_over.wait()
            after = len(replies[0].arrivals)
    return work_of(profiler, max(1, after - before))


def watching() -> profile:
    """A profiler of all threads' work on a GPU, that is ready at once, and watches from its `step` on."""
    return profile(activities=supported_activities(), schedule=schedule(wait=0, warmup=1, active=1))


def work_of(profiler: profile, steps: int) -> Work:
    """What was watched, for each of `steps` steps."""
    events = profiler.key_averages()
    kernels = [event for event in events if event.device_type.name == "CUDA"]
    launches = [event for event in events if event.key.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch"))]
    seconds = sum(event.self_device_time_total for event in kernels) / 1e6
    return Work(*(total / steps for total in (sum(e.count for e in kernels), sum(e.count for e in launches), seconds)))


async def equal_to_a_cpu(engine: Engine, settings: Settings, chats: int, tokens: int) -> tuple[int, int]:
    """How many answers are those of the model card's way on a CPU, and how many there were."""
    theirs = await measures.crowd(on_the_cpu(settings), "answers", chats, tokens)
    ours = await measures.crowd(engine, "answers", chats, tokens)
    return sum(one == other for one, other in zip(ours.texts, theirs.texts, strict=True)), chats


async def apart_from_generate(engine: Engine, chats: int) -> float:
    """How far log-probabilities are from those of `generate` on the same weights, at most.

    `chats` are answered at once, and then one by one by `generate`; an answer counts as far as its tokens are the same.
    """
    requests = [measures.request_of(measures.QUESTION, f"apart {chat}", measures.SHORT) for chat in range(chats)]
    requests = [replace(one, sampling=replace(one.sampling, top_logprobs=COMPARED)) for one in requests]
    reference, most = GenerateEngine(engine.llava, engine.info, 1), 0.0  # type: ignore[attr-defined]
    for request, ours in zip(requests, await asyncio.gather(*(complete(engine, one) for one in requests)), strict=True):
        for mine, right in zip(ours.logprobs, (await complete(reference, request)).logprobs, strict=True):
            known = {one.token: one.logprob for one in right.top}
            most = max(most, *(abs(one.logprob - known[one.token]) for one in mine.top if one.token in known))
            if mine.token != right.token:
                break
    await reference.aclose()
    return most


async def batched_with(
    engine: Engine, changes: dict[str, Any], asked: Measuring, max_queue: int
) -> tuple[Crowd, Visits, Newcomer]:
    """A new batched engine on the weights of `engine`, measured and ended.

    `changes` are fields of its `BatchSize`, and `has_graphs`: without them the same kernels are called one by one.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # memory freed by the previous engine would count as taken
    llava, chats = engine.llava, max(asked.chats)  # type: ignore[attr-defined]
    fields = changes.copy()
    has_graphs, (size, _) = fields.pop("has_graphs", True), batch_size(llava, chats)
    batched = BatchedEngine(llava, engine.info, max_queue, replace(size, **fields))
    batch = batched.batch
    if not has_graphs and batch.decode is not None:
        attend, batch.decode = batch.decode.attend, batch.decode_steps()
        batch.decode.attend = attend
    try:
        await measures.crowd(batched, "warm-up", 2, measures.SHORT)
        return (
            await measures.crowd(batched, "crowd", chats, asked.max_tokens),
            await measures.visits(batched, "visits", asked.max_tokens),
            await measures.newcomer(batched, "newcomer", 4 * asked.max_tokens),
        )
    finally:
        await batched.aclose()
        batch.close()


def _plain(engine: Engine) -> PlainWay:
    return PlainWay(engine.llava, engine.info)  # type: ignore[attr-defined]


@contextmanager
def _attention(has_cudnn: bool) -> Iterator[None]:
    """Whether torch may choose cuDNN's attention, as it does by itself and not once a model of ours is loaded."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(has_cudnn)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
