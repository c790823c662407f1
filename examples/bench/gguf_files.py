"""A shape as GGUF files for llama.cpp, with random weights: a language model without a vocabulary, and an mmproj.

Needs the package `gguf`. Names and keys are those of convert_hf_to_gguf.py and tools/mtmd/clip.cpp in llama.cpp
as llama-cpp-python 0.3.36 has it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from examples.bench.shapes import SHARP, architecture

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from numpy.typing import NDArray
    from transformers import LlavaConfig

    Tensors = Iterator[tuple[str, tuple[int, ...]]]  # names and sizes, the inputs last

QUANTIZATIONS = ("Q8_0", "Q4_0")
ARCHITECTURES = {"LlamaConfig": "llama", "Qwen2Config": "qwen2"}
_ROWS = 64  # rows of random weights that are drawn, quantized and repeated


def make_gguf(shape: str, quantization: str, folder: Path) -> tuple[Path, Path]:
    """The language model of `shape`, quantized, and its vision tower in 16 bits; made where they are missing."""
    config, processor = architecture(shape)
    model, tower = folder / f"random-{shape}-{quantization}.gguf", folder / f"random-{shape}-mmproj-F16.gguf"
    if not model.exists():
        _write(model, *_language_model(config), quantization)
    if not tower.exists():
        _write(tower, *_vision_tower(config, processor.image_processor), "F16")
    return model, tower


def _language_model(config: "LlavaConfig") -> "tuple[str, dict[str, Any], Tensors]":
    text = config.text_config
    keys = {
        "context_length": text.max_position_embeddings,
        "embedding_length": text.hidden_size,
        "block_count": text.num_hidden_layers,
        "feed_forward_length": text.intermediate_size,
        "attention.head_count": text.num_attention_heads,
        "attention.head_count_kv": text.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(text.rms_norm_eps),
        "rope.dimension_count": text.hidden_size // text.num_attention_heads,
        "rope.freq_base": float(text.rope_parameters["rope_theta"]),
        "vocab_size": text.vocab_size,
    }
    name = ARCHITECTURES[type(text).__name__]
    return name, {f"{name}.{key}": value for key, value in keys.items()}, _language_tensors(text, name == "qwen2")


def _language_tensors(text: Any, has_bias: bool) -> "Tensors":
    width, inner, vocabulary = text.hidden_size, text.intermediate_size, text.vocab_size
    yield "token_embd.weight", (vocabulary, width)
    for number in range(text.num_hidden_layers):
        layer = f"blk.{number}."
        yield f"{layer}attn_norm.weight", (width,)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"{layer}{part}.weight", (width, width)
            if has_bias and part != "attn_output":
                yield f"{layer}{part}.bias", (width,)
        yield f"{layer}ffn_norm.weight", (width,)
        yield f"{layer}ffn_gate.weight", (inner, width)
        yield f"{layer}ffn_up.weight", (inner, width)
        yield f"{layer}ffn_down.weight", (width, inner)
    yield "output_norm.weight", (width,)
    if not text.tie_word_embeddings:
        yield "output.weight", (vocabulary, width)


def _vision_tower(config: "LlavaConfig", processor: Any) -> "tuple[str, dict[str, Any], Tensors]":
    vision, seen = config.vision_config, config.vision_feature_layer
    layers = vision.num_hidden_layers + 1 + seen  # llama.cpp's converter leaves out those behind the features, too
    keys = {
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": vision.model_type.startswith("siglip"),  # else CLIP's quick approximation of it
        "clip.vision.image_size": vision.image_size,
        "clip.vision.patch_size": vision.patch_size,
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.projection_dim": config.text_config.hidden_size,
        "clip.vision.block_count": layers,
        "clip.vision.attention.head_count": vision.num_attention_heads,
        "clip.vision.attention.layer_norm_epsilon": float(vision.layer_norm_eps),
        "clip.vision.image_mean": [float(x) for x in processor.image_mean],
        "clip.vision.image_std": [float(x) for x in processor.image_std],
    }
    return "clip", keys, _vision_tensors(vision, layers, config.text_config.hidden_size)


def _vision_tensors(vision: Any, layers: int, text_width: int) -> "Tensors":
    width, inner, patches = vision.hidden_size, vision.intermediate_size, (vision.image_size // vision.patch_size) ** 2
    is_clip = vision.model_type.startswith("clip")
    yield "v.patch_embd.weight", (width, 3, vision.patch_size, vision.patch_size)
    yield "v.position_embd.weight", (patches + is_clip, width)
    if is_clip:
        yield "v.class_embd", (width,)
        yield from _norm("v.pre_ln", width)
    else:
        yield "v.patch_embd.bias", (width,)
    for number in range(layers):
        layer = f"v.blk.{number}."
        yield from _norm(f"{layer}ln1", width)
        yield from _norm(f"{layer}ln2", width)
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            yield from _linear(layer + part, width, width)
        yield from _linear(f"{layer}ffn_up", inner, width)
        yield from _linear(f"{layer}ffn_down", width, inner)
    yield from _linear("mm.0", text_width, width)
    yield from _linear("mm.2", text_width, text_width)


def _norm(name: str, width: int) -> "Tensors":
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _linear(name: str, outputs: int, inputs: int) -> "Tensors":
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _write(path: Path, architecture: str, keys: dict[str, Any], tensors: "Tensors", quantization: str) -> None:
    """Write one tensor after the other: the 7B takes little memory."""
    from gguf import GGMLQuantizationType, GGUFWriter

    unfinished = path.with_suffix(".unfinished")
    writer = GGUFWriter(unfinished, architecture)
    for key, value in keys.items():
        _add(writer, key, value)
    if architecture != "clip":
        writer.add_tokenizer_model("no_vocab")
    sizes, made = list(tensors), _Weights(GGMLQuantizationType[quantization])
    for name, size in sizes:
        first = made.of(name, size)
        writer.add_tensor_info(name, first.shape, first.dtype, first.nbytes, raw_dtype=made.kind_of(name, size))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, size in sizes:
        writer.write_tensor_data(made.of(name, size))
    writer.close()
    unfinished.rename(path)


def _add(writer: "GGUFWriter", key: str, value: Any) -> None:
    kinds: dict[type, Any] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    kinds[type(value)](key, value)


class _Weights:
    """Random weights as bytes: matrices in one quantization, vectors, and what is no matrix, in float32."""

    def __init__(self, kind: Any) -> None:
        self._kind, self._noise = kind, np.random.default_rng(0)
        self._rows: dict[int, NDArray[Any]] = {}  # a few quantized ones for each number of inputs

    def kind_of(self, name: str, size: tuple[int, ...]) -> Any:
        is_matrix = len(size) == 2 and "position" not in name
        return self._kind if is_matrix else type(self._kind).F32

    def of(self, name: str, size: tuple[int, ...]) -> "NDArray[Any]":
        """The weights of a tensor; norms are 1, biases 0."""
        if len(size) == 1:
            return np.full(size, 0.0 if name.endswith("bias") else 1.0, np.float32)
        if self.kind_of(name, size) != self._kind:
            return self._noise.standard_normal(size, np.float32) * np.float32(size[-1] ** -0.5)
        return np.resize(self._quantized(size[-1]), (size[0], self._quantized(size[-1]).shape[1]))

    def _quantized(self, inputs: int) -> "NDArray[Any]":
        from gguf.quants import quantize

        if inputs not in self._rows:
            rows = self._noise.standard_normal((_ROWS, inputs), np.float32) * np.float32(SHARP * inputs**-0.5)
            self._rows[inputs] = quantize(rows, self._kind)
        return self._rows[inputs]
