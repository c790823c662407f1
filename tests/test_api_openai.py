"""OpenAI's interface, judged by the official client, against a running server."""

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pictures import encoded, png
from servers import MAX_QUEUE, Server, free_port
from starlette.applications import Starlette
from test_downloads import HERE, Web, resolve

from llava_demo.api import Access, RestRoutes
from llava_demo.chat import ChatRequest, Message, SamplingParams
from llava_demo.engines import complete
from llava_demo.engines.generate import GenerateEngine
from llava_demo.images import Image, ImageLimits
from llava_demo.images.download import Downloads

EXAMPLES = Path(__file__).parents[1] / "examples"
MODEL = "llava-hf/llava-1.5-7b-hf"  # the name that the program had in use before its base URL was changed
RED, BLUE = Image.from_bytes(png("red")), Image.from_bytes(png("blue"))
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
LONG: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 900, "temperature": 0}
SHORT: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def client(tiny: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{tiny.url}v1", api_key="not looked at", max_retries=0) as client:
        yield client


def asking(text: str, *urls: str) -> list[ChatCompletionMessageParam]:
    """Text before pictures, as people write it."""
    parts: list[Any] = [{"type": "text", "text": text}]
    parts += [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    return [{"role": "user", "content": parts}]


def answer_of(server: Server, *messages: Message, **sampling: Any) -> Any:
    """What the engine answers without any interface before it."""
    request = ChatRequest(messages, SamplingParams(**{"temperature": 0, "max_tokens": 8} | sampling))
    return asyncio.run(complete(server.engine, request))


def prompt_ids(server: Server, *messages: Message) -> int:
    return server.engine.llava.prompt(messages)["input_ids"].shape[1]


# --- answers


def test_text_and_its_counts(client: OpenAI, tiny: Server) -> None:
    answer = client.chat.completions.create(**SHORT)
    expected = answer_of(tiny, Message("user", "Hello"))
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"  # what answered, whatever name it was called by
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == prompt_ids(tiny, Message("user", "Hello"))
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (8, answer.usage.prompt_tokens + 8)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_the_asynchronous_client_and_deepinfras_path(tiny: Server) -> None:
    async def ask() -> tuple[str | None, str]:
        async with AsyncOpenAI(base_url=f"{tiny.url}v1/openai", api_key="any", max_retries=0) as client:
            answer = await client.chat.completions.create(**SHORT)
            streamed = ""
            async for event in await client.chat.completions.create(**SHORT, stream=True):
                streamed += event.choices[0].delta.content or ""
            return answer.choices[0].message.content, streamed

    expected = answer_of(tiny, Message("user", "Hello")).text
    assert asyncio.run(ask()) == (expected, expected)


@pytest.mark.parametrize("images", [(RED,), (RED, BLUE), (RED, RED, BLUE)], ids=len)
def test_pictures_by_data_url_are_seen_and_counted(client: OpenAI, tiny: Server, images: tuple[Image, ...]) -> None:
    messages = asking("What is this?", *(image.to_data_url() for image in images))
    answer = client.chat.completions.create(**SHORT | {"messages": messages})
    asked = Message("user", "What is this?", images)
    expected = answer_of(tiny, asked)
    assert answer.choices[0].message.content == expected.text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens == prompt_ids(tiny, asked)
    text_only = prompt_ids(tiny, Message("user", "What is this?"))
    assert answer.usage.prompt_tokens >= text_only + len(images) * tiny.engine.info.image_tokens


def test_a_webp_that_is_labelled_jpeg_and_a_plain_string_as_image_url(client: OpenAI) -> None:
    """DeepInfra's own example sends WebP bytes as data:image/jpeg."""
    webp = Image.from_bytes(encoded(RED.pixels, "WEBP", lossless=True))
    labelled = webp.to_data_url().replace("image/webp", "image/jpeg")
    assert "image/jpeg" in labelled
    plain: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": RED.to_data_url()}]}]
    answers = [
        client.chat.completions.create(**SHORT | {"messages": messages}).choices[0].message.content
        for messages in (asking("", labelled), asking("", RED.to_data_url()), plain)
    ]
    assert len(set(answers)) == 1


def test_the_miniature_answers_truthfully_and_knows_the_turns_before(miniature: Server) -> None:
    with OpenAI(base_url=f"{miniature.url}v1/openai", api_key="any") as client:
        star = Image.from_path(EXAMPLES / "night-star.png").to_data_url()
        answer = client.chat.completions.create(
            model=MODEL, messages=asking("What is in this picture?", star), temperature=0
        )
        assert "yellow star" in (answer.choices[0].message.content or "")
        assert answer.choices[0].finish_reason == "stop"
        square = Image.from_path(EXAMPLES / "circle-and-square.png").to_data_url()
        messages = [
            *asking("Is there a square?", square),
            {"role": "assistant", "content": "Yes, there is a square."},
            {"role": "user", "content": "And what color is it?"},
        ]
        assert "blue" in str(client.chat.completions.create(model="miniature", messages=messages, temperature=0))


def test_a_stream_has_a_role_its_text_an_end_and_the_counts_that_were_asked_for(client: OpenAI, tiny: Server) -> None:
    expected = answer_of(tiny, Message("user", "Hello"), max_tokens=30)
    with tiny.slow():
        stream = client.chat.completions.create(
            **SHORT | {"max_tokens": 30}, stream=True, stream_options={"include_usage": True}
        )
        events = list(stream)
    assert {event.object for event in events} == {"chat.completion.chunk"}
    assert len({event.id for event in events}) == 1
    assert events[0].choices[0].delta.role == "assistant"
    *said, last, counts = events
    pieces = [event.choices[0].delta.content or "" for event in said]
    assert len([piece for piece in pieces if piece]) > 3
    assert "".join(pieces) == expected.text
    assert {event.choices[0].finish_reason for event in said} == {None}
    assert all("usage" in event.model_fields_set and event.usage is None for event in (*said, last))
    assert (last.choices[0].finish_reason, last.choices[0].delta.content) == ("length", None)
    assert counts.choices == []
    assert counts.usage is not None
    assert counts.usage.prompt_tokens == expected.usage.prompt_tokens
    assert counts.usage.completion_tokens == 30


def test_a_stream_ends_with_done_and_has_no_counts_unless_asked(tiny: Server) -> None:
    answer = httpx.post(f"{tiny.url}v1/chat/completions", json=SHORT | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "content-encoding" not in answer.headers
    events = answer.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events[:-1])
    assert "usage" not in answer.text


# --- knobs


def test_the_same_seed_gives_the_same_text_and_another_one_another(client: OpenAI) -> None:
    def sampled(seed: int) -> str | None:
        answer = client.chat.completions.create(**SHORT | {"temperature": 1.2, "max_tokens": 16}, seed=seed)
        return answer.choices[0].message.content

    assert sampled(7) == sampled(7) != sampled(8)


def test_temperature_changes_the_answer(client: OpenAI) -> None:
    """transformers serve 5.23 answers six seeds at temperature 1.5 with one greedy text."""
    asked = SHORT | {"temperature": 1.5, "max_tokens": 12}
    answers = {client.chat.completions.create(**asked, seed=seed).choices[0].message.content for seed in range(6)}
    assert len(answers) >= 5


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(client: OpenAI, tiny: Server) -> None:
    whole = answer_of(tiny, Message("user", "Hello"), max_tokens=30).text
    stop = whole[10:12]
    answer = client.chat.completions.create(**SHORT | {"max_tokens": 30}, stop=["never said", stop])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == whole[: whole.index(stop)]


def test_penalties_and_top_k_are_not_ignored(client: OpenAI) -> None:
    plain = client.chat.completions.create(**SHORT | {"max_tokens": 40}).choices[0].message.content
    for knobs in ({"frequency_penalty": 2}, {"presence_penalty": 2}, {"extra_body": {"repetition_penalty": 2}}):
        assert client.chat.completions.create(**SHORT | {"max_tokens": 40}, **knobs).choices[0].message.content != plain
    hot: dict[str, Any] = SHORT | {"max_tokens": 40, "temperature": 2}
    for only_one in ({"top_k": 1}, {"min_p": 1}):
        assert client.chat.completions.create(**hot, extra_body=only_one).choices[0].message.content == plain
    assert client.chat.completions.create(**hot, top_p=0).choices[0].message.content == plain


def test_three_answers_to_one_question_differ_and_are_numbered(client: OpenAI) -> None:
    asked = SHORT | {"temperature": 1, "n": 3}
    answer = client.chat.completions.create(**asked, seed=11)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    streamed = ["", "", ""]
    for event in client.chat.completions.create(**asked, seed=11, stream=True):
        for choice in event.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    alone = client.chat.completions.create(**asked | {"n": 1}, seed=11)
    assert alone.choices[0].message.content == texts[0]


def test_logprobs_are_those_of_the_tokens(client: OpenAI) -> None:
    answer = client.chat.completions.create(**SHORT, logprobs=True, top_logprobs=5)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 8
    for token in logprobs.content:
        assert len(token.top_logprobs) == 5
        ordered = [top.logprob for top in token.top_logprobs]
        assert ordered == sorted(ordered, reverse=True)
        assert token.logprob == pytest.approx(ordered[0])  # greedy: the likeliest was taken
        assert sum(map(math.exp, ordered)) <= 1 + 1e-6
        assert bytes(token.top_logprobs[0].bytes or []).endswith(bytes(token.bytes or []))
    said = answer.choices[0].message.content or ""
    assert "".join(token.token for token in logprobs.content) == said
    streamed = [
        token
        for event in client.chat.completions.create(**SHORT, logprobs=True, stream=True)
        for token in (event.choices[0].logprobs and event.choices[0].logprobs.content) or []
    ]
    assert [token.token for token in streamed] == [token.token for token in logprobs.content]
    assert client.chat.completions.create(**SHORT).choices[0].logprobs is None


def test_an_unfinished_answer_is_continued_and_other_ends_are_answered(client: OpenAI, tiny: Server) -> None:
    whole = answer_of(tiny, Message("user", "Hello"), max_tokens=20).text
    start = whole[:6]
    messages: Any = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": start}]
    rest = client.chat.completions.create(**SHORT | {"messages": messages}).choices[0].message.content or ""
    assert rest == answer_of(tiny, Message("user", "Hello"), Message("assistant", start)).text
    llava = tiny.engine.llava if tiny.behind is None else tiny.behind.engine.llava
    prompt = llava.ids([Message("user", "Hello"), Message("assistant", start)])
    plain = llava.ids([Message("user", "Hello")])
    assert prompt[: len(plain)] == plain
    assert llava.tokenizer.decode(prompt).endswith(start)
    for last in ([{"role": "system", "content": "Say hello."}], [*HELLO, {"role": "system", "content": "Be short."}]):
        assert client.chat.completions.create(**SHORT | {"messages": last}).choices[0].finish_reason


def test_an_unfinished_answer_keeps_the_space_of_its_next_word(miniature: Server) -> None:
    star = Image.from_path(EXAMPLES / "night-star.png").to_data_url()
    messages: Any = [*asking("What is in this picture?", star), {"role": "assistant", "content": "The image shows"}]
    with OpenAI(base_url=f"{miniature.url}v1", api_key="any") as client:
        answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    assert (answer.choices[0].message.content or "").startswith(" a ")


def test_an_answer_of_one_length_goes_on_after_its_end(miniature: Server) -> None:
    star = Image.from_path(EXAMPLES / "night-star.png").to_data_url()
    asked: dict[str, Any] = {"model": MODEL, "messages": asking("What is in this picture?", star), "temperature": 0}
    with OpenAI(base_url=f"{miniature.url}v1", api_key="any") as client:
        ended, going_on = (
            client.chat.completions.create(**asked, max_tokens=40, extra_body={"ignore_eos": ignores})
            for ignores in (False, True)
        )
    assert ended.usage and going_on.usage
    assert ended.usage.completion_tokens < 40 == going_on.usage.completion_tokens
    assert (ended.choices[0].finish_reason, going_on.choices[0].finish_reason) == ("stop", "length")


@pytest.mark.parametrize("place", ["chat/completions", "responses", "models", "v1/v1/chat/completions"])
def test_a_base_url_that_lacks_v1_is_pointed_out(tiny: Server, place: str) -> None:
    answer = httpx.post(f"{tiny.url}{place}", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert "base URL ends in /v1" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["dummy", "default", "", "llava", "tiny:latest", "tgi", "http://127.0.0.1:80/v1"])
def test_a_client_that_knows_no_name_is_answered(client: OpenAI, name: str) -> None:
    assert client.chat.completions.create(**SHORT | {"model": name}).model == "tiny"


def test_a_body_may_begin_with_a_byte_order_mark(tiny: Server) -> None:
    answer = httpx.post(f"{tiny.url}v1/chat/completions", content=b"\xef\xbb\xbf" + json.dumps(SHORT).encode())
    assert answer.status_code == 200


def test_the_models_are_one_and_are_known_by_both_names(client: OpenAI, tiny: Server) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == client.models.retrieve(MODEL).id == "tiny"
    listed = httpx.get(f"{tiny.url}v1/openai/models").json()["data"][0]
    assert (listed["max_model_len"], listed["image_tokens"], listed["max_images"]) == (1024, 16, 8)


# --- refusals


@pytest.mark.parametrize(
    ("fields", "kind", "code", "param"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": 9}, openai.BadRequestError, None, "temperature"),
        ({"max_tokens": -5}, openai.BadRequestError, None, "max_tokens"),
        ({"messages": []}, openai.BadRequestError, None, "messages"),
        ({"n": 5}, openai.BadRequestError, None, "n"),
        (
            {"response_format": {"type": "json_object", "schema": {"not": {}}}},
            openai.BadRequestError,
            None,
            "response_format",
        ),
        ({"extra_body": {"stop_token_ids": [10_000]}}, openai.BadRequestError, None, "stop_token_ids"),
        (
            {"stream_options": {"chunk_size": 5}},
            openai.BadRequestError,
            "unsupported_parameter",
            "stream_options.chunk_size",
        ),
        ({"tool_choice": "required"}, openai.BadRequestError, "unsupported_parameter", "tool_choice"),
        (
            {"messages": [{"role": "user", "content": "?", "attachments": ["a.png"]}]},
            openai.BadRequestError,
            "unsupported_parameter",
            "messages[0].attachments",
        ),
        ({"logit_bias": {"5": 1}}, openai.BadRequestError, "unsupported_parameter", "logit_bias"),
        ({"audio": {"voice": "a"}}, openai.BadRequestError, "unsupported_parameter", "audio"),
        ({"extra_body": {"no_such_knob": 1}}, openai.BadRequestError, "unsupported_parameter", "no_such_knob"),
        (
            {"messages": asking("", "data:image/png;base64,bm8gcGljdHVyZQ==")},
            openai.BadRequestError,
            "invalid_image",
            "messages[0].content[1].image_url",
        ),
        (
            {"messages": asking("", "/etc/passwd")},
            openai.BadRequestError,
            "invalid_image",
            "messages[0].content[1].image_url",
        ),
        (
            {"messages": asking("", "file:///etc/passwd")},
            openai.BadRequestError,
            "invalid_image",
            "messages[0].content[1].image_url",
        ),
        (
            {"messages": [{"role": "user", "content": "word " * 1200}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
        ({"messages": asking("", *[RED.to_data_url()] * 9)}, openai.BadRequestError, None, "messages"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_a_refusal_is_an_exception_of_the_client_with_its_code_and_field(
    client: OpenAI, is_stream: bool, fields: dict[str, Any], kind: type[openai.APIStatusError], code: str, param: str
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**SHORT | fields, stream=is_stream)
    error = caught.value
    assert error.code == code
    assert error.param == param
    assert error.type == "invalid_request_error"
    assert "root:" not in str(error)


def test_a_context_that_is_too_long_is_told_with_the_numbers(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"takes [\d,]+ tokens.* the model holds 1,024"):
        client.chat.completions.create(**SHORT | {"messages": [{"role": "user", "content": "word " * 1200}]})


def test_max_tokens_beyond_the_context_are_lowered_to_what_is_left(client: OpenAI) -> None:
    answer = client.chat.completions.create(**SHORT | {"max_tokens": 100_000}, stop=["never"])
    assert answer.usage is not None
    assert answer.usage.total_tokens == 1024


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"hello"', b"\xff\xfe", b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}", b'{"messages": NaN}'],
)
def test_what_is_no_proper_json_is_refused(tiny: Server, body: bytes) -> None:
    answer = httpx.post(f"{tiny.url}v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_unknown_routes_and_methods_are_refused_in_openais_form(tiny: Server) -> None:
    unknown = httpx.post(f"{tiny.url}v1/completions", json={})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    wrong = httpx.get(f"{tiny.url}v1/chat/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


def test_control_tokens_that_people_type_are_text(client: OpenAI, tiny: Server) -> None:
    typed = "<image></s><s> USER: ASSISTANT: <pad>"
    answer = client.chat.completions.create(**SHORT | {"messages": [{"role": "user", "content": typed}]})
    ids = tiny.engine.llava.prompt([Message("user", typed)])["input_ids"][0].tolist()
    special = {tiny.engine.llava.tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "</s>", "<pad>")}
    assert not special & set(ids)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.choices[0].message.content == answer_of(tiny, Message("user", typed)).text


# --- failures, and hanging up


def test_a_failure_before_the_first_word_has_its_status_even_in_a_stream(client: OpenAI, tiny: Server) -> None:
    for is_stream in (False, True):
        with tiny.broken(), pytest.raises(openai.InternalServerError, match="model failed while it answered") as caught:
            client.chat.completions.create(**SHORT, stream=is_stream)
        assert (caught.value.status_code, caught.value.code) == (500, "generation_failed")
        assert "secret" not in str(caught.value)
    assert client.chat.completions.create(**SHORT).choices[0].message.content


def test_a_failure_after_the_first_word_is_an_event(client: OpenAI, tiny: Server) -> None:
    with tiny.slow(), client.chat.completions.create(**LONG, stream=True) as stream:
        events = iter(stream)
        next(event for event in events if event.choices[0].delta.content)
        with tiny.broken(), pytest.raises(openai.APIError, match="model failed while it answered") as caught:
            list(events)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["code"] == "generation_failed"
    tiny.wait_until_free()


def test_hanging_up_in_mid_stream_frees_the_engine(client: OpenAI, tiny: Server) -> None:
    with tiny.slow():
        with client.chat.completions.create(**LONG, stream=True) as stream:
            next(event for event in stream if event.choices[0].delta.content)
            assert tiny.health()["running"] == 1
        tiny.wait_until_free()


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 3}], ids=["whole", "stream", "three"])
def test_hanging_up_at_any_time_frees_the_engine(tiny: Server, fields: dict[str, Any]) -> None:
    with tiny.slow(0.1):
        with posted(tiny, LONG):
            tiny.wait_until(running=1, waiting=0)
            with posted(tiny, LONG | fields):  # in line: nothing of its answer is there yet
                tiny.wait_until(running=1, waiting=fields.get("n", 1))
            tiny.wait_until(running=1, waiting=0)
        tiny.wait_until_free()


def posted(server: Server, body: dict[str, Any]) -> socket.socket:
    """A call whose answer nobody waits for: the connection is closed at the end of a `with` block."""
    url, data = httpx.URL(server.url), json.dumps(body).encode()
    line = socket.create_connection((url.host, url.port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: {len(data)}\r\n\r\n"
    line.sendall(head.encode() + data)
    return line


def test_comments_keep_a_waiting_stream_alive(tiny: Server) -> None:
    with tiny.slow(0.1), posted(tiny, LONG):
        tiny.wait_until(running=1, waiting=0)
        with posted(tiny, LONG | {"stream": True}) as line:
            line.settimeout(20)
            received = b""
            while received.count(b": still there") < 2:
                received += line.recv(4096)
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert b"data: [DONE]" not in received
    tiny.wait_until_free()


def test_one_too_many_is_told_when_to_come_again(client: OpenAI, tiny: Server) -> None:
    """One caller alone is told of its share before the queue is full."""
    with tiny.slow(0.1):
        lines = [posted(tiny, LONG) for _ in range(MAX_QUEUE)]
        tiny.wait_until(running=1, waiting=MAX_QUEUE - 1)
        for is_stream in (False, True):
            with pytest.raises(openai.RateLimitError, match="your share of this server now") as caught:
                client.chat.completions.create(**SHORT, stream=is_stream)
            assert (caught.value.status_code, caught.value.code) == (429, "rate_limit_exceeded")
            assert int(caught.value.response.headers["retry-after"]) >= 1
        for line in lines:
            line.close()
        tiny.wait_until_free()


# --- pictures from the web


@contextmanager
def fetching(engine: GenerateEngine, downloads: Downloads | None) -> Iterator[str]:
    """The REST routes of `engine` alone, with these downloads, for as long as the block is; gives their address."""
    routes = RestRoutes(engine, ImageLimits(), Access([], has_login=False), downloads)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=[routes]), port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join()


def test_pictures_from_the_web_are_fetched_and_answered_as_the_same_bytes(tiny: Server) -> None:
    web = Web()
    downloads = Downloads(ImageLimits(), resolve, is_allowed=lambda address: address == HERE)
    with fetching(tiny.engine, downloads) as url, OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        asked = SHORT | {"messages": asking("What is this?", web.url("/a.png"), web.url("/to//b.png"))}
        answer = client.chat.completions.create(**asked)
        assert answer.choices[0].message.content == answer_of(tiny, Message("user", "What is this?", (RED, RED))).text
        for path, host, words in (
            ("/status/404", "pictures.test", "answered with status 404"),
            ("/a.png", "inside.test", "not public"),
            ("/a.png", "127.0.0.1", "not public"),
        ):
            with pytest.raises(openai.BadRequestError, match=words) as caught:
                client.chat.completions.create(**SHORT | {"messages": asking("?", web.url(path, host))})
            assert caught.value.param == "messages[0].content[1].image_url"
        with pytest.raises(openai.BadRequestError, match="9 pictures to fetch; at most 8"):
            urls = [web.url(f"/{number}.png") for number in range(9)]
            client.chat.completions.create(**SHORT | {"messages": asking("?", *urls)})
    assert web.reached == []
    web.close()


def test_the_server_itself_is_no_picture(client: OpenAI, tiny: Server) -> None:
    """transformers serve 5.23 asks itself for /health, waits for itself, and answers nobody ever again."""
    with pytest.raises(openai.BadRequestError, match="not public"):
        client.chat.completions.create(**SHORT | {"messages": asking("?", f"{tiny.url}health/live")})
    assert tiny.health()["status"] == "ready"


def test_nothing_is_fetched_where_that_is_switched_off(tiny: Server) -> None:
    web = Web()
    asked = SHORT | {"messages": asking("?", web.url("/a.png"))}
    with (
        fetching(tiny.engine, None) as url,
        OpenAI(base_url=url, api_key="any", max_retries=0) as client,
        pytest.raises(openai.BadRequestError, match="fetches no web addresses"),
    ):
        client.chat.completions.create(**asked)
    assert web.heads == []
    web.close()


def test_a_slow_picture_keeps_nobody_else_waiting(tiny: Server) -> None:
    web = Web()
    downloads = Downloads(ImageLimits(), resolve, is_allowed=lambda address: address == HERE)
    asked = SHORT | {"messages": asking("?", web.url("/silent"))}
    with (
        fetching(tiny.engine, downloads) as url,
        OpenAI(base_url=url, api_key="any", max_retries=0) as client,
        ThreadPoolExecutor() as others,
    ):
        slow = others.submit(lambda: client.chat.completions.create(**asked))
        time.sleep(0.2)
        assert client.chat.completions.create(**SHORT).choices
        assert not slow.done()
        assert isinstance(slow.exception(), openai.BadRequestError)
    web.close()
