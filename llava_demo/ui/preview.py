"""The preview that other programs show of a link to the page: title, description and picture.

They read the HTML and run no script, and Gradio adds its `head` by script: too late for them.
"""

import json
import re
from html import escape

from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_demo.ui.examples import FOLDER

TITLE = "Ask a picture"
DESCRIPTION = "Show LLaVA-1.5 a picture and ask about it: a chat in the browser, and OpenAI's API for programs."
CARD_PATH = "/card.png"
CARD_SIZE = (1200, 630)

_GRADIOS = re.compile(r'<meta\s+(?:property|name)="(?:og|twitter):[^>]*>\s*')
_CONFIG = "window.gradio_config = "


class LinkPreview:
    """Replaces Gradio's `<title>` and `og:` tags by the page's own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        start: Message = {}
        body = b""

        async def gather(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                await _send_with_tags(start, body, scope, receive, send)

        # Without this header the HTML comes uncompressed and can be edited.
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        await self._app({**scope, "headers": headers}, receive, gather)


def card() -> Route:
    """The route of the preview's picture; 404 if the examples were not installed with the code."""
    return Route(
        CARD_PATH, lambda _: FileResponse(path) if (path := FOLDER / "card.png").is_file() else Response("", 404)
    )


async def _send_with_tags(start: Message, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
    html = body.decode()
    if _CONFIG in html:
        root = json.JSONDecoder().raw_decode(html.split(_CONFIG, 1)[1])[0].get("root", "")
        html = _GRADIOS.sub("", html).replace("<head>", f"<head>\n{_tags(root)}", 1)
    headers = {name.decode(): value.decode() for name, value in start["headers"] if name != b"content-length"}
    await Response(html, start["status"], headers)(scope, receive, send)


def _tags(root: str) -> str:
    properties = {
        "og:type": "website",
        "og:site_name": TITLE,
        "og:title": f"{TITLE}: LLaVA-1.5",
        "og:description": DESCRIPTION,
        "og:url": f"{root}/",
    }
    if (FOLDER / "card.png").is_file():
        width, height = CARD_SIZE
        properties |= {
            "og:image": f"{root}{CARD_PATH}",
            "og:image:width": str(width),
            "og:image:height": str(height),
            "og:image:alt": "A drawing of a cottage with a box around it that says: the cottage.",
        }
    metas = [f'<meta property="{name}" content="{escape(value)}">' for name, value in properties.items()]
    metas.append(f'<meta name="description" content="{escape(DESCRIPTION)}">')
    metas.append('<meta name="twitter:card" content="summary_large_image">')
    return "\n".join([f"<title>{TITLE}</title>", *metas, ""])
