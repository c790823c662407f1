"""Decides with which device, precision and attention a checkpoint runs, and says why."""

import importlib.util
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llava_demo.model import int8

GIB = 2**30
SMALL_BYTES = 256 * 2**20  # smaller weights are not quantized: it gains nothing
ROOMY = 5  # weights in 16 bits and the pages of 64 chats need this many times the weights: 65 GB for the 7B
FASTER_IN_16_BITS = (
    "for a crowd --quantize none is faster: on an H200 the linear layers of a step of 16 chats took 4.2 ms in float16 "
    "and 4.5 in NF4, of 64 chats 4.0 and 6.7 (2026-11-26)"
)
WORKING_BYTES = 2 * GIB  # beside the weights: the program, pictures, the cache of keys and values


@dataclass(frozen=True)
class Hardware:
    """The machine's processor. `capability` is CUDA's (major, minor), None on a CPU."""

    name: str
    capability: tuple[int, int] | None = None
    free_bytes: int = 0  # free GPU memory
    why_no_gpu: str = "there is no CUDA GPU"  # and what to install, if only software is missing
    has_fast_int8: bool = False  # a CPU that multiplies 8-bit integers faster than float32
    index: int = 0  # the chosen GPU: the one with the most free memory among those that this torch has code for

    @classmethod
    def found(cls) -> "Hardware":
        if not torch.cuda.is_available():
            return cls("CPU", why_no_gpu=_why_no_gpu())
        usable = [index for index in range(torch.cuda.device_count()) if _has_code_for(index)]
        if not usable:
            return cls("CPU", why_no_gpu=_why_no_code())
        free, failure = dict[int, int](), ""
        for index in usable:
            try:
                free[index] = torch.cuda.mem_get_info(index)[0]
            except RuntimeError as error:  # its memory is full, or another program has it for itself
                failure = str(error).partition("\n")[0]
        if not free:
            return cls("CPU", why_no_gpu=f"the GPU cannot be used ({failure})")
        index = max(free, key=free.__getitem__)
        return cls(torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index), free[index], index=index)

    def measured(self) -> "Hardware":
        """The same, with a CPU's speed with 8-bit integers measured, which takes some tenths of a second."""
        return self if self.has_gpu else replace(self, has_fast_int8=int8.is_worthwhile())

    @property
    def has_gpu(self) -> bool:
        return self.capability is not None

    @property
    def is_ampere(self) -> bool:
        """True for GPUs that compute in bfloat16 and run FlashAttention 2 (compute capability 8.0 and up)."""
        return self.capability is not None and self.capability >= (8, 0)


