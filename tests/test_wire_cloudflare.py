"""Cloudflare's form of the model's run: what one direction writes the other reads, and what is refused."""

import base64
import json
import math
from typing import Any

import pytest
from pictures import png

from llava_demo.chat import ChatRequest, Message, SamplingParams
from llava_demo.errors import (
    DemoError,
    EngineBusy,
    GenerationFailed,
    ImageTooLarge,
    InvalidImage,
    InvalidRequest,
    ModelNotFound,
    UnsupportedParameter,
    WrongKey,
)
from llava_demo.images import Image, ImageLimits
from llava_demo.wire.bodies import body_from
from llava_demo.wire.cloudflare import (
    DEFAULT_PROMPT,
    RunRequest,
    envelope,
    error_json,
    error_of,
    request_from_file,
    request_of,
)

FILE = png("red")
RED = Image.from_bytes(FILE)
BYTES = list(FILE)


def request_from(body: Any, limits: ImageLimits | None = None) -> ChatRequest:
    return request_of(body_from(RunRequest, body), limits or ImageLimits())


def asked(prompt: str, **sampling: Any) -> ChatRequest:
    return ChatRequest((Message("user", prompt, (RED,)),), SamplingParams(**sampling))


CONVERSATION = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is this?"},
    {"role": "assistant", "content": "A picture."},
    {"role": "user", "content": "Of what?"},
]
KNOBS = {"temperature": 0, "top_p": 0.5, "top_k": 5, "max_tokens": 7, "seed": 2**63 - 1, "stop": ["\n"], "min_p": 0.1}
PENALTIES = {"repetition_penalty": 1.2, "frequency_penalty": -1, "presence_penalty": 2}


@pytest.mark.parametrize(
    ("fields", "request_"),
    [
        ({"prompt": "Generate a caption for this image"}, asked("Generate a caption for this image")),
        ({"prompt": "你好 👋", **KNOBS}, asked("你好 👋", **KNOBS)),
        ({"prompt": "", **PENALTIES}, asked("", **PENALTIES)),
        (
            {"prompt": "USER: <image>\nHello\nASSISTANT:", "raw": True},
            ChatRequest((Message("user", "USER: <image>\nHello\nASSISTANT:", (RED,)),), is_raw=True),
        ),
        (
            {"messages": CONVERSATION},
            ChatRequest(
                (
                    Message("system", "Be short."),
                    Message("user", "What is this?", (RED,)),
                    Message("assistant", "A picture."),
                    Message("user", "Of what?"),
                )
            ),
        ),
    ],
    ids=["plain", "knobs", "penalties", "raw", "messages"],
)
def test_a_request_is_read_whole(fields: dict[str, Any], request_: ChatRequest) -> None:
    assert request_from(json.loads(json.dumps({"image": BYTES} | fields))) == request_


@pytest.mark.parametrize(
    "image",
    [
        BYTES,
        [float(value) for value in BYTES],
        FILE,
        base64.b64encode(FILE).decode(),
        base64.encodebytes(FILE).decode(),
        base64.urlsafe_b64encode(FILE).decode(),
        base64.b64encode(FILE).decode().rstrip("="),
        f"data:image/png;name=a.png;base64,{base64.b64encode(FILE).decode().rstrip('=')}",
        f"data:image/jpeg;base64,{base64.b64encode(FILE).decode()}",
        FILE.decode("latin-1"),
    ],
    ids=[
        "numbers",
        "floats",
        "bytes",
        "base64",
        "base64 in lines",
        "URL-safe",
        "no padding",
        "data URL with a name",
        "data URL",
        "latin-1",
    ],
)
def test_a_picture_comes_in_many_forms(image: Any) -> None:
    assert request_from({"image": image, "prompt": "Hello"}) == asked("Hello")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ([*BYTES, 256], "whole numbers from 0 to 255"),
        ([*BYTES, -1], "whole numbers from 0 to 255"),
        ([*BYTES, 1.5], "whole numbers from 0 to 255"),
        ([*BYTES, math.nan], "whole numbers from 0 to 255"),
        ([*BYTES, math.inf], "whole numbers from 0 to 255"),
        ([*BYTES, True], "whole numbers from 0 to 255"),
        ([*BYTES, "1"], "whole numbers from 0 to 255"),
        ([[1]], "whole numbers from 0 to 255"),
        ([], "empty file"),
        ("", "empty file"),
        ("bm8gcGljdHVyZQ==", "not a picture"),
        ("\ufffd\u20ac", "neither base64, nor a data URL, nor bytes"),
        ("http://example.org/cat.png", "fetches no web addresses"),
        ("data:image/png;base64,@", "not valid base64"),
        (5, "image is a number; it must be a list of byte values or a string"),
        ({"0": 137}, "must be a list of byte values or a string"),
        (True, "must be a list of byte values or a string"),
    ],
)
def test_what_is_no_picture_is_refused(image: Any, words: str) -> None:
    with pytest.raises(InvalidImage, match=words):
        request_from({"image": image})


