"""Answers that satisfy a JSON schema: from every engine that samples, and through the official clients."""

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

import pytest
from ollama import Client
from openai import OpenAI
from pictures import png
from pydantic import BaseModel, ConfigDict, Field
from servers import Server

from llava_demo.chat import ChatRequest, Completion, Message, SamplingParams
from llava_demo.engines import Engine, complete
from llava_demo.engines.batched.engine import BatchedEngine
from llava_demo.engines.generate import GenerateEngine
from llava_demo.errors import InvalidRequest
from llava_demo.images import Image


class Seen(BaseModel):
    model_config = ConfigDict(extra="forbid")  # else a model may write further keys up to its limit
    color: Literal["red", "green", "blue"]
    tags: list[Literal["circle", "square", "café", "日本"]] = Field(max_length=3)
    count: int = Field(ge=0, le=99)


class Tree(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Literal["a", 'quo"ted', "new\nline"]
    child: "Tree | None"


SEEN = json.dumps(Seen.model_json_schema())
PICTURE = Message("user", "What is it?", (Image.from_bytes(png("red")),))


def asking(schema: str | None, **knobs: Any) -> ChatRequest:
    sampling = SamplingParams(**{"temperature": 0, "max_tokens": 200} | knobs, json_schema=schema)
    return ChatRequest((PICTURE,), sampling)


def answers(engine: Engine, requests: Sequence[ChatRequest]) -> list[Completion]:
    async def ask_all() -> list[Completion]:
        return await asyncio.gather(*(complete(engine, request) for request in requests))

    return asyncio.run(ask_all())


def test_every_answer_satisfies_its_schema_and_the_engines_agree(
    tiny_engine: GenerateEngine, tiny_batched: BatchedEngine
) -> None:
    """Also beside others in the batch, which are free to say what they want."""
    tree = json.dumps(Tree.model_json_schema())
    mixed = [asking(None, max_tokens=30), asking(SEEN), asking(SEEN, temperature=1.5, seed=1, top_k=5)]
    mixed += [asking(tree, temperature=1, seed=2, min_p=0.1), asking(SEEN, repetition_penalty=1.5, top_logprobs=1)]
    expected = [answers(tiny_engine, [request])[0] for request in mixed]
    for alone, together in zip(expected, answers(tiny_batched, mixed), strict=True):
        assert (alone.text, alone.usage.completion_tokens) == (together.text, together.usage.completion_tokens)
    assert [completion.finish_reason for completion in expected] == ["length", *["stop"] * 4]
    for completion, model in zip(expected[1:], (Seen, Seen, Tree, Seen), strict=True):
        value = model.model_validate_json(completion.text)
        assert completion.text == json.dumps(value.model_dump(), ensure_ascii=False)  # no space but after , and :
    assert "".join(token.token for token in expected[4].logprobs) == expected[4].text


def test_an_answer_that_reaches_its_limit_says_so(tiny_batched: BatchedEngine) -> None:
    (completion,) = answers(tiny_batched, [asking(SEEN, max_tokens=5)])
    assert (completion.finish_reason, completion.usage.completion_tokens) == ("length", 5)
    assert completion.text.startswith('{"')


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"not": {}}, 'Unimplemented keys: ["not"]'),
        ({"type": "nonsense"}, "Invalid type: nonsense"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "does not fetch"),
        ({"$ref": "#/$defs/Missing"}, "does not exist"),
        ({"enum": ["\ud800"]}, "hex escape"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5) is greater than maximum (3)"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"x-guidance": 5, "type": "string", "format": "zzz"}, "Unknown format: zzz"),
        ({"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(10)]} for i in range(6)]}, "too large"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_schema_that_cannot_be_followed_is_the_callers_to_hear(
    tiny_batched: BatchedEngine, schema: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        answers(tiny_batched, [asking(json.dumps(schema))])
    assert words in str(caught.value)
    assert caught.value.param == "response_format"
    assert "\n" not in str(caught.value)


NO_OBJECT, TOO_LONG = "it must be a JSON object", "it must be text of at most 65,536 characters"
NO_SCHEMAS = {
    "[]": f"'[]'; {NO_OBJECT}", "{": f"'{{'; {NO_OBJECT}", "5": f"'5'; {NO_OBJECT}", "[" * 30_000: NO_OBJECT,
    '"\ud800"': "it must be text", " " * 70_000 + "{}": f"has 70,002 characters; {TOO_LONG}",
}  # fmt: skip


@pytest.mark.parametrize("schema", NO_SCHEMAS)
def test_what_is_no_schema_is_refused(schema: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(NO_SCHEMAS[schema])):
        SamplingParams(json_schema=schema)


def test_a_schema_that_proves_too_complex_fails_its_own_answer_only(
    tiny_engine: GenerateEngine, tiny_batched: BatchedEngine
) -> None:
    costly: dict[str, Any] = {"type": "string", "pattern": "(.{1,1000}){1,1000}x"}
    endless: dict[str, Any] = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    for engine, schema in ((tiny_engine, costly), (tiny_batched, costly), (tiny_batched, endless)):
        with pytest.raises(InvalidRequest, match="cannot be followed to the end"):
            answers(engine, [asking(json.dumps(schema), temperature=2, seed=0)])
        assert answers(engine, [asking(None, max_tokens=5)])[0].usage.completion_tokens == 5


def test_stop_tokens_end_an_answer_before_them(tiny_engine: GenerateEngine, tiny_batched: BatchedEngine) -> None:
    """As the model's own end tokens do, which they outlive."""
    llava = tiny_engine.llava
    inputs = llava.prompt((PICTURE,))
    ids = llava.model.generate(**inputs, do_sample=False, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :].tolist()
    whole, fifth = llava.tokenizer.decode(ids, skip_special_tokens=True).removeprefix(" "), ids[4]
    for engine in (tiny_engine, tiny_batched):
        for ignore_eos in (False, True):
            request = asking(None, max_tokens=20, stop_token_ids=(fifth,), ignore_eos=ignore_eos)
            (completion,) = answers(engine, [request])
            assert completion.finish_reason == "stop"
            assert completion.usage.completion_tokens == ids.index(fifth) + 1
            assert whole.startswith(completion.text)
        with pytest.raises(InvalidRequest, match=r"stop_token_ids holds 999; this model's tokens are 0 to 300\."):
            answers(engine, [asking(None, stop_token_ids=(999,))])


# --- the official clients


def test_openai_parses_chat_completions_and_responses(tiny: Server) -> None:
    question: list[Any] = [{"role": "user", "content": "What is it?"}]
    with OpenAI(base_url=f"{tiny.url}v1", api_key="none", max_retries=0) as client:
        chat = client.chat.completions.parse(model="llava", messages=question, response_format=Seen, temperature=0)
        response = client.responses.parse(model="llava", input=question, text_format=Seen, temperature=0)
        with client.responses.stream(model="llava", input=question, text_format=Seen, temperature=0) as stream:
            streamed = stream.until_done().get_final_response()
        free = client.chat.completions.create(
            model="llava", messages=question, response_format={"type": "json_object"}, max_tokens=40, temperature=0
        )
    assert isinstance(chat.choices[0].message.parsed, Seen)
    assert chat.choices[0].message.parsed == response.output_parsed == streamed.output_parsed
    assert response.text is not None and response.text.format is not None
    assert response.text.format.model_dump()["name"] == "Seen"
    assert (free.choices[0].message.content or "").startswith("{")


def test_ollama_takes_a_schema_or_json(tiny: Server) -> None:
    asked: dict[str, Any] = {"model": "llava", "options": {"temperature": 0, "num_predict": 200}}
    with Client(host=tiny.url) as client:
        question = [{"role": "user", "content": "What is it?", "images": [png("red")]}]
        chat = client.chat(messages=question, format=Seen.model_json_schema(), **asked)
        said = client.generate(prompt="What is it?", images=[png("red")], format=Seen.model_json_schema(), **asked)
        lines = client.chat(messages=question, format="json", stream=True, **asked)
        streamed = "".join(line.message.content or "" for line in lines)
    assert Seen.model_validate_json(chat.message.content or "") == Seen.model_validate_json(said.response)
    assert streamed.startswith("{")
