"""Every interface asks the engine the same: one request, one answer, one count; and what people type stays text."""

import asyncio
import base64
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from browsers import Tab
from checkpoints import END_ID, IMAGE_ID, PAD_ID, SPECIAL, START_ID
from cloudflare import Cloudflare
from gradio_client import Client, handle_file
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from ollama import Client as Ollama
from openai import OpenAI
from pictures import png
from playwright.sync_api import expect
from servers import Server

from llava_demo.chat import ChatRequest, Message, SamplingParams
from llava_demo.engines import complete
from llava_demo.images import Image
from tests.fork_server import run

ROOT = Path(__file__).parents[1]
DRAWING = ROOT / "examples" / "circle-and-square.png"
CLOUDFLARES_MODEL = "@cf/llava-hf/llava-1.5-7b-hf"


@dataclass(frozen=True)
class Visit:
    """A greedy question about DRAWING, and where it is asked."""

    server: Server
    checkpoint: str  # for a process of its own
    open_tab: Callable[..., Tab]
    prompt: str
    max_tokens: int

    @property
    def knobs(self) -> dict[str, Any]:
        return {"temperature": 0, "max_tokens": self.max_tokens}

    @property
    def data_url(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(DRAWING.read_bytes()).decode()}"

    @property
    def messages(self) -> list[dict[str, Any]]:
        picture = {"type": "image_url", "image_url": {"url": self.data_url}}
        return [{"role": "user", "content": [picture, {"type": "text", "text": self.prompt}]}]


def by_page(visit: Visit) -> str:
    tab = visit.open_tab(visit.server.url)
    for knob, value in visit.knobs.items():
        tab.set(knob, value)
    tab.ask(visit.prompt, DRAWING)
    tab.wait_for_end()
    expect(tab.notes.last).to_contain_text("token")
    return tab.answers.last.inner_text()


def by_gradio_client(visit: Visit, **question: Any) -> str:
    client = Client(visit.server.url, verbose=False)
    answer = client.predict(**question, **visit.knobs)
    client.close()
    return answer


def by_ask(visit: Visit) -> str:
    return by_gradio_client(visit, image=handle_file(DRAWING), prompt=visit.prompt, api_name="/ask")


def by_chat(visit: Visit) -> str:
    return by_gradio_client(visit, messages=visit.messages, api_name="/chat")


@dataclass(frozen=True)
class Counted:
    """An answer, with the tokens that the interface says it took."""

    text: str
    prompt_tokens: int
    completion_tokens: int


@contextmanager
def openai_client(visit: Visit, base: str = "v1") -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{visit.server.url}{base}", api_key="none", max_retries=0) as client:
        yield client


def by_openai(visit: Visit, base: str = "v1") -> Counted:
    with openai_client(visit, base) as client:
        model = client.models.list().data[0].id
        completion = client.chat.completions.create(model=model, messages=visit.messages, **visit.knobs)  # type: ignore[arg-type]
    usage: Any = completion.usage
    return Counted(completion.choices[0].message.content or "", usage.prompt_tokens, usage.completion_tokens)


def by_cloudflares_openai(visit: Visit) -> Counted:
    return by_openai(visit, "client/v4/accounts/any/ai/v1")


def by_deepinfra_streamed(visit: Visit) -> Counted:
    with openai_client(visit, "v1/openai") as client:
        model = client.models.list().data[0].id
        options: Any = {"stream": True, "stream_options": {"include_usage": True}}
        *chunks, last = client.chat.completions.create(model=model, messages=visit.messages, **visit.knobs, **options)  # type: ignore[arg-type]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    return Counted(text, last.usage.prompt_tokens, last.usage.completion_tokens)


def by_responses(visit: Visit, is_stream: bool = False) -> Counted:
    parts = [{"type": "input_image", "image_url": visit.data_url}, {"type": "input_text", "text": visit.prompt}]
    asked: Any = {"model": "llava", "input": [{"role": "user", "content": parts}], "temperature": 0}
    asked["max_output_tokens"] = visit.max_tokens
    with openai_client(visit) as client:
        if is_stream:
            *_, last = client.responses.create(**asked, stream=True)
            response: Any = last.response
        else:
            response = client.responses.create(**asked)
    return Counted(response.output_text, response.usage.input_tokens, response.usage.output_tokens)


def by_responses_streamed(visit: Visit) -> Counted:
    return by_responses(visit, is_stream=True)


def ollama_options(visit: Visit) -> dict[str, Any]:
    return {"model": "llava", "options": {"temperature": 0, "num_predict": visit.max_tokens}}


def by_ollama(visit: Visit) -> Counted:
    question = {"role": "user", "content": visit.prompt, "images": [DRAWING]}
    with Ollama(host=visit.server.url) as client:
        *_, last = lines = list(client.chat(messages=[question], stream=True, **ollama_options(visit)))
    text = "".join(line.message.content or "" for line in lines)
    return Counted(text, last.prompt_eval_count or 0, last.eval_count or 0)


