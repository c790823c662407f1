"""Sharing: links that fill in the page, `?prompt=...&image=...&temperature=0`, and conversations in files.

A link sends nothing by itself.
"""

import asyncio
import filecmp
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import PurePath
from typing import Any
from urllib.parse import urlencode

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from starlette.datastructures import QueryParams

from llava_demo.chat import KNOBS, Message, SamplingParams, number_from
from llava_demo.engines import Engine
from llava_demo.errors import DemoError, EngineUnavailable, InvalidRequest
from llava_demo.images import Image, ImageLimits
from llava_demo.images.download import Downloads
from llava_demo.ui import conversation, panels
from llava_demo.ui.code_panel import page_address
from llava_demo.ui.controls import SamplingControls
from llava_demo.ui.conversation import LEFT_OUT, Entry
from llava_demo.ui.examples import Examples
from llava_demo.ui.saved import Note, Saved, archive_of, saved_from
from llava_demo.ui.uploads import ReadUploads

_SHARED = """<h2>Share</h2>
<dl><dt>Link</dt><dd>opens this page with your question and settings. It leaves out the conversation and your own
pictures, and sends nothing by itself.</dd>
<dt>Save</dt><dd>writes the conversation with its pictures to a file.</dd>
<dt>Open</dt><dd>shows such a file as a new conversation.</dd></dl>"""

# The button is hidden, and does nothing without a file; Gradio gives it the file a moment later.
_DOWNLOAD = """() => setTimeout(() => document.querySelector("#saved-file").click(), 300)"""
_OPENING = """() => {
  document.dispatchEvent(new CustomEvent("asking", { detail: { what: "open", inputs: [] } }));
}"""  # js/keeping.js keeps what is on the page
# A refusal is about the conversation that was on the page, not about the one that was opened.
_FORGET_REFUSAL = """(said) => said ? { __type__: "update" } : "\""""
_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
KNOB_NAMES = (*KNOBS, "seed")


class SharingPanel:
    """The masthead's menu "Share"; made in its place, connected once the rest of the page exists."""

    def __init__(self) -> None:
        gr.HTML(_SHARED, padding=False)
        with gr.Row(elem_id="share-buttons"):
            self.make_link = gr.Button("Link", size="sm", elem_id="make-link", min_width=60)
            self.save = gr.Button("Save", size="sm", elem_id="save-conversation", min_width=60)
            self.open = gr.UploadButton(
                "Open",
                size="sm",
                file_types=[".zip", ".json"],
                type="binary",  # for a path, Gradio 6.31 leaves an empty temporary file among the uploads
                elem_id="open-conversation",
                min_width=60,
            )
        self.link = gr.Textbox(
            label="Link",
            visible=False,
            interactive=False,
            buttons=["copy"],
            elem_id="link",
        )
        self.said = gr.HTML("", elem_id="share-said", padding=False)
        self.file = gr.DownloadButton("Download", visible="hidden", elem_id="saved-file")


