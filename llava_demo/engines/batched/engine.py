"""BatchedEngine: many questions at once, each faster than alone. The default where there is a CPU or a CUDA GPU.

It admits, reads and delivers; `continuous.Batch` runs the model. It knows nothing of the ways in.
"""

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

import torch

from llava_demo.chat import Chunk
from llava_demo.engines import EngineInfo, EngineStatus
from llava_demo.engines.answer import Answer
from llava_demo.engines.batched.continuous import PAGE_TOKENS, Batch, BatchSize, Token
from llava_demo.engines.batched.shortcuts import skip_unseen_layers
from llava_demo.engines.jobs import SHUTTING_DOWN, Job
from llava_demo.engines.local import BROKEN_GPU, LocalEngine, answer_room, failure_of, is_out_of_memory
from llava_demo.engines.queue import FairQueue
from llava_demo.engines.sampler import Draw
from llava_demo.errors import DemoError, EngineUnavailable
from llava_demo.model.image_tokens import ImageTokens, Prompt
from llava_demo.model.llava import Llava

RESERVED_ANSWER_TOKENS = 256  # that an answer is thought to need; a longer one may push out another for a while
SMALLEST_CHUNK = 64


@dataclass(eq=False)
class _Chat:
    """A request that was read, and its answer as it grows."""

    job: Job
    prompt: Prompt
    room: int
    answer: Answer
    draw: Draw
    name: str = ""  # among those that are answered; empty while it waits
    is_in_batch: bool = False

    @property
    def reserved(self) -> int:
        return len(self.prompt.ids) + min(self.room, RESERVED_ANSWER_TOKENS)


