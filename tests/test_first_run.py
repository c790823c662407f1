"""A first start on a CPU, against a stand-in for the Hub: what is fetched, what answers, what is said if it fails."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub import ModelsHub, models_hub

from llava_demo.engines.checkpoint import SMALL_LLAVA

ROOT = Path(__file__).parents[1]
NOWHERE = "http://127.0.0.1:9"
STARTS = """
import json, os, sys
import huggingface_hub.constants as hub
import torch
import transformers.models.llava.modeling_llava, transformers.models.clip.modeling_clip
from llava_demo.__main__ import main
from llava_demo.engines import checkpoint, load
from llava_demo.engines.batched import engine
from llava_demo.model import device, llava, native, ram

device.SMALL_BYTES = 0  # so that the tiny checkpoint counts as a real one
native.library()  # compiled once, not by each child
hub.DOWNLOAD_CHUNK_SIZE = 50_000  # what came of an unfinished chunk is dropped
for line in sys.stdin:  # a start each, in a process of its own that has imported everything
    start = json.loads(line)
    if not (child := os.fork()):
        output = os.open(start["output"], os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1), os.dup2(output, 2)
        hub.ENDPOINT, hub.HUGGINGFACE_CO_URL_TEMPLATE = (
            x.replace(hub.ENDPOINT, start["url"]) for x in (hub.ENDPOINT, hub.HUGGINGFACE_CO_URL_TEMPLATE)
        )
        if start["free_gb"]:
            ram.free_ram = lambda: int(start["free_gb"] * 2**30)
        code = main(["check", *start["options"]])
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
Check = Callable[..., tuple[int, str]]


@pytest.fixture
def hub(tiny_folder: str) -> Iterator[ModelsHub]:
    with models_hub(SMALL_LLAVA, Path(tiny_folder)) as hub:
        yield hub


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """A process that starts the program again and again, and the home of the Hub's files there."""
    home = tmp_path_factory.mktemp("home") / "hub"
    variables = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", STARTS], cwd=ROOT, env=variables, stdin=pipe, stdout=pipe, text=True
    ) as process:
        yield process, home
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def home(starts: tuple["subprocess.Popen[str]", Path]) -> Path:
    """Where the Hub's files are kept; empty at first."""
    shutil.rmtree(starts[1], ignore_errors=True)
    return starts[1]


@pytest.fixture
def check(starts: tuple["subprocess.Popen[str]", Path], home: Path, tmp_path: Path) -> Check:
    """Run `check` against a Hub; returns its exit code and all that it printed."""
    del home  # is empty

    def run(url: str, *options: str, free_gb: float = 0) -> tuple[int, str]:
        process, output = starts[0], tmp_path / "output"
        output.write_text("")
        assert process.stdin is not None
        assert process.stdout is not None
        start = {"url": url, "options": options, "free_gb": free_gb, "output": str(output)}
        print(json.dumps(start), file=process.stdin, flush=True)
        return int(process.stdout.readline()), output.read_text()

    return run


def weights_in(home: Path) -> list[Path]:
    return list(home.rglob("snapshots/*/model.safetensors"))


def test_it_is_fetched_and_answers_in_8_bits_and_later_without_the_hub(
    hub: ModelsHub, check: Check, home: Path
) -> None:
    code, words = check(hub.url)
    assert code == 0, words
    assert f"model      {SMALL_LLAVA}\n" in words
    assert "largest that is pleasant on a CPU" in words
    assert len(weights_in(home)) == 1
    code, words = check(NOWHERE)
    assert code == 0, words
    assert f"model      {SMALL_LLAVA}\n" in words
    assert "the copy that was loaded before" in words


def test_without_the_hub_the_miniature_answers_and_says_why(check: Check) -> None:
    code, words = check(NOWHERE)
    assert code == 0, words
    assert "model      miniature\n" in words
    assert "the Hub cannot be reached" in words


def test_with_too_little_memory_nothing_is_fetched_and_the_numbers_are_said(
    hub: ModelsHub, check: Check, home: Path
) -> None:
    code, words = check(hub.url, free_gb=3.2)
    assert code == 0, words
    assert "model      miniature\n" in words
    assert "3.2 GB of memory are free" in words
    assert "needs 4" in words
    code, words = check(hub.url, "--model", SMALL_LLAVA, free_gb=1.5)
    assert code == 1
    assert f"{SMALL_LLAVA} takes 2.0 GB of memory" in words
    assert "1.5 GB are free" in words
    assert not weights_in(home)


def test_a_download_that_breaks_off_once_goes_on_at_that_byte(hub: ModelsHub, check: Check, home: Path) -> None:
    hub.broken_after, hub.breaks = 100_000, 1
    code, words = check(hub.url)
    assert code == 0, words
    assert f"model      {SMALL_LLAVA}\n" in words
    assert [part.rstrip("0123456789") for part in hub.ranges] == ["", "bytes=100000-"]
    [weights] = weights_in(home)
    assert weights.read_bytes() == (hub.folder / "model.safetensors").read_bytes()


def test_a_download_that_cannot_go_on_leaves_the_miniature_and_the_next_start_has_it(
    hub: ModelsHub, check: Check, home: Path
) -> None:
    hub.broken_after = 100_000
    code, words = check(hub.url)
    assert code == 0, words
    assert "model      miniature\n" in words
    assert f"since {SMALL_LLAVA} failed" in words
    assert not weights_in(home)
    hub.broken_after = None
    code, words = check(hub.url)
    assert code == 0, words
    assert f"model      {SMALL_LLAVA}\n" in words
    assert len(weights_in(home)) == 1


def test_weights_that_are_damaged_leave_the_miniature(hub: ModelsHub, check: Check, tmp_path: Path) -> None:
    shutil.copytree(hub.folder, tmp_path / "damaged")
    hub.folder = tmp_path / "damaged"
    (hub.folder / "model.safetensors").write_bytes(b"no weights")
    code, words = check(hub.url)
    assert code == 0, words
    assert "model      miniature\n" in words
    assert f"since {SMALL_LLAVA} failed" in words


def test_what_is_no_llava_leaves_the_miniature(hub: ModelsHub, check: Check, tmp_path: Path) -> None:
    hub.folder = tmp_path / "wrong"
    hub.folder.mkdir()
    (hub.folder / "config.json").write_text('{"model_type": "bert"}')
    code, words = check(hub.url)
    assert code == 0, words
    assert "model      miniature\n" in words
    assert "failed" in words


def test_the_second_start_takes_the_kept_copy(hub: ModelsHub, check: Check, home: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    code, words = check(hub.url, "--quantize", "8bit", "--cache", str(kept))
    assert code == 0, words
    [copy] = kept.iterdir()
    assert "precision  int8\n" in words
    [weights] = [path.resolve() for path in weights_in(home)]
    before = weights.stat()
    weights.write_bytes(bytes(before.st_size))  # nothing that could be loaded
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    code, words = check(NOWHERE, "--quantize", "8bit", "--cache", str(kept))
    assert code == 0, words
    assert f"model      {SMALL_LLAVA}\n" in words
    assert list(kept.iterdir()) == [copy]
