"""Batched answers equal those of `generate`, token for token, whoever else is in the batch and however memory is short.

On a CPU in float32. What is compared are texts and token counts of real models with random weights, whose answers
depend on every token and every picture before them; and of the miniature.
"""

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import ON_CPU, batched_engine_of, engine_of, make_tiny_interleave, make_tiny_next
from test_generate import failing
from test_llava import CHATS, picture

from llava_demo.chat import ChatRequest, Completion, Message, SamplingParams
from llava_demo.engines import Engine, complete
from llava_demo.engines.batched import attention
from llava_demo.engines.batched import engine as batched
from llava_demo.engines.batched.engine import BatchedEngine
from llava_demo.engines.batched.schedule import Scheduler
from llava_demo.errors import EngineUnavailable, GenerationFailed
from llava_demo.model import MINIATURE
from llava_demo.model.llava import Llava

QUESTIONS = ("what is it?", "what is in this picture, and where?", "a circle or a square? " * 6, "é 日本 🙂")


def mixed_requests(count: int) -> list[ChatRequest]:
    """No picture, one, three; the same pictures again and again; second and third turns; short and long answers."""
    chance = random.Random(0)
    requests = []
    for number in range(count):
        shown = tuple(picture(chance.randrange(9)) for _ in range((0, 1, 1, 3)[number % 4]))
        turns = [Message("user", chance.choice(QUESTIONS), shown)]
        for _ in range(number % 3):
            turns += [Message("assistant", "a circle and the square"), Message("user", chance.choice(QUESTIONS))]
        requests.append(ChatRequest(tuple(turns), SamplingParams(temperature=0, max_tokens=chance.randrange(1, 24))))
    return requests


def sampled_requests(count: int) -> list[ChatRequest]:
    """All knobs in all mixtures, greedy ones among them."""
    chance = random.Random(1)
    knobs: list[dict[str, Any]] = [
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.3},
        {"temperature": 0},
        {"temperature": 1.0, "top_k": 5, "min_p": 0.05},
        {"temperature": 0.9, "repetition_penalty": 1.3},
        {"temperature": 0, "frequency_penalty": 1.1, "presence_penalty": 0.4},
        {"temperature": 1.0, "min_p": 0.1, "stop": ("a", "e")},
    ]
    return [
        ChatRequest(
            (Message("user", chance.choice(QUESTIONS), (picture(number % 5),)),),
            SamplingParams(**knobs[number % len(knobs)], seed=number, max_tokens=16),
        )
        for number in range(count)
    ]


def answers(engine: Engine, requests: Sequence[ChatRequest], at_once: int = 1000) -> list[Completion]:
    """The answers in the order of `requests`, `at_once` of them asked at the same time."""

    async def ask_all() -> list[Completion]:
        places = asyncio.Semaphore(at_once)

        async def ask(request: ChatRequest) -> Completion:
            async with places:
                return await complete(engine, request)

        return await asyncio.gather(*map(ask, requests))

    return asyncio.run(ask_all())


def said(completions: Sequence[Completion]) -> list[tuple[str, str, int, int]]:
    return [(c.text, c.finish_reason, c.usage.prompt_tokens, c.usage.completion_tokens) for c in completions]


def check_left_nothing(engine: BatchedEngine) -> None:
    load = engine.status()
    assert (load.running, load.waiting, engine.images.holders) == (0, 0, 0)


class Reference:
    """What `generate` answers, asked once for all tests."""

    def __init__(self, llava: Llava) -> None:
        engine = engine_of(llava)
        self.mixed = mixed_requests(104)
        self.mixed_answers = said(answers(engine, self.mixed, at_once=1))
        self.sampled = sampled_requests(100)
        self.sampled_answers = said(answers(engine, self.sampled, at_once=1))


@pytest.fixture(scope="module")
def reference(tiny_llava: Llava) -> Reference:
    return Reference(tiny_llava)


@pytest.fixture
def engine(tiny_llava: Llava, request: pytest.FixtureRequest) -> Iterator[BatchedEngine]:
    engine = batched_engine_of(tiny_llava, **getattr(request, "param", {}))
    yield engine
    check_left_nothing(engine)
    asyncio.run(engine.aclose())


# Greedy


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param({}, id="as usual"),
        pytest.param({"chunk": 16}, id="in small chunks"),
        pytest.param({"is_sharing": False}, id="without shared pages"),
        pytest.param({"pages": 40}, id="with too little memory"),
    ],
    indirect=True,
)
def test_104_mixed_chats_at_once_get_the_answers_of_generate(engine: BatchedEngine, reference: Reference) -> None:
    assert said(answers(engine, reference.mixed)) == reference.mixed_answers


