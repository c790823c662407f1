"""Ask a running server about a picture as an assistant would: through MCP, with the official client.

python -m examples.clients.mcp_ask PICTURE PROMPT [ADDRESS]
"""

import asyncio
import base64
import sys
from pathlib import Path

from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client


def data_url(path: Path) -> str:
    return f"data:image;base64,{base64.b64encode(path.read_bytes()).decode()}"


async def main(picture: str, prompt: str, address: str = "http://127.0.0.1:7860") -> None:
    question = {"image": data_url(Path(picture)), "prompt": prompt, "temperature": 0}
    server = streamable_http_client(f"{address.rstrip('/')}/gradio_api/mcp/")
    async with server as (read, write, _), ClientSession(read, write) as session:
        await session.initialize()
        result = await session.call_tool("ask", question)
    if result.isError:
        sys.exit(result.content[0].text)
    print(result.content[0].text)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
