"""The shortcuts of a batch compute what the long way computes."""

import resource
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the field's name
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from llava_demo.engines.batched.shortcuts import (
    FEW_ROWS,
    PLAIN_LAYERS,
    keep_freed_memory,
    last_layer_by_rows,
    products_on_a_cpu,
    skip_unseen_layers,
)

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass
class Asked:
    asked: Tensor


def model_of(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("config", [LlamaConfig, MistralConfig, Qwen2Config])
@torch.inference_mode()
def test_the_last_layer_gives_the_rows_that_are_asked_as_the_whole_layer_does(config: type[PreTrainedConfig]) -> None:
    model = model_of(config(**SIZES))
    ids, asked = torch.arange(20)[None], torch.tensor([4, 19])
    whole = model(ids, use_cache=False).logits[:, asked]
    assert last_layer_by_rows(model)
    rows = model(ids, use_cache=False, step=Asked(asked)).logits
    assert rows.shape == whole.shape
    assert torch.allclose(rows, whole, atol=1e-5)


def test_a_layer_that_computes_something_else_stays_as_it_is() -> None:
    from transformers import GraniteConfig

    model = model_of(GraniteConfig(**SIZES, residual_multiplier=0.5))
    before = model.get_decoder().layers[-1].forward
    assert not last_layer_by_rows(model)
    assert model.get_decoder().layers[-1].forward == before
    assert type(model.get_decoder().layers[-1]).__name__ not in PLAIN_LAYERS


@pytest.mark.parametrize("rows", [0, 1, 2, 16, FEW_ROWS, FEW_ROWS + 1])
@torch.inference_mode()
def test_few_rows_are_multiplied_rightly(rows: int) -> None:
    layer, x = nn.Linear(96, 160, bias=False), torch.randn(1, rows, 96)
    right = F.linear(x.double(), layer.weight.double())
    products_on_a_cpu(layer)
    assert "forward" in vars(layer)
    found = layer(x)
    assert found.shape == right.shape
    assert torch.allclose(found.double(), right, atol=1e-5)


@pytest.mark.parametrize("config", [LlamaConfig, MistralConfig, Qwen2Config])
@torch.inference_mode()
def test_an_mlp_computes_what_transformers_computes(config: type[PreTrainedConfig]) -> None:
    mlp, x = model_of(config(**SIZES)).get_decoder().layers[0].mlp, torch.randn(1, 7, 32)
    right = mlp(x)
    products_on_a_cpu(mlp)
    assert "forward" in vars(mlp)
    assert torch.allclose(mlp(x), right, atol=1e-6)


@torch.inference_mode()
def test_layers_of_the_vision_tower_that_are_not_looked_at_are_not_computed(tiny_folder: str) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    side = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, side, side)
    right = torch.cat(list(model.get_image_features(pixels).pooler_output))
    assert skip_unseen_layers(model) == 1
    with torch.profiler.profile() as profile:
        found = torch.cat(list(model.get_image_features(pixels).pooler_output))
    assert torch.equal(found, right)
    products = sum(event.count for event in profile.key_averages() if event.key == "aten::linear")
    assert products == 6 * (model.config.vision_config.num_hidden_layers - 1) + 2  # and the projector's


@pytest.mark.parametrize("seen", [-1, [-2, -1], 0])
def test_layers_that_may_be_looked_at_are_computed(tiny_folder: str, seen: int | list[int]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    model.config.vision_feature_layer = seen
    assert skip_unseen_layers(model) == 0


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Linear(8, 8, bias=False, dtype=torch.bfloat16)])
def test_other_layers_stay_as_they_are(layer: nn.Linear) -> None:
    products_on_a_cpu(layer)
    assert "forward" not in vars(layer)


def test_freed_memory_comes_back_without_page_faults() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(5_000_000)  # 20 MB, 4,900 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_freed_memory()
    faults()
    assert faults() < 5_000
