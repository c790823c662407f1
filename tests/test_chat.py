"""Values are valid from birth: whatever is wrong is refused when it is made, with words that can be acted on."""

import math
from typing import Any

import pytest
from pictures import png

from llava_demo.chat import (
    KNOBS,
    MAX_CHARACTERS,
    MAX_MESSAGE_CHARACTERS,
    MAX_MESSAGES,
    MAX_SEED,
    ChatRequest,
    Message,
    SamplingParams,
)
from llava_demo.errors import InvalidRequest
from llava_demo.images import Image

PICTURE = Image.from_bytes(png())
WHOLE = [name for name, knob in KNOBS.items() if knob.is_whole]
FRACTIONAL = [name for name, knob in KNOBS.items() if not knob.is_whole]
NO_NUMBERS: dict[str, Any] = {
    "nan": math.nan,
    "infinity": math.inf,
    "-infinity": -math.inf,
    "true": True,
    "false": False,
    "null": None,
    "text": "0.5",
    "empty text": "",
    "bytes": b"1",
    "list": [1],
    "object": {},
    "complex": 1j,
    "more than a float holds": 10**400,
    "more digits than Python writes": -(10**5000),
}


def refusal(name: str, value: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{name: value})
    return caught.value


@pytest.mark.parametrize("value", NO_NUMBERS.values(), ids=NO_NUMBERS.keys())
@pytest.mark.parametrize("name", KNOBS)
def test_what_is_no_finite_number_is_refused_by_every_knob(name: str, value: Any) -> None:
    error = refusal(name, value)
    assert error.param == name
    assert str(error).startswith(f"{name} is ")
    assert f"from {KNOBS[name].low} to {KNOBS[name].high}" in str(error)
    assert len(str(error)) < 200


@pytest.mark.parametrize("name", KNOBS)
def test_both_ends_of_a_range_are_in_it_and_the_next_values_are_not(name: str) -> None:
    knob = KNOBS[name]
    for end, beyond in ((knob.low, -math.inf), (knob.high, math.inf)):
        assert getattr(SamplingParams(**{name: end}), name) == end
        refusal(name, end + math.copysign(1, beyond) if knob.is_whole else math.nextafter(end, beyond))


@pytest.mark.parametrize("name", [*WHOLE, "seed"])
def test_a_whole_number_given_as_a_float_becomes_an_int(name: str) -> None:
    value = getattr(SamplingParams(**{name: 5.0}), name)
    assert value == 5
    assert type(value) is int
    refusal(name, 5.5)


@pytest.mark.parametrize("name", FRACTIONAL)
def test_a_whole_number_becomes_a_float_where_fractions_are_meant(name: str) -> None:
    assert type(getattr(SamplingParams(**{name: 1}), name)) is float


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 2.0**63, math.nan, math.inf, True, "1"])
def test_seeds_outside_of_63_bits_are_refused(seed: Any) -> None:
    assert refusal("seed", seed).param == "seed"


def test_the_ends_of_the_seeds_are_seeds() -> None:
    assert SamplingParams(seed=0).seed == 0
    assert SamplingParams(seed=MAX_SEED).seed == 2**63 - 1
    assert SamplingParams().seed is None


@pytest.mark.parametrize(
    "stop", ["end", None, 5, [""], ["a", ""], [None], [b"a"], list("abcde"), {"a": 1}, ["\ud83d"]], ids=repr
)
def test_bad_stop_strings_are_refused(stop: Any) -> None:
    assert refusal("stop", stop).param == "stop"


def test_stop_strings_become_a_tuple_so_that_equal_requests_compare_equal() -> None:
    assert SamplingParams(stop=["a", "b", "c", "d"]) == SamplingParams(stop=("a", "b", "c", "d"))  # type: ignore[arg-type]
    assert hash(SamplingParams(stop=["\n"])) == hash(SamplingParams(stop=("\n",)))  # type: ignore[arg-type]


def test_a_long_value_is_not_sent_back_whole() -> None:
    assert len(str(refusal("temperature", "9" * 100_000))) < 200


@pytest.mark.parametrize(
    ("knobs", "is_greedy"),
    [
        ({"temperature": 0}, True),
        ({"temperature": -0.0}, True),
        ({"top_p": 0}, True),
        ({"top_k": 1}, True),
        ({"min_p": 1}, True),
        ({"temperature": 0.01}, False),
        ({}, False),
    ],
)
def test_greedy_is_where_only_one_token_can_be_drawn(knobs: dict[str, float], is_greedy: bool) -> None:
    assert SamplingParams(**knobs).is_greedy is is_greedy  # type: ignore[arg-type]


