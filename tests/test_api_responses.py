"""OpenAI's Responses, judged by the official client, against a running server."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pictures import png
from servers import Server
from test_api_openai import answer_of

from llava_demo.chat import Message
from llava_demo.images import Image

RED = Image.from_bytes(png("red"))
SHORT: dict[str, Any] = {"model": "tiny", "input": "Hello", "max_output_tokens": 8, "temperature": 0}
PICTURE: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": "What is this?"},
            {"type": "input_image", "image_url": RED.to_data_url(), "detail": "auto"},
        ],
    }
]

FILE_ID = {"type": "input_image", "file_id": "f"}


@pytest.fixture(scope="module")
def client(tiny: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{tiny.url}v1", api_key="not looked at", max_retries=0) as client:
        yield client


def test_text_its_counts_and_the_instructions(client: OpenAI, tiny: Server) -> None:
    answer = client.responses.create(**SHORT, instructions="Be short.")
    expected = answer_of(tiny, Message("system", "Be short."), Message("user", "Hello"))
    assert (answer.output_text, answer.model, answer.instructions) == (expected.text, "tiny", "Be short.")
    assert (answer.status, answer.incomplete_details and answer.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (expected.usage.prompt_tokens, 8)


def test_a_picture_whole_and_streamed_with_the_clients_own_events(client: OpenAI, tiny: Server) -> None:
    expected = answer_of(tiny, Message("user", "What is this?", (RED,)))
    asked = SHORT | {"input": PICTURE}
    assert client.responses.create(**asked).output_text == expected.text
    with client.responses.stream(**asked) as stream:
        events: list[Any] = list(stream)
    assert events[-1].response.output_text == expected.text
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))

    async def streamed() -> str:
        async with AsyncOpenAI(base_url=f"{tiny.url}v1", api_key="any", max_retries=0) as other:
            stream = await other.responses.create(**asked, stream=True)
            return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])

    assert asyncio.run(streamed()) == expected.text


def test_a_conversation_goes_on_with_the_answers_own_items(client: OpenAI) -> None:
    first = client.responses.create(**SHORT | {"input": PICTURE})
    call: Any = {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"}
    items: list[Any] = [
        *PICTURE,
        *(item.model_dump() for item in first.output),
        {"type": "reasoning", "id": "r", "summary": []},
        call,
        {"type": "function_call_output", "call_id": "1", "output": "It is red."},
    ]
    answer = client.responses.create(**SHORT | {"input": items})
    assert answer.usage is not None
    assert first.usage is not None
    assert answer.usage.input_tokens > first.usage.total_tokens


def test_log_probabilities_come_where_they_are_asked_for(client: OpenAI) -> None:
    answer = client.responses.create(**SHORT, include=["message.output_text.logprobs"], top_logprobs=2)
    (message,) = answer.output
    logprobs: Any = message.content[0].logprobs  # type: ignore[union-attr]
    assert len(logprobs) == 8
    assert {len(token.top_logprobs) for token in logprobs} == {2}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        (
            {"input": [{"role": "user", "content": [FILE_ID]}]},
            "input[0].content[0].file_id",
        ),
        ({"input": [{"type": "item_reference", "id": "i"}]}, "input[0].role"),
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 9}, "temperature"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_done_is_refused_by_name(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**SHORT | fields)
    assert caught.value.param == param


def test_what_cannot_change_the_answer_is_taken(client: OpenAI) -> None:
    unused: dict[str, Any] = {
        "store": True,
        "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": False}],
        "tool_choice": "auto",
        "reasoning": {"effort": "low"},
        "truncation": "auto",
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "metadata": {"a": "b"},
        "include": ["reasoning.encrypted_content"],
    }
    assert client.responses.create(**SHORT, **unused).output_text == client.responses.create(**SHORT).output_text


def test_failures_and_hanging_up(client: OpenAI, tiny: Server) -> None:
    long = SHORT | {"max_output_tokens": 900}
    with tiny.broken(), pytest.raises(openai.InternalServerError):
        client.responses.create(**SHORT, stream=True)
    with tiny.slow(), client.responses.create(**long, stream=True) as stream:
        events = iter(stream)
        next(event for event in events if event.type == "response.output_text.delta")
        with tiny.broken():
            *_, last = events
        assert last.type == "error"
        assert "model failed while it answered" in last.message
    tiny.wait_until_free()
    with tiny.slow():
        with httpx.stream("POST", f"{tiny.url}v1/responses", json=long | {"stream": True}) as answer:
            received = answer.iter_lines()  # held: httpx hangs up when it is collected
            next(line for line in received if "output_text.delta" in line)
            assert tiny.health()["running"] == 1
        tiny.wait_until_free()
