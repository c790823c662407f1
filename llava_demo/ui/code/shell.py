"""A call on the command line, with curl, for any shell of Linux and macOS."""

import mimetypes
import re
import shlex
from dataclasses import replace
from typing import Any

from llava_demo.ui.code.call import Call
from llava_demo.ui.code.literals import JSON, Code, json_string, written
from llava_demo.ui.code.python import KEY_VARIABLE


def curl(call: Call) -> str:
    """OpenAI's interface with curl. The body goes through a pipe, since a picture is longer than a command may be."""
    body = {"model": call.model, "messages": call.turns(_picture), **call.knobs}
    key = f' \\\n  -H "Authorization: Bearer ${KEY_VARIABLE}"' if call.takes_key else ""
    return f"""curl -s {shlex.quote(call.url + "/v1/chat/completions")} \\
  -H 'Content-Type: application/json'{key} \\
  --data-binary @- <<JSON
{written(body, _JSON_IN_SHELL)}
JSON
"""


def heredoc_string(text: str) -> str:
    """A JSON literal that comes out of an unquoted here-document as JSON of that text.

    Of the pairs that JSON writes with a backslash the shell changes only the double one. An exclamation mark calls up
    earlier commands, in zsh here too.
    """
    meanings = {"\\\\": "\\\\\\\\", "$": "\\$", "`": "\\`", "!": "\\u0021"}
    return re.sub(r"\\.|[$`!]", lambda found: meanings.get(found[0], found[0]), json_string(text))


_JSON_IN_SHELL = replace(JSON, string=heredoc_string)


def _picture(name: str) -> dict[str, Any]:
    kind = mimetypes.guess_type(name)[0] or "image/jpeg"  # our server looks at the bytes
    url = f"\"data:{kind};base64,$(base64 < {shlex.quote(name)} | tr -d '\\n')\""
    return {"type": "image_url", "image_url": {"url": Code(url)}}
