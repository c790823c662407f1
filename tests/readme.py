"""Writes the parts of the README that describe the code from the code: `python tests/readme.py`, or `make readme`.

Each part stands between `<!-- name -->` and `<!-- end of name -->`. test_readme.py fails when one is out of date.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
sys.path.insert(0, str(ROOT))  # run by hand, only this folder is searched

from llava_demo.chat import KNOBS, MAX_SEED, MAX_STOP_STRINGS, SamplingParams  # noqa: E402
from llava_demo.settings import Settings  # noqa: E402

TREE = ("app.py", "llava_demo", "examples", "tests", "Makefile", ".ci/run", ".huggingface")
WORDS = {  # of what has no docstring; the inside of such a folder is not listed
    "llava_demo/ui/css": "The page's own styles on top of the theme, one file for each part",
    "llava_demo/ui/js": "What the page does in the browser beyond Gradio, one module for each concern",
    "llava_demo/miniature": "Its weights and processor, as `from_pretrained` reads them, and a model card",
    "examples/examples.json": "What is asked about each picture",
    "tests": "One file per module: a real model, a real server, a real browser",
    "Makefile": "demo, test, check, examples, readme",
    ".ci/run": "What a change must pass, on a bare Debian 12",
    ".huggingface/space.yaml": "How the Space is made: hardware, variables, names of secrets",
    "examples/clients/curl_ask.sh": "Ask a running server about a picture with curl",
    "examples/clients/gradio_client_ask.mjs": "Ask a running server about a picture from JavaScript",
    "examples/clients/worker_ask.mjs": "What a Cloudflare Worker does with LLaVA, against a server of your own",
    "examples/llava_demo.ipynb": "The demo on Colab",
    "examples/scaling": "Other servers behind the page: commands, manifests, arithmetic",
}


def options() -> str:
    """Every field of Settings."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = {None: "", True: "`yes`", False: "`no`"}.get(default, f"`{default}`")
        limits = [str(getattr(m, side)) for side in ("ge", "le") for m in field.metadata if hasattr(m, side)]
        takes = field.title or " to ".join(limits) or ", ".join(map(str, get_args(field.annotation))) or "yes, no"
        rows.append((f"`--{name.replace('_', '-')}`", shown, takes, field.description or ""))
    return _table(("option", "default", "takes", "meaning"), rows)


def knobs() -> str:
    """Every sampling parameter."""
    rows = []
    for name, knob in KNOBS.items():
        default = getattr(SamplingParams(), name)
        on_page = default if knob.page_default is None else knob.page_default
        span = f"{knob.low:g} to {knob.high:g}" if knob.high < 1e5 else f"{knob.low:g} to the context's end"
        rows.append((f"`{name}`", f"{default:g}", f"{on_page:g}", span, knob.doc))
    span = f"0 to 2^{MAX_SEED.bit_length()} - 1"
    rows.append(("`seed`", "none", "none", span, "The same request with the same seed has the same answer."))
    rows.append(("`stop`", "none", "none", f"{MAX_STOP_STRINGS} strings", "The answer ends before the first of these."))
    return _table(("knob", "default", "on the page", "range", "meaning"), rows)


def files() -> str:
    """The file tree, with the first sentence of each module's docstring."""
    lines = [line for root in TREE for line in _branch(ROOT / root)]
    return "```\n" + "\n".join(lines) + "\n```"


PARTS = {"options": options, "knobs": knobs, "files": files}


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


def _branch(path: Path, depth: int = 0) -> Iterator[str]:
    key = path.relative_to(ROOT).as_posix()
    name = "  " * depth + (path.name if depth else key) + ("/" if path.is_dir() else "")
    source = path / "__init__.py" if path.is_dir() else path
    yield f"{name:<26}{WORDS.get(key) or _first_sentence(source)}".rstrip()
    if path.is_dir() and key not in WORDS:
        for child in sorted(path.iterdir(), key=lambda child: (child.is_dir(), child.name)):
            is_module = child.suffix == ".py" and child.name != "__init__.py"
            if is_module or (child / "__init__.py").exists() or child.relative_to(ROOT).as_posix() in WORDS:
                yield from _branch(child, depth + 1)


def _first_sentence(module: Path) -> str:
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) if module.exists() else None
    return re.split(r"(?<=[.;])\s|\n\n", docstring or "")[0].replace("\n", " ").rstrip(".;")


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
