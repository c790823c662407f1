"""OpenAI's messages become ours, or are refused with the place of what is wrong."""

import base64
import json
from typing import Any

import pytest
from pictures import png

from llava_demo.chat import Message
from llava_demo.errors import ImageTooLarge, InvalidImage, InvalidRequest, UnsupportedParameter
from llava_demo.images import Image, ImageLimits
from llava_demo.wire.messages import messages_from, web_addresses

RED, BLUE = Image.from_bytes(png("red")), Image.from_bytes(png("blue"))
GRADIO_FILE = {
    "path": "/uploads/abc/cat.png",
    "url": "http://127.0.0.1/cat.png",
    "meta": {"_type": "gradio.FileData"},
}


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def image_url(image: Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": image.to_data_url(), "detail": "high"}}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def test_a_conversation_of_strings() -> None:
    given = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": " Hello\n"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "你好 👋", "name": "somebody"},
    ]
    assert messages_from(given) == (
        Message("system", "Be short."),
        Message("user", " Hello\n"),
        Message("assistant", "Hello."),
        Message("user", "你好 👋"),
    )


def test_developer_is_system() -> None:
    assert messages_from([{"role": "developer", "content": "Be short."}]) == (Message("system", "Be short."),)


def test_pictures_go_before_the_text_and_texts_are_joined_by_lines() -> None:
    given = user(text("What is the"), image_url(RED), text("difference?"), image_url(BLUE))
    assert messages_from(given) == (Message("user", "What is the\ndifference?", (RED, BLUE)),)


@pytest.mark.parametrize("blank", [" ", "\n", "\t  \r\n"])
def test_blanks_around_an_address_are_no_part_of_it(blank: str) -> None:
    url = f"{blank}{RED.to_data_url()}{blank}"
    for part in ({"image_url": url}, {"image_url": {"url": url}}, {"source": {"data": url}}):
        assert messages_from(user({"type": "image_url"} | part)) == (Message("user", "", (RED,)),)
    assert web_addresses(user({"type": "image", "image": f"{blank}http://a.example/b.png"})) == (
        "http://a.example/b.png",
    )


def test_an_image_url_may_be_a_plain_string() -> None:
    given = user({"type": "image_url", "image_url": RED.to_data_url()})
    assert messages_from(given) == (Message("user", "", (RED,)),)


@pytest.mark.parametrize("part", [GRADIO_FILE, {"type": "image_url", "image_url": GRADIO_FILE}])
def test_an_uploaded_file_is_opened_by_the_way_in(part: dict[str, Any]) -> None:
    opened = []

    def image_from_file(file: dict[str, Any]) -> Image:
        opened.append(file)
        return RED

    assert messages_from(user(part, text("?")), image_from_file) == (Message("user", "?", (RED,)),)
    assert opened == [GRADIO_FILE]


def test_a_file_is_refused_where_there_are_no_uploads() -> None:
    with pytest.raises(InvalidRequest, match="send the picture's bytes as a data URL") as caught:
        messages_from(user(GRADIO_FILE))
    assert caught.value.param == "messages[0].content[0]"
    assert "/tmp" not in str(caught.value)


def test_what_the_way_in_refuses_gets_its_place() -> None:
    def image_from_file(file: dict[str, Any]) -> Image:
        assert file == GRADIO_FILE
        raise InvalidImage("It was never uploaded.")

    with pytest.raises(InvalidImage, match=r"^messages\[0\].content\[1\]: It was never uploaded.$"):
        messages_from(user(text("?"), GRADIO_FILE), image_from_file)


