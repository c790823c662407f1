"""How much is answered at once: from free memory, the container's if it has a limit."""

from pathlib import Path

import psutil
import pytest
from checkpoints import PLAN_INT8

from llava_demo.engines.batched.memory import GIB, batch_size, gpu_budget, token_bytes
from llava_demo.errors import EngineUnavailable
from llava_demo.model import ram
from llava_demo.model.llava import Llava
from llava_demo.model.ram import free_ram


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ram, "CGROUPS", tmp_path)
    monkeypatch.setattr(ram, "OWN_CGROUPS", tmp_path / "own")
    return tmp_path


def limit(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.usefixtures("cgroups")
def test_without_a_limit_the_machine_counts() -> None:
    assert free_ram() == pytest.approx(psutil.virtual_memory().available, rel=0.1)


def test_a_containers_limit_counts_and_cached_files_do_not(cgroups: Path) -> None:
    limit(cgroups, memory__max="3000000", memory__current="1000000", memory__stat="anon 700000\ninactive_file 250000\n")
    assert free_ram() == 2_250_000


def test_the_older_containers_too(cgroups: Path) -> None:
    limit(
        cgroups / "memory",
        memory__limit_in_bytes="3000000\n",
        memory__usage_in_bytes="1000000\n",
        memory__stat="total_inactive_file 5\n",
    )
    assert free_ram() == 2_000_005


@pytest.mark.parametrize("tightest", [0, 1, 2])
@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/pod/container\n", ("", "memory.max", "memory.current", "inactive_file")),
        ("0::/pod/container\n", ("", "memory.high", "memory.current", "inactive_file")),
        ("3:cpu,memory:/pod/container\n0::/\n", ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "")),
    ],
)
def test_of_nested_groups_the_least_limit_counts(
    own: str, files: tuple[str, str, str, str], tightest: int, cgroups: Path
) -> None:
    mount, limit_file, used_file, cached = files
    (cgroups / "own").write_text(own)
    for level, folder in enumerate(("", "pod", "pod/container")):
        most = "3000000" if level == tightest else "9000000" if mount or level else "max"
        texts = {limit_file: most, used_file: "1000000", "memory.stat": f"{cached or 'total_inactive_file'} 250000\n"}
        limit(cgroups / mount / folder, **{name.replace(".", "__"): text for name, text in texts.items()})
    assert free_ram() == 2_250_000


def test_no_limit_is_written_as_max(cgroups: Path) -> None:
    limit(cgroups, memory__max="max\n", memory__current="1000000", memory__stat="inactive_file 0\n")
    assert free_ram() > 3_000_000


def test_a_token_takes_its_keys_values_and_features(tiny_llava: Llava) -> None:
    """2 layers, keys and values, 2 heads of 32, twice since there is no GPU; and a row of 64; all in 4 bytes."""
    assert token_bytes(tiny_llava) == (2 * 2 * 2 * 2 * 32 + 64) * 4


def test_in_8_bits_a_token_takes_an_eighth_of_that_and_its_scales(tiny_folder: str) -> None:
    """A byte a number in one place, and 4 for each head's scale; the row of features stays in float32."""
    llava = Llava.load(tiny_folder, PLAN_INT8, is_local=True)
    assert token_bytes(llava) == 2 * 2 * 2 * (32 + 4) + 64 * 4


def test_memory_decides_how_many_chats_there_are(tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = 16 + 512
    monkeypatch.setattr(ram, "free_ram", lambda: int(5.5 * chat * token_bytes(tiny_llava) / 0.4))
    size, words = batch_size(tiny_llava, None)
    assert size.requests == 5
    assert 5 * chat <= size.tokens <= 5.5 * chat
    assert f"Up to 5 chats are answered at once; the cache holds {size.tokens:,} tokens" in words
    assert batch_size(tiny_llava, 3)[0].requests == 3


def test_memory_that_nobody_could_fill_is_left_alone(tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ram, "free_ram", lambda: 2**50)
    size, _ = batch_size(tiny_llava, None)
    assert (size.requests, size.tokens) == (16, 2 * 16 * (16 + 512))


def test_too_little_for_one_chat_is_told(tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ram, "free_ram", lambda: 100 * token_bytes(tiny_llava))
    with pytest.raises(EngineUnavailable, match="room for 40 tokens in memory; one chat takes 528"):
        batch_size(tiny_llava, None)


def test_of_a_gpu_only_the_share_that_was_allowed_is_taken_weights_and_all() -> None:
    """80 GB, of which weights take 5 and other programs 10."""
    assert gpu_budget(free=65 * GIB, total=80 * GIB, share=0.85) == (68 - 15 - 1) * GIB
    assert gpu_budget(free=65 * GIB, total=80 * GIB, share=0.1) < 0
