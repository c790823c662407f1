"""Drawings of landscapes, for the 7B to describe and explain: a cottage, and the water cycle with its labels."""

import math

from drawing.canvas import Canvas, Point, curve

WIDTH, HEIGHT = 960, 720
INK = "#1f2937"


def cottage() -> Canvas:
    canvas = Canvas(WIDTH, HEIGHT)
    canvas.gradient("#5fb0e6", "#fdeed6", end=470)
    canvas.sun(180, 130, 58, "#ffc93c")
    canvas.cloud(430, 120, 54, "#ffffff")
    canvas.cloud(795, 96, 40, "#f4f9fc")
    for x, y in ((560, 190), (610, 168), (655, 200)):
        canvas.line(
            curve((x - 17, y - 6), (x - 8, y - 12), (x, y)) + curve((x, y), (x + 8, y - 12), (x + 17, y - 6)), INK, 3
        )
    mountains = [
        (0, 400),
        (110, 300),
        (190, 372),
        (330, 240),
        (470, 390),
        (600, 290),
        (720, 380),
        (850, 270),
        (960, 360),
    ]
    canvas.polygon([*mountains, (960, 720), (0, 720)], "#a5c0d4")
    hills(canvas, 420, 34, 1.1, 0.6, "#8fbf8a")
    hills(canvas, 462, 26, 0.8, 3.6, "#79b366")
    hills(canvas, 540, 18, 0.6, 0.2, "#64a44f")
    house(canvas, 640, 560)
    tree(canvas, 215, 590, 1.25)
    tree(canvas, 880, 545, 0.7)
    fence(canvas)
    flowers(canvas)
    return canvas


def hills(canvas: Canvas, base: float, swing: float, waves: float, shift: float, fill: str) -> None:
    """A rolling ridge and all the land below it."""
    ridge = [(x, base - swing * math.sin(waves * math.tau * x / WIDTH + shift)) for x in range(0, WIDTH + 1, 8)]
    canvas.polygon([*ridge, (WIDTH, HEIGHT), (0, HEIGHT)], fill)


def house(canvas: Canvas, x: float, floor: float) -> None:
    """A white house with a red roof, its door at x, a path to the picture's edge, smoke from its chimney."""
    path = curve((x - 26, floor), (x - 60, floor + 70), (x - 170, HEIGHT))
    path += curve((x - 20, HEIGHT), (x + 20, floor + 70), (x + 26, floor))
    canvas.polygon(path, "#e3cfa4")
    for dx, dy, radius in ((0, -290, 13), (14, -322, 18), (38, -360, 24)):
        canvas.circle(x + 84 + dx, floor + dy, radius, "#f3f6f8")
    canvas.box(x + 66, floor - 280, x + 104, floor - 190, "#9c4a35")
    canvas.box(x + 60, floor - 286, x + 110, floor - 272, "#7f3a29")
    canvas.box(x - 140, floor - 150, x + 140, floor, "#fbf3e2")
    canvas.box(x - 140, floor - 16, x + 140, floor, "#d9c8a8")
    canvas.polygon(
        [(x - 172, floor - 144), (x - 104, floor - 250), (x + 104, floor - 250), (x + 172, floor - 144)], "#c8553d"
    )
    canvas.polygon(
        [(x - 172, floor - 144), (x + 172, floor - 144), (x + 164, floor - 157), (x - 164, floor - 157)], "#a84430"
    )
    canvas.box(x - 28, floor - 104, x + 28, floor, "#2f6690", 6)
    canvas.box(x - 20, floor - 94, x + 20, floor - 60, "#bfe0f2", 4)
    canvas.circle(x + 17, floor - 42, 4, "#f2c14e")
    for side in (-1, 1):
        window(canvas, x + side * 84, floor - 74)


def window(canvas: Canvas, x: float, y: float) -> None:
    for side in (-1, 1):
        canvas.box(x + side * 37 - 8, y - 30, x + side * 37 + 8, y + 30, "#2f6690", 2)
    canvas.box(x - 29, y - 30, x + 29, y + 30, "#ffffff", 3)
    for dx in (-24, 2):
        for dy in (-25, 2):
            canvas.box(x + dx, y + dy, x + dx + 22, y + dy + 23, "#ffe3a3")


def tree(canvas: Canvas, x: float, floor: float, size: float) -> None:
    """A round leafy tree, lit from the left."""
    canvas.circle(x + 14 * size, floor, 92 * size, "#569543", squash=0.16)
    trunk = [(-19, 2), (-12, -110), (12, -110), (21, 2)]
    canvas.polygon([(x + dx * size, floor + dy * size) for dx, dy in trunk], "#7a5233")
    leaves = (
        ("#2f7a3f", ((-58, -140, 56), (60, -138, 58), (0, -180, 78), (40, -222, 54), (-38, -214, 56))),
        ("#3d9150", ((-62, -150, 44), (-6, -196, 62), (-36, -226, 42), (42, -170, 36))),
        ("#55a964", ((-70, -160, 22), (-30, -232, 24), (-14, -190, 26))),
    )
    for fill, discs in leaves:
        for dx, dy, radius in discs:
            canvas.circle(x + dx * size, floor + dy * size, radius * size, fill)


