"""Pictures next to the miniature's world, so that it learns where the world ends: a fourth shape, a letter, an oval.

Each family leaves the world in one way, as far as it can be told from it at the model's 96 pixels; what lies between
(a square turned by 15 degrees) is shown neither as known nor as strange. Evaluation's near misses are drawn by other
code (see `near_misses`).
"""

import colorsys
import math
import random
import string
from collections.abc import Callable

from PIL import Image, ImageFilter

from examples.miniature.geometry import Point, outline, polygon
from examples.miniature.scenes import BACKGROUNDS, COLORS, DIGITS, RGB, SHAPES, is_nearly_named, shade
from examples.miniature.strangers import FontOf, Graphic

_SIGNS = "?!&@#%+=*$<>"
_LIKE_DIGITS = "BDGIJOQSZ"
_ODD = (  # hue in degrees, saturation, value: colours that none of the miniature's seven words is true of
    ((168, 196), (0.45, 1), (0.4, 1)),  # cyan, teal, turquoise
    ((306, 336), (0.3, 1), (0.75, 1)),  # pink, magenta
    ((0, 360), (0.12, 0.38), (0.8, 1)),  # pastels
    ((14, 38), (0.35, 0.95), (0.28, 0.66)),  # brown
    ((48, 80), (0.4, 1), (0.3, 0.62)),  # olive, khaki
    ((-12, 8), (0.5, 1), (0.25, 0.52)),  # maroon
    ((0, 24), (0.35, 0.6), (0.85, 1)),  # salmon
    *[((-8, 8), (0.45, 0.78), (0.52, 0.67))] * 3,  # a reddish brown
    *[((22, 46), (0.55, 0.95), (0.6, 0.84))] * 2,  # ochre
    ((0, 360), (0, 0.16), (0.3, 0.66)),  # gray
    ((66, 84), (0.6, 1), (0.75, 1)),  # yellow-green
    ((0, 360), (0, 0.02), (0.97, 1)),  # white
)


def neighbour(rng: random.Random, width: int, height: int, font_of: FontOf) -> Image.Image:
    """An RGB picture that is almost one of the world."""
    return _Neighbour(rng, width, height, font_of).paint()


