"""`Decoder`: one step of a language model over the rows of many requests, from embeddings to logits.

The weights are those of the transformers model, which stays as it is; only the forward pass is ours.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from llava_demo.model import native
from llava_demo.model.products import joined, native_layers, product_of

# transformers' layers that compute exactly what `Decoder.forward` computes
PLAIN_LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}
FIXED_ROTARY = {"default", "linear", "llama3", "yarn"}  # the others depend on the length of a conversation


class Attention(Protocol):
    """The attention of one step: where its keys and values are written, and which keys each row sees."""

    drawn: Tensor | slice  # rows from which tokens are drawn; the last layer returns only these
    decode: Callable[[Sequence[native.Layer], Tensor], Tensor] | None  # `native.decode`, where it can do all rows

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Each (rows, heads, width), before rotary positions; returns (rows, heads, width)."""


class _Layer:
    """The parts of a transformers layer that a step needs."""

    def __init__(self, layer: nn.Module) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.head_width: int = attention.head_dim  # type: ignore[assignment]
        self.norms = layer.input_layernorm, layer.post_attention_layernorm
        self.query_key_value = joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.output, self.down = product_of(attention.o_proj), product_of(mlp.down_proj)
        self.gate_and_up = joined([mlp.gate_proj, mlp.up_proj])


def add_norm(hidden: Tensor, delta: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """`hidden` + `delta`, both (rows, width), and its norm."""
    hidden = hidden if delta is None else hidden + delta
    return hidden, norm(hidden)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both (rows, width)."""
    product: Tensor = functional.silu(gate, inplace=True).mul_(up)
    return product


class Decoder(nn.Module):
    """The language model of `model`, its head included.

    `add_norm` and `gated` are those above, or the same by `kernels` on a GPU, by `native.c` on a CPU.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises:
        ValueError: the model computes something else; the message says what it is.
        """
        super().__init__()
        check_decoder(model)
        decoder = model.get_decoder()
        self.rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = decoder.rotary_emb
        self._layers = [_Layer(layer) for layer in decoder.layers]
        self._norm = decoder.norm
        self._head = product_of(model.get_output_embeddings())
        self.add_norm, self.gated = add_norm, gated
        self.native = native_layers(decoder.layers)

    def rotary_of(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of `positions` (rows), both (rows, width of a head), in the type of `like`."""
        cosine, sine = self.rotary(like, positions[None])
        return cosine[0], sine[0]

    def forward(self, hidden: Tensor, attention: Attention) -> Tensor:
        """Embeddings (rows, width) in, logits (drawn rows, vocabulary) in float32 out."""
        delta: Tensor | None = None  # the output of the previous layer's MLP, to be added to `hidden`
        if self.native is not None and attention.decode is not None:
            return self._logits(hidden, attention.decode(self.native, hidden))
        for number, layer in enumerate(self._layers):
            hidden, x = self.add_norm(hidden, delta, layer.norms[0])
            heads = (x.unflatten(-1, (-1, layer.head_width)) for x in layer.query_key_value(x))
            attended = attention(number, *heads).flatten(1)
            if layer is self._layers[-1]:
                hidden = hidden[attention.drawn]
            hidden, x = self.add_norm(hidden, layer.output(attended), layer.norms[1])
            delta = layer.down(self.gated(*layer.gate_and_up(x)))
        return self._logits(hidden, delta)

    def _logits(self, hidden: Tensor, delta: Tensor | None) -> Tensor:
        return self._head(self.add_norm(hidden, delta, self._norm)[1]).float()


def check_decoder(model: PreTrainedModel) -> None:
    """Raises:
    ValueError: `Decoder` would compute something else than the model.
    """
    config, layer = model.config.get_text_config(), model.get_decoder().layers[-1]
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        raise ValueError("the model is spread over several devices")
    if devices.pop().type not in ("cpu", "cuda"):
        raise ValueError("only CPUs and NVIDIA GPUs can")
    only_kind = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    if set(getattr(config, "layer_types", None) or [only_kind]) != {"full_attention"}:
        raise ValueError("the language model looks at a window of the conversation only")
    rotary = getattr(config, "rope_parameters", None) or {}
    if "mrope_section" in rotary:
        raise ValueError("the language model gives pictures positions in three dimensions")
    if rotary.get("rope_type", "default") not in FIXED_ROTARY:
        raise ValueError("the language model's positions depend on the length of a conversation")
    if type(layer).__name__ not in PLAIN_LAYERS or config.hidden_act != "silu":
        raise ValueError(f"the language model has layers of another kind, {type(layer).__name__}")
