"""Cloudflare's interface, judged by the official client and by raw calls, against a running server."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudflare
import httpx
import openai
import pytest
from cloudflare import Cloudflare
from openai import OpenAI
from pictures import png
from servers import MAX_QUEUE, Server
from test_api_openai import LONG, answer_of, posted

from llava_demo.chat import Message
from llava_demo.images import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
MODEL = "@cf/llava-hf/llava-1.5-7b-hf"
FILE = png("red")
RED = Image.from_bytes(FILE)
SHORT: dict[str, Any] = {"account_id": "any", "max_tokens": 8, "temperature": 0}
PLACES = [f"client/v4/accounts/any/ai/run/{MODEL}", f"ai/run/{MODEL}"]


@pytest.fixture(scope="module")
def client(tiny: Server) -> Iterator[Cloudflare]:
    with Cloudflare(base_url=f"{tiny.url}client/v4", api_token="not looked at", max_retries=0) as client:
        yield client


def run(client: Cloudflare, **fields: Any) -> str:
    answer: Any = client.ai.run(MODEL, **SHORT | {"image": list(FILE)} | fields)
    return answer["description"]


def test_a_byte_array_and_a_prompt(client: Cloudflare, tiny: Server) -> None:
    expected = answer_of(tiny, Message("user", "What is this?", (RED,)))
    assert run(client, prompt="What is this?") == expected.text


def test_messages(client: Cloudflare, tiny: Server) -> None:
    turns = [("system", "Be short."), ("user", "What?"), ("assistant", "A circle."), ("user", "What color?")]
    messages = [{"role": role, "content": words} for role, words in turns]
    expected = answer_of(
        tiny,
        Message("system", "Be short."),
        Message("user", "What?", (RED,)),
        Message("assistant", "A circle."),
        Message("user", "What color?"),
    )
    assert run(client, messages=messages) == expected.text


def test_a_raw_prompt_is_the_whole_prompt_and_gets_its_picture(client: Cloudflare, tiny: Server) -> None:
    llava = tiny.engine.llava
    templated = llava.tokenizer.decode(llava.prompt([Message("user", "Hello", (RED,))])["input_ids"][0])
    raw = templated.removeprefix("<s>").replace("<image>" * tiny.engine.info.image_tokens, "<image>")
    assert run(client, prompt=raw, raw=True) == run(client, prompt="Hello")
    without = raw.replace("<image>\n", "").replace("<image>", "")
    assert run(client, prompt=without, raw=True) == run(client, prompt=f"<image>\n{without}", raw=True)
    assert run(client, prompt=raw, raw=False) != run(client, prompt=raw, raw=True)


def test_every_knob_is_honoured(client: Cloudflare) -> None:
    hot: dict[str, Any] = {"prompt": "Hello", "temperature": 2, "max_tokens": 30}
    greedy = run(client, **hot | {"temperature": 0})
    for only_one in ({"top_k": 1.0}, {"top_p": 0}):
        assert run(client, **hot | only_one) == greedy
    assert run(client, **hot, seed=5.0) == run(client, **hot, seed=5) != run(client, **hot, seed=6)
    for knob, value in (("repetition_penalty", 2), ("frequency_penalty", 2), ("presence_penalty", 2)):
        assert run(client, **hot | {"temperature": 0, knob: value}) != greedy
    assert len(run(client, **hot | {"temperature": 0, "max_tokens": 5})) < len(greedy)


@pytest.mark.parametrize(
    ("fields", "kind", "code", "words"),
    [
        (
            {"prompt": "a", "messages": []},
            cloudflare.BadRequestError,
            5006,
            '"prompt" and "messages" are mutually exclusive',
        ),
        ({"image": [1, 2, 300]}, cloudflare.BadRequestError, 5004, "whole numbers from 0 to 255"),
        ({"image": [1, 2, 3]}, cloudflare.BadRequestError, 5004, "not a picture"),
        ({"temperature": 9}, cloudflare.BadRequestError, 5006, "temperature is 9"),
        ({"prompt": "x" * 6145}, cloudflare.BadRequestError, 5006, "at most 6,144"),
        ({"lora": "x"}, cloudflare.BadRequestError, 5006, "lora is not supported"),
        ({"prompt": "word " * 1200}, cloudflare.BadRequestError, 5006, "the model holds 1,024"),
    ],
)
def test_errors_are_exceptions_of_the_client(
    client: Cloudflare, fields: dict[str, Any], kind: type[cloudflare.APIStatusError], code: int, words: str
) -> None:
    with pytest.raises(kind) as caught:
        run(client, **fields)
    assert [error.code for error in caught.value.errors] == [code]
    assert words in str(caught.value.errors[0].message)


def test_a_stream_is_cloudflares_events(tiny: Server) -> None:
    body = {"image": list(FILE), "prompt": "Hello", "max_tokens": 8, "temperature": 0, "stream": True}
    expected = answer_of(tiny, Message("user", "Hello", (RED,)))
    for place in PLACES:
        answer = httpx.post(f"{tiny.url}{place}", json=body)
        assert answer.headers["content-type"].startswith("text/event-stream")
        *events, done = [event.removeprefix("data: ") for event in answer.text.strip().split("\n\n") if event[0] != ":"]
        assert done == "[DONE]"
        read = [json.loads(event) for event in events]
        assert "".join(event["response"] for event in read) == expected.text
        assert [event["usage"]["completion_tokens"] for event in read if "usage" in event] == [8]


def test_the_models_are_one_and_openais_interface_stands_below_the_account(client: Cloudflare, tiny: Server) -> None:
    """litellm's `cloudflare/` calls it there."""
    assert [model["name"] for model in client.ai.models.list(account_id="any")] == [MODEL]  # type: ignore[index]
    with OpenAI(base_url=f"{tiny.url}client/v4/accounts/any/ai/v1", api_key="any", max_retries=0) as openai_client:
        messages: Any = [{"role": "user", "content": "Hello"}]
        answer = openai_client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8, temperature=0)
        assert answer.choices[0].message.content == answer_of(tiny, Message("user", "Hello")).text
        with pytest.raises(openai.BadRequestError):
            openai_client.chat.completions.create(model=MODEL, messages=messages, temperature=9)


