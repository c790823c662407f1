"""The curve of a training run as a picture: what was learned, against minutes."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

_LANGUAGE = (
    ("known", "#111827"), ("held_out", "#9ca3af"),
    ("known.where", "#c2410c"), ("known.describe", "#0f766e"), ("known.second", "#7c3aed"),
)  # fmt: skip
_CURVES = {
    "vision": (("shape", "#c2410c"), ("color", "#0f766e"), ("digit", "#1d4ed8"), ("picture_count", "#7c3aed")),
    "language": _LANGUAGE,
    "polish": _LANGUAGE,
}  # fmt: skip


def plot(log: Path, target: Path) -> None:
    """Draw the accuracies in a run's `log.jsonl`, one lesson after the other."""
    lessons = _lessons([json.loads(line) for line in log.read_text().splitlines()])
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title("Right answers against minutes of training", loc="left")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", color="#e5e7eb")
    start = 0.0
    for rows in lessons:
        lesson, minutes = rows[0]["lesson"], rows[-1]["minutes"]
        axes.axvline(start, color="#d1d5db")
        axes.text(start, 0.99, f" {lesson}, {minutes:.0f} min", color="#6b7280", size=8, va="top")
        for name, color in _CURVES[lesson]:
            points = [(start + row["minutes"], row[name]) for row in rows if name in row]
            if len(points) > 1:
                axes.plot(*zip(*points, strict=True), color=color, label=f"{lesson}: {name}")
        start += minutes
    labelled = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # a lesson may come twice
    if labelled:
        figure.legend(labelled.values(), labelled, loc="outside right upper", frameon=False)
    figure.savefig(target, dpi=100)


def _lessons(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of each lesson that took its time; what a killed run learned again counts once."""
    lessons: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        before = lessons.get(row["lesson"], [])
        lessons[row["lesson"]] = [*(old for old in before if old["minutes"] < row["minutes"]), row]
    return [rows for rows in lessons.values() if rows[-1]["minutes"] >= 0.1]
