"""The generate engine on a real model with random weights: what it says, how it ends, how it fails, who waits."""

import asyncio
import math
import re
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from checkpoints import CONTEXT, IMAGE_ID, batched_engine_of, engine_of
from test_llava import CHATS, picture
from transformers import RepetitionPenaltyLogitsProcessor

from llava_demo import log
from llava_demo.chat import ChatRequest, Chunk, Completion, Message, SamplingParams
from llava_demo.engines import Engine, complete
from llava_demo.engines.batched.engine import BatchedEngine
from llava_demo.engines.generate import GenerateEngine
from llava_demo.engines.jobs import MIN_ANSWER_TOKENS
from llava_demo.errors import (
    EngineBusy,
    EngineUnavailable,
    GenerationFailed,
    InvalidRequest,
    PromptTooLong,
    TooManyRequests,
)
from llava_demo.model.llava import Llava

PATIENCE_S = 30.0  # how long a test waits for what must come; machines are slow at times
HELLO = (Message("user", "hello"),)
GREEDY = {"temperature": 0, "max_tokens": 24}


def request(messages: tuple[Message, ...] = HELLO, **sampling: Any) -> ChatRequest:
    return ChatRequest(messages, SamplingParams(**GREEDY | sampling))


def answer(engine: GenerateEngine, messages: tuple[Message, ...] = HELLO, **sampling: Any) -> Completion:
    return asyncio.run(complete(engine, request(messages, **sampling)))


def plain_generate(llava: Llava, messages: tuple[Message, ...], **options: Any) -> list[int]:
    """The ids that transformers itself answers with."""
    inputs = llava.prompt(messages)
    options = {"max_new_tokens": GREEDY["max_tokens"], "do_sample": False} | options
    return llava.model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :].tolist()


def text_of(llava: Llava, ids: list[int]) -> str:
    return llava.tokenizer.decode(ids, skip_special_tokens=True).removeprefix(" ")


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_true():  # noqa: ASYNC110, what is waited for happens in the engine's thread
            await asyncio.sleep(0.005)


class Gate:
    """Stands before every step of the model, and counts the steps that it lets through."""

    def __init__(self) -> None:
        self.steps = 0
        self.reached = threading.Event()
        self._allowed = threading.Semaphore(0)
        self._is_open = False

    def let(self, steps: int) -> None:
        self._allowed.release(steps)

    def open(self) -> None:
        self._is_open = True
        self.let(1)

    def __call__(self, *_: object) -> None:
        self.reached.set()
        if not self._is_open:
            assert self._allowed.acquire(timeout=PATIENCE_S)
        self.steps += 1


@pytest.fixture
def gate(tiny_llava: Llava) -> Iterator[Gate]:
    gate = Gate()
    hook = tiny_llava.model.register_forward_pre_hook(gate)
    yield gate
    gate.open()
    hook.remove()


@contextmanager
def failing(model: torch.nn.Module, error: Exception, after: int = 0) -> Iterator[None]:
    """Make the model raise in step number `after`."""
    steps = iter(range(1000))

    def fail(*_: object) -> None:
        if next(steps) == after:
            raise error

    hook = model.register_forward_pre_hook(fail)
    yield
    hook.remove()


# What it says


@pytest.mark.parametrize("name", CHATS)
def test_the_answer_is_that_of_plain_generate(name: str, tiny_engine: GenerateEngine, tiny_llava: Llava) -> None:
    ids = plain_generate(tiny_llava, CHATS[name])
    said = answer(tiny_engine, CHATS[name])
    assert said.text == text_of(tiny_llava, ids)
    assert said.finish_reason == "length"
    assert said.usage.completion_tokens == 24
    assert said.usage.prompt_tokens == tiny_llava.prompt(CHATS[name])["input_ids"].shape[1]


