"""Request bodies as pydantic models; a refusal names the place, what was given, and what is allowed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from llava_demo.chat import KNOBS, MAX_SEED, MAX_STOP_STRINGS, SamplingParams
from llava_demo.errors import InvalidRequest, UnsupportedParameter

MAX_SHOWN_CHARACTERS = 40  # longest part of a caller's name or value shown in an error


class Body(BaseModel):
    """A JSON object. Null counts as left out; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    # Fields that are accepted and ignored: with these values only, or with any value for ().
    without_effect: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _effective(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        required = {name: None for name, field in cls.model_fields.items() if field.is_required()}
        return required | {
            name: value for name, value in given.items() if value is not None and not cls._is_neutral(name, value)
        }

    @classmethod
    def _is_neutral(cls, name: str, given: Any) -> bool:
        values = cls.without_effect.get(name)
        same = (given == value and isinstance(given, bool) == isinstance(value, bool) for value in values or ())
        return values == () or any(same)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core))
        for name, values in cls.without_effect.items():
            unused = {"description": "Accepted without effect."} | ({"enum": [*values, None]} if values else {})
            known = schema["properties"].get(name)
            schema["properties"][name] = {"anyOf": [known, unused]} if known else unused
        return schema | {"additionalProperties": {"type": "null"}}


B = TypeVar("B", bound=Body)


def body_from(model: type[B], given: Any) -> B:
    """Validate decoded JSON.

    Raises:
        InvalidRequest: a value is not allowed; `param` is its place, as `messages[2].content[0].image_url`.
        UnsupportedParameter: a field is unknown, or asks for something that is not supported here.
    """
    if not isinstance(given, dict):
        raise InvalidRequest(f"The body is {kind_of(given)}; it must be a JSON object.")
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise refusal_of(error, without_effect=model.without_effect) from None  # pydantic's message quotes the input


def refusal_of(
    error: ValidationError, root: str = "", without_effect: Mapping[str, tuple[Any, ...]] = {}
) -> InvalidRequest:
    """The first of pydantic's errors as ours; `root` is the name of what was validated."""
    first = error.errors(include_url=False)[0]
    place, kind, given = place_of(first["loc"], root), first["type"], first["input"]
    if kind == "extra_forbidden":
        values = without_effect.get(str(first["loc"][-1]), ())
        allowed = " or ".join(json.dumps(value) for value in values if len(values) == 1 or not isinstance(value, dict))
        which = f" with {shown(given)}, only with {allowed}" if allowed else ""
        instead = _INSTEAD.get(str(first["loc"][-1]), "leave it out")
        return UnsupportedParameter(f"{place} is not supported here{which}; {instead}.", place)
    if kind == "string_unicode":
        return InvalidRequest(f"{place or 'The body'} has half a character: a lone surrogate.", place or None)
    expected = str(first.get("ctx", {}).get("expected", _EXPECTED.get(kind, first["msg"])))
    is_word = kind in ("literal_error", "wrong_word")  # else a text may be a prompt or a picture
    words = shown(given) if is_word or not isinstance(given, str) else kind_of(given)
    if kind == "not_a_part" and isinstance(given, dict):
        words = f"a part with type {shown(given.get('type'))}"
    if kind == "literal_error":
        expected = "one of " + expected.replace("'", "")
    return InvalidRequest(f"{place} is {words}; it must be {expected}.", place)


@contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Have refusals name fields as the called interface does; `names` maps our names to its own."""
    try:
        yield
    except InvalidRequest as error:
        ours, words = error.param, str(error)
        if ours is None or ours not in names:
            raise
        if words.startswith(f"{ours} "):
            words = names[ours] + words.removeprefix(ours)
        raise type(error)(words, names[ours]) from None


def place_of(location: Sequence[str | int], root: str = "") -> str:
    """A location as a caller would write it, without the names of union members that pydantic puts in."""
    place = root
    for step in location:
        if isinstance(step, int):
            place += f"[{step}]"
        elif not step.startswith("<"):
            place += f".{step[:MAX_SHOWN_CHARACTERS]}" if place else step[:MAX_SHOWN_CHARACTERS]
    return place


def kind_of(value: Any) -> str:
    """The kind of a JSON value, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "missing or null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def shown(value: Any) -> str:
    """A value for messages, cut; of a list or an object the kind."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return repr(value if not isinstance(value, str) else value[:MAX_SHOWN_CHARACTERS])[: MAX_SHOWN_CHARACTERS + 2]
    return kind_of(value)


def wrong(expected: str, kind: Literal["wrong", "wrong_word"] = "wrong") -> PydanticCustomError:
    """The error that a validator raises: "messages[0] is a number; it must be `expected`".

    A "wrong_word" is shown; any other text may be a prompt or a picture.
    """
    return PydanticCustomError(kind, "{expected}", {"expected": expected})


# What to do instead of sending an unsupported field, if not just to leave it out.
_INSTEAD = {
    "tool_choice": "leave it out: the answer is text, or JSON by a schema",
    "previous_response_id": "leave it out, and send the whole conversation",
    "conversation": "leave it out, and send its messages",
}
_EXPECTED = {
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "int_type": "a whole number",
    "string_too_short": "a string that is not empty",
}


# --- fields that several interfaces share


class JSONSchema(Body):
    """A schema with its name, as OpenAI's chat completions nest it."""

    given: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    without_effect: ClassVar = dict.fromkeys(("name", "description", "strict"), ())


