"""The API for `gradio_client`: /ask, /chat and /info. Types, ranges and words of its parameters are SamplingParams'."""

import asyncio
import inspect
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from llava_demo.chat import (
    KNOBS,
    MAX_MESSAGE_CHARACTERS,
    MAX_SEED,
    MAX_STOP_STRINGS,
    ChatRequest,
    Message,
    SamplingParams,
)
from llava_demo.engines import Engine
from llava_demo.errors import DemoError, InvalidImage, InvalidRequest
from llava_demo.images import Image, ImageLimits
from llava_demo.ui.growth import growing_answer
from llava_demo.wire.openai import messages_from

_FINISHED_UPLOAD = re.compile(r"[0-9a-f]{64}/[^/]+")  # below Gradio's upload folder; unfinished ones lie beside


@dataclass(frozen=True)
class _Parameter:
    name: str
    type: Any
    words: str
    default: Any = inspect.Parameter.empty


def _knob_parameters() -> list[_Parameter]:
    neutral = SamplingParams()
    knobs = [
        _Parameter(
            name,
            int if knob.is_whole else float,
            f"{knob.doc} From {knob.low:g} to {knob.high:,g}.".replace(",", ""),
            getattr(neutral, name),
        )
        for name, knob in KNOBS.items()
    ]
    seed = _Parameter("seed", int | None, f"The same seed gives the same answer. From 0 to {MAX_SEED}.", None)
    stop = _Parameter("stop", list[str] | None, f"The answer ends before these, at most {MAX_STOP_STRINGS}.", None)
    return [*knobs, seed, stop]


_KNOB_PARAMETERS = _knob_parameters()


def add_endpoints(page: gr.Blocks, engine: Engine, limits: ImageLimits) -> None:
    """Publish the three endpoints on `page`, inside its context. Their failures reach the client as words."""

    async def ask(image: Any, prompt: Any, *knobs: Any) -> AsyncGenerator[str, None]:
        """Answer a question about a picture. The text grows while it streams."""

        def request() -> ChatRequest:
            if not isinstance(prompt, str):
                raise InvalidRequest("prompt must be a string.", "prompt")
            return ChatRequest((Message("user", prompt, (_uploaded(image, limits),)),), _sampling_from(knobs))

        async with aclosing(_texts(engine, request)) as texts:
            async for text in texts:
                yield text

    async def chat(messages: Any, *knobs: Any) -> AsyncGenerator[str, None]:
        """Continue a conversation in OpenAI's form. The text grows while it streams."""

        def request() -> ChatRequest:
            turns = messages_from(messages, lambda file: _uploaded(file, limits), limits)
            return ChatRequest(turns, _sampling_from(knobs))

        async with aclosing(_texts(engine, request)) as texts:
            async for text in texts:
                yield text

    def info() -> dict[str, Any]:
        """The model, its engine and device, the limits, and how busy it is."""
        return asdict(engine.info) | {"limits": _limits(engine, limits), "load": asdict(engine.load())}

    image = _Parameter(
        "image", FileData, "The picture: handle_file(path); as a tool of MCP, a data URL or a web address."
    )
    prompt = _Parameter("prompt", str, f"The question, at most {MAX_MESSAGE_CHARACTERS} characters.")
    messages = _Parameter(
        "messages",
        list[dict[str, Any]],
        "Turns as {role, content}; content is a string, or parts: text, image_url (a data URL), handle_file(...).",
    )
    _publish(page, ask, [image, prompt, *_KNOB_PARAMETERS])
    _publish(page, chat, [messages, *_KNOB_PARAMETERS])
    _publish(page, info, [])


def _publish(page: gr.Blocks, function: Callable[..., Any], parameters: Sequence[_Parameter]) -> None:
    """Give `function` a signature that Gradio can read, and its parameters their words: for MCP as a docstring."""
    words = "\n".join(f"    {parameter.name}: {parameter.words}" for parameter in parameters)
    function.__doc__ = f"{function.__doc__}\n\nArgs:\n{words}"
    returns = dict[str, Any] if not parameters else str
    function.__annotations__ = {p.name: p.type for p in parameters} | {"return": returns}
    keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(p.name, keyword, default=p.default, annotation=p.type) for p in parameters],
        return_annotation=returns,
    )
    endpoint = page.fns[gr.api(function, api_name=function.__name__, concurrency_limit=None)["id"]]
    for component, parameter in zip(endpoint.inputs, parameters, strict=True):
        component.label = parameter.words
        component.api_info()["additional_description"] = parameter.words
    endpoint.outputs[0].label = "what is served" if not parameters else "answer"


async def _texts(engine: Engine, request_of: Callable[[], ChatRequest]) -> AsyncGenerator[str, None]:
    try:
        request = await asyncio.to_thread(request_of)
        async with aclosing(growing_answer(engine, request, "gradio_client")) as growth:
            async for grown in growth:
                yield grown.text
    except DemoError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _sampling_from(values: tuple[Any, ...]) -> SamplingParams:
    given = dict(zip((p.name for p in _KNOB_PARAMETERS), values, strict=True))
    return SamplingParams(**given | {"stop": given["stop"] or ()})


def _uploaded(file: Any, limits: ImageLimits) -> Image:
    """Read a picture that the caller uploaded.

    Gradio checks a path only beside the mark of its own FileData; without it any path arrives here untouched.

    Raises:
        InvalidImage: not a finished upload, or no picture.
    """
    path = file.get("path") if isinstance(file, dict) else None
    if isinstance(path, str) and "\0" not in path:
        folder = Path(gr.utils.get_upload_folder()).resolve()
        real = Path(path).resolve()
        if real.is_relative_to(folder) and _FINISHED_UPLOAD.fullmatch(real.relative_to(folder).as_posix()):
            return Image.from_path(real, limits)
    raise InvalidImage("The picture must be uploaded; send handle_file(path).", "image")


def _limits(engine: Engine, limits: ImageLimits) -> dict[str, int]:
    return {
        "context_tokens": engine.info.context_tokens,
        "max_images": engine.info.max_images,
        "max_image_bytes": limits.max_bytes,
        "max_image_pixels": limits.max_pixels,
        "max_message_characters": MAX_MESSAGE_CHARACTERS,
    }
