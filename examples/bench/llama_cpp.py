"""llama.cpp beside ours: driven by its C interface as its server drives it with `-np`, behind our `Engine`.

Needs the packages `llama-cpp-python` and `gguf`; see INSTALL. Greedy, without a vocabulary: an answer is the ids of its
tokens.
"""

import asyncio
import ctypes
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from examples.bench.gguf_files import make_gguf
from examples.bench.machine import Limits
from llava_demo.chat import ChatRequest, Chunk, Usage
from llava_demo.engines import EngineInfo, EngineStatus
from llava_demo.settings import Settings

if TYPE_CHECKING:
    import PIL.Image

INSTALL = 'CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python==0.3.36 gguf==0.19.0'
SEQUENCES = 16  # chats at once, each with its own cache, as with the server's -np 16
CHAT_TOKENS = 1024
BATCH_TOKENS = 2048  # the server's default
QUESTION_TOKENS = 40  # beside the picture: its question and the template around it
MARKER = b"<__media__>"


def llama_cpp_way(shape: str, quantization: str, folder: Path, settings: Settings) -> "LlamaCpp":
    """A side of the bench: `shape` in `quantization`, its files below `folder`."""
    del settings
    return LlamaCpp(*make_gguf(shape, quantization, folder), f"{shape}, {quantization}")


@dataclass(eq=False)
class _Chat:
    picture: "PIL.Image.Image"
    room: int  # tokens that are still to come
    put: Callable[[Chunk], None]
    sequence: int = -1
    tokens: list[int] = field(default_factory=list)  # that were drawn
    past: int = 0
    is_cancelled: bool = False


