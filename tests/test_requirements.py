"""The requirements: everything that is imported is pinned, to the version that these tests run with."""

import ast
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
OURS = {path.stem for path in ROOT.rglob("*.py")} | {"llava_demo", "drawing", "examples"}


def pinned(file: str) -> dict[str, str]:
    """Distribution and version of every line."""
    lines = (line.split("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines())
    requirements = [Requirement(line) for line in lines if line]
    assert all(str(r.specifier).startswith("==") for r in requirements), f"{file}: every version is pinned with =="
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in requirements}


def imported_by(*folders: str) -> set[str]:
    """The distributions that the modules in these folders import."""
    modules = set()
    for path in (path for folder in folders for path in ROOT.glob(folder)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    found = packages_distributions()
    return {canonicalize_name(found.get(name, [name])[0]) for name in modules - OURS - sys.stdlib_module_names}


def test_the_program_imports_nothing_that_is_not_pinned() -> None:
    assert imported_by("app.py", "llava_demo/**/*.py", "examples/**/*.py") <= set(pinned("requirements.txt"))


def test_the_tests_import_nothing_that_is_not_pinned() -> None:
    known = pinned("requirements.txt") | pinned("tests/requirements.txt")
    assert imported_by("tests/**/*.py") <= set(known)


@pytest.mark.parametrize("file", ["requirements.txt", "tests/requirements.txt"])
def test_the_pinned_versions_are_the_ones_that_run_here(file: str) -> None:
    installed = {name: version(name).split("+")[0] for name in pinned(file)}  # torch's CPU build is 2.13.0+cpu
    assert installed == pinned(file)
