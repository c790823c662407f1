"""What the suite for a GPU has done in the process of a side, beside what `measures` asks of every engine."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
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


async def by_the_card(engine: Engine, job: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """`job` for the model card's way on the weights of `engine`, with the attention that torch chooses by itself."""
    with _attention(has_cudnn=True):
        return await job(_plain(engine), *arguments)


async def bare(engine: Engine, label: str, tokens: int, options: dict[str, bool]) -> tuple[float, float]:
    """Seconds to the first token and from one to the next of `generate`; `label` makes the picture.

    `options` are those of `PlainWay.bare`, `has_cudnn`, and `is_again` for an answer that is given for the second time.
    """
    how = options.copy()
    is_again = how.pop("is_again", False)
    with _attention(how.pop("has_cudnn", True)):
        plain, request = _plain(engine), measures.request_of(measures.QUESTION, label, tokens)
        if is_again:
            plain.bare(request)
        return plain.bare(request, **how)


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


async def apart_from_generate(engine: Engine) -> float:
    """How far the log-probabilities of first tokens are from those of `generate` on the same weights, at most."""
    reference, most = GenerateEngine(engine.llava, engine.info, 1), 0.0  # type: ignore[attr-defined]
    for label in ("one", "two", "three"):
        request = measures.request_of(measures.QUESTION, label, 1)
        request = replace(request, sampling=replace(request.sampling, top_logprobs=COMPARED))
        ours, theirs = [(await complete(each, request)).logprobs[0].top for each in (engine, reference)]
        known = {one.token: one.logprob for one in theirs}
        most = max(most, *(abs(one.logprob - known[one.token]) for one in ours if one.token in known))
    await reference.aclose()
    return most


async def batched_with(
    engine: Engine, changes: dict[str, Any], asked: Measuring, max_queue: int
) -> tuple[Crowd, Visits, Newcomer]:
    """A new batched engine on the weights of `engine`, measured and ended."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # memory freed by the previous engine would count as taken
    llava, chats = engine.llava, max(asked.chats)  # type: ignore[attr-defined]
    size, _ = batch_size(llava, chats)
    batched = BatchedEngine(llava, engine.info, max_queue, replace(size, **changes))
    try:
        await measures.crowd(batched, "warm-up", 2, measures.SHORT)
        return (
            await measures.crowd(batched, "crowd", chats, asked.max_tokens),
            await measures.visits(batched, "visits", asked.max_tokens),
            await measures.newcomer(batched, "newcomer", 4 * asked.max_tokens),
        )
    finally:
        await batched.aclose()


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
