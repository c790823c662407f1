"""Tokens to text, against the tokenizer's own decoding of the whole answer."""

import random

import pytest
from checkpoints import tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from llava_demo.engines.detokenizer import Detokenizer

HALF = "\N{REPLACEMENT CHARACTER}"


def llama_like() -> PreTrainedTokenizerFast:
    """Decodes as Llama's vocabulary does: words with their space, and bytes for characters that it lacks."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["▁", "▁a", "▁the", "▁▁", "▁-", "b", "c", ".", "é", "日"]
    vocabulary = {token: at for at, token in enumerate(["<unk>", "<s>", "</s>", *bytes_, *words])}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {"byte-level": tokenizer(), "like Llama's": llama_like()}


def streamed(words: PreTrainedTokenizerFast, ids: list[int], *stop: str) -> list[str]:
    text = Detokenizer(words, stop)
    return [*(text.add(token) for token in ids), text.end()]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_pieces_joined_are_the_whole_answer(kind: str) -> None:
    words, rng = TOKENIZERS[kind], random.Random(0)
    for _ in range(1000):
        ids = [rng.randrange(len(words) + 5) for _ in range(rng.randint(1, 40))]  # some are out of the vocabulary
        whole = words.decode(ids, skip_special_tokens=True).removeprefix(" ")
        assert "".join(streamed(words, ids)) == whole, ids


def test_every_cut_through_emoji_and_scripts_gives_what_decode_gives() -> None:
    words = TOKENIZERS["byte-level"]
    ids = words.encode("né 日本語 😀👩‍👩‍👧 \n\n  ok", add_special_tokens=False)
    for end in range(len(ids) + 1):
        pieces = streamed(words, ids[:end])
        assert "".join(pieces) == words.decode(ids[:end])
        assert HALF not in "".join(pieces[:-1])  # only a whole answer may end in half a character


def test_lines_keep_the_spaces_at_their_start() -> None:
    """`TextIteratorStreamer` decodes every line on its own, and Llama's decoder strips a space at a text's start."""
    words = TOKENIZERS["like Llama's"]
    ids = words.convert_tokens_to_ids(["▁a", "<0x0A>", "▁▁", "▁-", "▁a", "<0x0A>", "▁the"])
    assert "".join(streamed(words, ids)) == "a\n   - a\n the" == words.decode(ids)


def test_a_byte_that_spoils_the_one_before_it_raises_nothing() -> None:
    """tokenizers' `DecodeStream` gives "H" away and then raises "Invalid prefix encountered"."""
    words = TOKENIZERS["like Llama's"]
    ids = words.convert_tokens_to_ids(["▁a", "<0x48>", "<0xE4>", "▁the"])
    assert "".join(streamed(words, ids)) == f"a{HALF}{HALF} the" == words.decode(ids)


def test_text_comes_as_soon_as_it_is_certain() -> None:
    words = TOKENIZERS["byte-level"]
    ids = words.encode("ab 日", add_special_tokens=False)
    assert [piece for piece in streamed(words, ids) if piece] == ["a", "b", " ", "日"]


def test_the_space_before_the_first_word_is_left_out() -> None:
    words = TOKENIZERS["byte-level"]
    assert "".join(streamed(words, words.encode("  two", add_special_tokens=False))) == " two"


@pytest.mark.parametrize(
    ("stop", "answer"),
    [
        (["wor"], "hello "),
        (["hello world, hell no"], ""),
        (["no", "ld"], "hello wor"),
        (["l"], "he"),
        (["lo w", "hel"], ""),
        (["hell no!", "world, helper"], "hello world, hell no"),  # both began, and neither came
        (["o."], "hello world, hell no"),
        (["\n"], "hello world, hell no"),
    ],
)
def test_an_answer_ends_before_the_first_stop_string(stop: list[str], answer: str) -> None:
    words = TOKENIZERS["byte-level"]
    ids = words.encode("hello world, hell no", add_special_tokens=False)
    text = Detokenizer(words, stop)
    pieces = [*(text.add(token) for token in ids), text.end()]
    assert "".join(pieces) == answer
    assert text.has_stopped == any(word in "hello world, hell no" for word in stop)


@pytest.mark.parametrize("stop", [["e", "h"], ["h", "e"]])
def test_of_two_stop_strings_in_one_token_the_first_in_the_text_ends_the_answer(stop: list[str]) -> None:
    words = TOKENIZERS["like Llama's"]
    ids = words.convert_tokens_to_ids(["▁a", "▁the"])
    assert "".join(streamed(words, ids, *stop)) == "a t"


def test_what_may_become_a_stop_string_is_held_back() -> None:
    words = TOKENIZERS["byte-level"]
    text = Detokenizer(words, ["###"])
    said = [text.add(token) for token in words.encode("z#z##", add_special_tokens=False)]
    assert said == ["z", "", "#z", "", ""]
    assert text.end() == "##"


def test_a_stop_string_of_half_an_emoji_is_found_whole() -> None:
    words = TOKENIZERS["byte-level"]
    ids = words.encode("ok 😀 no", add_special_tokens=False)
    assert "".join(streamed(words, ids, "😀")) == "ok "
