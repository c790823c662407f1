"""The plot of a run: bars for both sides, drawn with Pillow. Knows rows of figures and nothing of how they came."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from examples.bench.figures import Figure

_SIZE = (2000, 1040)
_INK, _QUIET, _RULE, _PAPER = "#111827", "#6b7280", "#e5e7eb", "#ffffff"
_PLAIN, _OURS = "#b8bec9", "#c2410c"
_TOP, _BOTTOM = 300, 850  # of the bars
_PANELS = ((110, 640), (770, 1300), (1430, 1940))  # left and right
_BAR_GAP = 4
_VISITS = {
    "first token, new picture": "new picture",
    "first token, next question on it": "next question\non it",
    "first token, another user's question on it": "another user's\nquestion",
}


@dataclass(frozen=True)
class _Group:
    """Two bars side by side."""

    label: str
    figure: Figure


def draw(figures: Sequence[Figure], engine: str, about: str) -> Image.Image:
    """Throughput, time to the first token, and a second look at a picture; `about` stands below."""
    picture = Image.new("RGB", _SIZE, _PAPER)
    brush = ImageDraw.Draw(picture)
    brush.text((110, 48), f"Chats about pictures: the {engine} engine beside the model card's way", _INK, _font(44))
    _legend(brush, engine)
    _panel(brush, _PANELS[0], "Tokens a second, all chats together", _crowds(figures, "throughput"))
    _panel(brush, _PANELS[1], "Median seconds to the first token", _crowds(figures, "first token, median"))
    again = [_Group(_VISITS[figure.name], figure) for figure in figures if figure.name in _VISITS]
    _panel(brush, _PANELS[2], "Seconds to the first token, alone", again)
    words = about.split("\n")[0]
    brush.multiline_text((110, 960), "\n".join(textwrap.wrap(words, 190)), _QUIET, _font(21), spacing=8)
    return picture


def _crowds(figures: Sequence[Figure], name: str) -> list[_Group]:
    of_name = [figure for figure in figures if figure.name == name]
    return [_Group(f"{figure.chats} chat{'s' * (figure.chats != 1)}", figure) for figure in of_name]


def _legend(brush: ImageDraw.ImageDraw, engine: str) -> None:
    x = 110
    for color, words in ((_PLAIN, "model card's way: one after the other"), (_OURS, f"{engine} engine")):
        brush.rectangle((x, 128, x + 26, 154), color)
        brush.text((x + 40, 141), words, _QUIET, _font(26), anchor="lm")
        x += 90 + round(brush.textlength(words, _font(26)))


def _panel(brush: ImageDraw.ImageDraw, sides: tuple[int, int], title: str, groups: Sequence[_Group]) -> None:
    left, right = sides
    brush.text((left, 210), title, _INK, _font(30))
    if not groups:
        return
    high = max(max(group.figure.plain, group.figure.ours) for group in groups)
    step = _round_step(high / 4)
    top = high * 1.12

    def y(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * value / top

    for mark in range(int(top / step) + 1):
        height = y(mark * step)
        brush.line((left, height, right, height), _RULE if mark else _QUIET, 2)
        brush.text((left - 12, height), f"{mark * step:g}", _QUIET, _font(22), anchor="rm")
    place = (right - left) / len(groups)
    width = min(90, place * 0.34)
    for number, group in enumerate(groups):
        middle = left + place * (number + 0.5)
        _bar(brush, (middle - width - _BAR_GAP, y(group.figure.plain), middle - _BAR_GAP), _PLAIN)
        _bar(brush, (middle + _BAR_GAP, y(group.figure.ours), middle + _BAR_GAP + width), _OURS)
        gain = f"{group.figure.gain:.1f}x" if group.figure.gain < 10 else f"{group.figure.gain:.0f}x"
        brush.text((middle + _BAR_GAP + width / 2, y(group.figure.ours) - 8), gain, _OURS, _font(27), anchor="mb")
        brush.multiline_text((middle, _BOTTOM + 16), group.label, _INK, _font(23), anchor="ma", align="center")


def _bar(brush: ImageDraw.ImageDraw, place: tuple[float, float, float], color: str) -> None:
    left, top, right = place
    brush.rectangle((left, min(top, _BOTTOM - 3), right, _BOTTOM - 1), color)


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, 50, ... (and 0.5, 0.2, ...) that is not below `step`."""
    power = 10.0**-6
    while True:
        for digit in (1, 2, 5):
            if digit * power >= step:
                return digit * power
        power *= 10


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
