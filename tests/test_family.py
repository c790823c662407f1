"""LLaVA's relatives: each architecture, in small and with random weights, is loaded, prompted and answered."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
import torch
from checkpoints import (
    END_ID,
    IMAGE_ID,
    ON_CPU,
    SIDE,
    make_tiny,
    make_tiny_bakllava,
    make_tiny_interleave,
    make_tiny_next,
    make_tiny_onevision,
    make_tiny_vip,
)
from pictures import encoded

from llava_demo.chat import ChatRequest, Message, SamplingParams
from llava_demo.engines import complete
from llava_demo.engines.load import load_engine
from llava_demo.images import Image
from llava_demo.model.llava import Llava
from llava_demo.settings import Settings

FAMILY = {
    "LLaVA-1.5": (make_tiny, {"wide": 16, "square": 16}),
    "BakLLaVA": (make_tiny_bakllava, {"wide": 16, "square": 16}),
    "ViP-LLaVA": (make_tiny_vip, {"wide": 16, "square": 16}),
    "interleave": (make_tiny_interleave, {"wide": 16, "square": 16}),
    # 16 of the whole picture, and 4 rows of tiles of 4 columns each, with a newline after each row
    "LLaVA-NeXT": (make_tiny_next, {"wide": 16 + 4 * (2 * 4 + 1), "square": 16 + 4 * (4 + 1)}),
    "LLaVA-OneVision": (make_tiny_onevision, {"wide": 16 + 4 * (2 * 4 + 1), "square": 16 + 4 * (4 + 1)}),
}
SIZES = {"wide": (2 * SIDE, SIDE), "square": (SIDE, SIDE)}


def picture(size: tuple[int, int]) -> Image:
    return Image.from_bytes(encoded(PIL.Image.effect_noise(size, 90).convert("RGB"), "PNG"))


@pytest.fixture(scope="module", params=FAMILY)
def relative(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The name of an architecture, and the folder of a checkpoint."""
    make: Callable[[Path], None] = FAMILY[request.param][0]
    folder = tmp_path_factory.mktemp("family") / "tiny"
    make(folder)
    return request.param, str(folder)


def test_a_picture_takes_as_many_tokens_as_the_processor_says(relative: tuple[str, str]) -> None:
    name, folder = relative
    llava = Llava.load(folder, ON_CPU, is_local=True)
    for shape, size in SIZES.items():
        image = picture(size)
        inputs = llava.prompt((Message("user", "What?", (image,)),))
        given = llava.processor(images=[image.pixels], text="<image>", return_tensors="pt")
        theirs = int((given["input_ids"] == IMAGE_ID).sum())
        assert int((inputs["input_ids"] == IMAGE_ID).sum()) == theirs
        assert theirs == FAMILY[name][1][shape]
        text = llava.tokenizer.decode(inputs["input_ids"][0][inputs["input_ids"][0] != IMAGE_ID])
        assert text == "<s>USER: \nWhat? ASSISTANT:"


@pytest.mark.parametrize("engine", ["generate", "auto"])
def test_it_is_loaded_and_answers_as_transformers_generates(engine: str, relative: tuple[str, str]) -> None:
    name, folder = relative
    question = (Message("user", "What is this?", (picture(SIZES["wide"]), picture(SIZES["square"]))),)
    llava = Llava.load(folder, ON_CPU, is_local=True)
    inputs = llava.prompt(question)
    with torch.inference_mode():
        ids = llava.model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
    expected = llava.tokenizer.decode([i for i in ids.tolist() if i != END_ID]).removeprefix(" ")
    served = load_engine(Settings(model=folder, engine=engine))
    answer = asyncio.run(complete(served, ChatRequest(question, SamplingParams(temperature=0, max_tokens=12))))
    asyncio.run(served.aclose())
    assert answer.text == expected
    # Mistral looks at a window of the conversation only, which the batched engine cannot do; it says so, and goes on.
    assert served.info.engine == ("generate" if engine == "generate" or name == "BakLLaVA" else "batched")
    assert answer.usage.prompt_tokens == inputs["input_ids"].shape[1]
