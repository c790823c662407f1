"""`native.c`, compiled at the start: the operations of a step of an 8-bit model on a CPU, two to five times as fast.

It needs gcc and torch's OpenMP, as on Linux; elsewhere `library` returns None, and torch's operations are used. Tensors
are float32 on the CPU, unless stated otherwise.
"""

import ctypes
import logging
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int, c_long, c_void_p
from functools import cache
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SOURCE = Path(__file__).with_name("native.c")
# without -ffast-math, which ignores NaN
COMPILER = ("gcc", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
COMPILER_TIMEOUT_S = 120  # it takes 1 s on an idle machine
_SOFT = 1  # omp_pause_soft: settings stay as they are
CHANNELS, GROUP = 64, 4  # as in native.c: output channels of a block, and adjacent input channels

_log = logging.getLogger(__name__)


class Linear(ctypes.Structure):
    """A linear layer in 8 bits; its tensors must outlive it."""

    _fields_ = (
        ("balance", c_void_p),
        ("packed", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_long),
        ("outputs", c_long),
        ("share", c_float),
    )

    @classmethod
    def of(cls, balance: Tensor, share: float, weight: tuple[Tensor, Tensor], bias: Tensor | None) -> "Linear":
        """`weight` is the packed weight and its channels' scales, (out,).

        Values above `share` of the sum of a row's absolute values are outliers.
        """
        pointers = (x.data_ptr() for x in (balance, *weight))
        return cls(*pointers, _pointer(bias), len(balance), len(weight[1]), share)


class Layer(ctypes.Structure):
    """A layer of a language model: products of query, key, value, output, gate, up and down, and its two norms."""

    _fields_ = (("linears", Linear * 7), ("norms", c_void_p * 2), ("epsilon", c_float))

    @classmethod
    def of(cls, linears: Sequence[Linear], norms: Sequence[nn.Module]) -> "Layer":
        """A layer whose tensors the caller keeps."""
        weights = (c_void_p * 2)(*(norm.weight.data_ptr() for norm in norms))  # type: ignore[operator]
        return cls((Linear * 7)(*linears), weights, norms[0].variance_epsilon)


class LayerPages(ctypes.Structure):
    """A layer's keys and values: int8 (2, tokens, heads, width), and their steps, (2, tokens, heads)."""

    _fields_ = (
        ("digits", c_void_p),
        ("steps", c_void_p),
        ("tokens", c_long),
        ("heads", c_long),
        ("width", c_long),
        ("page_tokens", c_long),
    )

    @classmethod
    def of(cls, digits: Tensor, steps: Tensor, page_tokens: int) -> "LayerPages":
        """Pages of tensors that the caller keeps."""
        return cls(digits.data_ptr(), steps.data_ptr(), *digits.shape[1:], page_tokens)


class Positions(ctypes.Structure):
    """Cosine and sine of each row, (rows, width), and its place in the cache, int64 (rows,)."""

    _fields_ = (("cosine", c_void_p), ("sine", c_void_p), ("places", c_void_p))

    @classmethod
    def of(cls, *tensors: Tensor) -> "Positions":
        """Positions of tensors that the caller keeps."""
        return cls(*(x.data_ptr() for x in tensors))


class Requests(ctypes.Structure):
    """Requests with one row each in a step."""

    _fields_ = (("rows", c_void_p), ("pages", c_void_p), ("starts", c_void_p), ("keys", c_void_p), ("count", c_long))

    @classmethod
    def of(cls, rows: Sequence[int], tables: Sequence[Sequence[int]], keys: Sequence[int]) -> "Requests":
        """For each request its row, the pages that it has, and how many keys it sees in them."""
        starts = [0, *accumulate(map(len, tables))][: len(tables)]
        lists = rows, list(chain.from_iterable(tables)), starts, keys
        tensors = [torch.tensor(numbers, dtype=torch.long) for numbers in lists]
        made = cls(*(x.data_ptr() for x in tensors), len(rows))
        made.tensors = tensors  # they must outlive it
        return made


_ARGUMENTS: dict[str, Sequence[Any]] = {
    "linear": (POINTER(Linear), c_void_p, c_long, c_void_p, c_int),
    "gated": (c_void_p, c_void_p, c_long, c_long, c_int),
    "add_norm": (c_void_p, c_void_p, c_void_p, c_float, c_void_p, c_long, c_long, c_int),
    "write_rotated": (POINTER(LayerPages), c_long, *[c_void_p] * 3, POINTER(Positions), c_long, c_int),
    "attend": (POINTER(LayerPages), c_long, c_void_p, POINTER(Requests), c_void_p, c_int),
    "decode": (c_void_p, c_long, c_void_p, c_void_p, c_void_p, POINTER(Positions), POINTER(Requests), c_int),
}


@cache
def library() -> ctypes.CDLL | None:
    """The functions of `native.c`; None where it cannot be compiled. Takes a second, once."""
    openmp = _openmp_of_torch()
    if openmp is None:
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="llava-demo-native-") as folder:
            target = str(Path(folder) / "native.so")
            command = (*COMPILER, str(SOURCE), "-Wl,--as-needed", openmp, "-lm", "-o", target)
            subprocess.run(command, check=True, capture_output=True, timeout=COMPILER_TIMEOUT_S)
            found = ctypes.CDLL(target)
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("native.c is not used: %s", getattr(error, "stderr", None) or error)
        return None
    for name, arguments in _ARGUMENTS.items():
        getattr(found, name).argtypes = arguments
    return found


