"""A sheet of paper for draw.py: Pillow with smooth edges. It knows nothing of what is drawn on it.

All lengths are pixels of the finished picture. Inside, everything is drawn SCALE times larger and made smaller at the
end, which is what smooths the edges. Only Pillow's own font is used, so that every machine draws the same pixels.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from PIL import Image, ImageDraw, ImageFilter, ImageFont

SCALE = 3
Color = str | tuple[int, int, int] | tuple[int, int, int, int]
Point = tuple[float, float]


class Canvas:
    """A picture in the making; `picture()` hands it over."""

    def __init__(self, width: int, height: int, color: Color = "white") -> None:
        self.width, self.height = width, height
        self._sheet = Image.new("RGB", (width * SCALE, height * SCALE), color)
        self._draw = ImageDraw.Draw(self._sheet, "RGBA")

    def circle(self, x: float, y: float, radius: float, fill: Color, squash: float = 1) -> None:
        """A disc, or an ellipse whose height is `squash` times its width."""
        box = (x - radius, y - radius * squash, x + radius, y + radius * squash)
        self._draw.ellipse([value * SCALE for value in box], fill=fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Color, radius: float = 0) -> None:
        """A rectangle, its corners rounded by `radius`."""
        corners = [value * SCALE for value in (left, top, right, bottom)]
        self._draw.rounded_rectangle(corners, radius * SCALE, fill=fill)

    def polygon(self, points: Sequence[Point], fill: Color) -> None:
        self._draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=fill)

    def line(self, points: Sequence[Point], fill: Color, width: float) -> None:
        """A line through all points, round at its joints and ends."""
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self._draw.line(scaled, fill=fill, width=round(width * SCALE))
        for x, y in points:
            self.circle(x, y, width / 2, fill)

    def dashes(self, start: Point, end: Point, fill: Color, width: float, dash: float = 8) -> None:
        """A dashed line; the gaps are as long as the dashes."""
        count = max(1, round(math.dist(start, end) / dash / 2))
        (x0, y0), (dx, dy) = start, (end[0] - start[0], end[1] - start[1])
        for i in range(count):
            a, b = i / count, (i + 0.5) / count
            self.line([(x0 + dx * a, y0 + dy * a), (x0 + dx * b, y0 + dy * b)], fill, width)

    def text(self, at: Point, text: str, size: float, fill: Color, anchor: str = "mm", bold: float = 0) -> None:
        """One line of text at an anchor of Pillow's; `bold` thickens each stroke by so many pixels on either side."""
        font = ImageFont.load_default(size * SCALE)
        self._draw.text((at[0] * SCALE, at[1] * SCALE), text, fill, font, anchor, stroke_width=bold * SCALE)

    def cloud(self, x: float, y: float, size: float, fill: Color) -> None:
        """Four puffs on a flat base, about three times `size` wide."""
        for dx, dy, radius in ((-1.15, 0.1, 0.48), (-0.5, -0.3, 0.72), (0.3, -0.42, 0.85), (1.0, -0.05, 0.6)):
            self.circle(x + dx * size, y + dy * size, radius * size, fill)
        self.box(x - 1.63 * size, y - 0.04 * size, x + 1.6 * size, y + 0.58 * size, fill, 0.31 * size)

    def sun(self, x: float, y: float, radius: float, fill: Color) -> None:
        """A disc in two rings of pale light."""
        for ring, color in ((2.1, "#fff6d838"), (1.5, "#fff3c870"), (1, fill)):
            self.circle(x, y, radius * ring, color)

    def gradient(self, top: Color, bottom: Color, start: float = 0, end: float | None = None) -> None:
        """Fill the rows from `start` to `end` with a smooth change of colour."""
        rows = round(((self.height if end is None else end) - start) * SCALE)
        ramp = Image.linear_gradient("L").resize((self._sheet.width, rows))
        size = ramp.size
        blend = Image.composite(Image.new("RGB", size, bottom), Image.new("RGB", size, top), ramp)
        self._sheet.paste(blend, (0, round(start * SCALE)))

    @contextmanager
    def soft(self, blur: float, color: Color, opacity: float) -> Iterator["Canvas"]:
        """A second canvas; whatever is drawn on it in white lands here in `color`, blurred: shadows and glows."""
        stencil = Canvas(self.width, self.height, "black")
        yield stencil
        # A blur leaves no fine detail, so it is computed on the small picture.
        mask = stencil.picture().convert("L").filter(ImageFilter.GaussianBlur(blur))
        mask = mask.point(lambda value: round(value * opacity)).resize(self._sheet.size)
        self._sheet.paste(color, (0, 0), mask)

    def picture(self) -> Image.Image:
        return self._sheet.reduce(SCALE)


def curve(start: Point, control: Point, end: Point) -> list[Point]:
    """The points of a quadratic Bezier curve, near enough together to look smooth."""
    points = []
    for i in range(33):
        t = i / 32
        weights = (1 - t) ** 2, 2 * t * (1 - t), t**2
        x, y = (sum(w * p[axis] for w, p in zip(weights, (start, control, end), strict=True)) for axis in (0, 1))
        points.append((x, y))
    return points