def test_a_third_turn_is_asked_with_all_that_was_said_and_shown(
    tiny_engine: GenerateEngine, tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, torch.Tensor]] = []
    generate = tiny_llava.model.generate
    monkeypatch.setattr(tiny_llava.model, "generate", lambda **inputs: given.append(inputs) or generate(**inputs))
    turns: list[Message] = []
    for number, question in enumerate(["what is it?", "and this one?", "are they alike?"]):
        turns.append(Message("user", question, (picture(number),) if number < 2 else ()))
        turns.append(Message("assistant", answer(tiny_engine, tuple(turns)).text))
    ids, rows = given[2]["input_ids"][0], "<image>" * tiny_llava.image_tokens
    assert tiny_llava.tokenizer.decode(ids) == (
        f"<s>USER: {rows}\nwhat is it? ASSISTANT: {turns[1].text} "
        f"USER: {rows}\nand this one? ASSISTANT: {turns[3].text} USER: are they alike? ASSISTANT:"
    )
    assert (ids == IMAGE_ID).sum() == 2 * tiny_llava.image_tokens
    assert len(given[2]["pixel_values"]) == 2
    assert turns[5].text == text_of(tiny_llava, plain_generate(tiny_llava, tuple(turns[:5])))


def test_pictures_and_their_order_change_the_answer(tiny_engine: GenerateEngine) -> None:
    shown = [(picture(0),), (picture(1),), (picture(0), picture(1)), (picture(1), picture(0)), ()]
    texts = [answer(tiny_engine, (Message("user", "what?", pictures),)).text for pictures in shown]
    assert len(set(texts)) == len(shown)
    assert answer(tiny_engine, (Message("user", "what?", shown[2]),)).text == texts[2]


def test_a_new_picture_in_the_second_turn_is_seen(tiny_engine: GenerateEngine) -> None:
    first = (Message("user", "what?", (picture(0),)), Message("assistant", "a circle"))
    texts = {answer(tiny_engine, (*first, Message("user", "and this?", (picture(n),)))).text for n in (1, 2, 3)}
    assert len(texts) == 3


def test_the_streamed_pieces_are_the_whole_answer(tiny_engine: GenerateEngine) -> None:
    """Random weights write any bytes: half characters come at every place."""

    async def chunks() -> list[Chunk]:
        return [chunk async for chunk in tiny_engine.stream(request(max_tokens=60, temperature=1.5, seed=5))]

    said = asyncio.run(chunks())
    assert "".join(chunk.text for chunk in said) == answer(tiny_engine, max_tokens=60, temperature=1.5, seed=5).text
    assert len([chunk for chunk in said if chunk.text]) > 20
    assert [bool(chunk.finish_reason) for chunk in said] == [False] * (len(said) - 1) + [True]
    assert said[-1].usage is not None
    assert all(chunk.usage is None for chunk in said[:-1])


# How it ends


