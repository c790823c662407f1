"""OpenAI's Responses, as a server without a store reads and writes them: each call has the whole conversation.

Source: https://platform.openai.com/docs/api-reference/responses.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator
from typing_extensions import TypedDict

from llava_demo.chat import ChatRequest, Chunk, Completion, FinishReason, Message, TokenLogprob, Usage
from llava_demo.wire.bodies import AnswerFormat, Body, Knobs, MaxTokens, named, wrong
from llava_demo.wire.messages import Pictures, Turn, Turns, messages_of
from llava_demo.wire.openai import TokenJSON, TopLogprobs, token_json
from llava_demo.wire.without_effect import WITHOUT_EFFECT

LOGPROBS = "message.output_text.logprobs"  # in `include`

# --- the request


def _turns(given: Any) -> Any:
    """The input as turns: a string is the user's, tool calls and outputs are turns, reasoning is dropped."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise wrong("a string or a list of items")
    items = (_turn(item) if isinstance(item, dict) else item for item in given)
    return [item for item in items if item is not None]


def _turn(item: dict[str, Any]) -> dict[str, Any] | None:
    kind = item.get("type")
    if kind == "reasoning":
        return None
    if kind == "function_call":
        return {"role": "assistant", "content": None, "tool_calls": [item]}
    if kind == "function_call_output":
        return {"role": "tool", "content": item.get("output")}
    return item


class TextOptions(Body):
    format: AnswerFormat | None = None
    without_effect: ClassVar = {"format": ({"type": "text"},), "verbosity": ()}


class ResponseRequest(Knobs):
    """The body of a POST to `/responses`."""

    input: Annotated[Turns, BeforeValidator(_turns, json_schema_input_type=str | list[Turn])]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: MaxTokens = None
    stream: bool | None = None
    text: TextOptions | None = None
    include: list[str] | None = None
    top_logprobs: TopLogprobs | None = None
    without_effect: ClassVar = WITHOUT_EFFECT | {
        **dict.fromkeys(("truncation", "max_tool_calls", "stream_options"), ()),
        "background": (False,),
    }

    @property
    def format(self) -> AnswerFormat | None:
        """The format of the answer; None for text."""
        return self.text.format if self.text else None

    def request(self, pictures: Pictures) -> ChatRequest:
        """The request. Raises what `messages_of` raises."""
        system = (Message("system", self.instructions),) if self.instructions else ()
        most = self.max_tokens if self.max_output_tokens is None else self.max_output_tokens
        top = (self.top_logprobs or 0) if LOGPROBS in (self.include or ()) or self.top_logprobs else None
        schema = self.format.schema_text if self.format else None
        names = {"messages": "input", "response_format": "text.format"}
        if self.max_output_tokens is not None:
            names["max_tokens"] = "max_output_tokens"
        with named(names):
            sampling = self.sampling(max_tokens=most, top_logprobs=top, json_schema=schema)
            return ChatRequest((*system, *messages_of(self.input, pictures, "input")), sampling)


# --- the answer


class TextJSON(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenJSON]


class MessageJSON(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[TextJSON]


class ResponseUsageJSON(TypedDict):
    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseJSON(TypedDict):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    error: None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int
    metadata: dict[str, str]
    model: str
    output: list[MessageJSON]
    parallel_tool_calls: bool
    previous_response_id: None
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Literal["auto"]
    tools: list[Any]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsageJSON | None


@dataclass
class ResponseWriter:
    """Writes one answer, whole or as the events of a stream."""

    id: str  # "resp_..."
    model: str
    created: int  # seconds since 1970
    request: ChatRequest
    instructions: str | None
    format: AnswerFormat | None
    _numbers: Iterator[int] = field(default_factory=count)
    _texts: list[str] = field(default_factory=list)
    _logprobs: list[TokenLogprob] = field(default_factory=list)

    def whole(self, completion: Completion) -> ResponseJSON:
        """The whole answer."""
        status = _status(completion.finish_reason)
        return self._response(status, [self._message(status, completion.text, completion.logprobs)], completion.usage)

    def first(self) -> list[dict[str, Any]]:
        """The events before the first text."""
        response = self._response("in_progress", [], None)
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
            self._event("response.output_item.added", output_index=0, item=self._message("in_progress")),
            self._part("response.content_part.added", part=_text("", ())),
        ]

    def events(self, chunk: Chunk) -> list[dict[str, Any]]:
        """The events of a chunk: its text, and the end for the last one; none for a heartbeat."""
        events = []
        if chunk.text or chunk.logprobs:
            self._texts.append(chunk.text)
            self._logprobs += chunk.logprobs
            tokens = [token_json(token) for token in chunk.logprobs]
            events.append(self._part("response.output_text.delta", delta=chunk.text, logprobs=tokens))
        if chunk.finish_reason and chunk.usage:
            events += self._last(chunk.finish_reason, chunk.usage)
        return events

    def error(self, code: str, message: str, param: str | None) -> dict[str, Any]:
        """The event that ends the stream of an answer that failed."""
        return self._event("error", code=code, message=message, param=param)

    def _last(self, reason: FinishReason, usage: Usage) -> list[dict[str, Any]]:
        completion = Completion("".join(self._texts), reason, usage, tuple(self._logprobs))
        response = self.whole(completion)
        (message,) = response["output"]
        (text,) = message["content"]
        return [
            self._part("response.output_text.done", text=text["text"], logprobs=text["logprobs"]),
            self._part("response.content_part.done", part=text),
            self._event("response.output_item.done", output_index=0, item=message),
            self._event(f"response.{response['status']}", response=response),
        ]

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "sequence_number": next(self._numbers), **fields}

    def _part(self, kind: str, **fields: Any) -> dict[str, Any]:
        return self._event(kind, item_id=self._message_id, output_index=0, content_index=0, **fields)

    @property
    def _message_id(self) -> str:
        return self.id.replace("resp_", "msg_")

    def _message(self, status: Any, text: str | None = None, logprobs: tuple[TokenLogprob, ...] = ()) -> MessageJSON:
        content = [] if text is None else [_text(text, logprobs)]
        return {"id": self._message_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _response(self, status: Any, output: list[MessageJSON], usage: Usage | None) -> ResponseJSON:
        sampling = self.request.sampling
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": self.instructions,
            "max_output_tokens": sampling.max_tokens,
            "metadata": {},
            "model": self.model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": _format_json(self.format)},
            "tool_choice": "auto",
            "tools": [],
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": _usage(usage) if usage else None,
        }


def _format_json(given: AnswerFormat | None) -> dict[str, Any]:
    return {"type": "text"} if given is None else given.model_dump(by_alias=True, exclude_unset=True)


def _status(reason: FinishReason) -> Literal["completed", "incomplete"]:
    return "incomplete" if reason == "length" else "completed"


def _text(text: str, logprobs: tuple[TokenLogprob, ...]) -> TextJSON:
    tokens = [token_json(token) for token in logprobs]
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": tokens}


def _usage(usage: Usage) -> ResponseUsageJSON:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
