"""Tool calls of the Model Context Protocol, checked before Gradio's MCP server gets them.

Gradio 6.31 uploads a data URL to its own page; if that is refused, the client gets the status without the message. It
quotes the whole `image` that is not an address, which may be megabytes of base64.
Source: https://modelcontextprotocol.io/specification, `tools/call`.
"""

from typing import Any

from llava_demo.errors import InvalidImage
from llava_demo.images import Image, ImageLimits
from llava_demo.wire.messages import is_web_address


def refusal_of_call(message: Any, limits: ImageLimits) -> str:
    """Why a call is refused: its `image` is not an address, or a data URL without a picture. Else ""."""
    if not isinstance(message, dict) or message.get("method") != "tools/call":
        return ""
    params = message.get("params")
    arguments = params.get("arguments") if isinstance(params, dict) else None
    image = arguments.get("image") if isinstance(arguments, dict) else None
    if not isinstance(image, str) or is_web_address(image):
        return ""
    if image[:5].lower() != "data:":
        return "image is no address; send a data URL (data:image/png;base64,...) or an http address."
    try:
        Image.from_data_url(image, limits)
    except InvalidImage as error:
        return str(error)
    return ""


def refused(message: dict[str, Any], words: str) -> dict[str, Any]:
    """The answer to a call that is refused."""
    result = {"content": [{"type": "text", "text": words}], "isError": True}
    return {"jsonrpc": "2.0", "id": message.get("id"), "result": result}


def to_be_refused(message: dict[str, Any], words: str) -> dict[str, Any]:
    """The call with `words` as its picture: Gradio refuses it, since that is not an address, and quotes it."""
    params = message["params"]
    return message | {"params": params | {"arguments": params["arguments"] | {"image": words}}}
