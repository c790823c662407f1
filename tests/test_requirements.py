"""The requirements: everything that is imported is pinned, to the version that these tests run with."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from uv import find_uv_bin

ROOT = Path(__file__).parents[1]
OURS = {path.stem for path in ROOT.rglob("*.py")} | {"llava_demo", "drawing", "examples", "tests"}


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
    brought = {"triton"}  # by torch's CUDA builds, in the version that each needs
    assert imported_by("app.py", "llava_demo/**/*.py") - brought <= set(pinned("requirements.txt"))


def test_the_examples_import_nothing_that_is_not_pinned() -> None:
    known = pinned("requirements.txt") | pinned("tests/requirements.txt")
    optional = {"gguf", "llama_cpp"}  # the bench says how they are installed, versions included, where they are missing
    assert imported_by("examples/**/*.py") - optional <= set(known)


def test_the_tests_import_nothing_that_is_not_pinned() -> None:
    known = pinned("requirements.txt") | pinned("tests/requirements.txt")
    assert imported_by("tests/**/*.py") <= set(known)


@pytest.mark.parametrize("file", ["requirements.txt", "tests/requirements.txt"])
def test_the_pinned_versions_are_the_ones_that_run_here(file: str) -> None:
    installed = {name: version(name).split("+")[0] for name in pinned(file)}  # torch's CPU build is 2.13.0+cpu
    assert installed == pinned(file)


# What a Space installs beside requirements.txt, in one command; on ZeroGPU it says how new torch may be.
WITH_A_SPACE = ["gradio[oauth,mcp]=={sdk_version}", "uvicorn>=0.14.0", "websockets>=10.4", "spaces"]


@pytest.mark.parametrize("more", [[], ["torch<=2.13.0"]], ids=["a GPU of its own", "ZeroGPU"])
def test_the_requirements_resolve_with_the_install_line_of_a_space(more: list[str], tmp_path: Path) -> None:
    front = dict(line.split(": ", 1) for line in _front_matter() if ": " in line)
    lines = [line.format(sdk_version=front["sdk_version"]) for line in WITH_A_SPACE]
    (tmp_path / "space.txt").write_text("\n".join([*lines, *more]))
    python = front["python_version"].strip('"')
    options = ["--python-version", python, "--python-platform", "x86_64-manylinux_2_31", "--only-binary", ":all:"]
    files = [str(ROOT / "requirements.txt"), str(tmp_path / "space.txt")]
    done = subprocess.run(
        [find_uv_bin(), "pip", "compile", "--quiet", "--no-annotate", "--no-header", *options, *files],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if "error sending request" in done.stderr or "Connectivity is disabled" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    for name, version_ in pinned("requirements.txt").items():
        assert f"{name}=={version_}\n" in canonical(done.stdout)


def canonical(resolved: str) -> str:
    return "".join(
        f"{canonicalize_name(line.split('==')[0])}=={line.split('==')[-1]}\n" for line in resolved.splitlines()
    )


def _front_matter() -> list[str]:
    return (ROOT / "README.md").read_text(encoding="utf-8").split("---")[1].splitlines()
