"""`BatchedEngine`: many requests at once, each faster than alone. The default where there is a CPU or a CUDA GPU.

It admits requests, prepares and encodes their pictures, and delivers answers; `Batch` runs the model. It knows nothing
of endpoints.
"""

import asyncio
import gc
import logging
import threading
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import torch

from llava_demo.chat import Chunk
from llava_demo.engines import EngineInfo, EngineStatus
from llava_demo.engines.answer import Answer
from llava_demo.engines.batched.batch import Batch, Drawn
from llava_demo.engines.batched.pages import PAGE_TOKENS
from llava_demo.engines.batched.schedule import BatchSize, Request
from llava_demo.engines.grammar import Grammars
from llava_demo.engines.jobs import (
    BROKEN_GPU,
    SHUTTING_DOWN,
    Job,
    JobEngine,
    answer_room,
    failure_of,
    is_broken_gpu,
    is_out_of_memory,
)
from llava_demo.engines.queue import FairQueue
from llava_demo.engines.sampler import BROKEN, Draw
from llava_demo.errors import DemoError, EngineUnavailable
from llava_demo.model import native
from llava_demo.model.image_tokens import ImageTokens, Prompt
from llava_demo.model.llava import Llava

RESERVED_ANSWER_TOKENS = 256  # reserved for each answer; a longer one may preempt another for a while
READ_AHEAD = 4  # waiting requests whose prompts and pictures are prepared; the others keep their pictures as bytes

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Chat:
    """A job whose prompt was tokenized, and its answer as it grows."""

    job: Job
    prompt: Prompt
    request: Request
    answer: Answer
    is_in_batch: bool = False

    @property
    def reserved(self) -> int:
        return self.request.prompt_tokens + min(self.request.room, RESERVED_ANSWER_TOKENS)


