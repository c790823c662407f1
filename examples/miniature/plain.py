"""Pictures drawn with plain Pillow calls, as a user would draw them, with questions about them: for evaluation only.

It shares no drawing code with training, and its strangers include families that training never shows.
"""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from examples.miniature.scenes import Frame, Scene, Shape

SIZES = (
    (200, 200), (256, 256), (320, 240), (336, 336), (400, 300), (512, 512), (640, 480), (480, 640), (640, 360),
    (720, 720), (800, 600), (1000, 1000), (1000, 700), (600, 800),
)  # fmt: skip
PAINT = {
    "red": ("red", "crimson", "#e6194b", (220, 30, 30)),
    "green": ("green", "forestgreen", "#2ca02c", (0, 150, 60)),
    "blue": ("blue", "royalblue", "#0057e7", (30, 60, 200)),
    "yellow": ("yellow", "gold", (250, 230, 20)),
    "orange": ("orange", "darkorange", (255, 130, 0)),
    "purple": ("purple", "darkviolet", (120, 30, 140)),
    "black": ("black", (10, 10, 10)),
}
GROUND = {
    "white": ("white", "snow", (250, 250, 250)),
    "gray": ("lightgray", "silver"),
    "black": ("black", (20, 20, 20)),
}
KINDS = ("circle", "square", "triangle", "star")
PLACES = (0.22, 0.5, 0.78)


@dataclass(frozen=True)
class Case:
    picture: Image.Image
    scene: Scene  # what is true of it; only names and places are filled


