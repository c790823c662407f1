"""The batched engine's manners: how answers end, how failures are told, who waits, and that nothing is left behind.

What it says is compared with `generate` in test_engines_agree.py.
"""

import asyncio
import gc
import math
import random
import threading
import weakref
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CONTEXT, ON_CPU, batched_engine_of
from test_generate import PATIENCE_S, Gate, answer, failing, request, started, until
from test_llava import picture

from llava_demo.chat import Chunk, Completion, Message
from llava_demo.engines import complete
from llava_demo.engines.batched import engine as batched
from llava_demo.engines.batched.batch import Batch
from llava_demo.engines.batched.engine import BatchedEngine
from llava_demo.engines.detokenizer import Detokenizer
from llava_demo.engines.jobs import Job
from llava_demo.engines.sampler import Draw
from llava_demo.errors import EngineBusy, EngineUnavailable, GenerationFailed, InvalidRequest, PromptTooLong
from llava_demo.model import MINIATURE, native
from llava_demo.model.image_tokens import Prompt
from llava_demo.model.llava import Llava

LONG = {"max_tokens": 900}


def with_picture(number: int, words: str = "what is this, and where in the picture?") -> tuple[Message, ...]:
    return (Message("user", words, (picture(number),)),)


@pytest.fixture
def gate(tiny_batched: BatchedEngine) -> Iterator[Gate]:
    gate = Gate()
    hook = tiny_batched.batch.model.register_forward_pre_hook(gate)
    yield gate
    gate.open()
    hook.remove()


def is_idle(engine: BatchedEngine) -> bool:
    load = engine.status()
    return (load.running, load.waiting, engine.images.holders) == (0, 0, 0)


def openmp_threads() -> int:
    """The threads of this process that Python does not know, more or less."""
    known = {thread.native_id for thread in threading.enumerate()}
    return sum(int(thread.name) not in known for thread in Path("/proc/self/task").iterdir())


