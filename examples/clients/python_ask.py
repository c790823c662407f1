"""Ask about a picture from Python, with no server between: load the engine, stream the answer.

python -m examples.clients.python_ask PICTURE PROMPT
"""

import asyncio
import sys
from contextlib import aclosing

from llava_demo.chat import ChatRequest, Message, SamplingParams
from llava_demo.engines.load import load_engine
from llava_demo.images import Image
from llava_demo.settings import Settings


async def main(picture: str, prompt: str) -> None:
    engine = load_engine(Settings())
    question = Message("user", prompt, (Image.from_path(picture),))
    async with aclosing(engine.stream(ChatRequest((question,), SamplingParams(temperature=0)))) as chunks:
        async for chunk in chunks:
            print(chunk.text, end="", flush=True)
    print()
    await engine.aclose()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
