"""Making a Space: what is uploaded and set, against a stand-in for the Hub; and what was uploaded runs."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from gradio_client import Client, handle_file
from hub import TOKEN, Hub, stand_in_hub
from huggingface_hub import SpaceCard, SpaceHardware
from packaging.version import Version
from processes import other_server

from llava_demo.engines.checkpoint import SMALL_LLAVA
from llava_demo.settings import Settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / ".huggingface" / "deploy.py"
MANIFEST = yaml.safe_load((ROOT / ".huggingface" / "space.yaml").read_text(encoding="utf-8"))


def deploy(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LLAVA_"))}
    return subprocess.run(
        [sys.executable, str(DEPLOY), *arguments],
        env=kept
        | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", "HF_HOME": "/nonexistent"}
        | variables,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture
def hub() -> Iterator[Hub]:
    with stand_in_hub() as hub:
        yield hub


def online(hub: Hub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}


# --- the plan


def test_a_dry_run_says_everything_and_sends_nothing(hub: Hub) -> None:
    done = deploy("me/demo", "--hardware", "t4-small", "--private", "--dry-run", **online(hub))
    assert done.returncode == 0, done.stderr
    assert hub.asked == []
    head = done.stdout.splitlines()[:5]
    assert head[:4] == [
        "Space      me/demo (private)",
        "Hardware   t4-small, sleeps after 3600 s without visitors",
        "Variable   LLAVA_LOG_FORMAT=json",
        "Variable   LLAVA_MAX_QUEUE=32",
    ]
    assert done.stdout.endswith("Dry run: nothing was sent.\n")


def listed() -> dict[str, int]:
    lines = deploy("me/demo", "--dry-run").stdout.splitlines()
    return {path: int(size.replace(",", "")) for size, path in (line.split() for line in lines if line[:2] == "  ")}


def test_only_what_a_space_needs_is_uploaded() -> None:
    files = listed()
    for needed in (
        "README.md",
        "app.py",
        "requirements.txt",
        "LICENSE",
        "llava_demo/ui/css/page.css",
        "llava_demo/ui/js/main.js",
        "llava_demo/serve/guard.py",
    ):
        assert needed in files
    assert "llava_demo/miniature/model.safetensors" in files
    assert "examples/examples.json" in files
    assert {path.split("/")[0] for path in files if "/" in path} == {"llava_demo", "examples"}
    for path in files:
        assert not any(part.startswith((".", "__pycache__")) for part in path.split("/")), path
        assert not path.startswith(("examples/bench", "examples/miniature", "tests")), path
    assert max(files.values()) < 10e6  # larger ones would have to be in LFS
    assert sum(files.values()) < 10e6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo"], "'demo' names no user"),
        (["me/de mo"], "'me/de mo' is not the name of a Space"),
        (["me/demo", "--hardware", "b200"], "invalid choice: 'b200'"),
        (["me/demo", "--secret", "LLAVA_AUTH"], "set the variable LLAVA_AUTH to its value"),
        (["me/demo", "--secret", "PATH"], "invalid choice: 'PATH'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_sent(arguments: list[str], words: str, hub: Hub) -> None:
    done = deploy(*arguments, **online(hub))
    assert (done.returncode, hub.asked) == (2, [])
    assert words in done.stderr
    assert "Traceback" not in done.stderr


# --- the Hub


def test_a_space_is_made_set_up_and_filled(hub: Hub) -> None:
    hub.files = {".gitattributes": b"*.png filter=lfs", "old.py": b"gone"}
    done = deploy(
        "me/demo", "--hardware", "l4x1", "--secret", "LLAVA_AUTH", **online(hub), LLAVA_AUTH="ada:correct horse"
    )
    assert done.returncode == 0, done.stderr
    assert "https://huggingface.co/spaces/me/demo" in done.stdout
    assert "correct horse" not in done.stdout + done.stderr
    create, *settings = hub.asked
    assert create[1]["name"] == "demo"
    assert (create[1]["type"], create[1]["sdk"], create[1]["organization"]) == ("space", "gradio", "me")
    assert settings == [
        ("variables", {"key": "LLAVA_LOG_FORMAT", "value": "json"}),
        ("variables", {"key": "LLAVA_MAX_QUEUE", "value": "32"}),
        ("secrets", {"key": "LLAVA_AUTH", "value": "ada:correct horse"}),
        ("commit", None),
        ("hardware", {"flavor": "l4x1", "sleepTimeSeconds": 3600}),
    ]
    assert hub.files.keys() == listed().keys() | {".gitattributes"}
    assert hub.files["app.py"] == (ROOT / "app.py").read_bytes()


def test_without_hardware_nothing_that_costs_is_asked_for(hub: Hub) -> None:
    assert deploy("me/demo", **online(hub)).returncode == 0
    assert "hardware" not in dict(hub.asked) | hub.asked[0][1]


def test_a_refusal_of_the_hub_is_one_line(hub: Hub) -> None:
    done = deploy("me/demo", HF_ENDPOINT=hub.url, HF_TOKEN="hf_wrong")
    assert (done.returncode, done.stderr) == (1, "deploy.py: Invalid username or password.\n")


def test_a_hub_that_cannot_be_reached_is_said() -> None:
    done = deploy("me/demo", HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=TOKEN)
    assert (done.returncode, done.stderr) == (1, "deploy.py: the Hub cannot be reached.\n")


def test_what_was_uploaded_runs(hub: Hub, tmp_path: Path) -> None:
    assert deploy("me/demo", **online(hub)).returncode == 0
    for path, data in hub.files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    with other_server(
        "app", "--port", "PORT", "--model", "miniature", health="health/ready", folder=tmp_path
    ) as server:
        picture = handle_file(tmp_path / "examples" / "circle-and-square.png")
        asked = {"image": picture, "prompt": "What is in this picture?", "temperature": 0, "api_name": "/ask"}
        assert Client(server.url, verbose=False).predict(**asked) == "The image shows a red circle and a blue square."


def test_a_space_without_a_gpu_preloads_and_suggests_what_it_serves(hub: Hub) -> None:
    assert deploy("me/demo", "--hardware", "cpu-basic", **online(hub)).returncode == 0
    data = SpaceCard(hub.files["README.md"].decode()).data.to_dict()
    here = SpaceCard.load(ROOT / "README.md")
    assert data["suggested_hardware"] == "cpu-basic"
    assert data["models"] == [SMALL_LLAVA]
    [preloaded] = data["preload_from_hub"]
    repository, files = preloaded.split()
    assert repository == SMALL_LLAVA
    assert "model.safetensors" in files.split(",")
    unchanged = data.keys() - MANIFEST["front_matter"]["cpu-basic"].keys()
    assert {name: data[name] for name in unchanged} == {name: here.data.to_dict()[name] for name in unchanged}
    assert hub.files["README.md"].decode().endswith(here.text[-2000:])


# --- the front matter and the manifest


def test_the_front_matter_is_a_spaces() -> None:
    card = SpaceCard.load(ROOT / "README.md")
    data = card.data.to_dict()
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert (data["sdk"], data["app_file"], data["license"]) == ("gradio", "app.py", "apache-2.0")
    assert f"gradio=={data['sdk_version']}\n" in requirements
    assert Version("3.11") <= Version(data["python_version"]) < Version("3.13")  # ZeroGPU has 3.12 and no later one
    assert len(data["short_description"]) <= 60
    assert data["suggested_hardware"] in MANIFEST["hardware"]
    assert data["models"] == ["llava-hf/llava-1.5-7b-hf"]
    assert data["preload_from_hub"] == data["models"]  # whole: a file that the Hub lacks would end the build
    assert data["colorFrom"] in COLOURS
    assert data["colorTo"] in COLOURS


COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")  # all that the Hub knows


def test_the_manifest_names_only_what_there_is() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = {hardware.value for hardware in SpaceHardware}
    assert MANIFEST["hardware"].keys() <= known
    assert MANIFEST["front_matter"].keys() <= MANIFEST["hardware"].keys()
    ours = {f"LLAVA_{name.upper()}" for name in Settings.model_fields}
    assert MANIFEST["variables"].keys() <= ours
    assert set(MANIFEST["secrets"]) <= ours | {"HF_TOKEN"}
    Settings.of({name.removeprefix("LLAVA_").lower(): value for name, value in MANIFEST["variables"].items()})
