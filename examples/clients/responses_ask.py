"""Ask a running server about a picture with OpenAI's Responses, and print the answer as it grows.

pip install openai && python -m examples.clients.responses_ask PICTURE PROMPT [ADDRESS]
"""

import base64
import mimetypes
import os
import sys
from pathlib import Path

from openai import OpenAI


def main(picture: str, prompt: str, address: str = "http://127.0.0.1:7860") -> None:
    data = base64.b64encode(Path(picture).read_bytes()).decode()
    url = f"data:{mimetypes.guess_type(picture)[0]};base64,{data}"
    client = OpenAI(base_url=f"{address.rstrip('/')}/v1", api_key=os.environ.get("LLAVA_API_KEY", "none"))
    parts = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": prompt}]
    events = client.responses.create(
        model=client.models.list().data[0].id,
        input=[{"role": "user", "content": parts}],
        temperature=0,
        stream=True,
    )
    for event in events:
        if event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
    print()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
