"""The API as tools for assistants: Model Context Protocol over streamable HTTP, read with the official client."""

import asyncio
import base64
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import (
    CallToolResult,
    CancelledNotification,
    CancelledNotificationParams,
    ClientNotification,
    TextContent,
)
from servers import Server, serving
from starlette.types import Message

from llava_demo.callers import Callers
from llava_demo.chat import KNOBS
from llava_demo.engines.generate import GenerateEngine

DRAWING = Path(__file__).parents[1] / "examples" / "circle-and-square.png"
DATA_URL = f"data:image/png;base64,{base64.b64encode(DRAWING.read_bytes()).decode()}"


def in_session(url: str, use: Callable[[ClientSession], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        streams = streamable_http_client(f"{url}gradio_api/mcp/")
        async with streams as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            return await use(session)

    return asyncio.run(run())


def call(url: str, tool: str, arguments: dict[str, Any]) -> CallToolResult:
    return in_session(url, lambda session: session.call_tool(tool, arguments))


def text_of(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


def test_the_three_endpoints_are_the_tools_and_every_parameter_has_words(miniature: Server) -> None:
    tools = {tool.name: tool for tool in in_session(miniature.url, lambda session: session.list_tools()).tools}
    assert tools.keys() == {"ask", "chat", "info"}
    assert tools["ask"].description.startswith("Answer a question about a picture.")
    assert tools["ask"].inputSchema["required"] == ["image", "prompt"]
    assert tools["chat"].inputSchema["required"] == ["messages"]
    for name in ("ask", "chat"):
        schema = tools[name].inputSchema["properties"]
        assert schema.keys() > {*KNOBS, "seed", "stop"}
        assert all(parameter["description"] for parameter in schema.values())
    assert "From 0 to 2." in tools["ask"].inputSchema["properties"]["temperature"]["description"]


def test_a_picture_is_asked_about(miniature: Server) -> None:
    question = {"image": DATA_URL, "prompt": "What is in this picture?", "temperature": 0}
    result = call(miniature.url, "ask", question)
    assert not result.isError
    assert "red circle" in text_of(result)


def test_a_conversation_goes_on(miniature: Server) -> None:
    picture = {"type": "image_url", "image_url": {"url": DATA_URL}}
    messages = [
        {"role": "user", "content": [picture, {"type": "text", "text": "Is there a square?"}]},
        {"role": "assistant", "content": "Yes, there is a square."},
        {"role": "user", "content": "And what color is it?"},
    ]
    assert "blue" in text_of(call(miniature.url, "chat", {"messages": messages, "temperature": 0}))
    assert "'model': 'miniature'" in text_of(call(miniature.url, "info", {}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 9}, r"temperature is 9; it must be a number from 0 to 2\."),
        ({"prompt": "word " * 7000}, "the model holds"),
        ({"image": "/etc/passwd"}, "image is no address; send a data URL"),
        ({"image": DATA_URL.partition(",")[2]}, "^image is no address; send a data URL [^,]{1,90},"),
        ({"image": "data:image/png;base64,aGVsbG8="}, "not a picture"),
        ({"image": "data:image/png;base64,@@@"}, "not valid base64"),
        ({"image": "data:image/png,hello"}, "not a picture"),
        ({"image": "http://127.0.0.1:1/a.png"}, "not public"),
    ],
    ids=[
        "a knob",
        "a long prompt",
        "a path",
        "base64 without its head",
        "no picture",
        "no base64",
        "no base64 and no picture",
        "an address of this machine",
    ],
)
def test_what_is_wrong_comes_back_as_words(miniature: Server, change: dict[str, Any], words: str) -> None:
    result = call(miniature.url, "ask", {"image": DATA_URL, "prompt": "Hello"} | change)
    assert result.isError
    assert re.search(words, text_of(result))
    assert "Traceback" not in text_of(result)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (DATA_URL, "red circle"),
        ("data:image/png;base64,aGVsbG8=", "This is not a picture"),
        (DATA_URL.partition(",")[2], "image is no address; send a data URL"),
    ],
    ids=["a picture", "no picture", "base64 without its head"],
)
def test_the_older_transport_answers_in_its_own_stream(miniature: Server, image: str, words: str) -> None:
    async def run() -> CallToolResult:
        streams = sse_client(f"{miniature.url}gradio_api/mcp/sse")
        async with streams as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            arguments = {"image": image, "prompt": "What is in this picture?", "temperature": 0}
            return await asyncio.wait_for(session.call_tool("ask", arguments), timeout=60)

    result = asyncio.run(run())
    assert result.isError == (image != DATA_URL)
    assert words in text_of(result)


@pytest.mark.parametrize("connect", [streamable_http_client, sse_client])
def test_a_call_that_is_cancelled_frees_the_engine_while_the_client_stays(tiny: Server, connect: Any) -> None:
    async def run() -> None:
        address = f"{tiny.url}gradio_api/mcp/" + ("sse" if connect is sse_client else "")
        async with connect(address) as (read, write, *_), ClientSession(read, write) as session:
            await session.initialize()
            arguments = {"image": DATA_URL, "prompt": "Hello", "max_tokens": 900, "temperature": 0}
            call = asyncio.gather(session.call_tool("ask", arguments), return_exceptions=True)
            await asyncio.to_thread(tiny.wait_until, running=1, waiting=0)
            number = session._request_id - 1
            notification = CancelledNotification(params=CancelledNotificationParams(requestId=number))
            await session.send_notification(ClientNotification(notification))
            await asyncio.to_thread(tiny.wait_until_free)
            assert (await session.list_tools()).tools
            call.cancel()
            await asyncio.wait([call])

    with tiny.slow(0.1):
        asyncio.run(run())


def test_messages_to_sessions_that_are_not_there_leave_nothing_behind() -> None:
    callers, call = Callers(), {"method": "tools/call", "id": 1}

    async def nothing() -> Message:
        return {"type": "http.disconnect"}

    for number in range(3):
        scope = {"type": "http", "headers": [], "query_string": f"session_id={number:032x}".encode()}
        with callers.asked_through_mcp(scope, nothing, call):
            assert len(callers._asking) == 1
    assert not callers._asking


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_picture_of_this_machine_is_refused(miniature: Server, form: str) -> None:
    place = form.format(DRAWING)
    messages = [{"role": "user", "content": [{"path": str(DRAWING)}, {"type": "text", "text": "What is it?"}]}]
    url = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": place}}]}]
    for tool, arguments in (
        ("ask", {"image": place, "prompt": "What is it?"}),
        ("ask", {"image": {"path": str(DRAWING)}, "prompt": "What is it?"}),
        ("chat", {"messages": messages}),
        ("chat", {"messages": url}),
    ):
        result = call(miniature.url, tool, arguments)
        assert result.isError, (tool, arguments)
        assert "red circle" not in text_of(result)


def test_where_a_login_is_asked_for_there_are_no_tools_and_the_log_says_so(
    tiny_engine: GenerateEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(tiny_engine, auth="ada:secret") as server:
        assert httpx.post(f"{server.url}gradio_api/mcp/", json={}).status_code in (401, 404, 405)
    assert "MCP is off: Gradio's MCP server cannot log in" in capfd.readouterr().err


def test_without_the_package_everything_else_works_and_the_log_says_so(
    tiny_engine: GenerateEngine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)  # as Python marks what cannot be imported
    with serving(tiny_engine) as server:
        assert server.health()["status"] == "ready"
        assert httpx.post(f"{server.url}gradio_api/mcp/", json={}).status_code in (404, 405)
    assert "MCP is off: it needs the package mcp" in capfd.readouterr().err
