"""A call in JavaScript, with Gradio's client, for Node 20 and newer."""

from llava_demo.ui.code.call import Call
from llava_demo.ui.code.literals import JAVASCRIPT, Code, json_string, written

MAX_SAFE_INTEGER = 2**53 - 1


def gradio_client(call: Call) -> str:
    """With Gradio's client: /ask for one question about one picture, else /chat."""
    name, values = call.for_gradio(_handle_file)
    login = ', { auth: ["user", "password"] }' if call.takes_login else ""
    uses = "Client, handle_file" if call.files() else "Client"
    lines = [f"  {key}: {written(value, JAVASCRIPT, '  ', len(key) + 2)}," for key, value in values.items()]
    return f"""// npm install @gradio/client
import {{ {uses} }} from "@gradio/client";

const client = await Client.connect({json_string(call.url)}{login});
const result = await client.predict("{name}", {{
{chr(10).join(lines)}
}});
console.log(result.data[0]);
"""


def _handle_file(name: str) -> Code:
    return Code(f"handle_file({json_string(name)})")
