"""Paints scenes with Pillow, as the picture preprocessing of this project hands them to the model: padded squares."""

import io
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from examples.miniature.geometry import Point, outline
from examples.miniature.lookalikes import corners_of
from examples.miniature.neighbours import neighbour
from examples.miniature.scenes import RGB, SHAPES, Frame, Scene, Shape
from examples.miniature.strangers import stranger

CLIP_MEAN_RGB: RGB = (122, 116, 104)
Box = tuple[float, float, float, float]

_NEIGHBOURS = 0.85  # share of near misses among the pictures outside the world
_FONT_FOLDER = Path("/usr/share/fonts/truetype")  # Debian's; Pillow's own font serves where it is missing
_FONT_FAMILIES = ("dejavu", "liberation", "freefont", "ubuntu", "roboto", "open-sans", "lato")


@cache
def font_files() -> tuple[str, ...]:
    """The installed fonts with ordinary digits; empty where none is."""
    files = (p for family in _FONT_FAMILIES for p in sorted((_FONT_FOLDER / family).rglob("*.ttf")))
    return tuple(
        str(p) for p in files if not any(word in p.name for word in ("Math", "ExtraLight", "Thin", "Hairline"))
    )


@cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


def random_font(rng: random.Random, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    size = max(8, size // 8 * 8)  # few sizes, so that fonts are opened once
    return _font(rng.choice(font_files()) if font_files() and rng.random() < 0.75 else "", size)


def draw(scene: Scene, rng: random.Random, side: int) -> tuple[Image.Image, Box | None]:
    """Paint `scene` as a square RGB picture of `side` pixels; with it the box of the digit, in shares of the square."""
    scale = rng.choice((2, 2, 3, 4))
    full = side * scale
    frame, box = scene.frame, None
    width, height = round(frame.width * full), round(frame.height * full)
    if scene.kind == "other" and not scene.objects and not scene.digit:
        family = neighbour if rng.random() < _NEIGHBOURS else stranger
        picture = family(rng, width, height, random_font)
    else:
        picture = Image.new("RGB", (width, height), scene.background_rgb)
        if scene.digit:
            box = _draw_digit(picture, scene, rng)
        for thing in scene.objects:
            _draw_shape(picture, thing, frame, full, rng, scene.difficulty)
    if rng.random() < 0.2 * scene.difficulty:
        picture = _as_jpeg(picture, rng.choice((15, 20, 40, 60, 75, 90)))
    if rng.random() < 0.15 * scene.difficulty:
        picture = _coarse(picture, rng, side)
    square = Image.new("RGB", (full, full), CLIP_MEAN_RGB)
    square.paste(picture, ((full - width) // 2, (full - height) // 2))
    is_box = rng.random() < 0.5
    small = square.reduce(scale) if is_box else square.resize((side, side), Image.Resampling.BICUBIC)
    return _disturbed(small, rng, scene.difficulty), box


def _draw_shape(
    picture: Image.Image, thing: Shape, frame: Frame, full: int, rng: random.Random, difficulty: float
) -> None:
    x, y, radius = (thing.x - frame.left) * full, (thing.y - frame.top) * full, thing.radius * full
    brush = ImageDraw.Draw(picture)
    edge = (30, 30, 30) if rng.random() < 0.08 * difficulty and sum(picture.getpixel((0, 0))) > 300 else None
    width = max(1, full // 96)
    if thing.shape == "circle":
        squeeze = [rng.uniform(0.97, 1) if rng.random() < 0.3 * difficulty else 1.0 for _ in "xy"]
        rx, ry = radius * squeeze[0], radius * squeeze[1]
        brush.ellipse((x - rx, y - ry, x + rx, y + ry), fill=thing.rgb, outline=edge, width=width)
    else:
        is_known = thing.shape in SHAPES
        corners: Sequence[Point] = (
            outline(rng, thing.shape, (x, y), radius, difficulty)
            if is_known
            else corners_of(rng, thing.shape, (x, y), radius)
        )
        brush.polygon(corners, fill=thing.rgb, outline=edge, width=width)


def _draw_digit(picture: Image.Image, scene: Scene, rng: random.Random) -> Box:
    """Write the digit; its box in shares of the padded square."""
    width, height = picture.size
    short = min(width, height)
    font = random_font(rng, int(rng.uniform(1.05 - 0.53 * scene.difficulty, 1.15) * short))
    stroke = rng.choice((0, 0, 0, 1, 2, 3)) * short // 200
    layer = Image.new("L", picture.size, 0)
    brush = ImageDraw.Draw(layer)
    x0, y0, x1, y1 = brush.textbbox((0, 0), scene.digit, font=font, stroke_width=stroke)
    x = (width - (x1 - x0)) / 2 + rng.uniform(-0.18, 0.18) * scene.difficulty * width - x0
    y = (height - (y1 - y0)) / 2 + rng.uniform(-0.1, 0.1) * scene.difficulty * height - y0
    if scene.digit == "O" and rng.random() < 0.6:
        _draw_ring(brush, rng, (x + x0, y + y0, x + x1, y + y1))
    else:
        brush.text((x, y), scene.digit, font=font, fill=255, stroke_width=stroke)
    if scene.kind == "other" and rng.random() < 0.5:
        layer = _narrowed(layer, rng.uniform(0.65, 1))
    if rng.random() < 0.4 * scene.difficulty:
        layer = layer.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR)
    picture.paste(scene.digit_rgb, (0, 0), layer)
    left, top, right, bottom = layer.getbbox() or (0, 0, width, height)
    frame = scene.frame
    return (
        frame.left + frame.width * left / width,
        frame.top + frame.height * top / height,
        frame.left + frame.width * right / width,
        frame.top + frame.height * bottom / height,
    )


def _draw_ring(brush: ImageDraw.ImageDraw, rng: random.Random, box: Box) -> None:
    """An O as in fonts of typewriters and of screens, which training does not have: a box with round corners."""
    x0, y0, x1, y1 = box
    height = y1 - y0
    width = min(x1 - x0, height * rng.uniform(0.55, 1))
    stroke = max(1, round(height * rng.uniform(0.06, 0.2)))
    brush.rounded_rectangle((x0, y0, x0 + width, y1), width * rng.uniform(0.2, 0.5), outline=255, width=stroke)


def _narrowed(layer: Image.Image, share: float) -> Image.Image:
    """A letter as narrow as in fonts that training does not have."""
    width, height = layer.size
    narrow = Image.new("L", layer.size, 0)
    narrow.paste(layer.resize((max(8, round(width * share)), height)), (round(width * (1 - share) / 2), 0))
    return narrow


def _coarse(picture: Image.Image, rng: random.Random, side: int) -> Image.Image:
    """As from a file with few pixels."""
    share = rng.uniform(0.45, 1) * side / max(picture.size)
    few = [max(8, round(v * share)) for v in picture.size]
    how = rng.choice((Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS))
    return picture.resize(few, how).resize(picture.size, how)


def _as_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _disturbed(picture: Image.Image, rng: random.Random, difficulty: float) -> Image.Image:
    """Sometimes faded towards gray, and then a little noise, an uneven light, or a blur."""
    if rng.random() < 0.22 * difficulty:
        level = rng.randint(90, 160)
        picture = Image.blend(picture, Image.new("RGB", picture.size, (level,) * 3), rng.uniform(0.05, 0.37))
    luck = rng.random() / max(difficulty, 1e-3)
    if luck < 0.15:
        most = rng.choice((10, 10, 20, 45))
        noise = np.random.default_rng(rng.getrandbits(32)).integers(-most, most + 1, (*picture.size, 3), dtype=np.int16)
        return Image.fromarray(np.clip(np.asarray(picture).astype(np.int16) + noise, 0, 255).astype(np.uint8))
    if luck < 0.2:
        ramp = np.linspace(-14, 14, picture.width, dtype=np.float32)
        light = ramp[None, :, None] if rng.random() < 0.5 else ramp[:, None, None]
        return Image.fromarray(np.clip(np.asarray(picture) + light, 0, 255).astype(np.uint8))
    if luck < 0.3:
        return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
    return picture
