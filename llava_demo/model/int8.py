"""Linear layers as products of 8-bit integers, for CPUs with instructions for them. Knows no model and no loading.

Weights have one scale per output channel, activations one per token (row): the first tokens of a language model have
massive activations, and with a common scale nothing would remain of the other tokens. Input channels are balanced by
the size of their weights, as in SmoothQuant (Xiao et al. 2023) but without data: channels with outliers mostly have
small weights. Values that are still far outside a row's ordinary range get a second 8-bit digit, so that they do not
coarsen the other values; LLM.int8() (Dettmers et al. 2022) keeps such columns in floating point. Products of integers
are exact, and rows are independent: an answer is the same alone or in a batch.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llava_demo.model import native

LEVELS = 127  # int8 is used from -127 to 127
OUTLIER = 24.0  # times a row's mean absolute value: normal numbers reach 5, the product of a gated MLP 20
WORTHWHILE = 1.5  # smallest speed-up over float32 for which 8 bits are used
BLOCK = 4096  # channels quantized at once: a head of 152,000 would need 2 GB of intermediate numbers
PROBED_ROWS = (1, 16, 256)  # one chat, a batch of chats, a chunk of a prompt
PROBED_SHAPE = (2048, 2048)
PROBES = 6  # in the first one oneDNN compiles
CLOCK_S = 1e-6  # shortest time: the clocks of some systems are coarse


@dataclass(frozen=True)
class Kernel:
    """A way to multiply: `pack` lays out int8 weights (out, in) for `linear`, the forward pass of a layer.

    `linear` takes the layer and rows, float32 (n, in), and returns float32 (n, out).
    """

    name: str
    pack: Callable[[Tensor], Tensor]
    linear: Callable[["Int8Linear", Tensor], Tensor]


def _native_linear(layer: "Int8Linear", rows: Tensor) -> Tensor:
    return native.linear(rows, _in_c(layer))


def _in_c(layer: "Int8Linear") -> native.Linear:
    return native.Linear.of(layer.balance, layer.outlier, (layer.weight, layer.scales), layer.bias)


def _onednn_product(rows: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    shifted = rows.view(torch.uint8) ^ 128  # its products of two signed integers take a hundred times as long
    zeros = _zeros(len(scales))
    output: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")  # no bias, no scale, no other operation
    product: Tensor = torch.ops.onednn.qlinear_pointwise(shifted, 1.0, 128, packed, scales, zeros, *output)
    return product


@cache
def _zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)


def _int_mm_product(rows: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    return torch._int_mm(rows, packed.t()) * scales


def _linear_in_torch(product: Callable[[Tensor, Tensor, Tensor], Tensor], layer: "Int8Linear", rows: Tensor) -> Tensor:
    """`product` takes rows in int8, packed weights and the channels' scales, and returns float32 (n, out)."""
    rows = rows * layer.balance
    sizes = rows.abs()
    peaks, limits = sizes.amax(1, keepdim=True), sizes.sum(1, keepdim=True) * layer.outlier
    where, count = (peaks > limits).squeeze(1), len(rows)
    has_outliers = bool(where.any())
    if has_outliers:  # such a row becomes the sum of two: its outliers in coarse steps, and the rest
        some, limits, of_some = rows[where], limits[where], peaks[where]
        coarse = some.where(some.abs() > limits, 0.0)
        digits, steps = digits_of(coarse, of_some)
        rows = torch.cat([rows.index_put((where,), some - digits * steps), coarse])
        peaks = torch.cat([_peaks(rows[:count]), of_some])
    digits, steps = digits_of(rows, peaks)
    y = product(digits, layer.weight, layer.scales).mul_(steps)
    if has_outliers:
        y = y[:count].index_put_((where,), y[count:], accumulate=True)
    return y if layer.bias is None else y.add_(layer.bias)


# torch 2.13, one core of an AMD EPYC with VNNI, milliseconds of native.c, oneDNN and _int_mm, the last two without the
# conversion of rows to integers: 1024 x 1024 weights .022, .054, .025 for 1 row, .085, .11, .16 for 16, 4.4, 4.2, 3.9
# for 769; 4096 x 4096 weights .7, .6, .5 for 1 row (memory's limit), .4, 1.4, 6.4 for 4, 1.7, 2.4, 7.9 for 16, 64, 67,
# 66 for 769.
PLAIN_KERNEL = Kernel("_int_mm", lambda weight: weight, partial(_linear_in_torch, _int_mm_product))
KERNELS = (
    Kernel("native.c", native.packed, _native_linear),
    Kernel(
        "oneDNN",
        lambda weight: torch.ops.onednn.qlinear_prepack(weight, None),
        partial(_linear_in_torch, _onednn_product),
    ),
    PLAIN_KERNEL,
)


