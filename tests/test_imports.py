"""The shape of the code: imports go one way, and nothing grows out of sight."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [*ROOT.glob("app.py"), *ROOT.glob("llava_demo/**/*.py")]
}

# A module imports only what stands lower or beside it. Of the names that a module begins with, the longest counts.
RANKS = {
    "app": 8,
    "llava_demo.__main__": 7,
    "llava_demo.cli": 6,
    "llava_demo.caption": 5,
    "llava_demo.serve": 5,
    "llava_demo.ui": 4,
    "llava_demo.api": 4,
    "llava_demo.engines": 3,
    "llava_demo.settings": 2.5,  # so that what turns values into text, numbers or prompts knows no options
    "llava_demo.model": 2,
    "llava_demo.wire": 2,
    "llava_demo.callers": 2,
    "llava_demo.environment": 3,
    "llava_demo.log": 2,
    "llava_demo.metrics": 2,
    "llava_demo.chat": 1,
    "llava_demo.images": 0.5,
    "llava_demo.errors": 0,
    "llava_demo": 0,
}

MAX_FUNCTION_LINES = 60
MAX_MODULE_LINES = 350


def package_of(module: str) -> str:
    """The entry of RANKS that a module belongs to."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in RANKS and (name != "llava_demo" or module == name)), "")


def imports_of(module: str, at_import_only: bool = False) -> set[str]:
    """Our modules that a module imports anywhere, or only those that importing it imports."""
    found = set()
    for node in _nodes(MODULES[module], at_import_only):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names | (set() if names <= MODULES.keys() else {node.module})
    return {name for name in found if name in MODULES and name != module}


def _nodes(path: Path, at_import_only: bool) -> list[ast.AST]:
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    nodes = []
    while waiting:
        node = waiting.pop()
        nodes.append(node)
        is_late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        if not (at_import_only and is_late):
            waiting += ast.iter_child_nodes(node)
    return nodes


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module: str) -> None:
    """Imports inside functions and for types only count as well: they are the same knowledge."""
    ours = package_of(module)
    assert ours, f"{module} has no rank: give it one in RANKS"
    for imported in imports_of(module):
        theirs = package_of(imported)
        assert RANKS[theirs] <= RANKS[ours], f"{module} ({RANKS[ours]:g}) imports {imported} ({RANKS[theirs]:g})"


def test_there_are_no_cycles() -> None:
    waiting = {module: imports_of(module) - {"llava_demo"} for module in MODULES}
    while free := {module for module, imported in waiting.items() if not imported & waiting.keys()}:
        waiting = {module: imported for module, imported in waiting.items() if module not in free}
    assert not waiting, f"in or above a cycle: {sorted(waiting)}"


@pytest.mark.parametrize(
    "entry", ["llava_demo.chat", "llava_demo.settings", "llava_demo.cli", "llava_demo.engines.load"]
)
def test_what_must_be_quick_to_import_imports_nothing_heavy(entry: str) -> None:
    """So that `--help` and a bad option answer at once."""
    reached, waiting = set(), [entry]
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting += imports_of(module, at_import_only=True) - reached
    for module in reached:
        for node in _nodes(MODULES[module], at_import_only=True):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            heavy = {name.split(".")[0] for name in names} & {"torch", "transformers", "gradio", "huggingface_hub"}
            assert not heavy, f"{module} imports {heavy}"


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_are_short_and_share_no_globals(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, ast.Global), f"{module}:{node.lineno} uses global"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{module}.{node.name} has {lines} lines"


def test_two_modules_read_the_environment() -> None:
    readers = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    }
    assert readers == {"llava_demo.settings", "llava_demo.environment"}  # the latter tells libraries by variables


def test_no_two_classes_have_one_name() -> None:
    nodes = (node for path in MODULES.values() for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    counts = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert [name for name, count in counts.items() if count > 1] == []
