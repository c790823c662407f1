"""The page: its layout, and which handler gets which event. It knows no model and no wire format."""

import json
import logging
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.exceptions import InvalidPathError
from pydantic import ValidationError

from llava_demo.engines import Engine
from llava_demo.images.download import Downloads
from llava_demo.log import place_of
from llava_demo.settings import Settings
from llava_demo.ui import panels
from llava_demo.ui.code_panel import CodePanel, panel_html
from llava_demo.ui.controls import SamplingControls
from llava_demo.ui.endpoints import add_endpoints
from llava_demo.ui.examples import Examples
from llava_demo.ui.handlers import Handlers
from llava_demo.ui.pictures import PictureQuestions, chips_html, giving_html
from llava_demo.ui.sharing import Sharing, SharingPanel
from llava_demo.ui.uploads import KEEP_UPLOADS_S, ReadUploads, leave_addresses_alone

CHECK_FOR_OLD_UPLOADS_S = 3600

_log = logging.getLogger(__name__)

# What Gradio 6.31 raises for inputs that its components cannot read; the last four by accident.
_UNFIT = (gr.Error, ValueError, OSError, TypeError, LookupError, AttributeError, RecursionError)


class _Page(gr.Blocks):
    """Tells callers what is wrong with the inputs of an event, where Gradio tells `{"error": null}` and logs values."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **options: Any) -> list[Any]:
        if len(inputs) != len(block_fn.inputs):
            words = f"{block_fn.api_name} takes {len(block_fn.inputs)} inputs; {len(inputs)} were given."
            raise gr.Error(words, visible=False, print_exception=False)
        try:
            return await super().preprocess_data(block_fn, inputs, *rest, **options)
        except _UNFIT as error:
            _log.warning("the inputs of an event do not fit: %s", place_of(error))
            # The page itself shows no message of Gradio's: js/asking.js says what is wrong.
            raise gr.Error(_words_of(error), visible=False, print_exception=False) from None


def _words_of(error: Exception) -> str:
    """What is wrong with an input, without its value or a path."""
    if isinstance(error, gr.Error):  # a slider's, for a value out of its range
        return str(error.message)
    if isinstance(error, InvalidPathError):
        return "A file among the inputs is no upload of this server; upload it first, as handle_file(path) does."
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"An input does not have the right form: {place and f'{place}: '}{first['msg']}."
    return "An input is of the wrong kind; see /gradio_api/info."


@dataclass(frozen=True)
class _Parts:
    """The components that handlers update, in the order of `handlers.Update`."""

    box: gr.MultimodalTextbox
    refusal: gr.HTML
    chat: gr.Chatbot
    seen: gr.HTML
    progress: gr.HTML


def build_page(engine: Engine, settings: Settings) -> gr.Blocks:
    """The page and its three API endpoints. `serve.launch` adds the look and puts it on a port."""
    downloads = Downloads(settings.image_limits) if settings.fetch_urls else None
    read_image = ReadUploads(settings.image_limits)
    examples = Examples(lambda: engine.info.is_miniature)
    with _Page(
        title="Ask a picture",
        fill_height=True,
        analytics_enabled=False,
        delete_cache=(CHECK_FOR_OLD_UPLOADS_S, KEEP_UPLOADS_S),
    ) as page:
        with gr.Row(elem_id="masthead", elem_classes="masthead"):
            gr.HTML(panels.WORDMARK, padding=False)
            with gr.Row(elem_id="status"):
                gr.HTML(panels.LAMP, padding=False)
                served = gr.HTML(panels.served_html(engine.info), elem_id="served", padding=False)
                gr.HTML(panels.LOAD, padding=False)
            gr.HTML(panels.SWITCHES, padding=False)
        with gr.Column(elem_id="share-menu"):
            sharing_panel = SharingPanel()
        with gr.Sidebar(position="right", open=False, width=340, elem_id="panel"):
            seen = gr.HTML(panels.seen_html([], 0), elem_id="seen", padding=False)
            gr.HTML("<h2>How it answers</h2>", elem_id="sampling", padding=False)
            controls = SamplingControls(lambda: engine.info.context_tokens)
            about = gr.HTML(panels.about_html(engine.info), elem_id="about", padding=False)
        chat = _chatbot(engine)
        examples.publish(chat)
        gr.HTML(chips_html(), elem_id="chips", padding=False)
        gr.HTML(giving_html(settings.image_limits), elem_id="giving", padding=False)
        refusal = gr.HTML("", elem_id="refusal", padding=False)
        progress = gr.HTML("", elem_id="progress", padding=False)
        box = _message_box()
        parts = _Parts(box, refusal, chat, seen, progress)
        handlers = Handlers(engine, controls, examples, read_image)
        answering = _connect(handlers, parts, controls.components)
        _connect_keeping(parts, answering)
        _connect_settings(controls)
        PictureQuestions(engine, settings.image_limits).connect(box, refusal)
        _connect_what_answers(page, engine, examples, (served, about, chat), controls)
        code = CodePanel(engine, settings, controls, examples, read_image)
        _connect_code(code, [box, chat, *controls.components])
        sharing = Sharing(engine, settings.image_limits, downloads, controls, examples, read_image)
        sharing.connect(page, sharing_panel, (box, refusal, chat), answering)
        for component in (box, chat):
            leave_addresses_alone(component)
        add_endpoints(page, engine, settings.image_limits, downloads)
    return page


def _connect_what_answers(
    page: gr.Blocks,
    engine: Engine,
    examples: Examples,
    parts: tuple[gr.HTML, gr.HTML, gr.Chatbot],
    controls: SamplingControls,
) -> None:
    """Show what answers now: a loading or remote engine tells it after the page was built.

    The event runs when the page is opened, and again when js/status.js notices another model or engine.
    """

    def now(max_tokens: float) -> tuple[Any, ...]:
        info = engine.info
        chat = gr.update(placeholder=panels.welcome_html(info), examples=examples.cards())
        return panels.served_html(info), panels.about_html(info), chat, controls.max_tokens_now(max_tokens)

    changed = gr.Button("What answers has changed", visible="hidden", elem_id="answers-changed")
    slider = controls.max_tokens
    shown: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    gr.on([page.load, changed.click], now, slider, [*parts, slider], **shown)


def _chatbot(engine: Engine) -> gr.Chatbot:
    return gr.Chatbot(
        elem_id="conversation",
        label="Conversation",
        show_label=False,
        scale=1,
        layout="bubble",
        editable="user",
        buttons=["copy", "copy_all"],
        feedback_options=None,
        # js/markdown.js renders answers, and loads no pictures from other hosts.
        render_markdown=False,
        latex_delimiters=[],
        allow_file_downloads=False,
        group_consecutive_messages=False,
        placeholder=panels.welcome_html(engine.info),
    )


def _message_box() -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(
        elem_id="box",
        label="Message",
        show_label=False,
        placeholder="Ask about a picture…",
        file_types=["image", ".heic", ".heif", ".avif", ".tif", ".tiff", ".jfif"],  # for the file dialog
        file_count="multiple",
        max_plain_text_length=10**9,  # longer pasted text would become a file
        max_lines=8,
        autofocus=True,
        submit_btn=True,
        stop_btn=False,
    )


def _connect(handlers: Handlers, parts: _Parts, controls: list[gr.components.Component]) -> list[Any]:
    """One queued event for each action; the engine, not Gradio, decides how many are answered at once.

    Returns the events that answer, for events that cancel them.
    """
    box, chat = parts.box, parts.chat
    everything = [box, parts.refusal, chat, parts.seen, parts.progress]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    # Gradio 6.31 by itself drops a click while the same event is under way, also while it is being cancelled. The page
    # offers no question then: js/asking.js sees to that.
    answer: dict[str, Any] = {"outputs": everything, "concurrency_limit": None, "trigger_mode": "multiple", **quiet}
    resume = gr.Button("Continue the answer", visible="hidden", elem_id="resume-answer")
    answering: list[Any] = [
        box.submit(handlers.send, [box, chat, *controls], js=_asking("send"), **answer),
        chat.example_select(handlers.send_example, [chat, *controls], js=_asking("example"), **answer),
        chat.retry(handlers.retry, [chat, *controls], js=_asking("retry"), **answer),
        chat.edit(handlers.edit, [chat, *controls], js=_asking("edit"), **answer),
        resume.click(handlers.resume, [chat, *controls], js=_asking("resume"), **answer),
    ]
    for event in answering:
        event.failure(None, [box, chat], [box, chat, parts.refusal, parts.progress], js=_FAILED)
        event.then(None, [parts.refusal, box], box, js=_ENDED)
    # The last event of an answer may still be on its way when Undo is pressed; it would bring the turn back.
    chat.undo(None, [box, chat], [box, chat], js=_UNDO, cancels=answering)
    # Stop and Clear need no server: they work without a network.
    stopping = box.stop(None, cancels=answering, **quiet)
    stopping.then(None, chat, [box, chat, parts.progress], js=_STOPPED)
    clearing = chat.clear(None, cancels=answering, **quiet)
    clearing.then(None, None, everything, js=_CLEARED)
    return answering


_BOX_IDLE = '{ __type__: "update", submit_btn: true, stop_btn: false }'
_NOTHING_SEEN = json.dumps(panels.seen_html([], 0))

# js/keeping.js fills in what is shown: a kept conversation, or none.
_SHOW = f"""(box, chat) => {{
  const event = new CustomEvent("showing", {{ detail: {{ box, chat }} }});
  document.dispatchEvent(event);
  return [{{ ...{_BOX_IDLE}, value: event.detail.box }}, "", event.detail.chat, {_NOTHING_SEEN}, ""];
}}"""

# js/asking.js puts a refused question back. Only now may the next one be asked: the event is over for Gradio too.
_ENDED = f"""(refusal, box) => {{
  const event = new CustomEvent("answer-ended", {{ detail: {{ refusal, box, changed: null }} }});
  document.dispatchEvent(event);
  const {{ changed }} = event.detail;
  return {{ ...{_BOX_IDLE}, ...(changed ? {{ value: changed }} : {{}}) }};
}}"""

_STOPPED = f"""(chat) => {{
  const event = new CustomEvent("answer-stopped", {{ detail: {{ chat }} }});
  document.dispatchEvent(event);
  return [{_BOX_IDLE}, event.detail.chat, ""];
}}"""

_CLEARED = f"""() => [{_BOX_IDLE}, "", [], {_NOTHING_SEEN}, ""]"""

_UNDO = """(box, chat) => {
  const event = new CustomEvent("undoing", { detail: { box, chat } });
  document.dispatchEvent(event);
  return [event.detail.box, event.detail.chat];
}"""


def _hand_over(name: str) -> str:
    """Pass a value to the modules of js/ as an event of the document."""
    return f"(detail) => document.dispatchEvent(new CustomEvent('{name}', {{ detail }}))"


def _asking(what: str) -> str:
    """Before a question is asked, js/keeping.js uploads pictures again that the server no longer has."""
    return f"""async (...inputs) => {{
  const detail = {{ what: "{what}", inputs, ready: null }};
  document.dispatchEvent(new CustomEvent("asking", {{ detail }}));
  await detail.ready;
  return detail.inputs;
}}"""


# js/asking.js says what the page shows after an event that never reached the server, or lost its connection.
_FAILED = f"""(box, chat) => {{
  const event = new CustomEvent("answer-failed", {{ detail: {{ box, chat, refusal: "", updates: null }} }});
  document.dispatchEvent(event);
  const {{ updates }} = event.detail;
  const same = {{ __type__: "update" }};
  return updates ? [{_BOX_IDLE}, updates.chat, updates.refusal, ""] : [same, same, same, same];
}}"""


def _connect_keeping(parts: _Parts, answering: list[Any]) -> None:
    """Conversations are kept in the visitor's browser; these events run only there."""
    box, chat = parts.box, parts.chat
    chat.change(None, chat, None, js=_hand_over("conversation-changed"))
    box.change(None, box, None, js=_hand_over("draft-changed"))
    chat.clear(None, js="() => document.dispatchEvent(new Event('conversation-cleared'))")
    show = gr.Button("Show what is kept", visible="hidden", elem_id="show-kept")
    everything = [box, parts.refusal, chat, parts.seen, parts.progress]
    shown = show.click(None, [box, chat], everything, js=_SHOW, cancels=answering)
    shown.then(None, js="() => document.dispatchEvent(new Event('shown'))")


def _connect_settings(controls: SamplingControls) -> None:
    """The settings are remembered in the visitor's browser, by js/settings.js."""
    names = json.dumps(controls.names)
    dispatch = (
        f"const detail = {{ names: {names}, values }}; document.dispatchEvent(new CustomEvent('%s', {{ detail }}));"
    )
    components = controls.components
    for component in components:
        component.change(None, components, None, js=f"(...values) => {{ {dispatch % 'settings-changed'} }}")
    restore = gr.Button("Restore the settings", visible="hidden", elem_id="restore-settings")
    restoring = f"(...values) => {{ {dispatch % 'settings-restoring'} return detail.values; }}"
    restore.click(None, components, components, js=restoring)


def _connect_code(panel: CodePanel, inputs: list[gr.components.Component]) -> None:
    """The masthead's switch clicks this button; js/code.js opens the dialog once its content is there."""
    button = gr.Button("Use in code", visible="hidden", elem_id="write-code")
    dialog = gr.HTML(panel_html([], ""), elem_id="code", padding=False)
    writing = button.click(panel.show, inputs, dialog, queue=False, api_visibility="private", show_progress="hidden")
    writing.then(None, js="() => document.dispatchEvent(new Event('code-written'))")
