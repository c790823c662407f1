"""The README: what it says is so. Its snippets are run, its tables compared with the code, its front matter checked."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml
from huggingface_hub import SpaceCard, SpaceCardData, SpaceHardware
from packaging.requirements import Requirement
from processes import free_port
from readme import README, ROOT, written

from llava_demo.settings import Settings

TEXT = README.read_text(encoding="utf-8")
DEFAULT_ADDRESS = "http://127.0.0.1:7860"
ENVIRONMENT = os.environ | {"LLAVA_MODEL": "miniature", "PYTHONUNBUFFERED": "1"}
START_LIMIT_S = 180  # seconds; a test machine may be busy with other things
COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")  # that a Space's card may have


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def snippets(title: str) -> list[tuple[str, str]]:
    """Language and text of each code block of a section."""
    return re.findall(r"^```(python|bash)\n(.*?)^```$", section(title), re.DOTALL | re.MULTILINE)


@contextmanager
def serving(command: str) -> Iterator[str]:
    """Run a command of the README that serves the page, on a free port; gives its address once it is ready."""
    port = free_port()
    words = [sys.executable, *shlex.split(command)[1:]]
    if "--port" in words:
        words[words.index("--port") + 1] = str(port)
    server = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT | {"LLAVA_PORT": str(port)}, stdout=subprocess.DEVNULL)
    try:
        wait_until_ready(address := f"http://127.0.0.1:{port}", server)
        yield address
    finally:
        server.terminate()
        server.wait(10)


def wait_until_ready(address: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{address}/health/ready", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not ready after {START_LIMIT_S} s; exit code {server.poll()}")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The demo, started as the README says."""
    _, command = snippets("Run it")[0]
    with serving(command.split("&&")[1].strip()) as address:
        yield address


@pytest.mark.parametrize(("language", "snippet"), snippets("Ways in"))
def test_every_snippet_runs_and_prints_what_the_readme_says(address: str, language: str, snippet: str) -> None:
    code = snippet.replace(DEFAULT_ADDRESS, address)
    words = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where `python` is this one
    run = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT | {"PATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for line in re.findall(r"^# → (.*)$", snippet, re.MULTILINE):
        assert line in run.stdout


def test_the_command_with_options_serves() -> None:
    _, command = snippets("Options")[0]
    with serving(command) as address:
        assert "gradio" in httpx.get(address).text


def test_the_tables_are_those_of_the_code() -> None:
    assert written(TEXT) == TEXT, "The README is out of date: run make readme."


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 250


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", TEXT)
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_ci_runs_the_test_command_of_the_readme() -> None:
    _, command = snippets("Run it")[1]
    assert command in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_the_front_matter_makes_a_space() -> None:
    card = SpaceCard(TEXT).data
    assert isinstance(card, SpaceCardData)
    assert card.sdk == "gradio" and card.license == "apache-2.0"
    assert (ROOT / card.app_file).is_file()
    assert card.python_version == "3.12"  # the platform's own default, 3.10, cannot install these requirements
    assert len(card.short_description) <= 60  # the platform refuses a longer one
    assert card.colorFrom in COLORS and card.colorTo in COLORS
    assert card.suggested_hardware in [hardware.value for hardware in SpaceHardware]


def test_a_space_installs_the_pinned_gradio() -> None:
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {r.name: str(r.specifier) for r in (Requirement(x.split("#")[0]) for x in requirements if x.split("#")[0])}
    assert pinned["gradio"] == f"=={SpaceCard(TEXT).data.sdk_version}"  # else pip finds no solution there


def test_a_space_preloads_the_weights_of_its_model() -> None:
    card = SpaceCard(TEXT).data
    assert card.preload_from_hub == card.models  # whole: a file that the Hub does not have would end the build


def test_the_space_manifest_names_only_what_there_is() -> None:
    manifest = yaml.safe_load((ROOT / ".huggingface/space.yaml").read_text(encoding="utf-8"))
    assert set(manifest["hardware"]) <= {hardware.value for hardware in SpaceHardware}
    assert SpaceCard(TEXT).data.suggested_hardware in manifest["hardware"]
    variables = {name.removeprefix("LLAVA_").lower(): value for name, value in manifest["variables"].items()}
    Settings.of(variables)
    assert {f"LLAVA_{name.upper()}" for name in Settings.model_fields} | {"HF_TOKEN"} >= set(manifest["secrets"])
