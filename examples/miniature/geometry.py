"""Corners of the shapes that the pictures of this package are made of."""

import math
import random

Point = tuple[float, float]


def outline(rng: random.Random, shape: str, center: Point, radius: float, difficulty: float) -> list[Point]:
    """The corners of a square, triangle or star round `center`, a little turned and stretched."""
    x, y = center

    def turn(limit: float) -> float:
        return rng.uniform(-limit, limit) * difficulty if rng.random() < 0.5 else 0.0

    if shape == "square":
        corners = polygon(x, y, radius * 1.2, 4, math.pi / 4 + turn(0.2))
    elif shape == "triangle":
        corners = polygon(x, y + radius * 0.2, radius * 1.17, 3, turn(0.25))
    else:
        corners = polygon(x, y, radius * 1.15, 5, turn(0.3), rng.uniform(0.36, 0.52))
    least = 0.96 if shape == "square" else 0.82  # a rectangle is a stranger
    stretch = [rng.uniform(least, 1) if rng.random() < 0.4 * difficulty else 1.0 for _ in "xy"]
    return [(x + (px - x) * stretch[0], y + (py - y) * stretch[1]) for px, py in corners]


def polygon(x: float, y: float, radius: float, corners: int, angle: float, inner: float = 0) -> list[Point]:
    """A regular polygon whose first corner points up at `angle` 0; a star where `inner` is the share of its notches."""
    points = []
    count = corners * 2 if inner else corners
    for i in range(count):
        a = angle + 2 * math.pi * i / count
        reach = radius * (inner if inner and i % 2 else 1)
        points.append((x + reach * math.sin(a), y - reach * math.cos(a)))
    return points
