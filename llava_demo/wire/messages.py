"""Conversations in OpenAI's format and related ones, to and from `Message`s.

Pictures are read wherever one of these APIs puts them: OpenAI's `image_url` parts and Responses' `input_image`,
transformers' and Vercel's `{"type": "image", "image"}`, Anthropic's `source`, Ollama's `images` beside the content.

Source: https://platform.openai.com/docs/api-reference/chat/create, `messages`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag, TypeAdapter, ValidationError
from pydantic.json_schema import SkipJsonSchema

from llava_demo.chat import Message, Role
from llava_demo.errors import InvalidRequest
from llava_demo.images import Image, ImageLimits
from llava_demo.wire.bodies import Body, kind_of, refusal_of, wrong

ImageFromFile = Callable[[dict[str, Any]], Image]  # opens a file that the caller uploaded, or raises InvalidRequest
ImageFromUrl = Callable[[str], Image]  # the picture that was fetched from a URL, or raises InvalidRequest

_TEXT_TYPES = ("text", "input_text", "output_text")
_IMAGE_TYPES = ("image_url", "input_image", "image")
_URL = 'a URL (data:, or http and https where this server fetches pictures) or {"url": one}'
# LLaVA-1.5 knows two speakers: a tool's output counts as the user's.
_ROLES: dict[str, Role] = {"developer": "system", "tool": "user", "function": "user"}


# --- the form


_Address = Annotated[str, StringConstraints(strip_whitespace=True)]  # as browsers read it


class Source(Body):
    """Where a picture is: OpenAI's `{"url"}`, Anthropic's `{"media_type", "data"}`, or Gradio's (undocumented)."""

    url: Annotated[_Address | None, Field(description="A data URL; http or https where the server fetches.")] = None
    data: Annotated[_Address | None, Field(description="Base64, or what `url` takes.")] = None
    type: str | None = None
    without_effect: ClassVar = dict.fromkeys(("detail", "media_type"), ())
    path: SkipJsonSchema[str | None] = None
    meta: SkipJsonSchema[Any] = None
    size: SkipJsonSchema[Any] = None
    orig_name: SkipJsonSchema[Any] = None
    mime_type: SkipJsonSchema[Any] = None
    is_stream: SkipJsonSchema[Any] = None


def _source_in(field: str) -> BeforeValidator:
    def source(value: Any) -> Any:
        if isinstance(value, dict | Source):
            return value
        if isinstance(value, str):
            return {field: value}
        raise wrong(_URL)

    return BeforeValidator(source, json_schema_input_type=str | Source)


Address = Annotated[Source, _source_in("url")]
Data = Annotated[Source, _source_in("data")]


class TextPart(Body):
    type: Literal["text", "input_text", "output_text"]
    text: str
    without_effect: ClassVar = dict.fromkeys(("cache_control", "annotations", "logprobs"), ())


class ImagePart(Source):
    """A part that holds a picture or is one."""

    type: Literal["image_url", "input_image", "image"] | None = None
    image_url: Address | None = None
    image: Data | None = None
    source: Data | None = None
    without_effect: ClassVar = dict.fromkeys(("detail", "media_type", "mimeType", "cache_control"), ())


def _type_of(part: Any) -> str | None:
    given = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    if given in _TEXT_TYPES:
        return "<text>"
    is_file = isinstance(part, dict) and "path" in part and given is None
    return "<image>" if given in _IMAGE_TYPES or is_file else None


Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image>")],
    Discriminator(_type_of, "not_a_part", 'a part with type "text" or "image_url"'),
]


def _parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list):
        return content
    raise wrong("a string or a list of parts")


