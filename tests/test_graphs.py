"""The steps that a GPU replays as graphs, run eagerly on a CPU: right whatever the batch looks like.

In place of the GPU's attention kernel stands its twin in plain torch; test_kernels.py compares the two.
"""

import asyncio
from collections.abc import Iterator

import pytest
import torch
from checkpoints import batched_engine_of
from test_engines_agree import Reference, answers, check_left_nothing, mixed_requests, said, sampled_requests
from test_engines_agree import reference as reference

from llava_demo.chat import Completion
from llava_demo.engines import complete
from llava_demo.engines.batched import engine as batched
from llava_demo.engines.batched.engine import BatchedEngine
from llava_demo.engines.batched.graphs import SIZES, DecodeSteps, sizes_for
from llava_demo.engines.batched.schedule import Request
from llava_demo.model.llava import Llava


@pytest.mark.parametrize(
    ("requests", "sizes"),
    [(1, [1]), (3, [1, 2, 4]), (8, [1, 2, 4, 8]), (64, list(SIZES)), (65, [*SIZES, 96]), (100, [*SIZES, 96, 128])],
)
def test_there_is_a_size_for_every_number_of_chats(requests: int, sizes: list[int]) -> None:
    assert sizes_for(requests) == sizes


class Watched(DecodeSteps):
    """Notes how many requests each run had."""

    def __init__(self, steps: DecodeSteps) -> None:
        vars(self).update(vars(steps))
        self.counts: list[int] = []

    def run(self, requests: list[Request]) -> torch.Tensor:
        self.counts.append(len(requests))
        return super().run(requests)


@pytest.fixture
def engine(tiny_llava: Llava, request: pytest.FixtureRequest) -> Iterator[BatchedEngine]:
    engine = batched_engine_of(tiny_llava, **getattr(request, "param", {}))
    engine.batch.decode = Watched(engine.batch.decode_steps())
    for layer in engine.batch.cache.layers:
        layer.fill_(torch.nan)  # what nobody has written is never read
    yield engine
    check_left_nothing(engine)
    asyncio.run(engine.aclose())


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param({}, id="as usual"),
        pytest.param({"requests": 13, "chunk": 16}, id="an odd number of chats, small chunks"),
        pytest.param({"pages": 40}, id="with too little memory"),
    ],
    indirect=True,
)
def test_mixed_chats_get_the_answers_of_generate(engine: BatchedEngine, reference: Reference) -> None:
    """Prompts come and go between steps, sizes change, block tables grow, and spare rows disturb nobody."""
    assert said(answers(engine, reference.mixed)) == reference.mixed_answers
    counts = engine.batch.decode.counts
    assert {1, 3, 5, 7} & set(counts)  # sizes with spare rows
    assert len(set(counts)) > 4


def test_sampled_chats_get_the_answers_of_generate(engine: BatchedEngine, reference: Reference) -> None:
    assert said(answers(engine, reference.sampled)) == reference.sampled_answers


@pytest.mark.parametrize("engine", [{"pages": 18}], indirect=True)
def test_a_request_that_was_preempted_in_mid_answer_goes_on_as_before(
    engine: BatchedEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched, "RESERVED_ANSWER_TOKENS", 1)
    assert said(answers(engine, reference.sampled[:40])) == reference.sampled_answers[:40]


def test_neighbours_that_are_cancelled_change_no_answer(engine: BatchedEngine, reference: Reference) -> None:
    async def scenario() -> list[Completion]:
        leaving = [asyncio.ensure_future(complete(engine, request)) for request in sampled_requests(30)]
        staying = [asyncio.ensure_future(complete(engine, request)) for request in mixed_requests(40)]
        for number, one in enumerate(leaving):
            await asyncio.sleep(0.01 * (number % 3))
            one.cancel()
        return await asyncio.gather(*staying)

    assert said(asyncio.run(scenario())) == reference.mixed_answers[:40]


def test_the_logits_are_those_of_the_way_by_spans(tiny_llava: Llava) -> None:
    """The same requests, step by step, both ways."""
    engines = [batched_engine_of(tiny_llava) for _ in range(2)]
    engines[1].batch.decode = engines[1].batch.decode_steps()
    one, other = (said(answers(engine, mixed_requests(12))) for engine in engines)
    assert one == other
    for engine in engines:
        asyncio.run(engine.aclose())


def test_where_no_graph_can_be_had_the_steps_run_eagerly_and_one_sentence_says_why(
    engine: BatchedEngine, reference: Reference
) -> None:
    """Here for want of a GPU; there because of a driver, a compiler or a card that is too old."""
    words = engine.batch.warm_up()
    assert words is not None
    assert words.startswith("Decode steps run one operation after the other: no CUDA graph, ")
    assert "\n" not in words
    assert said(answers(engine, reference.mixed[:20])) == reference.mixed_answers[:20]
