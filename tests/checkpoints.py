"""Tiny LLaVA checkpoints with random weights: everything but the sense of their answers is real.

`conftest.py` makes the fixtures below known to all tests with `pytest_plugins = ["checkpoints"]`. A checkpoint is made
once a session, in about a second, and is an ordinary folder for `--model`:

    tiny_folder     its path (str)      a picture of 56 x 56 pixels takes 16 tokens of a context of 1,024
    tiny_llava      it, loaded
    tiny_engine     a new GenerateEngine on it, with room for two in line, for each test
    tiny_batched    a new BatchedEngine on it, with room for many in line, for each test
"""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from llava_demo.engines import EngineInfo
from llava_demo.engines.batched.engine import BatchedEngine
from llava_demo.engines.batched.schedule import BatchSize
from llava_demo.engines.generate import GenerateEngine
from llava_demo.model.device import Hardware, Plan
from llava_demo.model.llava import MODEL_CARD_TEMPLATE, Llava, OneVisionStills

SIDE, PATCH, CONTEXT, WIDTH = 56, 14, 1024, 64
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PAD_ID, START_ID, END_ID, _, IMAGE_ID = range(len(SPECIAL))
ON_CPU = Plan(Hardware("CPU"), "none", torch.float32, "sdpa")
PLAN_INT8 = replace(ON_CPU, quantize="8bit")


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text can be encoded, and an emoji is several tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(SPECIAL) + 256 + 40,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["USER: what is in this picture? ASSISTANT: a circle and the square " * 4], trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", START_ID)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


def make_tiny(folder: Path) -> None:
    """Save a LLaVA-1.5 in small, with the Hub's kind of processor, which crops."""
    words = tokenizer()
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=_vision_config(), text_config=_text_config(words), image_token_index=IMAGE_ID, pad_token_id=0
        )
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    _save(model, LlavaProcessor(pictures, words, **_PROCESSOR), folder)


def make_tiny_next(folder: Path) -> None:
    """Save a LLaVA-NeXT in small: its processor cuts a picture into tiles."""
    words = tokenizer()
    grid = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    model = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=_vision_config(),
            text_config=_text_config(words),
            image_token_index=IMAGE_ID,
            image_grid_pinpoints=grid,
            pad_token_id=0,
        )
    )
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=grid
    )
    _save(model, LlavaNextProcessor(pictures, words, **_PROCESSOR), folder)


def make_tiny_interleave(folder: Path) -> None:
    """Save a llava-interleave-qwen in small: SigLIP sees, Qwen2 speaks, keys and values shared by two heads each."""
    words = tokenizer()
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=_siglip_config(),
            text_config=Qwen2Config(**_TEXT, vocab_size=len(words), num_attention_heads=4, num_key_value_heads=2),
            image_token_index=IMAGE_ID,
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
            pad_token_id=0,
        )
    )
    pictures = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    options = _PROCESSOR | {"vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}
    _save(model, LlavaProcessor(pictures, words, **options), folder)


def make_tiny_bakllava(folder: Path) -> None:
    """Save a BakLLaVA in small: LLaVA-1.5 with a Mistral that speaks."""
    words = tokenizer()
    text = MistralConfig(**_TEXT, vocab_size=len(words), num_attention_heads=4, num_key_value_heads=2)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=_vision_config(), text_config=text, image_token_index=IMAGE_ID, pad_token_id=0)
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    _save(model, LlavaProcessor(pictures, words, **_PROCESSOR), folder)


def make_tiny_onevision(folder: Path) -> None:
    """Save a LLaVA-OneVision in small: SigLIP, tiles, Qwen2, and a processor that would read videos, too."""
    words = tokenizer()
    grid = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    model = LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=_siglip_config(),
            text_config=Qwen2Config(**_TEXT, vocab_size=len(words), num_attention_heads=4, num_key_value_heads=2),
            image_token_index=IMAGE_ID,
            image_grid_pinpoints=grid,
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
            pad_token_id=0,
        )
    )
    pictures = LlavaOnevisionImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=grid)
    rows = (SIDE // PATCH) ** 2
    options = {"num_image_tokens": rows, "vision_feature_select_strategy": "full"}
    _save(model, OneVisionStills(pictures, words, chat_template=MODEL_CARD_TEMPLATE, **options), folder)
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text()) | {
        "processor_class": "LlavaOnevisionProcessor",
        "video_processor": {"video_processor_type": "LlavaOnevisionVideoProcessor"},
    }
    path.write_text(json.dumps(settings))


def make_tiny_vip(folder: Path) -> None:
    """Save a ViP-LLaVA in small: what several layers of the tower saw goes into each row."""
    words = tokenizer()
    model = VipLlavaForConditionalGeneration(
        VipLlavaConfig(
            vision_config=_vision_config(),
            text_config=_text_config(words),
            image_token_index=IMAGE_ID,
            vision_feature_layers=[-2, -1, 1],
            pad_token_id=0,
        )
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    _save(model, LlavaProcessor(pictures, words, **_PROCESSOR), folder)


_PROCESSOR = {
    "patch_size": PATCH,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
    "chat_template": MODEL_CARD_TEMPLATE,
}


def _vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )


def _siglip_config() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )


_TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": START_ID,
    "eos_token_id": END_ID,
    "pad_token_id": PAD_ID,
}


def _text_config(words: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(**_TEXT, vocab_size=len(words), num_attention_heads=2, num_key_value_heads=2)


def _save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    noise, more = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:  # ten times sharper than at the start of a training: pictures change the answer
                weights.normal_(std=0.2, generator=noise)
            elif len(weights.unique()) > 1:  # drawn by chance: CLIP's class, the end of a row of tiles, some biases
                weights.normal_(std=0.2, generator=more)
        model.lm_head.weight[: len(SPECIAL)] = 0  # special tokens are never the likeliest: answers get long
    model.generation_config.bos_token_id = START_ID
    model.generation_config.eos_token_id = END_ID
    model.generation_config.pad_token_id = PAD_ID
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def engine_of(llava: Llava, max_queue: int = 2, max_images: int = 8) -> GenerateEngine:
    return GenerateEngine(llava, info_of(llava, "generate", max_images), max_queue)


def batched_engine_of(llava: Llava, max_queue: int = 200, **size: Any) -> BatchedEngine:
    """By default with room for 8 at once in chunks of 48 tokens, so that prompts come in several."""
    sizes = {"pages": 300, "requests": 8, "chunk": 48} | size
    return BatchedEngine(llava, info_of(llava, "batched"), max_queue, BatchSize(**sizes))


def info_of(llava: Llava, engine: str, max_images: int = 8) -> EngineInfo:
    return EngineInfo(
        model="tiny",
        engine=engine,
        device="CPU",
        precision="float32",
        attention="sdpa",
        context_tokens=llava.context_tokens,
        image_tokens=llava.image_tokens,
        max_images=max_images,
        is_miniature=False,
        image_mode=llava.mode,
    )


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    make_tiny(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_llava(tiny_folder: str) -> Llava:
    return Llava.load(tiny_folder, ON_CPU, is_local=True)


@pytest.fixture
def tiny_engine(tiny_llava: Llava) -> Iterator[GenerateEngine]:
    engine = engine_of(tiny_llava)
    yield engine
    asyncio.run(engine.aclose())


@pytest.fixture
def tiny_batched(tiny_llava: Llava) -> Iterator[BatchedEngine]:
    engine = batched_engine_of(tiny_llava)
    yield engine
    asyncio.run(engine.aclose())