@pytest.mark.skipif(native.library() is None, reason="torch has another OpenMP")
def test_only_the_thread_that_runs_the_model_keeps_openmp_threads(
    tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more of them than cores in a process, each product of a step begins with a thread that wakes up."""

    def compute(*_: Any) -> None:
        torch.ones(2**20) + 1

    processor = type(tiny_llava.processor.image_processor)
    prepare = processor.preprocess  # some of transformers' compute in torch
    monkeypatch.setattr(processor, "preprocess", lambda *images, **how: compute() or prepare(*images, **how))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    native.release_threads()  # those that this thread has had from other tests
    before = openmp_threads()
    compute()
    assert openmp_threads() == before + 2
    engine = batched_engine_of(tiny_llava)
    assert openmp_threads() == before
    answer(engine, with_picture(1), max_tokens=2)
    engine.seen(picture(1))
    assert openmp_threads() <= before + 2
    asyncio.run(engine.aclose())
    torch.set_num_threads(threads)


# What it says


def test_the_streamed_pieces_are_the_whole_answer(tiny_batched: BatchedEngine) -> None:
    async def chunks() -> list[Chunk]:
        return [chunk async for chunk in tiny_batched.stream(request(max_tokens=60, temperature=1.5, seed=5))]

    said = asyncio.run(chunks())
    assert "".join(chunk.text for chunk in said) == answer(tiny_batched, max_tokens=60, temperature=1.5, seed=5).text
    assert len([chunk for chunk in said if chunk.text]) > 20
    assert [bool(chunk.finish_reason) for chunk in said] == [False] * (len(said) - 1) + [True]
    assert said[-1].usage is not None


def test_an_end_token_ends_the_answer(tiny_llava: Llava) -> None:
    weights = tiny_llava.model.lm_head.weight.data
    before = weights.clone()
    weights[2] = 3 * weights[5:].abs().amax(dim=0)  # now the end token </s> is soon the likeliest
    engine = batched_engine_of(tiny_llava)
    try:
        said = [answer(engine, (Message("user", f"{n}?"),), max_tokens=60) for n in range(6)]
    finally:
        weights.copy_(before)
    ended = [one for one in said if one.finish_reason == "stop"]
    assert ended
    assert all(one.usage.completion_tokens < 60 for one in ended)
    asyncio.run(engine.aclose())


def test_the_same_picture_is_computed_once(tiny_batched: BatchedEngine) -> None:
    """Asked again, by the same person or another: its features and its pages are there."""
    first = answer(tiny_batched, with_picture(1))
    other = answer(tiny_batched, with_picture(1, "what is this, and when?"))
    follow_up = (*with_picture(1), Message("assistant", first.text), Message("user", "why?"))
    third = answer(tiny_batched, follow_up)
    assert [said.usage.cached_tokens for said in (first, other, third)] == [0, 16, 32]
    assert (tiny_batched.images.hits, tiny_batched.images.misses) == (2, 1)
    assert tiny_batched.status().cached_tokens >= 64


def test_of_several_new_pictures_one_is_encoded_between_two_steps(
    tiny_batched: BatchedEngine, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is being answered waits for one picture at a time, and not for those of all newcomers."""
    events: list[str] = []
    features, batch = tiny_batched.llava.features, tiny_batched.batch
    monkeypatch.setattr(tiny_batched.llava, "features", lambda inputs: events.append("picture") or features(inputs))
    hook = batch.model.register_forward_hook(lambda *_: events.append("step"))

    async def scenario() -> None:
        _, first = await started(tiny_batched, max_tokens=30)
        await until(gate.reached.is_set)
        asked = [request(with_picture(number), max_tokens=2) for number in range(50, 54)]
        newcomers = [asyncio.ensure_future(complete(tiny_batched, one)) for one in asked]
        await until(lambda: len(tiny_batched._ready) == len(asked))
        gate.open()
        await asyncio.gather(first, *newcomers)

    asyncio.run(scenario())
    hook.remove()
    assert events.count("picture") == 4
    assert ("picture", "picture") not in list(pairwise(events))


def test_many_who_ask_about_a_new_picture_at_once_have_it_read_once(tiny_batched: BatchedEngine) -> None:
    async def ask_all() -> list[Completion]:
        asked = (request(with_picture(1, f"what is this, and where is number {n}?")) for n in range(8))
        return await asyncio.gather(*(complete(tiny_batched, one) for one in asked))

    cached = [said.usage.cached_tokens for said in asyncio.run(ask_all())]
    assert cached.count(0) == 1
    assert min(cached[1:]) >= 16


def test_a_follow_up_finds_the_pages_of_the_answer_too() -> None:
    """Where its text gives the same tokens again; random weights write what no tokenizer would."""
    engine = batched_engine_of(Llava.load(str(MINIATURE), ON_CPU, is_local=True))
    first = answer(engine, with_picture(1), max_tokens=60)
    turns = (*with_picture(1), Message("assistant", first.text), Message("user", "why?"))
    assert answer(engine, turns).usage.cached_tokens > first.usage.prompt_tokens
    asyncio.run(engine.aclose())


def test_max_tokens_shrinks_to_what_is_left_of_the_context(tiny_batched: BatchedEngine) -> None:
    said = answer(tiny_batched, (Message("user", "é" * 450),), max_tokens=5000)
    assert said.usage.prompt_tokens + said.usage.completion_tokens == CONTEXT
    assert said.finish_reason == "length"


def test_a_prompt_that_does_not_fit_is_refused_before_it_enters(tiny_llava: Llava, tiny_batched: BatchedEngine) -> None:
    with pytest.raises(PromptTooLong, match=r"takes 2,0\d\d tokens \(16 .* for pictures\).*model holds 1,024") as told:
        answer(tiny_batched, (Message("user", "é" * 1000, (picture(0),)),))
    assert not told.value.fits_without_pictures
    with pytest.raises(PromptTooLong) as told:
        answer(tiny_batched, (Message("user", "é" * 495, (picture(0), picture(1))),))
    assert told.value.fits_without_pictures
    small = batched_engine_of(tiny_llava, pages=20)
    with pytest.raises(PromptTooLong, match=r"takes 4\d\d tokens.*the memory of this machine holds 304"):
        answer(small, (Message("user", "é" * 200),))
    assert answer(small, max_tokens=5000).usage.completion_tokens == 304 - 13
    assert is_idle(small)
    asyncio.run(small.aclose())


def test_too_many_pictures_are_refused_with_the_numbers(tiny_batched: BatchedEngine) -> None:
    with pytest.raises(InvalidRequest, match="has 9 pictures; at most 8"):
        answer(tiny_batched, (Message("user", "?", tuple(picture(n) for n in range(9))),))


def test_a_newcomer_is_read_in_chunks_while_others_answer(tiny_batched: BatchedEngine) -> None:
    rows: list[int] = []
    hook = tiny_batched.batch.model.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))

    async def scenario() -> None:
        async with aclosing(tiny_batched.stream(request(max_tokens=300))) as talking:
            async for chunk in talking:
                if chunk.text:
                    break
            await complete(tiny_batched, request((Message("user", "é" * 200),), max_tokens=1))

    asyncio.run(scenario())
    hook.remove()
    chunks = [count for count in rows[1:] if count > 2]
    assert max(chunks) <= tiny_batched.size.chunk + 2
    assert sum(chunks) > 400


