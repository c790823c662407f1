"""Ollama's interface, judged by the official client, against a running server."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from ollama import AsyncClient, Client, ResponseError
from pictures import png
from servers import Server, serving
from test_api_openai import answer_of

from llava_demo.chat import Message, SamplingParams
from llava_demo.engines.generate import GenerateEngine
from llava_demo.images import Image
from llava_demo.wire.bodies import body_from
from llava_demo.wire.ollama import OllamaChatRequest, Options

FILE = png("red")
RED = Image.from_bytes(FILE)
SHORT = {"num_predict": 8, "temperature": 0}
PICTURE: list[Any] = [{"role": "user", "content": "What is this?", "images": [FILE]}]
DRAWING = Path(__file__).parents[1] / "examples" / "circle-and-square.png"


@pytest.fixture(scope="module")
def client(tiny: Server) -> Iterator[Client]:
    with Client(host=tiny.url) as client:
        yield client


def test_a_chat_with_a_picture_whole_and_streamed(client: Client, tiny: Server) -> None:
    expected = answer_of(tiny, Message("user", "What is this?", (RED,)))
    whole = client.chat("llava", PICTURE, options=SHORT)
    assert (whole.message.content, whole.done_reason) == (expected.text, "length")
    assert (whole.prompt_eval_count, whole.eval_count) == (expected.usage.prompt_tokens, 8)
    lines = list(client.chat("tiny:latest", PICTURE, options=SHORT, stream=True))
    assert "".join(line.message.content or "" for line in lines) == expected.text
    assert [bool(line.done) for line in lines] == [False] * (len(lines) - 1) + [True]

    async def alone() -> str | None:
        async with AsyncClient(host=tiny.url) as other:
            return (await other.chat("llava:7b", PICTURE, options=SHORT)).message.content

    assert asyncio.run(alone()) == expected.text


def test_generate_with_a_system_prompt_and_a_raw_one(client: Client, tiny: Server) -> None:
    expected = answer_of(tiny, Message("system", "Be short."), Message("user", "What is this?", (RED,)))
    asked: dict[str, Any] = {"prompt": "What is this?", "images": [FILE], "system": "Be short.", "options": SHORT}
    assert client.generate("llava", **asked).response == expected.text
    assert "".join(line.response or "" for line in client.generate("llava", **asked, stream=True)) == expected.text
    raw = "USER: Hello ASSISTANT:"
    assert (
        client.generate("llava", raw, raw=True, options=SHORT).response
        == answer_of(tiny, Message("user", "Hello")).text
    )


def test_a_program_that_knows_only_the_variable_is_answered(miniature: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", miniature.url)
    with Client() as client:
        question = {"role": "user", "content": "What is in this picture?", "images": [DRAWING]}
        answer = client.chat("llava", [question], options={"temperature": 0})
    assert "red circle" in (answer.message.content or "")


def test_the_javascript_client(miniature: Server, node_folder: Path) -> None:
    script = f"""import {{ Ollama }} from "ollama";
