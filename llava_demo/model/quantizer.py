"""How transformers quantizes a checkpoint while it loads, and the copy in 8 bits that loads again in seconds."""

import logging
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import QuantizationConfigMixin

from llava_demo.model.device import Plan
from llava_demo.model.int8 import Int8Linear, fastest_kernel, quantized
from llava_demo.model.products import HugePages, give_back_freed_memory

METHOD = "llava_demo_int8"
QUANTIZED = ("weight", "scales", "balance")  # replace a layer's weight
KEPT_FILE = "1GB"  # file size in a kept copy: a file stays in memory until all its weights are packed
# Left in 16 bits: 0.4 GB more for the 7B, and better vision. The patterns match whole names: a plain "vision_tower"
# would match nothing inside model.vision_tower, and transformers 5.23 would quantize it silently.
_NOT_QUANTIZED = [r".*vision_tower", r".*multi_modal_projector", r"lm_head"]

_log = logging.getLogger(__name__)


class StoredEmbedding(nn.Module):
    """In place of `nn.Embedding`: rows stay in 16 bits, as they are stored, and are returned in float32."""

    weight: Tensor

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(rows, width, dtype=dtype))  # a parameter would count as model.dtype

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids].float()


@register_quantization_config(METHOD)
class Int8Config(QuantizationConfigMixin):
    """Products of 8-bit integers on a CPU, see `model.int8`; stands in the config of a kept copy.

    `embedding_dtype` is the type of the checkpoint's embeddings, if they stay in 16 bits; None makes them float32.
    """

    def __init__(self, embedding_dtype: str | None = None, quant_method: str = METHOD, **_: Any) -> None:
        self.embedding_dtype = embedding_dtype
        self.quant_method = quant_method  # type: ignore[assignment]  # the base names only its own methods


@register_quantizer(METHOD)
class Int8Quantizer(HfQuantizer):
    """Turns linear layers into `Int8Linear`s: those of language model, head, vision tower and projector.

    The head is converted last: it may be tied to the embeddings, which transformers does after loading.
    """

    quantization_config: Int8Config

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, Int8Linear) and name == "weight" and not self.pre_quantized

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize()

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        head = model.get_output_embeddings()
        with torch.device("meta"):
            for name, module in list(model.named_modules()):
                if type(module) is nn.Linear and (self.pre_quantized or module is not head):
                    layer = Int8Linear(module.in_features, module.out_features, module.bias is not None)
                    model.set_submodule(name, layer)
            if self.pre_quantized and self.quantization_config.embedding_dtype:
                rows, width = model.get_input_embeddings().weight.shape
                model.set_input_embeddings(StoredEmbedding(rows, width, self._embedding_dtype))
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        if not self.pre_quantized:
            model.set_output_embeddings(Int8Linear.of(model.get_output_embeddings()))
            model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
            if self.quantization_config.embedding_dtype:
                weight = model.get_input_embeddings().weight.detach()
                rows, width = weight.shape
                embedding = StoredEmbedding(rows, width, self._embedding_dtype)
                embedding.weight.copy_(weight)
                model.set_input_embeddings(embedding)
        return model

    @property
    def _embedding_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.quantization_config.embedding_dtype or "float32")
        return dtype


def quantization_of(plan: Plan, stored: torch.dtype | None) -> QuantizationConfigMixin | None:
    """How transformers quantizes a checkpoint, `stored` in that type, while it loads; None where it does not."""
    if plan.is_int8_on_cpu:
        is_short = stored in (torch.float16, torch.bfloat16)
        return Int8Config(str(stored).removeprefix("torch.") if is_short else None)
    if plan.quantize == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=plan.dtype,
            # No double quantization: it saves 0.3 GB of the 7B and cost a fifth of the speed (bitsandbytes 0.45, H100).
            llm_int8_skip_modules=_NOT_QUANTIZED,
        )
    if plan.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_NOT_QUANTIZED)
    return None


class _Quantize(ConversionOps):
    """Quantizes a weight as soon as it is read."""

    def convert(self, input_dict: dict[str, list[Tensor]], full_layer_name: str = "", **_: Any) -> dict[str, Tensor]:
        ((_name, (weight,)),) = input_dict.items()
        layer = full_layer_name.removesuffix("weight")
        return {layer + name: value for name, value in zip(QUANTIZED, quantized(weight), strict=True)}


_UNFINISHED, _LOCK = "unfinished-", "lock"  # a folder with a copy that is being written, and a file in it


def delete_unfinished(folder: Path) -> None:
    """Delete what processes that were killed have left in `folder`; they no longer hold the locks."""
    for left in folder.glob(f"{_UNFINISHED}*"):
        with suppress(OSError, Timeout, NotImplementedError), FileLock(left / _LOCK, blocking=False):
            shutil.rmtree(left)


def keep(model: PreTrainedModel, folder: Path) -> None:
    """Save a model, before its weights are packed, as a checkpoint that loads in seconds.

    Where it cannot be saved, as on a full disk, nothing stays there, and the log says so.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_UNFINISHED) as unfinished:
            saved = Path(unfinished) / "copy"
            with FileLock(Path(unfinished) / _LOCK):
                model.save_pretrained(saved, save_original_format=False, max_shard_size=KEPT_FILE)
                saved.rename(folder)
    except (OSError, SafetensorError, NotImplementedError) as error:  # the last: locks are unknown to the file system
        if not folder.exists():  # else another server has made the same copy meanwhile
            _log.warning("the copy in 8 bits is not kept: %s", getattr(error, "strerror", None) or error)


def pack_weights(model: nn.Module) -> None:
    """Lay out the weights of all `Int8Linear`s for the fastest product of this machine, layer by layer.

    All other tensors are copied, since a file stays mapped as long as one of its tensors is used. They are replaced by
    new tensors: assigning `data` would keep a reference to the file's tensor, as the base of a view.
    """
    kernel, pages = fastest_kernel(), HugePages()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
        is_int8 = isinstance(module, Int8Linear)
        if is_int8:
            module.pack(kernel)
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.layout is torch.strided:  # oneDNN's weights are not, and are copies already
                setattr(module, name, pages.copy(buffer) if is_int8 and name == "weight" else buffer.clone())
        if is_int8:
            give_back_freed_memory()
