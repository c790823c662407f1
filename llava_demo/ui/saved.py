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
from llava_demo.wire.bodies import Body, body_from
from llava_demo.wire.messages import messages_from, messages_json

FORMAT = "ask-a-picture conversation 1"
MAX_JSON_BYTES = 200 * 2**20  # unpacked: six pictures of 20 MB in base64, and room

_ENDINGS = {"image/jpeg": "jpg", "image/svg+xml": "svg"}


class Note(Body):
    """A line on the page that the model never reads: an answer's numbers, or why it is incomplete."""

    after: int  # so many messages
    title: str
    text: str = ""
    tokens: int | None = None  # of the conversation up to here without its pictures


class _Marks(Body):
    notes: list[Note] | None = None
    left_out: list[int] | None = None


@dataclass(frozen=True)
class Saved:
    """A conversation, and the sampling parameters of its next answer."""

    messages: tuple[Message, ...]
    sampling: SamplingParams
    model: str  # the model that wrote the answers
    notes: tuple[Note, ...] = ()
    left_out: tuple[int, ...] = ()  # numbers, from 1 on, of the pictures that the model no longer reads


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
    marks = body_from(_Marks, {name: body[name] for name in _Marks.model_fields if name in body})
    messages = messages_from(body.get("messages"), limits=limits)
    model, notes, left_out = str(body.get("model")), tuple(marks.notes or ()), tuple(marks.left_out or ())
    return Saved(messages, SamplingParams(**sampling), model, notes, left_out)


def _json(saved: Saved) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": saved.model,
        "sampling": asdict(saved.sampling),
        "messages": messages_json(saved.messages),
        "notes": [note.model_dump(exclude_defaults=True) for note in saved.notes],
        "left_out": saved.left_out,
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
    for number, message in enumerate(saved.messages, 1):
        parts.append("**Question**" if message.role == "user" else "**Answer**")
        parts += [f"![A picture]({next(left)})" for _ in message.images]
        if message.text:
            parts.append(html.escape(message.text, quote=False).replace("\n", "  \n"))
        parts += [f"*{html.escape(note.title, quote=False)}*" for note in saved.notes if note.after == number]
    return "\n\n".join(parts) + "\n"


def _ending(image: Image) -> str:
    return _ENDINGS.get(image.mime_type, image.mime_type.removeprefix("image/"))
