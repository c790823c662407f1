"""`FairQueue`: the order in which waiting requests get slots. A pure data structure: no threads, no clocks, no I/O."""

from collections import Counter, deque
from collections.abc import Iterator
from heapq import heapify, heappop, heapreplace
from typing import Generic, TypeVar

from llava_demo.errors import EngineBusy, TooManyRequests

Item = TypeVar("Item")

GREED = 3  # a caller may hold up to this many queue places for each one that is left free


class FairQueue(Generic[Item]):
    """Requests of many callers in front of `slots` slots, with `places` more that may wait. Not thread-safe.

    The next slot goes to the waiting caller with the fewest running requests; among equals they take turns, newcomers
    before those that just had one (start-time fair queueing, Goyal et al., 1996), and each caller's own requests keep
    their order. So a caller takes all slots only while no other caller waits.

    A caller's share of the places follows what is left (the dynamic threshold of Choudhury and Hahne, 1998): one caller
    alone gets three quarters of them, and however many callers are greedy, a place stays free for the next one.
    """

    def __init__(self, slots: int, places: int) -> None:
        self.slots, self.places = slots, places
        self._queues: dict[str, deque[Item]] = {}  # what waits, by caller
        self._running: dict[Item, str] = {}  # the caller of each request that has a slot
        self._turns: dict[str, float] = {}  # by caller, the time of its next request on the clock below
        self._now = 0.0  # moves by one while each waiting caller gets a slot

    @property
    def running(self) -> int:
        """Number of requests that have a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Number of requests without a slot."""
        return sum(map(len, self._queues.values()))

    def check(self, caller: str) -> None:
        """Raise where `caller` may not push a request now.

        Raises:
            EngineBusy: every slot and every place is taken.
            TooManyRequests: the caller has its share of the places; others may still come.
        """
        if self.running + self.waiting >= self.slots + self.places:
            raise EngineBusy(
                f"{self.running} requests are running and {self.waiting} are waiting, the most that may wait; "
                "try again in a few seconds."
            )
        own = len(self._queues.get(caller, ()))
        queued = self.waiting + self.running - self.slots  # without those for which a slot is free
        if own and queued > 0 and own / self.waiting * queued + 1 > GREED * (self.places - queued - 1):
            in_flight = own + list(self._running.values()).count(caller)
            raise TooManyRequests(
                f"{in_flight} of your requests are running or waiting, your share of this server now; "
                "try again when one of them has ended.",
                limit=in_flight,
            )

    def push(self, item: Item, caller: str) -> None:
        """Append a request of `caller`. Raises what `check` raises."""
        self.check(caller)
        if caller not in self._queues:
            self._queues[caller] = deque()
            self._turns[caller] = max(self._now, self._turns.get(caller, 0))
        self._queues[caller].append(item)

    def in_order(self) -> Iterator[Item]:
        """The waiting requests in the order in which they will get slots, if no running request ends before."""
        running = Counter(self._running.values())
        # A heap of callers: running requests, last turn, order of arrival for equals, and the queued requests.
        heap = [
            (running[caller], self._turns[caller], arrival, iter(queue))
            for arrival, (caller, queue) in enumerate(self._queues.items())
        ]
        heapify(heap)
        while heap:
            count, turn, arrival, items = heap[0]
            if (item := next(items, None)) is None:
                heappop(heap)
            else:
                heapreplace(heap, (count + 1, turn + 1, arrival, items))
                yield item

    def first(self) -> Item | None:
        """The next request to get a slot; None where none waits, or no slot is free."""
        return next(self.in_order(), None) if self.running < self.slots else None

    def take(self, item: Item) -> None:
        """Give a waiting request a slot."""
        caller = next(caller for caller, queue in self._queues.items() if item in queue)
        others = len(self._queues) - 1
        self._now = max(self._now, self._turns[caller]) + (1 / (others + 1) if others else 0)
        self._turns[caller] += 1
        self._running[item] = caller
        self._leave(item, caller)

    def remove(self, item: Item) -> None:
        """Forget a request, if it is here."""
        if item in self._running:
            del self._running[item]
            self._forget_turns()
            return
        caller = next((caller for caller, queue in self._queues.items() if item in queue), None)
        if caller is not None:
            self._leave(item, caller)

    def has_slot(self, item: Item) -> bool:
        return item in self._running

    def clear(self) -> list[Item]:
        """Forget all requests and return them."""
        items = [*self._running, *self.in_order()]
        for contents in (self._queues, self._running, self._turns):
            contents.clear()
        return items

    def _leave(self, item: Item, caller: str) -> None:
        self._queues[caller].remove(item)
        if not self._queues[caller]:
            del self._queues[caller]
            self._forget_turns()

    def _forget_turns(self) -> None:
        """Forget callers of the past: where none waits, only those with running requests are kept."""
        if not self._queues:
            self._turns = {caller: self._turns[caller] for caller in self._running.values()}