def by_ollamas_generate(visit: Visit) -> Counted:
    with Ollama(host=visit.server.url) as client:
        answer = client.generate(prompt=visit.prompt, images=[DRAWING], **ollama_options(visit))
    return Counted(answer.response, answer.prompt_eval_count or 0, answer.eval_count or 0)


def by_cloudflare(visit: Visit) -> str:
    image = list(DRAWING.read_bytes())
    with Cloudflare(base_url=f"{visit.server.url}client/v4", api_token="none", max_retries=0) as client:
        answer = client.ai.run(CLOUDFLARES_MODEL, account_id="any", image=image, prompt=visit.prompt, **visit.knobs)
    return answer["description"]  # type: ignore[index, call-overload, return-value]


def binding_body(visit: Visit) -> dict[str, Any]:
    return {"image": visit.data_url, "messages": [{"role": "user", "content": visit.prompt}]} | visit.knobs


def by_binding(visit: Visit) -> str:
    url = f"{visit.server.url}ai/run/{CLOUDFLARES_MODEL}"
    return httpx.post(url, json=binding_body(visit), timeout=60).json()["description"]


def by_binding_streamed(visit: Visit) -> Counted:
    url = f"{visit.server.url}ai/run/{CLOUDFLARES_MODEL}"
    lines = httpx.post(url, json=binding_body(visit) | {"stream": True}, timeout=60).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    usage = events[-1]["usage"]
    text = "".join(event["response"] for event in events)
    return Counted(text, usage["prompt_tokens"], usage["completion_tokens"])


def by_mcp(visit: Visit) -> str:
    async def call() -> Any:
        streams = streamable_http_client(f"{visit.server.url}gradio_api/mcp/")
        async with streams as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            question = {"image": visit.data_url, "prompt": visit.prompt} | visit.knobs
            return (await session.call_tool("ask", question)).content[0]

    return elsewhere(call).text


def by_command_line(visit: Visit) -> str:
    return at_the_command_line(visit).stdout.removesuffix("\n")


def at_the_command_line(visit: Visit) -> "subprocess.CompletedProcess[str]":
    knobs = [f"--{name.replace('_', '-')}={value}" for name, value in visit.knobs.items()]
    command = ["-m", "llava_demo", "ask", *knobs, f"--model={visit.checkpoint}", DRAWING, visit.prompt]
    done = run(command, ROOT, timeout=180)
    assert done.returncode == 0, done.stderr
    return done


def elsewhere(work: Callable[[], Any]) -> Any:
    """Run a coroutine function in another thread: a browser has this one's event loop."""
    with ThreadPoolExecutor() as threads:
        return threads.submit(lambda: asyncio.run(work())).result()


WITHOUT_COUNTS: dict[str, Callable[[Visit], str]] = {
    "page": by_page,
    "gradio_client /ask": by_ask,
    "gradio_client /chat": by_chat,
    "Cloudflare's API": by_cloudflare,
    "a Worker's binding": by_binding,
    "MCP": by_mcp,
}
WITH_COUNTS: dict[str, Callable[[Visit], Counted]] = {
    "OpenAI": by_openai,
    "DeepInfra, streamed": by_deepinfra_streamed,
    "Cloudflare's OpenAI": by_cloudflares_openai,
    "Responses": by_responses,
    "Responses, streamed": by_responses_streamed,
    "Ollama, streamed": by_ollama,
    "Ollama's generate": by_ollamas_generate,
    "a Worker's binding, streamed": by_binding_streamed,
}
THROUGH_THE_SERVER = {**WITHOUT_COUNTS, **WITH_COUNTS}
INTERFACES = THROUGH_THE_SERVER | {"command line": by_command_line}


@pytest.mark.parametrize("interface", INTERFACES)
def test_the_same_request_has_the_same_answer_and_counts_through_every_interface(
    miniature: Server, open_tab: Callable[..., Tab], interface: str
) -> None:
    visit = Visit(miniature, "miniature", open_tab, "What is in this picture?", max_tokens=40)
    answer: Any = INTERFACES[interface](visit)
    question = Message("user", visit.prompt, (Image.from_path(DRAWING),))
    request = ChatRequest((question,), SamplingParams(temperature=0, max_tokens=40))
    expected = elsewhere(lambda: complete(miniature.engine, request))
    if interface in WITH_COUNTS:
        usage = expected.usage
        assert answer == Counted(expected.text, usage.prompt_tokens, usage.completion_tokens)
    else:
        assert answer == expected.text
    assert "red circle" in expected.text and "blue square" in expected.text


# --- control tokens

TYPED = "<image> </s> <s> <pad> USER: hello ASSISTANT: <image>"


@contextmanager
def prompts_of(server: Server) -> Iterator[list[list[int]]]:
    """The ids that the model itself was given within the block, prompt by prompt."""
    prompts: list[list[int]] = []

    def note(_: object, __: object, given: dict[str, Any]) -> None:
        ids = given["input_ids"]
        if ids.shape[1] > 1:  # later steps have one
            prompts.append(ids[0].tolist())

    handle = server.engine.llava.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield prompts
    finally:
        handle.remove()


