"""The scaling guide: its files are what they should be, its arithmetic is right, and its page needs no torch."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_demo.model.llava import MODEL_CARD_TEMPLATE
from llava_demo.settings import Settings

FOLDER = Path(__file__).parents[1] / "examples" / "scaling"
GUIDE = (FOLDER / "README.md").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
CLUSTER = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8")))


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [each for each in CLUSTER if each["kind"] == kind]


def settings_of(variables: dict[str, str]) -> Settings:
    assert all(name.startswith("LLAVA_") for name in variables)
    return Settings.of({name.removeprefix("LLAVA_").lower(): value for name, value in variables.items()})


def test_the_template_is_the_one_of_this_project_everywhere() -> None:
    assert (FOLDER / "llava-1.5.jinja").read_text(encoding="utf-8") == MODEL_CARD_TEMPLATE
    assert of_kind("ConfigMap")[0]["data"] == {"llava-1.5.jinja": MODEL_CARD_TEMPLATE}


def test_the_page_asks_every_server_that_compose_starts() -> None:
    settings = settings_of(COMPOSE["services"]["page"]["environment"])
    servers = sorted(name for name in COMPOSE["services"] if name != "page")
    assert settings.remote_url == tuple(f"http://{name}:8000/v1" for name in servers)
    assert settings.is_remote


def test_the_page_asks_every_server_that_kubernetes_starts() -> None:
    [page], [servers] = of_kind("Deployment"), of_kind("StatefulSet")
    container = page["spec"]["template"]["spec"]["containers"][0]
    settings = settings_of({entry["name"]: entry["value"] for entry in container["env"]})
    names = [f"vllm-{number}.{servers['spec']['serviceName']}" for number in range(servers["spec"]["replicas"])]
    assert settings.remote_url == tuple(f"http://{name}:8000/v1" for name in names)
    labels = {each["metadata"]["name"]: each["spec"]["selector"] for each in of_kind("Service")}
    for workload in (page, servers):
        assert labels[workload["metadata"]["name"]] == workload["spec"]["template"]["metadata"]["labels"]


def test_the_image_of_the_page_leaves_out_what_needs_torch() -> None:
    dockerfile = (FOLDER / "page.Dockerfile").read_text(encoding="utf-8")
    pattern = re.search(r"grep -vE '(.+?)'", dockerfile)
    assert pattern is not None
    lines = (FOLDER.parents[1] / "requirements.txt").read_text(encoding="utf-8").splitlines()
    left_out = {line.split("==")[0] for line in lines if re.search(pattern[1], line)}
    assert {"torch", "transformers", "accelerate", "bitsandbytes"} <= left_out
    assert not left_out & {"gradio", "httpx", "pillow", "pydantic", "fastapi", "pydantic-settings"}


ROWS = re.findall(r"^\| (\w+), \d+ GB \|(.+)\|$", GUIDE, re.MULTILINE)


@pytest.mark.parametrize("cells", [cells for _, cells in ROWS], ids=[gpu for gpu, _ in ROWS])
def test_the_arithmetic_is_right(cells: str) -> None:
    reading, writing, seconds, per_gpu, *needed = (float(cell.replace(",", "")) for cell in cells.split("|"))
    assert seconds == pytest.approx(reading + 100 / writing, abs=0.001)
    assert per_gpu == int(0.7 * 60 / (reading + 100 / writing))
    assert needed == [math.ceil(users / per_gpu) for users in (10, 100, 1000, 10_000)]


def test_there_is_a_row_for_each_gpu() -> None:
    assert [gpu for gpu, _ in ROWS] == ["L4", "A10G", "H100"]
