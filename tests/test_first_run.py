"""A first start on a CPU, against a stand-in for the Hub: what is fetched, what answers, what is said if it fails."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import ModelsHub, models_hub

from llava_demo.engines.checkpoint import SMALL_LLAVA

ROOT = Path(__file__).parents[1]
CHECK = """
import sys
from llava_demo.__main__ import main
from llava_demo.engines import checkpoint
from llava_demo.engines.batched import memory
from llava_demo.model import device

device.SMALL_BYTES = 0  # so that the tiny checkpoint counts as a real one
if sys.argv[1] != "-":
    memory.free_ram = lambda: int(float(sys.argv[1]) * 2**30)
sys.exit(main(["check", *sys.argv[2:]]))
"""


@pytest.fixture
def hub(tiny_folder: str) -> Iterator[ModelsHub]:
    with models_hub(SMALL_LLAVA, Path(tiny_folder)) as hub:
        yield hub


def check(url: str, home: Path, *options: str, free_gb: str = "-") -> tuple[int, str]:
    variables = os.environ | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CHECK, free_gb, *options],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=180,
    )
    return done.returncode, done.stdout + done.stderr


def weights_in(home: Path) -> list[Path]:
    return list(home.rglob("snapshots/*/model.safetensors"))


def test_it_is_fetched_and_answers_in_8_bits_and_later_without_the_hub(hub: ModelsHub, tmp_path: Path) -> None:
    code, words = check(hub.url, tmp_path)
    assert code == 0, words
    assert f"model      {SMALL_LLAVA}\n" in words
    assert "largest that is pleasant on a CPU" in words
    assert len(weights_in(tmp_path)) == 1
    code, words = check("http://127.0.0.1:9", tmp_path)
    assert code == 0, words
    assert f"model      {SMALL_LLAVA}\n" in words
    assert "the copy that was loaded before" in words


def test_without_the_hub_the_miniature_answers_and_says_why(tmp_path: Path) -> None:
    code, words = check("http://127.0.0.1:9", tmp_path)
    assert code == 0, words
    assert "model      miniature\n" in words
    assert "the Hub cannot be reached" in words


def test_with_too_little_memory_nothing_is_fetched_and_the_numbers_are_said(hub: ModelsHub, tmp_path: Path) -> None:
    code, words = check(hub.url, tmp_path, free_gb="3.2")
    assert code == 0, words
    assert "model      miniature\n" in words
    assert "3.2 GB of memory are free" in words
    assert "needs 4" in words
    code, words = check(hub.url, tmp_path, "--model", SMALL_LLAVA, free_gb="1.5")
    assert code == 1
    assert f"{SMALL_LLAVA} takes 2.0 GB of memory" in words
    assert "1.5 GB are free" in words
    assert not weights_in(tmp_path)


def test_a_download_that_breaks_off_leaves_the_miniature_and_the_next_start_has_it(
    hub: ModelsHub, tmp_path: Path
) -> None:
    hub.broken_after = 100_000
    code, words = check(hub.url, tmp_path)
    assert code == 0, words
    assert "model      miniature\n" in words
    assert f"since {SMALL_LLAVA} failed" in words
    assert not weights_in(tmp_path)
    hub.broken_after = None
    code, words = check(hub.url, tmp_path)
    assert code == 0, words
    assert f"model      {SMALL_LLAVA}\n" in words
    assert len(weights_in(tmp_path)) == 1


def test_what_is_no_llava_leaves_the_miniature(hub: ModelsHub, tmp_path: Path) -> None:
    hub.folder = tmp_path / "wrong"
    hub.folder.mkdir()
    (hub.folder / "config.json").write_text('{"model_type": "bert"}')
    code, words = check(hub.url, tmp_path / "home")
    assert code == 0, words
    assert "model      miniature\n" in words
    assert "failed" in words


def test_the_second_start_takes_the_kept_copy(hub: ModelsHub, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    code, words = check(hub.url, tmp_path / "home", "--quantize", "8bit", "--cache", str(kept))
    assert code == 0, words
    [copy] = kept.iterdir()
    assert "precision  int8\n" in words
    [weights] = [path.resolve() for path in weights_in(tmp_path / "home")]
    before = weights.stat()
    weights.write_bytes(bytes(before.st_size))  # nothing that could be loaded
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    code, words = check("http://127.0.0.1:9", tmp_path / "home", "--quantize", "8bit", "--cache", str(kept))
    assert code == 0, words
    assert f"model      {SMALL_LLAVA}\n" in words
    assert list(kept.iterdir()) == [copy]
