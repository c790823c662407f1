"""The report: a table of what was measured beside what is allowed, and a plot of the crowd."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from tests.load.watch import Watch


@dataclass(frozen=True)
class Row:
    """One figure; `is_met` is None where it is shown only."""

    scenario: str
    what: str
    measured: str
    allowed: str = ""
    is_met: bool | None = None

    @classmethod
    def of(cls, scenario: str, what: str, measured: float, most: float) -> "Row":
        """A number that may be `most` at most."""
        return cls(scenario, what, f"{measured:g}", f"{most:g}" if not most else f"<= {most:g}", measured <= most)

    def judged(self, is_met: bool) -> "Row":
        return replace(self, is_met=is_met)


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    marks = {None: "", True: "yes", False: "**no**"}
    lines = ["| scenario | what | measured | allowed | met |", "| --- | --- | ---: | ---: | --- |"]
    return "\n".join(
        [*lines, *(f"| {r.scenario} | {r.what} | {r.measured} | {r.allowed} | {marks[r.is_met]} |" for r in rows)]
    )


def report(rows: Sequence[Row], command: str) -> str:
    """Heading, table and plot."""
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {date.today().isoformat()}"
    plot = "" if all(row.scenario != "crowd" for row in rows) else "\n![The crowd](crowd.png)\n"
    return f"# Load and faults\n\n`{command}` with the miniature, on {machine}.\n\n{table(rows)}\n{plot}"


def plot_crowd(watch: Watch, path: Path) -> None:
    """Requests, memory and the time that a health check takes, over the time of a crowd."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 1, sharex=True, figsize=(9, 7), layout="constrained")
    lines: list[tuple[Any, str]] = [(watch.running, "running"), (watch.waiting, "waiting")]
    for values, name in lines:
        axes[0].plot(watch.times_s, values, label=name, linewidth=1)
    axes[0].legend(loc="upper right")
    axes[0].set_ylabel("requests")
    axes[1].plot(watch.times_s, watch.rss_mb, linewidth=1)
    axes[1].set_ylabel("memory, MB")
    axes[1].set_ylim(bottom=0)
    axes[2].plot(watch.times_s, watch.health_ms, ".", markersize=2)
    axes[2].axhline(50, color="gray", linewidth=1, linestyle="--")
    axes[2].set_ylabel("/health, ms")
    axes[2].set_xlabel("seconds")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