def test_an_end_token_ends_the_answer(
    tiny_engine: GenerateEngine, tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = plain_generate(tiny_llava, HELLO)
    end = next(i for i in range(3, 24) if ids[i] not in ids[:i])
    monkeypatch.setattr(tiny_llava.model.generation_config, "eos_token_id", [1, ids[end]])
    said = answer(tiny_engine)
    assert (said.finish_reason, said.usage.completion_tokens) == ("stop", end + 1)
    last = answer(tiny_engine, max_tokens=end + 1)  # it may be the last token that is allowed
    assert (last.finish_reason, last.usage.completion_tokens) == ("stop", end + 1)
    assert answer(tiny_engine, max_tokens=end).finish_reason == "length"


@pytest.mark.parametrize("max_tokens", [1, 2, 50])
def test_max_tokens_is_exact(max_tokens: int, tiny_engine: GenerateEngine) -> None:
    said = answer(tiny_engine, max_tokens=max_tokens)
    assert (said.finish_reason, said.usage.completion_tokens) == ("length", max_tokens)


def test_a_stop_string_ends_the_answer_within_the_token(tiny_engine: GenerateEngine) -> None:
    whole = answer(tiny_engine, temperature=1, seed=1, max_tokens=100).text
    stop = whole[40:43]
    said = answer(tiny_engine, temperature=1, seed=1, max_tokens=100, stop=(stop, "never said"))
    assert said.text == whole[: whole.index(stop)]
    assert said.finish_reason == "stop"
    shorter = answer(tiny_engine, temperature=1, seed=1, max_tokens=said.usage.completion_tokens - 1).text
    assert stop not in shorter


def test_max_tokens_shrinks_to_what_is_left_of_the_context(tiny_engine: GenerateEngine) -> None:
    said = answer(tiny_engine, (Message("user", "é" * 450),), max_tokens=5000)
    assert said.usage.prompt_tokens + said.usage.completion_tokens == CONTEXT
    assert said.finish_reason == "length"


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(tiny_engine: GenerateEngine) -> None:
    with pytest.raises(PromptTooLong, match=r"takes 2,0\d\d tokens \(16 .* pictures\).* at least 16; .* 1,024") as told:
        answer(tiny_engine, (Message("user", "é" * 1000, (picture(0),)),))
    assert not told.value.fits_without_pictures
    with pytest.raises(PromptTooLong, match=r"takes 2,0\d\d tokens, and its"):
        answer(tiny_engine, (Message("user", "é" * 1000),))
    with pytest.raises(PromptTooLong) as told:
        answer(tiny_engine, (Message("user", "é" * 495, (picture(0), picture(1))),))
    assert told.value.fits_without_pictures
    assert answer(tiny_engine).usage.completion_tokens == 24


def test_a_short_answer_needs_little_room(tiny_engine: GenerateEngine, tiny_llava: Llava) -> None:
    empty = tiny_llava.prompt((Message("user", "."),))["input_ids"].shape[1]
    full = (Message("user", "." * (CONTEXT - empty - 3)),)
    assert MIN_ANSWER_TOKENS > 4
    assert answer(tiny_engine, full, max_tokens=4).usage.completion_tokens == 4
    with pytest.raises(PromptTooLong):
        answer(tiny_engine, full, max_tokens=5)


def test_too_many_pictures_are_refused_with_the_numbers(tiny_llava: Llava) -> None:
    engine = engine_of(tiny_llava, max_images=2)
    with pytest.raises(InvalidRequest, match="has 3 pictures; at most 2"):
        answer(engine, (Message("user", "?", tuple(picture(n) for n in range(3))),))


# Sampling


def test_a_seed_fixes_the_answer(tiny_engine: GenerateEngine) -> None:
    warm = {"temperature": 1.0, "max_tokens": 40}
    texts = [answer(tiny_engine, seed=seed, **warm).text for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]
    assert len({answer(tiny_engine, **warm).text for _ in range(3)}) == 3  # without one, chance decides


def test_a_seed_needs_nobody_elses_random_numbers(tiny_engine: GenerateEngine) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one = answer(tiny_engine, temperature=1, seed=9).text
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert answer(tiny_engine, temperature=1, seed=9).text == one


@pytest.mark.parametrize("knob", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"temperature": 1e-30}])
def test_one_candidate_is_greedy(knob: dict[str, float], tiny_engine: GenerateEngine) -> None:
    assert answer(tiny_engine, **{"temperature": 1.0} | knob).text == answer(tiny_engine).text


@pytest.mark.parametrize(
    "knob", [{"top_k": 3}, {"top_p": 0.3}, {"min_p": 0.3}, {"temperature": 0.3}, {"frequency_penalty": 1.5}]
)
def test_every_knob_changes_a_sampled_answer(knob: dict[str, float], tiny_engine: GenerateEngine) -> None:
    warm = {"temperature": 1.5, "seed": 3, "max_tokens": 30}
    assert answer(tiny_engine, **warm | knob).text != answer(tiny_engine, **warm).text


def test_top_k_draws_among_the_likeliest_only(tiny_engine: GenerateEngine, tiny_llava: Llava) -> None:
    inputs = tiny_llava.prompt(HELLO)
    best = tiny_llava.model(**inputs).logits[0, -1].topk(3).indices.tolist()
    firsts = {answer(tiny_engine, temperature=2, top_k=3, max_tokens=1, seed=seed).text for seed in range(40)}
    assert firsts == {text_of(tiny_llava, [token]) for token in best}


def test_repetition_penalty_is_that_of_transformers(tiny_engine: GenerateEngine, tiny_llava: Llava) -> None:
    ids = plain_generate(tiny_llava, HELLO, repetition_penalty=1.5)
    assert answer(tiny_engine, repetition_penalty=1.5).text == text_of(tiny_llava, ids)
    assert ids != plain_generate(tiny_llava, HELLO)


