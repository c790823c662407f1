"""`Turns`: a fair queue of jobs, and `ThreadEngine`, which answers each job that gets a slot in a thread of its own."""

import threading
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from llava_demo.chat import Chunk
from llava_demo.engines import EngineInfo, EngineStatus
from llava_demo.engines.jobs import SHUTTING_DOWN, Job, JobEngine
from llava_demo.engines.queue import FairQueue
from llava_demo.errors import DemoError, EngineUnavailable

if TYPE_CHECKING:
    from llava_demo.model.llava import Llava


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
        """Raise what `join` would raise now for a job of `caller`."""
        with self._lock:
            if self._refusal:
                raise EngineUnavailable(self._refusal)
            self._queue.check(caller)

    def join(self, job: Job) -> None:
        """Have a job wait for its slot.

        Raises:
            EngineUnavailable: `refuse_all` was called.
            EngineBusy, TooManyRequests: as `FairQueue.check` says.
        """
        with self._lock:
            if self._refusal:
                raise EngineUnavailable(self._refusal)
            self._queue.push(job, job.request.caller)
        self._begin_next()

    def leave(self, job: Job) -> None:
        """Free the slot or the place of a job that has ended, or whose caller has disconnected."""
        with self._lock:
            self._queue.remove(job)
        self._begin_next()

    def cancel(self, job: Job) -> None:
        """Free the place of a job that waits; one that runs is told, and keeps its slot until it leaves."""
        job.is_cancelled.set()
        with self._lock:
            if not self._queue.has_slot(job):
                self._queue.remove(job)

    def open(self, slots: int) -> None:
        """Have `slots` jobs run at once from now on."""
        with self._lock:
            self._queue.slots = slots
        self._begin_next()

    def refuse_all(self, why: str) -> None:
        """Refuse all jobs, those that are here and those that will come."""
        with self._lock:
            self._refusal = why
            refused = self._queue.clear()
        for job in refused:
            job.is_cancelled.set()
            job.put(EngineUnavailable(why))

    def _begin_next(self) -> None:
        """Begin as many jobs as there are free slots."""
        begun = []
        with self._lock:
            while (job := self._queue.first()) is not None:
                self._queue.take(job)
                begun.append(job)
        for job in begun:
            self._begin(job)


class ThreadEngine(JobEngine):
    """A `JobEngine` with `slots` threads at most; a thread exists only while its job is answered."""

    def __init__(self, llava: "Llava", info: EngineInfo, max_queue: int, slots: int) -> None:
        super().__init__(llava, info)
        self._turns = Turns(slots, max_queue, self._begin)
        self._thread: threading.Thread | None = None  # the last one that began

    def status(self) -> EngineStatus:
        return EngineStatus("failed" if self._turns.refusal else "ready", *self._turns.counts)

    async def aclose(self) -> None:
        """Cancel what runs, refuse what waits and what will come."""
        self._turns.refuse_all(SHUTTING_DOWN)

    @abstractmethod
    def _outcome(self, job: Job) -> Chunk | DemoError:
        """Answer a job in its thread: put all chunks but the last one, and return that one, or the failure."""

    def _check_room(self, caller: str) -> None:
        self._turns.check(caller)

    def _admit(self, job: Job) -> None:
        self._turns.join(job)

    def _cancel(self, job: Job) -> None:
        self._turns.cancel(job)

    def _begin(self, job: Job) -> None:
        thread = threading.Thread(target=job.context.run, args=(self._work, job), name="answer", daemon=True)
        try:
            thread.start()
            self._thread = thread
        except RuntimeError:  # the system starts no more threads
            self._turns.leave(job)
            job.put(EngineUnavailable("This machine can start no more threads; try again in a while."))

    def _work(self, job: Job) -> None:
        last = self._outcome(job)
        self._turns.leave(job)
        job.put(last)  # only now: a caller that has its answer finds the slot free again