def test_after_a_step_ran_out_of_memory_a_prompt_alone_is_read_in_smaller_chunks_too(tiny_llava: Llava) -> None:
    engine, rows = batched_engine_of(tiny_llava, big_chunk=256), list[int]()
    with failing(engine.batch.model, torch.OutOfMemoryError()), pytest.raises(EngineUnavailable):
        answer(engine)
    asyncio.run(until(lambda: engine.status().state == "ready"))
    engine.batch.model.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    assert answer(engine, (Message("user", "é" * 200),)).usage.completion_tokens == 24
    assert max(rows) == 128
    asyncio.run(engine.aclose())


# How it is stopped


def test_hanging_up_frees_pages_and_pictures_within_three_steps(tiny_batched: BatchedEngine, gate: Gate) -> None:
    pages: list[int] = []  # that are held at each step, and whether a picture is
    pictures: list[int] = []

    def look(*_: object) -> None:
        pages.append(tiny_batched.batch.pages.used)
        pictures.append(tiny_batched.images.holders)

    hook = tiny_batched.batch.model.register_forward_pre_hook(look)

    async def scenario() -> None:
        staying, _ = await started(tiny_batched, **LONG)
        gate.let(20)
        async with aclosing(tiny_batched.stream(request(with_picture(1), **LONG))) as leaving:
            async for chunk in leaving:
                if chunk.text:
                    break
        start = len(pages)
        gate.open()
        await until(lambda: len(pages) > start + 4)
        assert pages[start + 3] < pages[start - 1]
        assert pictures[start + 3] == 0
        await staying.aclose()
        await until(lambda: is_idle(tiny_batched))

    asyncio.run(scenario())
    hook.remove()


def test_hanging_up_before_the_first_token_ends_the_work(tiny_batched: BatchedEngine, gate: Gate) -> None:
    async def scenario() -> None:
        _, first = await started(tiny_batched)
        await until(gate.reached.is_set)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.open()
        await until(lambda: is_idle(tiny_batched))
        assert gate.steps <= 3

    asyncio.run(scenario())


def test_hanging_up_in_line_never_reaches_the_model(tiny_llava: Llava) -> None:
    engine = batched_engine_of(tiny_llava, requests=1)
    gate = Gate()
    engine.batch.model.register_forward_pre_hook(gate)

    async def scenario() -> None:
        running, first = await started(engine, max_tokens=5)
        await until(gate.reached.is_set)
        waiting, second = await started(engine)
        assert engine.status().waiting == 1
        assert await second == Chunk()  # the heart-beat
        await waiting.aclose()
        assert (engine.status().running, engine.status().waiting) == (1, 0)
        gate.open()
        await first
        async for _ in running:
            pass
        assert gate.steps == 5

    asyncio.run(scenario())
    asyncio.run(engine.aclose())


def test_a_stream_that_is_closed_before_its_first_step_leaves_nothing(tiny_batched: BatchedEngine) -> None:
    async def scenario() -> None:
        await tiny_batched.stream(request()).aclose()
        assert is_idle(tiny_batched)

    asyncio.run(scenario())