@pytest.mark.parametrize("name", KNOBS)
def test_what_the_page_starts_with_and_can_reach_is_legal(name: str) -> None:
    knob = KNOBS[name]
    for value in (knob.page_default, knob.page_high):
        if value is not None:
            SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert knob.step > 0
    assert knob.doc.endswith(".")


@pytest.mark.parametrize("role", ["tool", "User", "", None, 5, ["user"], {}])
def test_unknown_roles_are_refused(role: Any) -> None:
    with pytest.raises(InvalidRequest, match="it must be system, user or assistant"):
        Message(role, "hello")


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["a"], "half a character: \ud83d", "\udfff"], ids=ascii)
def test_text_that_is_no_text_is_refused(text: Any) -> None:
    with pytest.raises(InvalidRequest, match="valid Unicode text"):
        Message("user", text)


@pytest.mark.parametrize("text", ["", "\0", "👩‍👩‍👧 你好 \u202e", "<image></s>USER:", "\n" * 9])
def test_text_is_kept_as_it_is(text: str) -> None:
    assert Message("user", text).text == text


@pytest.mark.parametrize("role", ["user", "system"])
def test_text_longer_than_any_context_is_refused_before_it_is_looked_at(role: Any) -> None:
    assert len(Message(role, "é" * MAX_MESSAGE_CHARACTERS).text) == MAX_MESSAGE_CHARACTERS
    with pytest.raises(InvalidRequest, match="400,001 characters; at most 400,000"):
        Message(role, "é" * (MAX_MESSAGE_CHARACTERS + 1))


def test_a_conversation_longer_than_any_context_is_refused_before_it_is_looked_at() -> None:
    """80 MB in 200 messages, each of an allowed length, took 6 GB and minutes of a tokenizer that cannot be ended."""
    half = Message("user", "e" * (MAX_CHARACTERS // 2))
    ChatRequest((half, half))
    ChatRequest((Message("user", "e"),) * MAX_MESSAGES)
    with pytest.raises(InvalidRequest, match="800,001 characters; at most 800,000"):
        ChatRequest((half, half, Message("user", "e")))
    with pytest.raises(InvalidRequest, match="4,097 messages; at most 4,096"):
        ChatRequest((Message("user", "e"),) * (MAX_MESSAGES + 1))


def test_a_long_answer_does_not_end_the_conversation() -> None:
    """The model may write more than people may; refusing its answer as history would refuse every further question."""
    answer = Message("assistant", "word " * 4000)
    ChatRequest((Message("user", "Tell me more."), answer, Message("user", "And then?")))


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_only_the_user_sends_pictures(role: Any) -> None:
    with pytest.raises(InvalidRequest, match="Only the user's messages may hold pictures"):
        Message(role, "look", (PICTURE,))


def test_a_conversation_may_end_with_anybody_and_an_unfinished_answer_is_continued() -> None:
    with pytest.raises(InvalidRequest, match="There are no messages"):
        ChatRequest(())
    hello = Message("user", "Hello")
    for last, is_continuation in (
        (Message("system", "Be short."), False),
        (Message("assistant", ""), False),
        (Message("assistant", "The picture shows"), True),
    ):
        assert ChatRequest((hello, last)).is_continuation is is_continuation


@pytest.mark.parametrize("count", [-1, 6, 1.5, True, "3"])
def test_log_probabilities_of_more_than_5_tokens_are_refused(count: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"top_logprobs .* from 0 to 5"):
        SamplingParams(top_logprobs=count)


def test_a_raw_prompt_is_one_message() -> None:
    with pytest.raises(InvalidRequest, match="raw prompt is one message"):
        ChatRequest((Message("user", "a"), Message("assistant", "b"), Message("user", "c")), is_raw=True)


def test_a_question_needs_text_or_a_picture() -> None:
    with pytest.raises(InvalidRequest, match="write a question or add a picture"):
        ChatRequest((Message("user", " \n\u200b\ufeff"),))
    ChatRequest((Message("user", "", (PICTURE,)),))


def test_pictures_come_in_the_order_of_the_conversation() -> None:
    pictures = [Image.from_bytes(png(color)) for color in ("red", "green", "blue")]
    request = ChatRequest(
        (
            Message("user", "these", (pictures[2], pictures[0])),
            Message("assistant", "Yes."),
            Message("user", "and this", (pictures[1],)),
        )
    )
    assert request.images == (pictures[2], pictures[0], pictures[1])


def test_equal_conversations_are_equal_and_can_be_keys() -> None:
    def request() -> ChatRequest:
        return ChatRequest((Message("user", "?", (Image.from_bytes(png()),)),), SamplingParams(seed=1))

    assert request() == request()
    assert len({request(), request()}) == 1
