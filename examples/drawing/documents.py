"""Drawings with words and numbers in them, for the 7B to read: a chart, a signpost, a receipt, a map of a metro."""

import math

from drawing.canvas import Canvas, Point, curve

WIDTH, HEIGHT = 960, 720
INK, MUTED = "#1f2937", "#64748b"
TRIPS = {"March": 18, "April": 26, "May": 41, "June": 58, "July": 72, "August": 49}
BILL = {"2 Cappuccino": 7.00, "1 Apple cake": 4.20, "1 Cheese toast": 6.50, "1 Orange juice": 3.80}


def bar_chart() -> Canvas:
    canvas = Canvas(WIDTH, HEIGHT, "#fbfaf7")
    canvas.text((72, 84), "Bicycle trips in the city", 40, INK, "lm", bold=0.7)
    canvas.text((72, 132), "thousands per month", 25, MUTED, "lm")
    left, floor, unit = 130, 618, 5.4
    for value in (0, 20, 40, 60, 80):
        y = floor - value * unit
        canvas.line([(left, y), (888, y)], "#9ca3af" if value == 0 else "#e2e0da", 2)
        canvas.text((left - 22, y), str(value), 24, MUTED, "rm")
    for i, (month, value) in enumerate(TRIPS.items()):
        x, top = left + 68 + i * 124, floor - value * unit
        is_best = value == max(TRIPS.values())
        bar = "#ea580c" if is_best else "#94b8d8"
        canvas.box(x - 40, top, x + 40, floor, bar, 8)
        canvas.box(x - 40, floor - 10, x + 40, floor - 1, bar)  # square at the foot
        canvas.text((x, top - 24), str(value), 28, "#c2410c" if is_best else INK, bold=0.5)
        canvas.text((x, floor + 36), month, 26, INK)
    return canvas


def signpost() -> Canvas:
    canvas = Canvas(WIDTH, HEIGHT)
    canvas.gradient("#7fb9e6", "#f8ecd9")
    canvas.cloud(165, 300, 62, "#eef4f8")
    canvas.cloud(835, 96, 50, "#eef4f8")
    skyline(canvas)
    canvas.box(464, 62, 496, 720, "#4a3b32")
    canvas.box(464, 62, 474, 720, "#5e4c41")
    canvas.circle(480, 60, 25, "#4a3b32")
    canvas.circle(474, 53, 9, "#6b574b")
    plank(canvas, 166, "Harbour", "400 m", "#1d5fa8", side=1)
    plank(canvas, 306, "Old Town", "1.2 km", "#9a3b26", side=-1)
    plank(canvas, 446, "Station", "800 m", "#2f6b45", side=1)
    return canvas


def skyline(canvas: Canvas) -> None:
    """Roofs, a church tower and a meadow in front of them."""
    houses = ((40, 130, 600), (175, 100, 620), (300, 120, 590), (560, 130, 606), (705, 110, 585), (830, 140, 612))
    for i, (x, width, y) in enumerate(houses):
        wall = ("#b4c2cf", "#c0ccd6")[i % 2]
        canvas.box(x, y, x + width, 720, wall)
        canvas.polygon([(x - 8, y), (x + width / 2, y - width * 0.36), (x + width + 8, y)], "#a3b3c2")
    canvas.box(254, 560, 292, 720, "#b4c2cf")
    canvas.polygon([(248, 560), (273, 484), (298, 560)], "#a3b3c2")
    canvas.polygon([(0, 684), *curve((0, 684), (420, 640), (960, 676)), (960, 720), (0, 720)], "#84a374")


def plank(canvas: Canvas, y: float, name: str, distance: str, fill: str, side: int) -> None:
    """One board of the signpost, its tip on the right (side 1) or the left (-1)."""
    tip, back = 480 + side * 345, 480 - side * 225
    outline: list[Point] = [
        (back, y - 52),
        (tip - side * 60, y - 52),
        (tip, y),
        (tip - side * 60, y + 52),
        (back, y + 52),
    ]
    with canvas.soft(7, "#10243a", 0.35) as shadow:
        shadow.polygon([(px + 4, py + 10) for px, py in outline], "white")
    canvas.polygon(outline, fill)
    start, end = sorted((back + side * 34, tip - side * 66))
    canvas.text((start, y), name, 42, "white", "lm", bold=0.9)
    canvas.text((end, y), distance, 34, "white", "rm", bold=0.4)


