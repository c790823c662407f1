"""Products of 4-bit weights: joined layers are the same numbers, and what multiplies them is chosen by measuring.

The kernel itself is tested in `test_kernels.py`, where no GPU is needed.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import bitsandbytes.functional as bnb
import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from checkpoints import ON_CPU, batched_engine_of
from test_engines_agree import answers, mixed_requests, said
from torch import nn

from llava_demo.engines.batched.batch import SIZES
from llava_demo.model import nf4, nf4_kernel, products
from llava_demo.model.llava import Llava
from llava_demo.model.nf4 import PROBED_ROWS, Nf4Linears, can_join, fastest_launch
from llava_demo.model.nf4_kernel import LAUNCHES, Launch

INPUTS = 128


def layer(outputs: int, seed: int = 0, is_nested: bool = False, has_bias: bool = False, **options: str) -> Linear4bit:
    made = Linear4bit(INPUTS, outputs, bias=has_bias, compute_dtype=torch.float32)
    weight = torch.randn(outputs, INPUTS, generator=torch.Generator().manual_seed(seed)) * (seed + 1)
    options = {"quant_type": "nf4"} | options
    made.weight = Params4bit(weight, requires_grad=False, compress_statistics=is_nested, **options)
    return made.to("cpu")  # only now it is quantized


@pytest.mark.parametrize("is_nested", [False, True], ids=["scales as they are", "scales quantized themselves"])
def test_joined_weights_are_those_of_the_layers_bit_for_bit(is_nested: bool) -> None:
    """Each layer has statistics of its own, which cannot stand side by side as scales themselves can."""
    layers = [layer(outputs, seed, is_nested) for seed, outputs in enumerate((160, 32, 96))]
    before = [bnb.dequantize_4bit(one.weight.data, one.weight.quant_state) for one in layers]
    memory = [one.weight.data.data_ptr() for one in layers]
    joined = Nf4Linears(layers)
    assert torch.equal(bnb.dequantize_4bit(joined.weight, joined.state), torch.cat(before))
    for one, wanted in zip(layers, before, strict=True):  # `generate` still runs on them
        assert torch.equal(bnb.dequantize_4bit(one.weight.data, one.weight.quant_state), wanted)
    start, end = joined.weight.data_ptr(), joined.weight.data_ptr() + joined.weight.nbytes
    assert all(start <= one.weight.data.data_ptr() < end for one in layers)  # none is there twice
    assert memory != [one.weight.data.data_ptr() for one in layers]


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 5])
@torch.inference_mode()
def test_a_joined_product_is_the_products_side_by_side(rows: int, has_bias: bool) -> None:
    layers, x = [layer(outputs, outputs, has_bias=has_bias) for outputs in (32, 64)], torch.randn(rows, INPUTS)
    weights = [bnb.dequantize_4bit(one.weight.data, one.weight.quant_state) for one in layers]
    wanted = [nn.functional.linear(x, w, one.bias) for w, one in zip(weights, layers, strict=True)]
    torch.testing.assert_close(Nf4Linears(layers)(x), torch.cat(wanted, dim=-1), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_it_computes_in_the_type_that_the_layers_were_made_for() -> None:
    one = layer(32)
    one.compute_dtype = torch.bfloat16
    found = Nf4Linears([one])(torch.ones(1, INPUTS))
    assert found.dtype == torch.float32
    assert torch.equal(found, found.bfloat16().float())


@pytest.mark.parametrize(
    ("layers", "is_possible"),
    [
        ([layer(32), layer(64)], True),
        ([layer(32), layer(64, is_nested=True)], True),
        ([layer(32), layer(64, has_bias=True)], False),
        ([layer(32), layer(64, quant_type="fp4")], False),
        ([layer(32, blocksize=128)], False),
        ([layer(32, quant_storage=torch.float32)], False),
        ([layer(32), nn.Linear(INPUTS, 32)], False),
    ],
)
def test_layers_of_other_kinds_are_left_to_bitsandbytes(layers: list[nn.Module], is_possible: bool) -> None:
    assert can_join(layers) == is_possible


# --- what multiplies


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[Launch | None, float]], None]:
    """Sets how long a product takes; what is not named fails."""

    times: dict[Launch | None, float] = {}
    probe = SimpleNamespace(milliseconds=lambda launch: times.get(launch, float("inf")))
    monkeypatch.setattr(nf4, "_Probe", lambda *_: probe)

    def set_times(new: dict[Launch | None, float]) -> None:
        times.clear()
        times.update(new)

    return set_times


def chosen(rows: int = 16, inputs: int = 4096, dtype: torch.dtype = torch.float16) -> Launch | None:
    return fastest_launch.__wrapped__((4096, inputs), rows, dtype, torch.device("cpu"))


def test_the_fastest_launch_is_chosen_if_it_is_faster_than_bitsandbytes(measured: Callable) -> None:
    measured({None: 1.0, LAUNCHES[0]: 0.7, LAUNCHES[1]: 0.5})
    assert chosen() == LAUNCHES[1]
    measured({None: 0.4, LAUNCHES[0]: 0.7, LAUNCHES[1]: 0.5})
    assert chosen() is None
    measured({None: 0.4})  # none runs on this GPU, or none is right
    assert chosen() is None


def test_a_launch_that_does_not_divide_a_row_is_not_tried(measured: Callable) -> None:
    measured({None: 1.0} | dict.fromkeys(LAUNCHES, 0.5))
    assert chosen(inputs=64) is None
    assert chosen(inputs=128) not in (None, LAUNCHES[0])
    assert all(launch.fits(4096) for launch in LAUNCHES)
    assert sum(launch.fits(11_008) for launch in LAUNCHES) >= 2  # of the 7B


def test_without_triton_or_in_other_types_bitsandbytes_multiplies(
    measured: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured({None: 1.0} | dict.fromkeys(LAUNCHES, 0.5))
    assert chosen(dtype=torch.float32) is None
    assert chosen(dtype=torch.bfloat16) is not None
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert chosen() is None


def test_the_choice_goes_by_the_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row and more than 64 are left to bitsandbytes; the others go by the next larger number that was measured."""
    asked: list[int] = []

    def launch(shape: tuple[int, int], rows: int, dtype: torch.dtype, _: torch.device) -> Launch | None:
        assert (shape, dtype) == ((64, INPUTS), torch.float32)
        asked.append(rows)
        return LAUNCHES[0] if rows > 8 else None

    def product(x: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.full((len(x), 64), 7.0)

    monkeypatch.setattr(nf4, "fastest_launch", launch)
    monkeypatch.setattr(nf4_kernel, "product", product)
    linears = Nf4Linears([layer(32), layer(32, 1)])
    linears.is_on_gpu = True
    ours = [rows for rows in (0, 1, 2, 8, 9, 20, 64, 65) if (linears(torch.ones(rows, INPUTS)) == 7).all() and rows]
    assert ours == [9, 20, 64]
    assert asked == [2, 8, 16, 24, 64]


def test_what_a_graph_may_need_is_measured_before_it() -> None:
    assert set(PROBED_ROWS) < set(SIZES)


def test_a_batch_over_joined_layers_answers_as_one_over_the_weights_that_they_stand_for(
    tiny_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: on a CPU the engine calls layer by layer, and bitsandbytes may lay the weights out anew."""
    llava = Llava.load(tiny_folder, replace(ON_CPU, quantize="4bit"), is_local=True)
    made: list[int] = []
    init = Nf4Linears.__init__
    monkeypatch.setattr(products, "is_on_gpu", lambda linear: isinstance(linear, Linear4bit))
    monkeypatch.setattr(Nf4Linears, "__init__", lambda it, some: made.append(len(some)) or init(it, some))
    engine, requests = batched_engine_of(llava), mixed_requests(24)
    layers = llava.model.config.get_text_config().num_hidden_layers
    assert sorted(made) == sorted([3, 2, 1, 1] * layers)  # q/k/v, gate/up, output, down
    found = said(answers(engine, requests))
    asyncio.run(engine.aclose())
    for name, one in list(llava.model.named_modules()):
        if isinstance(one, Linear4bit):
            plain = nn.Linear(one.in_features, one.out_features, bias=False)
            plain.weight.data = bnb.dequantize_4bit(one.weight.data, one.weight.quant_state)
            llava.model.set_submodule(name, plain)
    engine = batched_engine_of(llava)
    assert said(answers(engine, requests)) == found
    asyncio.run(engine.aclose())
