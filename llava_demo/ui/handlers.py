"""The handlers of the page's events: one queued event for each action.

No handler raises: Gradio 6.31 would cover the whole conversation with the word "Error". A refused question stays where
it was written, with the reason above the message box. A failure is shown in the answer's place; the question stays, to
be sent again with Retry or changed with Edit or Undo.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import wraps
from typing import Any

import gradio as gr

from llava_demo.chat import ChatRequest
from llava_demo.engines import Engine, stream_recorded
from llava_demo.errors import DemoError, InvalidRequest, PromptTooLong, TooManyImages
from llava_demo.metrics import AnswerRecord
from llava_demo.ui import conversation, panels
from llava_demo.ui.answering import Growth, caller_of_event, numbers_of
from llava_demo.ui.controls import SamplingControls
from llava_demo.ui.conversation import Entry
from llava_demo.ui.examples import Examples
from llava_demo.ui.uploads import ReadUploads

logger = logging.getLogger(__name__)

# Values for the message box, the refusal above it, the conversation, what the model sees, and the line of progress.
Update = tuple[Any, Any, Any, Any, Any]

_BUSY: dict[str, Any] = {"submit_btn": False, "stop_btn": True}  # until the event has ended: page.py's _ENDED

_LOOKING = "Looking"
_BROKEN = "Something broke on our side, and the server's log says what. Please try again."


@dataclass(frozen=True)
class Question:
    """A conversation that ends with a question, and what the page showed before it was asked."""

    asked: list[Entry]
    before: list[Entry]
    knobs: tuple[Any, ...]  # the values of the sampling controls
    is_from_box: bool = False  # the message box is emptied once the question is taken
    begun: str = ""  # the beginning of an answer that is to be continued


def _asks(question_of: Callable[..., Question]) -> Callable[..., AsyncGenerator[Update, None]]:
    """The handler of an event: it answers the question that `question_of` makes of the event's inputs."""

    @wraps(question_of)
    async def handler(self: "Handlers", *inputs: Any) -> AsyncGenerator[Update, None]:
        async with aclosing(self._answer(question_of(self, *inputs))) as updates:
            async for update in updates:
                yield update

    return handler


