"""Answers a browser's questions about pictures that it uploaded: whether they are valid, and how the model sees them.

js/server.js asks them. The pictures stay in Gradio's upload folder; nothing is kept here.
"""

import asyncio
import base64
import io
import math
from typing import Any

import gradio as gr
import PIL.Image

from llava_demo.engines import Engine
from llava_demo.errors import InvalidImage, InvalidRequest
from llava_demo.images import Image, ImageLimits
from llava_demo.ui.uploads import Uploads

MAX_QUESTIONS = 20  # in one event; a browser seldom has more than six
MAX_SHOWN_SIDE = 2048  # in pixels, as in js/formats.js

_SHOWN_EVERYWHERE = {"image/jpeg", "image/png", "image/gif", "image/webp", "image/bmp", "image/avif"}

# Gradio passes a button's event to JavaScript and back; the modules of js/ get it as events of the document.
_TAKE_QUESTIONS = """() => {
    const detail = {};
    document.dispatchEvent(new CustomEvent("picture-questions", { detail }));
    return detail;
}"""
_HAND_ANSWERS = '(detail) => document.dispatchEvent(new CustomEvent("picture-answers", { detail }))'
_CHANGE_BOX = """({ text, files }) => {
    const detail = { message: { text, files } };
    document.dispatchEvent(new CustomEvent("box-changing", { detail }));
    return [detail.message, ""];
}"""

_CHIPS = {
    "Describe": "Describe this picture in detail.",
    "Read the text": "What text is in this picture?",
    "Count …": "How many … are there in this picture?",
    # LLaVA-1.5 was trained on RefCOCO and Visual Genome with these words (data mixture of llava_v1_5_mix665k)
    "Where is …": "Please provide the bounding box coordinate of the region this sentence describes: …",
    "For a blind reader": "I cannot see this picture. Describe it to me in detail.",
}


class PictureQuestions:
    """Answers questions of the form `{"id", "ask": "check" | "seen", "path"}`, several in one event."""

    def __init__(self, engine: Engine, limits: ImageLimits) -> None:
        self._engine = engine
        self._uploads = Uploads(limits, None, engine.info.max_images)

    def connect(self, box: gr.MultimodalTextbox, refusal: gr.HTML) -> None:
        """Make the hidden components with which js/server.js asks and changes `box`; a change clears `refusal`."""
        hidden: dict[str, Any] = {"visible": "hidden"}
        quiet: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        questions, answers = gr.JSON(**hidden), gr.JSON(**hidden)
        ask = gr.Button("Ask about pictures", elem_id="ask-about-pictures", **hidden)
        asked = ask.click(self.answers, questions, answers, js=_TAKE_QUESTIONS, **quiet)
        asked.then(None, answers, js=_HAND_ANSWERS)
        asked.failure(None, None, js="() => document.dispatchEvent(new CustomEvent('picture-answers'))")
        change = gr.Button("Change the box", elem_id="change-box", **hidden)
        changed = change.click(None, box, [box, refusal], js=_CHANGE_BOX)
        changed.then(None, js='() => document.dispatchEvent(new Event("box-changed"))')

    async def answers(self, asking: Any) -> list[dict[str, Any]]:
        """An answer with its id for each valid question in `{"questions"}`."""
        questions = asking.get("questions") if isinstance(asking, dict) else None
        given = questions[:MAX_QUESTIONS] if isinstance(questions, list) else []
        asked = [question for question in given if isinstance(question, dict) and isinstance(question.get("id"), int)]
        answers = await asyncio.gather(*(asyncio.to_thread(self._answer, question) for question in asked))
        return [{"id": question["id"], **answer} for question, answer in zip(asked, answers, strict=True)]

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            image = self._uploads.opened({"path": question.get("path")}, _no_address)
            return self._seen(image) if question.get("ask") == "seen" else self._checked(image)
        except InvalidRequest as error:
            return {"refusal": str(error)}

    def _checked(self, image: Image) -> dict[str, Any]:
        """Raises:
        InvalidImage: the pixels are damaged, which the header does not show.
        """
        if image.mime_type not in _SHOWN_EVERYWHERE:
            return {"jpeg": jpeg_url(image.pixels)}
        _ = self._engine.seen(image) or image.pixels  # the image keeps its square for the question
        return {}

    def _seen(self, image: Image) -> dict[str, Any]:
        square = self._engine.seen(image)
        if square is None:
            return {"refusal": "Another server prepares the pictures, and does not show what its model sees."}
        tokens = self._engine.info.image_tokens
        patches = patches_of(tokens)
        words = f"{square.width} by {square.height} pixels"
        if patches:
            words += f", read in {patches} by {patches} patches"
        return {"square": jpeg_url(square), "patches": patches or 1, "words": f"{words}: {tokens:,} tokens"}


def patches_of(image_tokens: int) -> int | None:
    """The number of patches along a side of the square; None if a picture's tokens are not a square grid."""
    side = math.isqrt(image_tokens)
    return side if side * side == image_tokens else None


def jpeg_url(picture: PIL.Image.Image) -> str:
    """The picture as a JPEG in a data URL, at most 2,048 pixels a side."""
    shown = picture.copy()
    shown.thumbnail((MAX_SHOWN_SIDE, MAX_SHOWN_SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=92, subsampling=0)  # full colour resolution: small squares are shown enlarged
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def giving_html(limits: ImageLimits) -> str:
    """The lists above the message box of files being uploaded and of refused ones; js/pictures.js fills both."""
    most = f"{limits.max_bytes / 2**20:g}"
    return f"""<ul id="on-their-way" aria-label="On their way"></ul>
<div role="alert"><ul id="refused" aria-label="Not added" data-max-megabytes="{most}"></ul></div>"""


def chips_html() -> str:
    """Questions for any picture; js/chips.js shows them while there is a picture."""
    chips = "".join(f'<button type="button" data-question="{words}">{name}</button>' for name, words in _CHIPS.items())
    return f'<div class="chips" role="group" aria-label="Questions to ask" hidden>{chips}</div>'


def _no_address(_: str) -> Image:
    raise InvalidImage("The picture must be uploaded.", "image")
