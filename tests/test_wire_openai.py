"""OpenAI's chat completions: what one direction writes the other reads, and the official client's types take it."""

import json
import math
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pictures import png

from llava_demo.chat import ChatRequest, Chunk, Completion, Message, SamplingParams, TokenLogprob, Usage
from llava_demo.errors import (
    DemoError,
    EngineBusy,
    EngineUnavailable,
    GenerationFailed,
    ImageTooLarge,
    InvalidImage,
    InvalidRequest,
    ModelNotFound,
    PromptTooLong,
    RequestTooLarge,
    UnsupportedParameter,
)
from llava_demo.images import Image, ImageLimits
from llava_demo.wire.bodies import body_from
from llava_demo.wire.messages import Pictures
from llava_demo.wire.openai import Call, ChatCompletionRequest, Head, call_of, error_json
from llava_demo.wire.openai_client import STREAMED, chunk_from, error_from, request_json
from llava_demo.wire.without_effect import WITHOUT_EFFECT

RED, BLUE = Image.from_bytes(png("red")), Image.from_bytes(png("blue"))
HELLO = (Message("user", "Hello"),)
HEAD = Head("chatcmpl-1", "tiny", 1_700_000_000)
LOGPROBS = (
    TokenLogprob(" a", -0.25, (TokenLogprob(" a", -0.25), TokenLogprob(" the", -1.5))),
    TokenLogprob("👋", -2.0),
)


def call_from(body: Any) -> Call:
    return call_of(body_from(ChatCompletionRequest, body), Pictures(ImageLimits()))


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]} | fields


# --- requests


@pytest.mark.parametrize(
    "request_",
    [
        ChatRequest(HELLO),
        ChatRequest((Message("user", "", (RED,)),)),
        ChatRequest(
            (
                Message("system", "Be short."),
                Message("user", "What's the difference?\n", (RED, BLUE)),
                Message("assistant", ""),
                Message("user", "你好 👋"),
            ),
            SamplingParams(0, 0.7, 20, 5, 0.1, 1.2, -0.5, 0.5, seed=2**63 - 1, stop=("\n", "</s>"), top_logprobs=0),
        ),
        ChatRequest(HELLO, SamplingParams(temperature=1.3, top_logprobs=5)),
    ],
)
def test_a_request_survives_the_way_to_json_and_back(request_: ChatRequest) -> None:
    body = json.loads(json.dumps(request_json(request_, "tiny")))
    assert call_from(body) == Call(request_, "tiny")
    assert call_from(body | STREAMED) == Call(request_, "tiny", is_stream=True, has_usage=True)


def test_neutral_knobs_are_not_sent_for_other_servers_may_not_know_them() -> None:
    body = request_json(ChatRequest(HELLO), "tiny")
    assert body.keys() == {"model", "messages", "temperature", "top_p", "max_tokens"}


def test_a_raw_prompt_is_not_sent_as_if_it_were_a_conversation() -> None:
    with pytest.raises(InvalidRequest, match="raw prompt cannot"):
        request_json(ChatRequest(HELLO, is_raw=True), "tiny")


def test_what_is_left_out_or_null_has_the_defaults_of_the_apis() -> None:
    call = call_from({"messages": [{"role": "user", "content": "Hello"}], "seed": None, "stop": None, "tools": None})
    assert call == Call(ChatRequest(HELLO, SamplingParams(temperature=0.2, top_p=1.0, max_tokens=512)))


def test_whole_numbers_may_come_as_floats_and_the_two_names_of_max_tokens_are_one_knob() -> None:
    assert call_from(asked(max_completion_tokens=5.0)).request.sampling.max_tokens == 5
    assert call_from(asked(max_completion_tokens=5, max_tokens=5)).request.sampling.max_tokens == 5
    assert call_from(asked(n=2.0)).choices == 2
    assert call_from(asked(stop="\n")).request.sampling.stop == ("\n",)


def test_every_choice_has_its_own_seed_and_the_first_that_of_a_call_for_one() -> None:
    requests = call_from(asked(n=3, seed=2**63 - 2, temperature=1)).requests
    assert [request.sampling.seed for request in requests] == [2**63 - 2, 2**63 - 1, 0]
    assert requests[0] == call_from(asked(seed=2**63 - 2, temperature=1)).request
    assert [request.sampling.seed for request in call_from(asked(n=2)).requests] == [None, None]


