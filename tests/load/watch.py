"""A server's process, seen from outside: memory, threads, open files, and how fast it says how it is."""

import statistics
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

EVERY_S = 0.1


@dataclass
class Watch:
    """Measures from `start` to `stop`, ten times a second, in a thread."""

    url: str
    pid: int
    times_s: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    health_ms: list[float] = field(default_factory=list)

    def __enter__(self) -> "Watch":
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._measure)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def percentile_ms(self, part: float) -> float:
        """The time within which this part of the questions after its health were answered."""
        return sorted(self.health_ms)[min(len(self.health_ms) - 1, int(part * len(self.health_ms)))]

    def growth(self, warm_up: float = 0.25) -> float:
        """How much larger the memory is at the end than after the warm-up, as a part of it."""
        warm = self.rss_mb[int(len(self.rss_mb) * warm_up) :]
        tenth = max(1, len(warm) // 10)
        return statistics.median(warm[-tenth:]) / statistics.median(warm[:tenth]) - 1

    def _measure(self) -> None:
        begun = time.perf_counter()
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self._end.wait(EVERY_S):
                start = time.perf_counter()
                health = client.get("health/live").json()
                self.health_ms.append((time.perf_counter() - start) * 1000)
                self.times_s.append(start - begun)
                self.running.append(health["running"])
                self.waiting.append(health["waiting"])
                self.rss_mb.append(rss_mb(self.pid))


def rss_mb(pid: int) -> float:
    """The memory of a process and of those that it started, in megabytes."""
    total = 0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 2**20


def held(pid: int) -> dict[str, int]:
    """What a process holds that requests could leave behind."""
    process = psutil.Process(pid)
    return {"threads": process.num_threads(), "handles": process.num_fds()}


def gauges(url: str) -> dict[str, float]:
    """The numbers of /metrics that have no labels, by name."""
    lines = httpx.get(f"{url}metrics", timeout=60).text.splitlines()
    pairs: list[Any] = [line.split() for line in lines if line.startswith("llava_") and "{" not in line]
    return {name: float(value) for name, value in pairs}
