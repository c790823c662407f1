"""The API for `gradio_client`: /ask, /chat and /info; SamplingParams gives the types, ranges and descriptions."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from llava_demo import __version__
from llava_demo.callers import is_gone
from llava_demo.chat import (
    KNOBS,
    MAX_MESSAGE_CHARACTERS,
    MAX_SEED,
    MAX_STOP_STRINGS,
    ChatRequest,
    Message,
    SamplingParams,
)
from llava_demo.engines import Engine, stream_recorded
from llava_demo.errors import DemoError, InvalidRequest
from llava_demo.images import ImageLimits
from llava_demo.images.download import Downloads
from llava_demo.metrics import AnswerRecord
from llava_demo.ui.answering import Growth, caller_of_event, request_of_event
from llava_demo.ui.uploads import Uploads, leave_addresses_alone
from llava_demo.wire.bodies import kind_of
from llava_demo.wire.messages import ImageFromUrl, messages_from


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


def add_endpoints(page: gr.Blocks, engine: Engine, limits: ImageLimits, downloads: Downloads | None) -> None:
    """Publish the three endpoints on `page`, inside its context. Their errors reach the client as messages."""
    uploads = Uploads(limits, downloads, engine.info.max_images)

    async def ask(image: Any, prompt: Any, *knobs: Any) -> AsyncGenerator[str, None]:
        def request(from_url: ImageFromUrl) -> ChatRequest:
            if not isinstance(prompt, str):
                raise InvalidRequest(f"prompt is {kind_of(prompt)}; it must be a string.", "prompt")
            question = Message("user", prompt, (uploads.opened(image, from_url),))
            return ChatRequest((question,), _sampling_from(knobs), caller=caller_of_event())

        async with aclosing(_texts(engine, partial(uploads.fetched, [image]), request)) as texts:
            async for text in texts:
                yield text

    async def chat(messages: Any, *knobs: Any) -> AsyncGenerator[str, None]:
        def request(from_url: ImageFromUrl) -> ChatRequest:
            turns = messages_from(messages, lambda file: uploads.opened(file, from_url), limits, from_url)
            return ChatRequest(turns, _sampling_from(knobs), caller=caller_of_event())

        async with aclosing(_texts(engine, partial(uploads.fetched, messages), request)) as texts:
            async for text in texts:
                yield text

    def info() -> dict[str, Any]:
        return asdict(engine.info) | {
            "version": __version__,
            "limits": _limits(engine, limits),
            "load": asdict(engine.status()),
        }

    image = _Parameter(
        "image", FileData, "The picture: handle_file(path or web address); through MCP, a data URL or a web address."
    )
    prompt = _Parameter("prompt", str, "The question.")
    messages = _Parameter(
        "messages",
        list[dict[str, Any]],
        "Turns as {role, content}; content is a string, or a list of parts: text, handle_file(path or web address), "
        "or image_url with a data URL or a web address.",
    )
    for endpoint, words, parameters in (
        (ask, "Answer a question about a picture.", [image, prompt, *_KNOB_PARAMETERS]),
        (chat, "Continue a conversation in OpenAI's form.", [messages, *_KNOB_PARAMETERS]),
    ):
        _publish(page, endpoint, f"{words} The text grows while it streams.", parameters)
    _publish(page, info, "The model, its engine and device, the limits, and how busy it is.", [])


def _publish(page: gr.Blocks, function: Callable[..., Any], words: str, parameters: Sequence[_Parameter]) -> None:
    """Publish `function` with a signature that Gradio can read; descriptions go into a docstring, for MCP."""
    about = "\n".join(f"    {parameter.name}: {parameter.words}" for parameter in parameters)
    function.__doc__ = f"{words}\n\nArgs:\n{about}"  # written here, since `python -OO` drops docstrings
    returns = dict[str, Any] if not parameters else str
    function.__annotations__ = {p.name: p.type for p in parameters} | {"return": returns}
    keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(p.name, keyword, default=p.default, annotation=p.type) for p in parameters],
        return_annotation=returns,
    )
    endpoint = page.fns[gr.api(function, api_name=function.__name__, concurrency_limit=None)["id"]]
    for component, parameter in zip(endpoint.inputs, parameters, strict=True):
        leave_addresses_alone(component)
        component.label = parameter.words
        component.api_info()["additional_description"] = parameter.words
    endpoint.outputs[0].label = "what is served" if not parameters else "answer"


async def _texts(
    engine: Engine, fetched: Callable[[], Awaitable[ImageFromUrl]], request_of: Callable[[ImageFromUrl], ChatRequest]
) -> AsyncGenerator[str, None]:
    connection = request_of_event()
    try:
        request = await asyncio.to_thread(request_of, await fetched())
        growth = Growth(AnswerRecord("gradio_client"))
        async with aclosing(stream_recorded(engine, request, growth.record)) as chunks:
            async for chunk in chunks:
                if is_gone(connection):
                    return
                if growth.takes(chunk):
                    yield growth.text
    except DemoError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _sampling_from(values: tuple[Any, ...]) -> SamplingParams:
    given = dict(zip((p.name for p in _KNOB_PARAMETERS), values, strict=True))
    return SamplingParams(**given | {"stop": given["stop"] or ()})


def _limits(engine: Engine, limits: ImageLimits) -> dict[str, int]:
    return {
        "context_tokens": engine.info.context_tokens,
        "max_images": engine.info.max_images,
        "max_image_bytes": limits.max_bytes,
        "max_image_pixels": limits.max_pixels,
        "max_message_characters": MAX_MESSAGE_CHARACTERS,
    }
