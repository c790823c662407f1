"""Drawings that the miniature model knows: one to three plain shapes well apart, or one large digit."""

import math

from drawing.canvas import Canvas, Point

WIDTH, HEIGHT = 960, 720
WHITE, GRAY, BLACK = "#ffffff", "#d1d1d1", "#0e0e10"
RED, GREEN, BLUE = "#e5322d", "#17a34a", "#2160e8"
YELLOW, ORANGE, PURPLE = "#ffd91a", "#fb8500", "#8e2fc4"


def corners(x: float, y: float, radii: tuple[float, ...], count: int) -> list[Point]:
    """`count` points around a centre, clockwise from the top, at the given radii in turn."""
    turns = [(radii[i % len(radii)], math.tau * i / count) for i in range(count)]
    return [(x + radius * math.sin(angle), y - radius * math.cos(angle)) for radius, angle in turns]


def square(canvas: Canvas, x: float, y: float, size: float, fill: str) -> None:
    canvas.box(x - size, y - size, x + size, y + size, fill)


def triangle(canvas: Canvas, x: float, y: float, size: float, fill: str) -> None:
    canvas.polygon(corners(x, y + size * 0.2, (size * 1.25,), 3), fill)


def star(canvas: Canvas, x: float, y: float, size: float, fill: str) -> None:
    canvas.polygon(corners(x, y + size * 0.06, (size * 1.2, size * 0.5), 10), fill)


def circle_and_square() -> Canvas:
    canvas = Canvas(WIDTH, HEIGHT, GRAY)
    canvas.circle(288, 360, 146, RED)
    square(canvas, 672, 360, 130, BLUE)
    return canvas


def night_star() -> Canvas:
    canvas = Canvas(WIDTH, HEIGHT, BLACK)
    star(canvas, 480, 360, 205, YELLOW)
    return canvas


def three_shapes() -> Canvas:
    canvas = Canvas(WIDTH, HEIGHT, GRAY)
    triangle(canvas, 215, 210, 112, GREEN)
    star(canvas, 745, 210, 122, PURPLE)
    canvas.circle(480, 530, 118, ORANGE)
    return canvas


def two_squares() -> Canvas:
    canvas = Canvas(WIDTH, HEIGHT, WHITE)
    square(canvas, 230, 500, 118, PURPLE)
    square(canvas, 730, 220, 118, YELLOW)
    return canvas


def seven() -> Canvas:
    canvas = Canvas(WIDTH, HEIGHT, WHITE)
    canvas.text((480, 360), "7", 640, RED, bold=9)
    return canvas


def night_four() -> Canvas:
    canvas = Canvas(WIDTH, HEIGHT, BLACK)
    canvas.text((480, 360), "4", 640, GREEN, bold=9)
    return canvas
