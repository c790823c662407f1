"""The values that cross the whole program: what is asked, how it is sampled, what comes back.

They are frozen, comparable, checked when they are made, and know nothing of I/O, torch and Gradio. An endpoint makes a
`ChatRequest`, an engine turns it into `Chunk`s, and the endpoint writes those out. Nothing else passes between the two.
"""

import json
import unicodedata
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from llava_demo.errors import InvalidRequest, shown
from llava_demo.images import Image

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]

# More than any context here holds. These checks are cheap; encoding a text takes 80 bytes per character and more.
MAX_MESSAGE_CHARACTERS = 400_000
MAX_CHARACTERS = 2 * MAX_MESSAGE_CHARACTERS
MAX_MESSAGES = 4096
MAX_STOP_STRINGS = 4  # OpenAI's limit
MAX_STOP_TOKENS = 128
MAX_SEED = 2**63 - 1
MAX_TOP_LOGPROBS = 5
MAX_SCHEMA_CHARACTERS = 65_536  # 2 s for llguidance, in a thread of its own


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it has only spaces and characters without width."""
    return all(letter.isspace() or unicodedata.category(letter) == "Cf" for letter in text)


@dataclass(frozen=True)
class Message:
    """One turn. Its pictures stand before its text, as LLaVA-1.5 was trained.

    Raises:
        InvalidRequest: an unknown role, pictures that the user did not send, text that is not valid Unicode, or more
            than MAX_MESSAGE_CHARACTERS characters.
    """

    role: Role
    text: str
    images: tuple[Image, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in ("system", "user", "assistant"):
            raise InvalidRequest(f"role is {shown(self.role)}; it must be system, user or assistant.", "messages")
        if isinstance(self.text, str) and len(self.text) > MAX_MESSAGE_CHARACTERS:
            most = f"at most {MAX_MESSAGE_CHARACTERS:,} are allowed"
            raise InvalidRequest(f"A message has {len(self.text):,} characters; {most}.", "messages")
        if not _is_text(self.text):
            raise InvalidRequest(f"A message's text is {shown(self.text)}; it must be valid Unicode text.", "messages")
        if self.images and self.role != "user":
            raise InvalidRequest(f"Only the user's messages may hold pictures; a {self.role} message does.", "messages")


@dataclass(frozen=True)
class Knob:
    """One sampling parameter: its legal range, its description, and its slider on the page."""

    low: float
    high: float
    step: float
    doc: str  # one sentence for people: slider help, API page, --help
    is_whole: bool = False
    page_default: float | None = None  # the slider's value at the start, if not the field's default
    page_high: float | None = None  # the slider's end, if not `high`
    is_in_front: bool = False  # shown at once; the others are behind "more"


def _knob(default: Any, *args: Any, **kwargs: Any) -> Any:
    return field(default=default, metadata={"knob": Knob(*args, **kwargs)})


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn. Sliders, checks and documentation all read the ranges here.

    Raises:
        InvalidRequest: a value that is not a number, not finite, out of its range, or not whole where it must be;
            `param` is its name. Whole numbers may be given as floats (5.0), not as booleans.
    """

    temperature: float = _knob(
        0.2, 0, 2, 0.05, "0 always takes the likeliest token; higher is more varied.", page_high=1, is_in_front=True
    )
    top_p: float = _knob(
        1.0, 0, 1, 0.05, "Keep the likeliest tokens up to this much probability.", page_default=0.7, is_in_front=True
    )
    max_tokens: int = _knob(
        512, 1, 131_072, 1, "The longest answer, in tokens.", is_whole=True, page_high=1024, is_in_front=True
    )
    top_k: int = _knob(0, 0, 1000, 1, "Keep this many likeliest tokens; 0 keeps all.", is_whole=True, page_high=200)
    min_p: float = _knob(0.0, 0, 1, 0.01, "Drop tokens less likely than this share of the likeliest; 0 keeps all.")
    repetition_penalty: float = _knob(
        1.0, 0.5, 2, 0.05, "Above 1 avoids tokens already in the prompt or the answer; 1 is off."
    )
    frequency_penalty: float = _knob(
        0.0, -2, 2, 0.1, "Above 0 avoids tokens more, the more often the answer holds them; 0 is off."
    )
    presence_penalty: float = _knob(0.0, -2, 2, 0.1, "Above 0 avoids tokens that the answer already holds; 0 is off.")
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None  # if set, log-probabilities of each token, and of this many likeliest ones
    ignore_eos: bool = False  # continue after an end token: load tools want answers of one length
    stop_token_ids: tuple[int, ...] = ()  # more end tokens
    json_schema: str | None = None  # the answer is JSON that satisfies this schema, itself as JSON

    def __post_init__(self) -> None:
        for name, knob in KNOBS.items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), knob.low, knob.high, knob.is_whole))
        if self.seed is not None:
            object.__setattr__(self, "seed", _checked("seed", self.seed, 0, MAX_SEED, is_whole=True))
        if self.top_logprobs is not None:
            checked = _checked("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS, is_whole=True)
            object.__setattr__(self, "top_logprobs", checked)
        if not isinstance(self.ignore_eos, bool):
            raise InvalidRequest(f"ignore_eos is {shown(self.ignore_eos)}; it must be true or false.", "ignore_eos")
        if self.json_schema is not None:
            _check_schema(self.json_schema, self.ignore_eos)
        _check_list("stop", self.stop, MAX_STOP_STRINGS, "strings, none of them empty")
        if wrong := [each for each in self.stop if not (_is_text(each) and each)]:
            most = f"at most {MAX_STOP_STRINGS} strings, none of them empty"
            raise InvalidRequest(f"stop has {shown(wrong[0])}; it must be {most}.", "stop")
        object.__setattr__(self, "stop", tuple(self.stop))
        _check_list("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKENS, "token ids")
        ids = (_checked("stop_token_ids", token, 0, 2**31 - 1, is_whole=True) for token in self.stop_token_ids)
        object.__setattr__(self, "stop_token_ids", tuple(ids))

    @property
    def is_greedy(self) -> bool:
        """True where only the likeliest token can be drawn, so that no random number is needed."""
        return self.temperature == 0 or self.top_p == 0 or self.top_k == 1 or self.min_p == 1

    def end_ids(self, of_model: frozenset[int]) -> frozenset[int]:
        """The tokens that end an answer, where `of_model` are the model's own."""
        return (frozenset() if self.ignore_eos else of_model) | frozenset(self.stop_token_ids)


KNOBS: dict[str, Knob] = {f.name: f.metadata["knob"] for f in fields(SamplingParams) if "knob" in f.metadata}


def _checked(name: str, value: Any, low: float, high: float, is_whole: bool) -> float | int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (is_whole and value != int(value)):  # NaN is in no range
        kind = "a whole number" if is_whole else "a number"
        raise InvalidRequest(f"{name} is {shown(value)}; it must be {kind} from {low} to {high}.", name)
    return int(value) if is_whole else float(value)


def _check_list(name: str, given: Any, most: int, what: str) -> None:
    if not isinstance(given, list | tuple):
        raise InvalidRequest(f"{name} is {shown(given)}; it must be at most {most} {what}.", name)
    if len(given) > most:
        raise InvalidRequest(f"{name} has {len(given):,} values; it must be at most {most} {what}.", name)


def _check_schema(schema: Any, ignores_end: bool) -> None:
    name, most = "response_format", MAX_SCHEMA_CHARACTERS
    if not _is_text(schema) or len(schema) > most:
        is_long = isinstance(schema, str) and len(schema) > most
        given = f"has {len(schema):,} characters" if is_long else f"is {shown(schema)}"
        raise InvalidRequest(f"The JSON schema {given}; it must be text of at most {most:,} characters.", name)
    try:
        is_object = isinstance(json.loads(schema), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise InvalidRequest(f"The JSON schema is {shown(schema)}; it must be a JSON object.", name)
    if ignores_end:
        raise InvalidRequest("ignore_eos is true; JSON that satisfies a schema has an end.", "ignore_eos")


def number_from(text: str) -> float | int | str:
    """The number that a text spells, else the text, which `SamplingParams` refuses with a message."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _is_text(value: Any) -> bool:
    """False also for a lone surrogate, half of a character, which JSON can spell and no tokenizer takes."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


@dataclass(frozen=True)
class ChatRequest:
    """A conversation to continue: with an answer, or with the rest of one, if the last message is the assistant's.

    With `is_raw` the text of the only message is the whole prompt for the model, control tokens included. `caller`
    identifies the caller for a fair queue (by key, else login, else address). It is never shown or logged, and equal
    requests of different callers are equal.

    Raises:
        InvalidRequest: no messages; more than MAX_MESSAGES or MAX_CHARACTERS; a last message of the user with neither
            text nor pictures; a raw prompt of several messages; a JSON schema for the rest of an answer.
    """

    messages: tuple[Message, ...]
    sampling: SamplingParams = SamplingParams()
    is_raw: bool = False
    caller: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.messages:
            raise InvalidRequest("There are no messages; the last one is to be answered.", "messages")
        characters = sum(len(message.text) for message in self.messages)
        for count, most, kind in (
            (len(self.messages), MAX_MESSAGES, "messages"),
            (characters, MAX_CHARACTERS, "characters"),
        ):
            if count > most:
                words = f"The conversation has {count:,} {kind}; at most {most:,} are allowed."
                raise InvalidRequest(words, "messages")
        last = self.messages[-1]
        if last.role != "assistant" and is_blank(last.text) and not last.images:
            raise InvalidRequest("The last message is empty; write a question or add a picture.", "messages")
        if self.is_continuation and self.sampling.json_schema is not None:
            words = "The last message is the assistant's; its rest alone cannot satisfy a JSON schema."
            raise InvalidRequest(words, "response_format")
        if self.is_raw and len(self.messages) > 1:
            raise InvalidRequest("A raw prompt is one message; this conversation has more.", "messages")

    @property
    def is_continuation(self) -> bool:
        """True where the answer continues the last message, which is the assistant's."""
        return self.messages[-1].role == "assistant" and bool(self.messages[-1].text)

    @property
    def images(self) -> tuple[Image, ...]:
        """Every picture of the conversation, in the order in which the model reads them."""
        return tuple(image for message in self.messages for image in message.images)


@dataclass(frozen=True)
class Usage:
    """Token counts. `prompt_tokens` counts every picture as its feature rows (576 each for LLaVA-1.5)."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # prompt tokens found in the prefix cache

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class TokenLogprob:
    """A token of the answer, or another candidate for its place, with its log-probability.

    The tokens of an answer, joined, are its text; a character of several tokens belongs to the last one of them.
    `logprob` is the natural logarithm of softmax(logits), before temperature, filters and penalties.
    """

    token: str
    logprob: float
    top: tuple["TokenLogprob", ...] = ()  # the likeliest tokens there, likeliest first
    data: bytes | None = None  # its bytes, if `token` does not spell them: a character may take several tokens


@dataclass(frozen=True)
class Chunk:
    """A piece of the answer. Exactly the last chunk of a stream has `finish_reason` and `usage`.

    `logprobs`, where they were asked for, belong to the tokens since the previous chunk.
    """

    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Completion:
    """The whole answer: the joined texts of a stream's chunks, and the fields of its last chunk."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] = ()