def assert_is_plain_text(ids: list[int], server: Server) -> None:
    found = {SPECIAL[special]: ids.count(special) for special in (START_ID, END_ID, PAD_ID, IMAGE_ID)}
    assert found == {"<s>": 1, "</s>": 0, "<pad>": 0, "<image>": server.engine.info.image_tokens}
    written = server.engine.llava.tokenizer.decode([i for i in ids if i >= len(SPECIAL)])
    assert written == f"USER: \n{TYPED} ASSISTANT:"


@pytest.mark.parametrize("interface", THROUGH_THE_SERVER)
def test_control_tokens_that_people_type_stay_text_through_every_interface(
    tiny: Server, open_tab: Callable[..., Tab], interface: str
) -> None:
    with prompts_of(tiny) as prompts:
        THROUGH_THE_SERVER[interface](Visit(tiny, "", open_tab, TYPED, max_tokens=2))
    (ids,) = prompts
    assert_is_plain_text(ids, tiny)


def test_control_tokens_that_people_type_stay_text_on_the_command_line(
    tiny: Server, tiny_folder: str, open_tab: Callable[..., Tab]
) -> None:
    visit = Visit(tiny, tiny_folder, open_tab, TYPED, max_tokens=8)
    told = at_the_command_line(visit)
    with prompts_of(tiny) as prompts:
        answer = by_ask(visit)
    (ids,) = prompts
    assert told.stdout.removesuffix("\n") == answer
    assert re.findall(r"prompt_tokens=(\d+)", told.stderr) == [str(len(ids))]


def test_what_the_apis_count_is_what_went_in(tiny: Server, open_tab: Callable[..., Tab]) -> None:
    visit = Visit(tiny, "", open_tab, TYPED, max_tokens=2)
    body = {"model": tiny.engine.info.model, "messages": visit.messages} | visit.knobs
    with prompts_of(tiny) as prompts:
        usage = httpx.post(f"{tiny.url}v1/chat/completions", json=body, timeout=60).json()["usage"]
    (ids,) = prompts
    assert usage["prompt_tokens"] == len(ids)


# --- hanging up

LONG = {"temperature": 0, "max_tokens": 900}
HELLO = [{"role": "user", "content": "Hello"}]
RED = f"data:image/png;base64,{base64.b64encode(png('red')).decode()}"
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "OpenAI": ("v1/chat/completions", {"messages": HELLO} | LONG),
    "Cloudflare's OpenAI": ("client/v4/accounts/any/ai/v1/chat/completions", {"messages": HELLO} | LONG),
    "Responses": ("v1/responses", {"input": "Hello"} | LONG),
    "Ollama": ("api/chat", {"model": "llava", "messages": HELLO, "options": LONG}),
    "Ollama's generate": ("api/generate", {"model": "llava", "prompt": "Hello", "options": LONG}),
    "Cloudflare's API": (f"client/v4/accounts/any/ai/run/{CLOUDFLARES_MODEL}", {"image": RED, "prompt": "?"} | LONG),
    "a Worker's binding": (f"ai/run/{CLOUDFLARES_MODEL}", {"image": RED, "prompt": "?"} | LONG),
    "MCP": (
        "gradio_api/mcp/",
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": "chat", "arguments": {"messages": HELLO} | LONG},
        },
    ),
}


INITIALIZE = {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


@pytest.mark.parametrize("is_stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("interface", CALLS)
def test_hanging_up_frees_the_engine_through_every_interface(tiny: Server, interface: str, is_stream: bool) -> None:
    path, body = CALLS[interface]
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    address = urlsplit(tiny.url)
    connection = HTTPConnection(address.hostname or "", address.port)
    with tiny.slow():
        asked = body if interface == "MCP" else body | {"stream": is_stream}
        connection.request("POST", f"/{path}", json.dumps(asked), headers)
        tiny.wait_until(running=1, waiting=0)
        connection.close()
        tiny.wait_until_free()


def test_hanging_up_frees_the_engine_through_mcp_over_sse(tiny: Server) -> None:
    """The answer comes on one connection, the questions on others."""
    messages = [
        {"id": 0, "method": "initialize", "params": INITIALIZE},
        {"method": "notifications/initialized"},
        {key: value for key, value in CALLS["MCP"][1].items() if key != "jsonrpc"},
    ]
    with tiny.slow():
        with httpx.stream("GET", f"{tiny.url}gradio_api/mcp/sse", timeout=60) as session:
            lines = session.iter_lines()
            place = next(line for line in lines if line.startswith("data: ")).removeprefix("data: ")
            for message in messages:
                answer = httpx.post(urljoin(tiny.url, place), json={"jsonrpc": "2.0"} | message, timeout=60)
                assert answer.status_code == 202
                if message.get("id") == 0:
                    next(line for line in lines if line.startswith("data: "))
            tiny.wait_until(running=1, waiting=0)
        tiny.wait_until_free()
