"""Pictures that are not in the miniature's world, so that it learns to say so: flat graphics, textures, scenery.

The families that evaluation uses as unseen (flowers, spirals, ladders, clouds; see `plain`) are not here; what lies
next to the world is in `neighbours`.
"""

import math
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from examples.miniature.geometry import outline, polygon
from examples.miniature.scenes import COLORS, RGB, SHAPES, shade

FontOf = Callable[[random.Random, int], object]
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghkmnpqrstuvwxyz"


def stranger(rng: random.Random, width: int, height: int, font_of: FontOf) -> Image.Image:
    """An RGB picture of something else."""
    luck = rng.random()
    if luck < 0.68:
        picture = Graphic(rng, width, height, font_of).paint()
        if rng.random() < 0.25:
            return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2) * width / 96))
        return picture
    noise = np.random.default_rng(rng.getrandbits(32))
    if luck < 0.71:
        return Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if luck < 0.79:
        return _stripes(rng, noise, width, height)
    return _scenery(rng, noise, width, height)


class Graphic:
    """Flat graphics on a plain ground, one method a family."""

    def __init__(self, rng: random.Random, width: int, height: int, font_of: FontOf) -> None:
        self.rng, self.width, self.height, self.font_of = rng, width, height, font_of
        self.short = min(width, height)
        self.x, self.y = rng.uniform(0.42, 0.58) * width, rng.uniform(0.42, 0.58) * height
        self.reach = rng.uniform(0.24, 0.44) * self.short
        plain: RGB = rng.choice(((255, 255, 255), (255, 255, 255), (255, 255, 255), (0, 0, 0), (200, 200, 200)))
        self.ground = plain if rng.random() < 0.75 else self.any_color()
        self.picture = Image.new("RGB", (width, height), self.ground)
        self.brush = ImageDraw.Draw(self.picture)

    def paint(self) -> Image.Image:
        families = (
            self.blob, self.ring, self.outlines, self.cross, self.face, self.house, self.word, self.letter,
            self.numbers, self.grid, self.crowd, self.overlap, self.lines, self.areas, self.arrow, self.many_corners,
            self.tree, self.car, self.bars, self.pie, self.moon, self.nothing,
        )  # fmt: skip
        self.rng.choice(families)()
        return self.picture

    def any_color(self) -> RGB:
        return self.rng.randrange(256), self.rng.randrange(256), self.rng.randrange(256)

    def color(self) -> RGB:
        """One that stands out from the ground."""
        while True:
            rng = self.rng
            found = shade(rng, rng.choice(COLORS)) if rng.random() < 0.7 else self.any_color()
            if sum(abs(a - b) for a, b in zip(found, self.ground, strict=True)) > 120:
                return found

    def circle(self, x: float, y: float, radius: float, **how: object) -> None:
        self.brush.ellipse((x - radius, y - radius, x + radius, y + radius), **how)

    def shape(self, x: float, y: float, radius: float) -> None:
        kind = self.rng.choice(SHAPES)
        if kind == "circle":
            self.circle(x, y, radius, fill=self.color())
        else:
            self.brush.polygon(outline(self.rng, kind, (x, y), radius, 1), fill=self.color())

    def somewhere(self) -> tuple[float, float]:
        return self.rng.uniform(0.1, 0.9) * self.width, self.rng.uniform(0.1, 0.9) * self.height

    def write(self, text: str, size: float) -> None:
        position = self.rng.uniform(0.02, 0.3) * self.width, self.rng.uniform(0.03, 0.6) * self.height
        self.brush.text(position, text, font=self.font_of(self.rng, int(size)), fill=self.color())

    def blob(self) -> None:
        for _ in range(self.rng.randint(1, 3)):
            x, y = self.somewhere()
            corners = self.rng.randint(6, 12)
            points = []
            for i in range(corners):
                a, reach = 2 * math.pi * i / corners, self.reach * self.rng.uniform(0.3, 1)
                points.append((x + reach * math.sin(a), y + reach * math.cos(a)))
            self.brush.polygon(points, fill=self.color())

    def ring(self) -> None:
        for _ in range(self.rng.randint(1, 3)):
            x, y = (self.x, self.y) if self.rng.random() < 0.5 else self.somewhere()
            radius = self.rng.uniform(0.14, 0.36) * self.short
            self.circle(x, y, radius, outline=self.color(), width=max(1, int(radius * self.rng.uniform(0.1, 0.5))))

    def outlines(self) -> None:
        for _ in range(self.rng.randint(1, 3)):
            x, y = self.somewhere()
            points = outline(self.rng, self.rng.choice(SHAPES[1:]), (x, y), self.reach * 0.7, 1)
            self.brush.line([*points, points[0]], fill=self.color(), width=max(1, int(self.short / 40)))

    def cross(self) -> None:
        x, y, r, half = self.x, self.y, self.reach, self.reach * self.rng.uniform(0.1, 0.38)
        color = self.color()
        self.brush.rectangle((x - r, y - half, x + r, y + half), fill=color)
        self.brush.rectangle((x - half, y - r, x + half, y + r), fill=color)

    def face(self) -> None:
        x, y, r = self.x, self.y, self.reach
        self.circle(x, y, r, fill=self.color())
        dark = self.any_color() if self.rng.random() < 0.4 else (0, 0, 0)
        for side in (-0.4, 0.4):
            self.circle(x + r * side, y - r * 0.3, r * self.rng.uniform(0.1, 0.18), fill=dark)
        self.brush.arc((x - r * 0.5, y - r * 0.4, x + r * 0.5, y + r * 0.6), 20, 160, dark, max(1, int(r * 0.12)))

    def house(self) -> None:
        x, y, r = self.x, self.y, self.reach
        self.brush.rectangle((x - r * 0.8, y - r * 0.2, x + r * 0.8, y + r), fill=self.color())
        self.brush.polygon([(x - r, y - r * 0.2), (x, y - r), (x + r, y - r * 0.2)], fill=self.color())
        self.brush.rectangle((x - r * 0.2, y + r * 0.3, x + r * 0.2, y + r), fill=self.color())

    def word(self) -> None:
        for _ in range(self.rng.randint(1, 4)):
            text = "".join(self.rng.choice(_LETTERS) for _ in range(self.rng.randint(2, 9)))
            self.write(text, self.rng.uniform(0.12, 0.4) * self.short)

    def letter(self) -> None:
        self.write(
            self.rng.choice("ABCDEFGHJKLMNPQRTUVWXYZabdefghkmnqrtuwxyz"), self.rng.uniform(0.5, 0.9) * self.short
        )

    def numbers(self) -> None:
        self.write(str(self.rng.randint(100, 99999)), self.rng.uniform(0.25, 0.5) * self.short)

    def grid(self) -> None:
        count, colors = self.rng.randint(3, 9), (self.color(), self.color(), self.color())
        for i in range(count):
            for j in range(count):
                if (i + j) % 2:
                    box = (i * self.width / count, j * self.height / count)
                    end = ((i + 1) * self.width / count, (j + 1) * self.height / count)
                    self.brush.rectangle((*box, *end), fill=self.rng.choice(colors))

    def crowd(self) -> None:
        for _ in range(self.rng.randint(7, 22)):
            self.shape(*self.somewhere(), self.rng.uniform(0.03, 0.1) * self.short)

    def overlap(self) -> None:
        x, y = self.x, self.y
        for _ in range(self.rng.randint(3, 7)):
            self.shape(x, y, self.rng.uniform(0.15, 0.3) * self.short)
            x, y = x + self.rng.uniform(-0.25, 0.25) * self.short, y + self.rng.uniform(-0.25, 0.25) * self.short

    def lines(self) -> None:
        for _ in range(self.rng.randint(2, 12)):
            points = [self.somewhere() for _ in range(self.rng.randint(2, 4))]
            self.brush.line(points, fill=self.color(), width=self.rng.randint(1, max(2, self.short // 14)))

    def areas(self) -> None:
        for _ in range(self.rng.randint(2, 5)):
            x, y = self.rng.uniform(-0.2, 0.8) * self.width, self.rng.uniform(-0.2, 0.8) * self.height
            end = (x + self.rng.uniform(0.3, 1.2) * self.width, y + self.rng.uniform(0.3, 1.2) * self.height)
            self.brush.rectangle((x, y, *end), fill=self.color())

    def arrow(self) -> None:
        x, y, r, half = self.x, self.y, self.reach, self.reach * self.rng.uniform(0.12, 0.3)
        sign = self.rng.choice((-1, 1))
        points = [(-r, -half), (r * 0.2, -half), (r * 0.2, -half * 2.4), (r, 0)]
        points += [(a, -b) for a, b in reversed(points[:3])]
        is_upright = self.rng.random() < 0.5
        turned = [(x + sign * b, y + sign * a) if is_upright else (x + sign * a, y + sign * b) for a, b in points]
        self.brush.polygon(turned, fill=self.color())

    def many_corners(self) -> None:
        corners = self.rng.randint(5, 6)
        self.brush.polygon(polygon(self.x, self.y, self.reach, corners, self.rng.uniform(0, 1)), fill=self.color())

    def tree(self) -> None:
        x, y, r = self.x, self.y, self.reach
        self.brush.rectangle((x - r * 0.12, y, x + r * 0.12, y + r), fill=(120, 72, 30))
        if self.rng.random() < 0.5:
            self.circle(x, y - r * 0.3, r * 0.6, fill=self.color())
        else:
            for k in range(3):
                top = y - r + k * r * 0.4
                self.brush.polygon(
                    [(x, top), (x - r * 0.6, top + r * 0.6), (x + r * 0.6, top + r * 0.6)], fill=(0, 110, 40)
                )

    def car(self) -> None:
        x, y, r, color = self.x, self.y, self.reach, self.color()
        self.brush.rectangle((x - r, y, x + r, y + r * 0.5), fill=color)
        self.brush.polygon(
            [(x - r * 0.6, y), (x - r * 0.3, y - r * 0.45), (x + r * 0.4, y - r * 0.45), (x + r * 0.7, y)], fill=color
        )
        for side in (-0.55, 0.55):
            self.circle(x + r * side, y + r * 0.5, r * 0.22, fill=(20, 20, 20), outline=(200, 200, 200))

    def bars(self) -> None:
        count, is_one_color, color = self.rng.randint(4, 8), self.rng.random() < 0.4, self.color()
        step = self.width * 0.8 / count
        for i in range(count):
            left = self.width * 0.1 + i * step
            box = (left, self.height * self.rng.uniform(0.15, 0.8), left + step * 0.7, self.height * 0.9)
            self.brush.rectangle(box, fill=color if is_one_color else self.color())
        self.brush.line(
            [(self.width * 0.08, self.height * 0.9), (self.width * 0.94, self.height * 0.9)], fill=self.color(), width=2
        )

    def pie(self) -> None:
        box, start = (self.x - self.reach, self.y - self.reach, self.x + self.reach, self.y + self.reach), 0.0
        while start < 330:
            end = start + self.rng.uniform(30, 140)
            self.brush.pieslice(box, start, min(end, 360), fill=self.color())
            start = end

    def moon(self) -> None:
        self.circle(self.x, self.y, self.reach, fill=self.color())
        shift = self.reach * self.rng.uniform(0.35, 0.6)
        self.circle(self.x + shift, self.y - shift * 0.3, self.reach * 0.95, fill=self.ground)

    def nothing(self) -> None:
        """An empty page."""


def _stripes(rng: random.Random, noise: np.random.Generator, width: int, height: int) -> Image.Image:
    """A gradient or stripes between two colours."""
    y, x = np.mgrid[0:height, 0:width] / min(width, height)
    a, b = noise.uniform(0, 255, 3), noise.uniform(0, 255, 3)
    if np.abs(a - b).max() < 70:
        b = (b + 128) % 256
    if rng.random() < 0.5:
        mix = x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)
        mix = (mix - mix.min()) / (np.ptp(mix) + 1e-6)
    else:
        angle, waves = rng.uniform(0, math.pi), rng.uniform(2.5, 16)
        mix = np.sin(2 * math.pi * waves * (x * math.cos(angle) + y * math.sin(angle))) > rng.uniform(-0.5, 0.5)
    return Image.fromarray(np.clip(a + (b - a) * mix[:, :, None], 0, 255).astype(np.uint8))


def _scenery(rng: random.Random, noise: np.random.Generator, width: int, height: int) -> Image.Image:
    """Clouds of colour at many scales, with soft things before them: what a photo is at this size."""
    total, waves, weight, decay = (
        np.zeros((height, width, 3), np.float32),
        rng.choice((2, 3, 4)),
        1.0,
        rng.uniform(0.45, 0.95),
    )
    while waves <= min(width, 96):
        grain = noise.standard_normal((waves, waves, 3)).astype(np.float32)
        if rng.random() < 0.5:
            grain = grain.mean(2, keepdims=True).repeat(3, 2) * 1.5
        layers = [
            Image.fromarray(np.ascontiguousarray(grain[:, :, c])).resize((width, height), Image.Resampling.BILINEAR)
            for c in range(3)
        ]
        total += weight * np.stack([np.asarray(layer) for layer in layers], 2)
        weight, waves = weight * decay, waves * 2
    base = noise.uniform(50, 200, 3)
    if rng.random() < 0.4:  # sky above ground
        horizon = int(rng.uniform(0.3, 0.7) * height)
        total[horizon:] += noise.uniform(-2, 2, 3).astype(np.float32)
    picture = Image.fromarray(np.clip(base + total * rng.uniform(18, 60), 0, 255).astype(np.uint8))
    if rng.random() < 0.6:
        brush = ImageDraw.Draw(picture)
        for _ in range(rng.randint(1, 20)):
            x, y, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.05, 0.4) * width
            color = tuple(int(v) for v in noise.integers(0, 256, 3))
            if rng.random() < 0.5:
                points = [(x + rng.uniform(-r, r), y + rng.uniform(-r, r)) for _ in range(rng.randint(3, 6))]
                brush.polygon(points, fill=color)
            else:
                brush.ellipse((x - r, y - r * rng.uniform(0.2, 1), x + r, y + r * rng.uniform(0.2, 1)), fill=color)
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 3) * width / 96))
    return picture
