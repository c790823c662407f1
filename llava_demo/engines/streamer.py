"""What `model.generate` streams into: transformers' `TextIteratorStreamer`, its text made exact."""

from collections.abc import Callable

import torch
from transformers import StoppingCriteria, TextIteratorStreamer

from llava_demo.chat import Chunk
from llava_demo.engines.answer import Answer, TokenLikelihood


class AnswerStreamer(TextIteratorStreamer):
    """Hands an answer to `deliver` in chunks, in the thread of `generate`, as soon as they are certain.

    A `TextIteratorStreamer` but for two things. Its text is the `Answer`'s, which ends at a stop string and keeps
    the space that the base loses at the start of a line (5.23 with Llama's vocabulary: "a\\n  - b" becomes "a\\n - b").
    And the text does not queue up for a thread to wait on: our callers wait on event loops.
    """

    def __init__(
        self, answer: Answer, likelihood: Callable[[], TokenLikelihood | None], deliver: Callable[[Chunk], None]
    ) -> None:
        super().__init__(answer.tokenizer, skip_prompt=True)
        self.answer, self.likelihood, self.deliver = answer, likelihood, deliver
        self.next_tokens_are_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, (1, tokens), which is skipped, and then each new token, (1,)."""
        is_prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
        if is_prompt or self.answer.is_whole:
            return
        self._deliver(self.answer.add(int(value), self.likelihood()))

    def end(self) -> None:
        """Hand over what was held back, now that nothing follows."""
        self.next_tokens_are_prompt = True
        self._deliver(self.answer.rest())

    def _deliver(self, chunk: Chunk) -> None:
        if chunk != Chunk():
            self.deliver(chunk)


class StopWhen(StoppingCriteria):
    """Ends `generate` when `is_over` says so: at a cancel before the next token, at a stop string one token after it.

    transformers 5.23 asks the criteria before it feeds the streamer; the token too many is not part of the answer.
    """

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self.is_over = is_over

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:  # noqa: ARG002
        return torch.full((input_ids.shape[0],), self.is_over(), device=input_ids.device)
