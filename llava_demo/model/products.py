"""How a model's linear layers are multiplied, and how memory is kept, so that a step is fast on this machine.

On a CPU, a step of a few chats has products of few rows, for which torch's own linear layer is slow.
"""

import ctypes
import mmap
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from llava_demo.model import native
from llava_demo.model.int8 import Int8Linear

Product = Callable[[Tensor], Tensor]
# torch 2.13 on two cores without AVX-512, float32, milliseconds of F.linear and of oneDNN's product: with 32064 x 1024
# weights and 1, 8, 16 rows 6.9, 26, 29 and 4.3, 9.5, 13; with 2816 x 1024 and 1, 16, 117, 200, 256 rows .60, 2.0, 6.0,
# 8.5, 10.7 and .33, 1.3, 4.6, 8.3, 11.6. F.linear uses MKL, which is slow if one of the matrices is narrow.
FEW_ROWS = 192
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
_KEPT_BYTES, _LARGE_BYTES = 2**28, 2**25
_REGION_BYTES, _ALIGNMENT = 2**28, 64


def product_of(linear: nn.Module) -> Product:
    """The product with `linear` for a batch; its weights keep their values, but NF4 ones may move.

    Float32 on a CPU goes through oneDNN, NF4 on a GPU through `model.nf4`. Other layers, as those in 8 bits, are
    called themselves.
    """
    if type(linear) is nn.Linear and linear.weight.device.type == "cpu" and linear.weight.dtype == torch.float32:
        return partial(_on_a_cpu, linear.weight, linear.bias) if torch.backends.mkldnn.is_available() else linear
    return _as_one([linear]) or linear


def _on_a_cpu(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    if 0 < x.numel() <= FEW_ROWS * x.shape[-1]:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return functional.linear(x, weight, bias)


def joined(linears: Sequence[nn.Module]) -> Callable[[Tensor], Sequence[Tensor]]:
    """The products of several layers with the same input; one product on a GPU, which one large matrix uses better."""
    product = _as_one(linears)
    if product is None:
        products = [product_of(linear) for linear in linears]
        return lambda x: [product(x) for product in products]
    sizes = [linear.out_features for linear in linears]
    return lambda x: product(x).split(sizes, dim=-1)


def _as_one(linears: Sequence[nn.Module]) -> Product | None:
    """One product for layers on a GPU, whose weights become views of it; None for other layers."""
    if not all(is_on_gpu(linear) for linear in linears):
        return None
    if all(type(linear).__name__ == "Linear4bit" for linear in linears):
        from llava_demo.model.nf4 import Nf4Linears, can_join  # and bitsandbytes, which made the layers

        return Nf4Linears(linears) if can_join(linears) else None
    if len(linears) == 1 or any(type(linear) is not nn.Linear for linear in linears):
        return None
    weight, sizes = torch.cat([linear.weight for linear in linears]), [len(linear.weight) for linear in linears]
    for linear, part in zip(linears, weight.split(sizes), strict=True):
        linear.weight.data = part
    has_bias = linears[0].bias is not None
    return partial(functional.linear, weight=weight, bias=torch.cat([x.bias for x in linears]) if has_bias else None)


def native_layers(layers: Iterable[nn.Module]) -> Sequence[native.Layer] | None:
    """A language model's layers for `native.decode`, valid as long as their tensors live; None if one is not native."""
    found = []
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        products = *(getattr(attention, f"{x}_proj") for x in "qkvo"), mlp.gate_proj, mlp.up_proj, mlp.down_proj
        linears = [x for product in products if isinstance(product, Int8Linear) and (x := product.as_native())]
        if len(linears) < len(products):
            return None
        found.append(native.Layer.of(linears, (layer.input_layernorm, layer.post_attention_layernorm)))
    return native.in_one_piece(found)


def is_on_gpu(linear: nn.Module) -> bool:
    return any(weight.is_cuda for weight in linear.parameters())


def keep_freed_memory() -> None:
    """Have the C library keep some freed memory for the next step, if it has an option for that.

    By default it returns a layer's freed memory to the system; then each page costs a fault and is cleared again: 9 %
    of the time of a prompt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; not every system has it
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def give_back_freed_memory() -> None:
    """Have the C library return free memory to the system, if it has a function for that.

    By default it keeps the holes that packed layers leave: 4 GB for a 7B.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class HugePages:
    """Memory in pages of 2 MB, if the system has them, for weights that each step reads from end to end.

    Two cores of an AMD EPYC read 59 GB/s from them, and 32 GB/s from pages of 4 KB: on a virtual machine, addresses are
    translated twice, which takes as long as reading.
    """

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def copy(self, x: Tensor) -> Tensor:
        """The same numbers, contiguous; the memory lives as long as any of the tensors in it."""
        if x.nbytes > len(self._free):
            self._free = _region(max(x.nbytes, _REGION_BYTES))
        place, self._free = self._free[: x.nbytes], self._free[-(-x.nbytes // _ALIGNMENT) * _ALIGNMENT :]
        return place.view(x.dtype).view(x.shape).copy_(x)


def _region(nbytes: int) -> Tensor:
    """Memory that the system allocates when it is written to, uint8 (nbytes,)."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(nbytes, dtype=torch.uint8)
    region = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system that was built without them
        region.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(region, dtype=torch.uint8)
