"""`Turns`: a fair queue of jobs that other machines or processes answer; for engines that run no model in a thread.

It knows nothing of how a job is answered.
"""

import threading
from collections.abc import Callable

from llava_demo.engines.jobs import Job
from llava_demo.engines.queue import FairQueue
from llava_demo.errors import EngineUnavailable


class Turns:
    """`slots` jobs run at once, `places` more wait; `begin` is called for each job that gets a slot. Thread-safe."""

    def __init__(self, slots: int, places: int, begin: Callable[[Job], None]) -> None:
        self._begin = begin
        self._lock = threading.Lock()  # over the two below
        self._queue: FairQueue[Job] = FairQueue(slots, places)
        self._refusal: str | None = None

    @property
    def refusal(self) -> str | None:
        """Why no job is taken any more; None while they are."""
        return self._refusal

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of jobs that run and that wait."""
        with self._lock:
            return self._queue.running, self._queue.waiting

    def check(self, caller: str) -> None:
        """See whether a job of `caller` would be taken now; raises what `join` raises."""
        with self._lock:
            self._check(caller)

    def join(self, job: Job) -> None:
        """Have a job wait for its slot.

        Raises:
            EngineUnavailable: the engine was closed.
            EngineBusy, TooManyRequests: as `FairQueue.check` says.
        """
        with self._lock:
            self._check(job.request.caller)
            self._queue.push(job, job.request.caller)
        self._go_on()

    def leave(self, job: Job) -> None:
        """Free the slot or the place of a job that has ended or whose caller has gone."""
        with self._lock:
            self._queue.remove(job)
        self._go_on()

    def open(self, slots: int) -> None:
        """Have `slots` jobs run at once from now on."""
        with self._lock:
            self._queue.slots = slots
        self._go_on()

    def refuse_all(self, why: str) -> None:
        """Refuse all jobs, there or to come."""
        with self._lock:
            self._refusal = why
            refused = self._queue.clear()
        for job in refused:
            job.is_cancelled.set()
            job.put(EngineUnavailable(why))

    def _check(self, caller: str) -> None:
        if self._refusal:
            raise EngineUnavailable(self._refusal)
        self._queue.check(caller)

    def _go_on(self) -> None:
        """Begin the jobs that there is a slot for."""
        begun = []
        with self._lock:
            while (job := self._queue.first()) is not None:
                self._queue.take(job)
                begun.append(job)
        for job in begun:
            self._begin(job)
