"""Cloudflare Workers AI's form of `@cf/llava-hf/llava-1.5-7b-hf`, to and from our values.

Sources: https://developers.cloudflare.com/workers-ai/models/llava-1.5-7b-hf/ and, for the codes of errors,
https://developers.cloudflare.com/workers-ai/platform/errors/.
"""

from dataclasses import replace
from typing import Any

from llava_demo.chat import KNOBS, ChatRequest, Message, SamplingParams
from llava_demo.errors import (
    DemoError,
    EngineBusy,
    EngineUnavailable,
    ImageTooLarge,
    InvalidImage,
    InvalidRequest,
    LoginOnly,
    ModelNotFound,
    RequestTooLarge,
    TooManyRequests,
    UnsupportedParameter,
    WrongKey,
)
from llava_demo.images import Image, ImageLimits
from llava_demo.wire.openai.messages import messages_from

MODEL = "@cf/llava-hf/llava-1.5-7b-hf"
DEFAULT_PROMPT = "Describe this image."

_READ = frozenset({*KNOBS, "seed", "stop", "image", "prompt", "messages", "raw"})
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {"stream": (False,)}
_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/= \t\r\n")

_CODES: dict[type[DemoError], int] = {
    ModelNotFound: 5007,
    RequestTooLarge: 3006,
    ImageTooLarge: 3006,
    InvalidImage: 5004,
    EngineBusy: 3040,
    EngineUnavailable: 3040,
    TooManyRequests: 3040,
    WrongKey: 10000,
    LoginOnly: 10000,
}
_CODE_OF_OTHER_REQUESTS = 5006  # what does not fit the model's schema
_CODE_OF_FAILURES = 3043  # internal server error


def request_from(body: Any, limits: ImageLimits | None = None) -> ChatRequest:
    """Read the JSON of a run. A field that is null counts as left out; `image` may already be the file's bytes.

    Raises:
        InvalidRequest: a value that is not allowed; `param` is its field.
        UnsupportedParameter: a field that is unknown, or that asks for what is not done here.
        InvalidImage, ImageTooLarge: no picture, or one that `Image` refuses.
    """
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object, or a picture's file.")
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name not in _READ and value not in _NEUTRAL_VALUES.get(name, ()):
            raise UnsupportedParameter(f"{name[:40]} is not supported here; leave it out.", name[:40])
    if "prompt" in given and "messages" in given:
        raise InvalidRequest('"prompt" and "messages" are mutually exclusive', "prompt")
    if "image" not in given:
        raise InvalidRequest("image is missing; it must be a list of byte values or a string.", "image")
    is_raw = given.get("raw", False)
    if not isinstance(is_raw, bool):
        raise InvalidRequest("raw must be true or false.", "raw")
    sampling = _sampling_from(given)
    image = image_from(given["image"], limits or ImageLimits())
    return ChatRequest(_with_image(_messages_from(given), image), sampling, is_raw)


def request_from_file(data: bytes, limits: ImageLimits | None = None) -> ChatRequest:
    """The request of a body that is nothing but a picture."""
    return ChatRequest((Message("user", DEFAULT_PROMPT, (Image.from_bytes(data, limits or ImageLimits()),)),))


def image_from(value: Any, limits: ImageLimits) -> Image:
    """Read `image`: a list of byte values, or a "binary string", which may be base64, a data URL or latin-1.

    Raises:
        InvalidImage, ImageTooLarge: anything else; or as `Image` says.
    """
    if isinstance(value, bytes):
        return Image.from_bytes(value, limits)
    if isinstance(value, list):
        return Image.from_ints(value, limits)
    if not isinstance(value, str):
        raise InvalidImage("image must be a list of byte values or a string.", "image")
    if value[:8].lower().startswith(("data:", "http://", "https://")):
        return Image.from_data_url(value, limits)
    if _BASE64.issuperset(value[:1000]):
        return Image.from_base64(value, limits)
    try:
        return Image.from_bytes(value.encode("latin-1"), limits)
    except UnicodeEncodeError as error:
        raise InvalidImage("image is a string of neither base64, nor a data URL, nor bytes.", "image") from error


def request_json(request: ChatRequest) -> dict[str, Any]:
    """The JSON that asks this, for one picture in the first of the user's messages; `request_from` reads it back.

    Raises:
        InvalidRequest: not exactly one picture, or not there.
    """
    first = next(message for message in request.messages if message.role == "user")
    if len(request.images) != 1 or not first.images:
        raise InvalidRequest("This interface takes one picture, which belongs to the first question.", "image")
    if len(request.messages) == 1:
        words: dict[str, Any] = {"prompt": first.text}
    else:
        words = {"messages": [{"role": message.role, "content": message.text} for message in request.messages]}
    sampling, neutral = request.sampling, SamplingParams()
    names = [*KNOBS, "seed"]
    knobs = {name: getattr(sampling, name) for name in names if getattr(sampling, name) != getattr(neutral, name)}
    stop = {"stop": list(sampling.stop)} if sampling.stop else {}
    raw = {"raw": True} if request.is_raw else {}
    return {"image": list(first.images[0].data)} | words | knobs | stop | raw


def envelope(text: str) -> dict[str, Any]:
    """What the HTTP API answers."""
    return {"result": answer(text), "success": True, "errors": [], "messages": []}


def answer(text: str) -> dict[str, Any]:
    """What a Worker's `env.AI.run` gives back."""
    return {"description": text}


def error_json(message: str, code: int) -> dict[str, Any]:
    """The envelope without a result."""
    return {"result": None, "success": False, "errors": [{"code": code, "message": message}], "messages": []}


def code_of(error: DemoError) -> int:
    """Cloudflare's number for what went wrong."""
    other = _CODE_OF_OTHER_REQUESTS if isinstance(error, InvalidRequest) else _CODE_OF_FAILURES
    return _CODES.get(type(error), other)


def _messages_from(given: dict[str, Any]) -> tuple[Message, ...]:
    if "messages" in given:
        return messages_from(given["messages"])
    prompt = given.get("prompt", DEFAULT_PROMPT)
    if not isinstance(prompt, str):
        raise InvalidRequest("prompt must be a string.", "prompt")
    return (Message("user", prompt),)


def _with_image(messages: tuple[Message, ...], image: Image) -> tuple[Message, ...]:
    """The picture belongs to the first question: there LLaVA-1.5 was trained to find it."""
    for index, message in enumerate(messages):
        if message.role == "user":
            return (*messages[:index], replace(message, images=(image, *message.images)), *messages[index + 1 :])
    return messages


def _sampling_from(given: dict[str, Any]) -> SamplingParams:
    return SamplingParams(**{name: given[name] for name in (*KNOBS, "seed", "stop") if name in given})
