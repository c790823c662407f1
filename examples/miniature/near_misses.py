"""Pictures next to the miniature's world, each with three questions: does it know, decline, or say something untrue?

Training shares neither drawing code nor letters' fonts with this module. Each family is one way to leave the world a
little: one shape more, a letter instead of a digit, a rectangle instead of a square, a drawing that was turned,
compressed or photographed from a screen. An answer is right when it is one of the true ones, declined when it says that
it does not know, else false.
"""

import io
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from examples.miniature.answers import CELLS
from examples.miniature.plain import KINDS, PAINT, Case, digit_case, shapes_case
from examples.miniature.true_answers import Asked, Thing, asked_of_glyph, asked_of_things

OUTSIDE = {  # 16 colours outside the palette, each with the words that are true of it
    "cyan": "#00ffff", "pink": "#ffc0cb", "hotpink": "#ff69b4", "brown": "#8b4513", "gray": "#808080",
    "teal": "#008080", "turquoise": "#40e0d0", "magenta": "#ff00ff", "olive": "#808000", "maroon": "#800000",
    "lavender": "#b9a7e6", "salmon": "#fa8072", "tan": "#d2b48c", "khaki": "#bdb76b", "slategray": "#708090",
    "white": "#ffffff",
}  # fmt: skip
_ALSO = {
    "teal": ("green", "blue"), "turquoise": ("green", "blue"), "maroon": ("red", "brown"), "hotpink": ("pink",),
    "magenta": ("pink", "purple"), "lavender": ("purple",), "slategray": ("gray",), "olive": ("green",),
}  # fmt: skip
_FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")
_LETTER_FONTS = ("STIXGeneral.ttf", "cmss10.ttf", "cmtt10.ttf")  # with serifs, without, of a typewriter
_GROUNDS = ("white", "white", "white", "#cfcfcf", "black")


Purpose = Literal["validation", "test"]  # what is chosen (`--caution`) is chosen on other pictures than are reported


@dataclass(frozen=True)
class NearMiss:
    picture: Image.Image
    asked: tuple[Asked, ...]


def cases(family: str, count: int, purpose: Purpose = "test") -> Iterator[NearMiss]:
    """`count` pictures of one of FAMILIES, the same at each call."""
    rng = random.Random(f"near miss, {purpose}: {family}")
    for _ in range(count):
        yield FAMILIES[family](rng)


# Families -------------------------------------------------------------------------------------------------------


def _sheet(rng: random.Random, side: int = 0) -> tuple[Image.Image, ImageDraw.ImageDraw, str]:
    ground = rng.choice(_GROUNDS)
    picture = Image.new("RGB", (side or rng.choice((240, 400, 480, 640)),) * 2, ground)
    return picture, ImageDraw.Draw(picture), ground


@cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_FONTS / file, size)


def _known_color(rng: random.Random, ground: str) -> tuple[str, object]:
    name = rng.choice([c for c in PAINT if not (c == "black" and ground == "black")])
    return name, rng.choice(PAINT[name])


def _corners(kind: str, x: float, y: float, reach: float) -> list[tuple[float, float]]:
    if kind == "square":
        return [(x - reach, y - reach), (x + reach, y - reach), (x + reach, y + reach), (x - reach, y + reach)]
    if kind == "triangle":
        return [(x, y - reach), (x + reach, y + reach * 0.75), (x - reach, y + reach * 0.75)]
    turns = [k * math.pi / 5 for k in range(10)]
    radii = [reach * (1.1 if k % 2 == 0 else 0.45) for k in range(10)]
    return [(x + r * math.sin(a), y - r * math.cos(a)) for r, a in zip(radii, turns, strict=True)]


def _fill(brush: ImageDraw.ImageDraw, kind: str, x: float, y: float, reach: float, paint: object) -> None:
    if kind == "circle":
        brush.ellipse((x - reach, y - reach, x + reach, y + reach), fill=paint)
    else:
        brush.polygon(_corners(kind, x, y, reach), fill=paint)


