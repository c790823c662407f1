"""Converts between the Chatbot's value and the conversation that the model reads. It knows no engine.

The Chatbot's value is a list of entries, `{"role", "content", "metadata"}`. A turn of the user is a run of entries, one
for each picture and one for the text: with both in one entry Gradio 6.31 loses the pictures when the text is edited.
An entry with a title is a note to the reader (waiting, numbers, a failure); the model never reads it. A picture whose
`alt_text` is LEFT_OUT is still shown, but no longer read by the model.
"""

import html
import re
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

from llava_demo.chat import Message, is_blank
from llava_demo.images import Image

Entry = dict[str, Any]
LEFT_OUT = "Left out"  # js/entries.js writes it into the one value of a file that Gradio keeps
ReadImage = Callable[[str], Image]  # from a path inside Gradio's cache


def question_entries(text: str, files: list[str]) -> list[Entry]:
    """A turn of the user, pictures first, as the model reads it."""
    parts: list[dict[str, Any]] = [{"path": path} for path in files]
    if not is_blank(text):
        parts.append(_text_part(text))
    return [{"role": "user", "content": [part]} for part in parts]


def answer_entry(text: str) -> Entry:
    return {"role": "assistant", "content": [_text_part(text)]}


def pending_entry(words: str) -> Entry:
    """The line in place of an answer until its first word."""
    return _note(words, "", status="pending")


def byline_entry(words: str, text_tokens: int | None = None) -> Entry:
    """The line below an ended answer: its numbers.

    `text_tokens`, for js/context.js: the conversation's tokens up to here without its pictures.
    """
    entry = _note(words, "", status="done")
    entry["metadata"] |= {} if text_tokens is None else {"id": text_tokens}
    return entry


def failure_entry(title: str, message: str) -> Entry:
    """Why there is no answer, or no more of it: the only note that has a text."""
    return _note(title, message)


def advice_entry(words: str) -> Entry:
    """The line below an answer with advice for the reader."""
    return _note(words, "", status="done")


def is_note(entry: Entry) -> bool:
    return bool(_title(entry))


def notes_of(history: list[Entry]) -> list[tuple[int, Entry]]:
    """The notes, each with the number of the messages of `messages_from` before it."""
    found, count, role = [], 0, ""
    for entry in history:
        if is_note(entry):
            found.append((count, entry))
        elif entry["role"] == "user" or text_of(entry).strip():
            count += entry["role"] != role
            role = entry["role"]
    return found


def has_advice(history: list[Entry], words: str) -> bool:
    """Whether the reader got this advice before."""
    return any(_title(entry) == words for entry in history)


def text_of(entry: Entry) -> str:
    return _content_of([entry])[0]


def messages_from(history: list[Entry], read_image: ReadImage) -> tuple[Message, ...]:
    """The conversation that the model reads; raises what `read_image` and `Message` raise.

    A question that was never answered (stopped, failed) keeps its pictures, since a later question may be about them.
    Its text is dropped, or the model would answer it instead of the new one.
    """
    messages: list[Message] = []
    for (role, is_for_reader), entries in groupby(history, key=lambda entry: (entry["role"], is_note(entry))):
        if is_for_reader:
            continue
        text, files = _content_of(_read_by_model(entries))
        images = tuple(map(read_image, files))
        if role == "user":
            if messages and messages[-1].role == "user":
                images = messages.pop().images + images
            messages.append(Message("user", text, images))
        elif text.strip():
            messages.append(Message("assistant", text))
    return tuple(messages)


def cut_answer(history: list[Entry]) -> tuple[list[Entry], str]:
    """The history before its last answer, and that answer's text, "" if there is none to continue."""
    end = len(history)
    while end and is_note(history[end - 1]):
        end -= 1
    if not end or history[end - 1]["role"] != "assistant":
        return history[:end], ""
    return history[: end - 1], text_of(history[end - 1])


def edited(history: list[Entry]) -> list[Entry]:
    """The history with the text from the Chatbot's editor at its end as `shown`."""
    *before, last = history
    text, _ = _content_of([last])
    return [*before, *(question_entries(text, []) or [last])]


def replaced(history: list[Entry], index: int, shown_text: str) -> list[Entry]:
    """The history with `shown_text` at `index`."""
    entry = history[index] | {"content": [{"type": "text", "text": shown_text}]}
    return [*history[:index], entry, *history[index + 1 :]]


def turn_start(history: list[Entry], index: int) -> int:
    """Where the run of the user's entries around `index` begins."""
    while index > 0 and history[index - 1]["role"] == "user":
        index -= 1
    return index


def question_of(history: list[Entry], index: int) -> dict[str, Any]:
    """The turn that ends at `index`, as the message box takes it: `{"text", "files"}`."""
    text, files = _content_of(history[turn_start(history, index) : index + 1])
    return {"text": text, "files": files}


def _title(entry: Entry) -> str:
    return (entry.get("metadata") or {}).get("title") or ""


def _note(title: str, text: str, status: str | None = None) -> Entry:
    metadata = {"title": title} | ({"status": status} if status else {})
    return {"role": "assistant", "content": [_text_part(text)], "metadata": metadata}


def _text_part(text: str) -> dict[str, Any]:
    # Gradio strips the blanks at the ends of a plain string with inspect.cleandoc.
    return {"type": "text", "text": shown(text)}


def shown(text: str) -> str:
    """Escape text for the Chatbot, which shows all text as HTML; `html.unescape` undoes it.

    Only tags and character references are escaped, since Edit and Copy show the change.
    """
    if html.unescape(text) != text:
        text = text.replace("&", "&amp;")
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text)


def pictures_of(history: list[Entry]) -> list[dict[str, Any]]:
    """The parts of the user's entries that are pictures."""
    parts = (part for entry in history if entry["role"] == "user" for part in entry["content"])
    return [part for part in parts if part.get("type") != "text"]


def _read_by_model(entries: Iterable[Entry]) -> list[Entry]:
    return [
        entry | {"content": [part for part in entry["content"] if part.get("alt_text") != LEFT_OUT]}
        for entry in entries
    ]


def _content_of(entries: list[Entry]) -> tuple[str, list[str]]:
    parts = [part for entry in entries for part in entry["content"]]
    texts = [html.unescape(part["text"]) for part in parts if part.get("type") == "text"]
    files = [part.get("file", part)["path"] for part in parts if part.get("type") != "text"]
    return "\n".join(texts), files
