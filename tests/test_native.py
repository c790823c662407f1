"""`native.c` computes what torch's operations compute, and is done without where it cannot be compiled."""

import tempfile
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from llava_demo.engines.batched.attention import Cache, CacheShape, SpanAttention
from llava_demo.engines.batched.pages import BlockTable
from llava_demo.engines.batched.schedule import Request, Span
from llava_demo.engines.batched.step import add_norm, gated
from llava_demo.model import native

needs_gcc = pytest.mark.skipif(native.library() is None, reason="there is no gcc, or torch has no OpenMP")
LAYERS, HEADS = 2, 3


def request_with(tokens: int, pages: list[int]) -> Request:
    request = Request([1] * tokens, 9, draw=None)  # type: ignore[arg-type]  # nothing is drawn here
    request.table = BlockTable(pages)
    return request


def outputs(cache: Cache, spans: list[Span], queries: int) -> list[Tensor]:
    """What a step gives in each layer, from random heads."""
    rows, width = sum(span.queries for span in spans), cache.shape.width
    numbers = torch.Generator().manual_seed(rows)
    angles = torch.rand(rows, width // 2, generator=numbers).repeat(1, 2)
    attention = SpanAttention(cache, spans, (angles.cos(), angles.sin()))
    sizes = (HEADS * queries, HEADS, HEADS)
    return [
        attention(layer, *(torch.randn(rows, heads, width, generator=numbers) for heads in sizes))
        for layer in range(LAYERS)
    ]


@needs_gcc
@pytest.mark.parametrize(("width", "queries"), [(64, 1), (128, 2), (24, 3)])
@torch.inference_mode()
def test_attention_over_pages_in_8_bits_is_torchs(width: int, queries: int) -> None:
    shape = CacheShape(LAYERS, HEADS, width, torch.float32, torch.device("cpu"), is_int8=True)
    caches = [Cache(shape, pages=12) for _ in range(2)]
    caches[1].native = []
    one, other, third = request_with(41, [4, 1, 7]), request_with(90, [0, 2, 3, 5, 6, 8]), request_with(18, [9, 10])
    prompts = [Span(one, 0, 40), Span(other, 0, 20), Span(third, 0, 17)]
    mixed = [Span(third, 17, 1), Span(other, 20, 30), Span(one, 40, 1)]  # the second is read on, and not drawn from
    for spans in (prompts, mixed, [Span(other, 50, 1)]):
        for found, wanted in zip(*(outputs(cache, spans, queries) for cache in caches), strict=True):
            torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)  # a digit may be rounded to the other side


@needs_gcc
@torch.inference_mode()
def test_what_stands_between_the_products_is_torchs() -> None:
    norm = nn.RMSNorm(70, eps=1e-5)
    nn.init.normal_(norm.weight)
    hidden, delta, gate, up = (4 * torch.randn(5, 70) for _ in range(4))
    gate[0, :4] = torch.tensor([-200.0, 200.0, 0.0, torch.nan])
    named = SimpleNamespace(weight=norm.weight, variance_epsilon=norm.eps)
    for change in (delta, None):
        torch.testing.assert_close(native.add_norm(hidden.clone(), change, named), add_norm(hidden, change, norm))  # type: ignore[arg-type]
    found = native.gated(gate.clone(), up)
    torch.testing.assert_close(found, gated(gate, up), equal_nan=True)


def test_without_a_compiler_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert native.library.__wrapped__() is None


def test_without_a_folder_to_compile_in_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert native.library.__wrapped__() is None
