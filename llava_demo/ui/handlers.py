"""What happens on the page when somebody does something. One queued event for each action.

No handler raises: Gradio 6.31 would cover the whole conversation with the word "Error". A failure is shown in the
answer's place; the question stays, to be sent again with Retry or changed with Edit or Undo.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

import gradio as gr

from llava_demo.chat import ChatRequest
from llava_demo.engines import Engine
from llava_demo.errors import DemoError, InvalidRequest
from llava_demo.images import Image, ImageLimits
from llava_demo.ui import conversation, panels
from llava_demo.ui.controls import SamplingControls
from llava_demo.ui.conversation import Entry
from llava_demo.ui.examples import Example
from llava_demo.ui.growth import Growth, growing_answer, numbers_of

logger = logging.getLogger(__name__)

# What is shown anew: in the message box, as a refusal above it, in the conversation, as what the model sees.
Update = tuple[Any, Any, Any, Any]

IDLE: dict[str, Any] = {"submit_btn": True, "stop_btn": False}
BUSY: dict[str, Any] = {"submit_btn": False, "stop_btn": True}

_LOOKING = "Looking"
_BROKEN = "Something broke on our side, and the server's log says what. Please try again."


class Handlers:
    """The page's events, bound to one engine. The only state is the Chatbot's value, and it lives in the browser."""

    def __init__(
        self, engine: Engine, limits: ImageLimits, controls: SamplingControls, examples: list[Example]
    ) -> None:
        self._engine = engine
        self._controls = controls
        self._examples = examples
        self._read_image = partial(Image.from_path, limits=limits)

    async def send(self, box: dict[str, Any], history: list[Entry], *knobs: Any) -> AsyncGenerator[Update, None]:
        """Ask what is in the message box. What cannot be asked stays there, so that nothing of it is lost.

        Gradio's own validators would answer with HTTP 422, which browsers put on the console as an error.
        """
        asked = _asked(history, box["text"], box["files"])
        try:
            if len(asked) == len(history):
                raise InvalidRequest("There is nothing to send yet; write a question or add a picture.")
            request = await asyncio.to_thread(self._request, asked, knobs)
        except InvalidRequest as error:
            yield gr.skip(), panels.refusal_html(str(error)), gr.skip(), gr.skip()
            return
        async with aclosing(self._answer(gr.MultimodalTextbox(value=None, **BUSY), asked, request)) as updates:
            async for update in updates:
                yield update

    async def send_example(
        self, event: gr.SelectData, history: list[Entry], *knobs: Any
    ) -> AsyncGenerator[Update, None]:
        example = self._examples[event.index]  # by its place: nobody has checked a path in a browser's event
        async with aclosing(self._turn(_asked(history, example.prompt, [example.path]), knobs)) as updates:
            async for update in updates:
                yield update

    async def retry(self, event: gr.RetryData, history: list[Entry], *knobs: Any) -> AsyncGenerator[Update, None]:
        async with aclosing(self._turn(history[: _index(event) + 1], knobs)) as updates:
            async for update in updates:
                yield update

    async def edit(self, event: gr.EditData, history: list[Entry], *knobs: Any) -> AsyncGenerator[Update, None]:
        async with aclosing(self._turn(conversation.edited(history[: _index(event) + 1]), knobs)) as updates:
            async for update in updates:
                yield update

    def undo(self, event: gr.UndoData, history: list[Entry]) -> tuple[Any, Any]:
        """Take the last turn back; its question returns to the message box, pictures and all."""
        last = _index(event)
        question = conversation.question_of(history, last)
        return gr.MultimodalTextbox(value=question), history[: conversation.turn_start(history, last)]

    def stopped(self, history: list[Entry]) -> tuple[Any, Any]:
        """After the work was cancelled: keep what has been said."""
        stopped = conversation.byline_entry("Stopped")
        said = [stopped if conversation.is_pending(entry) else entry for entry in history]
        return gr.MultimodalTextbox(**IDLE), said

    def cleared(self) -> Update:
        """After the work was cancelled and the conversation emptied."""
        return gr.MultimodalTextbox(**IDLE), "", [], panels.seen_html([], 0)

    async def _turn(self, asked: list[Entry], knobs: tuple[Any, ...]) -> AsyncGenerator[Update, None]:
        """Answer the question that `asked` ends with; the message box keeps what somebody may be writing."""
        try:
            request = await asyncio.to_thread(self._request, asked, knobs)
        except InvalidRequest as error:
            yield gr.skip(), "", [*asked, *_failed([], str(error))], gr.skip()
            return
        async with aclosing(self._answer(gr.MultimodalTextbox(**BUSY), asked, request)) as updates:
            async for update in updates:
                yield update

    async def _answer(self, box: Any, asked: list[Entry], request: ChatRequest) -> AsyncGenerator[Update, None]:
        """Show `box` and the question, then the growing answer or the failure, then the box ready for the next."""
        yield box, "", [*asked, conversation.pending_entry(_LOOKING)], gr.skip()
        said: list[Entry] = []
        try:
            yield gr.skip(), gr.skip(), gr.skip(), await asyncio.to_thread(self._seen, request)
            async with aclosing(growing_answer(self._engine, request, "page")) as growth:
                async for grown in growth:
                    said = self._said(grown)
                    yield gr.skip(), gr.skip(), asked + said, gr.skip()
        except DemoError as error:
            said = _failed(said, str(error))
        except Exception:  # the top of a handler: whatever it is, the page must stay usable
            logger.exception("a defect ended a turn on the page")
            said = _failed(said, _BROKEN)
        yield gr.MultimodalTextbox(**IDLE), gr.skip(), asked + said + self._advice(asked, said), gr.skip()

    def _request(self, asked: list[Entry], knobs: tuple[Any, ...]) -> ChatRequest:
        messages = conversation.messages_from(asked, self._read_image)
        return ChatRequest(messages, self._controls.sampling_from(knobs))

    def _said(self, grown: Growth) -> list[Entry]:
        if grown.is_whole:
            byline = conversation.byline_entry(numbers_of(grown.measured))
        elif grown.text:
            byline = conversation.pending_entry("Writing")
        else:
            load = self._engine.status()
            is_loading = load.state == "loading"
            doing = f"The model is being loaded · {load.stage}" if is_loading else _LOOKING
            others = load.waiting - is_loading  # in an engine that loads, this question waits as well
            byline = conversation.pending_entry(f"{doing} · {others} in line" if others else doing)
        return [byline, conversation.answer_entry(grown.text)] if grown.text else [byline]

    def _advice(self, asked: list[Entry], said: list[Entry]) -> list[Entry]:
        """Once a conversation, where the miniature declines: which model knows photos."""
        answer = "".join(conversation.text_of(entry) for entry in said if not conversation.is_note(entry))
        advice = self._engine.info.advice_on(answer)
        return [conversation.advice_entry(advice)] if advice and not conversation.has_advice(asked, advice) else []

    def _seen(self, request: ChatRequest) -> str:
        squares = [square for image in request.images if (square := self._engine.seen(image))]
        return panels.seen_html(squares, self._engine.info.image_tokens)


def _asked(history: list[Entry], text: str, files: list[str]) -> list[Entry]:
    return [*history, *conversation.question_entries(text, files)]


def _index(event: gr.RetryData | gr.EditData | gr.UndoData) -> int:
    """Of the user's last entry. Gradio's type still allows for the pairs of an older Chatbot."""
    return event.index if isinstance(event.index, int) else event.index[0]


def _failed(said: list[Entry], message: str) -> list[Entry]:
    kept = [entry for entry in said if not conversation.is_note(entry)]
    return [*kept, conversation.failure_entry("The answer broke off" if kept else "No answer", message)]
