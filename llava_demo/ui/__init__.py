"""The page on which people ask about pictures, and its API for `gradio_client`; all code that needs Gradio."""

from llava_demo.ui.page import build_page
from llava_demo.ui.preview import LinkPreview, card
from llava_demo.ui.theme import look, scripts

__all__ = ["LinkPreview", "build_page", "card", "look", "scripts"]