class BatchedEngine(LocalEngine):
    """`size` says how many are answered at once; `max_queue` more may wait.

    One thread reads conversations and prepares
    their pictures, another runs the model, step by step. After a failure in a step those who were in it are told, and
    the rest goes on with an empty cache.
    """

    def __init__(self, llava: Llava, info: EngineInfo, max_queue: int, size: BatchSize) -> None:
        super().__init__(llava, info)
        skip_unseen_layers(llava.model)
        self.images = ImageTokens(llava, max_rows=size.tokens)
        self.size = size
        self.batch = Batch(llava, self.images, size)
        self._names = (f"chat-{number}" for number in count())
        self._changed = threading.Condition()  # and its lock is over the five below
        self._queue: FairQueue[Job] = FairQueue(size.requests, max_queue)  # all that have not ended
        self._read: dict[Job, _Chat] = {}  # those that were read and wait
        self._chats: dict[str, _Chat] = {}  # those that are answered
        self._refusal: str | None = None  # why nothing is answered any more
        self._state: Literal["ready", "restarting", "failed"] = "ready"
        self._reader = ThreadPoolExecutor(1, "read")
        self._thread = threading.Thread(target=self._work, name="batch", daemon=True)
        self._thread.start()

    def status(self) -> EngineStatus:
        with self._changed:
            queue = self._queue
            return EngineStatus(self._state, queue.running, queue.waiting, self.batch.shareable_tokens)

    async def aclose(self) -> None:
        """End what runs, refuse what waits and what will come; returns when the threads have ended."""
        self._refuse_all(SHUTTING_DOWN)
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._reader.shutdown)

    # On the callers' event loops

    def _admit(self, job: Job) -> None:
        with self._changed:
            if self._refusal:
                raise EngineUnavailable(self._refusal)
            self._queue.push(job, job.request.caller)
        self._reader.submit(self._read_next)

    def _cancel(self, job: Job) -> None:
        """Let go of a request, whether it has ended or its caller has gone."""
        with self._changed:
            job.is_cancelled.set()
            if not self._queue.has_slot(job):  # else the thread that runs the model lets go of it
                self._queue.remove(job)
                self._read.pop(job, None)
            self._changed.notify()

    # In the thread that reads

    def _read_next(self) -> None:
        """Read the request that gets a slot first among those that nobody has read."""
        with self._changed:
            job = next((job for job in self._queue.in_order() if job not in self._read), None)
        if job is None:
            return  # the caller has gone
        try:
            chat = self._chat(job)
        except DemoError as error:
            self._end(job, error)
        except Exception as error:  # noqa: BLE001, the top of a thread
            self._end(job, failure_of(error))
        else:
            with self._changed:
                if not job.is_cancelled.is_set():  # else its caller has gone meanwhile
                    self._read[job] = chat
                    self._changed.notify()

    def _chat(self, job: Job) -> _Chat:
        llava, sampling = self.llava, job.request.sampling
        prompt = self.images.prompt(job.request.messages, job.request.is_raw)
        held = min(llava.context_tokens, self.size.tokens - PAGE_TOKENS)
        room = answer_room(llava, len(prompt.ids), sampling.max_tokens, held)
        ids = torch.tensor(prompt.ids, device=llava.model.device)
        draw = Draw(sampling, ids, llava.image_token_id, llava.vocabulary)
        return _Chat(job, prompt, room, Answer(llava.tokenizer, sampling, llava.end_ids), draw)

    # In the thread that runs the model

    def _work(self) -> None:
        try:
            while self._has_work():
                try:
                    self._drop_cancelled()
                    self._take_in()
                    self._deliver(self.batch.step())
                except Exception as error:  # noqa: BLE001, whatever it is, the callers must hear of it
                    self._recover(error)
        finally:  # closed, or something went wrong beyond recovery: nobody may wait for ever
            self._refuse_all("The engine has stopped; the server must be restarted.")
            with self._changed:
                self._chats.clear()

    def _has_work(self) -> bool:
        """Wait for something to do; False when the engine is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._read or self._chats or self._refusal)
            return self._refusal is None

    def _drop_cancelled(self) -> None:
        for chat in [chat for chat in self._chats.values() if chat.job.is_cancelled.is_set()]:
            self._leave(chat)
            with self._changed:
                self._queue.remove(chat.job)

    def _take_in(self) -> None:
        """Add waiting requests to the batch in the order of the queue, as long as there is room.

        A new picture is encoded in one turn and read in the next: so who is being answered waits for one at a time.
        """
        for encoded in self._chats.values():
            self._add(encoded)
        while (chat := self._next()) is not None:
            is_new_picture = bool(self.images.missing(chat.prompt))
            try:
                self.images.hold(chat.prompt)
            except torch.AcceleratorError:
                raise
            except Exception as error:  # noqa: BLE001, a picture that cannot be encoded fails its own request only
                self._end(chat.job, failure_of(error))
                continue
            chat.name = next(self._names)
            with self._changed:
                self._chats[chat.name] = chat
            if not is_new_picture or len(self._chats) == 1:
                self._add(chat)
            if is_new_picture:
                return

    def _add(self, chat: _Chat) -> None:
        if not chat.is_in_batch:
            chat.is_in_batch = True
            self.batch.add(chat.name, chat.prompt.ids, chat.room, chat.draw)

    def _next(self) -> _Chat | None:
        """Take the request whose turn it is, if there is room for it and nothing that it should wait for."""
        with self._changed:
            job = self._queue.first()
            if job not in self._read:
                return None
            chat = self._read[job]
            reserved = sum(other.reserved for other in self._chats.values()) + chat.reserved
            if self._chats and (reserved > self.size.tokens or not self.images.fits(chat.prompt)):
                return None
            if self.size.is_sharing and self._is_read_now(chat.prompt):
                return None  # in a moment its keys and values are there to be shared
            self._queue.take(job)
            return self._read.pop(job)

    def _is_read_now(self, prompt: Prompt) -> bool:
        """True while somebody else's question about the same picture is on its way to its first token."""
        reading = (other.prompt.pictures[:1] for other in self._chats.values() if not other.answer.tokens)
        return bool(prompt.pictures) and prompt.pictures[:1] in reading

    def _deliver(self, tokens: list[Token]) -> None:
        for token in tokens:
            chat = self._chats[token.request_id]
            _put(chat.job, chat.answer.add(token.token, token.likelihood))
            if token.is_last or chat.answer.is_whole:
                _put(chat.job, chat.answer.rest())
                cached = self.batch.cached_tokens.get(chat.name, 0)
                self._leave(chat)
                self._end(chat.job, chat.answer.last(len(chat.prompt.ids), cached))

    def _leave(self, chat: _Chat) -> None:
        """Free what a chat holds."""
        self.batch.remove(chat.name)
        self.images.release(chat.prompt)
        with self._changed:
            del self._chats[chat.name]

    def _recover(self, error: Exception) -> None:
        """Tell those who were being answered, and start again with an empty cache."""
        failure = failure_of(error)
        if isinstance(error, torch.AcceleratorError):  # CUDA answers every call with it from now on
            self._refuse_all(BROKEN_GPU)
            return
        with self._changed:
            failed, self._chats = self._chats, {}
            self._state = "restarting"
        for chat in failed.values():
            self.images.release(chat.prompt)
            self._end(chat.job, failure)
        if is_out_of_memory(error):
            self.size = replace(self.size, chunk=min(self.size.chunk, max(self.size.chunk // 2, SMALLEST_CHUNK)))
        del error, failed  # the exception holds the tensors of its frames
        try:
            self.batch.close()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.batch = Batch(self.llava, self.images, self.size)
        except Exception as again:  # noqa: BLE001, whatever it is, nothing can be answered any more
            failure_of(again)
            self._refuse_all("The engine failed and could not be started again; the server must be restarted.")
            return
        with self._changed:
            self._state = "failed" if self._refusal else "ready"

    def _end(self, job: Job, item: Chunk | DemoError) -> None:
        with self._changed:
            self._queue.remove(job)
        job.put(item)  # only now: a caller that has its answer finds the slot free again

    def _refuse_all(self, why: str) -> None:
        """Refuse all requests, there or to come, with `why`; the thread ends."""
        with self._changed:
            self._state, self._refusal = "failed", self._refusal or why
            refused = self._queue.clear()
            self._read.clear()
            self._changed.notify()
        for job in refused:
            job.is_cancelled.set()
            job.put(EngineUnavailable(why))


def _put(job: Job, chunk: Chunk) -> None:
    if chunk != Chunk():
        job.put(chunk)
