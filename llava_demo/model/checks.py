"""Checks for faulty checkpoints that transformers 5.23 would load anyway, or refuse only after minutes.

Each check raises a ValueError for the operator, whose subject is the checkpoint, and which holds no path.
"""

import json
import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

COMPUTED = ("position_ids", "inv_freq")  # in older checkpoints; transformers computes them
MAX_LAYERS = 1000  # an empty model with 100,000 takes minutes, and gigabytes of Python objects
MAX_SIDE = 4096  # pixels; a processor with a side of 1,000,000 took 3 GB and 20 s, and then failed
LARGE = 50_000_000  # weights; smaller models are loaded, which names the missing weights
SLACK = 1.1  # a config may describe this many times the stored weights: some are computed
KEPT_TOKENIZER = 0.9  # smallest share of embeddings with a token; the others pad a matrix to a round size

_log = logging.getLogger(__name__)


def check_config(raw: Any, config: PreTrainedConfig) -> None:
    """Refuse a config that describes another model than was meant, or one that takes minutes to construct.

    `raw` is the content of config.json: for a null, transformers uses its defaults, a model of 7 billion weights.
    """
    for name in ("text_config", "vision_config"):
        if name in raw and not isinstance(raw[name], dict):
            raise ValueError(f"{name} in its config.json is {json.dumps(raw[name])[:40]}; it must be an object")
    for name, value in _numbers(config.to_dict()):
        if name == "num_hidden_layers" and not 0 < value <= MAX_LAYERS:
            raise ValueError(f"{name} in its config.json is {value:,}; it must be from 1 to {MAX_LAYERS:,}")


def check_size(model: nn.Module, folder: Path) -> None:
    """Refuse a config that describes a larger model than the files hold, before memory is allocated.

    `model` has no weights yet.
    """
    described = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(map(_stored_numbers, folder.glob("*.safetensors"))) or _numbers_of_pickles(folder)
    if not stored:
        raise ValueError("there are no weights, neither .safetensors nor .bin")
    if described > max(LARGE, SLACK * stored):
        raise ValueError(f"its config.json describes a model of {described:,} weights, and its files hold {stored:,}")


def check_processor(processor: ProcessorMixin) -> None:
    """Refuse a processor that makes larger pictures than any vision tower sees."""
    pictures = processor.image_processor.to_dict()
    for name in ("size", "crop_size", "image_grid_pinpoints"):
        for _, side in _numbers({name: pictures.get(name)}):
            if not 0 < side <= MAX_SIDE:
                raise ValueError(f"{name} of its image processor has {side:,}; a side is from 1 to {MAX_SIDE:,} pixels")


def check_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse token ids without an embedding in the model, or without a token in the tokenizer."""
    embeddings, words, image = model.get_input_embeddings().weight.shape[0], len(tokenizer), model.config.image_token_id
    if words > embeddings:
        raise ValueError(f"its tokenizer has {words:,} ids, and its model embeddings for {embeddings:,}")
    if not (isinstance(image, int) and 0 <= image < words):
        raise ValueError(f"the image token's id in its config.json is {image}; its tokenizer has 0 to {words - 1:,}")
    ends = model.generation_config.eos_token_id
    if not all(isinstance(end, int) for end in (ends if isinstance(ends, list) else [ends]) if end is not None):
        raise ValueError("eos_token_id in its generation_config.json must be a number, or a list of numbers")
    if words < KEPT_TOKENIZER * embeddings:
        _log.warning("the tokenizer knows %d of the model's %d ids: is it this model's?", words, embeddings)


def check_weights(found: dict[str, Any]) -> None:
    """Refuse missing weights and weights of other shapes, which transformers replaces by random numbers with a warning.

    `found` is its `output_loading_info`.
    """
    unknown = [name for name in found["unexpected_keys"] if not name.endswith(COMPUTED)]
    others = [f"{name}, {list(here)} in place of {list(wanted)}" for name, here, wanted in found["mismatched_keys"]]
    _refuse("has no weights for", found["missing_keys"])
    _refuse("has weights that do not belong to it,", unknown)
    _refuse("has weights of other shapes than its config.json says:", others)


def check_numbers(model: nn.Module) -> None:
    """Refuse weights that are NaN or infinite, as a failed training leaves them.

    One pass over the weights is enough: a sum with such a number is NaN or infinite.
    """
    tensors = dict(_floating(model))
    sums = [tensor.sum(dtype=torch.float32) for tensor in tensors.values()]
    if not torch.stack(sums).isfinite().all():
        suspects = zip(tensors.items(), sums, strict=True)
        _refuse(
            "has NaN or infinity in", [n for (n, x), sum_ in suspects if not (sum_.isfinite() or x.isfinite().all())]
        )


def _floating(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    device = next(model.parameters()).device
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.device == device:
            yield name, tensor.detach()


def _refuse(what: str, names: Iterable[str]) -> None:
    if shown := sorted(names):
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        raise ValueError(f"the checkpoint {what} {', '.join(shown[:3])}{more}")


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """The whole numbers in a JSON value, each with the name of its innermost field."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield name, value


def _stored_numbers(file: Path) -> int:
    """The count of numbers in a safetensors file, by its header: 8 bytes of length, then JSON."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"{file.name} is no file of safetensors")
        header = json.loads(opened.read(length))
    return sum(_count(entry) for name, entry in header.items() if name != "__metadata__")


def _count(tensor: dict[str, Any]) -> int:
    """The count of a tensor's weights; quantized ones are packed into integers, with at least 4 bits each."""
    start, end = tensor["data_offsets"]
    return math.prod(tensor["shape"]) if "F" in tensor["dtype"] else 2 * (end - start)


def _numbers_of_pickles(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.bin")) // torch.float16.itemsize