@pytest.mark.parametrize(("name", "values"), WITHOUT_EFFECT.items())
def test_the_table_of_fields_without_effect_is_what_is_taken(name: str, values: tuple[Any, ...]) -> None:
    for value in values or (True, "anything", {"a": [1]}):
        assert call_from(asked(**{name: value})) == call_from(asked())
    if values:
        with pytest.raises(InvalidRequest):
            call_from(asked(**{name: "something else"}))


def test_the_smaller_of_two_limits_and_other_servers_names_of_knobs() -> None:
    assert call_from(asked(max_completion_tokens=5, max_tokens=6)).request.sampling.max_tokens == 5
    assert call_from(asked(repeat_penalty=1.5)).request.sampling == SamplingParams(repetition_penalty=1.5)
    assert call_from(asked(ignore_eos=True)).request.sampling == SamplingParams(ignore_eos=True)
    assert call_from(asked(stop_token_ids=[2, 7])).request.sampling == SamplingParams(stop_token_ids=(2, 7))


@pytest.mark.parametrize(
    ("given", "schema"),
    [
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_object", "schema": {"type": "array"}}, {"type": "array"}),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {}}}, {}),
        ({"type": "json_schema", "schema": {"type": "array"}, "name": "a", "strict": None}, {"type": "array"}),
        ({"type": "json", "value": {"type": "array"}}, {"type": "array"}),
        ({"type": "json_object", "value": {"type": "array"}}, {"type": "array"}),
        ({"type": "json_schema", "value": {"type": "array"}}, {"type": "array"}),
        ({"type": "json_schema", "value": {"name": "a", "schema": {"type": "array"}}}, {"type": "array"}),
    ],
)
def test_a_response_format_is_a_schema(given: dict[str, Any], schema: dict[str, Any]) -> None:
    sampling = call_from(asked(response_format=given)).request.sampling
    assert sampling == SamplingParams(json_schema=json.dumps(schema))


@pytest.mark.parametrize("schema", [{"type": "array"}, '{"type": "array"}'])
def test_a_schema_may_stand_where_other_servers_look_for_it(schema: Any) -> None:
    for fields in ({"guided_json": schema}, {"structured_outputs": {"json": schema}}, {"json_schema": schema}):
        assert call_from(asked(**fields)).request.sampling == SamplingParams(json_schema='{"type": "array"}')


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stop": ["a", ""]}, "stop has ''; it must be at most 4 strings, none of them empty."),
        ({"stop": [None]}, "stop has None; it must be"),
        ({"stop": list("abcde")}, "stop has 5 values; it must be at most 4 strings"),
        ({"stop_token_ids": [1] * 129}, "stop_token_ids has 129 values; it must be at most 128 token ids."),
        ({"logit_bias": {"5": 1}}, "logit_bias is not supported here with an object, only with {}; leave it out."),
        ({"typical_p": 0.5}, "typical_p is not supported here with 0.5, only with 1; leave it out."),
        ({"json_schema": "x" * 70_000}, "The JSON schema has 70,000 characters; it must be text of at most 65,536"),
        ({"json_schema": "[1]"}, "The JSON schema is '[1]'; it must be a JSON object."),
        ({"stream": "yes"}, "stream is a string; it must be true or false."),
        ({"model": ["a"]}, "model is a list; it must be a string."),
        ({"n": "a secret prompt"}, "n is a string; it must be a whole number from 1 to 4."),
    ],
)
def test_a_refusal_says_what_was_given_and_what_is_allowed(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        call_from(asked(**fields))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema", "json_schema": {"schema": "text"}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"grammar": "a"}}, "response_format.json_schema.grammar"),
        ({"type": "json_object", "schema": {"enum": ["x" * 70_000]}}, "response_format"),
        ("json", "response_format"),
    ],
)
def test_what_is_no_response_format_is_refused(given: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        call_from(asked(response_format=given))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ignore_eos": True}, "has an end"),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "{"}]}, "its rest alone"),
    ],
)
def test_a_response_format_beside_what_contradicts_it_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        call_from(asked(response_format={"type": "json_object"}) | fields)


@pytest.mark.parametrize("count", [0, 5, 1000, 1.5])
def test_a_number_that_is_not_allowed_is_quoted(count: float) -> None:
    with pytest.raises(InvalidRequest, match=rf"n is {count}; it must be a whole number from 1 to 4\."):
        call_from(asked(n=count))


