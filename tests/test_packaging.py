"""The package as `pip install` makes it: a wheel with weights, styles and pictures, and one version."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from processes import other_server
from test_requirements import pinned

from llava_demo import __version__

ROOT = Path(__file__).parents[1]
DRAWING = ROOT / "examples" / "circle-and-square.png"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment in which the wheel is installed, beside the packages that run these tests."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], check=True, timeout=300)
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True, timeout=300)
    return python.parent


@pytest.fixture(scope="module")
def url(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    elsewhere = tmp_path_factory.mktemp("elsewhere")  # where no checkout can be imported by accident
    command = ("llava_demo", "serve", "--port", "PORT", "--model", "miniature")
    with other_server(*command, health="health/ready", folder=elsewhere, python=programs / "python") as server:
        yield server.url


def test_the_wheel_serves_the_page_and_answers(url: str) -> None:
    client = Client(url, verbose=False)
    answer = client.predict(
        image=handle_file(DRAWING), prompt="What is in this picture?", temperature=0, api_name="/ask"
    )
    assert answer == "The image shows a red circle and a blue square."
    with urllib.request.urlopen(f"{url}config", timeout=60) as page:
        cards = [c["props"]["examples"] for c in json.load(page)["components"] if c["props"].get("examples")]
    assert len(cards[0]) >= 4


def test_the_version_is_the_same_everywhere(url: str, programs: Path) -> None:
    written = subprocess.run([programs / "llava-demo", "--version"], capture_output=True, text=True, check=True)
    with urllib.request.urlopen(f"{url}v1/openapi.json", timeout=60) as document:
        version = json.load(document)["info"]["version"]
    said = {written.stdout.strip(), f"llava_demo {version}"}
    said.add(f"llava_demo {Client(url, verbose=False).predict(api_name='/info')['version']}")
    assert said == {f"llava_demo {__version__}"}


def test_the_ranges_of_the_package_hold_the_pinned_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ranges = {canonicalize_name(r.name): r.specifier for r in map(Requirement, project["dependencies"])}
    pins = {name: version for name, version in pinned("requirements.txt").items() if name != "pytest"}
    assert ranges.keys() == pins.keys()
    assert [name for name, version in pins.items() if version not in ranges[name]] == []


def test_types_are_published(programs: Path) -> None:
    where = "import llava_demo, pathlib; print(pathlib.Path(llava_demo.__file__).parent)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        [programs / "python", "-c", where], capture_output=True, text=True, check=True, env=environment, cwd="/"
    )
    package = Path(found.stdout.strip())
    assert programs.parent in package.parents
    assert (package / "py.typed").is_file()