const client = new Ollama({{ host: "{miniature.url.rstrip("/")}" }});
const question = {{ role: "user", content: "What is in this picture?", images: [process.argv[2]] }};
const asked = {{ model: "llava", messages: [question], options: {{ temperature: 0 }} }};
const whole = await client.chat(asked);
let streamed = "";
for await (const line of await client.chat({{ ...asked, stream: true }})) streamed += line.message.content;
const failure = await client.chat({{ ...asked, model: "nobody" }}).catch((error) => error.message);
console.log(JSON.stringify([whole.message.content, streamed, failure]));
"""
    (node_folder / "ollama.mjs").write_text(script, encoding="utf-8")
    done = subprocess.run(
        ["node", "ollama.mjs", str(DRAWING)], cwd=node_folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    whole, streamed, failure = json.loads(done.stdout)
    assert whole == streamed and "red circle" in whole
    assert "'nobody' is not served here" in failure


def test_durations_are_those_of_the_answer(client: Client, tiny: Server) -> None:
    with tiny.slow(0.02):
        answer = client.chat("llava", PICTURE, options=SHORT)
    assert answer.total_duration and answer.prompt_eval_duration and answer.eval_duration
    assert answer.total_duration == answer.prompt_eval_duration + answer.eval_duration
    assert answer.total_duration >= 8 * 0.02 * 1e9  # eight steps
    assert answer.prompt_eval_duration >= 0.02 * 1e9


def test_options_are_honoured_or_without_effect(client: Client) -> None:
    hot = {"num_predict": 30, "temperature": 2}
    greedy = client.chat("llava", PICTURE, options=hot | {"temperature": 0}).message.content
    for only_one in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}):
        assert client.chat("llava", PICTURE, options=hot | only_one).message.content == greedy
    for changed in ({"repeat_penalty": 2.0}, {"frequency_penalty": 2.0}, {"presence_penalty": 2.0}):
        assert client.chat("llava", PICTURE, options=hot | {"temperature": 0} | changed).message.content != greedy
    machine = {"num_ctx": 2048, "num_thread": 4, "num_gpu": 1, "mirostat": 0, "seed": -1, "repeat_last_n": 64}
    asked = {"options": hot | {"temperature": 0} | machine, "keep_alive": "5m", "think": False, "format": ""}
    assert client.chat("llava", PICTURE, **asked).message.content == greedy  # type: ignore[call-overload]
    sampled = [client.chat("llava", PICTURE, options=hot | {"seed": seed}).message.content for seed in (7, 7, 8)]
    assert sampled[0] == sampled[1] != sampled[2]


@pytest.mark.parametrize(("given", "tokens"), [(-1, 131_072), (-2, 131_072), (5, 5), (5.0, 5), (None, 512)])
def test_num_predict_is_max_tokens_or_as_many_as_the_context_holds(given: Any, tokens: int) -> None:
    assert Options.model_validate({"num_predict": given}).as_sampling().max_tokens == tokens


def test_knobs_beside_the_options_are_as_good() -> None:
    asked = {"model": "llava", "temperature": 0, "top_p": 0.5, "max_output_tokens": 7, "options": {"top_p": 0.9}}
    sampling = body_from(OllamaChatRequest, asked).as_sampling()
    assert sampling == SamplingParams(temperature=0, top_p=0.9, max_tokens=7)
    assert body_from(OllamaChatRequest, asked | {"options": {"num_predict": 3}}).as_sampling().max_tokens == 3


def test_log_probabilities(client: Client) -> None:
    answer = client.chat("llava", PICTURE, options=SHORT, logprobs=True, top_logprobs=2)
    assert answer.logprobs is not None
    assert [len(token.top_logprobs or ()) for token in answer.logprobs] == [2] * 8


def test_what_is_served_is_told(client: Client) -> None:
    assert [model.model for model in client.list().models] == ["tiny", "llava:latest", "llava:7b"]
    assert [model.context_length for model in client.ps().models] == [1024]
    shown = client.show("llava")
    assert shown.capabilities == ["completion", "vision"]
    assert shown.modelinfo is not None and shown.modelinfo["llama.context_length"] == 1024
    assert client.chat("llava", []).done_reason == "load"
    assert client.generate("llava").done_reason == "load"


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"model": ""}, 400, "model is a string; it must be a string that is not empty"),
        ({"options": {"repeat_last_n": "all"}}, 400, "options.repeat_last_n is a string; it must be a whole number"),
        ({"model": "mistral"}, 404, "'mistral' is not served here"),
        ({"options": {"temperature": 9}}, 400, "options.temperature is 9"),
        ({"options": {"num_predict": 0}}, 400, "options.num_predict is 0"),
        ({"options": {"repeat_penalty": 9}}, 400, "options.repeat_penalty is 9"),
        ({"options": {"top_k": 5}, "max_output_tokens": 0}, 400, "max_output_tokens is 0"),
        ({"options": {"num_predict": "many"}}, 400, "options.num_predict is a string; it must be a whole number"),
        ({"options": {"no_such_knob": 1}}, 400, "options.no_such_knob is not supported"),
        ({"options": {"repeat_penalty": 1.5, "repeat_last_n": 64}}, 400, "repeat_last_n is not supported"),
        ({"format": "xml"}, 400, "format is 'xml'; it must be \"json\" or a JSON schema"),
        ({"format": {"not": {}}}, 400, "JSON schema cannot be followed here: Unimplemented keys"),
        ({"think": True}, 400, "think is not supported"),
        ({"tool_choice": "required"}, 400, "leave it out: the answer is text, or JSON by a schema"),
        ({"top_p": 9}, 400, "top_p is 9"),
        ({"messages": [{"role": "user", "content": "?", "images": ["@"]}]}, 400, "messages[0].images[0]: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_errors_are_exceptions_of_the_client(
    tiny: Server, is_stream: bool, fields: dict[str, Any], status: int, words: str
) -> None:
    body = {"model": "llava", "messages": [{"role": "user", "content": "?"}], "stream": is_stream} | fields
    answer = httpx.post(f"{tiny.url}api/chat", json=body)
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}
    assert words in answer.json()["error"]
    assert ResponseError(answer.text, status).error == answer.json()["error"]


def test_what_would_change_the_models_is_refused_in_ollamas_form(client: Client) -> None:
    for refused in (
        client.pull,
        client.delete,
        lambda name: client.embed(name, "a"),
        lambda name: client.copy(name, "a"),
    ):
        with pytest.raises(ResponseError, match="is not supported here") as caught:
            refused("llava")  # type: ignore[operator]
        assert caught.value.status_code == 400


def test_unknown_routes_and_keys_are_told_in_ollamas_form(tiny: Server, tiny_engine: GenerateEngine) -> None:
    assert "There is no such route" in httpx.get(f"{tiny.url}api/nothing").json()["error"]
    assert "takes no GET" in httpx.get(f"{tiny.url}api/chat").json()["error"]
    with serving(tiny_engine, api_key=["k3y"]) as server:
        with Client(host=server.url) as stranger, pytest.raises(ResponseError, match="API key is missing or wrong"):
            stranger.chat("llava", PICTURE)
        with Client(host=server.url, headers={"Authorization": "Bearer k3y"}) as known:
            assert known.chat("llava", PICTURE, options=SHORT).done


def test_failures_and_hanging_up(client: Client, tiny: Server) -> None:
    long = {"num_predict": 900, "temperature": 0}
    with tiny.broken(), pytest.raises(ResponseError, match="model failed while it answered") as caught:
        client.chat("llava", PICTURE, options=SHORT)
    assert caught.value.status_code == 500
    with tiny.slow():
        lines = client.chat("llava", PICTURE, options=long, stream=True)
        next(line for line in lines if line.message.content)
        with tiny.broken(), pytest.raises(ollama.ResponseError, match="model failed while it answered"):
            list(lines)
        tiny.wait_until_free()
        body = {"model": "llava", "messages": [{"role": "user", "content": "Hello"}], "options": long}
        with httpx.stream("POST", f"{tiny.url}api/chat", json=body) as answer:
            received = answer.iter_lines()  # held: httpx hangs up when it is collected
            next(line for line in received if json.loads(line)["message"]["content"])
            assert tiny.health()["running"] == 1
        tiny.wait_until_free()