def test_prompts_that_are_read_token_by_token_change_no_answer(tiny_llava: Llava, reference: Reference) -> None:
    """As ends of prompts are, two tokens in two steps, where others leave little of a step."""
    engine = batched_engine_of(tiny_llava, requests=1, big_chunk=1)
    assert said(answers(engine, reference.mixed[:12])) == reference.mixed_answers[:12]
    asyncio.run(engine.aclose())


def test_a_preempted_request_comes_back_to_the_same_answer(tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of 80 tokens that were thought to be short: six of them fill the cache more than twice."""
    monkeypatch.setattr(batched, "RESERVED_ANSWER_TOKENS", 1)
    sampling = SamplingParams(temperature=1, seed=7, max_tokens=80, repetition_penalty=1.2)
    requests = [ChatRequest((Message("user", f"{n}?", (picture(n),)),), sampling) for n in range(6)]
    expected = said(answers(engine_of(tiny_llava), requests, at_once=1))
    small = batched_engine_of(tiny_llava, pages=18)
    preempted = []
    preempt = Scheduler._preempt
    monkeypatch.setattr(Scheduler, "_preempt", lambda it: preempted.append(it.running[-1]) or preempt(it))
    assert said(answers(small, requests)) == expected
    assert any(len(request.ids) > request.prompt_tokens + 1 for request in preempted)  # in mid-answer
    check_left_nothing(small)
    asyncio.run(small.aclose())


def test_the_plan_for_flash_attention_is_right(
    engine: BatchedEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself needs a GPU. In its place stands what its documentation says that it computes."""

    def varlen(query: Any, keys: Any, values: Any, query_ends: Any, key_ends: Any, *most: int, **options: Any) -> Any:
        assert options["window_size"] == (-1, 0)
        outputs = []
        for number in range(len(query_ends) - 1):
            rows = slice(*query_ends[number : number + 2].tolist())
            places = slice(*key_ends[number : number + 2].tolist())
            q, k, v = query[rows], keys[places], values[places]
            assert len(q) <= most[0]
            assert len(k) <= most[1]
            mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
            heads = (x.transpose(0, 1)[None] for x in (q, k, v))
            attended = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask)
            outputs.append(attended[0].transpose(0, 1))
        return torch.cat(outputs)

    monkeypatch.setattr(attention, "varlen_attn", varlen)
    engine.batch.cache.can_flash = True
    assert said(answers(engine, reference.mixed)) == reference.mixed_answers


def test_more_pictures_than_are_kept_change_no_answer(engine: BatchedEngine, reference: Reference) -> None:
    """Ids are never given out twice, but features make room for others while requests are under way."""
    engine.images.max_rows = 4 * engine.llava.image_tokens
    assert said(answers(engine, reference.mixed)) == reference.mixed_answers
    assert engine.images.rows <= engine.images.max_rows
    assert engine.images.misses > 9 + 10  # of nine pictures, many were encoded again


def test_neighbours_who_hang_up_change_no_answer(engine: BatchedEngine, reference: Reference) -> None:
    chance = random.Random(2)

    async def hang_up(request: ChatRequest) -> None:
        async with aclosing(engine.stream(request)) as chunks:
            left = chance.randrange(4)
            async for chunk in chunks:
                left -= bool(chunk.text)
                if left < 0:
                    return

    async def scenario() -> list[Completion]:
        leaving = [asyncio.ensure_future(hang_up(request)) for request in sampled_requests(60)]
        staying = await asyncio.gather(*(complete(engine, request) for request in reference.mixed[:52]))
        await asyncio.gather(*leaving)
        return staying

    assert said(asyncio.run(scenario())) == reference.mixed_answers[:52]


def test_after_a_failure_the_answers_are_right_again(engine: BatchedEngine, reference: Reference) -> None:
    async def asked() -> list[Completion | BaseException]:
        return await asyncio.gather(*(complete(engine, r) for r in reference.mixed[:40]), return_exceptions=True)

    with failing(engine.batch.model, RuntimeError("a defect below"), after=12):
        outcomes = asyncio.run(asked())
    failed = [outcome for outcome in outcomes if isinstance(outcome, GenerationFailed)]
    assert 1 <= len(failed) <= engine.size.requests  # those who were in the batch, and nobody who waited
    right = [
        said([outcome])[0] == expected
        for outcome, expected in zip(outcomes, reference.mixed_answers, strict=False)
        if isinstance(outcome, Completion)
    ]
    assert len(right) == 40 - len(failed)
    assert all(right)
    assert said(answers(engine, reference.mixed[:40])) == reference.mixed_answers[:40]