class AnswerFormat(Body):
    """JSON, free or with a schema: OpenAI's `response_format`, and `text.format` of Responses."""

    type: Literal["json_object", "json_schema", "json"]
    json_schema: JSONSchema | None = None
    value: Annotated[dict[str, Any] | None, Field(description="As TGI and Hugging Face's clients.")] = None
    given: Annotated[dict[str, Any] | None, Field(alias="schema", description="As Responses and llama.cpp.")] = None
    name: str | None = None
    description: str | None = None
    strict: Annotated[bool | None, Field(description="It is always strict here.")] = None

    @property
    def schema_text(self) -> str:
        """The schema as JSON, for `SamplingParams`."""
        if self.value is not None:
            has_name = self.type == "json_schema" and "schema" in self.value  # as TGI's has beside the schema
            return json.dumps(self.value["schema"] if has_name else self.value)
        nested = self.json_schema.given if self.json_schema else None
        return schema_text(self.given if nested is None else nested)


def schema_text(schema: dict[str, Any] | None) -> str:
    """A schema as JSON; without one, the schema of any object."""
    return json.dumps({"type": "object"} if schema is None else schema)


def whole_number(low: int, high: int, value: Any) -> int:
    """For `BeforeValidator`: JSON has one kind of number, so 2.0 is whole; true is not a number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or value not in range(low, high + 1):
        raise wrong(f"a whole number from {low} to {high}")
    return int(value)


def _knob_schema(name: str, default: Any) -> JsonSchemaValue:
    knob = KNOBS[name]
    kind = "integer" if knob.is_whole else "number"
    words = {"description": knob.doc, "default": default}
    return {"type": [kind, "null"], "minimum": knob.low, "maximum": knob.high} | words


_SEED = {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_SEED}
_STRING = {"type": "string", "minLength": 1}
_STOP = {"anyOf": [_STRING, {"type": "array", "items": _STRING, "maxItems": MAX_STOP_STRINGS}, {"type": "null"}]}

MaxTokens = Annotated[Any, WithJsonSchema(_knob_schema("max_tokens", SamplingParams().max_tokens))]


class Knobs(Body):
    """The sampling parameters: documented here, checked by `SamplingParams`, which alone has their ranges."""

    temperature: Any = None
    top_p: Any = None
    max_tokens: Any = None
    top_k: Any = None
    min_p: Any = None
    repetition_penalty: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    seed: Annotated[Any, WithJsonSchema(_SEED | {"description": "The same seed, the same answer."})] = None
    stop: Annotated[Any, WithJsonSchema(_STOP | {"description": "The answer ends before these."})] = None

    def sampling(self, **others: Any) -> SamplingParams:
        """The parameters that are set here, overridden by `others`.

        Raises:
            InvalidRequest: a value is not allowed; `param` is its name.
        """
        given = {name: getattr(self, name) for name in (*KNOBS, "seed", "stop")} | others
        given = {name: value for name, value in given.items() if value is not None}
        stop = given.pop("stop", ())
        return SamplingParams(**given, stop=(stop,) if isinstance(stop, str) else stop)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = super().__get_pydantic_json_schema__(core, handler)
        knobs = {name: _knob_schema(name, getattr(SamplingParams(), name)) for name in KNOBS}
        unused = {name: {"enum": list(cls.without_effect[name])} for name in KNOBS if name in cls.without_effect}
        schema["properties"] |= knobs | {name: {"anyOf": [knobs[name], unused[name]]} for name in unused}
        return schema
