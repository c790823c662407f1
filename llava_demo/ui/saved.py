"""Conversations as files: a ZIP with the text as Markdown, the pictures, and a JSON that the page can open."""

import html
import io
import json
import zipfile
from dataclasses import asdict, dataclass
from typing import Any

from llava_demo.chat import Message, SamplingParams
from llava_demo.errors import InvalidRequest
from llava_demo.images import Image, ImageLimits
from llava_demo.wire.messages import messages_from, messages_json

FORMAT = "ask-a-picture conversation 1"
MAX_JSON_BYTES = 200 * 2**20  # unpacked: six pictures of 20 MB in base64, and room

_ENDINGS = {"image/jpeg": "jpg", "image/svg+xml": "svg"}


@dataclass(frozen=True)
class Saved:
    """A conversation, and the sampling parameters of its next answer."""

    messages: tuple[Message, ...]
    sampling: SamplingParams
    model: str  # the model that wrote the answers


def archive_of(saved: Saved) -> bytes:
    """The ZIP: conversation.md, conversation.json, pictures/1.png, ..."""
    pictures = [image for message in saved.messages for image in message.images]
    names = [f"pictures/{number}.{_ending(image)}" for number, image in enumerate(pictures, 1)]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversation.md", _markdown(saved, names))
        archive.writestr("conversation.json", json.dumps(_json(saved), ensure_ascii=False, indent=1))
        for name, image in zip(names, pictures, strict=True):
            archive.writestr(name, image.data)
    return file.getvalue()


def saved_from(data: bytes, limits: ImageLimits) -> Saved:
    """Read such a ZIP, or its conversation.json.

    Raises:
        InvalidRequest: it is neither, or its conversation is invalid.
        InvalidImage, ImageTooLarge: one of its pictures is refused.
    """
    try:
        body = json.loads(_json_of(data))
    except (ValueError, KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InvalidRequest("This is no saved conversation: neither such a ZIP nor its conversation.json.") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise InvalidRequest(f"This is no saved conversation: its format is not {FORMAT!r}.")
    sampling = body.get("sampling")
    known = asdict(SamplingParams()).keys()
    if not isinstance(sampling, dict) or not sampling.keys() <= known:
        raise InvalidRequest("The saved conversation's sampling is not of the right form.", "sampling")
    return Saved(messages_from(body.get("messages"), limits=limits), SamplingParams(**sampling), str(body.get("model")))


def _json(saved: Saved) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": saved.model,
        "sampling": asdict(saved.sampling),
        "messages": messages_json(saved.messages),
    }


def _json_of(data: bytes) -> bytes:
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if archive.getinfo("conversation.json").file_size > MAX_JSON_BYTES:
            raise InvalidRequest(f"The saved conversation has more than {MAX_JSON_BYTES // 2**20} MB.")
        with archive.open("conversation.json") as file:
            return file.read(MAX_JSON_BYTES)


def _markdown(saved: Saved, names: list[str]) -> str:
    left = iter(names)
    parts = [f"# A conversation with {saved.model}"]
    for message in saved.messages:
        parts.append("**Question**" if message.role == "user" else "**Answer**")
        parts += [f"![A picture]({next(left)})" for _ in message.images]
        if message.text:
            parts.append(html.escape(message.text, quote=False).replace("\n", "  \n"))
    return "\n\n".join(parts) + "\n"


def _ending(image: Image) -> str:
    return _ENDINGS.get(image.mime_type, image.mime_type.removeprefix("image/"))
