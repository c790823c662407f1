"""What is decided for which machine; the machines are described, so that no GPU is needed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llava_demo.model.device import GIB, Hardware, Weights, Wishes, bytes_needed, planned

CPU, CPU_INT8 = Hardware("CPU"), Hardware("CPU", has_fast_int8=True)
T4 = Hardware("Tesla T4", (7, 5), 15 * 2**30)
L4 = Hardware("NVIDIA L4", (8, 9), 22 * 2**30)
SEVEN_B, BRAIN = Weights(torch.float16, 14 * 10**9), Weights(torch.bfloat16, 14 * 10**9)
MINIATURE = Weights(torch.float16, 8 * 10**6)


@pytest.mark.parametrize(
    ("hardware", "weights", "quantize", "dtype"),
    [
        (CPU, SEVEN_B, "none", torch.float32),
        (CPU_INT8, SEVEN_B, "8bit", torch.float32),
        (CPU_INT8, Weights(torch.float16), "8bit", torch.float32),  # nobody has said how large it is
        (CPU, MINIATURE, "none", torch.float32),
        (CPU_INT8, MINIATURE, "none", torch.float32),
        (T4, SEVEN_B, "4bit", torch.float16),
        (T4, BRAIN, "4bit", torch.float16),  # it has no bfloat16
        (L4, SEVEN_B, "4bit", torch.float16),
        (L4, BRAIN, "4bit", torch.bfloat16),
        (L4, Weights(torch.float32), "4bit", torch.bfloat16),
        (L4, MINIATURE, "none", torch.float32),
    ],
)
def test_what_auto_means(hardware: Hardware, weights: Weights, quantize: str, dtype: torch.dtype) -> None:
    plan = planned(Wishes(), hardware, weights)
    assert (plan.quantize, plan.dtype, plan.attention) == (quantize, dtype, "sdpa")


def test_every_decision_has_its_reason() -> None:
    for hardware in (CPU, T4, L4):
        for weights in (SEVEN_B, MINIATURE):
            reasons = planned(Wishes(), hardware, weights).reasons
            assert len(reasons) == 3
            assert all(reason.endswith(".") for reason in reasons)
    assert "Tesla T4" in planned(Wishes(), T4, SEVEN_B).reasons[1]


@pytest.mark.parametrize("hardware", [CPU, T4, L4])
def test_what_is_asked_for_is_done(hardware: Hardware) -> None:
    plan = planned(Wishes("none", "bfloat16", "eager"), hardware, SEVEN_B)
    assert (plan.quantize, plan.dtype, plan.attention) == ("none", torch.bfloat16, "eager")
    assert all("as asked" in reason for reason in plan.reasons)


def test_8_bits_compute_in_float16_on_a_gpu_and_in_float32_beside_integers_on_a_cpu() -> None:
    assert planned(Wishes("8bit"), L4, BRAIN).dtype is torch.float16
    assert planned(Wishes("8bit"), CPU, SEVEN_B).dtype is torch.float32
    assert planned(Wishes("8bit", "float32"), CPU, SEVEN_B).dtype is torch.float32


@pytest.mark.parametrize(
    ("hardware", "weights", "attention"),
    [(L4, SEVEN_B, "flash_attention_2"), (T4, SEVEN_B, "sdpa"), (CPU, SEVEN_B, "sdpa"), (L4, MINIATURE, "sdpa")],
)
def test_flash_attention_is_taken_where_it_is_installed_and_able(
    hardware: Hardware, weights: Weights, attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    plan = planned(Wishes(), hardware, weights)
    assert plan.attention == attention
    assert ("FlashAttention 2: flash_attn is installed" in plan.reasons[2]) == (attention == "flash_attention_2")


def test_the_precision_is_told_in_words() -> None:
    assert planned(Wishes(), T4, SEVEN_B).precision == "4-bit NF4, float16 compute"
    assert planned(Wishes("8bit"), T4, SEVEN_B).precision == "8-bit, float16 compute"
    assert planned(Wishes(), CPU_INT8, SEVEN_B).precision == "int8"
    assert planned(Wishes(), CPU, MINIATURE).precision == "float32"


def test_what_a_checkpoint_takes_on_a_cpu_is_known_before_it_is_loaded() -> None:
    gib = 2**30
    assert bytes_needed(planned(Wishes(), CPU_INT8, SEVEN_B), SEVEN_B) / gib == pytest.approx(8.5, abs=0.1)
    assert bytes_needed(planned(Wishes(), CPU, SEVEN_B), SEVEN_B) / gib == pytest.approx(28, abs=0.2)
    assert bytes_needed(planned(Wishes("4bit"), CPU, SEVEN_B), SEVEN_B) / gib == pytest.approx(5.9, abs=0.1)
    assert bytes_needed(planned(Wishes(), CPU, MINIATURE), MINIATURE) == 0
    assert bytes_needed(planned(Wishes(), CPU, Weights(None)), Weights(None)) == 0


# --- why there is no GPU


def without_a_gpu(monkeypatch: pytest.MonkeyPatch, cuda: str | None, error: Exception | None = None) -> str:
    def init() -> None:
        raise error or AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    return Hardware.found().why_no_gpu


def test_a_torch_without_cuda_is_named_and_where_to_get_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/nvidia-smi")
    words = without_a_gpu(monkeypatch, None)
    assert "the NVIDIA GPU cannot be used" in words
    assert "built without CUDA" in words
    assert "https://pytorch.org/get-started/locally" in words


def test_an_old_driver_is_named_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    too_old = RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update it.")
    words = without_a_gpu(monkeypatch, "13.0", too_old)
    assert "driver is too old" in words
    assert "update the driver" in words


def test_a_machine_without_a_gpu_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    none = RuntimeError("Found no NVIDIA driver on your system.")
    assert without_a_gpu(monkeypatch, "13.0", none) == "there is no CUDA GPU"


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have torch tell of GPUs with these names, capabilities and free gigabytes, and of what it was built for."""

    def tell(archs: list[str], *found: tuple[str, tuple[int, int], int]) -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: archs)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: found[index][0])
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: found[index][1])
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (found[index][2] * GIB, 80 * GIB))

    return tell