class Sharing:
    """The actions of the panel, for one page."""

    def __init__(
        self,
        engine: Engine,
        limits: ImageLimits,
        downloads: Downloads | None,
        controls: SamplingControls,
        examples: Examples,
        read_image: ReadUploads,
    ) -> None:
        self._engine, self._limits, self._downloads = engine, limits, downloads
        self._controls, self._examples, self._read_image = controls, examples, read_image

    def connect(
        self,
        page: gr.Blocks,
        panel: SharingPanel,
        parts: tuple[gr.MultimodalTextbox, gr.HTML, gr.Chatbot],
        answering: list[Any],
    ) -> None:
        """Opening a file cancels the events of `answering`, which would put their conversation back."""
        box, refusal, chat = parts
        knobs = self._controls.components
        page.load(self.opened, None, [box, refusal, *knobs], **_QUIET)
        panel.make_link.click(self.link, [box, chat, *knobs], panel.link, **_QUIET)
        saving = panel.save.click(self.saved, [chat, *knobs], [panel.file, panel.said], **_QUIET)
        saving.success(None, js=_DOWNLOAD)
        panel.open.upload(None, js=_OPENING)
        opening = panel.open.upload(self.reopened, panel.open, [chat, panel.said, *knobs], cancels=answering, **_QUIET)
        opening.then(None, panel.said, refusal, js=_FORGET_REFUSAL)

    async def opened(self, request: gr.Request) -> list[Any]:
        """Fill in the page from its URL: the message box, complaints about the link, the settings."""
        filling = filling_from(request.query_params, self._controls.usual)
        if filling is None:
            return [gr.skip()] * (2 + len(self._controls.components))
        complaints, files = list(filling.complaints), []
        if filling.image:
            try:
                files = [await self._picture(filling.image)]
            except DemoError as error:
                complaints.append(f"{error} The link's picture was left out.")
        words = "".join(map(panels.refusal_html, complaints))
        is_asking = filling.prompt or filling.image  # else a kept or typed draft stays
        box = gr.MultimodalTextbox(value={"text": filling.prompt, "files": files}) if is_asking else gr.skip()
        return [box, words, *self._controls.values_of(filling.sampling)]

    def link(self, request: gr.Request, box: dict[str, Any], history: list[Entry], *knobs: Any) -> Any:
        """A link with the draft in the message box, or else with the last question, and with the settings."""
        draft = box if box["text"].strip() or box["files"] else _last_question(history)
        example = next((e for path in draft["files"] for e in self._examples.shown() if _is_same(path, e.path)), None)
        image = PurePath(example.path).name if example else ""
        try:
            sampling = self._controls.sampling_from(knobs)
        except InvalidRequest:
            sampling = self._controls.usual
        link = link_to(page_address(request), draft["text"], image, sampling, self._controls.usual)
        return gr.Textbox(value=link, visible=True)

    async def saved(self, history: list[Entry], *knobs: Any) -> tuple[Any, str]:
        """The conversation as a file, which the browser then downloads."""
        try:
            path = await asyncio.to_thread(self._archive, history, knobs)
        except DemoError as error:
            return gr.DownloadButton(value=None), panels.refusal_html(str(error))
        return gr.DownloadButton(value=path), ""

    async def reopened(self, data: bytes) -> list[Any]:
        """Show a saved conversation in place of the one on the page; any other file changes nothing."""
        try:
            saved, entries = await asyncio.to_thread(self._saved, data)
        except DemoError as error:
            skipped = [gr.skip()] * len(self._controls.components)
            return [gr.skip(), panels.refusal_html(str(error)), *skipped]
        return [entries, "", *self._controls.values_of(saved.sampling)]

    async def _picture(self, name: str) -> str:
        """The path of an example's picture, or of one that is fetched."""
        for example in self._examples.shown():
            if PurePath(example.path).name == name:
                return example.path
        if self._downloads is None:
            return _kept(Image.from_data_url(name, self._limits))  # raises: this server fetches nothing
        pictures = await self._downloads.pictures([name])
        return _kept(await asyncio.to_thread(pictures, name))

    def _archive(self, history: list[Entry], knobs: tuple[Any, ...]) -> str:
        """The path of the ZIP."""
        pictures = conversation.pictures_of(history)
        left_out = [number for number, part in enumerate(pictures, 1) if part.get("alt_text") == LEFT_OUT]
        for part in pictures:
            part["alt_text"] = None  # else it would not be among the messages
        messages = conversation.messages_from(history, self._read_image)
        if not messages:
            raise InvalidRequest("There is no conversation to save yet.")
        notes = tuple(_note_of(after, entry) for after, entry in conversation.notes_of(history))
        model, sampling = self._engine.info.model, self._controls.sampling_from(knobs)
        return _written(archive_of(Saved(messages, sampling, model, notes, tuple(left_out))), "conversation.zip")

    def _saved(self, data: bytes) -> tuple[Saved, list[Entry]]:
        saved = saved_from(data, self._limits)
        if any(message.role == "system" for message in saved.messages):
            raise InvalidRequest("The saved conversation has a system message, which the page cannot show.")
        groups = [_entries_of(message) for message in saved.messages]
        left_out = set(saved.left_out)
        for number, part in enumerate(conversation.pictures_of(list(chain(*groups))), 1):
            if number in left_out:
                part["alt_text"] = LEFT_OUT
        for note in saved.notes:
            if 0 < note.after <= len(groups):
                groups[note.after - 1].append(_entry_of(note))
        return saved, list(chain(*groups))