@pytest.mark.parametrize(
    ("messages", "place", "words"),
    [
        (None, "messages", "must be a list"),
        ({"role": "user"}, "messages", "is an object; it must be a list"),
        ("hello", "messages", "is a string; it must be a list"),
        (["hello"], "messages[0]", "is a string; it must be {role, content}"),
        ([None], "messages[0]", "is missing or null"),
        ([{"content": "?"}], "messages[0].role", "is missing or null; it must be one of system, developer, user"),
        ([{"role": "robot", "content": "?"}], "messages[0].role", "is 'robot'"),
        ([{"role": "x" * 10_000, "content": "?"}], "messages[0].role", "it must be one of"),
        ([{"role": ["user"], "content": "?"}], "messages[0].role", "is a list"),
        ([{"role": "user"}], "messages[0].content", "is missing or null; it must be a string or a list of parts"),
        ([{"role": "user", "content": True}], "messages[0].content", "is a boolean"),
        ([{"role": "user", "content": "?"}, {"role": "user", "content": 5}], "messages[1].content", "is 5; it must be"),
        (user("hello"), "messages[0].content[0]", 'must be a part with type "text" or "image_url"'),
        (user({"type": "audio"}), "messages[0].content[0]", "is a part with type 'audio'; it must be a part"),
        (user({"type": ["text"]}), "messages[0].content[0]", "must be a part"),
        (user(text("a"), {"type": "text"}), "messages[0].content[1].text", "is missing or null; it must be a string"),
        (user({"type": "text", "text": 5}), "messages[0].content[0].text", "is 5; it must be a string"),
        (
            user({"type": "image_url"}),
            "messages[0].content[0].image_url",
            "is missing or null; it must be a URL (data:, or",
        ),
        (user({"type": "image_url", "image_url": {"url": 5}}), "messages[0].content[0].image_url.url", "is 5; it"),
        (
            user({"type": "image_url", "image_url": {}}),
            "messages[0].content[0].image_url",
            "is empty; it must be a data URL",
        ),
        ([{"role": "user", "content": "x" * 400_001}], "messages[0]", "400,001 characters; at most 400,000"),
        ([{"role": "user", "content": "\ud83d"}], "messages[0]", "valid Unicode"),
        (
            [{"role": "system", "content": [image_url(RED)]}],
            "messages[0]",
            "Only the user's messages may hold pictures",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(messages: Any, place: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        messages_from(messages)
    assert caught.value.param == place
    assert str(caught.value).startswith(place)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "url", ["https://example.org/cat.png", "http://169.254.169.254/", "file:///etc/passwd", "cat.png"]
)
@pytest.mark.parametrize("is_object", [True, False])
def test_addresses_are_refused_and_not_repeated(url: str, is_object: bool) -> None:
    with pytest.raises(InvalidImage, match="data URL") as caught:
        messages_from(user(text("?"), {"type": "image_url", "image_url": {"url": url} if is_object else url}))
    assert caught.value.param == "messages[0].content[1].image_url"
    assert url not in str(caught.value)


def test_a_picture_over_the_limits_keeps_its_status() -> None:
    with pytest.raises(ImageTooLarge) as caught:
        messages_from(user(image_url(RED)), limits=ImageLimits(max_bytes=10))
    assert caught.value.status == 413
    assert caught.value.param == "messages[0].content[0].image_url"


# --- other families' forms

BASE64 = base64.b64encode(png("red")).decode()
DATA_URL = RED.to_data_url()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_image", "image_url": DATA_URL, "detail": "auto"},
        {"type": "image", "image": DATA_URL},
        {"type": "image", "image": BASE64, "mime_type": "image/png"},
        {"type": "image", "url": DATA_URL},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}},
        {"type": "image", "source": {"type": "url", "url": DATA_URL}, "cache_control": {"type": "ephemeral"}},
    ],
    ids=["Responses", "transformers", "Vercel", "transformers' url", "Anthropic", "Anthropic's url"],
)
def test_pictures_come_in_the_parts_of_other_families(part: dict[str, Any]) -> None:
    assert messages_from(user(part, {"type": "input_text", "text": "?"})) == (Message("user", "?", (RED,)),)


@pytest.mark.parametrize(
    "beside", [{"images": [BASE64]}, {"images": [DATA_URL]}, {"image_url": {"url": DATA_URL}}, {"image": BASE64}]
)
def test_pictures_beside_the_content_are_seen(beside: dict[str, Any]) -> None:
    """They were passed over, and the model asked for a picture."""
    assert messages_from([{"role": "user", "content": "?", **beside}]) == (Message("user", "?", (RED,)),)
    assert messages_from([{"role": "user", **beside}]) == (Message("user", "", (RED,)),)


@pytest.mark.parametrize("name", ["attachments", "files", "picture", "image_urls", "experimental_attachments"])
def test_what_may_hold_a_picture_and_is_not_known_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        messages_from([{"role": "user", "content": "?", name: [DATA_URL]}])
    assert caught.value.param == f"messages[0].{name}"
    with pytest.raises(UnsupportedParameter) as caught:
        messages_from(user({"type": "text", "text": "?", name: DATA_URL}))
    assert caught.value.param == f"messages[0].content[0].{name}"


def test_calls_of_tools_and_what_tools_said_are_read_as_text() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    given = [
        {"role": "user", "content": "What is the weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Sunny"},
    ]
    _, called, said = messages_from(given)
    assert (called.role, json.loads(called.text)) == ("assistant", call)
    assert said == Message("user", "Sunny")


def test_web_addresses_are_found_wherever_pictures_are() -> None:
    one, two, three = (f"https://example.org/{name}.png" for name in "abc")
    given = [
        {"role": "user", "content": [{"type": "input_image", "image_url": one}], "images": [two]},
        {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": three}}]},
    ]
    assert web_addresses(given) == (one, two, three)
    assert web_addresses([{"role": "robot"}]) == web_addresses("?") == ()
