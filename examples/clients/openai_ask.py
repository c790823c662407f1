"""Ask a running server about a picture with OpenAI's client, and print the answer as it grows.

pip install openai && python -m examples.clients.openai_ask PICTURE PROMPT [ADDRESS]
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
    chunks = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": url}},
                    {"type": "text", "text": prompt},
                ],
            }
        ],
        temperature=0,
        stream=True,
    )
    for chunk in chunks:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
