"""What is decided for which machine; the machines are described, so that no GPU is needed."""

from pathlib import Path

import pytest
import torch

from llava_demo.model.device import Hardware, Weights, Wishes, planned

CPU = Hardware("CPU")
T4 = Hardware("Tesla T4", (7, 5), 15 * 2**30)
L4 = Hardware("NVIDIA L4", (8, 9), 22 * 2**30)
SEVEN_B, BRAIN, MINIATURE = Weights(torch.float16), Weights(torch.bfloat16), Weights(torch.float16, is_small=True)


@pytest.mark.parametrize(
    ("hardware", "weights", "quantize", "dtype"),
    [
        (CPU, SEVEN_B, "none", torch.float32),
        (CPU, MINIATURE, "none", torch.float32),
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


def test_int8_computes_in_float16() -> None:
    assert planned(Wishes("8bit"), L4, BRAIN).dtype is torch.float16
    assert planned(Wishes("8bit"), CPU, SEVEN_B).dtype is torch.float16
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
    assert planned(Wishes(), CPU, MINIATURE).precision == "float32"


def test_the_hardware_here_is_found() -> None:
    hardware = Hardware.found()
    assert hardware.has_gpu == torch.cuda.is_available()
    assert hardware.has_gpu or hardware.name == "CPU"
