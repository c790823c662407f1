"""A tokenizer of LLaVA-1.5's size that needs no download: the 256 bytes, and invented words that fill the rest."""

from collections.abc import Iterator
from itertools import islice, product
from string import ascii_lowercase

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

UNKNOWN_ID, START_ID, END_ID = range(3)
IMAGE_ID, PAD_ID = 32_000, 32_001  # as in llava-hf/llava-1.5-7b-hf
VOCABULARY = 32_064
SPACE = "Ġ"  # how byte-level vocabularies write a space


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every text can be written, and every answer reads back as the tokens that it was."""
    vocabulary = {"<unk>": UNKNOWN_ID, "<s>": START_ID, "</s>": END_ID}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[byte] = len(vocabulary)
    merges = []
    for word in islice(_words(), IMAGE_ID - len(vocabulary)):
        vocabulary[word] = len(vocabulary)
        merges.append((word[:-1], word[-1]))
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    core.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>", "<image>", "<pad>")])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
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


def _words() -> Iterator[str]:
    """A space and one letter, then two letters, ...: each word is one before it and one letter more."""
    for length in range(1, 5):
        for letters in product(ascii_lowercase, repeat=length):
            yield SPACE + "".join(letters)
