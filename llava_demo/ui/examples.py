"""The example cards of the page, read from the project's `examples/examples.json`."""

import json
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# A wheel carries the pictures inside the package, a checkout beside it.
FOLDER = next((folder for folder in (_PACKAGE / "examples", _PACKAGE.parent / "examples") if folder.is_dir()), _PACKAGE)


@dataclass(frozen=True)
class Example:
    """A picture and what to ask about it."""

    path: str
    title: str
    prompt: str


def examples_for(is_miniature: bool, folder: Path = FOLDER) -> list[Example]:
    """Those that the served model can answer; none where the folder was not installed with the code."""
    index = folder / "examples.json"
    if not index.is_file():
        return []
    wanted = "miniature" if is_miniature else "7b"
    entries = json.loads(index.read_text(encoding="utf-8"))
    return [
        Example(str(folder / entry["image"]), entry["title"], entry["prompt"])
        for entry in entries
        if entry["for"] == wanted
    ]