class Handlers:
    """The handlers, bound to one engine. The only state is the Chatbot's value, which lives in the browser."""

    def __init__(self, engine: Engine, controls: SamplingControls, examples: Examples, read_image: ReadUploads) -> None:
        self._engine, self._controls, self._examples = engine, controls, examples
        self._read_image = read_image

    @_asks
    def send(self, box: dict[str, Any], history: list[Entry], *knobs: Any) -> Question:
        """Ask what is in the message box."""
        return Question(_asked(history, box["text"], box["files"]), history, knobs, is_from_box=True)

    @_asks
    def send_example(self, event: gr.SelectData, history: list[Entry], *knobs: Any) -> Question:
        example = self._examples.shown()[event.index]  # by index: a path in a browser's event is not checked
        return Question(_asked(history, example.prompt, [example.path]), history, knobs)

    @_asks
    def retry(self, event: gr.RetryData, history: list[Entry], *knobs: Any) -> Question:
        return Question(history[: _index(event) + 1], history, knobs)

    @_asks
    def edit(self, event: gr.EditData, history: list[Entry], *knobs: Any) -> Question:
        index = _index(event)
        before = conversation.replaced(history, index, str(event.previous_value))
        return Question(conversation.edited(history[: index + 1]), before, knobs)

    @_asks
    def resume(self, history: list[Entry], *knobs: Any) -> Question:
        """Ask for the rest of the last answer, which was cut, stopped or broke off."""
        asked, begun = conversation.cut_answer(history)
        return Question(asked, history, knobs, begun=begun)

    async def _answer(self, question: Question) -> AsyncGenerator[Update, None]:
        """Show the question, then the growing answer or the failure.

        A refused question changes nothing but the text above the message box, so that nothing of it is lost. Gradio's
        own validators would answer with HTTP 422, which browsers log as an error.
        """
        asked = question.asked
        begun = said = [conversation.answer_entry(question.begun)] if question.begun else []
        is_taken = False
        seen: dict[str, str] = {}  # travels with the next update
        try:
            request = await asyncio.to_thread(self._request, question)
            emptied = {"value": None} if question.is_from_box else {}
            yield _update(
                box=gr.MultimodalTextbox(**emptied, **_BUSY),
                refusal="",
                chat=[*asked, *begun, conversation.pending_entry(_LOOKING)],
            )
            is_taken = True
            if len(request.images) <= self._engine.info.max_images:  # else the engine refuses it in a moment
                seen["seen"] = await asyncio.to_thread(self._seen, request)
            growth = Growth(AnswerRecord("page"), question.begun)
            async with aclosing(stream_recorded(self._engine, request, growth.record)) as chunks:
                async for chunk in chunks:
                    if growth.takes(chunk):
                        said = self._said(growth, len(request.images))
                        if not chunk.finish_reason:
                            yield _update(chat=asked + said, progress=_progress(growth), **seen)
                            seen.clear()
        except InvalidRequest as error:
            yield _refused(question, error, is_taken)
            return
        except DemoError as error:
            said = _failed(said, str(error))
        except Exception:  # the top of a handler: the page must stay usable
            logger.exception("a defect ended a turn on the page")
            said = _failed(said, _BROKEN)
        chat = [*asked, *said, *self._advice(asked, said)]
        yield _update(chat=chat, progress="", **seen)

    def _request(self, question: Question) -> ChatRequest:
        if len(question.asked) == len(question.before) and question.is_from_box:
            raise InvalidRequest("There is nothing to send yet; write a question or add a picture.")
        begun = [conversation.answer_entry(question.begun)] if question.begun else []
        messages = conversation.messages_from([*question.asked, *begun], self._read_image)
        return ChatRequest(messages, self._controls.sampling_from(question.knobs), caller=caller_of_event())

    def _said(self, growth: Growth, images: int) -> list[Entry]:
        answer = [conversation.answer_entry(growth.text)] if growth.text else []
        if growth.record.finish_reason:
            usage = growth.record.usage
            tokens = usage.total_tokens - images * self._engine.info.image_tokens if usage else None
            return [
                *answer,
                conversation.byline_entry(numbers_of(growth.record, self._engine.info.context_tokens), tokens),
            ]
        if growth.has_new_text:
            return answer
        status = self._engine.status()
        is_loading = status.state == "loading"
        doing = f"The model is being loaded · {status.stage}" if is_loading else _LOOKING
        others = status.waiting - is_loading  # a loading engine counts this question too
        return [*answer, conversation.pending_entry(f"{doing} · {others} waiting" if others else doing)]

    def _advice(self, asked: list[Entry], said: list[Entry]) -> list[Entry]:
        """If the miniature declines, say once per conversation which model knows photos."""
        answer = "".join(conversation.text_of(entry) for entry in said if not conversation.is_note(entry))
        advice = self._engine.info.advice_on(answer)
        return [conversation.advice_entry(advice)] if advice and not conversation.has_advice(asked, advice) else []

    def _seen(self, request: ChatRequest) -> str:
        squares = [square for image in request.images if (square := self._engine.seen(image))]
        return panels.seen_html(squares, self._engine.info.image_tokens)


def _update(**shown: Any) -> Update:
    """Update these components and leave the others unchanged."""
    box, refusal, chat, seen, progress = (
        shown.get(part, gr.skip()) for part in ("box", "refusal", "chat", "seen", "progress")
    )
    return box, refusal, chat, seen, progress


def _asked(history: list[Entry], text: str, files: list[str]) -> list[Entry]:
    return [*history, *conversation.question_entries(text, files)]


def _index(event: gr.RetryData | gr.EditData) -> int:
    """The index of the user's last entry. Gradio's type still allows the pairs of an older Chatbot."""
    return event.index if isinstance(event.index, int) else event.index[0]


def _progress(growth: Growth) -> str:
    return panels.progress_html(growth.tokens_per_s) if growth.has_new_text else ""


def _refused(question: Question, error: InvalidRequest, is_taken: bool) -> Update:
    """The page as it was before the question, and the reason; js/asking.js puts the question back."""
    choices = panels.NEW_CHAT if isinstance(error, PromptTooLong | TooManyImages) else ""
    if choices and not (isinstance(error, PromptTooLong) and not error.fits_without_pictures):
        choices = panels.LEAVE_OUT + choices
    refusal = panels.refusal_html(str(error), choices, is_taken)
    return _update(refusal=refusal, chat=question.before, progress="")


def _failed(said: list[Entry], message: str) -> list[Entry]:
    kept = [entry for entry in said if not conversation.is_note(entry)]
    return [*kept, conversation.failure_entry("The answer broke off" if kept else "No answer", message)]
