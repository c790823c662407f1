"""How the linear layers of a model are multiplied, and what else makes a step fast on this machine's processor.

On a CPU a step of a few chats has products of few rows, for which torch takes a slow way.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

Product = Callable[[Tensor], Tensor]
# torch 2.13 on two cores without AVX-512, float32, milliseconds of F.linear and of oneDNN's product: with 32064 x 1024
# weights and 1, 8, 16 rows 6.9, 26, 29 and 4.3, 9.5, 13; with 2816 x 1024 and 1, 16, 117, 200, 256 rows .60, 2.0, 6.0,
# 8.5, 10.7 and .33, 1.3, 4.6, 8.3, 11.6. MKL, which F.linear takes, loses where one of the matrices is narrow.
FEW_ROWS = 192
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT_BYTES, _LARGE_BYTES = 2**28, 2**25


def product_of(linear: nn.Module) -> Product:
    """How a batch multiplies by `linear`; the module and its weights stay as they are.

    Float32 on a CPU goes through oneDNN. Everything else, quantized layers among them, is called as it is.
    """
    is_plain = type(linear) is nn.Linear and linear.weight.device.type == "cpu" and linear.weight.dtype == torch.float32
    if is_plain and torch.backends.mkldnn.is_available():
        return partial(_on_a_cpu, linear.weight, linear.bias)
    return linear


def _on_a_cpu(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    if 0 < x.numel() <= FEW_ROWS * x.shape[-1]:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return functional.linear(x, weight, bias)


def joined(linears: Sequence[nn.Module]) -> Callable[[Tensor], list[Tensor]]:
    """The products of several layers with the same input."""
    if all(type(linear) is nn.Linear and linear.weight.device.type == "cuda" for linear in linears):
        return _as_one(linears)
    products = [product_of(linear) for linear in linears]
    return lambda x: [product(x) for product in products]


def _as_one(linears: Sequence[nn.Module]) -> Callable[[Tensor], list[Tensor]]:
    """One product for all: a GPU is busier with one large matrix. The layers keep their weights, as parts of it."""
    weight, sizes = torch.cat([linear.weight for linear in linears]), [len(linear.weight) for linear in linears]
    for linear, part in zip(linears, weight.split(sizes), strict=True):
        linear.weight.data = part
    has_bias = linears[0].bias is not None
    bias = torch.cat([linear.bias for linear in linears]) if has_bias else None
    return lambda x: list(functional.linear(x, weight, bias).split(sizes, dim=-1))


def keep_freed_memory() -> None:
    """Have the C library keep some freed memory for the next step, where it can be told to.

    By itself it gives what a layer frees back to the system, and each page comes back as a fault and is cleared: 9 % of
    the time of a prompt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; not every system has it
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
