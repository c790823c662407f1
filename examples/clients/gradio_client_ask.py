"""Ask a running server about a picture and print the answer as it grows.

python -m examples.clients.gradio_client_ask PICTURE PROMPT [ADDRESS]
"""

import sys

from gradio_client import Client, handle_file


def main(picture: str, prompt: str, address: str = "http://127.0.0.1:7860") -> None:
    client = Client(address, verbose=False)
    shown = ""
    for answer in client.submit(image=handle_file(picture), prompt=prompt, temperature=0, api_name="/ask"):
        print(answer[len(shown) :], end="", flush=True)
        shown = answer
    print()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