class BatchedEngine(JobEngine):
    """Answers as many requests at once as `size` says; `max_queue` more may wait.

    One thread reads prompts and prepares their pictures, another runs the model, step by step. When a step fails, its
    requests fail, and the engine continues with an empty cache.
    """

    def __init__(self, llava: Llava, info: EngineInfo, max_queue: int, size: BatchSize) -> None:
        """Raises:
        ValueError: this model cannot be batched; the message says why.
        """
        super().__init__(llava, info)
        self.images = ImageTokens(llava, max_rows=size.tokens)
        self.size, self._grammars = size, Grammars(llava)
        self.batch = Batch(llava, self.images, size)
        self._warm_up()
        self._changed = threading.Condition()  # its lock is over the five below
        self._queue: FairQueue[Job] = FairQueue(size.requests, max_queue)  # all jobs that have not ended
        self._ready: dict[Job, _Chat] = {}  # of waiting jobs whose prompts were read
        self._chats: dict[Request, _Chat] = {}  # of jobs that have a slot
        self._refusal: str | None = None  # why nothing is answered any more
        self._state: Literal["ready", "restarting", "failed"] = "ready"
        self._threads = [
            threading.Thread(target=self._read_ahead, name="read", daemon=True),
            threading.Thread(target=self._work, name="batch", daemon=True),
        ]
        native.release_threads()
        for thread in self._threads:
            thread.start()

    def _warm_up(self) -> None:
        """Run everything once that a GPU does slowly the first time; a picture's features take over a second then."""
        if (words := self.batch.warm_up()) is not None:
            self.llava.features(self.llava.sample_inputs())
            self.info = replace(self.info, reasons=(*self.info.reasons, words))
            _log.info(words)

    def status(self) -> EngineStatus:
        with self._changed:
            queue, pages = self._queue, self.batch.pages
            cached, held = PAGE_TOKENS * pages.shareable, PAGE_TOKENS * pages.used
            return EngineStatus(self._state, queue.running, queue.waiting, cached, held, self.images.holders)

    async def aclose(self) -> None:
        """Cancel what runs, refuse what waits and what will come; returns when the threads have ended."""
        self._refuse_all(SHUTTING_DOWN)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    # On the callers' event loops

    def _check_room(self, caller: str) -> None:
        with self._changed:
            if self._refusal:
                raise EngineUnavailable(self._refusal)
            self._queue.check(caller)

    def _admit(self, job: Job) -> None:
        with self._changed:
            if self._refusal:
                raise EngineUnavailable(self._refusal)
            self._queue.push(job, job.request.caller)
            self._changed.notify_all()

    def _cancel(self, job: Job) -> None:
        with self._changed:
            job.is_cancelled.set()
            if not self._queue.has_slot(job):  # else the thread that runs the model removes it
                self._queue.remove(job)
                self._ready.pop(job, None)
            self._changed.notify_all()

    # In the thread that reads

    def _read_ahead(self) -> None:
        while (job := self._next_unread()) is not None:
            try:
                chat = self._read(job)
            except Exception as error:  # noqa: BLE001, the top of a thread
                self._end(job, failure_of(error))
            else:
                with self._changed:
                    if not job.is_cancelled.is_set():
                        self._ready[job] = chat
                        self._changed.notify_all()
                del chat
            del job  # this thread must not keep a request while it waits
            native.release_threads()

    def _next_unread(self) -> Job | None:
        """Wait for an unread request near the front of the queue; None when the engine is closed."""
        with self._changed:
            while not self._refusal:
                near = islice(self._queue.in_order(), READ_AHEAD)
                if (job := next((job for job in near if job not in self._ready), None)) is not None:
                    return job
                self._changed.wait()
        return None

    def _read(self, job: Job) -> _Chat:
        llava, sampling = self.llava, job.request.sampling
        prompt = self.images.prompt(job.request.messages, job.request.is_raw)
        held = min(llava.context_tokens, self.size.tokens - PAGE_TOKENS)
        of_pictures = sum(len(picture.ids) for picture in prompt.pictures)
        room = answer_room(llava, sampling.max_tokens, len(prompt.ids), of_pictures, held)
        ids = torch.tensor(prompt.ids, device=llava.model.device)
        draw = Draw(sampling, ids, llava.image_token_id, llava.vocabulary, self._grammars.of(sampling.json_schema))
        answer = Answer(llava.tokenizer, job.request, llava.end_ids)
        return _Chat(job, prompt, Request(list(prompt.ids), room, draw), answer)

    # In the thread that runs the model

    def _work(self) -> None:
        drawn: list[Drawn] = []
        if self.llava.model.device.type == "cuda":
            torch.cuda.set_device(self.llava.model.device)  # this thread's device, where there are several
        try:
            while self._has_work():
                try:
                    self._drop_cancelled()
                    drawn = self._step(drawn)
                except Exception as error:  # noqa: BLE001, the top of a thread: the callers must be told
                    drawn = []
                    self._recover(error)
        finally:  # closed, or failed for good: no caller may wait for ever
            self._refuse_all("The engine has stopped; the server must be restarted.")
            with self._changed:
                self._chats.clear()

    def _step(self, drawn: list[Drawn]) -> list[Drawn]:
        """Run the model once; the tokens of the previous step are delivered while a GPU computes."""
        try:
            step = self.batch.start()
        finally:
            self._deliver(drawn)
        self._take_in()
        return self.batch.finish(step)

    def _has_work(self) -> bool:
        """Wait for something to do; False when the engine is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._chats or self._refusal or self._queue.first() in self._ready)
            return self._refusal is None

    def _drop_cancelled(self) -> None:
        for chat in [chat for chat in self._chats.values() if chat.job.is_cancelled.is_set()]:
            self._leave(chat)
            with self._changed:
                self._queue.remove(chat.job)

    def _take_in(self) -> None:
        """Add waiting requests to the batch in the order of the queue, as long as there is room.

        A new picture is encoded in one step, and its prompt is computed in the next one: so the pause for the requests
        in the batch is one of the two, not both.
        """
        for encoded in self._chats.values():
            self._add(encoded)
        while (chat := self._next()) is not None:
            is_new_picture = bool(self.images.missing(chat.prompt))
            try:
                self.images.hold(chat.prompt)
            except Exception as error:
                if is_broken_gpu(error):
                    raise
                self._end(chat.job, failure_of(error))  # only this request fails
                continue
            with self._changed:
                self._chats[chat.request] = chat
            if not is_new_picture or len(self._chats) == 1:
                self._add(chat)
            if is_new_picture:
                return

    def _add(self, chat: _Chat) -> None:
        if not chat.is_in_batch:
            chat.is_in_batch = True
            self.batch.add(chat.request)

    def _next(self) -> _Chat | None:
        """Take the first waiting request, if there is room for it.

        A request is passed over while its picture is read for another one: soon they can share keys and values.
        """
        with self._changed:
            if self._queue.running >= self._queue.slots:
                return None
            for job in self._queue.in_order():
                chat = self._ready.get(job)
                if chat is None or not self._has_room(chat):
                    return None
                if not (self.size.is_sharing and self._is_read_now(chat.prompt)):
                    self._queue.take(job)
                    return self._ready.pop(job)
            return None

    def _has_room(self, chat: _Chat) -> bool:
        reserved = sum(other.reserved for other in self._chats.values()) + chat.reserved
        return not self._chats or (reserved <= self.size.tokens and self.images.fits(chat.prompt))

    def _is_read_now(self, prompt: Prompt) -> bool:
        """True while another request with the same first picture has no token yet."""
        reading = (other.prompt.pictures[:1] for other in self._chats.values() if not other.answer.tokens)
        return bool(prompt.pictures) and prompt.pictures[:1] in reading

    def _deliver(self, drawn: list[Drawn]) -> None:
        for token in drawn:
            chat = self._chats.get(token.request)
            if chat is None:
                continue  # it was cancelled
            try:
                end = _put(chat, token)
            except Exception as error:  # noqa: BLE001, only this request fails
                end = failure_of(error)
            if end is not None:
                self._leave(chat)
                if token.token == BROKEN:
                    self.images.forget(chat.prompt)
                self._end(chat.job, end)

    def _leave(self, chat: _Chat) -> None:
        """Free what a chat holds, except for its slot."""
        self.batch.remove(chat.request)
        self.images.release(chat.prompt)
        with self._changed:
            del self._chats[chat.request]

    def _recover(self, error: Exception) -> None:
        """Tell the callers of the batch, and start again with an empty cache."""
        failure = failure_of(error)
        if is_broken_gpu(error):
            self._refuse_all(BROKEN_GPU)
            return
        with self._changed:
            failed, self._chats = self._chats, {}
            self._state = "restarting"
        for chat in failed.values():
            self.images.release(chat.prompt)
            self._end(chat.job, failure)
        if is_out_of_memory(error):
            self.size = self.size.with_smaller_chunks()
        error.__traceback__, failed = None, {}  # its frames hold tensors of the step
        try:
            self.batch.close()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.batch = Batch(self.llava, self.images, self.size)
            self.batch.warm_up()
        except Exception as again:  # noqa: BLE001, the top of a thread: nothing can be answered any more
            failure_of(again)
            self._refuse_all("The engine failed and could not be started again; the server must be restarted.")
            return
        with self._changed:
            self._state = "failed" if self._refusal else "ready"

    def _end(self, job: Job, item: Chunk | DemoError) -> None:
        with self._changed:
            self._queue.remove(job)
            self._changed.notify_all()
        job.put(item)  # only now: a caller that has its answer finds the slot free again

    def _refuse_all(self, why: str) -> None:
        """Refuse all requests, those that are here and those that will come; the threads end."""
        with self._changed:
            self._state, self._refusal = "failed", self._refusal or why
            refused = self._queue.clear()
            self._ready.clear()
            self._changed.notify_all()
        for job in refused:
            job.is_cancelled.set()
            job.put(EngineUnavailable(why))


def _put(chat: _Chat, token: Drawn) -> Chunk | DemoError | None:
    """Hand the text of a token to the caller; returns what ends the answer, if this token does."""
    if token.token == BROKEN:
        raise FloatingPointError
    answer, request = chat.answer, chat.request
    chunks = [answer.add(token.token, token.likelihood)]
    if is_last := token.is_last or answer.is_whole:
        chunks.append(answer.rest())
    for chunk in filter(Chunk().__ne__, chunks):
        chat.job.put(chunk)
    if not is_last:
        return None
    grammar = request.draw.grammar
    return (grammar and grammar.failure) or answer.last(request.prompt_tokens, request.cached_tokens or 0)
