"""GenerateEngine: plain `model.generate`, one request at a time, in a thread. The reference for every other engine."""

import asyncio
import logging
import secrets
import threading
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from llava_demo.chat import MAX_SEED, ChatRequest, Chunk, SamplingParams, Usage
from llava_demo.engines import EngineInfo, EngineLoad
from llava_demo.engines.detokenizer import Detokenizer
from llava_demo.engines.sampler import draw_key, filtered, gumbel_noise, penalised
from llava_demo.errors import (
    DemoError,
    EngineBusy,
    EngineUnavailable,
    GenerationFailed,
    InvalidRequest,
    PromptTooLong,
)
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
    def __init__(self, llava: Llava, info: EngineInfo, max_queue: int = 16) -> None:
        self.llava, self.info, self._max_queue = llava, info, max_queue
        self._lock = threading.Lock()  # over the three below
        self._line: deque[_Job] = deque()
        self._running: _Job | None = None  # while there is one, there is a thread
        self._thread: threading.Thread | None = None
        self._is_closed = False

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
            return EngineLoad(
                "failed" if self._is_closed else "ready",
                running=int(self._running is not None),
                waiting=len(self._line),
            )

    async def aclose(self) -> None:
        """End what runs, refuse what waits and what will come; returns when the thread has ended."""
        with self._lock:
            self._is_closed = True
            ended = [*self._line, *([self._running] if self._running else [])]
            self._line.clear()
            thread = self._thread
        for job in ended:
            job.is_cancelled.set()
            job.put(EngineUnavailable("The server is shutting down."))
        if thread is not None:
            await asyncio.to_thread(thread.join)

    def _check_pictures(self, request: ChatRequest) -> None:
        if len(request.images) > self.info.max_images:
            raise InvalidRequest(
                f"The conversation has {len(request.images)} pictures; at most {self.info.max_images} are allowed.",
                "messages",
            )

    def _admit(self, job: _Job) -> None:
        with self._lock:
            if self._is_closed:
                raise EngineUnavailable("The server is shutting down.")
            if self._running is None:
                self._running = job
                self._thread = threading.Thread(target=self._work, args=(job,), name="generate", daemon=True)
                self._thread.start()
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

    def _work(self, job: _Job | None) -> None:
        """The thread: answers one job after the other until the line is empty."""
        while job is not None:
            last = self._outcome(job)
            with self._lock:  # before the caller gets the end, so that the seat is free when it asks again
                done, job = job, self._line.popleft() if self._line else None
                self._running = job
            done.put(last)

    def _outcome(self, job: _Job) -> Chunk | DemoError:
        """The last chunk, or why there is none."""
        try:
            return self._answer(job)
        except DemoError as error:
            return error
        except (torch.OutOfMemoryError, MemoryError):
            _log.exception("out of memory")
        except Exception:  # noqa: BLE001, the top of a thread: whatever it is, the caller must hear of it
            _log.exception("generation failed")
            return GenerationFailed("The model failed while it answered; please try again.")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # here, where the exception no longer holds the tensors of its frames
        return EngineUnavailable("Out of memory: try again with fewer or smaller pictures or a shorter answer.")

    def _answer(self, job: _Job) -> Chunk:
        if job.is_cancelled.is_set():
            return Chunk(finish_reason="stop", usage=Usage(0, 0))  # nobody reads it
        sampling = job.request.sampling
        inputs = self.llava.prompt(job.request.messages)
        prompt_tokens = inputs["input_ids"].shape[1]
        watch = _Watch(job, Detokenizer(self.llava.tokenizer, sampling.stop), self.llava.end_ids)
        self.llava.model.generate(
            **inputs,
            do_sample=False,  # `_Sampler` leaves scores whose argmax is the choice
            max_new_tokens=self._room(prompt_tokens, sampling.max_tokens),
            logits_processor=LogitsProcessorList([_Sampler(sampling, inputs["input_ids"], self.llava.image_token_id)]),
            stopping_criteria=StoppingCriteriaList([watch]),
        )
        rest = watch.text.end()
        is_whole = watch.has_ended or watch.text.has_stopped
        return Chunk(rest, "stop" if is_whole else "length", Usage(prompt_tokens, watch.tokens))

    def _room(self, prompt_tokens: int, max_tokens: int) -> int:
        """How many tokens the answer may have: `max_tokens`, or what the prompt leaves of the context."""
        left = self.llava.context_tokens - prompt_tokens
        if left < min(max_tokens, MIN_ANSWER_TOKENS):
            raise PromptTooLong(
                f"The conversation takes {prompt_tokens:,} tokens, a picture {self.llava.image_tokens:,} of them; "
                f"the model reads {self.llava.context_tokens:,}, and the answer needs at least "
                f"{min(max_tokens, MIN_ANSWER_TOKENS)}. Start a new conversation, or send less.",
                "messages",
            )
        return min(max_tokens, left)


class _Watch(StoppingCriteria):
    """Sees every token as it is drawn: hands its text to the caller, and says when to end.

    Not a streamer: transformers 5.23 asks the stopping criteria before it feeds the streamer, so that a stop string
    found by a streamer would stop the model one token late.
    """

    def __init__(self, job: _Job, text: Detokenizer, end_ids: frozenset[int]) -> None:
        self.job, self.text, self.end_ids = job, text, end_ids
        self.tokens = 0
        self.has_ended = False

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:  # noqa: ARG002, its signature
        token = int(input_ids[0, -1])
        self.tokens += 1
        self.has_ended = token in self.end_ids
        if new := self.text.add(token):
            self.job.put(Chunk(new))
        is_over = self.has_ended or self.text.has_stopped or self.job.is_cancelled.is_set()
        return torch.full((1,), is_over, device=input_ids.device)


class _Sampler(LogitsProcessor):
    """Applies the knobs of one request; the argmax of what it returns is the next token."""

    def __init__(self, sampling: SamplingParams, prompt: Tensor, image_token_id: int) -> None:
        self.sampling = sampling
        self.seed = sampling.seed if sampling.seed is not None else secrets.randbelow(MAX_SEED)
        self.prompt_tokens = prompt.shape[1]
        self.image_token_id = image_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = self._penalised(input_ids, scores)
        if self.sampling.is_greedy:
            return scores
        knobs = (self.sampling.top_k, self.sampling.top_p, self.sampling.min_p)
        top_k, top_p, min_p = (torch.tensor([[knob]], device=scores.device) for knob in knobs)
        kept = filtered(scores / self.sampling.temperature, top_k, top_p, min_p)
        key = draw_key(self.seed, input_ids.shape[1] - self.prompt_tokens)
        return kept + gumbel_noise(torch.tensor([[key]], device=scores.device), scores.shape[-1])

    def _penalised(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        sampling = self.sampling
        if sampling.repetition_penalty == 1 and not sampling.frequency_penalty and not sampling.presence_penalty:
            return scores
        prompt, answer = input_ids[:, : self.prompt_tokens], input_ids[:, self.prompt_tokens :]
        counts = torch.zeros_like(scores).scatter_add_(1, answer, torch.ones_like(answer, dtype=scores.dtype))
        in_prompt = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, prompt, True)
        in_prompt[:, self.image_token_id] = False  # a stand-in for picture rows, which are no text
        penalties = (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        return penalised(scores, in_prompt, counts, *(torch.tensor([[p]], device=scores.device) for p in penalties))
