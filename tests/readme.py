"""Writes the parts of the README that describe the code from the code: `python tests/readme.py`, or `make readme`.

Each part stands between `<!-- name -->` and `<!-- end of name -->`. test_readme.py fails when one is out of date.
"""

import sys
from pathlib import Path
from typing import get_args

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
sys.path.insert(0, str(ROOT))  # run by hand, only this folder is searched

from llava_demo.settings import Settings  # noqa: E402


def options() -> str:
    """Every field of Settings."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = {None: "", (): "", True: "yes", False: "no"}.get(default, f"`{default}`")
        limits = [str(getattr(m, side)) for side in ("ge", "le") for m in field.metadata if hasattr(m, side)]
        takes = field.title or " to ".join(limits) or ", ".join(map(str, get_args(field.annotation))) or "yes, no"
        option = name.replace("_", "-")
        if field.annotation is bool:
            typed, takes = (f"`--no-{option}`" if default else f"`--{option}`"), "nothing"
        else:
            typed = f"`--{option}`"
        rows.append((typed, shown, takes, field.description or ""))
    return _table(("option", "default", "takes", "meaning"), rows)


PARTS = {"options": options}


def written(readme: str) -> str:
    """The README's text with every part brought up to date."""
    for name, part in PARTS.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, rest = readme.split(start)
        readme = f"{before}{start}\n{part()}\n{end}{rest.split(end)[1]}"
    return readme


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