def _crowd(low: int, high: int) -> Callable[[random.Random], NearMiss]:
    def make(rng: random.Random) -> NearMiss:
        picture, brush, ground = _sheet(rng)
        count, side, things = rng.randint(low, high), picture.width, []
        columns = 3 if count <= 6 else 4
        spots = sorted(rng.sample(range(columns * columns), count))
        if rng.random() < 0.3:  # in rows, as people draw them
            spots = list(range(count))
        for spot in spots:
            row, column = divmod(spot, columns)
            kind, (color, paint) = rng.choice(KINDS), _known_color(rng, ground)
            x, y = ((v + 0.5 + rng.uniform(-0.08, 0.08)) * side / columns for v in (column, row))
            _fill(brush, kind, x, y, rng.uniform(0.24, 0.34) * side / columns, paint)
            cells = CELLS[row * 3 + column :][:1] if columns == 3 else CELLS
            things.append(Thing((kind,), (color,), cells))
        return NearMiss(picture, asked_of_things(rng, things, has_places=columns == 3))

    return make


def _glyph(texts: Sequence[str]) -> Callable[[random.Random], NearMiss]:
    def make(rng: random.Random) -> NearMiss:
        picture, brush, ground = _sheet(rng)
        color, paint = _known_color(rng, ground)
        text = rng.choice(texts)
        size = int(rng.uniform(0.45, 0.85) * picture.width / (1 if len(text) == 1 else 1.5))
        font = _font(rng.choice(_LETTER_FONTS), size)
        at = picture.width * rng.uniform(0.42, 0.58), picture.width * rng.uniform(0.45, 0.55)
        brush.text(at, text, font=font, fill=paint, anchor="mm")
        return NearMiss(picture, asked_of_glyph(rng, text, color))

    return make


def _stretched(rng: random.Random) -> NearMiss:
    picture, brush, ground = _sheet(rng)
    ratio, reach = rng.uniform(1.2, 4), rng.uniform(0.2, 0.42) * picture.width
    long, short = reach, reach / ratio
    a, b = (long, short) if rng.random() < 0.6 else (short, long)
    x, y = (rng.uniform(v, picture.width - v) for v in (a, b))
    color, paint = _known_color(rng, ground)
    if rng.random() < 0.5:
        brush.rectangle((x - a, y - b, x + a, y + b), fill=paint)
        thing = Thing(("rectangle",), (color,))
    else:
        brush.ellipse((x - a, y - b, x + a, y + b), fill=paint)
        thing = Thing(("oval", "ellipse"), (color,))
    return NearMiss(picture, asked_of_things(rng, [thing], has_places=False))


def _outlined(rng: random.Random) -> NearMiss:
    picture, brush, ground = _sheet(rng)
    kind, (color, paint) = rng.choice(KINDS), _known_color(rng, ground)
    x, y = (picture.width * rng.uniform(0.42, 0.58) for _ in "xy")
    reach, width = picture.width * rng.uniform(0.2, 0.38), int(2 * 30 ** rng.random())
    if kind == "circle":
        brush.ellipse((x - reach, y - reach, x + reach, y + reach), outline=paint, width=width)
    elif kind == "square":
        brush.rectangle((x - reach, y - reach, x + reach, y + reach), outline=paint, width=width)
    else:
        points = _corners(kind, x, y, reach)
        brush.line([*points, *points[:2]], fill=paint, width=width, joint="curve")
    also = {"circle": ("ring",)}
    return NearMiss(picture, asked_of_things(rng, [Thing((kind, *also.get(kind, ())), (color,))], has_places=False))


