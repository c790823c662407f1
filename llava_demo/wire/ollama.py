"""Ollama's chat and generate, as a server reads and writes them. Durations are in nanoseconds.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md. A knob that a client leaves out has our default, not
Ollama's: an answer should not depend on the interface.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import BeforeValidator, Field
from typing_extensions import TypedDict

from llava_demo.chat import (
    KNOBS,
    ChatRequest,
    Chunk,
    Completion,
    FinishReason,
    Message,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from llava_demo.errors import DemoError, UnsupportedParameter
from llava_demo.wire.bodies import Body, Knobs, named, schema_text, whole_number, wrong
from llava_demo.wire.messages import Data, Pictures, Turn, Turns, messages_of
from llava_demo.wire.openai import TokenJSON, TopLogprobs, token_json
from llava_demo.wire.without_effect import WITHOUT_EFFECT

UNLIMITED = (-1, -2)  # num_predict values that mean: until the context is full

_MACHINE = ("numa", "num_ctx", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "logits_all", "vocab_only")


class Options(Knobs):
    """Ollama's `options`; those that configure the machine are ignored."""

    num_predict: Annotated[
        int | None,
        BeforeValidator(partial(whole_number, -2, int(KNOBS["max_tokens"].high))),
        Field(description="max_tokens; -1 and -2 mean as many as the context holds."),
    ] = None
    repeat_penalty: Annotated[Any, Field(description="repetition_penalty")] = None
    repeat_last_n: Annotated[int | None, Field(description="Must be -1 (all) with a repeat_penalty.")] = None
    without_effect: ClassVar = {
        **dict.fromkeys((*_MACHINE, "use_mmap", "use_mlock", "embedding_only", "num_thread", "num_keep"), ()),
        **dict.fromkeys(("mirostat_tau", "mirostat_eta", "draft_num_predict"), ()),
        "mirostat": (0,),
        "tfs_z": (1,),
        "typical_p": (1,),
        "penalize_newline": (True,),
        "seed": (-1,),
        "top_k": (-1,),
    }

    def given_names(self) -> dict[str, str]:
        """The names under which the knobs were given, by ours."""
        names = {name: name for name in Knobs.model_fields if getattr(self, name) is not None}
        for ours, name in (("max_tokens", "num_predict"), ("repetition_penalty", "repeat_penalty")):
            if getattr(self, name) is not None:
                names[ours] = name
        return names

    def as_sampling(self, **others: Any) -> SamplingParams:
        """The knobs under our names, and `others`, which have them already."""
        most = KNOBS["max_tokens"].high if self.num_predict in UNLIMITED else self.num_predict
        penalty = self.repetition_penalty if self.repeat_penalty is None else self.repeat_penalty
        most = self.max_tokens if most is None else most
        sampling = self.sampling(max_tokens=most, repetition_penalty=penalty, **others)
        if sampling.repetition_penalty != 1 and self.repeat_last_n not in (None, -1):
            words = "repeat_last_n is not supported here: repeat_penalty looks at all tokens; leave it out."
            raise UnsupportedParameter(words, "options.repeat_last_n")
        return sampling


def _format(value: Any) -> Any:
    if value == "json" or isinstance(value, dict):
        return value
    raise wrong('"json" or a JSON schema', "wrong_word")


class _Asked(Body):
    """The fields that chat and generate share."""

    model: Annotated[str, Field(min_length=1)]
    stream: Annotated[bool | None, Field(description="True by default.")] = None
    options: Options | None = None
    format: Annotated[
        Any,
        BeforeValidator(_format, json_schema_input_type=Literal["json"] | dict[str, Any]),
        Field(description="A JSON schema, or json for any."),
    ] = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    # Sent by Vercel's ollama-ai-provider-v2 (3.6); Ollama itself ignores them.
    temperature: Annotated[Any, Field(description="As in `options`, which override it.")] = None
    top_p: Annotated[Any, Field(description="As in `options`, which override it.")] = None
    max_output_tokens: Annotated[Any, Field(description="num_predict of `options`, which override it.")] = None
    without_effect: ClassVar[dict[str, tuple[Any, ...]]] = {"keep_alive": (), "format": ("",), "think": (False,)}

    @property
    def is_stream(self) -> bool:
        return self.stream is not False

    def as_sampling(self) -> SamplingParams:
        """The sampling parameters."""
        schema = None if self.format is None else schema_text(None if self.format == "json" else self.format)
        top_logprobs = (self.top_logprobs or 0) if self.logprobs else None
        options = self.options or Options()
        beside = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_output_tokens}
        left = {name: value for name, value in beside.items() if getattr(options, name) is None}
        names = {"response_format": "format", "max_tokens": "max_output_tokens"}
        names |= {ours: f"options.{name}" for ours, name in options.given_names().items()}
        with named(names):
            return options.model_copy(update=left).as_sampling(top_logprobs=top_logprobs, json_schema=schema)


