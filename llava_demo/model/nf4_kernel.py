"""Products of few rows with bitsandbytes' packed NF4 weights, as a Triton kernel. Importing it needs triton.

A program decodes the 4-bit codes of some output channels in registers, and tensor cores multiply them. bitsandbytes
first writes all weights to memory in 16 bits, where it has no such kernel for a GPU: 10.8 ms a step of 16 chats of
LLaVA-1.5-7B on an H200; a prototype of this kernel took 4.5. This version has not run on a GPU yet.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# The 16 values of NormalFloat (Dettmers et al. 2023, arXiv 2305.14314), as in bitsandbytes
VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FEWEST_ROWS_PER_DOT = 16  # tl.dot multiplies no fewer


def _tables() -> str:
    """PTX that loads the values in float16 into registers: the high bytes of four values each, and the low bytes."""
    bits = [number & 0xFFFF for number in torch.tensor(VALUES).half().view(torch.int16).tolist()]
    lines = []
    for name, shift in (("h", 8), ("l", 0)):
        for group in range(4):
            taken = [bits[4 * group + place] >> shift & 0xFF for place in range(4)]
            lines.append(f"mov.b32 {name}{group}, 0x{int.from_bytes(bytes(taken), 'little'):08x};")
    return " ".join(lines)


def _four_codes(first: str, second: str) -> str:
    """PTX that decodes two bytes: `code` holds their four codes without the highest bits, `top` those bits.

    `prmt` picks four of eight bytes: so the lower eight and the upper eight values are looked up separately, and `mask`
    selects one of the two. `first` gets the values of the codes in the bytes' high halves, `second` the others.
    """
    return (
        "prmt.b32 ha, h0, h1, code; prmt.b32 hb, h2, h3, code; prmt.b32 la, l0, l1, code; prmt.b32 lb, l2, l3, code; "
        "prmt.b32 mask, ff, zero, top; lop3.b32 ha, ha, hb, mask, 0xD8; lop3.b32 la, la, lb, mask, 0xD8; "
        f"prmt.b32 {first}, la, ha, 0x7351; prmt.b32 {second}, la, ha, 0x6240; "
    )


# Decodes the four bytes of $4 to eight float16 values: those of the high halves to $0 and $1, the others to $2 and $3
DECODE = (
    "{ .reg .b32 code, top, mask, ha, hb, la, lb, h0, h1, h2, h3, l0, l1, l2, l3, ff, zero; "
    f"{_tables()} mov.b32 ff, 0x0000ff00; mov.b32 zero, 0; "
    "and.b32 code, $4, 0x77777777; shr.u32 top, $4, 3; and.b32 top, top, 0x11111111; "
    f"{_four_codes('$0', '$2')} shr.u32 code, code, 16; shr.u32 top, top, 16; {_four_codes('$1', '$3')} }}"
)
_DECODE = tl.constexpr(DECODE)


@dataclass(frozen=True)
class Launch:
    """How work is divided: output channels of a program, bytes of a channel per iteration, parts of a sum."""

    channels: int
    nbytes: int
    parts: int
    warps: int
    stages: int

    def fits(self, inputs: int) -> bool:
        return inputs % (2 * self.nbytes * self.parts) == 0


# The best of 13 on an H200, for few, many and very few output channels. Each is compiled for 16, 32 and 64
# rows, which takes a second or two.
LAUNCHES = (
    Launch(channels=32, nbytes=128, parts=1, warps=4, stages=3),
    Launch(channels=64, nbytes=64, parts=1, warps=4, stages=4),
    Launch(channels=64, nbytes=64, parts=4, warps=4, stages=4),
)


@triton.jit
def multiply(x, weight, absmax, y, rows, channels, inputs,
             ROWS: tl.constexpr, CHANNELS: tl.constexpr, BYTES: tl.constexpr, PARTS: tl.constexpr):  # fmt: skip
    """`x` is (2, rows, inputs / 2): a byte holds the weights of an even column and of the next odd one.

    `y` is (PARTS, rows, channels): each part is the sum over some of the columns.
    """
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.program_id(1)
    row, byte, scale = tl.arange(0, ROWS), tl.arange(0, BYTES), tl.arange(0, BYTES // 32)
    is_channel, is_row = (channel < channels)[:, None], (row < rows)[None, :]
    half = inputs // 2
    total = tl.zeros([CHANNELS, ROWS], tl.float32)
    for start in range(part * (half // PARTS), (part + 1) * (half // PARTS), BYTES):
        codes = tl.load(weight + channel.to(tl.int64)[:, None] * half + (start + byte)[None, :], is_channel, 0)
        even, odd = tl.inline_asm_elementwise(
            _DECODE, "=r,=r,=r,=r,r", [codes], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
        blocks = tl.load(absmax + channel[:, None] * (half // 32) + (start // 32 + scale)[None, :], is_channel, 0.0)
        scales = tl.reshape(tl.broadcast_to(blocks[:, :, None], [CHANNELS, BYTES // 32, 32]), [CHANNELS, BYTES])
        if x.dtype.element_ty == tl.float16:
            even, odd = even * scales.to(tl.float16), odd * scales.to(tl.float16)
        else:  # bfloat16 has 8 bits: round once
            even = (even.to(tl.float32) * scales).to(x.dtype.element_ty)
            odd = (odd.to(tl.float32) * scales).to(x.dtype.element_ty)
        at = x + row[None, :] * half + (start + byte)[:, None]
        total = tl.dot(even, tl.load(at, is_row, 0.0), total)
        total = tl.dot(odd, tl.load(at + rows * half, is_row, 0.0), total)
    out = y + (part * rows + row)[None, :] * channels + channel[:, None]
    tl.store(out, total.to(y.dtype.element_ty), is_channel & is_row)


def product(x: Tensor, weight: Tensor, absmax: Tensor, launch: Launch) -> Tensor:
    """`x` (rows, inputs) in 16 bits times packed weights, (rows, channels); `absmax` has one float32 for each block."""
    (rows, inputs), channels = x.shape, 2 * weight.numel() // x.shape[1]
    halves = x.view(rows, -1, 2).permute(2, 0, 1).contiguous()
    # Parts are added in a fixed order, unlike atomic additions: answers are reproducible.
    like: dict[str, Any] = {"dtype": torch.float32 if launch.parts > 1 else x.dtype, "device": x.device}
    y = torch.empty(launch.parts, rows, channels, **like)
    multiply[triton.cdiv(channels, launch.channels), launch.parts](
        halves, weight, absmax, y, rows, channels, inputs, ROWS=max(FEWEST_ROWS_PER_DOT, triton.next_power_of_2(rows)),
        CHANNELS=launch.channels, BYTES=launch.nbytes, PARTS=launch.parts, num_warps=launch.warps,
        num_stages=launch.stages,
    )  # fmt: skip
    return y[0] if launch.parts == 1 else y.sum(0).to(x.dtype)
