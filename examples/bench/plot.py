"""The plot of a run: bars for both sides. It takes rows of figures and does not know how they were measured."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Plot

from examples.bench.figures import Figure

_INK, _QUIET, _PLAIN, _OURS = "#111827", "#6b7280", "#b8bec9", "#c2410c"
_WIDTH = 0.36  # width of a bar; groups are 1 apart
_VISITS = {
    "first token, new picture": "new picture",
    "first token, next question on it": "next question\non it",
    "first token, another user's question on it": "another user's\nquestion",
}


def plot(figures: Sequence[Figure], engine: str, about: str) -> Plot:
    """Throughput, time to the first token, and later questions about a picture; `about` stands below."""
    plot = Plot(figsize=(13.3, 6.9), layout="constrained")
    panels = plot.subplots(1, 3)
    crowds = {f"{f.chats} chat{'s' * (f.chats != 1)}": f.chats for f in figures if f.chats}
    for axes, title, name in (
        (panels[0], "Tokens a second, all chats together", "throughput"),
        (panels[1], "Median seconds to the first token", "first token, median"),
    ):
        named = {figure.chats: figure for figure in figures if figure.name == name}
        _bars(axes, title, {label: named[chats] for label, chats in crowds.items() if chats in named})
    again = {_VISITS[figure.name]: figure for figure in figures if figure.name in _VISITS}
    _bars(panels[2], "Seconds to the first token, alone", again)
    title = f"Chats about pictures: the {engine} engine beside the model card's way"
    plot.suptitle(title, x=0.01, ha="left", size=15, color=_INK)
    names = ("model card's way: one request at a time", f"{engine} engine")
    plot.legend(panels[0].containers[:2], names, loc="outside upper right", ncols=2, frameon=False)
    words = "\n".join(textwrap.wrap(about.split("\n")[0], 190))
    plot.supxlabel(words, x=0.01, ha="left", size=8, color=_QUIET)
    return plot


def _bars(axes: Axes, title: str, figures: dict[str, Figure]) -> None:
    places = range(len(figures))
    axes.set_title(title, loc="left", size=12, color=_INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb")
    axes.set_axisbelow(True)
    axes.set_xticks(places, figures)
    axes.bar([place - _WIDTH / 2 for place in places], [f.plain for f in figures.values()], _WIDTH, color=_PLAIN)
    ours = axes.bar([place + _WIDTH / 2 for place in places], [f.ours for f in figures.values()], _WIDTH, color=_OURS)
    gains = [f"{f.gain:.1f}x" if f.gain < 10 else f"{f.gain:.0f}x" for f in figures.values()]
    axes.bar_label(ours, gains, padding=2, color=_OURS)
