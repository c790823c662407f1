"""Triton kernels of a decode step on a GPU: attention over pages, and the small operations between the products.

In transformers a step of one chat is a thousand small kernels; with these it is a few hundred. The tests compare each
with plain torch, in Triton's interpreter. Importing this module needs triton, which comes with torch's CUDA builds.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from llava_demo.engines.batched.pages import PAGE_TOKENS

KEYS_PER_BLOCK = 128  # with 2 warps the fastest at 700 keys on an H200: 7.5 us with 8 splits, FlashAttention 39
FEW_CHATS = 8  # up to this number, the keys of a chat are split among 8 programs, else among 4
GATED_PER_BLOCK = 1024


@triton.jit
def write_rotated(q, k, v, q_out, k_cache, v_cache, cos, sin, table, past, q_row, kv_row, table_row, heads, kv_heads,
                  PAGE: tl.constexpr, D: tl.constexpr):  # fmt: skip
    """For one row and one head: rotate a query, or rotate a key and write it to its page, or write a value."""
    row, head = tl.program_id(0), tl.program_id(1)
    half = tl.arange(0, D // 2)
    whole = tl.arange(0, D)
    position = tl.load(past + row)
    place = tl.load(table + row * table_row + position // PAGE).to(tl.int64) * PAGE + position % PAGE
    if head < heads + kv_heads:
        is_query = head < heads
        source = q + row * q_row + head * D if is_query else k + row * kv_row + (head - heads) * D
        target = q_out + (row * heads + head) * D if is_query else k_cache + (place * kv_heads + head - heads) * D
        one, other = tl.load(source + half).to(tl.float32), tl.load(source + D // 2 + half).to(tl.float32)
        c, s = tl.load(cos + row * D + half).to(tl.float32), tl.load(sin + row * D + half).to(tl.float32)
        tl.store(target + half, (one * c - other * s).to(target.dtype.element_ty))
        tl.store(target + D // 2 + half, (other * c + one * s).to(target.dtype.element_ty))
    else:
        number = head - heads - kv_heads
        value = tl.load(v + row * kv_row + number * D + whole)
        tl.store(v_cache + (place * kv_heads + number) * D + whole, value)


@triton.jit
def attend_split(q, k, v, table, past, sums, peaks, kv_heads, table_row, scale, group,
                 SPLITS: tl.constexpr, PAGE: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """One query over one part of its keys (flash decoding): the weighted sum of values, its peak and its weight."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    keys = tl.load(past + row) + 1
    each = tl.cdiv(tl.cdiv(keys, SPLITS), BLOCK) * BLOCK
    low = split * each
    high = tl.minimum(low + each, keys)
    d = tl.arange(0, D)
    number = row * tl.num_programs(1) + head
    query = tl.load(q + number * D + d).to(tl.float32) * scale
    peak, weight = -float("inf"), 0.0
    total = tl.zeros([D], tl.float32)
    for start in range(low, high, BLOCK):
        at = start + tl.arange(0, BLOCK)
        is_key = at < high
        place = tl.load(table + row * table_row + at // PAGE, mask=is_key, other=0).to(tl.int64) * PAGE + at % PAGE
        where = (place * kv_heads + head // group)[:, None] * D + d[None, :]
        key = tl.load(k + where, mask=is_key[:, None], other=0.0).to(tl.float32)
        score = tl.where(is_key, tl.sum(key * query[None, :], 1), -float("inf"))
        higher = tl.maximum(peak, tl.max(score, 0))
        share = tl.exp(score - higher)
        shrink = tl.exp(peak - higher)
        value = tl.load(v + where, mask=is_key[:, None], other=0.0).to(tl.float32)
        total = total * shrink + tl.sum(share[:, None] * value, 0)
        weight = weight * shrink + tl.sum(share, 0)
        peak = higher
    part = number * SPLITS + split
    tl.store(sums + part * D + d, total)
    tl.store(peaks + part * 2, peak)
    tl.store(peaks + part * 2 + 1, weight)


@triton.jit
def join_splits(sums, peaks, out, SPLITS: tl.constexpr, D: tl.constexpr):
    """The parts of one query's attention, weighted by what each saw."""
    number = tl.program_id(0)
    part, d = number * SPLITS + tl.arange(0, SPLITS), tl.arange(0, D)
    peak, weight = tl.load(peaks + part * 2), tl.load(peaks + part * 2 + 1)
    share = tl.exp(peak - tl.max(peak, 0))
    total = tl.sum(tl.load(sums + part[:, None] * D + d[None, :]) * share[:, None], 0)
    tl.store(out + number * D + d, (total / tl.sum(weight * share, 0)).to(out.dtype.element_ty))


@triton.jit
def add_and_norm(hidden, delta, weight, total, normed, width, eps, HAS_DELTA: tl.constexpr, BLOCK: tl.constexpr):
    """One row: hidden + delta, and its root mean square norm in float32, as in Llama."""
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    is_in = at < width
    x = tl.load(hidden + row * width + at, mask=is_in, other=0.0)
    if HAS_DELTA:
        x = x + tl.load(delta + row * width + at, mask=is_in, other=0.0)
        tl.store(total + row * width + at, x, mask=is_in)
    wide = x.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    scaled = tl.load(weight + at, mask=is_in, other=0.0) * wide.to(x.dtype)
    tl.store(normed + row * width + at, scaled, mask=is_in)


@triton.jit
def silu_times(gate, up, out, row_stride, width, BLOCK: tl.constexpr):
    """silu(gate) * up, for a part of one row."""
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = at < width
    x = tl.load(gate + row * row_stride + at, mask=is_in, other=0.0)
    wide = x.to(tl.float32)
    activated = (wide / (1 + tl.exp(-wide))).to(x.dtype)
    tl.store(out + row * width + at, activated * tl.load(up + row * row_stride + at, mask=is_in, other=0.0), mask=is_in)


def attend(
    heads: tuple[Tensor, Tensor, Tensor], pages: Tensor, rotary: tuple[Tensor, Tensor], table: Tensor, past: Tensor
) -> Tensor:
    """Decode attention of one layer: writes keys and values to their pages, and attends over all of them.

    `heads` are query, key and value, each (rows, heads, width) before the rotation; `pages` is (2, tokens, heads,
    width); `rotary` is cosine and sine, (rows, width); `table` (rows, pages) and `past` (rows) are int32. Returns
    (rows, heads, width).
    """
    query, key, value = heads
    (rows, count, width), kv_count = query.shape, key.shape[1]
    splits = 8 if rows <= FEW_CHATS else 4
    rotated, out = (query.new_empty(rows, count, width) for _ in range(2))
    write_rotated[rows, count + 2 * kv_count](
        query, key, value, rotated, pages[0], pages[1], *rotary, table, past, query.stride(0), key.stride(0),
        table.stride(0), count, kv_count, PAGE=PAGE_TOKENS, D=width, num_warps=1,
    )  # fmt: skip
    sums = query.new_empty(rows, count, splits, width, dtype=torch.float32)
    peaks = query.new_empty(rows, count, splits, 2, dtype=torch.float32)
    attend_split[rows, count, splits](
        rotated, pages[0], pages[1], table, past, sums, peaks, kv_count, table.stride(0), width**-0.5,
        count // kv_count, SPLITS=splits, PAGE=PAGE_TOKENS, D=width, BLOCK=KEYS_PER_BLOCK, num_warps=2,
    )  # fmt: skip
    join_splits[(rows * count,)](sums, peaks, out, SPLITS=splits, D=width, num_warps=1)
    return out


def add_norm(hidden: Tensor, delta: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """`hidden` + `delta`, both (rows, width), and its norm."""
    (rows, width), normed = hidden.shape, torch.empty_like(hidden)
    total = hidden if delta is None else torch.empty_like(hidden)
    if rows:
        add_and_norm[(rows,)](
            hidden, hidden if delta is None else delta, norm.weight, total, normed, width, norm.variance_epsilon,
            HAS_DELTA=delta is not None, BLOCK=triton.next_power_of_2(width), num_warps=8,
        )  # fmt: skip
    return total, normed


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up; both (rows, width), perhaps two halves of one tensor."""
    rows, width = gate.shape
    out = gate.new_empty(rows, width)
    if rows:
        blocks = triton.cdiv(width, GATED_PER_BLOCK)
        silu_times[rows, blocks](gate, up, out, gate.stride(0), width, BLOCK=GATED_PER_BLOCK, num_warps=4)
    return out
