"""The model card's way: `generate` in a thread and transformers' own streamer, one question after the other.

It is written as the model card of llava-hf/llava-1.5-7b-hf and the streamer's documentation show it, behind our
`Engine`'s interface, so that both sides are asked by the same code. `bare` is `generate` without all that.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from threading import Thread
from typing import Any

import torch
from transformers import AsyncTextIteratorStreamer, ProcessorMixin
from transformers.generation.streamers import BaseStreamer

from llava_demo.chat import ChatRequest, Chunk, Usage
from llava_demo.engines import EngineInfo, EngineStatus
from llava_demo.model.llava import Llava


class PlainWay:
    """An `Engine` for measuring only: greedy, with no knob but `max_tokens`, and it cannot be cancelled."""

    def __init__(self, llava: Llava, info: EngineInfo) -> None:
        self.llava, self.info = llava, info
        self.model, self.processor = llava.model, llava.processor
        self._turn = asyncio.Lock()

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        async with self._turn:
            inputs = await asyncio.to_thread(self._inputs, request)
            streamer = AsyncTextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
            ids: list[torch.Tensor] = []

            def generate() -> None:
                try:
                    ids.append(self._generated(inputs, request.sampling.max_tokens, streamer))
                finally:
                    streamer.end()  # else a failure would leave the reader waiting for ever

            thread = Thread(target=generate)
            thread.start()
            async for text in streamer:
                yield Chunk(text)
            thread.join()
            prompt_tokens = inputs["input_ids"].shape[1]
            usage = Usage(prompt_tokens, ids[0].shape[1] - prompt_tokens)
            yield Chunk(finish_reason="length", usage=usage)

    def status(self) -> EngineStatus:
        return EngineStatus("ready", int(self._turn.locked()), 0)

    async def aclose(self) -> None:
        """Nothing is left to end: each answer was read to its end."""

    def bare(self, request: ChatRequest, has_streamer: bool = False) -> tuple[float, float]:
        """Seconds to the first token and from one to the next of `generate`, in the thread that calls.

        `has_streamer` gives it a streamer that only waits for each token, as every streamer must.
        """
        inputs, tokens = self._inputs(request), request.sampling.max_tokens
        streamer = _Waiting() if has_streamer else None
        seconds = []
        for count in (1, tokens):
            started = time.perf_counter()
            self._generated(inputs, count, streamer)
            seconds.append(time.perf_counter() - started)
        return seconds[0], (seconds[1] - seconds[0]) / max(1, tokens - 1)

    def _inputs(self, request: ChatRequest) -> Any:
        return _inputs(self.processor, request).to(self.model.device, self.model.dtype)

    def _generated(self, inputs: Any, tokens: int, streamer: BaseStreamer | None) -> torch.Tensor:
        settings = {"streamer": streamer, "max_new_tokens": tokens, "do_sample": False}
        ids: torch.Tensor = self.model.generate(**inputs, **settings)
        return ids


class _Waiting(BaseStreamer):
    """Takes tokens and drops them."""

    def put(self, value: torch.Tensor) -> None:
        value.cpu()

    def end(self) -> None: ...


def _inputs(processor: ProcessorMixin, request: ChatRequest) -> Any:
    conversation = [
        {
            "role": message.role,
            "content": [{"type": "image"} for _ in message.images] + [{"type": "text", "text": message.text}],
        }
        for message in request.messages
    ]
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    return processor(images=[image.pixels for image in request.images] or None, text=prompt, return_tensors="pt")
