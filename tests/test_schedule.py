"""Who takes part in a step, with how many tokens, and who gives way when pages run out. No model is run."""

import pytest
import torch

from llava_demo.chat import SamplingParams
from llava_demo.engines.batched.pages import Pages
from llava_demo.engines.batched.schedule import BIG_CHUNK, BatchSize, Request, Scheduler
from llava_demo.engines.sampler import Draw

DRAW = Draw(SamplingParams(), torch.tensor([1]), 4, 300)


def request(tokens: int, first: int = 0) -> Request:
    return Request([first + n for n in range(tokens)], 100, DRAW)


def scheduler_of(pages: int = 100, requests: int = 8, chunk: int = 32) -> Scheduler:
    size = BatchSize(pages, requests, chunk)
    return Scheduler(size, Pages(pages))


def step(scheduler: Scheduler) -> list[tuple[Request, int, int]]:
    """One step, in which each drawn span gets a token."""
    spans = scheduler.next_step()
    drawn = [span.request for span in spans if span.is_drawn]
    scheduler.computed(spans)
    for one in drawn:
        one.ids.append(7)
    return [(span.request, span.past, span.queries) for span in spans]


def test_a_lone_prompt_is_read_at_once_and_then_decodes_token_by_token() -> None:
    scheduler, one = scheduler_of(), request(100)
    scheduler.add(one)
    assert step(scheduler) == [(one, 0, 100)]
    assert step(scheduler) == [(one, 100, 1)]
    assert step(scheduler) == [(one, 101, 1)]


def test_a_newcomer_is_read_in_chunks_beside_those_that_decode() -> None:
    scheduler, one, two = scheduler_of(), request(20), request(70, 500)
    scheduler.add(one)
    step(scheduler)
    scheduler.add(two)
    assert step(scheduler) == [(one, 20, 1), (two, 0, 32)]
    assert step(scheduler) == [(one, 21, 1), (two, 32, 32)]
    assert step(scheduler) == [(one, 22, 1), (two, 64, 6)]
    assert step(scheduler) == [(one, 23, 1), (two, 70, 1)]


def test_a_crowd_of_newcomers_is_read_in_big_chunks() -> None:
    scheduler = scheduler_of(pages=400)
    one, *others = [request(400, 1000 * n) for n in range(5)]
    scheduler.add(one)
    step(scheduler)
    for other in others:
        scheduler.add(other)
    assert [queries for _, _, queries in step(scheduler)] == [1, 400, 400, BIG_CHUNK - 801]


def test_the_more_decode_the_bigger_the_chunks() -> None:
    scheduler = scheduler_of()
    for n in range(5):
        scheduler.add(request(8, 100 * n))
    step(scheduler)
    scheduler.add(request(300, 900))
    assert step(scheduler)[-1][2] == 5 * 16


def test_no_more_requests_run_than_may() -> None:
    scheduler = scheduler_of(requests=2)
    for n in range(3):
        scheduler.add(request(8, 100 * n))
    assert len(step(scheduler)) == 2
    scheduler.remove(scheduler.running[0])
    assert len(step(scheduler)) == 2


def test_a_prompt_that_finds_its_beginning_computes_the_rest() -> None:
    scheduler, one = scheduler_of(), request(100)
    scheduler.add(one)
    step(scheduler)
    again = request(100)
    scheduler.add(again)
    assert step(scheduler)[1] == (again, 96, 4)
    assert (one.cached_tokens, again.cached_tokens) == (0, 96)


def test_a_prompt_waits_until_all_of_it_fits_and_nobody_passes_it() -> None:
    scheduler = scheduler_of(pages=10)
    one, big, small = request(100), request(90, 500), request(8, 900)
    for each in (one, big, small):
        scheduler.add(each)
    assert step(scheduler) == [(one, 0, 100)]
    assert list(scheduler.waiting) == [big, small]
    scheduler.remove(one)
    assert [r for r, _, _ in step(scheduler)] == [big, small]


def test_where_pages_run_out_the_last_one_gives_way_and_is_the_next_to_come_back() -> None:
    scheduler = scheduler_of(pages=4)
    one, two = request(30), request(30, 500)
    scheduler.add(one)
    scheduler.add(two)
    step(scheduler)
    while two in scheduler.running:
        step(scheduler)
    assert len(two.ids) > 31
    scheduler.add(request(4, 900))
    done = len(two.ids)
    assert step(scheduler)[0][0] is one
    scheduler.remove(one)
    came_back = step(scheduler)
    assert came_back[0][0] is two
    assert sum(came_back[0][1:]) == done
    assert two.cached_tokens == 0  # what it finds of its own is not what others had computed


@pytest.mark.parametrize("is_running", [True, False])
def test_what_is_removed_leaves_nothing(is_running: bool) -> None:
    scheduler, one = scheduler_of(), request(40)
    scheduler.add(one)
    if is_running:
        step(scheduler)
    scheduler.remove(one)
    scheduler.remove(one)
    assert (scheduler.pages.used, scheduler.running, list(scheduler.waiting)) == (0, [], [])
    assert step(scheduler) == []