def test_an_unfinished_answer_is_continued() -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Well"}]
    for fields in ({}, {"continue_final_message": True, "add_generation_prompt": False}):
        assert call_from({"messages": messages, **fields}).request.is_continuation


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "ada", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "parallel_tool_calls": False},
        {"response_format": {"type": "text"}, "modalities": ["text"], "logit_bias": {}, "tools": []},
        {"tool_choice": "none", "n": None, "logprobs": None, "stream_options": None, "response_format": None},
        {"stream_options": {}, "logprobs": False, "stream": False},
    ],
)
def test_what_does_not_change_the_answer_is_taken(fields: dict[str, Any]) -> None:
    assert call_from(asked(**fields)) == call_from(asked())


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"thinking": {"type": "enabled"}},
        {"min_tokens": 5},
        {"min_tokens": False},
        {"best_of": True},
        {"logit_bias": {"50256": -100}},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "alloy", "format": "wav"}},
        {"web_search_options": {}},
        {"best_of": 2},
        {"no_such_thing": 1},
        {"x" * 10_000: 1},
    ],
    ids=lambda fields: next(iter(fields))[:40],
)
def test_what_changes_the_answer_and_is_not_done_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        call_from(asked(**fields))
    assert caught.value.param == next(iter(fields))[:40]
    assert len(str(caught.value)) < 140


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": math.inf}, "top_p"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": 2.5}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_completion_tokens": 2.5}, "max_tokens"),
        ({"max_completion_tokens": 0, "max_tokens": 6}, "max_tokens"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"stream_options": {"usage": True}, "stream": True}, "stream_options.usage"),
        ({"messages": [{"role": "user", "content": "a", "attachments": []}]}, "messages[0].attachments"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "b": 1}]}]},
            "messages[0].content[0].b",
        ),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"repetition_penalty": 0.1}, "repetition_penalty"),
        ({"seed": -2}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop_token_ids": [2, -1]}, "stop_token_ids[1]"),
        ({"stop_token_ids": list(range(200))}, "stop_token_ids"),
        ({"stop": ""}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"n": 0}, "n"),
        ({"n": 5}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"n": "2"}, "n"),
        ({"n": math.nan}, "n"),
        ({"stream": 1}, "stream"),
        ({"stream": "true"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream_options": 5, "stream": True}, "stream_options"),
        ({"stream_options": {"\ud800": 1}, "stream": True}, "stream_options"),
        ({"guided_json": 5}, "guided_json"),
        ({"structured_outputs": {"json": []}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a*"}}, "structured_outputs.regex"),
        ({"stream_options": {"include_usage": 1}, "stream": True}, "stream_options.include_usage"),
        ({"logprobs": 5}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 6, "logprobs": True}, "top_logprobs"),
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 400_001}]}, "messages[0]"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        call_from(asked(**fields))
    assert caught.value.param == param
    assert param in str(caught.value) or param == "messages"


@pytest.mark.parametrize("body", [None, [], "hello", 5, True])
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        call_from(body)


# --- answers


COMPLETION = Completion("a\n👋", "stop", Usage(20, 3, 16), LOGPROBS)


def test_the_official_client_reads_the_whole_answer() -> None:
    answer = ChatCompletion.model_validate(HEAD.completion([COMPLETION, Completion("b", "length", Usage(20, 9))]))
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "length"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 16
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (20, 12, 32)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert bytes(logprobs.content[1].bytes or []).decode() == "👋"
    assert [top.token for top in logprobs.content[0].top_logprobs] == [" a", " the"]


CHUNKS = [
    Chunk(),
    Chunk("Hel"),
    Chunk(" a👋", logprobs=LOGPROBS),
    Chunk(),
    Chunk("", logprobs=LOGPROBS[:1]),  # a token that is part of a character
    Chunk(".", finish_reason="length", usage=Usage(20, 5, 16)),
]


