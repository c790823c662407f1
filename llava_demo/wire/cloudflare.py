"""Cloudflare Workers AI's form of `@cf/llava-hf/llava-1.5-7b-hf`, to and from our values.

Sources: https://developers.cloudflare.com/workers-ai/models/llava-1.5-7b-hf/ and, for the codes of errors,
https://developers.cloudflare.com/workers-ai/platform/errors/.
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import TypedDict

from llava_demo.chat import ChatRequest, Message
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
    WrongKey,
)
from llava_demo.images import Image, ImageLimits
from llava_demo.wire.bodies import Knobs, body_from
from llava_demo.wire.messages import Turns, messages_from

MODEL = "@cf/llava-hf/llava-1.5-7b-hf"
DEFAULT_PROMPT = "Describe this image."

_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/= \t\r\n")

_IMAGE = {
    "anyOf": [{"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 255}}, {"type": "string"}],
    "description": "The picture's file: a list of byte values, base64, a data URL, or one character a byte.",
}

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


class RunRequest(Knobs):
    """The body of a run; `image` may already be the file's bytes."""

    image: Annotated[Any, WithJsonSchema(_IMAGE)]
    prompt: str | None = None
    messages: Turns | None = None
    raw: Annotated[bool | None, Field(description="The prompt goes in as it is, control tokens and all.")] = None
    without_effect: ClassVar = {"stream": (False,)}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = super().__get_pydantic_json_schema__(core, handler)
        return schema | {"not": {"required": ["prompt", "messages"]}}


def request_from(given: Any, limits: ImageLimits | None = None) -> ChatRequest:
    """Read the JSON of a run.

    Raises:
        InvalidRequest: a value that is not allowed; `param` is its field.
        UnsupportedParameter: a field that is unknown, or that asks for what is not done here.
        InvalidImage, ImageTooLarge: no picture, or one that `Image` refuses.
    """
    body = body_from(RunRequest, given)
    if body.prompt is not None and body.messages is not None:
        raise InvalidRequest('"prompt" and "messages" are mutually exclusive', "prompt")
    if body.image is None:
        raise InvalidRequest("image is missing; it must be a list of byte values or a string.", "image")
    sampling = body.sampling()
    image = image_from(body.image, limits or ImageLimits())
    prompt = Message("user", DEFAULT_PROMPT if body.prompt is None else body.prompt)
    messages = (prompt,) if body.messages is None else messages_from(body.messages)
    return ChatRequest(_with_image(messages, image), sampling, bool(body.raw))


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


class DescriptionJSON(TypedDict):
    """What a Worker's `env.AI.run` gives back."""

    description: str


class FailureJSON(TypedDict):
    code: int
    message: str


class EnvelopeJSON(TypedDict):
    """What the HTTP API answers."""

    result: DescriptionJSON | None
    success: bool
    errors: list[FailureJSON]
    messages: list[str]


def envelope(text: str) -> EnvelopeJSON:
    """The answer in its envelope."""
    return {"result": {"description": text}, "success": True, "errors": [], "messages": []}


def error_json(message: str, code: int) -> EnvelopeJSON:
    """The envelope without a result; the codes are Cloudflare's."""
    return {"result": None, "success": False, "errors": [{"code": code, "message": message}], "messages": []}


def error_of(error: DemoError) -> EnvelopeJSON:
    """What a caller is told of `error`."""
    other = _CODE_OF_OTHER_REQUESTS if isinstance(error, InvalidRequest) else _CODE_OF_FAILURES
    return error_json(str(error), _CODES.get(type(error), other))


def _with_image(messages: tuple[Message, ...], image: Image) -> tuple[Message, ...]:
    """The picture belongs to the first question: there LLaVA-1.5 was trained to find it."""
    for index, message in enumerate(messages):
        if message.role == "user":
            return (*messages[:index], replace(message, images=(image, *message.images)), *messages[index + 1 :])
    return messages
