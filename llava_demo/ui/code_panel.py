"""The panel "Use in code": the page's conversation and settings as code to copy."""

import asyncio
from html import escape
from pathlib import PurePath
from typing import Any

import gradio as gr
from gradio.route_utils import get_root_url
from pygments import highlight
from pygments.formatters.html import HtmlFormatter
from pygments.lexers import get_lexer_by_name

from llava_demo.chat import ChatRequest
from llava_demo.engines import Engine
from llava_demo.errors import InvalidRequest
from llava_demo.images import Image
from llava_demo.settings import Settings
from llava_demo.ui import conversation
from llava_demo.ui.code import CodeRequest, Snippet, snippets_of
from llava_demo.ui.controls import SamplingControls
from llava_demo.ui.conversation import Entry
from llava_demo.ui.examples import Examples
from llava_demo.ui.uploads import ReadUploads

_NOTHING_YET = "There is no conversation yet: this asks about one of the example pictures."


class CodePanel:
    """Writes the panel's content, for one page."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        controls: SamplingControls,
        examples: Examples,
        read_image: ReadUploads,
    ) -> None:
        self._engine, self._settings, self._controls = engine, settings, controls
        self._examples, self._read_image = examples, read_image

    async def show(self, request: gr.Request, box: dict[str, Any], history: list[Entry], *knobs: Any) -> str:
        """The request that would be sent now, or was sent last, as code with the address of this browser's page."""
        try:
            call = await asyncio.to_thread(self._call, page_address(request), box, history, knobs)
        except InvalidRequest as error:
            return panel_html([], str(error))
        is_empty = not history and not box["text"].strip() and not box["files"]
        return panel_html(snippets_of(call), _NOTHING_YET if is_empty else _files_hint(call.files()))

    def _call(self, url: str, box: dict[str, Any], history: list[Entry], knobs: tuple[Any, ...]) -> CodeRequest:
        names: dict[str, str] = {}

        def read(path: str) -> Image:
            image = self._read_image(path)
            names.setdefault(image.digest, unused_name(PurePath(path).name, set(names.values())))
            return image

        messages = conversation.messages_from(self._asked(box, history), read)
        last = max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)
        return CodeRequest(
            request=ChatRequest(messages[: last + 1], self._controls.sampling_from(knobs)),
            file_names=names,
            url=url,
            model=self._engine.info.model,
            takes_login=self._settings.auth is not None,
            takes_key=bool(self._settings.api_key),
        )

    def _asked(self, box: dict[str, Any], history: list[Entry]) -> list[Entry]:
        draft = conversation.question_entries(box["text"], box["files"])
        if history or draft:
            return [*history, *draft]
        return [
            entry for e in self._examples.shown()[:1] for entry in conversation.question_entries(e.prompt, [e.path])
        ]


def page_address(request: gr.Request) -> str:
    """The page's address in the browser, through any proxy or tunnel, without a slash at its end."""
    asked = request.request
    return get_root_url(asked, asked.url.path, asked.app.root_path)


def unused_name(name: str, taken: set[str]) -> str:
    """The name, with a number if another picture has it: all pasted pictures are called image.png."""
    path = PurePath(name)
    numbered = (f"{path.stem}-{number}{path.suffix}" for number in range(2, len(taken) + 2))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def panel_html(snippets: list[Snippet], hint: str) -> str:
    """A dialog with a choice of clients and the code for each; js/code.js opens it, copies and closes."""
    choice = "".join(
        f'<label><input type="radio" name="way" value="{snippet.name}"{" checked" * (number == 0)}>'
        f"<span>{snippet.name}</span></label>"
        for number, snippet in enumerate(snippets)
    )
    codes = "".join(map(_code_html, snippets))
    return f"""<dialog aria-labelledby="code-title"><div class="sheet">
<header><h2 id="code-title">Use in code</h2>
<button type="button" class="close" aria-label="Close">{_CROSS}</button></header>
{f'<div class="ways" role="radiogroup" aria-label="Client">{choice}</div>' if snippets else ""}
{codes}
<footer><p>{escape(hint)}</p>{'<button type="button" class="copy">Copy</button>' if snippets else ""}</footer>
</div></dialog>"""


def _code_html(snippet: Snippet) -> str:
    remark = f'<p class="remark">{escape(snippet.remark)}</p>' if snippet.remark else ""
    code = f'<pre tabindex="0"><code>{_highlighted(snippet)}</code></pre>' if snippet.code else ""
    return f'<section data-way="{snippet.name}">{remark}{code}</section>'


def _highlighted(snippet: Snippet) -> str:
    lexer = get_lexer_by_name(snippet.language, stripnl=False, ensurenl=False)
    return highlight(snippet.code.rstrip("\n"), lexer, HtmlFormatter(nowrap=True))


def _files_hint(files: list[str]) -> str:
    if not files:
        return ""
    are = "is" if len(files) == 1 else "are"
    return f"{' and '.join(files) if len(files) < 3 else 'The pictures'} {are} read from the folder the code runs in."


_CROSS = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M6 6l12 12M18 6L6 18"/></svg>'
