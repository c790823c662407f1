"""GenerateEngine: `model.generate` in a thread, one request at a time. The reference for every other engine.

It knows nothing of endpoints: requests come from `stream`, on any event loop, and chunks go back to it.
"""

import asyncio
import threading

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from llava_demo.chat import Chunk, Usage
from llava_demo.engines import EngineInfo, EngineStatus
from llava_demo.engines.answer import Answer, TokenLikelihood
from llava_demo.engines.grammar import Grammars
from llava_demo.engines.jobs import BROKEN_GPU, SHUTTING_DOWN, Job, JobEngine, answer_room, failure_of, is_broken_gpu
from llava_demo.engines.queue import FairQueue
from llava_demo.engines.sampler import Draw, choose, likelihoods
from llava_demo.engines.streamer import AnswerStreamer, StopWhen
from llava_demo.errors import DemoError, EngineUnavailable
from llava_demo.model.llava import Llava


class GenerateEngine(JobEngine):
    """One request is answered at a time, the others wait in a fair queue of `max_queue` places.

    Its thread exists only while there is work.
    """

    def __init__(self, llava: Llava, info: EngineInfo, max_queue: int) -> None:
        super().__init__(llava, info)
        self._grammars = Grammars(llava)
        self._lock = threading.Lock()  # over the three below
        self._queue: FairQueue[Job] = FairQueue(slots=1, places=max_queue)  # while one runs, there is a thread
        self._thread: threading.Thread | None = None
        self._refusal: str | None = None  # why nothing is answered any more

    def status(self) -> EngineStatus:
        with self._lock:
            return EngineStatus("failed" if self._refusal else "ready", self._queue.running, self._queue.waiting)

    async def aclose(self) -> None:
        """End what runs, refuse what waits and what will come; returns when the thread has ended."""
        thread = self._refuse_all(SHUTTING_DOWN)
        if thread is not None:
            await asyncio.to_thread(thread.join)

    def _check_room(self, caller: str) -> None:
        with self._lock:
            if self._refusal:
                raise EngineUnavailable(self._refusal)
            self._queue.check(caller)

    def _admit(self, job: Job) -> None:
        with self._lock:
            if self._refusal:
                raise EngineUnavailable(self._refusal)
            self._queue.push(job, job.request.caller)
            if (first := self._queue.first()) is not None:
                self._queue.take(first)
                self._thread = threading.Thread(target=self._work, args=(first,), name="generate", daemon=True)
                self._thread.start()

    def _cancel(self, job: Job) -> None:
        job.is_cancelled.set()
        with self._lock:
            if not self._queue.has_slot(job):  # else the thread lets go of it
                self._queue.remove(job)

    def _refuse_all(self, why: str) -> threading.Thread | None:
        """Refuse all requests, there or to come, with `why`; returns the thread that may still be at work."""
        with self._lock:
            self._refusal = why
            refused, thread = self._queue.clear(), self._thread
        for job in refused:
            job.is_cancelled.set()
            job.put(EngineUnavailable(why))
        return thread

    def _work(self, job: Job | None) -> None:
        """The thread: answers one job after the other until none waits."""
        while job is not None:
            last = self._outcome(job)
            with self._lock:
                self._queue.remove(job)
                done, job = job, self._queue.first()
                if job is not None:
                    self._queue.take(job)
            done.put(last)  # only now: a caller that has its answer finds the slot free again

    def _outcome(self, job: Job) -> Chunk | DemoError:
        """The last chunk, or why there is none."""
        try:
            return self._answer(job)
        except DemoError as error:
            return error
        except Exception as error:  # noqa: BLE001, the top of a thread: the caller must be told of any failure
            if is_broken_gpu(error):
                self._refuse_all(BROKEN_GPU)
            failure = failure_of(error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # here, where the exception no longer holds the tensors of its frames
        return failure

    def _answer(self, job: Job) -> Chunk:
        if job.is_cancelled.is_set():
            return Chunk(finish_reason="stop", usage=Usage(0, 0))  # the caller has gone
        llava, sampling = self.llava, job.request.sampling
        inputs = llava.prompt(job.request.messages, job.request.is_raw)
        ids = inputs["input_ids"]
        room = answer_room(llava, ids.shape[1], sampling.max_tokens, llava.context_tokens)
        answer = Answer(llava.tokenizer, job.request, llava.end_ids)
        grammar = self._grammars.of(sampling.json_schema)
        sampler = _Sampler(Draw(sampling, ids[0], llava.image_token_id, llava.vocabulary, grammar))
        llava.model.generate(
            **inputs,
            do_sample=False,  # what `_Sampler` returns has its maximum at the choice
            max_new_tokens=room,
            eos_token_id=sorted(sampling.end_ids(llava.end_ids)) or -1,
            logits_processor=LogitsProcessorList([sampler]),
            stopping_criteria=StoppingCriteriaList([StopWhen(lambda: answer.is_whole or job.is_cancelled.is_set())]),
            streamer=AnswerStreamer(answer, lambda: sampler.likelihood, job.put),
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