def test_repetition_penalty_spares_the_ids_of_pictures(tiny_engine: GenerateEngine, tiny_llava: Llava) -> None:
    """Ids that stand for pictures say nothing of words; with them the penalty would depend on a number in a config."""
    inputs = tiny_llava.prompt(CHATS["a picture"])
    weights = tiny_llava.model.lm_head.weight.data
    weights[IMAGE_ID] = 1.01 * weights[plain_generate(tiny_llava, CHATS["a picture"], max_new_tokens=1)[0]]
    try:  # now the image id is the likeliest; as a special token it has no text
        penalty = RepetitionPenaltyLogitsProcessor(2.0)
        theirs = penalty(inputs["input_ids"], tiny_llava.model(**inputs).logits[:, -1].detach())
        said = answer(tiny_engine, CHATS["a picture"], repetition_penalty=2.0, max_tokens=1)
    finally:
        weights[IMAGE_ID] = 0
    assert said.text == ""
    assert theirs.argmax() != IMAGE_ID


@pytest.mark.parametrize("knobs", [(0.7, 0.0), (0.0, 1.2), (1.0, -0.5)])
def test_frequency_and_presence_penalties_count_the_answer(
    knobs: tuple[float, float], tiny_engine: GenerateEngine, tiny_llava: Llava
) -> None:
    """Step by step without a cache, in plain Python, after the formula of OpenAI's API reference."""
    frequency, presence = knobs
    inputs = tiny_llava.prompt(CHATS["a picture"])
    said: list[int] = []
    for _ in range(12):
        ids = torch.cat([inputs["input_ids"], torch.tensor([said], dtype=torch.long)], dim=1)
        step = inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        scores = tiny_llava.model(**step).logits[0, -1].detach()
        for token in set(said):
            scores[token] -= frequency * said.count(token) + presence
        said.append(int(scores.argmax()))
    ours = answer(
        tiny_engine, CHATS["a picture"], frequency_penalty=frequency, presence_penalty=presence, max_tokens=12
    )
    assert ours.text == text_of(tiny_llava, said)


def test_4_bit_weights_answer_through_the_same_engine(tiny_folder: str) -> None:
    from llava_demo.engines.load import load_engine
    from llava_demo.settings import Settings

    engine = load_engine(Settings(model=tiny_folder, quantize="4bit"))
    said = answer(engine, CHATS["two pictures"])
    assert said.text == text_of(engine.llava, plain_generate(engine.llava, CHATS["two pictures"]))


# How it is stopped


async def started(engine: GenerateEngine, **sampling: Any) -> tuple[AsyncGenerator[Chunk, None], asyncio.Task[Chunk]]:
    """A stream, and the task that waits for its first chunk."""
    stream = engine.stream(request(**{"max_tokens": 900} | sampling))
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    return stream, first


async def freed(engine: GenerateEngine) -> None:
    await until(lambda: engine.status().running == 0)


def test_hanging_up_mid_stream_ends_the_model_within_a_token(tiny_engine: GenerateEngine, gate: Gate) -> None:
    async def scenario() -> None:
        gate.let(30)
        said = ""
        async with aclosing(tiny_engine.stream(request(max_tokens=900))) as chunks:
            async for chunk in chunks:
                said += chunk.text
                if gate.steps == 30 and not chunk.text:  # a heart-beat, while the model stands before its next step
                    break
        assert said
        gate.open()
        await freed(tiny_engine)
        assert gate.steps == 31  # the step that it stood before

    asyncio.run(scenario())
    assert answer(tiny_engine).usage.completion_tokens == 24


def test_hanging_up_before_the_first_token_ends_the_model_with_it(tiny_engine: GenerateEngine, gate: Gate) -> None:
    async def scenario() -> None:
        _, first = await started(tiny_engine)
        await until(gate.reached.is_set)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.open()
        await freed(tiny_engine)
        assert gate.steps == 1

    asyncio.run(scenario())


def test_hanging_up_in_line_never_reaches_the_model(tiny_engine: GenerateEngine, gate: Gate) -> None:
    async def scenario() -> None:
        running, first = await started(tiny_engine, max_tokens=5)
        await until(gate.reached.is_set)
        waiting, second = await started(tiny_engine)
        assert tiny_engine.status().waiting == 1
        assert await second == Chunk()  # the heart-beat
        await waiting.aclose()
        assert (tiny_engine.status().running, tiny_engine.status().waiting) == (1, 0)
        gate.open()
        await first
        async for _ in running:
            pass
        await freed(tiny_engine)
        assert gate.steps == 5

    asyncio.run(scenario())


