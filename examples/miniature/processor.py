"""The miniature's tokenizer, chat template and picture preprocessing, as one `LlavaProcessor`."""

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from examples.miniature.answers import CELLS
from examples.miniature.architecture import BOS, CONTEXT, PATCH, SIDE, VOCABULARY
from examples.miniature.questions import Asker
from examples.miniature.scenes import BACKGROUNDS, COLORS, DIGITS, SHAPES, World

# Word for word the template of llava-hf/llava-1.5-7b-hf, so that the prompts look the same.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def make_processor() -> LlavaProcessor:
    """Byte-level BPE, so that every text can be encoded; pictures of SIDE pixels, resized and cropped as CLIP does."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_corpus(8000), trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def saved_processor(folder: Path) -> LlavaProcessor:
    """The processor in `folder`, made there on the first call.

    A tokenizer made anew after a change of wordings has other ids, so a checkpoint must keep its own.
    """
    if not (folder / "tokenizer.json").exists():
        make_processor().save_pretrained(folder)
    return LlavaProcessor.from_pretrained(folder)


def _corpus(count: int) -> Iterator[str]:
    rng = random.Random(7)
    asker = Asker(rng)
    for _ in range(count):
        for turns in (asker.dialogue(World().sample(rng)), asker.without_picture()):
            yield "USER: \n" + " ".join(f"{turn.question} ASSISTANT: {turn.answer} USER:" for turn in turns)
    for words in (COLORS, SHAPES, BACKGROUNDS, CELLS, [f"{word}s" for word in SHAPES], DIGITS):
        yield from [" " + " ".join(words)] * 200  # each of them must become one token, with its space
