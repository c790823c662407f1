"""The curve of a training run as a picture: what was learned, against minutes."""

import json
from pathlib import Path

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
    """Draw the accuracies in a run's `log.jsonl`, both lessons one after the other."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    ends = {name: max((r["minutes"] for r in rows if r["lesson"] == name), default=0.0) for name in _CURVES}
    total = max(sum(ends.values()), 1e-9)
    picture = Image.new("RGB", _SIZE, "white")
    brush, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    left, top, right, bottom = _BOX

    def at(minutes: float, share: float) -> tuple[float, float]:
        return left + (right - left) * minutes / total, bottom - (bottom - top) * share

    for tenth in range(0, 11, 2):
        brush.line([at(0, tenth / 10), at(total, tenth / 10)], fill="#e5e7eb")
        brush.text((left - 12, at(0, tenth / 10)[1]), f"{tenth * 10} %", fill="#6b7280", font=font, anchor="rm")
    brush.text((left, 20), "Right answers against minutes of training", fill="#111827", font=ImageFont.load_default(20))
    start, line = 0.0, 0
    for lesson, curves in _CURVES.items():
        brush.text((at(start, 0)[0] + 4, bottom + 10), f"{lesson}, {ends[lesson]:.0f} min", fill="#6b7280", font=font)
        brush.line([at(start, 0), at(start, 1)], fill="#d1d5db")
        for name, color in curves:
            points = [at(start + r["minutes"], r[name]) for r in rows if r["lesson"] == lesson and name in r]
            if len(points) > 1:
                brush.line(points, fill=color, width=3, joint="curve")
            if lesson != "polish":  # the colours of the lesson before
                brush.text((right + 20, top + 26 * line), f"{lesson}: {name}", fill=color, font=font)
                line += 1
        start += ends[lesson]
    picture.save(target)
