"""What `model.generate` streams into: transformers' `TextIteratorStreamer`, its text made exact."""

from collections.abc import Callable

import torch
from transformers import StoppingCriteria, TextIteratorStreamer

from llava_demo.engines.detokenizer import Detokenizer


class AnswerStreamer(TextIteratorStreamer):
    """Hands the text of an answer to `deliver`, in the thread of `generate`, as soon as it is certain.

    A `TextIteratorStreamer` but for two things. Its text is the `Detokenizer`'s, which ends at a stop string and keeps
    the space that the base loses at the start of a line (5.23 with Llama's vocabulary: "a\\n  - b" becomes "a\\n - b").
    And the text does not queue up for a thread to wait on: our callers wait on event loops.
    """

    def __init__(self, text: Detokenizer, end_ids: frozenset[int], deliver: Callable[[str], None]) -> None:
        super().__init__(text.tokenizer, skip_prompt=True)
        self.text, self.end_ids, self.deliver = text, end_ids, deliver
        self.next_tokens_are_prompt = True
        self.tokens = 0  # of the answer, its end token counted, what came after a stop string not
        self.has_ended = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, (1, tokens), which is skipped, and then each new token, (1,)."""
        is_prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
        if is_prompt or self.text.has_stopped:
            return
        token = int(value)
        self.tokens += 1
        self.has_ended = token in self.end_ids
        self.on_finalized_text(self.text.add(token))

    def end(self) -> None:
        """Hand over what was held back, now that nothing follows."""
        self.next_tokens_are_prompt = True
        self.on_finalized_text(self.text.end(), stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002, the base's signature
        if text:
            self.deliver(text)

    @property
    def is_whole(self) -> bool:
        """True once the answer has come to its end: by the model's end token, or by a stop string."""
        return self.has_ended or self.text.has_stopped


class StopWhen(StoppingCriteria):
    """Ends `generate` when `is_over` says so: at a cancel before the next token, at a stop string one token after it.

    transformers 5.23 asks the criteria before it feeds the streamer; the token too many is not part of the answer.
    """

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self.is_over = is_over

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:  # noqa: ARG002
        return torch.full((input_ids.shape[0],), self.is_over(), device=input_ids.device)
