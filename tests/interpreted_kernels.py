"""The GPU's kernels in Triton's interpreter, on a CPU, against plain torch. `test_kernels.py` runs this file."""

import pytest
import torch
from torch import nn

from llava_demo.engines.batched import kernels
from llava_demo.engines.batched.attention import rotated
from llava_demo.engines.batched.pages import PAGE_TOKENS


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "heads", "kv_heads", "width"), [(1, 2, 2, 64), (3, 4, 2, 32), (9, 2, 1, 16)])
def test_attention_over_pages_is_that_over_one_piece(rows: int, heads: int, kv_heads: int, width: int) -> None:
    """Contexts of one token up to several blocks, pages in any order; keys and values are written to their place."""
    table = torch.randperm(rows * 20, generator=torch.Generator().manual_seed(1)).view(rows, 20).int()
    past = torch.tensor([0, 15, 16, 250, 300, 127, 128, 1, 40])[-rows:].int()
    pages = random(2, rows * 20 * PAGE_TOKENS, kv_heads, width)
    query, key, value = random(rows, heads, width), random(rows, kv_heads, width, seed=2), random(rows, kv_heads, width)
    angle = random(rows, width // 2, seed=3).repeat(1, 2)
    expected = []
    for row, before in enumerate(past.tolist()):
        places = (table[row].long()[:, None] * PAGE_TOKENS + torch.arange(PAGE_TOKENS)).flatten()[:before]
        cosine, sine = angle[row].cos(), angle[row].sin()
        keys = torch.cat([pages[0, places], rotated(key[row : row + 1], cosine, sine)])
        values = torch.cat([pages[1, places], value[row : row + 1]])
        one = rotated(query[row : row + 1], cosine, sine)
        each = (x.transpose(0, 1)[None] for x in (one, keys, values))
        expected.append(nn.functional.scaled_dot_product_attention(*each, enable_gqa=True)[0, :, 0])
    before = pages.clone()
    found = kernels.attend((query, key, value), pages, (angle.cos(), angle.sin()), table, past)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    new = (table.gather(1, (past.long() // PAGE_TOKENS)[:, None])[:, 0] * PAGE_TOKENS + past % PAGE_TOKENS).long()
    torch.testing.assert_close(pages[0, new], rotated(key, angle.cos()[:, None], angle.sin()[:, None]))
    torch.testing.assert_close(pages[1, new], value)
    others = torch.ones(pages.shape[1], dtype=torch.bool).index_fill(0, new, False)
    assert torch.equal(pages[:, others], before[:, others])


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("has_delta", [False, True])
def test_norms_are_those_of_llama(rows: int, has_delta: bool) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm, hidden, delta = LlamaRMSNorm(48), random(rows, 48), random(rows, 48, seed=1) if has_delta else None
    nn.init.normal_(norm.weight)
    right = hidden if delta is None else hidden + delta
    total, normed = kernels.add_norm(hidden, delta, norm)
    assert torch.equal(total, right)
    torch.testing.assert_close(normed, norm(right))


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_two_halves_of_one_product_are_gated(rows: int) -> None:
    gate, up = random(rows, 2 * 1500).split(1500, dim=-1)
    torch.testing.assert_close(kernels.gated(gate, up), nn.functional.silu(gate) * up)