BUILT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_90a", "sm_100"]


def test_a_card_that_this_torch_has_no_code_for_is_named_and_the_cpu_answers(cards: Any) -> None:
    cards(BUILT, ("NVIDIA GeForce GTX 1080", (6, 1), 8))
    hardware = Hardware.found()
    assert not hardware.has_gpu
    assert "has no code for NVIDIA GeForce GTX 1080, sm_61, only for sm_75" in hardware.why_no_gpu


@pytest.mark.parametrize(
    ("archs", "capability", "is_driven"),
    [
        (BUILT, (8, 9), True),  # code for 8.6 runs
        (BUILT, (7, 0), False),  # older than what was built
        (BUILT, (12, 0), False),  # newer than what was built
        ([*BUILT, "compute_100"], (12, 0), True),  # compiled when it is first used
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),  # "a" is for that very chip
        (["sm_100f"], (10, 3), True),  # "f" for its family
    ],
)
def test_code_for_a_card_is_code_for_its_generation(
    cards: Any, archs: list[str], capability: tuple[int, int], is_driven: bool
) -> None:
    cards(archs, ("a card", capability, 8))
    assert Hardware.found().has_gpu is is_driven


def test_the_freest_card_is_taken_of_those_that_can_compute(cards: Any) -> None:
    cards(BUILT, ("A", (8, 0), 20), ("old", (6, 1), 80), ("B", (8, 0), 30))
    assert (Hardware.found().name, Hardware.found().index) == ("B", 2)


def test_the_hardware_here_is_found() -> None:
    hardware = Hardware.found()
    assert hardware.has_gpu == torch.cuda.is_available()
    assert hardware.has_gpu or hardware.name == "CPU"