class Int8Linear(nn.Module):
    """In place of `nn.Linear`: (..., in) float32 to (..., out) float32. `pack` must be called before `forward`.

    Before that, `weight` is int8 (out, in), as it is saved. The channels have `scales`, float32 (out,), and inputs are
    multiplied by `balance`, (in,).
    """

    weight: Tensor
    scales: Tensor
    balance: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, has_bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scales", torch.empty(out_features))
        self.register_buffer("balance", torch.empty(in_features))
        self.register_buffer("bias", torch.empty(out_features) if has_bias else None)
        self._kernel: Kernel | None = None
        self.outlier = OUTLIER / in_features  # an outlier exceeds this share of the sum of a row's absolute values

    @classmethod
    def of(cls, linear: nn.Linear) -> "Int8Linear":
        """The same layer in 8 bits, not packed yet."""
        made = cls(linear.in_features, linear.out_features, linear.bias is not None)
        made.weight, made.scales, made.balance = quantized(linear.weight.detach())
        if linear.bias is not None:
            made.bias = linear.bias.detach().float()
        return made

    def pack(self, kernel: Kernel) -> None:
        """Lay the weights out as `kernel` wants them; they cannot be saved afterwards."""
        self.weight, self._kernel = kernel.pack(self.weight), kernel

    def forward(self, x: Tensor) -> Tensor:
        assert self._kernel is not None, "pack comes before forward"
        return self._kernel.linear(self, x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)

    def as_native(self) -> native.Linear | None:
        """The layer for `native.c`, valid as long as its tensors live; None if its weights are packed otherwise."""
        is_native = self._kernel is not None and self._kernel.linear is _native_linear
        return _in_c(self) if is_native else None

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def quantized(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (out, in) as int8, the channels' scales, float32 (out,), and the inputs' balance, float32 (in,)."""
    blocks = weight.split(BLOCK)
    # normalized: each output channel counts alike
    squares = torch.stack([functional.normalize(block.float()).square().sum(0) for block in blocks]).sum(0)
    balance = (squares / len(weight)).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    balance /= balance.mean()
    parts = [digits_of(balanced, _peaks(balanced)) for balanced in (block.float() / balance for block in blocks)]
    digits, steps = (torch.cat(part) for part in zip(*parts, strict=True))
    return digits, steps.squeeze(1), balance


def _peaks(rows: Tensor) -> Tensor:
    """The largest absolute value of each row, (n, 1); vector_norm(inf) takes twenty times as long (torch 2.13)."""
    return rows.abs().amax(1, keepdim=True)


def digits_of(rows: Tensor, peaks: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (..., n) in steps of a 127th of their `peaks` (..., 1), as int8, and the steps, (..., 1)."""
    steps = (peaks / LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
    return (rows * steps.reciprocal()).round_().to(torch.int8), steps


def fastest_kernel() -> Kernel:
    """The fastest kernel for 8-bit integers on this machine, even if float32 is faster."""
    return _probed()[0]


def is_worthwhile() -> bool:
    """Whether products of 8-bit integers are clearly faster than float32 on this machine."""
    return _probed()[1] >= WORTHWHILE


@cache
def _probed() -> tuple[Kernel, float]:
    """The fastest kernel, and its speed relative to float32; takes up to a second.

    A kernel is left out if this CPU or this torch does not have it, or if its sums are not exact: without VNNI, pairs
    of products may saturate in 16 bits. The CPU time of one thread is measured: on a busy machine, two threads would
    wait for each other.
    """
    floats = torch.ones(PROBED_SHAPE)
    products: dict[str, Callable[[Tensor], Tensor]] = {"float32": lambda rows: functional.linear(rows, floats)}
    for kernel in KERNELS:
        if (layer := _probe_of(kernel)) is not None:
            products[kernel.name] = layer
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = {name: _seconds(product) for name, product in products.items()}
    torch.set_num_threads(threads)
    best = min((kernel for kernel in KERNELS if kernel.name in seconds), key=lambda k: seconds[k.name], default=None)
    return (best, seconds["float32"] / seconds[best.name]) if best else (PLAIN_KERNEL, 0.0)


def _probe_of(kernel: Kernel) -> Int8Linear | None:
    """A layer of this kernel; None if the kernel is missing or inexact."""
    outputs, inputs = PROBED_SHAPE
    layer = Int8Linear(inputs, outputs, has_bias=False)
    layer.weight.fill_(LEVELS)
    layer.scales.fill_(1), layer.balance.fill_(1)
    try:
        layer.pack(kernel)
        is_exact = bool((layer(torch.full((1, inputs), float(LEVELS))) == inputs * LEVELS**2).all())
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    return layer if is_exact else None


def _seconds(product: Callable[[Tensor], Tensor]) -> float:
    """The geometric mean, over PROBED_ROWS, of the shortest time."""
    logs = []
    for count in PROBED_ROWS:
        rows, times = torch.ones(count, PROBED_SHAPE[1]), []
        for _ in range(PROBES):
            start = time.thread_time()
            product(rows)
            times.append(time.thread_time() - start)
        logs.append(math.log(max(min(times), CLOCK_S)))
    return math.exp(sum(logs) / len(logs))
