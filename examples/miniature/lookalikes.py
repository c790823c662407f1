"""Corners of the shapes that training exchanges for those of the world (see `scenes.exchanged`)."""

import math
import random
from collections.abc import Callable

from examples.miniature.geometry import Point, polygon


def corners_of(rng: random.Random, shape: str, center: Point, radius: float) -> list[Point]:
    """The corners of a shape outside of the world."""
    x, y = center
    return [(x + radius * u, y + radius * v) for u, v in _SHAPES[shape](rng)]


def _regular(count: int, inner: tuple[float, float] = (0.0, 0.0)) -> Callable[[random.Random], list[Point]]:
    def unit(rng: random.Random) -> list[Point]:
        reach = 1.1 if inner[1] else rng.uniform(1, 1.08)
        return polygon(0, 0, reach, count, rng.uniform(0, 2 * math.pi / count), rng.uniform(*inner))

    return unit


def _stretched(count: int, size: float) -> Callable[[random.Random], list[Point]]:
    """An ellipse or a rectangle, wide or tall."""

    def unit(rng: random.Random) -> list[Point]:
        ratio = 1.2 + 0.7 * rng.random() ** 1.5  # what is nearest to one is hardest
        a, b = (1, 1 / ratio) if rng.random() < 0.5 else (1 / ratio, 1)
        return [(a * u, b * v) for u, v in polygon(0, 0, size, count, math.pi / count)]

    return unit


def _slice(share: float) -> Callable[[random.Random], list[Point]]:
    def unit(rng: random.Random) -> list[Point]:
        start = rng.choice((0, 1, 2, 3)) * math.pi / 2
        turns = [start + 2 * math.pi * share * k / 30 for k in range(31)]
        return [*((math.sin(a), -math.cos(a)) for a in turns), (0.0, 0.0)]

    return unit


def _turned_in_quarters(*points: Point) -> Callable[[random.Random], list[Point]]:
    def unit(rng: random.Random) -> list[Point]:
        found = list(points)
        for _ in range(rng.randrange(4)):
            found = [(-v, u) for u, v in found]
        return found

    return unit


def _upside_down(rng: random.Random) -> list[Point]:
    return polygon(0, -0.2, 1.17, 3, math.pi + rng.uniform(-0.2, 0.2))


_SHAPES: dict[str, Callable[[random.Random], list[Point]]] = {
    "pentagon": _regular(5),
    "hexagon": _regular(6),
    "heptagon": _regular(7),
    "octagon": _regular(8),
    "oval": _stretched(40, 1.0),
    "half": _slice(0.5),
    "three quarters": _slice(0.75),
    "rectangle": _stretched(4, 1.2),
    "diamond": lambda rng: [(0, -1.1), (w := rng.uniform(0.6, 1.0), 0), (0, 1.1), (-w, 0)],
    "trapezium": _turned_in_quarters((-0.5, -0.8), (0.5, -0.8), (1, 0.8), (-1, 0.8)),
    "parallelogram": _turned_in_quarters((-0.5, -0.7), (1.1, -0.7), (0.5, 0.7), (-1.1, 0.7)),
    "kite": _turned_in_quarters((0, -1.1), (0.7, -0.3), (0, 1.1), (-0.7, -0.3)),
    "arrow": _turned_in_quarters((0, -1), (1, 0.1), (0.4, 0.1), (0.4, 1), (-0.4, 1), (-0.4, 0.1), (-1, 0.1)),
    "plus": _turned_in_quarters(
        *((0.3 * a, 0.3 * b) for a, b in ((1, 1), (1, 3.4), (-1, 3.4), (-1, 1), (-3.4, 1), (-3.4, -1))),
        *((0.3 * a, 0.3 * b) for a, b in ((-1, -1), (-1, -3.4), (1, -3.4), (1, -1), (3.4, -1), (3.4, 1))),
    ),
    "upside down": _upside_down,
    "four points": _regular(4, (0.35, 0.6)),
    "six points": _regular(6, (0.45, 0.65)),
    "seven points": _regular(7, (0.5, 0.7)),
}
