"""`Detokenizer`: token ids in, text out as soon as it is certain, without half characters or parts of a stop string."""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # tokens of Llama's vocabulary for the bytes of characters that it lacks
_HALF = "\N{REPLACEMENT CHARACTER}"  # half a character is decoded to it


class Detokenizer:
    """The text of one answer: `add` and `end` return, joined, what `tokenizer.decode` returns for all ids.

    There are two differences. The space that many vocabularies put before a first word is left out (LLaVA's template
    writes it in the next turn), unless the text continues another one. And the text ends before the first stop string.

    tokenizers' `DecodeStream` (0.23) does not serve here: it raises when a byte makes the bytes before it invalid, as
    in "H" followed by half a character.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = (), is_continuation: bool = False
    ) -> None:
        self.tokenizer, self._tokenizer = tokenizer, tokenizer.backend_tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []  # decoded up to `_done`; decoding starts at `_context`, to keep spaces right
        self._context = self._done = 0
        self._is_at_start = not is_continuation
        self._held = ""  # decoded text that may be the beginning of a stop string
        self.decoded = 0  # number of decoded characters, with those that are held back
        self.has_stopped = False  # a stop string came; text after it is not part of the answer

    def add(self, token: int) -> str:
        """The text that is certain after `token`; often empty."""
        self._ids.append(token)
        if not self._decode([token]) or _BYTE.fullmatch(self._tokenizer.id_to_token(token) or ""):
            return ""  # adjacent bytes are decoded together, across special tokens, and one wrong byte spoils all
        new = self._undecoded()
        if not new or new.endswith(_HALF):
            return ""
        self._context, self._done = self._done, len(self._ids)
        return self._released(new)

    def end(self) -> str:
        """The rest: half a character at the very end, and text held back for a stop string that did not come."""
        text = self._released(self._undecoded()) + self._held
        self._held = ""
        return text

    def _undecoded(self) -> str:
        before, all_of_it = (self._decode(self._ids[self._context : end]) for end in (self._done, len(self._ids)))
        return all_of_it[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _released(self, new: str) -> str:
        if self.has_stopped or not new:
            return ""
        new = new.removeprefix(" ") if self._is_at_start else new
        self._is_at_start = False
        self.decoded += len(new)
        text = self._held + new
        starts = [at for at in map(text.find, self._stop) if at >= 0]
        if starts:
            self.has_stopped, self._held = True, ""
            return text[: min(starts)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """The number of characters at the end of `text` that may be the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
