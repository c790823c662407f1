"""Calls of the Model Context Protocol's tools, looked at before Gradio's server for it gets them.

Gradio 6.31 uploads a data URL to its own page; of an upload that is refused its client hears the status, not the words.
Source: https://modelcontextprotocol.io/specification, `tools/call`.
"""

from typing import Any

from llava_demo.errors import InvalidImage
from llava_demo.images import Image, ImageLimits


def refusal_of_call(message: Any, limits: ImageLimits) -> dict[str, Any] | None:
    """The answer to a call whose `image` is a data URL of no picture; None for all that Gradio may have."""
    if not isinstance(message, dict) or message.get("method") != "tools/call":
        return None
    params = message.get("params")
    arguments = params.get("arguments") if isinstance(params, dict) else None
    image = arguments.get("image") if isinstance(arguments, dict) else None
    if not isinstance(image, str) or image[:5].lower() != "data:":
        return None
    try:
        Image.from_data_url(image, limits)
    except InvalidImage as error:
        result = {"content": [{"type": "text", "text": str(error)}], "isError": True}
        return {"jsonrpc": "2.0", "id": message.get("id"), "result": result}
    return None