class OllamaChatRequest(_Asked):
    """The body of a POST to `/api/chat`; without messages it asks whether the model is loaded."""

    messages: Turns | None = None

    @property
    def turns(self) -> list[Turn]:
        return self.messages or []

    without_effect: ClassVar = _Asked.without_effect | {
        "tools": (),
        "tool_choice": WITHOUT_EFFECT["tool_choice"],
    }

    def request(self, pictures: Pictures) -> ChatRequest:
        """What is asked. Raises what `messages_of` raises."""
        return ChatRequest(messages_of(self.messages or [], pictures), self.as_sampling())


class OllamaGenerateRequest(_Asked):
    """The body of a POST to `/api/generate`; without a prompt it asks whether the model is loaded."""

    prompt: str | None = None
    system: str | None = None
    images: list[Data] | None = None
    raw: bool | None = None
    without_effect: ClassVar = _Asked.without_effect | {"suffix": ("",), "template": ("",), "context": ([],)}

    @property
    def turns(self) -> list[Turn]:
        """The question as a turn, if there is one."""
        is_asked = self.prompt or self.images
        return [Turn.model_construct(role="user", images=self.images)] if is_asked else []

    def request(self, pictures: Pictures) -> ChatRequest:
        """The request. Raises what `Pictures.opened` and `ChatRequest` raise."""
        images = tuple(pictures.opened(f"images[{at}]", source) for at, source in enumerate(self.images or ()))
        question = Message("user", self.prompt or "", images)
        system = (Message("system", self.system),) if self.system else ()
        return ChatRequest((*system, question), self.as_sampling(), bool(self.raw))


class OllamaShowRequest(Body):
    model: str | None = None
    name: Annotated[str | None, Field(description="Its older name.")] = None
    without_effect: ClassVar = {"verbose": ()}


# --- the answer


class ReplyJSON(TypedDict):
    role: Literal["assistant"]
    content: str


class EndJSON(TypedDict, total=False):
    """The fields of the last line only."""

    done: bool
    done_reason: FinishReason | Literal["load"]
    total_duration: int
    load_duration: int
    prompt_eval_count: int
    prompt_eval_duration: int
    eval_count: int
    eval_duration: int


class OllamaAnswer(EndJSON):
    """A line of the stream, or the whole answer; a chat has its text in `message`, generate in `response`."""

    model: str
    created_at: str
    message: NotRequired[ReplyJSON]
    response: NotRequired[str]
    logprobs: NotRequired[list[TokenJSON]]


class OllamaError(TypedDict):
    error: str


@dataclass
class Writer:
    """Writes one answer, and measures its times from its own creation on."""

    model: str
    is_chat: bool
    start_ns: int = field(default_factory=time.perf_counter_ns)
    first_ns: int | None = None  # when the first text came; before it, the prompt was queued and prefilled

    def line(self, chunk: Chunk) -> OllamaAnswer:
        """One line of the stream; a heartbeat is a line without text."""
        if chunk.text and self.first_ns is None:
            self.first_ns = time.perf_counter_ns()
        answer = self._answer(chunk.text, chunk.logprobs)
        if chunk.finish_reason and chunk.usage:
            answer.update(self._end(chunk.finish_reason, chunk.usage))
        return answer

    def whole(self, completion: Completion) -> OllamaAnswer:
        """The whole answer; its chunks were given to `line` before."""
        answer = self._answer(completion.text, completion.logprobs)
        answer.update(self._end(completion.finish_reason, completion.usage))
        return answer

    def loaded(self) -> OllamaAnswer:
        """The answer to a request that only loads the model."""
        answer = self._answer("", ())
        answer.update({"done": True, "done_reason": "load"})
        return answer

    def _answer(self, text: str, logprobs: Sequence[TokenLogprob]) -> OllamaAnswer:
        answer: OllamaAnswer = {"model": self.model, "created_at": now(), "done": False}
        if self.is_chat:
            answer["message"] = {"role": "assistant", "content": text}
        else:
            answer["response"] = text
        if logprobs:
            answer["logprobs"] = [token_json(token) for token in logprobs]
        return answer

    def _end(self, reason: FinishReason, usage: Usage) -> EndJSON:
        end = time.perf_counter_ns()
        first = end if self.first_ns is None else self.first_ns
        return {
            "done": True,
            "done_reason": reason,
            "total_duration": end - self.start_ns,
            "load_duration": 0,  # the model is loaded before all answers
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": first - self.start_ns,
            "eval_count": usage.completion_tokens,
            "eval_duration": end - first,
        }


def now() -> str:
    """The time in Ollama's format."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def error_of(error: DemoError) -> OllamaError:
    """The body of the response for `error`."""
    return {"error": str(error)}