def test_a_picture_over_the_limits_keeps_its_status() -> None:
    for image in (BYTES, FILE, base64.b64encode(FILE).decode(), FILE.decode("latin-1")):
        with pytest.raises(ImageTooLarge):
            request_from({"image": image}, ImageLimits(max_bytes=20))


def test_without_words_a_description_is_asked_for() -> None:
    assert request_from({"image": BYTES}) == request_from_file(FILE, ImageLimits()) == asked(DEFAULT_PROMPT)
    assert request_from({"image": BYTES, "prompt": None, "messages": None, "seed": None}) == asked(DEFAULT_PROMPT)


def test_the_picture_goes_to_the_first_question() -> None:
    turns = [("system", "Be short."), ("user", "What?"), ("assistant", "A cat."), ("user", "Sure?")]
    request = request_from({"image": BYTES, "messages": [{"role": role, "content": words} for role, words in turns]})
    assert [len(message.images) for message in request.messages] == [0, 1, 0, 0]
    assert [(message.role, message.text) for message in request.messages] == turns


def test_whole_numbers_may_come_as_floats() -> None:
    sampling = request_from({"image": BYTES, "top_k": 5.0, "seed": 7.0, "max_tokens": 5.0}).sampling
    assert (sampling.top_k, sampling.seed, sampling.max_tokens) == (5, 7, 5)


def test_prompt_and_messages_at_once_are_refused_in_cloudflares_words() -> None:
    messages = [{"role": "user", "content": "Hello"}]
    with pytest.raises(InvalidRequest) as caught:
        request_from({"image": BYTES, "prompt": "Hello", "messages": messages})
    assert str(caught.value) == '"prompt" and "messages" are mutually exclusive'


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": 5}, "prompt is 5; it must be a string"),
        ({"prompt": ["a"]}, "prompt is a list; it must be a string"),
        ({"prompt": "x" * 6145}, "6,145 characters; at most 6,144"),
        ({"messages": "hello"}, "must be a list"),
        ({"messages": []}, "There are no messages"),
        ({"messages": [{"role": "user", "content": "x" * 6145}]}, "at most 6,144"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role is 'robot'"),
        ({"messages": [{"role": "user"}]}, "content is missing"),
        ({"raw": 1}, "raw is 1; it must be true or false"),
        ({"raw": "true"}, "raw is a string; it must be true or false"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": True}, "temperature is True"),
        ({"top_k": 1.5}, "top_k is 1.5; it must be a whole number"),
        ({"seed": "7"}, "seed is '7'"),
        ({"stop": 5}, "stop is 5; it must be at most"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_its_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        request_from({"image": BYTES} | fields)


@pytest.mark.parametrize("fields", [{"lora": "x"}, {"tools": []}, {"no_such_thing": 1}, {"n": 2}])
def test_what_is_not_done_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedParameter, match="is not supported here"):
        request_from({"image": BYTES} | fields)


def test_a_picture_is_required() -> None:
    with pytest.raises(InvalidRequest, match="image is missing"):
        request_from({"prompt": "Hello"})
    pictures = [{"role": "user", "content": "Hello", "images": [RED.to_data_url()]}]
    with pytest.raises(InvalidRequest, match="also where messages hold pictures"):
        request_from({"messages": pictures})
    for body in ([], "hello", None, 5):
        with pytest.raises(InvalidRequest, match="must be a JSON object"):
            request_from(body)


def test_answers_and_errors_are_cloudflares() -> None:
    assert envelope("A cat.") == {"result": {"description": "A cat."}, "success": True, "errors": [], "messages": []}
    assert error_json("No.", 5006) == {
        "result": None,
        "success": False,
        "errors": [{"code": 5006, "message": "No."}],
        "messages": [],
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelNotFound("a"), 5007),
        (InvalidImage("a"), 5004),
        (ImageTooLarge("a"), 3006),
        (InvalidRequest("a"), 5006),
        (UnsupportedParameter("a"), 5006),
        (EngineBusy("a"), 3040),
        (WrongKey("a"), 10000),
        (GenerationFailed("a"), 3043),
        (DemoError("a"), 3043),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_codes_are_those_of_cloudflares_list(error: DemoError, code: int) -> None:
    assert error_of(error)["errors"][0]["code"] == code
