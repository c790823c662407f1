"""Token ids in, text out, as soon as it is certain: no half characters, no part of a stop string."""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase


class Detokenizer:
    """The text of one answer; what `add` and `end` return, joined, is `tokenizer.decode` of all ids.

    Two differences: the space that many vocabularies put before a first word is left out (LLaVA's template writes it
    again in the next turn), and the text ends before the first stop string.

    Not transformers' `TextIteratorStreamer`: with Llama's vocabulary that loses a space at the start of every line
    (5.23: "a\n  - b" becomes "a\n - b"), because it decodes each line on its own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._decoding = DecodeStream([], skip_special_tokens=True)
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._decoded = ""
        self._held = ""  # decoded, but it may become a stop string
        self.has_stopped = False  # a stop string came: what follows is no part of the answer

    def add(self, token: int) -> str:
        """The text that is certain now that `token` came; often empty."""
        self._ids.append(token)
        return self._released(self._decoding.step(self._tokenizer, token) or "")

    def end(self) -> str:
        """The rest: a half character at the very end, and what was held back for a stop string that did not come."""
        rest = self._tokenizer.decode(self._ids, skip_special_tokens=True)[len(self._decoded) :]
        text = self._released(rest) + self._held
        self._held = ""
        return text

    def _released(self, new: str) -> str:
        if self.has_stopped:
            return ""
        is_first = not self._decoded
        self._decoded += new
        text = self._held + (new.removeprefix(" ") if is_first else new)
        starts = [at for at in map(text.find, self._stop) if at >= 0]
        if starts:
            self.has_stopped, self._held = True, ""
            return text[: min(starts)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` could be the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
