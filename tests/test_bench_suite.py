"""The bench's suite for a GPU, dry: everything runs on a CPU as well. No test looks at how fast anything was."""

import json
import os
from pathlib import Path

import pytest

from examples.bench import command, suite_gpu
from examples.bench.command import main
from examples.bench.figures import NEW_PICTURE
from examples.bench.suite_gpu import TURNS, VARIANTS, WAYS

# Beside these a bare GPU machine lacks what the head of `suite_gpu` names
NOT_NEEDED = ("gradio", "fastapi", "starlette", "uvicorn", "spaces", "mcp", "pygments", "matplotlib", "httpx_sse")


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started now cannot import what a suite does not need."""
    (tmp_path / "site").mkdir()
    code = f"import sys\nsys.modules |= dict.fromkeys({NOT_NEEDED})  # None: importing it is an error\n"
    (tmp_path / "site" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)


@pytest.mark.usefixtures("bare_machine")
def test_the_suite_for_a_gpu_runs_dry_on_any_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = dict(list(VARIANTS.items())[:2])  # one is enough to see that something is otherwise
    monkeypatch.setattr(suite_gpu, "VARIANTS", variants)
    options = ["--chats", "1", "--max-tokens", "4", "--out", str(tmp_path)]
    assert main(["--suite", "gpu", "--shape", "miniature", "--quantize", "none", *options]) == 0
    assert capsys.readouterr().out == (tmp_path / "suite.md").read_text()
    rows = json.loads((tmp_path / "suite.json").read_text())["rows"]
    found = {row["what"]: row for row in rows}
    assert found["the miniature's, equal to those of `generate` on a CPU"]["ours"] == "1 of 1"
    assert float(found["log-probabilities, furthest from `generate`'s"]["ours"]) < 1e-3
    assert found["answers that are those of the model card's way"]["ours"] == "1 of 1"
    for what in ("throughput, 1 at once", NEW_PICTURE, "next token of one chat"):
        assert found[what]["ours"]
        assert found[what]["card"]
    assert all(found[what]["bare"] for what in (*WAYS, NEW_PICTURE, "next token of one chat"))
    assert found["a step, 1 at once"]["ours"] == "0 launches, 0 kernels, 0.00 ms of them"  # a CPU has none
    assert {row["part"] for row in rows} == {"answers", "float32", "settings"}
    assert found[TURNS]["card"]
    settings = {row["what"]: row["ours"] for row in rows if row["part"] == "settings"}
    assert list(settings) == list(variants)
    assert all("with 1 at once, 1 of them the same answers" in words for words in settings.values())


def test_a_part_of_the_suite_that_fails_is_a_row_and_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["--suite", "gpu", "--model", str(empty), "--parts", "settings"]) == 1
    assert "failed" in capsys.readouterr().out


def test_the_parts_of_the_suite_are_those_that_the_command_names() -> None:
    assert tuple(suite_gpu.PARTS) == command.PARTS
