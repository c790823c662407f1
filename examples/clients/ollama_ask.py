"""Ask a running server about a picture with Ollama's client, and print the answer as it grows.

pip install ollama && python -m examples.clients.ollama_ask PICTURE PROMPT [ADDRESS]
"""

import os
import sys

from ollama import Client


def main(picture: str, prompt: str, address: str = "http://127.0.0.1:7860") -> None:
    client = Client(host=address, headers={"Authorization": f"Bearer {os.environ.get('LLAVA_API_KEY', 'none')}"})
    question = {"role": "user", "content": prompt, "images": [picture]}
    for line in client.chat("llava", [question], options={"temperature": 0}, stream=True):
        print(line.message.content, end="", flush=True)
    print()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
