"""The example cards of the page, read from the project's `examples/examples.json`."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

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
    """The examples that the served model can answer; none if the folder was not installed with the code."""
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


class Examples:
    """The cards of one page, with their pictures in Gradio's cache; the current model decides which are shown."""

    def __init__(self, is_miniature: Callable[[], bool]) -> None:
        self._is_miniature = is_miniature
        self._cards: dict[bool, list[dict[str, Any]]] = {}
        self._examples: dict[bool, list[Example]] = {}

    def publish(self, chat: gr.Chatbot) -> None:
        """Show the cards in `chat`; all their pictures are copied to its cache and stay there."""
        for kind in (True, False):
            self._examples[kind], self._cards[kind] = [], []
            for example in examples_for(kind):
                file = chat.serve_static_file(example.path)
                chat.keep_in_cache.add(file["path"])  # else it is deleted with old uploads
                self._examples[kind].append(Example(file["path"], example.title, example.prompt))
                named = file | {"orig_name": Path(example.path).name, "mime_type": "image/png"}
                self._cards[kind].append({"text": example.prompt, "files": [named]})
        chat.examples = self.cards()  # type: ignore[assignment]

    def cards(self) -> list[dict[str, Any]]:
        """The cards for the current model, as the Chatbot takes them."""
        return self._cards[self._is_miniature()]

    def shown(self) -> list[Example]:
        """The examples of the cards, in their order."""
        return self._examples[self._is_miniature()]