@pytest.mark.parametrize("make", [make_tiny_next, make_tiny_interleave])
def test_other_llavas_pass_too(make: Any, tmp_path: Path) -> None:
    """LLaVA-NeXT cuts pictures into tiles, so that they take different numbers of tokens; the other one is Qwen2."""
    make(tmp_path)
    llava = Llava.load(str(tmp_path), ON_CPU, is_local=True)
    requests = [ChatRequest(turns, SamplingParams(temperature=0, max_tokens=12)) for turns in CHATS.values()]
    requests += mixed_requests(12)
    expected = said(answers(engine_of(llava), requests, at_once=1))
    engine = batched_engine_of(llava)
    assert said(answers(engine, requests)) == expected
    check_left_nothing(engine)
    asyncio.run(engine.aclose())


def test_the_miniature_answers_alike() -> None:
    miniature = Llava.load(str(MINIATURE), ON_CPU, is_local=True)
    requests = mixed_requests(24)
    expected = said(answers(engine_of(miniature), requests, at_once=1))
    engine = batched_engine_of(miniature, pages=600)
    assert said(answers(engine, requests)) == expected
    asyncio.run(engine.aclose())


def test_4_bit_weights_answer_alike_one_at_a_time(tiny_folder: str) -> None:
    """Kernels for 4-bit weights depend on how many rows they get: in company, last digits may differ."""
    from llava_demo.engines.load import load_engine
    from llava_demo.settings import Settings

    engine = load_engine(Settings(model=tiny_folder, quantize="4bit"))
    assert isinstance(engine, BatchedEngine)
    requests = mixed_requests(8)
    expected = said(answers(engine_of(engine.llava), requests, at_once=1))
    assert said(answers(engine, requests, at_once=1)) == expected
    asyncio.run(engine.aclose())


# Sampled


@pytest.mark.parametrize(
    ("engine", "order", "at_once"),
    [
        pytest.param({}, 1, 1, id="alone"),
        pytest.param({}, 1, 1000, id="in company"),
        pytest.param({"chunk": 20}, -1, 1000, id="in another order and smaller chunks"),
        pytest.param({"pages": 30}, 1, 1000, id="with too little memory"),
    ],
    indirect=["engine"],
)
def test_a_seed_means_the_same_text(engine: BatchedEngine, order: int, at_once: int, reference: Reference) -> None:
    """100 of 100: every knob, greedy ones among them, each against `generate` with the same seed."""
    completions = answers(engine, reference.sampled[::order], at_once)
    assert said(completions)[::order] == reference.sampled_answers


def test_log_probabilities_are_those_of_generate(tiny_llava: Llava, engine: BatchedEngine) -> None:
    requests = [
        ChatRequest(turns, SamplingParams(temperature=0.8, seed=3, max_tokens=12, top_logprobs=top))
        for turns in CHATS.values()
        for top in (None, 0, 5)
    ]
    for ours, theirs in zip(answers(engine, requests), answers(engine_of(tiny_llava), requests, 1), strict=True):
        assert [one.token for one in ours.logprobs] == [one.token for one in theirs.logprobs]
        values = [[t.logprob for one in c.logprobs for t in (one, *one.top)] for c in (ours, theirs)]
        torch.testing.assert_close(*map(torch.tensor, values), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["generate", "batched"])
def test_log_probabilities_are_taken_before_penalties(kind: str, tiny_llava: Llava) -> None:
    """OpenAI's are the model's own: a penalty changes which token is drawn, and no token's log-probability."""
    engine = engine_of(tiny_llava) if kind == "generate" else batched_engine_of(tiny_llava)
    free = SamplingParams(temperature=0, max_tokens=2, top_logprobs=5)
    # Repetition is penalised over the prompt: another first token may follow, and then another text stands before the
    # second one. The others are over the answer: the first token is the same.
    changes = [({"repetition_penalty": 2}, 1), ({"presence_penalty": 2}, 2), ({"frequency_penalty": 2}, 2)]
    requests = [ChatRequest(CHATS["a text"], replace(free, **change)) for change in ({}, *(c for c, _ in changes))]
    expected, *penalised = (completion.logprobs for completion in answers(engine, requests, at_once=1))
    assert len(expected) == 2
    for logprobs, (_, same) in zip(penalised, changes, strict=True):
        values = [[t.logprob for one in some[:same] for t in one.top] for some in (logprobs, expected)]
        torch.testing.assert_close(*map(torch.tensor, values), atol=1e-5, rtol=1e-5)
    asyncio.run(engine.aclose())


def test_out_of_memory_is_told_and_asks_for_less_next_time(engine: BatchedEngine, reference: Reference) -> None:
    before = engine.size.chunk
    with (
        failing(engine.batch.model, torch.OutOfMemoryError("CUDA out of memory")),
        pytest.raises(EngineUnavailable, match="Out of memory"),
    ):
        answers(engine, reference.mixed[:1])
    assert said(answers(engine, reference.mixed[:4])) == reference.mixed_answers[:4]
    assert engine.size.chunk < before or before <= 64