@cache
def _openmp_of_torch() -> str | None:
    """The file of torch's OpenMP; the threads of a second one would compete with torch's."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((path for line in lines if "/libgomp" in (path := line.rpartition(" ")[2])), None)


def release_threads() -> None:
    """End the calling thread's OpenMP threads; its next product starts new ones.

    In a process with more of them than cores, torch's OpenMP sends idle threads to sleep at once, and waking one takes
    longer than many products: 168 products of one row with 1024 x 1024 weights took 22 ms in place of 11. So only the
    thread that runs the model keeps its own.
    """
    openmp = _openmp_of_torch()
    release = getattr(ctypes.CDLL(openmp), "omp_pause_resource_all", None) if openmp else None
    if release is not None:
        release(_SOFT)


def in_one_piece(structures: Sequence[Any]) -> Sequence[Any]:
    """The structures as one C array."""
    return (type(structures[0]) * len(structures))(*structures)


def packed(weight: Tensor) -> Tensor:
    """int8 (out, in) as `linear` wants it: unsigned, (blocks of CHANNELS, groups of GROUP inputs, CHANNELS, GROUP)."""
    outputs, inputs = weight.shape
    blocks, groups = -(-outputs // CHANNELS), -(-inputs // GROUP)
    shifted = weight.view(torch.uint8) ^ 128
    whole = functional.pad(shifted, (0, groups * GROUP - inputs, 0, blocks * CHANNELS - outputs))
    return whole.view(blocks, CHANNELS, groups, GROUP).transpose(1, 2).contiguous()


def linear(rows: Tensor, layer: Linear) -> Tensor:
    """(n, in) to (n, out), as `int8.Int8Linear` has it.

    Raises:
        MemoryError: there is too little for the rows in 8 bits.
    """
    rows = rows.contiguous()
    y = rows.new_empty(len(rows), layer.outputs)
    if not _call("linear", layer, rows.data_ptr(), len(rows), y.data_ptr()):
        raise MemoryError
    return y


def add_norm(hidden: Tensor, delta: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """`step.add_norm`, with the sum in `hidden` itself."""
    y, weight, epsilon = torch.empty_like(hidden), norm.weight, norm.variance_epsilon
    pointers = (hidden.data_ptr(), _pointer(delta), weight.data_ptr(), epsilon, y.data_ptr())  # type: ignore[operator]
    _call("add_norm", *pointers, *hidden.shape)
    return hidden, y


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """`step.gated`, in `gate` itself."""
    _call("gated", gate.data_ptr(), up.data_ptr(), *gate.shape)
    return gate


def write_rotated(pages: LayerPages, heads: Sequence[Tensor], positions: Positions) -> None:
    """Rotate queries in place; write rotated keys, and values, to their places.

    `heads` are queries, keys and values, each (rows, heads, width).
    """
    pointers = (x.data_ptr() for x in heads)
    _call("write_rotated", pages, heads[0].shape[1] // pages.heads, *pointers, positions, len(heads[0]))


def attend(pages: LayerPages, query: Tensor, requests: Requests, y: Tensor) -> None:
    """Rows of rotated queries attend to their keys; fills the same rows of `y`, both (rows, heads, width).

    Raises:
        MemoryError: there is too little for the scores.
    """
    if not _call("attend", pages, query.shape[1] // pages.heads, query.data_ptr(), requests, y.data_ptr()):
        raise MemoryError


def decode(
    pages: Sequence[LayerPages], positions: Positions, requests: Requests, layers: Sequence[Layer], hidden: Tensor
) -> Tensor:
    """One row of each request, (n, width), through all layers; returns the last MLP's output, to be added to `hidden`.

    `pages` and `layers` are `in_one_piece`.

    Raises:
        MemoryError: there is too little for the activations.
    """
    delta = torch.empty_like(hidden)
    pointers = hidden.data_ptr(), delta.data_ptr()
    if not _call("decode", layers, len(layers), pages, *pointers, positions, requests):
        raise MemoryError
    return delta


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _call(name: str, *arguments: Any) -> int:
    found: int = getattr(library(), name)(*arguments, torch.get_num_threads())
    return found
