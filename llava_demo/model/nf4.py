"""NF4 layers of bitsandbytes with the same input as one product, by the fastest kernel for its number of rows.

It imports bitsandbytes, so it is imported only if there are such layers.
"""

import importlib.util
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import bitsandbytes
import torch
from bitsandbytes.functional import QuantState, dequantize_blockwise
from torch import Tensor, nn

if TYPE_CHECKING:
    from llava_demo.model.nf4_kernel import Launch

KIND, BLOCK = "nf4", 64  # the only kind and block size of `nf4_kernel`
PROBED_ROWS = (2, 4, 8, 16, 24, 32, 48, 64)  # other numbers use the result of the next larger one
PROBED_BYTES = 2**28  # of weights of several layers: those of one layer would stay in the GPU's cache
PROBE_MS = 1


def can_join(linears: Sequence[nn.Module]) -> bool:
    """Whether `Nf4Linears` takes these layers: NF4 in blocks that end with a row, all packed and computed alike."""
    if not all(isinstance(linear, bitsandbytes.nn.Linear4bit) for linear in linears):
        return False
    states = [linear.weight.quant_state for linear in linears]
    kinds = {(state.quant_type, state.blocksize, state.shape[1] % BLOCK) for state in states}
    alike = {(linear.in_features, linear.compute_dtype, linear.bias is None) for linear in linears}
    is_packed = all(linear.weight.dtype == torch.uint8 for linear in linears)
    return is_packed and kinds == {(KIND, BLOCK, 0)} and len(alike) == 1


class Nf4Linears:
    """The products of several `Linear4bit`s side by side: (rows, in) to (rows, sum of out).

    The layers' own weights become views of the joined ones. Scales that are quantized themselves ("double
    quantization") become float32, since each layer has its own offset: 0.4 bits more per weight.
    """

    def __init__(self, linears: Sequence[nn.Module]) -> None:
        weights, states = [linear.weight for linear in linears], [linear.weight.quant_state for linear in linears]
        scales = [_scales(state) for state in states]
        self.weight, absmax = torch.cat([weight.data for weight in weights]), torch.cat(scales)
        for weight, part in zip(weights, self.weight.split([len(weight) for weight in weights]), strict=True):
            weight.data = part
        for state, part in zip(states, absmax.split([len(scale) for scale in scales]), strict=True):
            state.absmax, state.offset, state.state2, state.nested = part, None, None, False
        shape, first = (sum(state.shape[0] for state in states), states[0].shape[1]), states[0]
        self.state = QuantState(absmax, torch.Size(shape), first.code, BLOCK, KIND, first.dtype)
        self.is_on_gpu, self._dtype = self.weight.is_cuda, linears[0].compute_dtype
        has_bias = linears[0].bias is not None
        self._bias = torch.cat([linear.bias for linear in linears]).to(self._dtype) if has_bias else None

    def __call__(self, x: Tensor) -> Tensor:
        rows = x if self._dtype is None else x.to(self._dtype)
        launch = None
        if self.is_on_gpu and 1 < len(x) <= PROBED_ROWS[-1]:
            launch = fastest_launch(
                self.state.shape, PROBED_ROWS[bisect_left(PROBED_ROWS, len(x))], rows.dtype, x.device
            )
        if launch is None:
            return _by_bitsandbytes(rows, self.weight, self.state, self._bias).to(x.dtype)
        from llava_demo.model.nf4_kernel import product

        y = product(rows, self.weight, self.state.absmax, launch)
        return (y if self._bias is None else y + self._bias).to(x.dtype)


def _scales(state: QuantState) -> Tensor:
    """The scale of each block, float32, with the arithmetic of bitsandbytes."""
    return dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax


def _by_bitsandbytes(x: Tensor, weight: Tensor, state: QuantState, bias: Tensor | None = None) -> Tensor:
    product: Tensor = bitsandbytes.matmul_4bit(x, weight, quant_state=state, bias=bias)
    return product


@cache
def fastest_launch(shape: tuple[int, int], rows: int, dtype: torch.dtype, device: torch.device) -> "Launch | None":
    """The fastest launch of our kernel for `rows` rows and weights `shape` (out, in); None if bitsandbytes is faster.

    It takes tenths of a second, or seconds if kernels are compiled. A launch that fails or is inexact is left out.
    """
    if importlib.util.find_spec("triton") is None or dtype not in (torch.float16, torch.bfloat16):
        return None
    from llava_demo.model.nf4_kernel import LAUNCHES

    probe = _Probe(shape, rows, dtype, device)
    times = {launch: probe.milliseconds(launch) for launch in LAUNCHES if launch.fits(shape[1])}
    best = min(times, key=times.__getitem__, default=None)
    return best if best is not None and times[best] < probe.milliseconds(None) else None


class _Probe:
    """Random rows, and random weights for more layers of a shape than a GPU's cache holds."""

    def __init__(self, shape: tuple[int, int], rows: int, dtype: torch.dtype, device: torch.device) -> None:
        size = shape[0] * shape[1]
        layers = -(-PROBED_BYTES // (size // 2))
        self._x = torch.randn(rows, shape[1], dtype=dtype, device=device)
        self._weights = torch.randint(0, 256, (layers, size // 2, 1), dtype=torch.uint8, device=device)
        absmax = torch.rand(size // BLOCK, device=device)
        code = bitsandbytes.functional.get_4bit_type(KIND, device=device)
        self._state = QuantState(absmax, torch.Size(shape), code, BLOCK, KIND, dtype)

    def milliseconds(self, launch: "Launch | None") -> float:
        """The time of a product with all layers by our kernel, or by bitsandbytes for None; infinite if it fails."""
        from triton.errors import TritonError
        from triton.testing import do_bench_cudagraph

        try:
            if launch is not None and not self._is_right(launch):
                return float("inf")
            took: float = do_bench_cudagraph(lambda: [self._product(weight, launch) for weight in self._weights],
                                             rep=PROBE_MS, return_mode="min")  # fmt: skip
        except (TritonError, RuntimeError):  # out of registers or shared memory, or an instruction is not there
            return float("inf")
        return took

    def _product(self, weight: Tensor, launch: "Launch | None") -> Tensor:
        if launch is None:
            return _by_bitsandbytes(self._x, weight, self._state)
        from llava_demo.model.nf4_kernel import product

        return product(self._x, weight, self._state.absmax, launch)

    def _is_right(self, launch: "Launch") -> bool:
        found, wanted = (self._product(self._weights[0], which).float() for which in (launch, None))
        rounding = torch.finfo(self._x.dtype).eps  # 1e-3 in float16; both round weights and results to it
        return bool((found - wanted).norm() < rounding * wanted.norm())
