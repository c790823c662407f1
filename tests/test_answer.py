"""An answer's chunks: log-probabilities come with the text of their tokens, and are cut where it is cut."""

import pytest
from checkpoints import END_ID, tokenizer
from transformers import PreTrainedTokenizerFast

from llava_demo.chat import ChatRequest, Chunk, Message, SamplingParams
from llava_demo.engines.answer import Answer


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return tokenizer()


def chunks_of(
    words: PreTrainedTokenizerFast, text: str, *stop: str, is_ended: bool = False
) -> tuple[Answer, list[Chunk]]:
    request = ChatRequest((Message("user", "?"),), SamplingParams(stop=stop, top_logprobs=1))
    answer = Answer(words, request, frozenset([END_ID]))
    ids = words.encode(text, add_special_tokens=False) + [END_ID] * is_ended
    chunks = []
    for number, token in enumerate(ids):
        chunks.append(answer.add(token, (-float(number), [(token, -0.5)])))
        if answer.is_whole:
            break
    return answer, [*chunks, answer.rest()]


@pytest.mark.parametrize("text", ["the square is in it", "naïve 🙂 日本", "  two spaces", "a\n b"])
def test_the_tokens_of_log_probabilities_spell_the_text(text: str, words: PreTrainedTokenizerFast) -> None:
    """Token by token and byte by byte, though a character may take several tokens."""
    _, chunks = chunks_of(words, text)
    logprobs = [logprob for chunk in chunks for logprob in chunk.logprobs]
    assert [logprob.logprob for logprob in logprobs] == [-float(n) for n in range(len(logprobs))]
    assert len(logprobs) == len(words.encode(text, add_special_tokens=False))
    said = "".join(chunk.text for chunk in chunks)
    assert "".join(logprob.token for logprob in logprobs) == said
    assert said == text.removeprefix(" ")
    data = [logprob.token.encode() if logprob.data is None else logprob.data for logprob in logprobs]
    assert b"".join(data) == said.encode()
    if text.isascii():
        assert all(logprob.top[0].token == logprob.token for logprob in logprobs)


def test_each_comes_with_its_text(words: PreTrainedTokenizerFast) -> None:
    _, chunks = chunks_of(words, "a 🙂 square")
    for chunk in chunks:
        assert bool(chunk.text) == bool(chunk.logprobs)


def test_a_stop_string_cuts_both(words: PreTrainedTokenizerFast) -> None:
    answer, chunks = chunks_of(words, "a circle and the square", " and")
    assert answer.finish_reason == "stop"
    assert "".join(chunk.text for chunk in chunks) == "a circle"
    assert "".join(one.token for chunk in chunks for one in chunk.logprobs) == "a circle"


def test_what_was_held_back_for_a_stop_string_comes_in_the_end(words: PreTrainedTokenizerFast) -> None:
    _, chunks = chunks_of(words, "a circle an", " and")
    assert "".join(one.token for chunk in chunks[:-1] for one in chunk.logprobs) == "a circle"
    assert "".join(one.token for one in chunks[-1].logprobs) == " an"


def test_the_end_token_has_none(words: PreTrainedTokenizerFast) -> None:
    answer, chunks = chunks_of(words, "a", is_ended=True)
    assert [len(chunk.logprobs) for chunk in chunks] == [1, 0, 0]
    last = answer.last(prompt_tokens=5, cached_tokens=3)
    assert (last.finish_reason, last.usage.completion_tokens, last.usage.cached_tokens) == ("stop", 2, 3)