def fence(canvas: Canvas) -> None:
    for y in (604, 632):
        canvas.box(716, y, 960, y + 9, "#f4ead6")
    for x in range(726, 960, 40):
        canvas.polygon([(x, 590), (x + 8, 578), (x + 16, 590), (x + 16, 662), (x, 662)], "#fffaf0")


def flowers(canvas: Canvas) -> None:
    places = ((60, 650), (118, 690), (176, 655), (250, 694), (310, 652), (372, 690), (430, 660), (690, 694), (752, 700))
    for i, (x, y) in enumerate(places):
        fill = ("#ffffff", "#ffd24d", "#f28482")[i % 3]
        canvas.line([(x, y), (x, y + 20)], "#3f7d34", 3)
        for turn in range(5):
            canvas.circle(x + 7 * math.sin(turn * math.tau / 5), y - 7 * math.cos(turn * math.tau / 5), 5.5, fill)
        canvas.circle(x, y, 4, "#e09f1f")


def water_cycle() -> Canvas:
    canvas = Canvas(WIDTH, HEIGHT)
    canvas.gradient("#b5dbf3", "#f5fafb", end=560)
    canvas.sun(112, 108, 52, "#fbc63c")
    mountains(canvas)
    sea(canvas)
    canvas.cloud(395, 148, 56, "#ffffff")
    canvas.cloud(760, 200, 82, "#dfe7ee")
    for i in range(8):
        x, y = 662 + i * 28, 264 + i % 2 * 24
        canvas.line([(x, y), (x - 11, y + 32)], "#2f7fc1", 5)
    for x in (92, 152, 212):
        arrow(canvas, curve((x, 520), (x - 40, 440), (x + 16, 360)), "#e0662a")
    arrow(canvas, curve((500, 108), (560, 80), (624, 112)), "#5b6b7f")
    arrow(canvas, curve((792, 556), (690, 580), (606, 642)), "#1d5f9e")
    for text, x, y, fill in (
        ("Evaporation", 168, 322, INK),
        ("Condensation", 395, 214, INK),
        ("Precipitation", 762, 76, INK),
        ("Runoff", 790, 612, "white"),
        ("Ocean", 190, 656, "white"),
    ):
        canvas.text((x, y), text, 31, fill, bold=0.6)
    return canvas


def mountains(canvas: Canvas) -> None:
    """Two peaks with snow, and the green slope with a river that runs to the sea."""
    canvas.polygon([(400, 580), (585, 345), (690, 470), (560, 600)], "#93a1b2")
    canvas.polygon([(585, 345), (617, 383), (596, 378), (582, 394), (568, 378), (554, 384)], "#ffffff")
    canvas.polygon([(560, 600), (800, 300), (960, 480), (960, 620)], "#7f8da0")
    canvas.polygon([(800, 300), (844, 350), (822, 346), (804, 364), (782, 346), (762, 348)], "#ffffff")
    canvas.polygon([*curve((320, 600), (560, 470), (960, 500)), (960, 720), (320, 720)], "#7fae66")
    canvas.polygon(curve((868, 500), (640, 520), (440, 640)) + curve((520, 660), (700, 560), (884, 503)), "#4396d6")


def sea(canvas: Canvas) -> None:
    canvas.polygon([(0, 560), (350, 560), *curve((350, 560), (500, 590), (590, 720)), (0, 720)], "#2f7fc1")
    for x, y, length in ((40, 606, 70), (250, 600, 80), (60, 694, 60), (330, 680, 80), (400, 630, 60)):
        canvas.line(curve((x, y), (x + length / 2, y - 9), (x + length, y)), "#7db8e4", 4)


def arrow(canvas: Canvas, points: list[Point], fill: str, width: float = 9) -> None:
    """A line whose last point is an arrow's tip."""
    (x0, y0), (x, y) = points[-2:]
    angle, head = math.atan2(y - y0, x - x0), width * 2.9
    neck = (x - head * 0.8 * math.cos(angle), y - head * 0.8 * math.sin(angle))
    shaft = [point for point in points if math.dist(point, (x, y)) > head]
    canvas.line([*shaft, neck], fill, width)
    barbs = [(x - head * math.cos(angle + a), y - head * math.sin(angle + a)) for a in (-0.5, 0.5)]
    canvas.polygon([(x, y), *barbs], fill)