def _outside_palette(rng: random.Random) -> NearMiss:
    """One or two shapes, the first in a colour that the miniature has no word for."""
    picture, brush, ground = _sheet(rng)
    name = rng.choice([n for n in OUTSIDE if not (ground == "#cfcfcf" and n in ("gray", "slategray", "lavender"))])
    ground = "black" if name == "white" and ground == "white" else ground
    brush.rectangle((0, 0, *picture.size), fill=ground)
    kinds, side = rng.sample(KINDS, rng.choice((1, 1, 2))), picture.width
    things = []
    for k, kind in enumerate(kinds):
        x, y = side * (0.5 if len(kinds) == 1 else 0.25 + 0.5 * k), side * rng.uniform(0.4, 0.6)
        color, paint = (name, OUTSIDE[name]) if k == 0 else _known_color(rng, ground)
        _fill(brush, kind, x, y, side * rng.uniform(0.15, 0.2 if k or len(kinds) > 1 else 0.35), paint)
        things.append(Thing((kind,), (color, *_ALSO.get(color, ()))))
    return NearMiss(picture, asked_of_things(rng, things, has_places=False))


def _unknown(rng: random.Random, brush: ImageDraw.ImageDraw, box: tuple[float, ...], paint: object) -> tuple[str, ...]:
    """One thing that the miniature does not know, in a box (x, y, reach); its names."""
    x, y, r = box
    kind = rng.choice(("heart", "cross", "arrow", "hexagon", "oval", "rectangle", "letter", "moon", "diamond", "ring"))
    if kind == "heart":
        brush.ellipse((x - r, y - r * 0.9, x + r * 0.1, y + r * 0.2), fill=paint)
        brush.ellipse((x - r * 0.1, y - r * 0.9, x + r, y + r * 0.2), fill=paint)
        brush.polygon([(x - r * 0.93, y - r * 0.1), (x + r * 0.93, y - r * 0.1), (x, y + r)], fill=paint)
    elif kind == "cross":
        brush.rectangle((x - r, y - r * 0.3, x + r, y + r * 0.3), fill=paint)
        brush.rectangle((x - r * 0.3, y - r, x + r * 0.3, y + r), fill=paint)
    elif kind == "arrow":
        brush.rectangle((x - r, y - r * 0.2, x + r * 0.2, y + r * 0.2), fill=paint)
        brush.polygon([(x + r * 0.1, y - r * 0.6), (x + r, y), (x + r * 0.1, y + r * 0.6)], fill=paint)
    elif kind == "hexagon":
        brush.regular_polygon((x, y, r), 6, fill=paint)
    elif kind == "oval":
        brush.ellipse((x - r, y - r * 0.6, x + r, y + r * 0.6), fill=paint)
    elif kind == "rectangle":
        brush.rectangle((x - r * 0.55, y - r, x + r * 0.55, y + r), fill=paint)
    elif kind == "letter":
        brush.text((x, y), rng.choice("AFGHKMRT"), font=_font(_LETTER_FONTS[1], int(r * 2)), fill=paint, anchor="mm")
    elif kind == "moon":
        brush.pieslice((x - r, y - r, x + r, y + r), 90, 270, fill=paint)
    elif kind == "diamond":
        brush.polygon([(x, y - r), (x + r * 0.7, y), (x, y + r), (x - r * 0.7, y)], fill=paint)
    else:
        brush.ellipse((x - r, y - r, x + r, y + r), outline=paint, width=max(2, int(r * 0.3)))
    return {"ring": ("ring", "circle"), "oval": ("oval", "ellipse")}.get(kind, (kind,))


def _one_unknown(rng: random.Random) -> NearMiss:
    picture, brush, ground = _sheet(rng)
    side = picture.width
    spots = rng.sample([(0.25, 0.28), (0.75, 0.28), (0.25, 0.74), (0.75, 0.74)], 2)
    (x, y), (u, v) = [(a * side, b * side) for a, b in spots]
    color, paint = _known_color(rng, ground)
    kind = rng.choice(KINDS)
    _fill(brush, kind, x, y, side * rng.uniform(0.13, 0.18), paint)
    other, other_paint = _known_color(rng, ground)
    names = _unknown(rng, brush, (u, v, side * rng.uniform(0.13, 0.18)), other_paint)
    return NearMiss(picture, asked_of_things(rng, [Thing((kind,), (color,)), Thing(names, (other,))], False))


