"""Cloudflare Workers AI's format of `@cf/llava-hf/llava-1.5-7b-hf`, to and from our values.

Sources: https://developers.cloudflare.com/workers-ai/models/llava-1.5-7b-hf/ and, for the codes of errors,
https://developers.cloudflare.com/workers-ai/platform/errors/.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, NotRequired

from pydantic import Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import TypedDict

from llava_demo.chat import ChatRequest, Chunk, Message
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
    UnknownRoute,
    WrongKey,
    WrongMethod,
)
from llava_demo.images import Image, ImageLimits
from llava_demo.wire.bodies import Knobs, kind_of
from llava_demo.wire.messages import Pictures, Turns, is_web_address, messages_of
from llava_demo.wire.openai import UsageJSON, usage_json

MODEL = "@cf/llava-hf/llava-1.5-7b-hf"
MAX_CHARACTERS = 6144  # Cloudflare's limit for a message
DEFAULT_PROMPT = "Describe this image."

_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_= \t\r\n")

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
    UnknownRoute: 7000,
    WrongMethod: 7001,
    WrongKey: 10000,
    LoginOnly: 10000,
}
_CODE_OF_OTHER_REQUESTS = 5006  # the request does not fit the model's schema
_CODE_OF_FAILURES = 3043  # internal server error


class RunRequest(Knobs):
    """The body of a run; `image` may already be the file's bytes."""

    image: Annotated[Any, WithJsonSchema(_IMAGE)]
    prompt: str | None = None
    messages: Turns | None = None
    raw: Annotated[bool | None, Field(description="Use the prompt unchanged, control tokens included.")] = None
    stream: Annotated[bool | None, Field(description="As server-sent events.")] = None

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = super().__get_pydantic_json_schema__(core, handler)
        return schema | {"not": {"required": ["prompt", "messages"]}}


def request_of(body: RunRequest, limits: ImageLimits) -> ChatRequest:
    """The request of a JSON body.

    Raises:
        InvalidRequest: a value that is not allowed; `param` is its field.
        InvalidImage, ImageTooLarge: `Image` refuses the picture, or there is none.
    """
    if body.prompt is not None and body.messages is not None:
        raise InvalidRequest('"prompt" and "messages" are mutually exclusive', "prompt")
    if body.image is None:
        words = "image is missing; it must be a list of byte values or a string"
        beside = ", also where messages hold pictures" if body.messages else ""
        raise InvalidRequest(f"{words}{beside}.", "image")
    sampling = body.sampling()
    _check_lengths([body.prompt or "", *(turn.text for turn in body.messages or ())])
    image = image_from(body.image, limits)
    prompt = Message("user", DEFAULT_PROMPT if body.prompt is None else body.prompt)
    messages = (prompt,) if body.messages is None else messages_of(body.messages, Pictures(limits, _not_fetched))
    return ChatRequest(_with_image(messages, image), sampling, bool(body.raw))


def _not_fetched(_: str) -> Image:
    raise InvalidImage("Cloudflare's interface fetches no web addresses; send the picture's file.", "image")


def _check_lengths(texts: Iterable[str]) -> None:
    for text in texts:
        if len(text) > MAX_CHARACTERS:
            most = f"at most {MAX_CHARACTERS:,} are allowed"
            raise InvalidRequest(f"A message has {len(text):,} characters; {most}.", "messages")


def request_from_file(data: bytes, limits: ImageLimits | None = None) -> ChatRequest:
    """The request of a body that is only a picture."""
    return ChatRequest((Message("user", DEFAULT_PROMPT, (Image.from_bytes(data, limits or ImageLimits()),)),))


def image_from(value: Any, limits: ImageLimits) -> Image:
    """Read `image`: a list of byte values, or a "binary string", which may be base64, a data URL or latin-1.

    Raises:
        InvalidImage, ImageTooLarge: it is none of these, or `Image` refuses it.
    """
    if isinstance(value, bytes):
        return Image.from_bytes(value, limits)
    if isinstance(value, list):
        return Image.from_ints(value, limits)
    if not isinstance(value, str):
        raise InvalidImage(f"image is {kind_of(value)}; it must be a list of byte values or a string.", "image")
    if is_web_address(value):
        return _not_fetched(value)
    if value[:5].lower() == "data:":
        return Image.from_data_url(value, limits)
    if _BASE64.issuperset(value[:1000]):
        return Image.from_base64(value, limits)
    try:
        return Image.from_bytes(value.encode("latin-1"), limits)
    except UnicodeEncodeError as error:
        raise InvalidImage("image is a string of neither base64, nor a data URL, nor bytes.", "image") from error


class DescriptionJSON(TypedDict):
    """The answer of a Worker's `env.AI.run`."""

    description: str


class FailureJSON(TypedDict):
    code: int
    message: str


class EnvelopeJSON(TypedDict):
    """The answer of the HTTP API."""

    result: DescriptionJSON | None
    success: bool
    errors: list[FailureJSON]
    messages: list[str]


def description(text: str) -> DescriptionJSON:
    """The answer in the format of a Worker's binding."""
    return {"description": text}


def envelope(text: str) -> EnvelopeJSON:
    """The answer in its envelope."""
    return {"result": description(text), "success": True, "errors": [], "messages": []}


class EventJSON(TypedDict):
    """An event of a stream."""

    response: str
    usage: NotRequired[UsageJSON]


def event(chunk: Chunk) -> EventJSON:
    """The text of a chunk, and the token counts of the last one."""
    text: EventJSON = {"response": chunk.text}
    return {**text, "usage": usage_json([chunk.usage])} if chunk.usage else text


def models_json(page: int) -> dict[str, Any]:
    """What `GET .../ai/models/search` lists: one model. Clients ask for pages until one is empty."""
    task = {"id": "882a91d1-c331-4eec-bdad-834c919942a8", "name": "Image-to-Text"}
    model = {"id": "af274959-cb47-4ba8-9d8e-5a0a58b6b402", "source": 1, "name": MODEL, "task": task, "tags": []}
    models = [model] if page == 1 else []
    found = {"result": models, "result_info": {"count": len(models), "page": page, "per_page": 50, "total_count": 1}}
    return {"success": True, "errors": [], "messages": []} | found


def error_json(message: str, code: int) -> EnvelopeJSON:
    """The envelope without a result; the codes are Cloudflare's."""
    return {"result": None, "success": False, "errors": [{"code": code, "message": message}], "messages": []}


def error_of(error: DemoError) -> EnvelopeJSON:
    """The body of the response for `error`."""
    other = _CODE_OF_OTHER_REQUESTS if isinstance(error, InvalidRequest) else _CODE_OF_FAILURES
    return error_json(str(error), _CODES.get(type(error), other))


def _with_image(messages: tuple[Message, ...], image: Image) -> tuple[Message, ...]:
    """Add the picture to the first question, where LLaVA-1.5 was trained to find it."""
    for index, message in enumerate(messages):
        if message.role == "user":
            return (*messages[:index], replace(message, images=(image, *message.images)), *messages[index + 1 :])
    return messages
