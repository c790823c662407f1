"""A call in Python: with gradio_client, with OpenAI's client, with Cloudflare's client."""

from typing import Any

from llava_demo.ui.code.call import Call
from llava_demo.ui.code.literals import PYTHON, Code, python_string, written
from llava_demo.wire.cloudflare import MODEL

KEY_VARIABLE = "LLAVA_API_KEY"
_OPENAIS_OWN = {"temperature", "top_p", "max_tokens", "frequency_penalty", "presence_penalty", "seed", "stop"}

_PICTURE_FUNCTION = """

def picture(path):
    with open(path, "rb") as file:
        data = base64.b64encode(file.read()).decode()
    url = f"data:{mimetypes.guess_type(path)[0]};base64,{data}"
    return {"type": "image_url", "image_url": {"url": url}}

"""


def gradio_client(call: Call) -> str:
    """With Gradio's client: /ask for one question about one picture, else /chat."""
    name, arguments = call.for_gradio(_handle_file)
    login = ', auth=("user", "password")' if call.takes_login else ""
    uses = "Client, handle_file" if call.files() else "Client"
    return f"""# pip install gradio_client
from gradio_client import {uses}

client = Client({python_string(call.url)}{login})
answer = client.predict(
{_lines(arguments)}
    api_name="{name}",
)
print(answer)
"""


def openai(call: Call) -> str:
    """With OpenAI's client; its `extra_body` carries what OpenAI itself does not know."""
    own = {name: value for name, value in call.knobs.items() if name in _OPENAIS_OWN}
    extra = {name: value for name, value in call.knobs.items() if name not in _OPENAIS_OWN}
    arguments: dict[str, Any] = {
        "model": call.model,
        "messages": call.turns(_picture),
        **own,
        **({"extra_body": extra} if extra else {}),
    }
    modules = ["base64", "mimetypes"] * bool(call.files()) + ["os"] * call.takes_key
    imports = "".join(f"import {module}\n" for module in modules) + "\n" * bool(modules)
    return f"""# pip install openai
{imports}from openai import OpenAI
{_PICTURE_FUNCTION if call.files() else ""}
client = OpenAI(base_url={python_string(call.url + "/v1")}, api_key={_key(call)})
completion = client.chat.completions.create(
{_lines(arguments)}
)
print(completion.choices[0].message.content)
"""


def cloudflare(call: Call) -> str:
    """With Cloudflare's client: for conversations with one picture, in the first message."""
    messages = call.request.messages
    conversation = [{"role": message.role, "content": message.text} for message in messages]
    arguments: dict[str, Any] = {
        "account_id": "any",
        "image": Code(f"list(Path({python_string(call.files()[0])}).read_bytes())"),
        **({"prompt": messages[0].text} if len(messages) == 1 else {"messages": conversation}),
    }
    extra = {name: value for name, value in call.knobs.items() if name in ("min_p", "stop")}
    knobs = {name: value for name, value in call.knobs.items() if name not in extra}
    return f"""# pip install cloudflare
{"import os" + chr(10) if call.takes_key else ""}from pathlib import Path

from cloudflare import Cloudflare

client = Cloudflare(base_url={python_string(call.url + "/client/v4")}, api_token={_key(call)})
answer = client.ai.run(
    "{MODEL}",
{_lines(arguments | knobs | ({"extra_body": extra} if extra else {}))}
)
print(answer["description"])
"""


def _handle_file(name: str) -> Code:
    return Code(f"handle_file({python_string(name)})")


def _picture(name: str) -> Code:
    return Code(f"picture({python_string(name)})")


def _key(call: Call) -> str:
    return f'os.environ["{KEY_VARIABLE}"]' if call.takes_key else '"none"'


def _lines(arguments: dict[str, Any]) -> str:
    """Keyword arguments, each on a line of its own."""
    indent = PYTHON.indent
    rows = [f"{name}={written(value, PYTHON, indent, len(name) + 2)}," for name, value in arguments.items()]
    return "\n".join(indent + row for row in rows)
