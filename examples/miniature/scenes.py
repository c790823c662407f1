"""The miniature's world: what can be in a picture, where, and in which colour. It knows nothing of pixels or words.

A scene is one of three kinds
    shapes  one to three circles, squares, triangles or stars, well apart, each in one of seven colours
    digit   one large digit
    other   anything else; the model must say that it does not know it. Some are scenes of the other two kinds in which
            one thing was exchanged for another that looks like it
`difficulty` is the curriculum of training: 0 is one large dark shape on a white square, 1 is the whole world.
"""

import colorsys
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

Kind = Literal["shapes", "digit", "other"]
RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star")
COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "black")
BACKGROUNDS = ("white", "gray", "black")
DIGITS = "0123456789"
_KNOWN: tuple[Kind, Kind] = ("shapes", "digit")
MAX_OBJECTS = 3

# A colour's plain RGB, and the ranges (hue in degrees, saturation, value) that everyone would call by its name.
_PALETTE: dict[str, tuple[RGB, tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((255, 0, 0), (-16, 6), (0.75, 1), (0.72, 1)),  # crimson, too
    "green": ((0, 128, 0), (95, 158), (0.55, 1), (0.42, 1)),
    "blue": ((0, 0, 255), (208, 244), (0.62, 1), (0.58, 1)),
    "yellow": ((255, 255, 0), (48, 61), (0.72, 1), (0.9, 1)),
    "orange": ((255, 165, 0), (20, 40), (0.8, 1), (0.9, 1)),
    "purple": ((128, 0, 128), (270, 304), (0.5, 1), (0.42, 0.84)),
    "black": ((0, 0, 0), (0, 360), (0, 0.3), (0, 0.14)),
}
_DARK = ("red", "green", "blue", "purple", "black")
# Of so many shapes: the smallest radius where all is easy, the smallest, the largest; shares of the short side.
_RADII = {1: (0.24, 0.09, 0.38), 2: (0.19, 0.1, 0.28), 3: (0.19, 0.1, 0.23)}
# What a thing of the world is exchanged for, so that training shows where the world ends.
_LETTERS = {
    "0": "OOOQDCUo", "1": "ILTJ", "2": "ZSR", "3": "BEJS", "4": "AHY", "5": "SJE", "6": "GCEB", "7": "TZYF?",
    "8": "BSRX", "9": "PQRg",
}  # fmt: skip
_ROUND_LETTERS = 0.4  # share of the letters that are like a 0, which fonts tell apart least
_LIKE = {
    "circle": ("oval", "half", "three quarters"),
    "square": ("rectangle", "rectangle", "diamond", "trapezium", "pentagon", "parallelogram"),
    "triangle": ("parallelogram", "trapezium", "kite", "arrow", "half", "upside down"),
    "star": ("four points", "six points", "seven points", "pentagon", "plus"),
}
_ROUND = {"pentagon": 0.191, "hexagon": 0.134, "heptagon": 0.099, "octagon": 0.076}  # 1 - cos(180 degrees / corners)
_LEAST_DEVIATION = 0.0094  # from a circle, as a share of the square: what can be seen at 96 pixels
_BANDS = ((0.11, 0.32), (0.38, 0.62), (0.68, 0.89))  # left, middle, right thirds of a picture, with gaps between them


@dataclass(frozen=True)
class Shape:
    """A filled shape. `x`, `y` and `radius` are shares of the square picture that the model sees."""

    shape: str
    color: str
    rgb: RGB
    x: float
    y: float
    radius: float
    column: int  # 0 left, 1 middle, 2 right of the picture as it was drawn
    row: int  # 0 top, 1 middle, 2 bottom


@dataclass(frozen=True)
class Frame:
    """Where the drawing lies in the padded square: all of it, or a band when it is wide or tall."""

    left: float = 0.0
    top: float = 0.0
    width: float = 1.0
    height: float = 1.0

    @property
    def short_side(self) -> float:
        return min(self.width, self.height)


@dataclass(frozen=True)
class Scene:
    kind: Kind
    frame: Frame = Frame()
    background: str = ""
    background_rgb: RGB = (255, 255, 255)
    objects: tuple[Shape, ...] = ()  # in reading order
    digit: str = ""
    digit_color: str = ""
    digit_rgb: RGB = (0, 0, 0)
    difficulty: float = 1.0

    def matching(self, shape: str | None = None, color: str | None = None) -> list[Shape]:
        """The objects of this shape and colour; None matches all."""
        return [o for o in self.objects if shape in (None, o.shape) and color in (None, o.color)]


@dataclass(frozen=True)
class World:
    """How scenes are drawn at random."""

    difficulty: float = 1.0
    max_objects: int = MAX_OBJECTS
    mix: tuple[float, float, float] = (0.72, 0.15, 0.13)  # shares of shapes, digits, other pictures
    object_counts: Sequence[float] = field(default=(0.28, 0.34, 0.38))
    lookalikes: float = 0.3  # share of the other pictures in which one thing was exchanged

    def sample(self, rng: random.Random, kind: Kind | None = None) -> Scene:
        kind = kind or rng.choices((*_KNOWN, "other"), self.mix)[0]
        if kind == "other" and rng.random() < self.lookalikes * self.difficulty:
            return exchanged(rng, self.sample(rng, rng.choices(_KNOWN, (0.75, 0.25))[0]))
        frame = _frame(rng, self.difficulty)
        if kind == "other":
            return Scene(kind, frame, difficulty=self.difficulty)
        background, background_rgb = _background(rng, self.difficulty)
        usable = [c for c in COLORS if c != background] if self.difficulty >= 0.2 else list(_DARK)
        if kind == "digit":
            color = rng.choice(usable)
            return Scene(
                kind, frame, background, background_rgb, (), rng.choice(DIGITS), color, shade(rng, color),
                self.difficulty,
            )  # fmt: skip
        objects = self._objects(rng, frame, usable)
        return Scene(kind, frame, background, background_rgb, objects, difficulty=self.difficulty)

    def _objects(self, rng: random.Random, frame: Frame, usable: Sequence[str]) -> tuple[Shape, ...]:
        most = min(self.max_objects, 1 if self.difficulty < 0.25 else 2 if self.difficulty < 0.5 else 3)
        count = rng.choices((1, 2, 3)[:most], self.object_counts[:most])[0]
        shapes = rng.sample(SHAPES, 2) if rng.random() < 0.35 else SHAPES  # repeated shapes and colours are the
        colors = rng.sample(usable, 2) if rng.random() < 0.3 else usable  # hard ones: make them frequent
        while True:
            found: list[Shape] = []
            # As people place things; what only strangers do becomes a sign of them.
            (line,) = rng.choices(("", "row", "column"), (0.3, 0.46, 0.24))
            is_even, across, is_on_grid = rng.random() < 0.6, rng.uniform(0.16, 0.84), rng.random() < 0.25
            for _ in range(80):
                candidate = _place(rng, frame, count, rng.choice(shapes), rng.choice(colors), self.difficulty)
                if line and is_even:
                    candidate = _in_even_line(candidate, frame, line, ((len(found) + 0.5) / count, across))
                if is_on_grid:
                    candidate = _on_grid(candidate, frame)
                if line and found:
                    candidate = _in_line(candidate, found[0], line)
                if _is_inside(candidate, frame) and all(_are_apart(candidate, other) for other in found):
                    found.append(candidate)
                if len(found) == count:
                    return tuple(sorted(found, key=lambda o: (o.row, o.column)))


def exchanged(rng: random.Random, scene: Scene) -> Scene:
    """The scene with a letter for its digit, or with another shape for one of its shapes: of kind `other`."""
    if scene.digit:
        digit = "0" if rng.random() < _ROUND_LETTERS else scene.digit
        return replace(scene, kind="other", digit=rng.choice(_LETTERS[digit]))
    objects = list(scene.objects)
    (place,) = rng.choices(range(len(objects)), [2 if o.shape == "circle" else 1 for o in objects])
    usable = list(_LIKE[objects[place].shape])
    if objects[place].shape == "circle":
        usable += [name for name, off in _ROUND.items() if off * objects[place].radius > _LEAST_DEVIATION] * 2
    objects[place] = replace(objects[place], shape=rng.choice(usable))
    return replace(scene, kind="other", objects=tuple(objects))


def shade(rng: random.Random, color: str) -> RGB:
    """A shade that everyone would call `color`."""
    plain, hue, saturation, value = _PALETTE[color]
    if rng.random() < 0.3:
        return plain
    r, g, b = colorsys.hsv_to_rgb((rng.uniform(*hue) % 360) / 360, rng.uniform(*saturation), rng.uniform(*value))
    return int(r * 255), int(g * 255), int(b * 255)


def is_nearly_named(hue: float, saturation: float, value: float) -> bool:
    """Whether a colour lies so near to one of COLORS that somebody may call it by that name; hue in degrees."""
    for _, hues, saturations, values in _PALETTE.values():
        is_hue = (hue - hues[0] + 8) % 360 <= hues[1] - hues[0] + 16
        is_strong = saturations[0] - 0.1 <= saturation <= saturations[1] + 0.1
        if is_hue and is_strong and values[0] - 0.08 <= value <= values[1] + 0.08:
            return True
    return False


def _frame(rng: random.Random, difficulty: float) -> Frame:
    if difficulty < 0.3 or rng.random() < 0.42:
        return Frame()
    share = 1 / rng.choice((4 / 3, 3 / 2, 16 / 9, rng.uniform(1.02, 1.8)))
    if rng.random() < 0.65:
        return Frame(top=(1 - share) / 2, height=share)
    return Frame(left=(1 - share) / 2, width=share)


def _background(rng: random.Random, difficulty: float) -> tuple[str, RGB]:
    if difficulty < 0.25 or rng.random() < 0.45:
        grey = 255 if rng.random() < 0.6 else rng.randint(241, 255)
        return "white", (grey, grey, grey)
    if rng.random() < 0.5:
        grey = rng.randint(172, 222)
        return "gray", (grey, grey, grey)
    grey = 0 if rng.random() < 0.5 else rng.randint(0, 36)
    return "black", (grey, grey, grey)


def _place(rng: random.Random, frame: Frame, count: int, shape: str, color: str, difficulty: float) -> Shape:
    """A shape somewhere in one of the nine places of the frame, wholly inside of it."""
    while True:
        easy, least, most = _RADII[count]
        share = rng.uniform(easy - difficulty * (easy - least), most)
        column, row = (1, 1) if count == 1 and rng.random() < 0.3 else (rng.randrange(3), rng.randrange(3))
        x = frame.left + frame.width * rng.uniform(*_BANDS[column])
        y = frame.top + frame.height * rng.uniform(*_BANDS[row])
        radius = share * frame.short_side
        edge = radius * 1.13 + 0.01
        x = min(max(x, frame.left + edge), frame.left + frame.width - edge)
        y = min(max(y, frame.top + edge), frame.top + frame.height - edge)
        in_column = _BANDS[column][0] <= (x - frame.left) / frame.width <= _BANDS[column][1]
        if in_column and _BANDS[row][0] <= (y - frame.top) / frame.height <= _BANDS[row][1]:
            return Shape(shape, color, shade(rng, color), x, y, radius, column, row)


def _in_line(shape: Shape, first: Shape, line: str) -> Shape:
    """`shape` as large as `first`, and level with it or exactly below or above it."""
    if line == "row":
        return replace(shape, radius=first.radius, y=first.y, row=first.row)
    return replace(shape, radius=first.radius, x=first.x, column=first.column)


def _in_even_line(shape: Shape, frame: Frame, line: str, place: tuple[float, float]) -> Shape:
    """`shape` so far along the line and across it, as shares of the frame."""
    x, y = place if line == "row" else place[::-1]
    middle = {"x": frame.left + frame.width * x, "y": frame.top + frame.height * y}
    return replace(shape, **middle, column=int(3 * x), row=int(3 * y))


def _on_grid(shape: Shape, frame: Frame) -> Shape:
    """`shape` with its middle and its edges at sixteenths of the frame, as at the round numbers that people draw at.

    Edges that lie between two of the model's patches are then no sign of a stranger.
    """
    half_side = 0.85 if shape.shape == "square" else 1.0  # of a radius
    x, y = _nearest((shape.x - frame.left) / frame.width), _nearest((shape.y - frame.top) / frame.height)
    radius = max(2 / 16, _nearest(shape.radius * half_side / frame.short_side)) * frame.short_side / half_side
    middle = {"x": frame.left + frame.width * x, "y": frame.top + frame.height * y}
    return replace(shape, **middle, radius=radius, column=min(2, int(3 * x)), row=min(2, int(3 * y)))


def _nearest(share: float) -> float:
    return round(share * 16) / 16


def _is_inside(shape: Shape, frame: Frame) -> bool:
    edge = shape.radius * 1.13 + 0.0099
    is_across = frame.left + edge <= shape.x <= frame.left + frame.width - edge
    return is_across and frame.top + edge <= shape.y <= frame.top + frame.height - edge


def _are_apart(a: Shape, b: Shape) -> bool:
    is_elsewhere = (a.column, a.row) != (b.column, b.row)
    return is_elsewhere and math.hypot(a.x - b.x, a.y - b.y) > (a.radius + b.radius) * 1.15
