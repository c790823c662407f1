"""Shortcuts through a model: the same numbers for less work.

What nobody looks at is not computed: the vision tower's last layer, and of the language model's last layer all rows but
those that a token is drawn from, which is one of a whole prompt. And on a CPU a step of a few chats has products of few
rows, for which torch takes a slow way.
"""

import ctypes
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

# Layers that compute residual + attention, then residual + MLP, and nothing besides.
PLAIN_LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}
PLAIN_MLPS = {"LlamaMLP", "MistralMLP", "Qwen2MLP"}
ENCODER_LAYERS = {"CLIPEncoderLayer", "SiglipEncoderLayer"}
# torch 2.13 on two cores without AVX-512, float32, milliseconds of F.linear and of oneDNN's product: with 32064 x 1024
# weights and 1, 8, 16 rows 6.9, 26, 29 and 4.3, 9.5, 13; with 2816 x 1024 and 1, 16, 117, 200, 256 rows .60, 2.0, 6.0,
# 8.5, 10.7 and .33, 1.3, 4.6, 8.3, 11.6. MKL, which F.linear takes, loses where one of the matrices is narrow.
FEW_ROWS = 192
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT_BYTES, _LARGE_BYTES = 2**28, 2**25


def last_layer_by_rows(model: PreTrainedModel) -> bool:
    """Have the last layer of a language model give only the rows that `step.asked`; False where it is no plain one.

    `step` is the keyword that all its layers get; see `paged_attention.Step`.
    """
    last: nn.Module = model.get_decoder().layers[-1]
    if type(last).__name__ not in PLAIN_LAYERS:
        return False
    last.forward = partial(_by_rows, last)  # type: ignore[method-assign]
    return True


def _by_rows(layer: Any, hidden_states: Tensor, **settings: Any) -> Tensor:
    """transformers 5.23's forward of PLAIN_LAYERS: (1, rows, width) in, (1, rows that are asked, width) out."""
    attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **settings)
    asked = settings["step"].asked
    hidden_states = hidden_states[:, asked] + attended[:, asked]
    return hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))


def skip_unseen_layers(model: PreTrainedModel) -> int:
    """Have a vision tower not compute the layers behind the one whose output is looked at; returns how many.

    LLaVA looks at the last but one (`vision_feature_layer` is -2), and transformers 5.23 computes them all.
    """
    seen = getattr(model.config, "vision_feature_layer", None)
    layers = [m for m in model.model.vision_tower.modules() if type(m).__name__ in ENCODER_LAYERS]
    if not layers or not isinstance(seen, int) or seen >= 0:
        return 0
    unseen = layers[len(layers) + seen + 1 :]
    for layer in unseen:
        layer.forward = lambda hidden_states, *_, **__: hidden_states  # type: ignore[method-assign]
    return len(unseen)


def products_on_a_cpu(model: nn.Module) -> None:
    """On a CPU, have linear layers (in float32, without a bias) and MLPs compute their products in a faster way."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        if _is_plain(module):
            module.forward = partial(_linear, module.weight)
        elif type(module).__name__ in PLAIN_MLPS and type(module.act_fn).__name__ == "SiLUActivation":
            module.forward = partial(_mlp, module)


def _is_plain(module: Any) -> bool:
    is_linear = type(module) is nn.Linear and module.bias is None
    return is_linear and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32


def _linear(weight: Tensor, x: Tensor) -> Tensor:
    """F.linear without a bias; the weight stays as it is, so that others can use it, too."""
    if 0 < x.numel() <= FEW_ROWS * x.shape[-1]:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return product
    return functional.linear(x, weight)


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    """transformers' forward of PLAIN_MLPS, with two tensors fewer to fill."""
    product: Tensor = mlp.down_proj(functional.silu(mlp.gate_proj(x), inplace=True).mul_(mlp.up_proj(x)))
    return product


def keep_freed_memory() -> None:
    """Have the C library keep some freed memory for the next step, where it can be told to.

    By itself it gives what a layer frees back to the system, and each page comes back as a fault and is cleared: 9 % of
    the time of a prompt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; not every system has it
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
