"""The way through a language model is the model's own: the same logits, whatever is left out on the way."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from llava_demo.engines.batched.attention import rotated
from llava_demo.engines.batched.step import Decoder

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


class WholePrompt:
    """One prompt without a cache; the last layer gives the rows `drawn`."""

    def __init__(self, drawn: Tensor, rotary: tuple[Tensor, Tensor]) -> None:
        self.drawn, self.rotary = drawn, [x[:, None] for x in rotary]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads = (x.transpose(0, 1)[None] for x in (rotated(query, *self.rotary), rotated(key, *self.rotary), value))
        attended = scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)[0].transpose(0, 1)
        return attended[self.drawn] if layer == SIZES["num_hidden_layers"] - 1 else attended


def model_of(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for weights in model.parameters():
        nn.init.normal_(weights, std=0.3)  # biases and norms as well, so that none can be left out unseen
    return model


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES),
        LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, head_dim=16),
        LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
        MistralConfig(**SIZES, sliding_window=None),
        Qwen2Config(**SIZES),
    ],
)
@torch.inference_mode()
def test_the_rows_that_are_drawn_from_get_the_models_own_logits(config: PreTrainedConfig) -> None:
    model = model_of(config)
    ids, drawn = torch.arange(20), torch.tensor([4, 19])
    decoder, hidden = Decoder(model), model.get_input_embeddings()(ids)
    logits = decoder(hidden, WholePrompt(drawn, decoder.rotary_of(ids, hidden)))
    torch.testing.assert_close(logits, model(ids[None], use_cache=False).logits[0, drawn], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (GraniteConfig(**SIZES, residual_multiplier=0.5), "layers of another kind, GraniteDecoderLayer"),
        (LlamaConfig(**SIZES, hidden_act="gelu"), "layers of another kind"),
        (MistralConfig(**SIZES, sliding_window=64), "looks at a window of the conversation only"),
        (
            Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1),
            "looks at a window of the conversation only",
        ),
        (
            LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
            "positions depend on the length of a conversation",
        ),
    ],
)
def test_a_model_that_computes_something_else_is_refused(config: PreTrainedConfig, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Decoder(model_of(config))


def test_the_model_stays_as_it_is() -> None:
    """`generate` runs on the same weights at the same time."""
    model = model_of(LlamaConfig(**SIZES))
    before = {name: vars(module).copy() for name, module in model.named_modules()}
    Decoder(model)
    assert {name: vars(module) for name, module in model.named_modules()} == before
