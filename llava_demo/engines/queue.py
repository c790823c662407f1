"""`FairQueue`: the order in which waiting requests get slots. A pure data structure: no threads, no clocks, no I/O."""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from llava_demo.errors import EngineBusy, TooManyRequests

Item = TypeVar("Item")

GREED = 3  # a caller may hold up to this many queue places for each one that is left free


class FairQueue(Generic[Item]):
    """Requests of many callers in front of `slots` slots, with `places` more that may wait. Not thread-safe.

    The next slot goes to the waiting caller with the fewest running requests; among equals they take turns (round
    robin), and each caller's own requests keep their order. So a caller takes all slots only while nobody else waits.

    A caller's share of the places follows what is left (the dynamic threshold of Choudhury and Hahne, 1998): one caller
    alone gets three quarters of them, and however many callers are greedy, a place stays free for the next one.
    """

    def __init__(self, slots: int, places: int) -> None:
        self.slots, self.places = slots, places
        self._queues: OrderedDict[str, deque[Item]] = OrderedDict()  # what waits, by caller; the first has its turn
        self._running: dict[Item, str] = {}  # the caller of each request that has a slot

    @property
    def running(self) -> int:
        """Number of requests that have a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Number of requests that have none."""
        return sum(map(len, self._queues.values()))

    def push(self, item: Item, caller: str) -> None:
        """Append a request of `caller`.

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
        queued = self.waiting + self.running - self.slots  # without those that were pushed and are about to be taken
        if own and queued > 0 and own / self.waiting * queued + 1 > GREED * (self.places - queued - 1):
            in_flight = own + list(self._running.values()).count(caller)
            raise TooManyRequests(
                f"{in_flight} of your requests are running or waiting, your share of this server now; "
                "try again when one of them has ended.",
                limit=in_flight,
            )
        self._queues.setdefault(caller, deque()).append(item)

    def in_order(self) -> Iterator[Item]:
        """Yield the waiting requests in the order in which they get slots, as long as none of the running ones ends."""
        running = Counter(self._running.values())
        queues = {caller: iter(queue) for caller, queue in self._queues.items()}
        turns = list(queues)
        while turns:
            caller = min(turns, key=running.__getitem__)  # the first of those with the fewest
            turns.remove(caller)
            if (item := next(queues[caller], None)) is not None:
                yield item
                running[caller] += 1
                turns.append(caller)

    def first(self) -> Item | None:
        """The request whose turn it is; None where none waits or no slot is free."""
        return next(self.in_order(), None) if self.running < self.slots else None

    def take(self, item: Item) -> None:
        """Give a waiting request a slot; its caller's next turn comes after those of the others."""
        caller = next(caller for caller, queue in self._queues.items() if item in queue)
        self.remove(item)
        if caller in self._queues:
            self._queues.move_to_end(caller)
        self._running[item] = caller

    def remove(self, item: Item) -> None:
        """Forget a request that has ended or whose caller has gone; one that is not here is passed over."""
        if item in self._running:
            del self._running[item]
            return
        for caller, queue in self._queues.items():
            if item in queue:
                queue.remove(item)
                if not queue:
                    del self._queues[caller]
                return

    def has_slot(self, item: Item) -> bool:
        return item in self._running

    def clear(self) -> list[Item]:
        """Forget all requests and return them."""
        items = [*self._running, *self.in_order()]
        self._queues.clear()
        self._running.clear()
        return items
