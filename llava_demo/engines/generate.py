"""GenerateEngine: `model.generate` in a thread, one request at a time. The reference for every other engine.

It knows nothing of the ways in: requests come from `stream`, on any event loop, and chunks go back to it.
"""

import asyncio
import logging
import secrets
import threading
import traceback
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import PIL.Image
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from llava_demo.chat import MAX_SEED, ChatRequest, Chunk, SamplingParams, Usage
from llava_demo.engines import EngineInfo, EngineLoad
from llava_demo.engines.detokenizer import Detokenizer
from llava_demo.engines.sampler import MIN_TEMPERATURE, draw_key, filtered, gumbel_noise, penalised
from llava_demo.engines.streamer import AnswerStreamer, StopWhen
from llava_demo.errors import (
    DemoError,
    EngineBusy,
    EngineUnavailable,
    GenerationFailed,
    InvalidRequest,
    PromptTooLong,
)
from llava_demo.images import Image
from llava_demo.llava import Llava

HEARTBEAT_S = 0.5
MIN_ANSWER_TOKENS = 16  # a prompt that leaves less than this (or than `max_tokens`, if that is less) does not fit

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job:
    """One request on its way: made on the caller's event loop, worked on in the engine's thread."""

    request: ChatRequest
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    items: asyncio.Queue[Chunk | DemoError] = field(default_factory=asyncio.Queue)
    is_cancelled: threading.Event = field(default_factory=threading.Event)

    def put(self, item: Chunk | DemoError) -> None:
        """Hand `item` to the caller, from any thread."""
        try:
            self.loop.call_soon_threadsafe(self.items.put_nowait, item)
        except RuntimeError:  # the caller's loop is closed: nobody reads any more
            self.is_cancelled.set()


