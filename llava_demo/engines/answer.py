"""`Answer`: the tokens of one answer become chunks of text, with the log-probabilities that belong to it."""

import re
from codecs import getincrementaldecoder
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llava_demo.chat import ChatRequest, Chunk, FinishReason, TokenLogprob, Usage
from llava_demo.engines.detokenizer import Detokenizer
from llava_demo.errors import InvalidRequest

# A token's log-probability, and (id, log-probability) of the most likely tokens at its place.
TokenLikelihood = tuple[float, Sequence[tuple[int, float]]]


class Answer:
    """One answer as it grows: `add` each token, then take the `rest` and the `last` chunk.

    Log-probabilities of a token come with its text, and never come if a stop string cuts off all of that text. End
    tokens have neither text nor log-probabilities here.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, request: ChatRequest, end_ids: frozenset[int]) -> None:
        """Raises:
        InvalidRequest: a stop token is not in this vocabulary.
        """
        unknown = next((token for token in request.sampling.stop_token_ids if token >= len(tokenizer)), None)
        if unknown is not None:
            words = f"stop_token_ids holds {unknown}; this model's tokens are 0 to {len(tokenizer) - 1:,}."
            raise InvalidRequest(words, "stop_token_ids")
        self.tokenizer = tokenizer
        self._end_ids = request.sampling.end_ids(end_ids)
        self._text = Detokenizer(tokenizer, request.sampling.stop, request.is_continuation)
        self._bytes = _bytes_of(tokenizer)
        self._characters = getincrementaldecoder("utf-8")("replace")
        self._is_at_start = not request.is_continuation
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()  # each with the place where its text starts
        self._released = 0  # characters that were returned
        self.tokens = 0  # tokens of the answer: the end token counts, tokens after a stop string do not
        self.has_ended = False

    @property
    def is_whole(self) -> bool:
        """True once the answer has ended, by an end token or by a stop string."""
        return self.has_ended or self._text.has_stopped

    @property
    def finish_reason(self) -> FinishReason:
        return "stop" if self.is_whole else "length"

    def add(self, token: int, likelihood: TokenLikelihood | None = None) -> Chunk:
        """The text that is certain after `token`; often an empty chunk."""
        self.tokens += 1
        self.has_ended = token in self._end_ids
        if likelihood is not None and not self.has_ended:
            self._waiting.append((self._text.decoded, self._logprob(token, likelihood)))
        return self._chunk(self._text.add(token))

    def rest(self) -> Chunk:
        """The text that was held back, at the end of the answer."""
        chunk = self._chunk(self._text.end())
        waiting = () if self._text.has_stopped else (logprob for _, logprob in self._waiting)
        return Chunk(chunk.text, logprobs=(*chunk.logprobs, *waiting))

    def last(self, prompt_tokens: int, cached_tokens: int = 0) -> Chunk:
        """The last chunk: how the answer ended, and its token counts."""
        return Chunk(finish_reason=self.finish_reason, usage=Usage(prompt_tokens, self.tokens, cached_tokens))

    def _chunk(self, text: str) -> Chunk:
        self._released += len(text)
        logprobs = []
        while self._waiting and self._waiting[0][0] < self._released:
            logprobs.append(self._waiting.popleft()[1])
        return Chunk(text, logprobs=tuple(logprobs))

    def _logprob(self, token: int, likelihood: TokenLikelihood) -> TokenLogprob:
        logprob, likeliest = likelihood
        space = b" " if self._is_at_start else b""  # the text is without it
        others = [(self._bytes(other).removeprefix(space), value) for other, value in likeliest]
        top = tuple(_named(data.decode(errors="replace"), value, data) for data, value in others)
        data = self._bytes(token).removeprefix(space)
        self._is_at_start = False
        return replace(_named(self._characters.decode(data), logprob, data), top=top)


def _named(token: str, logprob: float, data: bytes) -> TokenLogprob:
    return TokenLogprob(token, logprob, data=None if token.encode() == data else data)


def _bytes_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], bytes]:
    """A function from a token's id to its bytes in the middle of a text, a leading space included."""
    backend = tokenizer.backend_tokenizer
    anchor = backend.encode("a", add_special_tokens=False).ids[-1:]
    start = len(backend.decode(anchor, skip_special_tokens=False))

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}

    @lru_cache(maxsize=1024)
    def piece(token: int) -> bytes:
        name = backend.id_to_token(token) or ""
        if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", name):  # SentencePiece's byte fallback, as in Llama's vocabulary
            return bytes.fromhex(byte[1])
        text: str = backend.decode([*anchor, token], skip_special_tokens=False)[start:]
        # GPT-2's letters for bytes, as in Qwen's vocabulary
        if "\N{REPLACEMENT CHARACTER}" in text and byte_of.keys() >= set(name):
            return bytes(map(byte_of.__getitem__, name))
        return text.encode()

    return piece