def test_a_stream_survives_the_way_to_json_and_back() -> None:
    events = [
        HEAD.first(0),
        *(event for chunk in CHUNKS for event in HEAD.events(0, chunk)),
        HEAD.last([Usage(20, 5, 16)]),
    ]
    chunks = [chunk_from(json.loads(json.dumps(event))) for event in events]
    assert chunks[0] == Chunk()
    assert "".join(chunk.text for chunk in chunks) == "Hel a👋."
    assert [token for chunk in chunks for token in chunk.logprobs] == [*LOGPROBS, LOGPROBS[0]]
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["length"]
    assert [chunk.usage for chunk in chunks if chunk.usage] == [Usage(20, 5, 16)]


def test_the_official_client_reads_every_event() -> None:
    events = [HEAD.first(1), *HEAD.events(1, CHUNKS[2]), *HEAD.events(1, CHUNKS[-1]), HEAD.last([Usage(20, 5)])]
    read = [ChatCompletionChunk.model_validate(event) for event in events]
    assert [choice.index for event in read for choice in event.choices] == [1, 1, 1, 1]
    assert read[0].choices[0].delta.role == "assistant"
    assert read[-2].choices[0].finish_reason == "length"
    assert read[-1].usage is not None
    assert {(event.id, event.model, event.created) for event in read} == {("chatcmpl-1", "tiny", 1_700_000_000)}


def test_an_impossible_token_is_still_json() -> None:
    completion = Completion("a", "stop", Usage(1, 1), (TokenLogprob("a", 0, (TokenLogprob("b", -math.inf),)),))
    assert "Infinity" not in json.dumps(HEAD.completion([completion]))


@pytest.mark.parametrize(
    "event",
    [
        {"choices": [{"delta": {"content": None}, "finish_reason": None}]},
        {"choices": [{"delta": {}}], "usage": None},
        {"choices": []},
    ],
)
def test_what_other_servers_leave_out_says_nothing_new(event: dict[str, Any]) -> None:
    assert chunk_from(event) == Chunk()


@pytest.mark.parametrize("event", [{"choices": [5]}, {"choices": 5}, [], "hello"])
def test_what_is_no_event_is_not_read_as_one(event: Any) -> None:
    with pytest.raises(ValueError, match="not of the form"):
        chunk_from(event)


# --- errors


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("temperature is 9.", "temperature"),
        UnsupportedParameter("tools is not supported.", "tools"),
        InvalidImage("Not a picture.", "messages[0].content[0]"),
        ImageTooLarge("Too large."),
        PromptTooLong("5,000 tokens.", "messages"),
        ModelNotFound("No such model.", "model"),
        EngineBusy("The line is full."),
        EngineUnavailable("Loading."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_the_way_to_json_and_back(error: DemoError) -> None:
    param = getattr(error, "param", None)
    read = error_from(error.status, error_json(str(error), error.status, error.code, param))
    assert type(read) is type(error)
    assert (str(read), getattr(read, "param", None)) == (str(error), param)


def test_the_error_object_is_openais() -> None:
    assert error_json("temperature is 9.", 400, "invalid_request_error", "temperature") == {
        "error": {"message": "temperature is 9.", "type": "invalid_request_error", "param": "temperature", "code": None}
    }
    assert error_json("Full.", 503, "engine_busy")["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"object": "error", "message": "vLLM's own form"}, InvalidRequest),
        (422, {"detail": "FastAPI's"}, InvalidRequest),
        (401, {"error": {"message": "Incorrect API key provided: sk-secret"}}, EngineUnavailable),
        (429, {"error": "slow down"}, EngineBusy),
        (500, None, GenerationFailed),
        (502, "<html>", EngineUnavailable),
        (400, {"error": {"message": 5, "code": ["x"], "param": {}}}, InvalidRequest),
        (404, {"detail": "Not Found"}, EngineUnavailable),  # --remote-url without /v1
        (405, None, EngineUnavailable),
        (307, None, EngineUnavailable),
        (404, {"object": "error", "message": "The model `x` does not exist.", "code": 404}, InvalidRequest),
        (413, "<html>nginx", RequestTooLarge),
    ],
)
def test_a_refusal_in_whatever_form_is_one_of_our_errors(status: int, body: Any, kind: type[DemoError]) -> None:
    error = error_from(status, body, retry_after_s=7)
    assert type(error) is kind
    assert "secret" not in str(error)
    if isinstance(error, EngineUnavailable) and status != 401:
        assert error.retry_after_s == 7


def test_another_servers_words_are_cut() -> None:
    assert len(str(error_from(400, {"error": {"message": "x" * 10_000}}))) == 500