def receipt() -> Canvas:
    canvas = Canvas(WIDTH, HEIGHT)
    table(canvas)
    cup(canvas, 800, 190)
    torn_edge = [(662 - i * 18.0, 694 if i % 2 else 682) for i in range(25)]
    paper = [(230, 26), (662, 26), *torn_edge]
    with canvas.soft(12, "#2b1705", 0.5) as shadow:
        shadow.polygon([(x + 6, y + 10) for x, y in paper], "white")
    canvas.polygon(paper, "#fdfcf8")
    canvas.text((446, 84), "CAFE MERIDIAN", 38, INK, bold=0.8)
    canvas.text((446, 128), "12 Lantern Street", 24, MUTED)
    canvas.text((446, 160), "Table 5", 24, MUTED)
    canvas.dashes((264, 198), (628, 198), "#9ca3af", 2)
    for i, (item, price) in enumerate(BILL.items()):
        canvas.text((264, 238 + i * 48), item, 28, INK, "lm")
        canvas.text((628, 238 + i * 48), f"{price:.2f}", 28, INK, "rm")
    canvas.dashes((264, 426), (628, 426), "#9ca3af", 2)
    canvas.text((264, 474), "TOTAL", 38, INK, "lm", bold=0.8)
    canvas.text((628, 474), f"{sum(BILL.values()):.2f}", 38, INK, "rm", bold=0.8)
    canvas.text((264, 526), "Paid by card", 25, MUTED, "lm")
    canvas.text((446, 604), "Thank you!", 30, INK, bold=0.3)
    canvas.text((446, 644), "See you again", 24, MUTED)
    return canvas


def table(canvas: Canvas) -> None:
    """Six planks of wood, with their grain."""
    canvas.box(0, 0, WIDTH, HEIGHT, "#9a6635")
    for i in range(6):
        y = i * 120
        canvas.box(0, y, WIDTH, y + 117, ("#b98149", "#af7841", "#bd864f")[i % 3])
        for k in range(5):
            canvas.line(curve((0, y + 16 + k * 22), (480, y + 30 + k * 17), (960, y + 14 + k * 23)), "#ab743d", 1.2)


def cup(canvas: Canvas, x: float, y: float) -> None:
    """A cup of coffee on its saucer, seen from above."""
    with canvas.soft(12, "#2b1705", 0.45) as shadow:
        shadow.circle(x + 8, y + 12, 128, "white")
    canvas.circle(x, y, 128, "#f4f1ea")
    canvas.circle(x, y, 108, "#e6e1d6")
    canvas.line([(x + 60, y + 60), (x + 100, y + 100)], "#fffdf8", 26)
    canvas.circle(x, y, 84, "#fffdf8")
    canvas.circle(x, y, 70, "#6f4423")
    canvas.circle(x, y, 58, "#8a5a31")
    turns = [math.tau * i / 60 for i in range(60)]
    heights = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    heart = [(x + 26 * math.sin(t) ** 3, y + 6 - 1.6 * height) for t, height in zip(turns, heights, strict=True)]
    canvas.polygon(heart, "#f0dcc0")


LINES = {
    "1": ("#d93a34", [(110, 330), (850, 330)]),
    "2": ("#2563c9", [(300, 150), (300, 440), (410, 550), (850, 550)]),
    "3": ("#2a9d5c", [(850, 150), (740, 150), (660, 230), (660, 672)]),
}
STATIONS = {  # name -> place, and on which side of it the name stands
    "Westgate": (110, 330, "below"),
    "Market": (300, 330, "corner"),
    "Theatre": (480, 330, "below"),
    "City Hall": (660, 330, "corner"),
    "Park": (850, 330, "below"),
    "Airport": (300, 150, "right"),
    "Library": (300, 430, "right"),
    "Riverside": (660, 550, "corner"),
    "Harbour": (850, 550, "below"),
    "University": (850, 150, "below"),
    "Museum": (660, 440, "right"),
    "South Gate": (660, 672, "right"),
}


def metro_map() -> Canvas:
    canvas = Canvas(WIDTH, HEIGHT, "#faf8f3")
    canvas.line(curve((-60, 500), (250, 470), (440, 580)) + curve((440, 580), (610, 676), (1020, 560)), "#d3e8f4", 56)
    canvas.text((56, 72), "City Metro", 42, INK, "lm", bold=0.9)
    for name, (fill, route) in LINES.items():
        canvas.line(route, fill, 15)
        y = 128 + 42 * (int(name) - 1)
        canvas.box(58, y - 15, 88, y + 15, fill, 7)
        canvas.text((73, y), name, 23, "white", bold=0.6)
        canvas.text((104, y), f"Line {name}", 24, INK, "lm")
    for name, (x, y, side) in STATIONS.items():
        is_interchange = side == "corner"
        canvas.circle(x, y, 19 if is_interchange else 15, INK)
        canvas.circle(x, y, 13 if is_interchange else 9, "white")
        dx, dy, anchor = {"below": (0, 40, "mm"), "right": (30, 0, "lm"), "corner": (24, -30, "lm")}[side]
        canvas.text((x + dx, y + dy), name, 27, INK, anchor, bold=0.6 if is_interchange else 0.1)
    return canvas
