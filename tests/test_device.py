"""What is decided for which machine; the machines are described, so that no GPU is needed."""

import asyncio
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import ON_CPU
from transformers import AutoModelForImageTextToText

from llava_demo.engines.load import load_engine
from llava_demo.model.device import GIB, Hardware, Weights, Wishes, bytes_needed, planned
from llava_demo.model.llava import Llava
from llava_demo.settings import Settings

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


@pytest.mark.parametrize("wish", ["auto", "none"])
def test_where_16_bits_fit_and_serve_a_crowd_faster_the_reasons_say_so(wish: str) -> None:
    """Weights of 14 GB, and 35 for the pages of 64 chats of 1,088 tokens, as many again for those that are kept."""
    h100 = Hardware("NVIDIA H100", (9, 0), 79 * 2**30)
    plan = planned(Wishes(wish), h100, SEVEN_B)
    assert plan.quantize == {"auto": "4bit", "none": "none"}[wish]
    assert "for a crowd --quantize none is faster: on an H200" in plan.reasons[0]
    assert "2026-11-26" in plan.reasons[0]
    for hardware, weights in ((L4, SEVEN_B), (h100, MINIATURE), (h100, Weights(torch.float16)), (CPU, SEVEN_B)):
        assert "crowd" not in planned(Wishes(wish), hardware, weights).reasons[0]


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


def test_a_card_that_cannot_be_opened_is_passed_over(cards: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose memory another program has taken to the last byte."""
    cards(BUILT, ("full", (8, 0), 8), ("free", (8, 0), 4))
    told = torch.cuda.mem_get_info

    def refused(index: int) -> tuple[int, int]:
        if index == 0:
            raise torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later")
        return told(index)

    monkeypatch.setattr(torch.cuda, "mem_get_info", refused)
    assert Hardware.found().name == "free"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    hardware = Hardware.found()
    assert not hardware.has_gpu
    assert hardware.why_no_gpu == "the GPU cannot be used (CUDA error: out of memory)"


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


# --- several GPUs


@pytest.fixture
def gpus(cards: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have torch tell of GPUs with so many free gigabytes."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return lambda *free: cards(BUILT, *((f"GPU {index}", (8, 0), gb) for index, gb in enumerate(free)))


@pytest.mark.parametrize(("free", "chosen"), [([40], 0), ([10, 60, 30], 1), ([50, 50], 0)])
def test_the_freest_gpu_is_taken(gpus: Any, free: list[int], chosen: int) -> None:
    gpus(*free)
    hardware = Hardware.found()
    assert (hardware.index, hardware.name) == (chosen, f"GPU {chosen}")
    assert hardware.free_bytes == free[chosen] * 2**30


class Loading:
    """`from_pretrained` at the border: as on GPUs, the first `failures` of which run out of memory, but on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
        self.maps: list[object] = []
        real = AutoModelForImageTextToText.from_pretrained

        def from_pretrained(*arguments: object, device_map: object, **options: object) -> object:
            self.maps.append(device_map)
            if len(self.maps) <= failures:
                raise torch.OutOfMemoryError
            return real(*arguments, device_map="cpu", **options)

        monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", from_pretrained)


@pytest.mark.parametrize(
    ("free", "failures", "maps"),
    [([10, 60], 0, [{"": 1}]), ([10, 20], 1, [{"": 1}, "auto"]), ([10], 1, [{"": 0}])],
    ids=["whole on the freest", "on both where one is too small", "not at all where there is one"],
)
def test_a_model_is_on_one_gpu_unless_it_is_too_small(
    gpus: Any,
    free: list[int],
    failures: int,
    maps: list[object],
    tiny_folder: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus(*free)
    loading = Loading(monkeypatch, failures)
    plan = replace(ON_CPU, hardware=Hardware.found())
    with nullcontext() if len(maps) > failures else pytest.raises(torch.OutOfMemoryError):
        Llava.load(tiny_folder, plan, is_local=True)
    assert loading.maps == maps


def test_a_model_on_several_gpus_is_not_batched_and_the_reasons_say_why(
    tiny_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part of it is on the "meta" device here, which stands for another GPU: both have weights of their own."""

    def spread(*arguments: Any, of: Any = Llava.loaded, **options: Any) -> Llava:
        llava = of(*arguments, **options)
        llava.model.get_decoder().norm.to("meta")
        return llava

    monkeypatch.setattr(Llava, "loaded", spread)
    monkeypatch.setattr(Llava, "check", lambda _: None)  # "meta" computes nothing
    engine = load_engine(Settings(model=tiny_folder))
    assert engine.info.engine == "generate"
    words = (
        "One question at a time, by generate, since batching cannot run here: the model is spread over several devices."
    )
    assert engine.info.reasons[-1] == words
    asyncio.run(engine.aclose())


def test_on_a_gpu_torch_does_not_take_cudnns_attention(
    gpus: Any, tiny_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(40)
    Loading(monkeypatch, 0)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    Llava.load(tiny_folder, ON_CPU, is_local=True)
    assert torch.backends.cuda.cudnn_sdp_enabled()  # nobody else's setting is touched
    Llava.load(tiny_folder, replace(ON_CPU, hardware=Hardware.found()), is_local=True)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(before)
