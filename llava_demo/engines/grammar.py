"""Grammars: which tokens may come next, so that the answer is JSON that satisfies a schema.

llguidance does the work. It refuses schemas that it does not support, fetches nothing, and limits its own work.
"""

import json
from functools import cached_property

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor

from llava_demo.errors import InvalidRequest
from llava_demo.model.llava import Llava

MAX_SHOWN_CHARACTERS = 300  # longest part of llguidance's error that is shown

# The form of `json.dumps`. With free whitespace, a model that does not know how to continue writes newlines for ever.
_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammar:
    """The grammar of one answer, with the state after its tokens so far."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self) -> Tensor:
        """The tokens that may come next: int32 (vocabulary / 32, rounded up), the lowest bit for the first token.

        After the JSON's end only end tokens may come.
        """
        return torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.int32)

    def took(self, token: int) -> None:
        """Advance by one token of the answer."""
        self._matcher.consume_token(token)

    @property
    def failure(self) -> InvalidRequest | None:
        """Why the answer ended before its JSON did; None if it did not."""
        if not self._matcher.is_error():
            return None
        words = "The JSON schema cannot be followed to the end: it is too complex, or nothing satisfies it."
        return InvalidRequest(words, "response_format")


class Grammars:
    """Makes the grammars for one model's tokens."""

    def __init__(self, llava: Llava) -> None:
        self._llava = llava

    def of(self, schema: str | None) -> Grammar | None:
        """The grammar for the text of a JSON schema; None for no schema.

        Raises:
            InvalidRequest: the schema is wrong, or is not supported.
        """
        if schema is None:
            return None
        form = json.dumps(json.loads(schema) | {"x-guidance": _FORM})
        # Many vocabularies put a space before the first word of an answer; `Detokenizer` removes it.
        grammar = f'start: " "? json\njson: %json {form}'
        matcher = LLMatcher(self._tokens, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if matcher.is_error():
            what = _words_of(matcher.get_error())
            raise InvalidRequest(f"The JSON schema cannot be followed here: {what}.", "response_format")
        return Grammar(matcher)

    @cached_property
    def _tokens(self) -> LLTokenizer:
        backend = self._llava.tokenizer.backend_tokenizer.to_str()
        return LLTokenizer(backend, n_vocab=self._llava.vocabulary, eos_token=sorted(self._llava.end_ids))


def _words_of(error: str) -> str:
    """llguidance's error about a schema, in one line, without the place in our grammar."""
    found = error.partition("\n   1 | start")[0]
    for start in ("JSON schema: ", '"%json": '):
        if start in found:
            return " ".join(found.partition(start)[2].split())[:MAX_SHOWN_CHARACTERS]
    return "it cannot be read"
