"""The curve of a training run as a picture: what was learned, against minutes."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_SIZE = (1000, 620)
_BOX = (70, 60, 780, 560)  # of the plot
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
    """Draw the accuracies in a run's `log.jsonl`, one lesson after the other, those of earlier runs before."""
    lessons = _lessons([json.loads(line) for line in log.read_text().splitlines()])
    total = max(sum(rows[-1]["minutes"] for rows in lessons), 1e-9)
    picture = Image.new("RGB", _SIZE, "white")
    brush, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    left, top, right, bottom = _BOX

    def at(minutes: float, share: float) -> tuple[float, float]:
        return left + (right - left) * minutes / total, bottom - (bottom - top) * share

    for tenth in range(0, 11, 2):
        brush.line([at(0, tenth / 10), at(total, tenth / 10)], fill="#e5e7eb")
        brush.text((left - 12, at(0, tenth / 10)[1]), f"{tenth * 10} %", fill="#6b7280", font=font, anchor="rm")
    brush.text((left, 20), "Right answers against minutes of training", fill="#111827", font=ImageFont.load_default(20))
    start = 0.0
    for rows in lessons:
        lesson, minutes = rows[0]["lesson"], rows[-1]["minutes"]
        brush.line([at(start, 0), at(start, 1)], fill="#d1d5db")
        for k, words in enumerate((lesson, f"{minutes:.0f} min")):
            if at(start, 0)[0] + 4 + brush.textlength(words, font) < at(start + minutes, 0)[0]:
                brush.text((at(start, 0)[0] + 4, bottom + 10 + 20 * k), words, fill="#6b7280", font=font)
        for name, color in _CURVES[lesson]:
            points = [at(start + row["minutes"], row[name]) for row in rows if name in row]
            if len(points) > 1:
                brush.line(points, fill=color, width=3, joint="curve")
        start += minutes
    legend = [(lesson, *curve) for lesson in ("vision", "language") for curve in _CURVES[lesson]]
    for line, (lesson, name, color) in enumerate(legend):
        brush.text((right + 20, top + 26 * line), f"{lesson}: {name}", fill=color, font=font)
    picture.save(target)


def _lessons(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of each lesson that took its time."""
    lessons: list[list[dict[str, Any]]] = []
    for row in rows:
        if not lessons or row["lesson"] != lessons[-1][-1]["lesson"] or row["minutes"] < lessons[-1][-1]["minutes"]:
            lessons.append([])
        lessons[-1].append(row)
    return [rows for rows in lessons if rows[-1]["minutes"] >= 0.1]