class LlamaCpp:
    """An `Engine` for measuring only. One thread reads the pictures and prompts that wait, then decodes for all."""

    def __init__(self, model: Path, tower: Path, name: str) -> None:
        import llama_cpp
        import torch

        self._api, threads = llama_cpp, torch.get_num_threads()
        llama_cpp.llama_backend_init()
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silent, None)
        parameters = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(model), parameters)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = SEQUENCES * CHAT_TOKENS, SEQUENCES
        settings.n_batch, settings.n_threads, settings.n_threads_batch = BATCH_TOKENS, threads, threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        self._tower = _Tower(tower, self._model, threads)
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        bytes_ = llama_cpp.llama_model_size(self._model)
        self.limits = Limits(bytes_, bytes_, 0, 0, threads)
        self.info = EngineInfo(name, "llama.cpp", "CPU", name.rpartition(" ")[2], "", CHAT_TOKENS, 0, 1, False)
        self._changed, self._is_closed = threading.Condition(), False
        self._waiting: deque[_Chat] = deque()
        self._running: list[_Chat] = []
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        loop, chunks = asyncio.get_running_loop(), asyncio.Queue[Chunk]()
        chat = _Chat(
            request.images[0].pixels,
            request.sampling.max_tokens,
            lambda chunk: loop.call_soon_threadsafe(chunks.put_nowait, chunk) and None,
        )
        with self._changed:
            self._waiting.append(chat)
            self._changed.notify()
        try:
            while not (chunk := await chunks.get()).finish_reason:
                yield chunk
            yield chunk
        finally:
            chat.is_cancelled = True

    def status(self) -> EngineStatus:
        return EngineStatus("ready", len(self._running), len(self._waiting))

    async def aclose(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._running or self._is_closed)
                if self._is_closed:
                    return
                while self._waiting and len(self._running) < SEQUENCES:
                    chat = self._waiting.popleft()
                    chat.sequence = min(set(range(SEQUENCES)) - {other.sequence for other in self._running})
                    self._running.append(chat)
            for chat in [chat for chat in self._running if not chat.tokens]:
                self._read(chat)
            self._step()
            for chat in [chat for chat in self._running if chat.is_cancelled or not chat.room]:
                self._end(chat)

    def _read(self, chat: _Chat) -> None:
        """The picture, then the question; the first token comes of it."""
        features = self._tower.features(chat.picture)
        self._decode_features(chat, features)
        ids = [3 + number for number in range(QUESTION_TOKENS)]
        self._decode([(chat, token, number == len(ids) - 1) for number, token in enumerate(ids)])
        self._draw(chat, -1)

    def _step(self) -> None:
        decoding = [chat for chat in self._running if chat.room]
        if decoding:
            self._decode([(chat, chat.tokens[-1], True) for chat in decoding])
            for row, chat in enumerate(decoding):
                self._draw(chat, row)

    def _decode(self, rows: list[tuple[_Chat, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for row, (chat, token, is_drawn) in enumerate(rows):
            batch.token[row], batch.pos[row], batch.logits[row] = token, chat.past, is_drawn
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, chat.sequence
            chat.past += 1
        self._check(self._api.llama_decode(self._context, batch))

    def _decode_features(self, chat: _Chat, features: "np.ndarray[Any, Any]") -> None:
        rows, width = features.shape
        batch = self._api.llama_batch_init(rows, width, 1)
        ctypes.memmove(batch.embd, features.ctypes.data, features.nbytes)
        batch.n_tokens = rows
        for row in range(rows):
            batch.pos[row], batch.logits[row] = chat.past + row, False
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, chat.sequence
        self._check(self._api.llama_decode(self._context, batch))
        self._api.llama_batch_free(batch)
        chat.past += rows

    def _draw(self, chat: _Chat, row: int) -> None:
        logits = np.ctypeslib.as_array(self._api.llama_get_logits_ith(self._context, row), (self._vocabulary,))
        chat.tokens.append(int(logits.argmax()))
        chat.room -= 1
        chat.put(Chunk(f" {chat.tokens[-1]}"))

    def _end(self, chat: _Chat) -> None:
        self._running.remove(chat)
        self._api.llama_memory_seq_rm(self._api.llama_get_memory(self._context), chat.sequence, -1, -1)
        prompt_tokens = chat.past + 1 - len(chat.tokens)
        chat.put(Chunk(finish_reason="length", usage=Usage(prompt_tokens, len(chat.tokens))))

    @staticmethod
    def _check(code: int) -> None:
        if code:
            raise RuntimeError(f"llama.cpp could not decode, code {code}")


class _Tower:
    """Its vision tower: pictures in, rows for the language model out."""

    def __init__(self, path: Path, model: Any, threads: int) -> None:
        from llama_cpp import llama_model_n_embd, mtmd_cpp

        self._api, self._width = mtmd_cpp, llama_model_n_embd(model)
        self._silent = mtmd_cpp.llama_cpp.llama_log_callback(lambda *_: None)
        mtmd_cpp.mtmd_log_set(self._silent, None)
        parameters = mtmd_cpp.mtmd_context_params_default()
        parameters.use_gpu, parameters.n_threads, parameters.print_timings = False, threads, False
        self._context = mtmd_cpp.mtmd_init_from_file(os.fsencode(path), model, parameters)

    def features(self, picture: "PIL.Image.Image") -> "np.ndarray[Any, Any]":
        """(rows, width), float32."""
        api = self._api
        pixels = picture.convert("RGB").tobytes()
        data = (ctypes.c_uint8 * len(pixels)).from_buffer_copy(pixels)
        bitmap, chunks = api.mtmd_bitmap_init(picture.width, picture.height, data), api.mtmd_input_chunks_init()
        text = api.mtmd_input_text(MARKER, len(MARKER), False, True)
        code = api.mtmd_tokenize(self._context, chunks, ctypes.byref(text), (api.mtmd_bitmap_p_ctypes * 1)(bitmap), 1)
        if code:
            raise RuntimeError(f"llama.cpp could not prepare the picture, code {code}")
        chunk = api.mtmd_input_chunks_get(chunks, 0)
        api.mtmd_encode_chunk(self._context, chunk)
        rows = api.mtmd_input_chunk_get_n_tokens(chunk)
        features = np.ctypeslib.as_array(api.mtmd_get_output_embd(self._context), (rows, self._width)).copy()
        api.mtmd_input_chunks_free(chunks)
        api.mtmd_bitmap_free(bitmap)
        return features