class GenerateEngine:
    """An `Engine` whose callers may be on any number of threads and event loops.

    One request is answered at a time, the others wait in a line of `max_queue` places. A thread answers them; it exists
    only while there is work.
    """

    def __init__(self, llava: Llava, info: EngineInfo, max_queue: int) -> None:
        self.llava, self.info = llava, info
        self._max_queue = max_queue
        self._lock = threading.Lock()  # over the four below
        self._line: deque[_Job] = deque()
        self._running: _Job | None = None  # while there is one, there is a thread
        self._thread: threading.Thread | None = None
        self._refusal: str | None = None  # why nothing is answered any more

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        """Answer `request`; see `Engine.stream`."""
        self._check_pictures(request)
        job = _Job(request)
        self._admit(job)
        try:
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        item = await job.items.get()
                except TimeoutError:
                    item = Chunk()
                if isinstance(item, DemoError):
                    raise item
                yield item
                if item.finish_reason:
                    return
        finally:
            self._cancel(job)

    def load(self) -> EngineLoad:
        with self._lock:
            running, waiting = int(self._running is not None), len(self._line)
            return EngineLoad("failed" if self._refusal else "ready", running, waiting)

    async def aclose(self) -> None:
        """End what runs, refuse what waits and what will come; returns when the thread has ended."""
        thread = self._refuse_all("The server is shutting down.")
        if thread is not None:
            await asyncio.to_thread(thread.join)

    def seen(self, image: Image) -> PIL.Image.Image:
        """The square that the model looks at for `image`."""
        return self.llava.seen(image)

    def _check_pictures(self, request: ChatRequest) -> None:
        if len(request.images) > self.info.max_images:
            raise InvalidRequest(
                f"The conversation has {len(request.images)} pictures; at most {self.info.max_images} are allowed.",
                "messages",
            )

    def _admit(self, job: _Job) -> None:
        with self._lock:
            if self._refusal:
                raise EngineUnavailable(self._refusal)
            if self._running is None:
                thread = threading.Thread(target=self._work, args=(job,), name="generate", daemon=True)
                thread.start()
                self._running, self._thread = job, thread
            elif len(self._line) < self._max_queue:
                self._line.append(job)
            else:
                raise EngineBusy(
                    f"One question is being answered and {len(self._line)} are waiting, the most that may wait; "
                    "try again in a few seconds."
                )

    def _cancel(self, job: _Job) -> None:
        job.is_cancelled.set()
        with self._lock:
            if job in self._line:
                self._line.remove(job)

    def _refuse_all(self, why: str) -> threading.Thread | None:
        """Refuse all requests, there or to come, with `why`; returns the thread that may still be at work."""
        with self._lock:
            self._refusal = why
            refused = [*self._line, *([self._running] if self._running else [])]
            self._line.clear()
            thread = self._thread
        for job in refused:
            job.is_cancelled.set()
            job.put(EngineUnavailable(why))
        return thread

    def _work(self, job: _Job | None) -> None:
        """The thread: answers one job after the other until the line is empty."""
        while job is not None:
            last = self._outcome(job)
            with self._lock:
                done, job = job, self._line.popleft() if self._line else None
                self._running = job
            done.put(last)  # only now: who has its answer finds the engine free again

    def _outcome(self, job: _Job) -> Chunk | DemoError:
        """The last chunk, or why there is none."""
        try:
            return self._answer(job)
        except DemoError as error:
            return error
        except Exception as error:  # noqa: BLE001, the top of a thread: whatever it is, the caller must hear of it
            # As everywhere in the log: the class and the places in the code, not the words, which may quote a prompt.
            trace = "".join(traceback.format_tb(error.__traceback__))
            _log.error("generation failed: %s", type(error).__name__, extra={"trace": trace})
            if isinstance(error, torch.AcceleratorError):  # CUDA answers every call with it from now on
                self._refuse_all("The GPU reported an error that only a restart of the server mends.")
            failure = _failure_of(error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # here, where the exception no longer holds the tensors of its frames
        return failure

    def _answer(self, job: _Job) -> Chunk:
        if job.is_cancelled.is_set():
            return Chunk(finish_reason="stop", usage=Usage(0, 0))  # nobody reads it
        sampling = job.request.sampling
        inputs = self.llava.prompt(job.request.messages, job.request.is_raw)
        ids = inputs["input_ids"]
        text = Detokenizer(self.llava.tokenizer, sampling.stop)
        streamer = AnswerStreamer(text, self.llava.end_ids, lambda new: job.put(Chunk(new)))
        self.llava.model.generate(
            **inputs,
            do_sample=False,  # what `_Sampler` returns has its maximum at the choice
            max_new_tokens=self._room(ids.shape[1], sampling.max_tokens),
            logits_processor=LogitsProcessorList([_Sampler(sampling, ids, self.llava.image_token_id)]),
            stopping_criteria=StoppingCriteriaList([StopWhen(lambda: text.has_stopped or job.is_cancelled.is_set())]),
            streamer=streamer,
        )
        usage = Usage(ids.shape[1], streamer.tokens)
        return Chunk(finish_reason="stop" if streamer.is_whole else "length", usage=usage)

    def _room(self, prompt_tokens: int, max_tokens: int) -> int:
        """How many tokens the answer may have: `max_tokens`, or what the prompt leaves of the context."""
        left, needed = self.llava.context_tokens - prompt_tokens, min(max_tokens, MIN_ANSWER_TOKENS)
        if left < needed:
            raise PromptTooLong(
                f"The conversation takes {prompt_tokens:,} tokens (a picture takes {self.llava.image_tokens:,}), and "
                f"its answer at least {needed}; the model holds {self.llava.context_tokens:,}. Send less, or start a "
                "new conversation.",
                "messages",
            )
        return min(max_tokens, left)


def _failure_of(error: Exception) -> DemoError:
    is_cpu_memory = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's words
    if is_cpu_memory or isinstance(error, torch.OutOfMemoryError | MemoryError):
        return EngineUnavailable("Out of memory: try again with fewer pictures, or with a shorter conversation.")
    if isinstance(error, torch.AcceleratorError):
        return EngineUnavailable("The GPU reported an error.")
    return GenerationFailed("The model failed while it answered; please try again.")


class _Sampler(LogitsProcessor):
    """The knobs of one request; what it returns has its maximum at the next token."""

    def __init__(self, sampling: SamplingParams, prompt: Tensor, image_token_id: int) -> None:
        def row(knob: float) -> Tensor:
            return torch.tensor([[knob]], device=prompt.device)

        self.seed = sampling.seed if sampling.seed is not None else secrets.randbelow(MAX_SEED)
        self.is_greedy = sampling.is_greedy
        self.temperature = row(max(sampling.temperature, MIN_TEMPERATURE))
        self.filters = [row(sampling.top_k), row(sampling.top_p), row(sampling.min_p)]
        penalties = (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        self.penalties = [row(penalty) for penalty in penalties] if penalties != (1, 0, 0) else []
        self.prompt_tokens = prompt.shape[1]
        self.image_token_id = image_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.penalties:
            scores = self._penalised(input_ids, scores)
        if self.is_greedy:
            return scores
        key = draw_key(self.seed, input_ids.shape[1] - self.prompt_tokens)
        noise = gumbel_noise(torch.tensor([[key]], device=scores.device), scores.shape[-1])
        return filtered(scores / self.temperature, *self.filters) + noise

    def _penalised(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        prompt, answer = input_ids[:, : self.prompt_tokens], input_ids[:, self.prompt_tokens :]
        counts = torch.zeros_like(scores).scatter_add_(1, answer, torch.ones_like(answer, dtype=scores.dtype))
        in_prompt = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, prompt, True)
        in_prompt[:, self.image_token_id] = False  # it stands for the rows of pictures and is no text
        return penalised(scores, in_prompt, counts, *self.penalties)