# Drawings of the world itself, disturbed ------------------------------------------------------------------------


def _drawing(rng: random.Random) -> tuple[Case, tuple[Asked, ...]]:
    case = shapes_case(rng) if rng.random() < 0.75 else digit_case(rng)
    scene = case.scene
    if scene.digit:
        return case, asked_of_glyph(rng, scene.digit, scene.digit_color)
    things = [Thing((o.shape,), (o.color,), (CELLS[3 * o.row + o.column],)) for o in scene.objects]
    return case, asked_of_things(rng, things)


def _turned(rng: random.Random) -> NearMiss:
    """The whole drawing turned, with its ground or with black or white corners; places are not asked."""
    case = shapes_case(rng)
    also = {"square": ("diamond",)}
    things = [Thing((o.shape, *also.get(o.shape, ())), (o.color,)) for o in case.scene.objects]
    corner = rng.choice((case.picture.getpixel((0, 0)), "black", "white"))
    angle = rng.uniform(5, 45) * rng.choice((-1, 1))
    picture = case.picture.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=corner)
    return NearMiss(picture, asked_of_things(rng, things, has_places=False))


def _as_jpeg(rng: random.Random) -> NearMiss:
    case, asked = _drawing(rng)
    file = io.BytesIO()
    case.picture.save(file, "JPEG", quality=20)
    return NearMiss(Image.open(file).convert("RGB"), asked)


def _noisy(rng: random.Random) -> NearMiss:
    case, asked = _drawing(rng)
    noise = [Image.effect_noise(case.picture.size, rng.uniform(20, 80)) for _ in "rgb"]
    return NearMiss(Image.blend(case.picture, Image.merge("RGB", noise), rng.uniform(0.1, 0.35)), asked)


def _screenshot(rng: random.Random) -> NearMiss:
    """The drawing in the window of a program; places are not asked."""
    case = shapes_case(rng)
    things = [Thing((o.shape,), (o.color,)) for o in case.scene.objects]
    w, h = case.picture.size
    bar, edge = rng.randint(24, 60), rng.randint(0, 40)
    shell = Image.new("RGB", (w + 2 * edge, h + bar + 2 * edge), rng.choice(("#f0f0f0", "#e8eaed", "#2b2b2b", "#ddd")))
    brush = ImageDraw.Draw(shell)
    brush.rectangle((0, 0, shell.width, bar), fill=rng.choice(("#d0d3d8", "#3c4043", "#4a90d9", "#ffffff")))
    for k in range(3):
        x = 8 + k * bar * 0.5
        brush.ellipse((x, bar * 0.35, x + bar * 0.3, bar * 0.65), fill=("#ff5f57", "#febc2e", "#28c840")[k])
    brush.text((bar * 2, bar * 0.3), "drawing.png - Viewer", font=ImageFont.load_default(bar * 0.4), fill="#777")
    shell.paste(case.picture, (edge, bar + edge))
    return NearMiss(shell, asked_of_things(rng, things, has_places=False))


def _any_size(rng: random.Random) -> NearMiss:
    case, asked = _drawing(rng)
    longest = int(60 * (4000 / 60) ** rng.random())
    scale = longest / max(case.picture.size)
    size = [max(16, round(v * scale)) for v in case.picture.size]
    how = rng.choice((Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS))
    return NearMiss(case.picture.resize(size, how), asked)


FAMILIES: dict[str, Callable[[random.Random], NearMiss]] = {
    "4 to 6 shapes": _crowd(4, 6),
    "7 to 12 shapes": _crowd(7, 12),
    "letters": _glyph("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "numbers 10 to 99": _glyph([str(n) for n in range(10, 100)]),
    "rectangles, ovals": _stretched,
    "outlines": _outlined,
    "other colours": _outside_palette,
    "one unknown thing": _one_unknown,
    "turned drawings": _turned,
    "JPEG, quality 20": _as_jpeg,
    "noise": _noisy,
    "screenshots": _screenshot,
    "60 to 4,000 pixels": _any_size,
}