class _Neighbour(Graphic):
    """One method a family; each paints on a ground of the world."""

    def __init__(self, rng: random.Random, width: int, height: int, font_of: FontOf) -> None:
        super().__init__(rng, width, height, font_of)
        (name,) = rng.choices(BACKGROUNDS, (0.45, 0.28, 0.27))  # as in the world: a ground alone tells nothing
        level = {"white": (241, 255), "gray": (172, 222), "black": (0, 36)}[name]
        grey = {"white": 255, "black": 0}.get(name, 0) if rng.random() < 0.5 else rng.randint(*level)
        self.paint_ground((max(grey, level[0]),) * 3)

    def paint(self) -> Image.Image:
        families = {
            self.few: 4.0, self.many: 0.4, self.glyph: 6.0, self.long_number: 0.8, self.stretched: 6.5,
            self.odd_shape: 9.0, self.outlined: 0.8, self.odd_color: 6.5, self.odd_ground: 1.2, self.turned: 1.6,
            self.mixed: 0.8, self.touching: 0.8, self.cut: 0.5, self.tiny: 0.3, self.window: 0.5, self.tilted: 0.5,
        }  # fmt: skip
        self.rng.choices(list(families), list(families.values()))[0]()
        return self.picture

    def paint_ground(self, rgb: RGB) -> None:
        self.ground = rgb
        self.brush.rectangle((0, 0, self.width, self.height), fill=rgb)

    # Places, colours and shapes ------------------------------------------------------------------------------------

    def spots(self, count: int, reach: float) -> list[tuple[float, float, float]]:
        """x, y and reach of `count` things that do not touch: anywhere, in cells or in rows; smaller if need be."""
        luck = self.rng.random()
        if luck < 0.5 and count > 1:
            return self.rows(count, reach) if luck < 0.2 else self.cells(count, reach)
        found: list[tuple[float, float, float]] = []
        while len(found) < count:
            for _ in range(60):
                r = reach * self.rng.uniform(0.8, 1)
                x, y = self.rng.uniform(r * 1.2, self.width - r * 1.2), self.rng.uniform(r * 1.2, self.height - r * 1.2)
                if all(math.hypot(x - a, y - b) > (r + c) * 1.2 for a, b, c in found):
                    found.append((x, y, r))
                    break
            else:
                found, reach = [], reach * 0.85
        return found

    def cells(self, count: int, reach: float) -> list[tuple[float, float, float]]:
        """In cells of a grid, as the shapes of the world lie."""
        per_side = 2 if count <= 4 and self.rng.random() < 0.2 else 3 if count <= 9 else 4
        dx, dy = self.width / per_side, self.height / per_side
        r, wobble = min(reach, dx * 0.42, dy * 0.42), self.rng.uniform(0, 0.1)
        found = []
        for cell in self.rng.sample(range(per_side**2), count):
            x, y = (v + 0.5 + self.rng.uniform(-wobble, wobble) for v in (cell % per_side, cell // per_side))
            found.append((x * dx, y * dy, r * self.rng.uniform(0.75, 1)))
        return found

    def rows(self, count: int, reach: float) -> list[tuple[float, float, float]]:
        per_row = self.rng.choice([n for n in (2, 3, 4, 5, 6) if n <= max(2, count)])
        rows = -(-count // per_row)
        dx, dy = self.width / per_row, self.height / rows
        r = min(reach, dx * 0.36, dy * 0.36)
        return [((k % per_row + 0.5) * dx, (k // per_row + 0.5) * dy, r) for k in range(count)]

    def known_color(self) -> RGB:
        while True:
            name = self.rng.choice(COLORS)
            if name != "black" or sum(self.ground) > 300:
                return shade(self.rng, name)

    def odd(self) -> RGB:
        """A colour outside of the palette that stands out from the ground."""
        while True:
            if self.rng.random() < 0.7:
                hue, saturation, value = (self.rng.uniform(*span) for span in self.rng.choice(_ODD))
            else:
                hue, saturation, value = self.rng.uniform(0, 360), self.rng.uniform(0, 1), self.rng.uniform(0.25, 1)
                if is_nearly_named(hue, saturation, value):
                    continue
            r, g, b = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
            found = int(r * 255), int(g * 255), int(b * 255)
            if sum(abs(a - b) for a, b in zip(found, self.ground, strict=True)) > 90:
                return found

    def known(self, x: float, y: float, r: float, color: RGB | None = None) -> None:
        """A shape of the world."""
        kind, fill = self.rng.choice(SHAPES), color or self.known_color()
        if kind == "circle":
            self.circle(x, y, r, fill=fill)
        else:
            self.brush.polygon(outline(self.rng, kind, (x, y), r, 0.5), fill=fill)

    def known_or_digit(self) -> None:
        """A picture of the world: one to three shapes, or a digit."""
        if self.rng.random() < 0.25:
            self.written(self.rng.choice(DIGITS), self.rng.uniform(0.6, 1.1) * self.short)
            return
        count = self.rng.randint(1, 3)
        for spot in self.spots(count, self.size(count)):
            self.known(*spot)

    def size(self, count: int) -> float:
        return self.short * (self.rng.uniform(0.14, 0.36) if count == 1 else self.rng.uniform(0.11, 0.2))

    def written(self, text: str, size: float, at: Point | None = None, color: RGB | None = None) -> None:
        x, y = at or (self.width * self.rng.uniform(0.38, 0.62), self.height * self.rng.uniform(0.42, 0.58))
        font = self.font_of(self.rng, int(size))
        self.brush.text((x, y), text, font=font, fill=color or self.known_color(), anchor="mm")

    # Too many, or not a digit --------------------------------------------------------------------------------------

    def few(self) -> None:
        count = self.rng.choice((4, 4, 4, 5, 5, 6))
        for spot in self.spots(count, self.short * self.rng.uniform(0.07, 0.17)):
            self.known(*spot)

    def many(self) -> None:
        count, color = self.rng.randint(7, 14), self.known_color() if self.rng.random() < 0.3 else None
        for spot in self.spots(count, self.short * self.rng.uniform(0.05, 0.12)):
            self.known(*spot, color)

    def glyph(self) -> None:
        text = self.rng.choice(
            string.ascii_uppercase * 3 + _LIKE_DIGITS * 4 + string.ascii_lowercase + "o" * 6 + _SIGNS + "?" * 4
        )
        self.written(text, self.rng.uniform(0.45, 1.1) * self.short)

    def long_number(self) -> None:
        text = str(self.rng.randint(10, 99) if self.rng.random() < 0.7 else self.rng.randint(100, 9999))
        self.written(text, self.rng.uniform(0.3, 0.75) * self.short * 2 / max(2, len(text)))

    # Other shapes --------------------------------------------------------------------------------------------------

    def with_known(self, strange: Callable[[float, float, float], None]) -> None:
        """One or two strange things, often beside a known one."""
        count, strangers = self.rng.choice((1, 2, 2, 2, 3)), self.rng.choice((1, 1, 1, 2))
        for k, spot in enumerate(self.spots(count, self.size(count))):
            (strange if k < strangers else self.known)(*spot)

    def stretched(self) -> None:
        self.with_known(self.stretch)

    def stretch(self, x: float, y: float, r: float) -> None:
        least = 1.12 + 0.012 * self.short / r  # less cannot be seen of a small thing: a square would be declined, too
        a, b = r, r / (least * (max(1.7, least, self.rng.choice((0, 4))) / least) ** self.rng.random())
        a, b = (a, b) if self.rng.random() < 0.6 else (b, a)
        draw = self.brush.rectangle if self.rng.random() < 0.5 else self.brush.ellipse
        draw((x - a, y - b, x + a, y + b), fill=self.known_color())

    def odd_shape(self) -> None:
        self.with_known(self.other)

    def other(self, x: float, y: float, r: float) -> None:
        """A shape that has no name in the world."""
        kinds = {  # the more a kind resembles a shape of the world, the more often
            self.stretch: 6, self.cross: 4, self.many_corners: 9, self.spiky: 1.5, self.half: 1.5, self.slanted: 1.5,
            self.outlining: 1.5, self.small_text: 1.5, self.heart: 1, self.diamond: 1, self.arrow: 1, self.moon: 1,
            self.face: 0.5, self.house: 0.5,
        }  # fmt: skip
        (kind,) = self.rng.choices(list(kinds), list(kinds.values()))
        if kind in (self.cross, self.many_corners, self.arrow, self.moon, self.face, self.house):
            self.x, self.y, self.reach = x, y, r
            kind()
        else:
            kind(x, y, r)

    def heart(self, x: float, y: float, r: float) -> None:
        turns = [2 * math.pi * k / 40 for k in range(40)]
        wave = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
        points = [(x + r * math.sin(t) ** 3, y - r * h / 16) for t, h in zip(turns, wave, strict=True)]
        self.brush.polygon(points, fill=self.known_color())

    def diamond(self, x: float, y: float, r: float) -> None:
        a = r * self.rng.uniform(0.5, 1)
        self.brush.polygon([(x, y - r), (x + a, y), (x, y + r), (x - a, y)], fill=self.known_color())

    def slanted(self, x: float, y: float, r: float) -> None:
        """A parallelogram or a trapezium."""
        a, b = r * self.rng.uniform(0.25, 0.6), r * self.rng.uniform(0.5, 0.9)
        top, bottom = (a, 0) if self.rng.random() < 0.5 else (0, a)
        points = [(x - r + a, y - b), (x + r - bottom, y - b), (x + r - top, y + b), (x - r, y + b)]
        self.brush.polygon(points, fill=self.known_color())

    def half(self, x: float, y: float, r: float) -> None:
        start = self.rng.choice((0, 90, 180, 270))
        box = (x - r, y - r, x + r, y + r)
        self.brush.pieslice(box, start, start + self.rng.choice((90, 180, 180, 180, 270, 300)), fill=self.known_color())

    def spiky(self, x: float, y: float, r: float) -> None:
        corners = self.rng.choice((4, 6, 6, 7, 8, 10))
        points = polygon(x, y, r * 1.1, corners, self.rng.uniform(0, 0.3), self.rng.uniform(0.3, 0.7))
        self.brush.polygon(points, fill=self.known_color())

    def small_text(self, x: float, y: float, r: float) -> None:
        self.written(self.rng.choice(string.ascii_uppercase + string.digits), r * 2.2, (x, y))

    def outlined(self) -> None:
        self.with_known(self.outlining)

    def outlining(self, x: float, y: float, r: float) -> None:
        kind, color = self.rng.choice(SHAPES), self.known_color()
        width = max(1, int(r * self.rng.uniform(0.01, 0.3) * (1.6 if kind == "circle" else 1)))
        if kind == "circle":
            self.circle(x, y, r, outline=color, width=width)
        else:
            points = outline(self.rng, kind, (x, y), r, 0.5)
            self.brush.line([*points, *points[:2]], fill=color, width=width, joint="curve")

    def turned(self) -> None:
        self.with_known(self.turn)

    def turn(self, x: float, y: float, r: float) -> None:
        """A square, triangle or star that stands askew."""
        corners, least, most = self.rng.choice(((4, 22, 45), (3, 22, 60), (5, 22, 36)))
        angle = math.radians(self.rng.uniform(least, most)) * self.rng.choice((-1, 1))
        angle += math.pi / 4 if corners == 4 else 0
        inner = self.rng.uniform(0.36, 0.52) if corners == 5 else 0
        self.brush.polygon(polygon(x, y, r * 1.15, corners, angle, inner), fill=self.known_color())

    # Other colours -------------------------------------------------------------------------------------------------

    def odd_color(self) -> None:
        if self.rng.random() < 0.12:
            self.written(self.rng.choice(DIGITS), self.rng.uniform(0.6, 1.1) * self.short, color=self.odd())
        else:
            self.with_known(lambda x, y, r: self.known(x, y, r, self.odd()))

    def tint(self) -> RGB:
        """A light ground that is no white: beige, cream, light blue."""
        hue, saturation, value = self.rng.random(), self.rng.uniform(0.09, 0.25), self.rng.uniform(0.86, 1)
        r, g, b = colorsys.hsv_to_rgb(hue, saturation, value)
        return int(r * 255), int(g * 255), int(b * 255)

    def odd_ground(self) -> None:
        self.paint_ground(self.odd() if self.rng.random() < 0.4 else self.tint())
        self.known_or_digit()

    # Together, cut, or in something else ---------------------------------------------------------------------------

    def mixed(self) -> None:
        """Shapes and digits in one picture."""
        count = self.rng.randint(2, 3)
        for k, (x, y, r) in enumerate(self.spots(count, self.size(count))):
            if k and self.rng.random() < 0.7:
                self.known(x, y, r)
            else:
                self.written(self.rng.choice(DIGITS), r * 2.3, (x, y))

    def touching(self) -> None:
        """Two shapes over each other, or one inside of another."""
        x, y, r = self.x, self.y, self.short * self.rng.uniform(0.16, 0.34)
        self.known(x, y, r)
        if self.rng.random() < 0.4:
            self.known(x, y, r * self.rng.uniform(0.2, 0.5))
        else:
            angle, away = self.rng.uniform(0, 2 * math.pi), r * self.rng.uniform(0.5, 1.2)
            self.known(x + away * math.cos(angle), y + away * math.sin(angle), r * self.rng.uniform(0.6, 1))

    def cut(self) -> None:
        """A shape that the edge of the picture cuts."""
        r, along = self.short * self.rng.uniform(0.15, 0.4), self.rng.uniform(0.2, 0.8)
        inside = self.rng.uniform(-0.3, 0.5) * r
        x, y = (inside, along * self.height) if self.rng.random() < 0.5 else (along * self.width, inside)
        if self.rng.random() < 0.5:
            x, y = self.width - x, self.height - y
        self.known(x, y, r)

    def tiny(self) -> None:
        count = self.rng.randint(1, 4)
        for spot in self.spots(count, self.short * self.rng.uniform(0.012, 0.05)):
            self.known(*spot)

    def window(self) -> None:
        """A drawing in the window of a program."""
        self.known_or_digit()
        drawing, ground = self.picture, self.rng.choice(((240, 240, 240), (222, 225, 230), (45, 45, 48), (60, 90, 140)))
        edge, bar = self.rng.uniform(0, 0.1) * self.short, self.rng.uniform(0.05, 0.16) * self.short
        self.picture = Image.new("RGB", (self.width, self.height), ground)
        inner = (max(8, int(self.width - 2 * edge)), max(8, int(self.height - bar - edge)))
        self.picture.paste(drawing.resize(inner), (int(edge), int(bar)))
        self.brush = type(self.brush)(self.picture)
        for k in range(self.rng.randint(0, 4)):
            x = self.width * 0.04 + k * bar * 0.6
            self.circle(x, bar * 0.5, bar * 0.18, fill=self.any_color())
        if self.rng.random() < 0.5:
            title = (self.width * 0.3, bar / 2, self.width * 0.7, bar / 2)
            self.brush.line(title, self.any_color(), max(1, int(bar / 5)))

    def tilted(self) -> None:
        """A drawing that was turned, with what is now seen beside its corners."""
        self.known_or_digit()
        corner = self.color() if self.rng.random() < 0.4 else (0, 0, 0) if sum(self.ground) > 200 else (255, 255, 255)
        angle = self.rng.uniform(6, 45) * self.rng.choice((-1, 1))
        turned = self.picture.rotate(angle, Image.Resampling.BILINEAR, expand=self.rng.random() < 0.6, fillcolor=corner)
        self.picture = turned.resize((self.width, self.height))
        if self.rng.random() < 0.2:
            self.picture = self.picture.filter(ImageFilter.GaussianBlur(self.width / 200))