def test_a_stream_that_is_closed_before_its_first_step_leaves_nothing(tiny_engine: GenerateEngine) -> None:
    async def scenario() -> None:
        await tiny_engine.stream(request()).aclose()
        assert tiny_engine.status().running == tiny_engine.status().waiting == 0

    asyncio.run(scenario())


def test_a_loop_that_ends_takes_its_answers_with_it(tiny_engine: GenerateEngine, gate: Gate) -> None:
    """A Gradio test client, or a script, ends its event loop in the middle of an answer."""

    async def abandon() -> None:
        await started(tiny_engine)
        await until(gate.reached.is_set)

    asyncio.run(abandon())
    gate.open()
    asyncio.run(freed(tiny_engine))
    assert gate.steps == 1


def test_closing_the_engine_ends_what_runs_and_what_waits(tiny_llava: Llava, gate: Gate) -> None:
    async def scenario() -> None:
        engine = engine_of(tiny_llava)
        _, running = await started(engine)
        await until(gate.reached.is_set)
        _, waiting = await started(engine)
        closing = asyncio.ensure_future(engine.aclose())
        for ended in (running, waiting):
            with pytest.raises(EngineUnavailable, match="shutting down"):
                await ended
        gate.open()
        await closing
        assert gate.steps == 1
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
        (MemoryError(), EngineUnavailable, "Out of memory"),
    ],
)
def test_a_failure_in_the_model_is_told_and_the_next_request_works(
    fault: Exception,
    raised: type[Exception],
    words: str,
    after: int,
    tiny_engine: GenerateEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with failing(tiny_engine.llava.model, fault, after), pytest.raises(raised, match=words) as caught:
        answer(tiny_engine)
    assert "secret" not in str(caught.value) + caplog.text  # words of exceptions may quote a prompt
    assert type(fault).__name__ in caplog.text
    assert tiny_engine.status().state == "ready"
    assert answer(tiny_engine).usage.completion_tokens == 24


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1, "top_p": 0.9, "top_logprobs": 2, "seed": 3}, {"temperature": 1, "seed": 3}]
)
@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("make", [engine_of, batched_engine_of])
def test_logits_that_are_no_numbers_are_a_failure_and_no_words(
    make: Callable[[Llava], Engine], number: float, sampling: dict[str, float], tiny_llava: Llava
) -> None:
    """Where sums overflow in 16 bits, an argmax over NaN is some token, and the answer garbage to its end."""
    engine = make(tiny_llava)
    model = engine.batch.model if isinstance(engine, BatchedEngine) else tiny_llava.model.get_output_embeddings()
    steps = iter(range(1000))

    def spoil(_: object, __: object, logits: torch.Tensor) -> None:
        if next(steps) == 5:
            logits[-1].view(-1)[7] = number

    hook = model.register_forward_hook(spoil)
    try:
        with pytest.raises(GenerationFailed, match="NaN or infinity"):
            answer(engine, **sampling)
        assert next(steps) == 6
    finally:
        hook.remove()
    assert answer(engine, **sampling).text
    asyncio.run(engine.aclose())


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("make", [engine_of, batched_engine_of])
def test_a_failure_leaves_its_places_in_the_log_and_not_its_words(
    make: Callable[[Llava], Engine], log_format: str, tiny_llava: Llava, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page and the APIs tell a caller as little as possible, so the log is where a defect is looked for."""
    log.setup(log_format)
    engine = make(tiny_llava)
    model = engine.batch.model if isinstance(engine, BatchedEngine) else tiny_llava.model
    with failing(model, _Fault("what somebody asked")), pytest.raises(GenerationFailed):
        answer(engine)
    logged = capsys.readouterr().err
    assert "generation failed: _Fault" in logged
    assert re.search(r"test_generate.py\W+, line \d+, in fail", logged)
    assert "what somebody asked" not in logged
    asyncio.run(engine.aclose())


def test_a_failure_spares_those_who_wait(tiny_engine: GenerateEngine, gate: Gate) -> None:
    async def scenario() -> None:
        with failing(tiny_engine.llava.model, _Fault(), after=0):
            _, failed = await started(tiny_engine)
            await until(gate.reached.is_set)
            other = asyncio.ensure_future(complete(tiny_engine, request()))
            await until(lambda: tiny_engine.status().waiting == 1)
            gate.open()
            with pytest.raises(GenerationFailed):
                await failed
            assert (await other).usage.completion_tokens == 24

    asyncio.run(scenario())


def test_a_broken_gpu_fails_the_engine_for_good(tiny_llava: Llava) -> None:
    engine = engine_of(tiny_llava)
    with failing(tiny_llava.model, torch.AcceleratorError("device-side assert")), pytest.raises(EngineUnavailable):
        answer(engine)
    assert engine.status().state == "failed"
    with pytest.raises(EngineUnavailable, match="must be restarted"):
        answer(engine)


# Who waits


def test_the_queue_is_first_come_first_served_and_bounded(tiny_engine: GenerateEngine, gate: Gate) -> None:
    async def scenario() -> None:
        ended: list[int] = []

        async def ask(number: int) -> None:
            await complete(tiny_engine, replace(request(max_tokens=3), caller=f"caller {number}"))
            ended.append(number)

        asked = [asyncio.ensure_future(ask(0))]
        await until(gate.reached.is_set)
        for number in (1, 2):
            asked.append(asyncio.ensure_future(ask(number)))
            await until(lambda number=number: tiny_engine.status().waiting == number)
        with pytest.raises(EngineBusy, match="2 are waiting, the most that may wait"):
            await complete(tiny_engine, request())
        gate.open()
        await asyncio.gather(*asked)
        assert ended == [0, 1, 2]
        assert (tiny_engine.status().running, tiny_engine.status().waiting) == (0, 0)

    asyncio.run(scenario())


def test_a_polite_caller_is_next_beside_a_greedy_one(tiny_llava: Llava, gate: Gate) -> None:
    engine = engine_of(tiny_llava, max_queue=8)
    ended: list[str] = []

    async def ask(caller: str) -> None:
        try:
            await complete(engine, replace(request(max_tokens=2), caller=caller))
            ended.append(caller)
        except TooManyRequests:
            ended.append("refused")

    async def scenario() -> None:
        asked = [asyncio.ensure_future(ask("greedy")) for _ in range(20)]
        await until(lambda: len(ended) == 13)
        assert engine.status().waiting == 6, "three quarters of the 8 places"
        asked.append(asyncio.ensure_future(ask("polite")))
        await until(lambda: engine.status().waiting == 7)
        gate.open()
        await asyncio.gather(*asked)

    asyncio.run(scenario())
    assert ended == ["refused"] * 13 + ["greedy", "polite"] + ["greedy"] * 6


def test_who_has_an_answer_finds_the_engine_free(tiny_llava: Llava) -> None:
    engine = engine_of(tiny_llava, max_queue=0)

    async def ask_again_and_again() -> None:
        for _ in range(20):
            await complete(engine, request(max_tokens=1))
            assert engine.status().running == 0

    asyncio.run(ask_again_and_again())


def test_a_thread_that_cannot_be_started_costs_one_answer(tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(tiny_llava, max_queue=0)

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as machine, pytest.raises(EngineUnavailable, match="can start no more threads"):
        machine.setattr(threading.Thread, "start", refused)
        answer(engine)
    assert answer(engine).text


def test_the_event_loop_is_never_held_up(tiny_engine: GenerateEngine, gate: Gate) -> None:
    """While the model stands still the loop goes round: who is in front and who is in line get heart-beats."""

    async def scenario() -> None:
        running, first = await started(tiny_engine, max_tokens=2)
        _, second = await started(tiny_engine, max_tokens=2)
        async with asyncio.timeout(PATIENCE_S):
            assert [await first, await second] == [Chunk(), Chunk()]
            assert await anext(running) == Chunk()
        gate.open()

    asyncio.run(scenario())


def test_callers_on_many_threads_and_loops_get_their_own_answers(tiny_llava: Llava) -> None:
    engine = engine_of(tiny_llava, max_queue=20)
    chats = [(Message("user", f"what is {n}?", (picture(n),)),) for n in range(8)]
    expected = [text_of(tiny_llava, plain_generate(tiny_llava, chat)) for chat in chats]
    said: dict[int, str] = {}

    def ask(number: int) -> None:
        said[number] = answer(engine, chats[number]).text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [said[number] for number in range(8)] == expected


def test_seen_is_the_square_that_the_model_looks_at(tiny_engine: GenerateEngine) -> None:
    assert tiny_engine.seen(picture(0)).size == (56, 56)