def test_a_loop_that_ends_takes_its_answers_with_it(tiny_batched: BatchedEngine, gate: Gate) -> None:
    async def abandon() -> None:
        await started(tiny_batched, **LONG)
        await until(gate.reached.is_set)

    asyncio.run(abandon())
    gate.open()

    async def freed() -> None:
        await until(lambda: is_idle(tiny_batched))

    asyncio.run(freed())
    assert gate.steps <= 3


def test_200_requests_with_random_hang_ups_leave_nothing(tiny_batched: BatchedEngine) -> None:
    chance = random.Random(3)

    async def ask(number: int) -> None:
        asked = request(with_picture(number % 7), max_tokens=chance.randrange(1, 20))
        async with aclosing(tiny_batched.stream(asked)) as chunks:
            left = chance.randrange(12)
            async for _ in chunks:
                left -= 1
                if left < 0:
                    return

    async def scenario() -> None:
        for start in range(0, 200, 40):
            await asyncio.gather(*(ask(number) for number in range(start, start + 40)))
        await until(lambda: is_idle(tiny_batched))

    def held() -> list[object]:
        gc.collect()
        return [x for x in gc.get_objects() if type(x) in (Job, Draw, Prompt, batched._Chat)]

    before = {id(x): x for x in held()}  # of other engines
    asyncio.run(scenario())
    answer(tiny_batched)  # one more step, in which the last to go let go of their pages
    asyncio.run(
        until(lambda: all(id(x) in before for x in held()))
    )  # the engine's thread may be about to leave its last step
    assert tiny_batched.batch.pages.used == 0


def test_closing_the_engine_ends_what_runs_and_what_waits(tiny_llava: Llava) -> None:
    engine = batched_engine_of(tiny_llava, requests=1)
    gate = Gate()
    engine.batch.model.register_forward_pre_hook(gate)

    async def scenario() -> None:
        _, running = await started(engine)
        await until(gate.reached.is_set)
        _, waiting = await started(engine)
        closing = asyncio.ensure_future(engine.aclose())
        for ended in (running, waiting):
            with pytest.raises(EngineUnavailable, match="shutting down"):
                await ended
        gate.open()
        await closing
        assert (engine.status().state, engine.status().running) == ("failed", 0)
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await complete(engine, request())

    asyncio.run(scenario())


# How it fails


class _Fault(RuntimeError):
    """A defect somewhere below."""


