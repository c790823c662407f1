"""OpenAI's form of a conversation, to and from `Message`s. It knows nothing of who sent it or what will answer.

Source: https://platform.openai.com/docs/api-reference/chat/create, `messages`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llava_demo.chat import Message, Role
from llava_demo.errors import InvalidRequest
from llava_demo.images import Image, ImageLimits

ImageFromFile = Callable[[dict[str, Any]], Image]  # opens a file that the caller uploaded, or raises InvalidRequest
ImageFromUrl = Callable[[str], Image]  # gives the picture that was fetched from a web address, or raises InvalidRequest

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def messages_from(
    messages: Any,
    image_from_file: ImageFromFile | None = None,
    limits: ImageLimits | None = None,
    image_from_url: ImageFromUrl | None = None,
) -> tuple[Message, ...]:
    """Read a list of `{"role", "content"}`; content is a string or a list of text and picture parts.

    Parts: `{"type": "text", "text"}`; `{"type": "image_url", "image_url"}` with a data URL, as `{"url"}` or alone;
    where the way in fetches (`image_from_url`), also with an http or https address; and, where it has uploads
    (`image_from_file`), Gradio's `{"path", "meta"}` as a part or as an `image_url`.
    The texts of a turn are joined by newlines; its pictures go before its text, as LLaVA-1.5 was trained.

    Raises:
        InvalidRequest: anything else; the message and `param` name the place, as `messages[2].content[0].image_url`.
        InvalidImage, ImageTooLarge: a picture that `Image` refuses; with the place as well.
    """
    if not isinstance(messages, list):
        raise InvalidRequest(f"messages is {_kind(messages)}; it must be a list of {{role, content}}.", "messages")
    reader = _Reader(image_from_file, image_from_url, limits or ImageLimits())
    return tuple(reader.message(f"messages[{index}]", message) for index, message in enumerate(messages))


def web_addresses(messages: Any) -> tuple[str, ...]:
    """The http and https addresses of pictures in `messages`, each once; whatever else is wrong there is passed over.

    A way in that fetches does so before it calls `messages_from`, which waits for nothing.
    """
    parts = (part for message in _dicts(messages) for part in _dicts(message.get("content")))
    urls = (_url(part.get("image_url")) for part in parts if part.get("type") == "image_url")
    return tuple(dict.fromkeys(url for url in urls if isinstance(url, str) and is_web_address(url)))


def is_web_address(url: str) -> bool:
    return url[:8].lower().startswith(("http://", "https://"))


def messages_json(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The conversation as `messages_from` reads it: pictures as data URLs, before the text."""
    return [{"role": message.role, "content": _content_json(message)} for message in messages]


def _content_json(message: Message) -> str | list[dict[str, Any]]:
    if not message.images:
        return message.text
    pictures = [{"type": "image_url", "image_url": {"url": image.to_data_url()}} for image in message.images]
    return pictures + ([{"type": "text", "text": message.text}] if message.text else [])


class _Reader:
    def __init__(
        self, image_from_file: ImageFromFile | None, image_from_url: ImageFromUrl | None, limits: ImageLimits
    ) -> None:
        self._image_from_file = image_from_file
        self._image_from_url = image_from_url
        self._limits = limits

    def message(self, place: str, message: Any) -> Message:
        if not isinstance(message, dict):
            raise _wrong(place, f"is {_kind(message)}; it must be {{role, content}}.")
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            given = f"{role[:40]!r}" if isinstance(role, str) else _kind(role)
            raise _wrong(f"{place}.role", f"is {given}; it must be one of {', '.join(_ROLES)}.")
        texts, images = self._content(f"{place}.content", message.get("content"))
        with _named(place):
            return Message(_ROLES[role], "\n".join(texts), tuple(images))

    def _content(self, place: str, content: Any) -> tuple[list[str], list[Image]]:
        if isinstance(content, str):
            return [content], []
        if not isinstance(content, list):
            raise _wrong(place, f"is {_kind(content)}; it must be a string or a list of parts.")
        parts = [self._part(f"{place}[{index}]", part) for index, part in enumerate(content)]
        return [part for part in parts if isinstance(part, str)], [part for part in parts if isinstance(part, Image)]

    def _part(self, place: str, part: Any) -> str | Image:
        if _is_file(part):
            return self._file(place, part)
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            if isinstance(part.get("text"), str):
                return part["text"]
            raise _wrong(f"{place}.text", f"is {_kind(part.get('text'))}; it must be a string.")
        if kind == "image_url":
            return self._image(f"{place}.image_url", part.get("image_url"))
        files = "" if self._image_from_file is None else ", or an uploaded file"
        raise _wrong(place, f'must be a part with type "text" or "image_url"{files}.')

    def _image(self, place: str, image_url: Any) -> Image:
        if _is_file(image_url):
            return self._file(place, image_url)
        url = _url(image_url)
        if not isinstance(url, str):
            raise _wrong(place, f'is {_kind(image_url)}; it must be a data URL or {{"url": a data URL}}.')
        with _named(place):
            if self._image_from_url is not None and is_web_address(url):
                return self._image_from_url(url)
            return Image.from_data_url(url, self._limits)

    def _file(self, place: str, file: dict[str, Any]) -> Image:
        if self._image_from_file is None:
            raise _wrong(place, "is a file on a server; send the picture's bytes as a data URL.")
        with _named(place):
            return self._image_from_file(file)


def _url(image_url: Any) -> Any:
    return image_url.get("url") if isinstance(image_url, dict) else image_url


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _is_file(part: Any) -> bool:
    return isinstance(part, dict) and "path" in part


def _wrong(place: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{place} {what}", place)


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Put the place in front of what a value says against its making."""
    try:
        yield
    except InvalidRequest as error:
        raise type(error)(f"{place}: {error}", place) from error


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "missing or null" if value is None else names.get(type(value), f"a {type(value).__name__}")