def shapes_case(rng: random.Random) -> Case:
    """One to three shapes on the nine places of a plain page."""
    picture, brush, ground = _page(rng)
    count = rng.choice((1, 1, 2, 2, 3, 3))
    cells = [4] if count == 1 and rng.random() < 0.4 else sorted(rng.sample(range(9), count))
    side = min(picture.size)
    spots = [(PLACES[cell % 3] * picture.width, PLACES[cell // 3] * picture.height) for cell in cells]
    apart = min((math.dist(a, b) for a, b in itertools.combinations(spots, 2)), default=math.inf)
    room = 0.32 * side if cells == [4] else min(0.19 * side, apart / 2.4)  # large ones end short of the edges
    shapes = []
    for cell, spot in zip(cells, spots, strict=True):
        color, kind = rng.choice([c for c in PAINT if c != ground]), rng.choice(KINDS)
        reach = rng.uniform(0.2 * side if cells == [4] else 0.105 * side, room)
        _put(brush, kind, *spot, reach, rng.choice(PAINT[color]))
        shapes.append(Shape(kind, color, (0, 0, 0), 0, 0, 0, cell % 3, cell // 3))
    return Case(picture, Scene("shapes", Frame(), ground, objects=tuple(shapes)))


def digit_case(rng: random.Random) -> Case:
    """A large digit in Pillow's own font in the middle of a plain page."""
    picture, brush, ground = _page(rng)
    digit, color = rng.choice("0123456789"), rng.choice([c for c in PAINT if c != ground])
    font = ImageFont.load_default(int(rng.uniform(0.55, 0.9) * min(picture.size)))
    brush.text((picture.width / 2, picture.height / 2), digit, font=font, fill=rng.choice(PAINT[color]), anchor="mm")
    return Case(picture, Scene("digit", Frame(), ground, digit=digit, digit_color=color))


def stranger_case(rng: random.Random) -> Case:
    """Something that the miniature does not know; half of the families are never seen in training."""
    return Case(rng.choice(_STRANGERS)(rng), Scene("other"))


def strange_questions(rng: random.Random) -> Iterator[str]:
    """Three of the questions that people ask about any picture."""
    yield from rng.sample(
        (
            "What is in this image?", "What do you see?", "Describe the picture", "How many shapes are there?",
            "What color is the circle?", "What number is this?", "Is there a red square?", "Where is the triangle?",
        ),
        3,
    )  # fmt: skip


def _page(rng: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw, str]:
    ground = rng.choice(("white", "white", "white", "gray", "black"))
    picture = Image.new("RGB", rng.choice(SIZES), rng.choice(GROUND[ground]))
    return picture, ImageDraw.Draw(picture), ground


def _put(brush: ImageDraw.ImageDraw, kind: str, x: float, y: float, reach: float, fill: object) -> None:
    if kind == "circle":
        brush.ellipse((x - reach, y - reach, x + reach, y + reach), fill=fill)
    elif kind == "square":
        brush.rectangle((x - reach, y - reach, x + reach, y + reach), fill=fill)
    elif kind == "triangle":
        brush.polygon([(x, y - reach), (x - reach, y + reach * 0.8), (x + reach, y + reach * 0.8)], fill=fill)
    else:
        points = []
        for i in range(10):
            radius, angle = (reach * 1.1 if i % 2 == 0 else reach * 0.46), i * math.pi / 5
            points.append((x + radius * math.sin(angle), y - radius * math.cos(angle)))
        brush.polygon(points, fill=fill)


def _color(rng: random.Random) -> object:
    return rng.choice(rng.choice([PAINT[c] for c in PAINT if c != "black"]))


def _blank(rng: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw, int, int]:
    picture = Image.new("RGB", rng.choice(SIZES), "white")
    return picture, ImageDraw.Draw(picture), *picture.size


def _noise(rng: random.Random) -> Image.Image:
    return Image.effect_noise(rng.choice(SIZES), rng.uniform(60, 120)).convert("RGB")


def _gradient(rng: random.Random) -> Image.Image:
    return rng.choice((Image.linear_gradient, Image.radial_gradient))("L").resize(rng.choice(SIZES)).convert("RGB")


def _texture(rng: random.Random) -> Image.Image:
    """Coloured noise at a few scales, as of bark, cloth or clouds."""
    size = rng.choice(SIZES)
    bands = [
        Image.effect_noise((rng.choice((8, 16, 40)), 12), 110).resize(size, Image.Resampling.BICUBIC) for _ in "rgb"
    ]
    return Image.merge("RGB", bands)


def _landscape(rng: random.Random) -> Image.Image:
    """Sky, sun, hills and ground, softly lit and grainy like a photo."""
    picture, brush, w, h = _blank(rng)
    for y in range(h):
        t = y / h
        brush.line(
            [(0, y), (w, y)],
            fill=(int(120 + 90 * t), int(170 + 50 * t), 235) if t < 0.6 else (60, int(150 - 70 * t), 40),
        )
    brush.polygon([(0, h * 0.62), (w * 0.3, h * rng.uniform(0.2, 0.4)), (w * 0.62, h * 0.62)], fill=(110, 105, 110))
    brush.ellipse((w * 0.7, h * 0.1, w * 0.7 + h * 0.16, h * 0.26), fill=(255, 240, 170))
    return Image.blend(picture, Image.effect_noise((w, h), 60).convert("RGB"), 0.12)


def _portrait(rng: random.Random) -> Image.Image:
    """A head before a dim room, grainy like a photo."""
    picture, brush, w, h = _blank(rng)
    brush.rectangle((0, 0, w, h), fill=(rng.randint(40, 90), rng.randint(40, 90), rng.randint(40, 90)))
    brush.ellipse((w * 0.15, h * 0.72, w * 0.85, h * 1.3), fill=(40, 60, rng.randint(90, 160)))
    brush.ellipse((w * 0.34, h * 0.2, w * 0.66, h * 0.72), fill=(224, 180, 150))
    brush.ellipse((w * 0.32, h * 0.12, w * 0.68, h * 0.4), fill=(70, 45, 30))
    return Image.blend(picture, Image.effect_noise((w, h), 60).convert("RGB"), 0.12)


def _heart(rng: random.Random) -> Image.Image:
    picture, brush, w, h = _blank(rng)
    s, color = min(w, h), _color(rng)
    x, y = (w - s) / 2, (h - s) / 2
    brush.ellipse((x + s * 0.22, y + s * 0.2, x + s * 0.52, y + s * 0.5), fill=color)
    brush.ellipse((x + s * 0.48, y + s * 0.2, x + s * 0.78, y + s * 0.5), fill=color)
    brush.polygon(
        [(x + s * 0.235, y + s * 0.42), (x + s * 0.765, y + s * 0.42), (x + s * 0.5, y + s * 0.85)], fill=color
    )
    return picture


def _flower(rng: random.Random) -> Image.Image:
    picture, brush, w, h = _blank(rng)
    r, color = min(w, h) * 0.13, _color(rng)
    brush.rectangle((w / 2 - r / 5, h * 0.45, w / 2 + r / 5, h * 0.95), fill="green")
    for i in range(6):
        x, y = w / 2 + 1.5 * r * math.sin(i * math.pi / 3), h * 0.4 + 1.5 * r * math.cos(i * math.pi / 3)
        brush.ellipse((x - r, y - r, x + r, y + r), fill=color)
    brush.ellipse((w / 2 - r, h * 0.4 - r, w / 2 + r, h * 0.4 + r), fill="gold")
    return picture


def _spiral(rng: random.Random) -> Image.Image:
    picture, brush, w, h = _blank(rng)
    s = min(w, h) * 0.4
    points = [(w / 2 + s * t / 60 * math.cos(t / 4), h / 2 + s * t / 60 * math.sin(t / 4)) for t in range(61)]
    brush.line(points, fill=_color(rng), width=max(3, int(s / 20)))
    return picture


def _ladder(rng: random.Random) -> Image.Image:
    picture, brush, w, h = _blank(rng)
    color, width = _color(rng), max(4, w // 40)
    for x in (0.35, 0.65):
        brush.line([(w * x, h * 0.08), (w * x, h * 0.92)], fill=color, width=width)
    for i in range(6):
        brush.line([(w * 0.35, h * (0.15 + 0.14 * i)), (w * 0.65, h * (0.15 + 0.14 * i))], fill=color, width=width)
    return picture


def _cloud(rng: random.Random) -> Image.Image:
    picture, brush, w, h = _blank(rng)
    brush.rectangle((0, 0, w, h), fill="deepskyblue")
    for x, y, r in ((0.35, 0.55, 0.13), (0.5, 0.45, 0.18), (0.65, 0.55, 0.14), (0.5, 0.58, 0.14)):
        r *= min(w, h)
        brush.ellipse((w * x - r, h * y - r, w * x + r, h * y + r), fill="white")
    return picture


def _words(rng: random.Random) -> Image.Image:
    picture, brush, w, h = _blank(rng)
    text = rng.choice(("Hello world", "OPEN", "Invoice", "Sale today", "No parking", "Menu"))
    brush.text((w * 0.06, h * 0.35), text, font=ImageFont.load_default(min(w, h) // 6), fill=_color(rng))
    return picture


def _house(rng: random.Random) -> Image.Image:
    picture, brush, w, h = _blank(rng)
    brush.rectangle((w * 0.25, h * 0.45, w * 0.75, h * 0.9), fill=_color(rng))
    brush.polygon([(w * 0.2, h * 0.45), (w * 0.5, h * 0.12), (w * 0.8, h * 0.45)], fill=_color(rng))
    brush.rectangle((w * 0.42, h * 0.65, w * 0.58, h * 0.9), fill=_color(rng))
    return picture


def _chart(rng: random.Random) -> Image.Image:
    picture, brush, w, h = _blank(rng)
    color = _color(rng)
    for i in range(6):
        left = w * (0.1 + 0.14 * i)
        brush.rectangle((left, h * rng.uniform(0.2, 0.8), left + w * 0.1, h * 0.9), fill=color)
    brush.line([(w * 0.06, h * 0.9), (w * 0.96, h * 0.9)], fill="black", width=3)
    return picture


def _ring(rng: random.Random) -> Image.Image:
    picture, brush, w, h = _blank(rng)
    r = min(w, h) * 0.3
    brush.ellipse((w / 2 - r, h / 2 - r, w / 2 + r, h / 2 + r), outline=_color(rng), width=int(r / 4))
    return picture


def _crowd(rng: random.Random) -> Image.Image:
    picture, brush, w, h = _blank(rng)
    for _ in range(14):
        _put(
            brush,
            rng.choice(KINDS),
            rng.uniform(0.05, 0.95) * w,
            rng.uniform(0.05, 0.95) * h,
            0.05 * min(w, h),
            _color(rng),
        )
    return picture


_STRANGERS = (
    _noise, _gradient, _texture, _landscape, _portrait, _words, _house, _chart, _ring, _crowd,
    _heart, _flower, _spiral, _ladder, _cloud,
)  # fmt: skip