def _note_of(after: int, entry: Entry) -> Note:
    metadata = entry["metadata"]
    title = "Interrupted" if metadata.get("status") == "pending" else metadata["title"]  # as js/entries.js has it
    tokens = metadata.get("id") if isinstance(metadata.get("id"), int) else None
    return Note(after=after, title=title, text=conversation.text_of(entry), tokens=tokens)


def _entry_of(note: Note) -> Entry:
    title = conversation.shown(note.title)
    return conversation.failure_entry(title, note.text) if note.text else conversation.byline_entry(title, note.tokens)


def _last_question(history: list[Entry]) -> dict[str, Any]:
    last = max((index for index, entry in enumerate(history) if entry["role"] == "user"), default=None)
    return {"text": "", "files": []} if last is None else conversation.question_of(history, last)


def _entries_of(message: Message) -> list[Entry]:
    if message.role == "assistant":
        return [conversation.answer_entry(message.text)]
    return conversation.question_entries(message.text, [_kept(image) for image in message.images])


def _kept(image: Image) -> str:
    """The picture as a file of Gradio's cache, like an upload."""
    return _written(image.data, f"{image.digest[:12]}.{image.mime_type.removeprefix('image/')}")


def _written(data: bytes, name: str) -> str:
    """The path of the new file in Gradio's cache.

    Raises:
        EngineUnavailable: the disk is full.
    """
    try:
        path: str = save_bytes_to_cache(data, name, gr.utils.get_upload_folder())
    except OSError as error:
        raise EngineUnavailable("There is no room for files on this server now; try again later.", 60) from error
    return path


def _is_same(path: str, example: str) -> bool:
    return PurePath(path).name == PurePath(example).name and filecmp.cmp(path, example, shallow=False)


@dataclass(frozen=True)
class Filling:
    """What a link asks for. `complaints` has a sentence for each part that is left out."""

    prompt: str
    image: str  # a web address, or the name of an example's picture; "" for none
    sampling: SamplingParams
    complaints: tuple[str, ...] = ()


def link_to(address: str, prompt: str, image: str, sampling: SamplingParams, usual: SamplingParams) -> str:
    """A link to the page at `address`, with the sampling parameters that are not `usual`."""
    named = {"prompt": prompt, "image": image} | {name: getattr(sampling, name) for name in KNOB_NAMES}
    query = [(name, _text(value)) for name, value in named.items() if value not in ("", None, getattr(usual, name, ""))]
    query += [("stop", text) for text in sampling.stop]
    return f"{address}/?{urlencode(query)}" if query else f"{address}/"


def filling_from(query: QueryParams, usual: SamplingParams) -> Filling | None:
    """Read the query of the page's URL; None if it asks for nothing. Unknown names are ignored."""
    asked = {name: query[name] for name in ("prompt", "image", "stop", *KNOB_NAMES) if query.get(name)}
    if not asked:
        return None
    sampling, complaints = usual, []
    wanted: dict[str, Any] = {name: number_from(asked[name]) for name in KNOB_NAMES if name in asked}
    stops = tuple(filter(None, query.getlist("stop")))
    for name, value in (wanted | ({"stop": stops} if stops else {})).items():
        try:
            sampling = replace(sampling, **{name: value})
        except InvalidRequest as error:
            complaints.append(f"{error} The link's value was left out.")
    return Filling(asked.get("prompt", ""), asked.get("image", ""), sampling, tuple(complaints))


def _text(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