@dataclass(frozen=True)
class Plan:
    """How to load a checkpoint; `reasons` has one sentence for each decision."""

    hardware: Hardware
    quantize: str  # "4bit", "8bit" or "none"
    dtype: torch.dtype  # for unquantized weights and for computing
    attention: str
    reasons: tuple[str, ...] = ()

    @property
    def is_int8_on_cpu(self) -> bool:
        """Whether `model.int8` multiplies 8-bit integers; on a GPU, 8 bits mean bitsandbytes' LLM.int8()."""
        return self.quantize == "8bit" and not self.hardware.has_gpu

    @property
    def precision(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        if self.is_int8_on_cpu:
            return "int8"
        return {"4bit": f"4-bit NF4, {name} compute", "8bit": f"8-bit, {name} compute"}.get(self.quantize, name)


@dataclass(frozen=True)
class Wishes:
    """What the operator asked for; `planned` decides where it is "auto"."""

    quantize: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"


@dataclass(frozen=True)
class Weights:
    """What is known about a checkpoint's weights before they are loaded."""

    dtype: torch.dtype | None  # as stored
    nbytes: int | None = None  # as stored; None if unknown

    @property
    def is_small(self) -> bool:
        return self.nbytes is not None and self.nbytes < SMALL_BYTES


def bytes_needed(plan: Plan, weights: Weights) -> int:
    """Memory that a checkpoint needs on a CPU to answer; 0 where its size is unknown or small."""
    if weights.nbytes is None or weights.is_small:
        return 0
    numbers = weights.nbytes // (weights.dtype.itemsize if weights.dtype else 2)
    bytes_each = {"8bit": 1.0, "4bit": 0.6}.get(plan.quantize, plan.dtype.itemsize)
    return int(numbers * bytes_each) + WORKING_BYTES


def planned(wishes: Wishes, hardware: Hardware, weights: Weights) -> Plan:
    """Decide what the operator left open."""
    quantize, why_quantize = _quantize(wishes.quantize, hardware, weights)
    is_llm_int8 = quantize == "8bit" and hardware.has_gpu
    dtype, why_dtype = _dtype(wishes.dtype, hardware, weights, is_llm_int8)
    attention, why_attention = _attention(wishes.attention, hardware, dtype)
    return Plan(hardware, quantize, dtype, attention, (why_quantize, why_dtype, why_attention))


def _quantize(wish: str, hardware: Hardware, weights: Weights) -> tuple[str, str]:
    is_roomy = weights.nbytes is not None and hardware.free_bytes > ROOMY * weights.nbytes
    if wish == "none" and is_roomy and not weights.is_small:
        return wish, f"Quantization is none, as asked, and this GPU has room for that; {FASTER_IN_16_BITS}."
    if wish != "auto":
        return wish, f"Quantization is {wish}, as asked."
    if weights.is_small:
        return "none", "Not quantized: the model is small enough as it is."
    if not hardware.has_gpu and hardware.has_fast_int8:
        return "8bit", "8-bit integers: this CPU multiplies them several times as fast as float32, in a quarter of it."
    if not hardware.has_gpu:
        return "none", "Not quantized: this CPU is not faster with 8-bit integers; --quantize 4bit saves memory only."
    if importlib.util.find_spec("bitsandbytes") is None:
        return "none", "Not quantized: bitsandbytes, which 4-bit weights need, is not installed."
    words = "4-bit NF4 weights: LLaVA-1.5-7B then takes 5 GB of GPU memory in place of 14; sight stays in 16 bits."
    return "4bit", f"{words} This GPU has room for all in 16 bits; {FASTER_IN_16_BITS}." if is_roomy else words


def _dtype(wish: str, hardware: Hardware, weights: Weights, is_llm_int8: bool) -> tuple[torch.dtype, str]:
    if wish != "auto":
        return getattr(torch, wish), f"The precision is {wish}, as asked."
    if is_llm_int8:
        return torch.float16, "float16: LLM.int8() computes in it, and would convert anything else at every step."
    if not hardware.has_gpu:
        return torch.float32, "float32: CPUs are slower in 16 bits unless they have special instructions."
    if weights.is_small:
        return torch.float32, "float32: the model is small, and its answers are then the same as on a CPU."
    if not hardware.is_ampere:
        return torch.float16, f"float16: {hardware.name} has no bfloat16 in hardware."
    if weights.dtype in (torch.float16, torch.bfloat16):
        return weights.dtype, f"{str(weights.dtype).removeprefix('torch.')}: the checkpoint is stored in it."
    return torch.bfloat16, "bfloat16: the range of float32 at half the memory."


def _attention(wish: str, hardware: Hardware, dtype: torch.dtype) -> tuple[str, str]:
    if wish != "auto":
        return wish, f"Attention is {wish}, as asked."
    if not hardware.is_ampere:
        return "sdpa", f"PyTorch's own attention (SDPA): FlashAttention 2 does not run on {hardware.name}."
    if dtype == torch.float32:
        return "sdpa", "PyTorch's own attention (SDPA): FlashAttention 2 takes 16-bit numbers only."
    if importlib.util.find_spec("flash_attn") is None:
        return "sdpa", "PyTorch's own attention (SDPA): the package flash_attn is not installed."
    return "flash_attention_2", f"FlashAttention 2: flash_attn is installed and {hardware.name} runs it."


def _has_code_for(index: int) -> bool:
    """Whether this torch has code for a GPU's generation, or code that the driver can compile for it."""
    if torch.version.cuda is None:  # ROCm names its chips in other ways
        return True
    capability = torch.cuda.get_device_capability(index)
    for arch in torch.cuda.get_arch_list():  # "sm_75", "sm_90a", "compute_120"
        kind, _, version = arch.partition("_")
        built = divmod(int(version.rstrip("af")), 10)
        if kind == "compute" and built <= capability:
            return True
        if kind == "sm" and (
            built == capability or (built[0] == capability[0] and version[-1] != "a" and built <= capability)
        ):
            return True
    return False


def _why_no_code() -> str:
    major, minor = torch.cuda.get_device_capability(0)
    card, built = torch.cuda.get_device_name(0), ", ".join(torch.cuda.get_arch_list())
    return (
        f"torch {torch.__version__} has no code for {card}, sm_{major}{minor}, only for {built} "
        "(install another build from https://pytorch.org/get-started/previous-versions)"
    )


def can_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's FlashAttention for sequences of different lengths runs: from Ampere on, in 16 bits."""
    is_gpu = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return is_gpu and dtype in (torch.float16, torch.bfloat16)


def prefer_flash_to_cudnn() -> None:
    """Turn off cuDNN's attention, torch's first choice on Hopper and on Blackwell's big cards.

    cuDNN makes a plan for each length of keys, which takes 23 to 37 ms, and torch caches plans per thread
    (`thread_local MHAGraphCache` in aten/src/ATen/native/cudnn/MHA.cpp, pytorch#190388): in a new thread each token
    waits for a plan.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def _why_no_gpu() -> str:
    """Why torch sees no GPU, and what to do where a GPU may be there."""
    version = torch.__version__
    if torch.version.cuda is None and torch.version.hip is None:
        if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
            return (
                f"the NVIDIA GPU cannot be used, since torch {version} was built without CUDA (install the build from "
                "https://pytorch.org/get-started/locally)"
            )
        return f"torch {version} was built without CUDA, so that a GPU would not be used"
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        if "too old" in str(error):
            return (
                f"the NVIDIA driver is too old for torch {version} (update the driver, or install the build for an "
                "older CUDA from https://pytorch.org/get-started/previous-versions)"
            )
    return "there is no CUDA GPU"
