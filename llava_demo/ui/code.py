"""Code that repeats a request, in Python, JavaScript and the shell, for each interface of the server.

It makes text from values. Pictures are file names: the code reads them from the folder in which it runs.
"""

import json
import mimetypes
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from llava_demo.chat import ChatRequest, Message, SamplingParams
from llava_demo.wire.cloudflare import MODEL

KEY_VARIABLE = "LLAVA_API_KEY"
MAX_SAFE_INTEGER = 2**53 - 1  # JavaScript's Number.MAX_SAFE_INTEGER
WIDTH = 88

_OPENAIS_OWN = ("temperature", "top_p", "max_tokens", "frequency_penalty", "presence_penalty", "seed", "stop")
_RESPONSES_OWN = ("temperature", "top_p", "max_output_tokens")
_CLOUDFLARES_OWN = (*_OPENAIS_OWN[:-1], "top_k", "repetition_penalty")
_CLOSED = "This server has a login and no API key, so it takes no such requests."
_ONE_PICTURE = (
    "Cloudflare's interface takes exactly one picture, with the first message; this conversation is different."
)


@dataclass(frozen=True)
class Snippet:
    """The code for one client, or why there is none."""

    name: str
    language: str  # as Pygments calls it
    code: str
    remark: str = ""  # what it cannot do


@dataclass(frozen=True)
class CodeRequest:
    """A request to a running demo, to be repeated from code."""

    request: ChatRequest
    file_names: Mapping[str, str]  # names for the request's pictures, by digest
    url: str  # the demo's address, without a slash at its end
    model: str
    takes_login: bool = False
    takes_key: bool = False

    @property
    def knobs(self) -> dict[str, Any]:
        """The sampling parameters that differ from the API's defaults."""
        neutral = SamplingParams()
        given = {field.name: getattr(self.request.sampling, field.name) for field in fields(SamplingParams)}
        changed = {name: value for name, value in given.items() if value != getattr(neutral, name)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}

    def knobs_and_extra(self, own: tuple[str, ...]) -> dict[str, Any]:
        """The knobs for a client with the parameters `own`; the others go into `extra_body`."""
        extra = {name: value for name, value in self.knobs.items() if name not in own}
        known = {name: value for name, value in self.knobs.items() if name in own}
        return known | ({"extra_body": extra} if extra else {})

    def for_gradio(self, handle_file: Callable[[str], Any]) -> tuple[str, dict[str, Any]]:
        """The endpoint for Gradio's clients and its arguments; `handle_file` makes a picture of a file name."""
        messages = self.request.messages
        if len(messages) == 1 and len(self.request.images) == 1:
            return "/ask", {"image": handle_file(self.files()[0]), "prompt": messages[0].text, **self.knobs}
        return "/chat", {"messages": self.turns(handle_file), **self.knobs}

    def turns(self, picture: Callable[[str], Any]) -> list[dict[str, Any]]:
        """The conversation in OpenAI's format; `picture` makes a picture of a file name."""
        return [{"role": message.role, "content": self._content(message, picture)} for message in self.request.messages]

    def files(self) -> list[str]:
        """The file names of all pictures, each once, in the order of the conversation."""
        return list(dict.fromkeys(self.file_names[image.digest] for image in self.request.images))

    def _content(self, message: Message, picture: Callable[[str], Any]) -> str | list[Any]:
        parts = [picture(self.file_names[image.digest]) for image in message.images]
        text = [{"type": "text", "text": message.text}] if message.text else []
        return [*parts, *text] if parts else message.text


def snippets_of(call: CodeRequest) -> list[Snippet]:
    """A snippet for each client, the simplest first."""
    closed = _CLOSED if call.takes_login and not call.takes_key else ""
    rounded = "JavaScript rounds a seed this large." if (call.request.sampling.seed or 0) > MAX_SAFE_INTEGER else ""
    is_cloudflares = len(call.request.images) == 1 and call.request.messages[0].images
    return [
        Snippet("Python", "python", _gradio_client(call)),
        Snippet("OpenAI", "python", _openai(call), closed),
        Snippet("Responses", "python", _responses(call), closed),
        Snippet("Ollama", "python", _ollama(call), closed),
        Snippet("Cloudflare", "python", _cloudflare(call), closed)
        if is_cloudflares
        else Snippet("Cloudflare", "text", "", _ONE_PICTURE),
        Snippet("JavaScript", "javascript", _gradio_client_in_javascript(call), rounded),
        Snippet("curl", "bash", _curl(call), closed),
    ]


# --- Python


