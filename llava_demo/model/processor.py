"""The config and the processor of a checkpoint, from the Hub or a folder."""

import importlib.util
from typing import Any

from transformers import AutoConfig, AutoProcessor, LlavaOnevisionProcessor, PreTrainedConfig, ProcessorMixin


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