@pytest.mark.parametrize("after", [0, 5])
@pytest.mark.parametrize(
    ("fault", "raised", "words"),
    [
        (_Fault("secret path"), GenerationFailed, "model failed while it answered"),
        (torch.OutOfMemoryError("CUDA out of memory"), EngineUnavailable, "Out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), EngineUnavailable, "Out of memory"),
    ],
)
def test_a_failure_in_a_step_is_told_and_the_engine_answers_again(
    fault: Exception,
    raised: type[Exception],
    words: str,
    after: int,
    tiny_batched: BatchedEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with failing(tiny_batched.batch.model, fault, after), pytest.raises(raised, match=words) as caught:
        answer(tiny_batched)
    assert "secret" not in str(caught.value) + caplog.text
    assert type(fault).__name__ in caplog.text
    assert answer(tiny_batched).usage.completion_tokens == 24
    assert tiny_batched.status().state == "ready"


def test_a_picture_whose_features_are_no_numbers_fails_its_own_request_and_is_forgotten(
    tiny_llava: Llava, tiny_batched: BatchedEngine
) -> None:
    """Neither its neighbours in the batch nor those that come after read what it left in the cache."""
    wanted = [answer(tiny_batched, with_picture(n)).text for n in range(3)]
    engine, is_spoilt = batched_engine_of(tiny_llava), iter([False, True])

    def spoil(_: object, __: object, features: torch.Tensor) -> torch.Tensor | None:
        return features * math.nan if next(is_spoilt, False) else None

    hook = tiny_llava.model.model.multi_modal_projector.register_forward_hook(spoil)

    async def scenario() -> None:
        asked = [complete(engine, request(with_picture(n))) for n in range(3)]
        told = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(told[1], GenerationFailed)
        assert [each.text for each in told[::2] if isinstance(each, Completion)] == wanted[::2]
        assert (await complete(engine, request(with_picture(1)))).text == wanted[1]
        await engine.aclose()

    asyncio.run(scenario())
    hook.remove()


def test_it_starts_again_without_what_the_failed_step_held(
    tiny_batched: BatchedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that was full would be so still."""
    held: list[weakref.ref[torch.Tensor]] = []
    seen: list[torch.Tensor | None] = []

    def fail(*_: object) -> None:
        activations = torch.zeros(1)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError

    def new_batch(*arguments: Any) -> Batch:
        seen.append(held[0]())
        return Batch(*arguments)

    monkeypatch.setattr(batched, "Batch", new_batch)
    tiny_batched.batch.model.register_forward_pre_hook(fail)
    with pytest.raises(EngineUnavailable, match="Out of memory"):
        answer(tiny_batched)
    asyncio.run(until(lambda: tiny_batched.status().state == "ready"))
    assert seen == [None]


def test_while_it_starts_again_it_says_so_and_newcomers_wait(
    tiny_batched: BatchedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_start = threading.Event()

    def slow_batch(*arguments: Any) -> Batch:
        assert may_start.wait(PATIENCE_S)
        return Batch(*arguments)

    monkeypatch.setattr(batched, "Batch", slow_batch)

    async def scenario() -> Completion:
        with failing(tiny_batched.batch.model, _Fault()), pytest.raises(GenerationFailed):
            await complete(tiny_batched, request())
        assert tiny_batched.status().state == "restarting"
        asked = asyncio.ensure_future(complete(tiny_batched, request()))
        await asyncio.sleep(0.1)
        assert not asked.done()
        may_start.set()
        return await asked

    assert asyncio.run(scenario()).usage.completion_tokens == 24
    assert tiny_batched.status().state == "ready"


def test_an_engine_that_cannot_start_again_refuses_in_place_of_hanging(
    tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = batched_engine_of(tiny_llava, requests=1)

    def broken(*_: Any) -> Batch:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(batched, "Batch", broken)

    async def scenario() -> None:
        with failing(engine.batch.model, _Fault()):
            outcomes = await asyncio.gather(*(complete(engine, request()) for _ in range(3)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {GenerationFailed, EngineUnavailable}
        assert engine.status().state == "failed"
        with pytest.raises(EngineUnavailable, match="could not be started again"):
            await complete(engine, request())
        await engine.aclose()

    asyncio.run(scenario())


def test_a_broken_gpu_fails_the_engine_for_good(tiny_llava: Llava) -> None:
    engine = batched_engine_of(tiny_llava)
    fault = torch.AcceleratorError("device-side assert")
    with failing(engine.batch.model, fault), pytest.raises(EngineUnavailable):
        answer(engine)
    assert engine.status().state == "failed"
    with pytest.raises(EngineUnavailable, match="must be restarted"):
        answer(engine)
    asyncio.run(engine.aclose())


@pytest.mark.parametrize("where", ["picture", "features"])
def test_a_picture_that_cannot_be_read_fails_its_own_request_only(
    where: str, tiny_batched: BatchedEngine, tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise _Fault

    monkeypatch.setattr(tiny_llava, where, fail)

    async def scenario() -> None:
        outcomes = await asyncio.gather(
            complete(tiny_batched, request()),
            complete(tiny_batched, request(with_picture(1))),
            complete(tiny_batched, request()),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [Completion, GenerationFailed, Completion]

    asyncio.run(scenario())
    assert is_idle(tiny_batched)


@pytest.mark.parametrize("where", ["add", "end"])
def test_a_text_that_cannot_be_delivered_fails_its_own_request_only(
    where: str, tiny_batched: BatchedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver = getattr(Detokenizer, where)

    def fail(detokenizer: Detokenizer, *token: int) -> str:
        if detokenizer._stop == ("fail here",):
            raise _Fault
        return str(deliver(detokenizer, *token))

    monkeypatch.setattr(Detokenizer, where, fail)

    async def scenario() -> None:
        outcomes = await asyncio.gather(
            complete(tiny_batched, request()),
            complete(tiny_batched, request(stop=["fail here"])),
            complete(tiny_batched, request()),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [Completion, GenerationFailed, Completion]

    asyncio.run(scenario())
    assert is_idle(tiny_batched)


# Who waits


def test_the_queue_is_bounded_and_first_come_first_served(tiny_llava: Llava) -> None:
    engine = batched_engine_of(tiny_llava, max_queue=2, requests=2)
    gate = Gate()
    engine.batch.model.register_forward_pre_hook(gate)
    ended: list[int] = []

    async def ask(number: int) -> None:
        await complete(engine, replace(request(max_tokens=3 + number), caller=f"caller {number}"))
        ended.append(number)

    async def scenario() -> None:
        asked = []
        for number in range(4):
            asked.append(asyncio.ensure_future(ask(number)))
            await until(
                lambda number=number: sum(vars(engine.status())[x] for x in ("running", "waiting")) == number + 1
            )
        await until(gate.reached.is_set)
        with pytest.raises(EngineBusy, match="are waiting, the most that may wait"):
            await complete(engine, request())
        gate.open()
        await asyncio.gather(*asked)
        assert ended == [0, 1, 2, 3]

    asyncio.run(scenario())
    assert is_idle(engine)
    asyncio.run(engine.aclose())


def test_it_sleeps_while_the_request_whose_turn_it_is_is_read(
    tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one is ready, and steps without requests would take the reader's time."""
    engine, gate = batched_engine_of(tiny_llava, requests=1), Gate()
    engine.batch.model.register_forward_pre_hook(gate)
    is_reading, may_read, starts = threading.Event(), threading.Event(), []
    prompt, start = engine.images.prompt, engine.batch.start

    def slow_prompt(messages: tuple[Message, ...], *rest: Any) -> Prompt:
        if messages[0].text == "slow":
            is_reading.set()
            assert may_read.wait(PATIENCE_S)
        return prompt(messages, *rest)

    monkeypatch.setattr(engine.images, "prompt", slow_prompt)
    monkeypatch.setattr(engine.batch, "start", lambda: starts.append(0) or start())

    async def scenario() -> None:
        first = asyncio.ensure_future(complete(engine, replace(request(), caller="one")))
        await until(gate.reached.is_set)
        ready = asyncio.ensure_future(complete(engine, replace(request(), caller="one")))
        await until(lambda: engine.status().waiting == 1)
        slow = asyncio.ensure_future(complete(engine, replace(request((Message("user", "slow"),)), caller="another")))
        await until(is_reading.is_set)
        gate.open()
        await first
        before = len(starts)
        await asyncio.sleep(0.1)
        assert len(starts) <= before + 1
        may_read.set()
        await asyncio.gather(ready, slow)

    asyncio.run(scenario())
    asyncio.run(engine.aclose())


def test_who_has_an_answer_finds_the_place_free(tiny_llava: Llava) -> None:
    engine = batched_engine_of(tiny_llava, max_queue=0, requests=1)

    async def ask_again_and_again() -> None:
        for _ in range(20):
            await complete(engine, request(max_tokens=1))
            assert engine.status().running == 0

    asyncio.run(ask_again_and_again())
    asyncio.run(engine.aclose())


def test_the_event_loop_is_never_held_up(tiny_batched: BatchedEngine, gate: Gate) -> None:
    async def scenario() -> None:
        running, first = await started(tiny_batched, max_tokens=2)
        _, second = await started(tiny_batched, max_tokens=2)
        async with asyncio.timeout(PATIENCE_S):
            assert [await first, await second] == [Chunk(), Chunk()]
            assert await anext(running) == Chunk()
        gate.open()

    asyncio.run(scenario())


def test_callers_on_many_threads_and_loops_get_their_own_answers(tiny_batched: BatchedEngine) -> None:
    expected = {number: answer(tiny_batched, with_picture(number)).text for number in range(8)}
    said: dict[int, str] = {}

    def ask(number: int) -> None:
        said[number] = answer(tiny_batched, with_picture(number)).text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert said == expected
    assert len(set(said.values())) == 8
