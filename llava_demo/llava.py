"""Llava: one checkpoint with its weights, its processor and its prompt format. Knows no queue, no sampling, no HTTP."""

import logging
from collections.abc import Sequence
from typing import Any

import jinja2
import PIL.Image
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from llava_demo.chat import Message
from llava_demo.device import Plan
from llava_demo.errors import InvalidRequest
from llava_demo.images import Image
from llava_demo.picture_modes import PictureMode, prepared

_log = logging.getLogger(__name__)

# Of the model card of llava-hf/llava-1.5-7b-hf: USER: <image>\n<prompt> ASSISTANT:
MODEL_CARD_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
NOT_QUANTIZED = ["vision_tower", "multi_modal_projector", "lm_head"]  # 0.4 GB more for the 7B, and a better sight


class Llava:
    """A model that sees, with what belongs to it.

    `context_tokens` is how many tokens it reads and writes in all, `image_tokens` what one ordinary picture takes of
    them, `side` the side in pixels of the square that its vision tower looks at.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, mode: PictureMode = "pad") -> None:
        self.model, self.processor = model.eval(), processor
        self._template = None if processor.chat_template else MODEL_CARD_TEMPLATE
        self._start = processor.tokenizer("").input_ids  # what the tokenizer puts before every text: <s>, or nothing
        defaults = model.generation_config
        model.generation_config = GenerationConfig(  # the checkpoint's sampling defaults are not ours
            bos_token_id=defaults.bos_token_id,
            eos_token_id=defaults.eos_token_id,
            pad_token_id=defaults.pad_token_id if defaults.pad_token_id is not None else self.tokenizer.pad_token_id,
        )
        self.context_tokens: int = model.config.get_text_config().max_position_embeddings
        self.image_token_id: int = model.config.image_token_id
        values = self._pixel_values(PIL.Image.new("RGB", (640, 480)))
        self.side: int = values.shape[-1]
        # A processor that cuts a picture into tiles (LLaVA-NeXT, OneVision) shows all of it already.
        self.mode: PictureMode = mode if values.ndim == 4 else "crop"
        self.image_tokens = self._count_image_tokens()

    @classmethod
    def load(cls, checkpoint: str, plan: Plan, mode: PictureMode = "pad", is_local: bool = False) -> "Llava":
        """Load from the Hub or from a folder, as planned; with `is_local` the Hub is not asked.

        Raises:
            OSError, ValueError, ImportError: as transformers raises them.
        """
        processor = AutoProcessor.from_pretrained(checkpoint, local_files_only=is_local)
        model = AutoModelForImageTextToText.from_pretrained(
            checkpoint,
            local_files_only=is_local,
            dtype=plan.dtype,
            device_map="auto" if plan.hardware.has_gpu else "cpu",
            attn_implementation=plan.attention,
            quantization_config=_quantization(plan),
        )
        return cls(model, processor, mode)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids after which an answer is complete."""
        ids = self.model.generation_config.eos_token_id
        return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])

    def prompt(self, messages: Sequence[Message]) -> BatchFeature:
        """What `model.generate` takes for the conversation up to `ASSISTANT:`, on the model's device.

        `input_ids` and `attention_mask` are (1, tokens), every picture already as many image ids as it has feature
        rows; `pixel_values` is there if pictures are. A text that spells a control token (`<image>`, `</s>`) is encoded
        as plain text. `USER:` and `ASSISTANT:` are plain text in LLaVA-1.5 anyway and stay what they are.

        Raises:
            InvalidRequest: the model's template refuses the conversation, as some do with system messages.
        """
        inputs = self._rendered([self._turn(message) for message in messages])
        ids = inputs["input_ids"]
        if ids[0, : len(self._start)].tolist() != self._start:  # a template may write <s> itself
            ids = torch.cat([torch.tensor([self._start]), ids], dim=1)
        inputs["input_ids"], inputs["attention_mask"] = ids, torch.ones_like(ids)
        return inputs.to(self.model.device, self.model.dtype)

    def seen(self, image: Image) -> PIL.Image.Image:
        """The square that the vision tower looks at, `side` x `side` pixels."""
        processor = self.processor.image_processor
        values = self._pixel_values(self._prepared(image)).flatten(0, -4)[0]  # of several tiles the first: the whole
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (processor.image_mean, processor.image_std))
        pixels = ((values * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return PIL.Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def _turn(self, message: Message) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [{"type": "image", "image": self._prepared(image)} for image in message.images]
        if message.text:
            parts.append({"type": "text", "text": message.text})
        return {"role": message.role, "content": parts}

    def _rendered(self, turns: list[dict[str, Any]]) -> BatchFeature:
        try:
            rendered: Any = self.processor.apply_chat_template(
                turns,
                chat_template=self._template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                sanitize_control_tokens=True,
                # Sanitizing encodes piece by piece, and `<s>` may stand before the first only: `prompt` puts it there.
                processor_kwargs={"add_special_tokens": False},
            )
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"This model does not take such a conversation: {error}", "messages") from error
        return rendered

    def _prepared(self, image: Image) -> PIL.Image.Image:
        return prepared(image.pixels, self.mode, self.side, self.processor.image_processor.resample)

    def _pixel_values(self, picture: PIL.Image.Image) -> torch.Tensor:
        return self.processor.image_processor([picture], return_tensors="pt").pixel_values

    def _count_image_tokens(self) -> int:
        picture = PIL.Image.new("RGB", (640, 480))
        ids = self._rendered([{"role": "user", "content": [{"type": "image", "image": picture}]}])["input_ids"]
        return int((ids == self.image_token_id).sum())


def _quantization(plan: Plan) -> BitsAndBytesConfig | None:
    if plan.quantize == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=plan.dtype,
            llm_int8_skip_modules=NOT_QUANTIZED,
        )
    if plan.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=NOT_QUANTIZED)
    return None
