"""The NF4 kernel in Triton's interpreter against bitsandbytes on a CPU. `test_kernels.py` runs this file.

The interpreter knows no PTX, so the few instructions of the kernel are emulated as NVIDIA's manual defines them.
"""

import re
from types import SimpleNamespace
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from llava_demo.model.nf4_kernel import DECODE, LAUNCHES, VALUES, Launch, product


def emulated(ptx: str, word: np.ndarray) -> list[np.ndarray]:
    """The registers $0 to $3 that `ptx` makes of 32-bit words in $4."""
    registers: dict[str, Any] = {"$4": word}
    for line in re.sub(r"\.reg .*?;|[{}]", "", ptx).split(";"):
        if not line.strip():
            continue
        name, target, *sources = re.split(r"[\s,]+", line.strip())
        values = [registers[s] if s in registers else np.uint32(int(s, 0)) for s in sources]
        registers[target] = np.uint32(INSTRUCTIONS[name](*values)) * np.ones_like(word)
    return [registers[f"${number}"] for number in range(4)]


def permuted(a: Any, b: Any, selector: Any) -> Any:
    """prmt.b32: each of four selectors of 4 bits picks one of eight bytes; none here asks for a sign's copies."""
    assert not np.any(selector & 0x8888)
    eight = np.uint64(a) | np.uint64(b) << np.uint64(32)
    result = np.uint32(0)
    for place in range(4):
        picked = (selector >> np.uint32(4 * place)) & np.uint32(7)
        byte = eight >> (np.uint64(8) * np.uint64(picked)) & np.uint64(0xFF)
        result = result | np.uint32(byte) << np.uint32(8 * place)
    return result


def looked_up(a: Any, b: Any, c: Any, table: Any) -> Any:
    """lop3.b32: any logical function of three bits, `table` its truth table."""
    result = np.uint32(0)
    for case in range(8):
        if int(table) >> case & 1:
            x, y, z = (value if case >> bit & 1 else ~value for value, bit in ((a, 2), (b, 1), (c, 0)))
            result = result | (x & y & z)
    return result


INSTRUCTIONS = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "shr.u32": lambda a, b: a >> b,
    "prmt.b32": permuted,
    "lop3.b32": looked_up,
}


def inline_asm(_: Any, ptx: Any, _constraints: Any, values: Any, _types: Any, _pure: Any, pack: Any) -> SimpleNamespace:
    """What the compiler does with `tl.inline_asm_elementwise`: four bytes a register in, two float16 a register out."""
    assert pack == 4
    codes = np.ascontiguousarray(values[0].data)
    first, second, third, fourth = emulated(ptx, codes.view(np.uint32))
    pairs = [
        np.stack(both, -1).reshape(codes.shape[0], -1).view(np.float16) for both in ((first, second), (third, fourth))
    ]
    return SimpleNamespace(get_result=lambda number: TensorHandle(pairs[number], tl.float16))


def dot(builder: Any, a: TensorHandle, b: TensorHandle, *rest: Any, of: Any = InterpreterBuilder.create_dot) -> Any:
    """The interpreter multiplies the bits of bfloat16 as if they were whole numbers (triton 3.9)."""
    if a.dtype == tl.bfloat16:
        a, b = (TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32) for x in (a, b))
    return of(builder, a, b, *rest)


@pytest.fixture(autouse=True)
def complete_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InterpreterBuilder, "create_inline_asm", inline_asm)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


def test_the_values_are_those_of_bitsandbytes() -> None:
    torch.testing.assert_close(torch.tensor(VALUES), bnb.get_4bit_type("nf4", device="cpu"), rtol=0, atol=0)


def test_every_byte_in_every_place_becomes_its_two_values() -> None:
    byte = np.arange(256, dtype=np.uint32)
    halves = np.array(VALUES, dtype=np.float16)
    for place in range(4):
        word = byte << np.uint32(8 * place) | np.uint32(0x5A5A5A5A & ~(0xFF << 8 * place))
        registers = emulated(DECODE, word)
        even, odd = (np.stack(both, -1).view(np.float16)[:, place] for both in (registers[:2], registers[2:]))
        assert (even == halves[byte >> 4]).all()
        assert (odd == halves[byte & 15]).all()


SMALL = Launch(16, 32, 2, 4, 2)


@pytest.mark.parametrize(
    ("rows", "dtype", "launch"),
    [*((17, torch.float16, launch) for launch in LAUNCHES), (2, torch.float16, SMALL), (16, torch.bfloat16, SMALL)],
)
def test_products_are_those_of_bitsandbytes(rows: int, dtype: torch.dtype, launch: Launch) -> None:
    """Channels that fill no whole program, rows that fill no whole tile."""
    inputs, noise = 512, torch.Generator().manual_seed(rows)
    weight, x = torch.randn(72, inputs, generator=noise), torch.randn(rows, inputs, generator=noise).to(dtype)
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4")
    wanted = x.double() @ bnb.dequantize_4bit(packed, state).double().t()
    found = product(x, packed, state.absmax, launch)
    assert found.dtype == dtype
    assert (found.double() - wanted).norm() < torch.finfo(dtype).eps * wanted.norm()