def _gradio_client(call: CodeRequest) -> str:
    name, arguments = call.for_gradio(lambda file: Code(f"handle_file({python_string(file)})"))
    login = ', auth=("user", "password")' if call.takes_login else ""
    return f"""# pip install gradio_client
from gradio_client import Client{", handle_file" * bool(call.files())}

client = Client({python_string(call.url)}{login})
answer = client.predict(
{_arguments(arguments)}
    api_name="{name}",
)
print(answer)
"""


_PICTURE_FUNCTION = """

def picture(path):
    with open(path, "rb") as file:
        data = base64.b64encode(file.read()).decode()
    url = f"data:{mimetypes.guess_type(path)[0]};base64,{data}"
    return PART

"""


def _openai_client(call: CodeRequest, part: str) -> str:
    modules = ["base64", "mimetypes"] * bool(call.files()) + ["os"] * call.takes_key
    imports = "".join(f"import {module}\n" for module in modules) + "\n" * bool(modules)
    return f"""# pip install openai
{imports}from openai import OpenAI
{_PICTURE_FUNCTION.replace("PART", part) if call.files() else ""}
client = OpenAI(base_url={python_string(call.url + "/v1")}, api_key={_key(call)})"""


def _openai(call: CodeRequest) -> str:
    arguments = {"model": call.model, "messages": call.turns(_picture)}
    return f"""{_openai_client(call, '{"type": "image_url", "image_url": {"url": url}}')}
completion = client.chat.completions.create(
{_arguments(arguments | call.knobs_and_extra(_OPENAIS_OWN))}
)
print(completion.choices[0].message.content)
"""


def _responses(call: CodeRequest) -> str:
    def item(turn: dict[str, Any]) -> dict[str, Any]:
        parts = turn["content"] if isinstance(turn["content"], list) else []
        typed = [part | {"type": "input_text"} if isinstance(part, dict) else part for part in parts]
        return turn | {"content": typed or turn["content"]}

    limit = {"max_output_tokens": call.knobs["max_tokens"]} if "max_tokens" in call.knobs else {}
    extra = {name: value for name, value in call.knobs.items() if name not in (*_RESPONSES_OWN, "max_tokens")}
    own = {name: value for name, value in call.knobs.items() if name in _RESPONSES_OWN}
    arguments = {"model": call.model, "input": [item(turn) for turn in call.turns(_picture)]} | own | limit
    return f"""{_openai_client(call, '{"type": "input_image", "image_url": url}')}
response = client.responses.create(
{_arguments(arguments | ({"extra_body": extra} if extra else {}))}
)
print(response.output_text)
"""


def _ollama(call: CodeRequest) -> str:
    names = {"max_tokens": "num_predict", "repetition_penalty": "repeat_penalty"}
    options = {names.get(name, name): value for name, value in call.knobs.items()}
    messages = [_ollama_message(call, message) for message in call.request.messages]
    arguments = {"model": call.model, "messages": messages} | ({"options": options} if options else {})
    headers = f', headers={{"Authorization": "Bearer " + {_key(call)}}}' if call.takes_key else ""
    return f"""# pip install ollama
{"import os" + chr(10) * 2 if call.takes_key else ""}from ollama import Client

client = Client(host={python_string(call.url)}{headers})
answer = client.chat(
{_arguments(arguments)}
)
print(answer.message.content)
"""


def _ollama_message(call: CodeRequest, message: Message) -> dict[str, Any]:
    files = [call.file_names[image.digest] for image in message.images]
    return {"role": message.role, "content": message.text} | ({"images": files} if files else {})


def _picture(file: str) -> "Code":
    return Code(f"picture({python_string(file)})")


def _cloudflare(call: CodeRequest) -> str:
    messages = [{"role": message.role, "content": message.text} for message in call.request.messages]
    words = {"messages": messages} if len(messages) > 1 else {"prompt": messages[0]["content"]}
    image = Code(f"list(Path({python_string(call.files()[0])}).read_bytes())")
    arguments = {"account_id": "any", "image": image, **words, **call.knobs_and_extra(_CLOUDFLARES_OWN)}
    return f"""# pip install cloudflare
{"import os" + chr(10) if call.takes_key else ""}from pathlib import Path

from cloudflare import Cloudflare

client = Cloudflare(base_url={python_string(call.url + "/client/v4")}, api_token={_key(call)})
answer = client.ai.run(
    "{MODEL}",
{_arguments(arguments)}
)
print(answer["description"])
"""


