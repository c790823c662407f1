"""GenerateEngine: `model.generate` in a thread, one request at a time. The reference for every other engine."""

import asyncio
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from llava_demo.chat import Chunk, Usage
from llava_demo.engines import EngineInfo
from llava_demo.engines.answer import Answer, TokenLikelihood
from llava_demo.engines.grammar import Grammars
from llava_demo.engines.jobs import BROKEN_GPU, Job, answer_room, failure_of, is_broken_gpu
from llava_demo.engines.sampler import Draw, choose, likelihoods
from llava_demo.engines.turns import ThreadEngine
from llava_demo.errors import DemoError
from llava_demo.model.llava import Llava


class GenerateEngine(ThreadEngine):
    """Answers one request at a time; the others wait in a fair queue of `max_queue` places."""

    def __init__(self, llava: Llava, info: EngineInfo, max_queue: int) -> None:
        super().__init__(llava, info, max_queue, slots=1)
        self._grammars = Grammars(llava)

    async def aclose(self) -> None:
        """As `ThreadEngine.aclose`; returns when the thread has ended."""
        await super().aclose()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _outcome(self, job: Job) -> Chunk | DemoError:
        try:
            return self._answer(job)
        except Exception as error:  # noqa: BLE001, the top of a thread: the caller must be told of any failure
            if is_broken_gpu(error):
                self._turns.refuse_all(BROKEN_GPU)
            failure = failure_of(error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # here, where the exception no longer holds the tensors of its frames
        return failure

    def _answer(self, job: Job) -> Chunk:
        if job.is_cancelled.is_set():
            return Chunk(finish_reason="stop", usage=Usage(0, 0))  # nobody reads it
        llava, sampling = self.llava, job.request.sampling
        inputs = llava.prompt(job.request.messages, job.request.is_raw)
        ids = inputs["input_ids"]
        of_pictures = int((ids == llava.image_token_id).sum())
        room = answer_room(llava, sampling.max_tokens, ids.shape[1], of_pictures, llava.context_tokens)
        answer = Answer(llava.tokenizer, job.request, llava.end_ids)
        grammar = self._grammars.of(sampling.json_schema)
        sampler = _Sampler(Draw(sampling, ids[0], llava.image_token_id, llava.vocabulary, grammar))
        llava.model.generate(
            **inputs,
            do_sample=False,  # what `_Sampler` returns has its maximum at the choice
            max_new_tokens=room,
            eos_token_id=sorted(sampling.end_ids(llava.end_ids)) or -1,
            logits_processor=LogitsProcessorList([sampler]),
            stopping_criteria=StoppingCriteriaList([_StopWhen(lambda: answer.is_whole or job.is_cancelled.is_set())]),
            streamer=_Streamer(answer, lambda: sampler.likelihood, job.put),
        )
        if grammar and grammar.failure:
            raise grammar.failure
        return answer.last(ids.shape[1])


class _Sampler(LogitsProcessor):
    """Draws the next token of one request; what it returns has its maximum there."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.likelihood: TokenLikelihood | None = None  # the last drawn token's, if log-probabilities are wanted

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002, the base's signature
        (token,) = choose(scores, [self.draw])
        (self.likelihood,) = likelihoods(scores, [token], [self.draw])
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([token], device=scores.device), 0)


class _Streamer(TextIteratorStreamer):
    """Gives the chunks of an answer to `deliver`, in the thread of `generate`, as soon as they are certain.

    It differs from its base in two things. The text is the `Answer`'s, which ends at a stop string and keeps the space
    that the base loses at the start of a line (5.23 with Llama's vocabulary: "a\\n  - b" becomes "a\\n - b"). And there
    is no queue of texts, on which a thread would have to wait: our callers wait on event loops.
    """

    def __init__(
        self, answer: Answer, likelihood: Callable[[], TokenLikelihood | None], deliver: Callable[[Chunk], None]
    ) -> None:
        super().__init__(answer.tokenizer, skip_prompt=True)
        self.answer, self.likelihood, self.deliver = answer, likelihood, deliver
        self.next_tokens_are_prompt = True

    def put(self, value: Tensor) -> None:
        """Skip the prompt, (1, tokens), and take each new token after it, (1,)."""
        is_prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
        if is_prompt or self.answer.is_whole:
            return
        self._deliver(self.answer.add(int(value), self.likelihood()))

    def end(self) -> None:
        """Deliver what was held back, now that nothing follows."""
        self.next_tokens_are_prompt = True
        self._deliver(self.answer.rest())

    def _deliver(self, chunk: Chunk) -> None:
        if chunk != Chunk():
            self.deliver(chunk)


class _StopWhen(StoppingCriteria):
    """Ends `generate` when `is_over` says so: at a cancel before the next token, at a stop string one token after it.

    transformers 5.23 asks the criteria before it feeds the streamer; the token too many is not part of the answer.
    """

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self.is_over = is_over

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:  # noqa: ARG002
        return torch.full((input_ids.shape[0],), self.is_over(), device=input_ids.device)