class Turn(Body):
    """A message, with pictures among its parts or beside its content."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[
        Annotated[list[Part], Field(fail_fast=True)] | None,
        BeforeValidator(_parts, json_schema_input_type=str | list[Part]),
    ] = None
    images: Annotated[list[Data], Field(fail_fast=True)] | None = None
    image_url: Address | None = None
    image: Data | None = None
    tool_calls: list[dict[str, Any]] | None = None
    function_call: dict[str, Any] | None = None
    without_effect: ClassVar = {
        "type": ("message",),
        **dict.fromkeys(("id", "status", "phase", "name", "refusal", "annotations", "cache_control"), ()),
        **dict.fromkeys(("tool_call_id", "tool_name", "reasoning", "reasoning_content", "thinking"), ()),
    }

    @property
    def text(self) -> str:
        """The texts of the content, joined by newlines, and tool calls as JSON."""
        texts = [part.text for part in self.content or () if isinstance(part, TextPart)]
        calls = [call for call in (*(self.tool_calls or ()), self.function_call) if call]
        return "\n".join([*texts, *(json.dumps(call, ensure_ascii=False) for call in calls)])


def _turn(value: Any) -> Any:
    if isinstance(value, dict | Turn):
        return value
    raise wrong("{role, content}")


Turns = Annotated[list[Annotated[Turn, BeforeValidator(_turn, json_schema_input_type=Turn)]], Field(fail_fast=True)]


# --- to our values


@dataclass(frozen=True)
class Pictures:
    """Makes the pictures of one request. URLs were fetched before: nothing here waits."""

    limits: ImageLimits
    from_url: ImageFromUrl | None = None
    from_file: ImageFromFile | None = None

    def opened(self, place: str, source: Source) -> Image:
        """The picture of `source`; `place` is its place in the request, for errors."""
        if source.path is not None and self.from_file is None:
            raise InvalidRequest(f"{place} is a file on a server; send the picture's bytes as a data URL.", place)
        with _named(place):
            if source.path is not None and self.from_file is not None:
                return self.from_file(source.model_dump(exclude_unset=True))
            given = source.data or source.url or ""
            if self.from_url is not None and is_web_address(given):
                return self.from_url(given)
            is_url = source.data is None or is_web_address(given) or given[:5].lower() == "data:"
            return Image.from_data_url(given, self.limits) if is_url else Image.from_base64(given, self.limits)


def messages_from(
    given: Any,
    image_from_file: ImageFromFile | None = None,
    limits: ImageLimits | None = None,
    image_from_url: ImageFromUrl | None = None,
) -> tuple[Message, ...]:
    """Read a list of `{"role", "content"}`.

    The texts of a turn are joined by newlines; its pictures go before its text, as LLaVA-1.5 was trained.

    Raises:
        InvalidRequest: anything else; the message and `param` name the place, as `messages[2].content[0].image_url`.
        InvalidImage, ImageTooLarge: `Image` refuses a picture; with its place as well.
    """
    pictures = Pictures(limits or ImageLimits(), image_from_url, image_from_file)
    return messages_of(_turns_from(given), pictures)


def messages_of(turns: Sequence[Turn], pictures: Pictures, root: str = "messages") -> tuple[Message, ...]:
    """The messages of validated turns; `root` is their field in the request. Raises what `messages_from` raises."""
    return tuple(_message(f"{root}[{index}]", turn, pictures) for index, turn in enumerate(turns))


def web_addresses(given: Any) -> tuple[str, ...]:
    """The http and https URLs of the pictures in `given`, each once; none if it cannot be read."""
    try:
        sources = [source for turn in _turns_from(given) for _, source in _sources_of("", turn)]
    except InvalidRequest:
        return ()
    urls = (source.url or source.data or "" for source in sources if source.path is None)
    return tuple(dict.fromkeys(url for url in urls if is_web_address(url)))


def is_web_address(url: str) -> bool:
    return url[:8].lower().startswith(("http://", "https://"))


def _turns_from(given: Any) -> list[Turn]:
    if not isinstance(given, list):
        raise InvalidRequest(f"messages is {kind_of(given)}; it must be a list of {{role, content}}.", "messages")
    try:
        return _TURNS.validate_python(given)
    except ValidationError as error:
        raise refusal_of(error, "messages") from None


_TURNS = TypeAdapter(Turns)


def _message(place: str, turn: Turn, pictures: Pictures) -> Message:
    images = tuple(pictures.opened(where, source) for where, source in _sources_of(place, turn))
    text = turn.text
    if turn.content is None and not (text or images):
        place = f"{place}.content"
        raise InvalidRequest(f"{place} is missing or null; it must be a string or a list of parts.", place)
    with _named(place):
        return Message(_ROLES.get(turn.role, turn.role), text, images)  # type: ignore[arg-type]


def _sources_of(place: str, turn: Turn) -> Iterator[tuple[str, Source]]:
    """Each picture of the turn at `place`, with its place."""
    for index, part in enumerate(turn.content or ()):
        if isinstance(part, ImagePart):
            yield from _sources_in(f"{place}.content[{index}]", part)
    for index, source in enumerate(turn.images or ()):
        yield f"{place}.images[{index}]", source
    for name, beside in (("image_url", turn.image_url), ("image", turn.image)):
        if beside is not None:
            yield f"{place}.{name}", beside


def _sources_in(place: str, part: ImagePart) -> Iterator[tuple[str, Source]]:
    given = (("image_url", part.image_url), ("image", part.image), ("source", part.source))
    found = [(f"{place}.{name}", source) for name, source in given if source is not None]
    if part.path or part.url or part.data:
        found.append((place, part))
    if not found:
        place = f"{place}.{'image' if part.type == 'image' else 'image_url'}"
        raise InvalidRequest(f"{place} is missing or null; it must be {_URL}.", place)
    yield from found


# --- from our values


def messages_json(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The conversation in the format of `messages_from`: pictures as data URLs, before the text."""
    return [{"role": message.role, "content": _content_json(message)} for message in messages]


def _content_json(message: Message) -> str | list[dict[str, Any]]:
    if not message.images:
        return message.text
    pictures = [{"type": "image_url", "image_url": {"url": image.to_data_url()}} for image in message.images]
    return pictures + ([{"type": "text", "text": message.text}] if message.text else [])


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Put the place in front of the message of an InvalidRequest."""
    try:
        yield
    except InvalidRequest as error:
        raise type(error)(f"{place}: {error}", place) from error
