"""What the Chatbot holds, and the conversation that the model reads: one to the other. It knows no engine.

The Chatbot's value is a list of entries, `{"role", "content", "metadata"}`. A turn of the user is a run of entries, one
for each picture and one for the text: with both in one entry Gradio 6.31 loses the pictures when the text is edited.
An entry with a title is a note to the reader (waiting, numbers, a failure); the model never reads it. A picture whose
`alt_text` is LEFT_OUT is still shown, and the model no longer reads it.
"""

import html
import re
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

from llava_demo.chat import Message, is_blank
from llava_demo.images import Image

Entry = dict[str, Any]
LEFT_OUT = "Left out"  # js/context.js writes it; of a file's values it is what Gradio keeps
ReadImage = Callable[[str], Image]  # from a path inside Gradio's cache


def question_entries(text: str, files: list[str]) -> list[Entry]:
    """A turn of the user: its pictures first, as the model reads them."""
    parts: list[dict[str, Any]] = [{"path": path} for path in files]
    if not is_blank(text):
        parts.append(_text_part(text))
    return [{"role": "user", "content": [part]} for part in parts]


def answer_entry(text: str) -> Entry:
    return {"role": "assistant", "content": [_text_part(text)]}


def pending_entry(words: str) -> Entry:
    """The line in an answer's place until its first word."""
    return _note(words, "", status="pending")


def byline_entry(words: str, text_tokens: int | None = None) -> Entry:
    """The line below an answer that has ended: its numbers, or "Stopped".

    `text_tokens` of the conversation up to here, without its pictures, are for js/context.js.
    """
    entry = _note(words, "", status="done")
    entry["metadata"] |= {} if text_tokens is None else {"id": text_tokens}
    return entry


def failure_entry(title: str, message: str) -> Entry:
    """Why there is no answer, or no more of it; the one kind of note that stands open and has a text."""
    return _note(title, message)


def advice_entry(words: str) -> Entry:
    """The line below an answer: what the reader should know about it."""
    return _note(words, "", status="done")


def is_note(entry: Entry) -> bool:
    return bool(_title(entry))


def has_advice(history: list[Entry], words: str) -> bool:
    """Whether the reader was given this advice before."""
    return any(_title(entry) == words for entry in history)


def text_of(entry: Entry) -> str:
    return _content_of([entry])[0]


def messages_from(history: list[Entry], read_image: ReadImage) -> tuple[Message, ...]:
    """The conversation that the model reads; raises what `read_image` and `Message` raise.

    Of a question that was never answered (stopped, failed) the pictures stay, since a later question may be about
    them; its text goes, since the model would answer it instead of the new one.
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
    """The history before its last answer, and that answer's text, "" where there is none to be continued."""
    end = len(history)
    while end and is_note(history[end - 1]):
        end -= 1
    if not end or history[end - 1]["role"] != "assistant":
        return history[:end], ""
    return history[: end - 1], text_of(history[end - 1])


def edited(history: list[Entry]) -> list[Entry]:
    """The history that ends with a text from the Chatbot's editor, with that text as `shown`."""
    *before, last = history
    text, _ = _content_of([last])
    return [*before, *(question_entries(text, []) or [last])]


def replaced(history: list[Entry], index: int, shown_text: str) -> list[Entry]:
    """The history with another text at `index`, as the Chatbot shows it."""
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
    # A plain string would pass through inspect.cleandoc and lose the blanks at its ends.
    return {"type": "text", "text": shown(text)}


def shown(text: str) -> str:
    """Text such that the Chatbot, which takes all text for HTML, shows it as it is; `html.unescape` undoes it.

    Only what HTML would take for a tag or a character's name is changed, since Edit and Copy show the change.
    """
    if html.unescape(text) != text:
        text = text.replace("&", "&amp;")
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text)


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
