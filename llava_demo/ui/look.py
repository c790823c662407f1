"""What the page looks like and does in the browser, as `gr.Blocks.launch` takes it: theme, styles, script, icon."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

from llava_demo.ui.panels import MARK
from llava_demo.ui.theme import EMBER, BasaltAndEmber

_FOLDER = Path(__file__).parent


def look() -> dict[str, Any]:
    """The options of `launch` that make the page ours."""
    return {
        "theme": BasaltAndEmber(),
        "css_paths": [_FOLDER / "style.css"],
        "js": (_FOLDER / "page.js").read_text(encoding="utf-8"),
        "head": f'<link rel="icon" type="image/svg+xml" href="data:image/svg+xml,{quote(_icon())}">',
    }


def _icon() -> str:
    mark = MARK.replace("currentColor", EMBER.c500)
    return mark.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
