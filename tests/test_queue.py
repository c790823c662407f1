"""The fair queue's rules, one by one, without an engine."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_demo.engines.queue import FairQueue
from llava_demo.errors import EngineBusy, TooManyRequests


def queue_of(slots: int, places: int, *items: str) -> FairQueue[str]:
    """A queue into which `items` were pushed; the caller is an item's first letter."""
    queue: FairQueue[str] = FairQueue(slots, places)
    for item in items:
        queue.push(item, item[0])
    return queue


def fill_slots(queue: FairQueue[str]) -> list[str]:
    taken = []
    while (item := queue.first()) is not None:
        queue.take(item)
        taken.append(item)
    return taken


def test_one_caller_is_served_first_come_first_served() -> None:
    queue = queue_of(1, 10, "a1", "a2", "a3")
    assert list(queue.in_order()) == ["a1", "a2", "a3"]


def test_callers_take_turns() -> None:
    queue = queue_of(6, 10, "a1", "a2", "a3", "b1", "c1", "c2")
    assert list(queue.in_order()) == ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert fill_slots(queue) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_the_next_slot_goes_to_the_caller_with_the_fewest_running() -> None:
    queue = queue_of(3, 10, "a1", "a2", "a3", "a4", "a5")
    assert fill_slots(queue) == ["a1", "a2", "a3"]
    queue.push("b1", "b")
    queue.push("b2", "b")
    queue.remove("a1")
    assert fill_slots(queue) == ["b1"]
    queue.remove("a2")
    assert fill_slots(queue) == ["a4"], "one runs of each, and b had its turn"
    queue.remove("a3")
    assert fill_slots(queue) == ["b2"]


def test_one_slot_goes_round() -> None:
    queue = queue_of(1, 20, *(f"{caller}{number}" for caller in "abc" for number in range(3)))
    served = []
    while (item := queue.first()) is not None:
        queue.take(item)
        served.append(item)
        queue.remove(item)
    assert served == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


def test_a_newcomer_comes_before_the_caller_that_was_just_served() -> None:
    queue = queue_of(1, 10, "a1")
    fill_slots(queue)
    for item in ("a2", "a3", "b1"):
        queue.push(item, item[0])
    queue.remove("a1")
    assert fill_slots(queue) == ["b1"]


def test_endless_newcomers_starve_nobody() -> None:
    queue = queue_of(1, 10, "a1", "a2")
    served = []
    for newcomer in range(20):
        queue.push(f"new {newcomer}", f"new {newcomer}")
        (item,) = fill_slots(queue)
        served.append(item)
        queue.remove(item)
    assert served.index("a2") < 6


def test_a_lone_caller_takes_all_slots_and_three_quarters_of_the_places() -> None:
    queue = queue_of(16, 64, *(f"a{number}" for number in range(64)))
    with pytest.raises(TooManyRequests, match="64 of your requests are running or waiting") as refusal:
        queue.push("one more", "a")
    assert refusal.value.limit == 64
    assert len(fill_slots(queue)) == 16
    with pytest.raises(TooManyRequests):
        queue.push("one more", "a")
    queue.remove("a0")
    fill_slots(queue)
    queue.push("one more", "a")


def test_a_polite_caller_finds_a_place_beside_any_number_of_greedy_ones() -> None:
    queue: FairQueue[tuple[int, int]] = FairQueue(4, 64)
    for number in range(100):
        for caller in range(20):
            with suppress(TooManyRequests):
                queue.push((caller, number), str(caller))
    queue.push((99, 0), "polite")
    assert list(queue.in_order()).index((99, 0)) == 20, "after the first request of each of the 20"


def test_a_full_server_is_busy_for_everybody() -> None:
    queue = queue_of(2, 1, "a1", "b1", "c1")
    with pytest.raises(EngineBusy, match="0 requests are running and 3 are waiting, the most that may wait"):
        queue.push("d1", "d")


def test_a_free_slot_is_for_anybody_even_where_none_may_wait() -> None:
    queue = queue_of(3, 0, "a1", "a2", "a3")
    assert fill_slots(queue) == ["a1", "a2", "a3"]
    with pytest.raises(EngineBusy):
        queue.push("a4", "a")
    queue.remove("a1")
    queue.push("a4", "a")


def test_what_is_removed_leaves_no_trace() -> None:
    queue = queue_of(1, 5, "a1", "a2", "b1")
    fill_slots(queue)
    for item in ("a2", "a1", "b1", "never there"):
        queue.remove(item)
    assert (queue.running, queue.waiting, list(queue.in_order()), queue.clear()) == (0, 0, [], [])


def test_clearing_gives_back_all() -> None:
    queue = queue_of(1, 5, "a1", "a2", "b1")
    fill_slots(queue)
    assert queue.clear() == ["a1", "b1", "a2"]
    assert (queue.running, queue.waiting) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from(["push", "take", "end", "go"])), max_size=120))
def test_whatever_happens_the_bounds_hold_and_nobody_starves(events: list[tuple[str, str]]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue(3, 8)
    running: list[tuple[str, int]] = []
    for number, (caller, what) in enumerate(events):
        waiting = list(queue.in_order())
        if what == "push":
            try:
                queue.push((caller, number), caller)
            except (EngineBusy, TooManyRequests):
                assert queue.running + queue.waiting >= queue.slots, "a free slot refuses nobody"
        elif what == "take" and (item := queue.first()) is not None:
            counts = {name: sum(c == name for c, _ in running) for name, _ in waiting}
            assert counts[item[0]] == min(counts.values())
            queue.take(item)
            running.append(item)
        elif what == "end" and running:
            queue.remove(running.pop(0))
        elif what == "go" and waiting:
            queue.remove(waiting[-1])
        assert queue.running == len(running) <= queue.slots
        assert queue.waiting == len(list(queue.in_order()))
        assert queue.running + queue.waiting <= queue.slots + queue.places
