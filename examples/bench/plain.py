"""The model card's way: `generate` in a thread and transformers' own streamer, one question after the other.

It is written as the model card of llava-hf/llava-1.5-7b-hf and the streamer's documentation show it, behind our
`Engine`'s interface, so that both sides are asked by the same code.
"""

import asyncio
from collections.abc import AsyncGenerator
from threading import Thread
from typing import Any

import torch
from transformers import AsyncTextIteratorStreamer, ProcessorMixin

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
            inputs = await asyncio.to_thread(_inputs, self.processor, request)
            inputs = inputs.to(self.model.device, self.model.dtype)
            streamer = AsyncTextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
            ids: list[torch.Tensor] = []
            settings = {"streamer": streamer, "max_new_tokens": request.sampling.max_tokens, "do_sample": False}

            def generate() -> None:
                try:
                    ids.append(self.model.generate(**inputs, **settings))
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
