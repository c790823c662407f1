"""Which device, precision and attention a checkpoint runs with here, and why. Knows no weights and no requests."""

import importlib.util
from dataclasses import dataclass

import torch

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """What the machine has. `capability` is CUDA's (major, minor); none means a CPU."""

    name: str
    capability: tuple[int, int] | None = None
    free_bytes: int = 0  # of the GPU's memory

    @classmethod
    def found(cls) -> "Hardware":
        if not torch.cuda.is_available():
            return cls("CPU")
        free, _ = torch.cuda.mem_get_info()
        return cls(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), free)

    @property
    def has_gpu(self) -> bool:
        return self.capability is not None

    @property
    def is_ampere(self) -> bool:
        """True for GPUs that compute in bfloat16 and run FlashAttention 2 (compute capability 8.0 and up)."""
        return self.capability is not None and self.capability >= (8, 0)


@dataclass(frozen=True)
class Plan:
    """How a checkpoint is loaded; `reasons` has one sentence for each decision."""

    hardware: Hardware
    quantize: str  # "4bit", "8bit" or "none"
    dtype: torch.dtype  # of what is not quantized, and of all computing
    attention: str
    reasons: tuple[str, ...] = ()

    @property
    def precision(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return {"4bit": f"4-bit NF4, {name} compute", "8bit": f"8-bit, {name} compute"}.get(self.quantize, name)


@dataclass(frozen=True)
class Wishes:
    """What the operator asked for; "auto" leaves it to `planned`."""

    quantize: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"


@dataclass(frozen=True)
class Weights:
    """What is known of a checkpoint before it is loaded."""

    dtype: torch.dtype | None  # that they are stored in
    is_small: bool = False  # the miniature: nothing is won by making it smaller


def planned(wishes: Wishes, hardware: Hardware, weights: Weights) -> Plan:
    """Decide what was left to us."""
    quantize, why_quantize = _quantize(wishes.quantize, hardware, weights)
    dtype, why_dtype = _dtype(wishes.dtype, hardware, weights, is_int8=quantize == "8bit")
    attention, why_attention = _attention(wishes.attention, hardware, dtype)
    return Plan(hardware, quantize, dtype, attention, (why_quantize, why_dtype, why_attention))


def _quantize(wish: str, hardware: Hardware, weights: Weights) -> tuple[str, str]:
    if wish != "auto":
        return wish, f"Quantization is {wish}, as asked."
    if weights.is_small:
        return "none", "Not quantized: the miniature is small enough as it is."
    if not hardware.has_gpu:
        return "none", "Not quantized: on a CPU, 4-bit weights save memory and cost speed; --quantize 4bit does it."
    if importlib.util.find_spec("bitsandbytes") is None:
        return "none", "Not quantized: bitsandbytes, which 4-bit weights need, is not installed."
    return (
        "4bit",
        "4-bit NF4 weights: LLaVA-1.5-7B then takes 5 GB of GPU memory in place of 14; sight stays in 16 bits.",
    )


def _dtype(wish: str, hardware: Hardware, weights: Weights, is_int8: bool) -> tuple[torch.dtype, str]:
    if wish != "auto":
        return getattr(torch, wish), f"The precision is {wish}, as asked."
    if is_int8:
        return torch.float16, "float16: LLM.int8() computes in it, and would convert anything else at every step."
    if not hardware.has_gpu:
        return torch.float32, "float32: CPUs are slower in 16 bits unless they have special instructions."
    if weights.is_small:
        return torch.float32, "float32: the miniature is small, and its answers are then the same as on a CPU."
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