def _key(call: CodeRequest) -> str:
    return f'os.environ["{KEY_VARIABLE}"]' if call.takes_key else '"none"'


def _arguments(arguments: dict[str, Any]) -> str:
    """Keyword arguments, one per line."""
    indent = PYTHON.indent
    rows = (f"{name}={written(value, PYTHON, indent, len(name) + 2)}," for name, value in arguments.items())
    return "\n".join(indent + row for row in rows)


# --- JavaScript and the shell


def _gradio_client_in_javascript(call: CodeRequest) -> str:
    name, arguments = call.for_gradio(lambda file: Code(f"handle_file({json_string(file)})"))
    login = ', { auth: ["user", "password"] }' if call.takes_login else ""
    return f"""// npm install @gradio/client
import {{ Client{", handle_file" * bool(call.files())} }} from "@gradio/client";

const client = await Client.connect({json_string(call.url)}{login});
const result = await client.predict("{name}", {written(arguments, JAVASCRIPT)});
console.log(result.data[0]);
"""


def _curl(call: CodeRequest) -> str:
    """OpenAI's interface. The body is piped, since a picture exceeds the length of a command."""

    def picture(name: str) -> dict[str, Any]:
        kind = mimetypes.guess_type(name)[0] or "image/jpeg"  # our server ignores it
        url = f"\"data:{kind};base64,$(base64 < {shlex.quote(name)} | tr -d '\\n')\""
        return {"type": "image_url", "image_url": {"url": Code(url)}}

    body = {"model": call.model, "messages": call.turns(picture), **call.knobs}
    key = f' \\\n  -H "Authorization: Bearer ${KEY_VARIABLE}"' if call.takes_key else ""
    return f"""curl -s {shlex.quote(call.url + "/v1/chat/completions")} \\
  -H 'Content-Type: application/json'{key} \\
  --data-binary @- <<JSON
{written(body, HEREDOC)}
JSON
"""


# --- literals


@dataclass(frozen=True)
class Code:
    """An expression that is written into the source unchanged."""

    text: str


@dataclass(frozen=True)
class Layout:
    """How a language writes strings and indents; the rest is the same in all of them."""

    string: Callable[[str], str]
    indent: str


def python_string(text: str) -> str:
    """A literal in double quotes, as formatters prefer; unprintable characters are escaped, as by `repr`."""
    return _visible(text, lambda c: f"\\U{ord(c):08x}" if ord(c) > 0xFFFF else f"\\u{ord(c):04x}")


def json_string(text: str) -> str:
    """A literal in JSON and JavaScript; unprintable characters are escaped."""
    return _visible(text, lambda c: json.dumps(c)[1:-1])


def heredoc_string(text: str) -> str:
    """A JSON literal for an unquoted here-document, from which it comes out as JSON of that text.

    Of JSON's pairs with a backslash the shell changes only the double one. An exclamation mark expands to earlier
    commands, in zsh even here.
    """
    meanings = {"\\\\": "\\\\\\\\", "$": "\\$", "`": "\\`", "!": "\\u0021"}
    return re.sub(r"\\.|[$`!]", lambda found: meanings.get(found[0], found[0]), json_string(text))


PYTHON, JAVASCRIPT, HEREDOC = Layout(python_string, "    "), Layout(json_string, "  "), Layout(heredoc_string, "  ")


def written(value: Any, layout: Layout, indent: str = "", lead: int = 0) -> str:
    """The source of a value: on one line if it fits behind `lead` characters, else with one element per line.

    The value consists of strings, numbers, lists, dictionaries with string keys, and `Code`. `indent` is the
    indentation of the line on which the value begins.
    """
    if isinstance(value, Code):
        return value.text
    if not isinstance(value, dict | list):
        return layout.string(value) if isinstance(value, str) else repr(int(value) if value == int(value) else value)
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    keys = [f"{layout.string(key)}: " for key in value] if isinstance(value, dict) else [""] * len(value)
    elements = list(zip(keys, value.values() if isinstance(value, dict) else value, strict=True))
    flat = opening + ", ".join(key + written(each, layout, lead=-(10**9)) for key, each in elements) + closing
    if len(indent) + lead + len(flat) < WIDTH:
        return flat
    deeper = indent + layout.indent
    lines = f",\n{deeper}".join(key + written(each, layout, deeper, len(key)) for key, each in elements)
    return f"{opening}\n{deeper}{lines}\n{indent}{closing}"


def _visible(text: str, escape: Callable[[str], str]) -> str:
    return "".join(c if c.isprintable() else escape(c) for c in json.dumps(text, ensure_ascii=False))
