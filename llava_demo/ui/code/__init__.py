"""A request as code that repeats it: in Python, JavaScript and the shell, through each interface that the server has.

Pure text from values. Pictures are named, not held: the code reads them from the folder in which it runs.
"""

from dataclasses import dataclass

from llava_demo.ui.code import javascript, python, shell
from llava_demo.ui.code.call import Call

__all__ = ["Call", "Snippet", "snippets_of"]


@dataclass(frozen=True)
class Snippet:
    """The code for one way in, or why there is none."""

    name: str
    language: str  # as Pygments calls it
    code: str
    remark: str = ""  # what of the request it leaves out


def snippets_of(call: Call) -> list[Snippet]:
    """Every way in, the plainest first."""
    return [
        Snippet("Python", "python", python.gradio_client(call)),
        Snippet("OpenAI", "python", python.openai(call), _shut(call)),
        _cloudflare(call),
        Snippet("JavaScript", "javascript", javascript.gradio_client(call), _rounded(call)),
        Snippet("curl", "bash", shell.curl(call), _shut(call)),
    ]


def _cloudflare(call: Call) -> Snippet:
    messages = call.request.messages
    if len(call.request.images) != 1 or not messages[0].images:
        reason = (
            "Cloudflare's interface takes exactly one picture, with the first message; this conversation is different."
        )
        return Snippet("Cloudflare", "text", "", reason)
    return Snippet("Cloudflare", "python", python.cloudflare(call), _shut(call))


def _shut(call: Call) -> str:
    if call.takes_login and not call.takes_key:
        return "This server has a login and no API key, so it takes no such requests."
    return ""


def _rounded(call: Call) -> str:
    is_safe = (call.request.sampling.seed or 0) <= javascript.MAX_SAFE_INTEGER
    return "" if is_safe else "JavaScript rounds a seed this large."
