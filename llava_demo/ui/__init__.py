"""The page on which people ask about pictures, and its API for `gradio_client`. Everything here is Gradio's world."""

from llava_demo.ui.look import look
from llava_demo.ui.page import build_page, show_what_answers

__all__ = ["build_page", "look", "show_what_answers"]
