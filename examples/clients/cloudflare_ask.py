"""Ask a running server about a picture with Cloudflare's client, as one asks Workers AI.

pip install cloudflare && python -m examples.clients.cloudflare_ask PICTURE PROMPT [ADDRESS]
"""

import os
import sys
from pathlib import Path

from cloudflare import Cloudflare


def main(picture: str, prompt: str, address: str = "http://127.0.0.1:7860") -> None:
    client = Cloudflare(
        base_url=f"{address.rstrip('/')}/client/v4",
        api_token=os.environ.get("LLAVA_API_KEY", "none"),
    )
    answer = client.ai.run(
        "@cf/llava-hf/llava-1.5-7b-hf",
        account_id="any",
        image=list(Path(picture).read_bytes()),
        prompt=prompt,
        temperature=0,
    )
    print(answer["description"])


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
