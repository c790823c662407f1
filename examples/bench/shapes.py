"""Checkpoints of true shapes with random weights: the same bytes move and the same kernels run as with trained ones.

torch and transformers are imported where they are needed, so that the names of the shapes cost nothing.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_demo.model import MINIATURE

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, ProcessorMixin

# The language model and the vision tower; both see 336 pixels in patches of 14, so that a picture takes 576 tokens.
_LLAVA_1_5: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "7b": (
        {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32},
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    ),
    "small": (
        {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16},
        {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6},
    ),
}
# llava-hf/llava-interleave-qwen-0.5b-hf: Qwen1.5-0.5B, whose head is its embeddings, and SigLIP so400m
_QWEN = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16}
_SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16}
_QWEN_VOCABULARY = 152_000
SHAPES = {
    "7b": "LLaVA-1.5-7B, 14 GB on disk",
    "interleave": "llava-interleave-qwen-0.5b and its 729 tokens a picture, 1.7 GB on disk",
    "small": "180 million weights and LLaVA-1.5's 576 tokens a picture",
    "miniature": "the built-in model's, 64 tokens a picture",
}
NEVER_SAID = 0.05  # times the size of the other rows: not zero, since the head may be the embeddings
ROW = 2.0  # norm of the head's rows and of embeddings: the standard deviation of a logit
SHARP = 1.3  # queries and keys are this many times their inputs, so that a token attends to some more than to others
ADDED = 1.9  # size of what all layers add, in that of the embeddings, before attention averages it
# A word is followed by the one that comes so many later in the vocabulary. The logits of the two stand out by CLEAR
# standard deviations; which of them is larger depends on everything before. Of 960 greedy choices 6 were otherwise in
# bfloat16; without followers, one of eight was.
FOLLOWERS, CLEAR = (1, 97), 10.0
_LANGUAGE_MODEL = "model.language_model."
_EMBEDDINGS, _LAST_NORM = f"{_LANGUAGE_MODEL}embed_tokens.weight", f"{_LANGUAGE_MODEL}norm.weight"
_SIGHT, _HEAD = "model.multi_modal_projector.linear_2.weight", "lm_head.weight"
_RANDOM_NUMBERS = 2**22 + 15  # drawn once and repeated, since 7 billion take minutes; no row's length divides it
_SHARD_BYTES = 2**30


def make_checkpoint(shape: str, folder: Path) -> Path:
    """Save a checkpoint of `shape` below `folder`, unless it is there; `--model` takes what is returned.

    Weights are made and saved piece by piece, so that the 7B takes 3 GB of memory.
    """
    target = folder / f"random-{shape}"
    if (target / "processor_config.json").exists():  # saved last
        return target
    target.mkdir(parents=True, exist_ok=True)
    config, processor = architecture(shape)
    _save_weights(config, processor.tokenizer, target)
    processor.save_pretrained(target)
    return target


def architecture(shape: str) -> "tuple[LlavaConfig, ProcessorMixin]":
    """The sizes of a shape, and a processor that fits them."""
    if shape in _LLAVA_1_5:
        return _llava_1_5(*_LLAVA_1_5[shape])
    return _miniature() if shape == "miniature" else _interleave()


def _miniature() -> "tuple[LlavaConfig, ProcessorMixin]":
    from transformers import AutoConfig, AutoProcessor

    return AutoConfig.from_pretrained(MINIATURE), AutoProcessor.from_pretrained(MINIATURE)


def _llava_1_5(text: dict[str, int], vision: dict[str, int]) -> "tuple[LlavaConfig, ProcessorMixin]":
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor

    from examples.bench import vocabulary
    from llava_demo.model.llava import MODEL_CARD_TEMPLATE

    side, patch = 336, 14
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=side, patch_size=patch, projection_dim=768),  # type: ignore[arg-type]
        text_config=LlamaConfig(
            **text,  # type: ignore[arg-type]
            vocab_size=vocabulary.VOCABULARY,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            bos_token_id=vocabulary.START_ID,
            eos_token_id=vocabulary.END_ID,
            pad_token_id=vocabulary.PAD_ID,
        ),
        image_token_index=vocabulary.IMAGE_ID,
        image_seq_length=(side // patch) ** 2,
        dtype="float16" if text["hidden_size"] == 4096 else "float32",
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer=vocabulary.make_tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=MODEL_CARD_TEMPLATE,
    )
    return config, processor


def _interleave() -> "tuple[LlavaConfig, ProcessorMixin]":
    from transformers import LlavaConfig, LlavaProcessor, Qwen2Config, SiglipImageProcessorPil, SiglipVisionConfig

    from examples.bench import vocabulary
    from llava_demo.model.llava import MODEL_CARD_TEMPLATE

    side, patch = 384, 14
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**_SIGLIP, image_size=side, patch_size=patch, vision_use_head=False),  # type: ignore[arg-type]
        text_config=Qwen2Config(
            **_QWEN,  # type: ignore[arg-type]
            num_key_value_heads=_QWEN["num_attention_heads"],
            vocab_size=_QWEN_VOCABULARY,
            max_position_embeddings=32_768,
            tie_word_embeddings=True,
            bos_token_id=vocabulary.START_ID,
            eos_token_id=vocabulary.END_ID,
            pad_token_id=vocabulary.PAD_ID,
        ),
        image_token_index=vocabulary.IMAGE_ID,
        image_seq_length=(side // patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
        dtype="float16",
    )
    processor = LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": side, "width": side}),
        tokenizer=vocabulary.make_tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=MODEL_CARD_TEMPLATE,
    )
    return config, processor


def _save_weights(config: "LlavaConfig", tokenizer: Any, target: Path) -> None:
    """Random weights in files of _SHARD_BYTES, with their index, the config and the defaults of generation."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):  # nothing is drawn by transformers, which takes minutes for the 7B
        model = LlavaForConditionalGeneration(config)
    model.tie_weights()
    files: dict[str, str] = {}
    for number, shard in enumerate(_shards(model, tokenizer)):
        name = f"model-{number + 1:05}.safetensors"
        save_file(shard, target / name, {"format": "pt"})
        files |= dict.fromkeys(shard, name)
    index = {"metadata": {}, "weight_map": files}
    (target / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config.architectures = [type(model).__name__]
    config.save_pretrained(target)
    text, defaults = config.text_config, model.generation_config
    defaults.bos_token_id, defaults.eos_token_id = text.bos_token_id, text.eos_token_id
    defaults.pad_token_id = text.pad_token_id
    defaults.save_pretrained(target)


def _shards(model: "LlavaForConditionalGeneration", tokenizer: Any) -> "Iterator[dict[str, torch.Tensor]]":
    import torch

    config, head = model.config, model.get_output_embeddings().weight  # may be the embeddings as well
    dtype = getattr(torch, str(config.dtype).removeprefix("torch.")) if config.dtype else torch.float32
    numbers = torch.randn(_RANDOM_NUMBERS, generator=torch.Generator().manual_seed(0)).to(dtype)
    signs = numbers[: config.text_config.hidden_size].sign()
    used, shard, embeddings = 0, {}, torch.empty(0)
    for name, planned in model.named_parameters():
        shard[name] = weights = torch.empty(planned.shape, dtype=dtype)
        _fill(name, weights, numbers.roll(-used), config.text_config)
        used = (used + weights.numel()) % _RANDOM_NUMBERS
        if name == _EMBEDDINGS:
            embeddings = weights
        elif name == _LAST_NORM:
            weights.copy_(signs)
        if planned is head:
            _make_clear(weights, embeddings, signs, _words(tokenizer))
        if sum(weights.nbytes for weights in shard.values()) > _SHARD_BYTES:
            yield shard
            shard = {}
    yield shard


def _fill(name: str, weights: "torch.Tensor", numbers: "torch.Tensor", config: "LlamaConfig") -> None:
    """Matrices get random numbers that keep the size of what passes through, biases 0, norms 1."""
    if weights.ndim == 1:
        weights.fill_(0 if name.endswith("bias") else 1)
        return
    flat, inputs = weights.view(-1), weights[0].numel()
    for start in range(0, flat.numel(), len(numbers)):
        part = flat[start : start + len(numbers)]
        part.copy_(numbers[: len(part)])
    weights.mul_(_gain(name, config) * inputs**-0.5)


def _gain(name: str, config: "LlamaConfig") -> float:
    """The size of what a matrix gives, in that of its inputs."""
    if name == _SIGHT:  # features are as large as embeddings
        return ROW * config.hidden_size**-0.5
    if name in (_EMBEDDINGS, _HEAD):
        return ROW
    if not name.startswith(_LANGUAGE_MODEL):
        return 1.0
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        return SHARP
    is_added = name.endswith(("o_proj.weight", "down_proj.weight"))
    return ADDED * ROW * (config.hidden_size * config.num_hidden_layers) ** -0.5 if is_added else 1.0


def _make_clear(head: "torch.Tensor", embeddings: "torch.Tensor", signs: "torch.Tensor", words: "torch.Tensor") -> None:
    """Add to each word's row of the head the embeddings of the words that it follows; shrink the rows of all others.

    The last norm multiplies by `signs`: without them a head that is the embeddings would repeat each word for ever.
    """
    followed = sum(embeddings[words.roll(distance)] for distance in FOLLOWERS) * signs
    kept = head[words] + CLEAR * len(signs) ** -0.5 * followed
    head.mul_(NEVER_SAID)
    head[words] = kept


def _words(tokenizer: Any) -> "torch.Tensor":
    """The ids that answers are made of. They begin with a space, so that each is text which a stream shows at once."""
    import torch

    from examples.bench.vocabulary import SPACE

    vocabulary = tokenizer.get_vocab().items()
    return torch.tensor(sorted(number for word, number in vocabulary if word.startswith(SPACE) and word != SPACE))
