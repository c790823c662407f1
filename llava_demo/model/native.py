"""`native.c`, compiled where it runs: what a step of a model in 8 bits does on a CPU, two to five times as fast.

It needs gcc and torch's OpenMP, as on Linux; elsewhere `library` is None, and torch's operations do the same. Tensors
are float32 on the CPU unless something else is said.
"""

import ctypes
import logging
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int, c_long, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SOURCE = Path(__file__).with_name("native.c")
# not -ffast-math, for which there is no NaN
COMPILER = ("gcc", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
COMPILER_TIMEOUT_S = 120  # it takes 1 s on an idle machine
_SOFT = 1  # omp_pause_soft: settings stay as they are
CHANNELS, GROUP = 64, 4  # as in native.c: output channels of a block, and input channels that lie side by side

_log = logging.getLogger(__name__)


class Pages(ctypes.Structure):
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
    def of(cls, digits: Tensor, steps: Tensor, page_tokens: int) -> "Pages":
        """Pages of tensors that the caller keeps."""
        return cls(digits.data_ptr(), steps.data_ptr(), *digits.shape[1:], page_tokens)


_ARGUMENTS: dict[str, Sequence[Any]] = {
    "linear": (c_void_p, c_long, c_long, c_void_p, c_float, *[c_void_p] * 4, c_long, c_int),
    "gated": (c_void_p, c_void_p, c_long, c_long, c_int),
    "add_norm": (c_void_p, c_void_p, c_void_p, c_float, c_void_p, c_long, c_long, c_int),
    "write_rotated": (POINTER(Pages), c_long, *[c_void_p] * 6, c_long, c_int),
    "attend": (POINTER(Pages), c_long, *[c_void_p] * 5, c_long, c_void_p, c_int),
}


@cache
def library() -> ctypes.CDLL | None:
    """The functions of `native.c`; None where it cannot be compiled. Takes a second, once."""
    openmp = _openmp_of_torch()
    if openmp is None:
        return None
    with tempfile.TemporaryDirectory(prefix="llava-demo-native-") as folder:
        target = str(Path(folder) / "native.so")
        command = (*COMPILER, str(SOURCE), "-Wl,--as-needed", openmp, "-lm", "-o", target)
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=COMPILER_TIMEOUT_S)
            found = ctypes.CDLL(target)
        except (OSError, subprocess.SubprocessError) as error:
            _log.info("native.c is not used: %s", getattr(error, "stderr", None) or error)
            return None
    for name, arguments in _ARGUMENTS.items():
        getattr(found, name).argtypes = arguments
    return found


def _openmp_of_torch() -> str | None:
    """Its file: a second OpenMP would have threads of its own, which would compete with torch's."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((path for line in lines if "/libgomp" in (path := line.rpartition(" ")[2])), None)


def release_threads() -> None:
    """End the calling thread's OpenMP threads; its next product would have new ones.

    While a process has more of them than cores, torch's OpenMP has all of them sleep as soon as they have nothing to
    do, and to wake one takes longer than many a product: 168 products of one row by 1024 x 1024 weights took 22 ms in
    place of 11. So only the thread that runs the model keeps its own.
    """
    openmp = _openmp_of_torch()
    release = getattr(ctypes.CDLL(openmp), "omp_pause_resource_all", None) if openmp else None
    if release is not None:
        release(_SOFT)


def packed(weight: Tensor) -> Tensor:
    """int8 (out, in) as `linear` wants it: unsigned, (blocks of CHANNELS, groups of GROUP inputs, CHANNELS, GROUP)."""
    outputs, inputs = weight.shape
    blocks, groups = -(-outputs // CHANNELS), -(-inputs // GROUP)
    shifted = weight.view(torch.uint8) ^ 128
    whole = functional.pad(shifted, (0, groups * GROUP - inputs, 0, blocks * CHANNELS - outputs))
    return whole.view(blocks, CHANNELS, groups, GROUP).transpose(1, 2).contiguous()


def linear(rows: Tensor, balance: Tensor, share: float, weight: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
    """(n, in) to (n, out) as `int8.Int8Linear` has it; `weight` is packed and with its channels' scales, (out,).

    In `rows` what is above `share` of the sum of a row's absolute values is an outlier.

    Raises:
        MemoryError: there is none for the rows in 8 bits.
    """
    (digits, scales), rows = weight, rows.contiguous()
    count, inputs = rows.shape
    y = rows.new_empty(count, len(scales))
    numbers = (balance.data_ptr(), share, digits.data_ptr(), scales.data_ptr(), _pointer(bias), y.data_ptr())
    if not _call("linear", rows.data_ptr(), count, inputs, *numbers, len(scales)):
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


def write_rotated(pages: Pages, heads: Sequence[Tensor], rotary: Sequence[Tensor], places: Tensor) -> None:
    """Rotate queries in place; write rotated keys, and values, to `places`, int64 (rows,).

    `heads` are queries, keys and values, each (rows, heads, width); `rotary` is cosine and sine, each (rows, width).
    """
    pointers = (x.data_ptr() for x in (*heads, *rotary, places))
    _call("write_rotated", pages, heads[0].shape[1] // pages.heads, *pointers, len(places))


def attend(pages: Pages, query: Tensor, where: Sequence[Tensor], y: Tensor) -> None:
    """Rows of rotated queries attend to their keys; fills the same rows of `y`, both (rows, heads, width).

    `where` is, all int64: the rows, (n,); the pages of each, one after the other; where each one's begin, (n,); and how
    many keys each has, (n,).

    Raises:
        MemoryError: there is none for the scores.
    """
    arguments = (query.data_ptr(), *(x.data_ptr() for x in where))
    if not _call("attend", pages, query.shape[1] // pages.heads, *arguments, len(where[0]), y.data_ptr()):
        raise MemoryError


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _call(name: str, *arguments: Any) -> int:
    found: int = getattr(library(), name)(*arguments, torch.get_num_threads())
    return found