def test_another_model_is_not_found(client: Cloudflare) -> None:
    with pytest.raises(cloudflare.NotFoundError) as caught:
        client.ai.run("@cf/meta/llama-3-8b", account_id="any", prompt="Hello")
    assert [error.code for error in caught.value.errors] == [5007]


@pytest.mark.parametrize(
    "kind", ["application/octet-stream", "image/png", "text/plain", "application/x-www-form-urlencoded"]
)
def test_the_whole_body_may_be_the_picture(miniature: Server, kind: str) -> None:
    file = (EXAMPLES / "night-star.png").read_bytes()
    for place in PLACES:
        answer = httpx.post(f"{miniature.url}{place}", content=file, headers={"Content-Type": kind}, timeout=60)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert "star" in body.get("result", body)["description"]


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", None])
def test_json_is_json_whatever_it_is_called_and_the_second_place_answers_without_an_envelope(
    tiny: Server, kind: str | None
) -> None:
    """curl -d says that it sends a form; the examples of Cloudflare's documentation do not correct it."""
    body = {"image": base64.b64encode(FILE).decode(), "prompt": "Hello", "max_tokens": 8, "temperature": 0}
    headers = {"Content-Type": kind} if kind else {}
    wrapped, bare = (
        httpx.post(f"{tiny.url}{place}", content=f" {json.dumps(body)}", headers=headers).json() for place in PLACES
    )
    expected = answer_of(tiny, Message("user", "Hello", (RED,))).text
    assert bare == {"description": expected}
    assert wrapped == {"result": bare, "success": True, "errors": [], "messages": []}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("content", "kind", "code"),
    [
        (b"", "image/png", 5004),
        (b"no picture", "image/png", 5004),
        (FILE[:40], "image/png", 5004),
        (b"", "application/json", 5006),
        (b"{", "application/json", 5006),
        (b"[]", "application/json", 5006),
        (b'{"prompt": "Hello"}', "application/json", 5006),
        (b'{"image": [1, 2', "text/plain", 5006),
    ],
)
def test_what_is_neither_is_refused_in_cloudflares_form(
    tiny: Server, place: str, content: bytes, kind: str, code: int
) -> None:
    answer = httpx.post(f"{tiny.url}{place}", content=content, headers={"Content-Type": kind})
    assert answer.status_code == 400
    body = answer.json()
    assert (body["result"], body["success"], body["messages"]) == (None, False, [])
    assert [error["code"] for error in body["errors"]] == [code]


def test_unknown_routes_and_methods_are_refused_in_cloudflares_form(tiny: Server) -> None:
    for place, method, status in (("client/v4/user", "GET", 404), ("ai/models", "GET", 404), (PLACES[0], "GET", 405)):
        answer = httpx.request(method, f"{tiny.url}{place}")
        assert answer.status_code == status
        assert answer.json()["success"] is False


def test_control_tokens_that_people_type_are_text(client: Cloudflare, tiny: Server) -> None:
    typed = "<image></s> USER: ASSISTANT:"
    assert run(client, prompt=typed) == answer_of(tiny, Message("user", typed, (RED,))).text
    assert run(client, messages=[{"role": "user", "content": typed}]) == run(client, prompt=typed)
    with pytest.raises(cloudflare.BadRequestError, match="<image> 2 times"):
        run(client, prompt="<image><image>", raw=True)


def test_a_failing_and_a_busy_engine(client: Cloudflare, tiny: Server) -> None:
    with tiny.broken(), pytest.raises(cloudflare.InternalServerError) as caught:
        run(client)
    assert (caught.value.status_code, caught.value.errors[0].code) == (500, 3043)
    assert "secret" not in str(caught.value)
    with tiny.slow(0.1):
        lines = [posted(tiny, LONG) for _ in range(MAX_QUEUE)]
        tiny.wait_until(running=1, waiting=MAX_QUEUE - 1)
        with pytest.raises(cloudflare.RateLimitError) as busy:
            run(client)
        for line in lines:
            line.close()
        tiny.wait_until_free()
    assert (busy.value.status_code, busy.value.errors[0].code) == (429, 3040)
