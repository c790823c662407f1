"""OpenAI's chat completions as a server reads and writes them: requests, answers whole or in events, errors.

Source: https://platform.openai.com/docs/api-reference/chat. Fields that would change the answer and are not supported
are refused, never ignored silently; `openai_client` is the other side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from typing_extensions import TypedDict  # pydantic accepts typing's from Python 3.12 on

from llava_demo.chat import (
    MAX_SEED,
    MAX_TOP_LOGPROBS,
    ChatRequest,
    Chunk,
    Completion,
    FinishReason,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from llava_demo.errors import DemoError, InvalidRequest
from llava_demo.wire.bodies import AnswerFormat, Body, Knobs, MaxTokens, schema_text, whole_number, wrong
from llava_demo.wire.messages import Pictures, Turns, messages_of
from llava_demo.wire.without_effect import WITHOUT_EFFECT

MAX_CHOICES = 4
LEAST_LOGPROB = -9999.0  # as OpenAI writes "impossible"; JSON knows no infinity

# --- the request


Choices = Annotated[int, BeforeValidator(partial(whole_number, 1, MAX_CHOICES)), Field(ge=1, le=MAX_CHOICES)]
TokenId = Annotated[int, BeforeValidator(partial(whole_number, 0, 2**31 - 1)), Field(ge=0, lt=2**31)]
TopLogprobs = Annotated[
    int, BeforeValidator(partial(whole_number, 0, MAX_TOP_LOGPROBS)), Field(ge=0, le=MAX_TOP_LOGPROBS)
]


class StreamOptions(Body):
    include_usage: bool | None = None
    without_effect: ClassVar = dict.fromkeys(("include_obfuscation", "continuous_usage_stats"), ())


def _schema(given: Any) -> Any:
    if isinstance(given, dict | str):
        return given
    raise wrong("a JSON schema")


Schema = Annotated[Any, BeforeValidator(_schema, json_schema_input_type=dict[str, Any] | str)]


class StructuredOutputs(Body):
    given: Annotated[Schema | None, Field(alias="json", description="vLLM's newer place for a schema.")] = None
    without_effect: ClassVar = dict.fromkeys(("disable_any_whitespace", "disable_fallback"), ())


class ChatCompletionRequest(Knobs):
    """The body of a POST to `/chat/completions`."""

    messages: Turns
    model: str | None = None
    max_completion_tokens: MaxTokens = None
    repeat_penalty: Annotated[Any, Field(description="llama.cpp's name of repetition_penalty.")] = None
    stop_token_ids: Annotated[list[TokenId] | None, Field(description="The answer ends before these.")] = None
    ignore_eos: Annotated[bool | None, Field(description="Go on to max_tokens.")] = None
    add_generation_prompt: Annotated[bool | None, Field(description="False asks for the rest of an answer.")] = None
    continue_final_message: Annotated[bool | None, Field(description="True asks for the rest of an answer.")] = None
    response_format: AnswerFormat | None = None
    json_schema: Annotated[Schema | None, Field(description="llama.cpp's and SGLang's place for a schema.")] = None
    guided_json: Annotated[Schema | None, Field(description="vLLM's place for a schema.")] = None
    structured_outputs: StructuredOutputs | None = None
    n: Annotated[Choices | None, Field(description="The number of answers.")] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None

    without_effect: ClassVar = WITHOUT_EFFECT


@dataclass(frozen=True)
class Call:
    """A request, and the form of its answer."""

    request: ChatRequest
    model: str | None = None
    choices: int = 1
    is_stream: bool = False
    has_usage: bool = False  # whether a stream ends with its usage

    @property
    def requests(self) -> list[ChatRequest]:
        """One for each choice. With a seed, the first has it, and the others have the following seeds."""
        sampling = self.request.sampling
        if sampling.seed is None:
            return [self.request] * self.choices
        seeds = [(sampling.seed + index) % (MAX_SEED + 1) for index in range(self.choices)]
        return [replace(self.request, sampling=replace(sampling, seed=seed)) for seed in seeds]


def call_of(body: ChatCompletionRequest, pictures: Pictures) -> Call:
    """The call of a body.

    Raises:
        InvalidRequest: a value is not allowed; `param` is its place.
    """
    options = body.stream_options or StreamOptions()
    if options.model_fields_set and not body.stream:
        raise InvalidRequest("stream_options needs stream to be true.", "stream_options")
    request = ChatRequest(messages_of(body.messages, pictures), _sampling_from(body))
    for name, asks_for_the_rest in (("continue_final_message", True), ("add_generation_prompt", False)):
        if getattr(body, name) is asks_for_the_rest and not request.is_continuation:
            raise InvalidRequest(f"{name} asks for the rest of an answer; the last message is none.", name)
    return Call(request, body.model, body.n or 1, bool(body.stream), bool(options.include_usage))


def _sampling_from(body: ChatCompletionRequest) -> SamplingParams:
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest(f"top_logprobs, 0 to {MAX_TOP_LOGPROBS}, needs logprobs to be true.", "top_logprobs")
    limits = [most for most in (body.max_tokens, body.max_completion_tokens) if most is not None]
    return body.sampling(
        max_tokens=min((body.sampling(max_tokens=most).max_tokens for most in limits), default=None),
        repetition_penalty=body.repetition_penalty if body.repeat_penalty is None else body.repeat_penalty,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        ignore_eos=body.ignore_eos,
        stop_token_ids=body.stop_token_ids,
        json_schema=_schema_from(body),
    )


def _schema_from(body: ChatCompletionRequest) -> str | None:
    """The schema of the answer, from any of the fields that servers have for it."""
    if body.response_format is not None:
        return body.response_format.schema_text
    newer = body.structured_outputs.given if body.structured_outputs else None
    given = next((schema for schema in (newer, body.guided_json, body.json_schema) if schema is not None), None)
    return schema_text(given) if isinstance(given, dict) else given


# --- the answer


class LogprobJSON(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class TokenJSON(LogprobJSON):
    top_logprobs: list[LogprobJSON]


class LogprobsJSON(TypedDict):
    content: list[TokenJSON]
    refusal: None


class PromptDetailsJSON(TypedDict):
    cached_tokens: int


class UsageJSON(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetailsJSON


class AnswerJSON(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChoiceJSON(TypedDict):
    index: int
    message: AnswerJSON
    logprobs: LogprobsJSON | None
    finish_reason: FinishReason


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[ChoiceJSON]
    usage: UsageJSON


@dataclass(frozen=True)
class Head:
    """The fields that all parts of one answer share. Its methods write the parts; choices are counted from 0."""

    id: str  # "chatcmpl-..."
    model: str
    created: int  # seconds since 1970
    has_usage: bool = False  # a stream that ends with its usage has `usage: null` before

    def completion(self, completions: Sequence[Completion]) -> ChatCompletion:
        """The whole answer, one choice for each completion."""
        choices: list[ChoiceJSON] = [
            {
                "index": index,
                "message": {"role": "assistant", "content": completion.text, "refusal": None},
                "logprobs": _logprobs_json(completion.logprobs),
                "finish_reason": completion.finish_reason,
            }
            for index, completion in enumerate(completions)
        ]
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
            "choices": choices,
            "usage": usage_json([completion.usage for completion in completions]),
        }

    def first(self, index: int) -> dict[str, Any]:
        """The first event, which has the role."""
        return self._event(index, {"role": "assistant", "content": "", "refusal": None})

    def events(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        """The events of a chunk: its text, and the finish reason; none for a heartbeat."""
        events = []
        if chunk.text or chunk.logprobs:
            events.append(self._event(index, {"content": chunk.text}, _logprobs_json(chunk.logprobs)))
        if chunk.finish_reason:
            events.append(self._event(index, {}, finish_reason=chunk.finish_reason))
        return events

    def last(self, usages: Sequence[Usage]) -> dict[str, Any]:
        """The last event, with the token counts of all choices."""
        return self._chunk([]) | {"usage": usage_json(usages)}

    def _event(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: LogprobsJSON | None = None,
        finish_reason: FinishReason | None = None,
    ) -> dict[str, Any]:
        return self._chunk([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}])

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
        return head | {"system_fingerprint": None, "choices": choices} | ({"usage": None} if self.has_usage else {})


def usage_json(usages: Sequence[Usage]) -> UsageJSON:
    """The token counts of a prompt, which counts once, and of all its answers."""
    prompt, completion = usages[0].prompt_tokens, sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usages[0].cached_tokens},
    }


def _logprobs_json(logprobs: Sequence[TokenLogprob]) -> LogprobsJSON | None:
    if not logprobs:
        return None
    return {"content": [token_json(token) for token in logprobs], "refusal": None}


def token_json(token: TokenLogprob) -> TokenJSON:
    """A token of the answer, with the likeliest alternatives."""
    return {**_logprob_json(token), "top_logprobs": [_logprob_json(top) for top in token.top]}


def _logprob_json(token: TokenLogprob) -> LogprobJSON:
    return {
        "token": token.token,
        "logprob": max(token.logprob, LEAST_LOGPROB),
        "bytes": list(token.token.encode() if token.data is None else token.data),
    }


# --- models and errors


class ModelJSON(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int  # vLLM's word for the context
    image_tokens: int
    image_side: int | None
    max_images: int


class ModelsJSON(TypedDict):
    object: Literal["list"]
    data: list[ModelJSON]


class ErrorFieldsJSON(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorJSON(TypedDict):
    error: ErrorFieldsJSON


def error_json(message: str, status: int, code: str | None = None, param: str | None = None) -> ErrorJSON:
    """The body of an error response with this status."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": None if code == kind else code}}


def error_of(error: DemoError) -> ErrorJSON:
    """The body of the response for `error`."""
    return error_json(str(error), error.status, error.code, getattr(error, "param", None))
