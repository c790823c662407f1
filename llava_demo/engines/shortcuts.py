"""Shortcuts through the language model of a batch: the same numbers for less work.

Of the last layer only those rows are asked that a token is drawn from: one of a whole prompt. And on a CPU a step of a
few chats has products of few rows, for which torch takes a slow way.
"""

import ctypes
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the field's name
from transformers import PreTrainedModel

# Layers that compute residual + attention, then residual + MLP, and nothing besides.
PLAIN_LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}
# torch 2.13 on two cores without AVX-512, float32, milliseconds of F.linear and of oneDNN's product for 1, 8, 16, 64
# and 640 rows: 6.9, 26, 29 and 4.3, 9.5, 13 (32064 x 1024); .60, 1.7, 2.0, 5.0, 22 and .33, .89, 1.3, 3.2, 26 (2816 x
# 1024). MKL, which F.linear takes, loses where there is no matrix to speak of.
FEW_ROWS = 64
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


def few_rows_by_one_dnn(model: nn.Module) -> None:
    """On a CPU, in float32, have the linear layers without bias compute few rows with oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return
    for layer in model.modules():
        is_plain = type(layer) is nn.Linear and layer.bias is None
        if is_plain and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32:
            layer.forward = partial(_linear, layer.weight)  # type: ignore[method-assign]


def _linear(weight: Tensor, x: Tensor) -> Tensor:
    """F.linear without a bias; the weight stays as it is, so that others can use it, too."""
    if 0 < x.numel() <= FEW_ROWS * x.shape[-1]:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return product
    return F.linear(x, weight)


def keep_freed_memory() -> None:
    """Have the C library keep some freed memory for the next step, where it can be told to.

    By itself it gives what a layer frees back to the system, and each page comes back as a fault and is cleared: 9 % of
    the time of a prompt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; not every system has it
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
