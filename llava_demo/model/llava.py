"""Llava: a checkpoint's weights, processor and prompt format. It knows no queue, no sampling, no HTTP."""

import importlib.util
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import PIL.Image
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LlavaOnevisionProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from llava_demo.chat import Message
from llava_demo.errors import InvalidRequest
from llava_demo.images import Image, PictureMode, fit_of
from llava_demo.model import checks, native
from llava_demo.model.device import Plan, prefer_flash_to_cudnn
from llava_demo.model.quantizer import delete_unfinished, keep, pack_weights, quantization_of

# The format on the model card of llava-hf/llava-1.5-7b-hf: USER: <image>\n<prompt> ASSISTANT:
MODEL_CARD_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ENCODER_LAYERS = {"CLIPEncoderLayer", "SiglipEncoderLayer"}


class Llava:
    """A vision-language model with its processor.

    `context_tokens` is the number of tokens of prompt and answer, `image_tokens` the number for an ordinary picture,
    `side` the side in pixels of the square that the vision tower sees. `fit` makes that square of a picture; where it
    is None, the processor does.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, mode: PictureMode = "pad") -> None:
        self.model, self.processor = model.eval(), processor
        _skip_unseen_layers(model)
        template = processor.chat_template
        self._template = (template.get("default") if isinstance(template, dict) else template) or MODEL_CARD_TEMPLATE
        self._start = processor.tokenizer("").input_ids  # what the tokenizer puts before every text: <s>, or nothing
        checks.check_ids(model, self.tokenizer)
        checks.check_processor(processor)
        defaults = model.generation_config
        model.generation_config = GenerationConfig(  # the checkpoint's sampling defaults are not ours
            bos_token_id=defaults.bos_token_id,
            eos_token_id=defaults.eos_token_id,
            pad_token_id=defaults.pad_token_id if defaults.pad_token_id is not None else self.tokenizer.pad_token_id,
        )
        self.context_tokens: int = model.config.get_text_config().max_position_embeddings
        self.image_token_id: int = model.config.image_token_id
        self.vocabulary: int = model.get_output_embeddings().out_features  # number of logits
        picture = PIL.Image.new("RGB", (640, 480))
        values = self._pixel_values(picture)
        if values.ndim not in (4, 5):
            raise ValueError(f"this is no LLaVA: its pictures have {values.ndim} dimensions")
        self.side: int = values.shape[-1]
        # A processor that cuts pictures into tiles (LLaVA-NeXT, OneVision) shows the whole picture in any mode.
        self.has_tiles = values.ndim == 5
        self.mode: PictureMode = "crop" if self.has_tiles else mode
        self.fit = fit_of(self.mode, self.side, processor.image_processor.resample)
        runs, _ = self._encoded([picture])
        self.image_tokens = len(runs[0])
        if self.context_tokens <= self.image_tokens:
            raise ValueError(f"it holds {self.context_tokens:,} tokens, and a picture takes {self.image_tokens:,}")

    @classmethod
    def load(
        cls, checkpoint: str, plan: Plan, mode: PictureMode = "pad", is_local: bool = False, kept: Path | None = None
    ) -> "Llava":
        """Load from the Hub or from a folder; see `loaded`."""
        sketch = cls.sketch(checkpoint, config_of(checkpoint, is_local), mode, is_local)
        return sketch.loaded(checkpoint, plan, is_local, kept)

    @classmethod
    def sketch(
        cls, checkpoint: str, config: PreTrainedConfig, mode: PictureMode = "pad", is_local: bool = False
    ) -> "Llava":
        """A model without weights, made in a moment: it has sizes, and `seen` works, but it cannot answer."""
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(deepcopy(config))
        return cls(model, processor_of(checkpoint, config, is_local), mode)

    def loaded(self, checkpoint: str, plan: Plan, is_local: bool = False, kept: Path | None = None) -> "Llava":
        """The model of this sketch with its weights, loaded as planned; with `is_local` the Hub is not asked.

        `kept` is the folder of the 8-bit copy for a CPU, which is saved if it is missing and loaded if it is there.

        Raises:
            OSError, ValueError, ImportError: as transformers raises them.
        """
        is_kept = plan.is_int8_on_cpu and kept is not None and kept.exists()
        # A copy has its own config, which transformers 5.23 does not read if these options are given, even as None.
        config = deepcopy(self.model.config)
        options = {} if is_kept else {"config": config, "quantization_config": quantization_of(plan, config.dtype)}
        load = partial(
            AutoModelForImageTextToText.from_pretrained,
            kept if is_kept else checkpoint,
            local_files_only=is_local or is_kept,
            dtype=plan.dtype,
            attn_implementation=plan.attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `checks` refuses them, with their names
            **options,
        )
        if plan.hardware.has_gpu:
            prefer_flash_to_cudnn()
        try:  # all of it on one GPU: a model on several GPUs cannot be batched
            model, found = load(device_map={"": plan.hardware.index} if plan.hardware.has_gpu else "cpu")
        except torch.OutOfMemoryError:
            if torch.cuda.device_count() < 2:
                raise
            torch.cuda.empty_cache()
            model, found = load(device_map="auto")
        checks.check_weights(found)
        if plan.is_int8_on_cpu:
            if kept:
                delete_unfinished(kept.parent)
            if kept and not is_kept:
                keep(model, kept)
            pack_weights(model)
        return Llava(model, self.processor, self.mode)

    @torch.inference_mode()
    def check(self) -> None:
        """Run the model on a picture and on a word.

        Raises:
            ValueError: it computes NaN or infinity; or the processor does not fit the vision tower.
        """
        checks.check_numbers(self.model)
        (run,), inputs = self._encoded([PIL.Image.new("RGB", (self.side, self.side))])
        features, rows = self.features(inputs), run.count(self.image_token_id)
        if len(features) != rows:
            raise ValueError(f"its processor makes {rows} tokens of a picture, its vision tower {len(features)}")
        ids = torch.tensor([self.tokenizer("USER:").input_ids], device=self.model.device)
        logits = self.model(input_ids=ids, logits_to_keep=1).logits
        if not (features.isfinite().all() and logits.isfinite().all()):
            raise ValueError(f"it computes NaN or infinity in {self.model.dtype}; try another --dtype or --quantize")

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids of the tokens that end an answer."""
        ids = self.model.generation_config.eos_token_id
        return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])

    def prompt(self, messages: Sequence[Message], is_raw: bool = False) -> dict[str, torch.Tensor]:
        """The arguments of `model.generate` for a conversation, up to `ASSISTANT:` and the beginning of an answer.

        `input_ids` and `attention_mask` are (1, tokens), with as many image ids for each picture as it has feature
        rows; `pixel_values` is there if there are pictures. A text that spells a control token (`<image>`, `</s>`) is
        encoded as plain text. `USER:` and `ASSISTANT:` are plain text in LLaVA-1.5, and need no change.

        With `is_raw` the text of the one message is the whole prompt, control tokens included; the pictures go before
        it if it has no `<image>`.

        Raises:
            InvalidRequest: the model's template refuses the conversation, as some do with system messages; a raw prompt
                with more or fewer `<image>` than pictures.
        """
        ids = self.ids(messages, is_raw)
        runs, inputs = self._encoded([self._prepared(image) for message in messages for image in message.images])
        filled = torch.tensor([fill_images(ids, self.image_token_id, runs)])
        inputs = {"input_ids": filled, "attention_mask": torch.ones_like(filled)} | inputs
        return self._on_device(inputs)

    def ids(self, messages: Sequence[Message], is_raw: bool = False) -> list[int]:
        """The conversation's ids with one image id for each picture. Raises what `prompt` raises."""
        return self._raw_ids(messages[0]) if is_raw else self._ids([_turn(message) for message in messages])

    def picture(self, image: Image) -> tuple[list[int], dict[str, torch.Tensor]]:
        """The run of ids in place of a picture, and the inputs of `features`."""
        (run,), inputs = self._encoded([self._prepared(image)])
        return run, inputs

    def sample_inputs(self) -> dict[str, torch.Tensor]:
        """Inputs of `features` for an empty picture, for the warm-up."""
        return self._encoded([PIL.Image.new("RGB", (self.side, self.side))])[1]

    @torch.inference_mode()
    def features(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """A picture's features, the embeddings in place of its image ids, (rows, width)."""
        found = self.model.get_image_features(**self._on_device(inputs)).pooler_output
        return torch.cat(list(found)) if isinstance(found, list | tuple) else found.flatten(0, -2)

    def _on_device(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        dtype = self.model.dtype
        return {name: x.to(self.model.device, dtype if x.is_floating_point() else None) for name, x in inputs.items()}

    def seen(self, image: Image) -> PIL.Image.Image:
        """The square that the vision tower sees, `side` x `side` pixels."""
        values = self._pixel_values(self._prepared(image)).flatten(0, -4)[0]  # the first tile is the whole picture
        mean, std = (torch.tensor(getattr(self.processor.image_processor, f"image_{x}")) for x in ("mean", "std"))
        pixels = ((values * std[:, None, None] + mean[:, None, None]) * 255).round().clamp(0, 255).to(torch.uint8)
        native.release_threads()
        return PIL.Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def _ids(self, turns: list[dict[str, Any]]) -> list[int]:
        """The conversation's ids, with one image id for each picture."""
        is_continued = turns[-1]["role"] == "assistant" and bool(turns[-1]["content"])
        try:
            ids: list[int] = self.tokenizer.apply_chat_template(  # type: ignore[assignment]
                turns,
                chat_template=self._template,
                add_generation_prompt=not is_continued,
                continue_final_message=is_continued,
                return_dict=False,
                sanitize_control_tokens=True,
            )
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"This model does not take such a conversation: {error}", "messages") from error
        return ids if ids[: len(self._start)] == self._start else self._start + ids  # a template may write <s> itself

    def _raw_ids(self, message: Message) -> list[int]:
        count, image = len(message.images), self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        text = message.text if image in message.text else f"{image}\n" * count + message.text
        ids: list[int] = self.tokenizer(text).input_ids
        if ids.count(self.image_token_id) != count:
            found = ids.count(self.image_token_id)
            words = f"The raw prompt holds {image} {found} times; {count} picture(s) came with it."
            raise InvalidRequest(words, "prompt")
        return ids

    def _encoded(self, pictures: list[PIL.Image.Image]) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
        """Each picture's run of ids, and the model's other inputs for the pictures.

        The processor gets the pictures without the conversation: it counts `<image>` in the whole text, and a text like
        `<ima<image>ge>` would mislead it (transformers 5.23).
        """
        if not pictures:
            return [], {}
        encoded = self.processor(
            text=[self.tokenizer.convert_ids_to_tokens(self.image_token_id)] * len(pictures),
            images=[[picture] for picture in pictures],
            add_special_tokens=False,
            padding=True,
            return_tensors="pt",
        )
        ids, is_no_padding = encoded.pop("input_ids"), encoded.pop("attention_mask").bool()
        return [row[kept].tolist() for row, kept in zip(ids, is_no_padding, strict=True)], dict(encoded)

    def _prepared(self, image: Image) -> PIL.Image.Image:
        return image.square(self.fit) if self.fit else image.pixels

    def _pixel_values(self, picture: PIL.Image.Image) -> torch.Tensor:
        return self.processor.image_processor([picture], return_tensors="pt").pixel_values


def _skip_unseen_layers(model: PreTrainedModel) -> None:
    """Skip the layers of the vision tower after the one whose output the language model gets.

    LLaVA uses the last but one (`vision_feature_layer` is -2); transformers 5.23 computes all of them.
    """
    seen, tower = getattr(model.config, "vision_feature_layer", None), getattr(model.model, "vision_tower", None)
    layers = [m for m in tower.modules() if type(m).__name__ in ENCODER_LAYERS] if tower is not None else []
    if layers and isinstance(seen, int) and seen < 0:
        for layer in layers[len(layers) + seen + 1 :]:
            layer.forward = lambda hidden_states, *_, **__: hidden_states  # type: ignore[method-assign]


def fill_images(ids: Sequence[int], image_token_id: int, runs: Iterable[Sequence[int]]) -> list[int]:
    """Replace the n-th `image_token_id` of `ids` by the n-th run of ids.

    >>> fill_images([1, 9, 2, 9], 9, [[70, 71], [80]])
    [1, 70, 71, 2, 80]
    """
    left = iter(runs)
    return [new for old in ids for new in (next(left) if old == image_token_id else [old])]


def _turn(message: Message) -> dict[str, Any]:
    images: list[dict[str, str]] = [{"type": "image"} for _ in message.images]
    texts = [{"type": "text", "text": message.text}] if message.text else []
    return {"role": message.role, "content": images + texts}


def config_of(checkpoint: str, is_local: bool) -> PreTrainedConfig:
    """The config of a checkpoint, from the Hub or a folder. Raises what transformers raises: OSError, ValueError."""
    return AutoConfig.from_pretrained(checkpoint, local_files_only=is_local)


def processor_of(checkpoint: str, config: PreTrainedConfig, is_local: bool) -> ProcessorMixin:
    """The processor of a checkpoint, from the Hub or a folder.

    Raises:
        OSError, ValueError, ImportError: as transformers raises them.
    """
    is_onevision = config.model_type == "llava_onevision" and importlib.util.find_spec("torchvision") is None
    kind: Any = OneVisionStills if is_onevision else AutoProcessor
    return kind.from_pretrained(checkpoint, local_files_only=is_local)  # type: ignore[no-any-return]


class OneVisionStills(LlavaOnevisionProcessor):
    """LLaVA-OneVision's processor without the part for videos, which needs torchvision (transformers 5.23).

    Its parameters are the fields of `processor_config.json`.
    """

    def __init__(  # noqa: PLR0913, transformers looks for these names here
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        video_token: str = "<video>",
        vision_aspect_ratio: str = "anyres_max_9",
    ) -> None:
        self.num_image_tokens = num_image_tokens
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.vision_aspect_ratio = vision_aspect_ratio
        self.image_token, self.video_token = image_token, video_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
