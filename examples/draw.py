"""Draws the example pictures: `python examples/draw.py [FOLDER]`, by default beside this file.

Half of them are plain enough for the miniature model, half ask for the 7B; what is asked about each stands in
examples.json. The same Pillow draws the same pixels on every machine, and a test holds the committed files to that.
"""

import sys
from pathlib import Path

from drawing import documents, landscapes, simple

DRAWINGS = {
    "circle-and-square": simple.circle_and_square,
    "night-star": simple.night_star,
    "three-shapes": simple.three_shapes,
    "two-squares": simple.two_squares,
    "seven": simple.seven,
    "night-four": simple.night_four,
    "cottage": landscapes.cottage,
    "bar-chart": documents.bar_chart,
    "signpost": documents.signpost,
    "receipt": documents.receipt,
    "metro-map": documents.metro_map,
    "water-cycle": landscapes.water_cycle,
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in DRAWINGS.items():
        drawing().picture().save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
