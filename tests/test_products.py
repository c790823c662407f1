"""Products of linear layers on a CPU: faster, and the same numbers."""

import re
import resource
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812, the field's name

from llava_demo.model.products import FEW_ROWS, HugePages, joined, keep_freed_memory, product_of


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 2, 16, FEW_ROWS, FEW_ROWS + 1])
@torch.inference_mode()
def test_few_rows_are_multiplied_rightly(rows: int, bias: bool) -> None:
    layer, x = nn.Linear(96, 160, bias=bias), torch.randn(rows, 96)
    right = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    product = product_of(layer)
    assert product is not layer
    found = product(x)
    assert found.shape == right.shape
    assert torch.allclose(found.double(), right, atol=1e-5)


@torch.inference_mode()
def test_several_layers_with_one_input_give_their_products_in_order() -> None:
    layers, x = [nn.Linear(8, width) for width in (4, 6, 2)], torch.randn(3, 8)
    for ours, layer in zip(joined(layers)(x), layers, strict=True):
        torch.testing.assert_close(ours, layer(x))


class Quantized(nn.Linear):
    """Stands for any layer that multiplies in its own way."""


@pytest.mark.parametrize("layer", [Quantized(8, 8), nn.Linear(8, 8, bias=False, dtype=torch.bfloat16), nn.Identity()])
def test_other_layers_are_called_as_they_are(layer: nn.Module) -> None:
    assert product_of(layer) is layer


def test_freed_memory_comes_back_without_page_faults() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(5_000_000)  # 20 MB, 4,900 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_freed_memory()
    faults()
    assert faults() < 5_000


def test_weights_in_huge_pages_are_the_same_and_outlive_what_holds_them() -> None:
    pages, numbers = HugePages(), [torch.randint(-127, 128, (rows, 3), dtype=torch.int8) for rows in (1, 2**20, 2**26)]
    copies = [pages.copy(x.t()) for x in numbers]
    del pages
    for x, copied in zip(numbers, copies, strict=True):
        assert copied.is_contiguous()
        assert torch.equal(copied, x.t())


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has none")
def test_the_system_is_asked_for_huge_pages() -> None:
    place = HugePages().copy(torch.ones(2**22, dtype=torch.int8))
    for region in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)[1:]:
        start, end = (int(address, 16) for address in region.split()[0].split("-"))
        if start <= place.data_ptr() < end:
            assert " hg" in region.partition("VmFlags:")[2]
            return
    pytest.fail("the memory is nowhere")
