"""OpenAI's body of a chat completion, to and from a `ChatRequest`.

What would change the answer and is not done is refused, never passed over in silence.
"""

from dataclasses import dataclass, replace
from typing import Any

from llava_demo.chat import KNOBS, MAX_SEED, MAX_TOP_LOGPROBS, ChatRequest, SamplingParams
from llava_demo.errors import InvalidRequest, UnsupportedParameter
from llava_demo.images import ImageLimits
from llava_demo.wire.openai.messages import ImageFromUrl, messages_from, messages_json

MAX_CHOICES = 4

STREAMED = {"stream": True, "stream_options": {"include_usage": True}}  # for `request_json`: as a stream, counted

# Fields that are taken and change nothing here: who asks, how it is stored, counted and billed.
WITHOUT_EFFECT = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
    }
)
# Fields that are taken only with a value that asks for what is done anyway.
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
}


@dataclass(frozen=True)
class Call:
    """A request, and how its answer is wanted."""

    request: ChatRequest
    model: str | None = None
    choices: int = 1
    is_stream: bool = False
    has_usage: bool = False  # in a stream, which has none unless asked

    @property
    def requests(self) -> list[ChatRequest]:
        """One for each choice: with a seed, the first is that of a call for one, and the others have the next seeds."""
        sampling = self.request.sampling
        if sampling.seed is None:
            return [self.request] * self.choices
        seeds = [(sampling.seed + index) % (MAX_SEED + 1) for index in range(self.choices)]
        return [replace(self.request, sampling=replace(sampling, seed=seed)) for seed in seeds]


def call_from(body: Any, limits: ImageLimits | None = None, image_from_url: ImageFromUrl | None = None) -> Call:
    """Read the body of a POST to `/chat/completions`. A field that is null counts as left out.

    Raises:
        InvalidRequest: a value that is not allowed; `param` is its field.
        UnsupportedParameter: a field that is unknown, or that asks for what is not done here.
    """
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    given = {name: value for name, value in body.items() if value is not None}
    _check_support(given)
    request = ChatRequest(
        messages_from(given.get("messages"), limits=limits, image_from_url=image_from_url), _sampling_from(given)
    )
    return Call(
        request,
        _string(given, "model"),
        _choices(given.get("n", 1)),
        _flag(given, "stream"),
        _flag(_stream_options(given), "include_usage"),
    )


def request_json(request: ChatRequest, model: str | None) -> dict[str, Any]:
    """The body that asks `model` for this, or the server's only one; neutral knobs are left out, `call_from` reads it.

    `top_k`, `min_p` and `repetition_penalty` are not OpenAI's: vLLM, SGLang and this server know them by these names.

    Raises:
        InvalidRequest: a raw prompt, for which chat completions have no place.
    """
    if request.is_raw:
        raise InvalidRequest("A raw prompt cannot be sent as a chat completion.", "raw")
    sampling, neutral = request.sampling, SamplingParams()
    stated = {"temperature", "top_p", "max_tokens"}  # servers differ in their defaults
    knobs = {
        name: getattr(sampling, name)
        for name in KNOBS
        if name in stated or getattr(sampling, name) != getattr(neutral, name)
    }
    body: dict[str, Any] = {"messages": messages_json(request.messages)} | knobs
    if model is not None:
        body["model"] = model
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    return body


_READ = frozenset(
    {
        *KNOBS,
        "messages",
        "model",
        "max_completion_tokens",
        "seed",
        "stop",
        "n",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
    }
)


def _check_support(given: dict[str, Any]) -> None:
    for name, value in given.items():
        if name in _READ or name in WITHOUT_EFFECT or value in NEUTRAL_VALUES.get(name, ()):
            continue
        shown = name[:40]
        if name in NEUTRAL_VALUES:
            raise UnsupportedParameter(f"{shown} is not supported here with this value; leave it out.", shown)
        raise UnsupportedParameter(f"{shown} is not supported here; leave it out.", shown)


def _sampling_from(given: dict[str, Any]) -> SamplingParams:
    knobs = {name: given[name] for name in (*KNOBS, "seed") if name in given}
    if "max_completion_tokens" in given:
        if given.get("max_tokens", given["max_completion_tokens"]) != given["max_completion_tokens"]:
            raise InvalidRequest("max_tokens and max_completion_tokens are the same; give one of them.", "max_tokens")
        knobs["max_tokens"] = given["max_completion_tokens"]
    stop = given.get("stop", ())
    return SamplingParams(**knobs, stop=(stop,) if isinstance(stop, str) else stop, top_logprobs=_top_logprobs(given))


def _top_logprobs(given: dict[str, Any]) -> int | None:
    wanted, top = _flag(given, "logprobs"), given.get("top_logprobs")
    if top is not None and not wanted:
        raise InvalidRequest(f"top_logprobs, 0 to {MAX_TOP_LOGPROBS}, needs logprobs to be true.", "top_logprobs")
    return (0 if top is None else top) if wanted else None


def _choices(n: Any) -> int:
    is_number = isinstance(n, int | float) and not isinstance(n, bool)
    if not is_number or n not in range(1, MAX_CHOICES + 1):
        raise InvalidRequest(f"n must be a whole number from 1 to {MAX_CHOICES}.", "n")
    return int(n)


def _stream_options(given: dict[str, Any]) -> dict[str, Any]:
    options = given.get("stream_options", {})
    if not isinstance(options, dict):
        raise InvalidRequest("stream_options must be an object.", "stream_options")
    if options and not given.get("stream"):
        raise InvalidRequest("stream_options needs stream to be true.", "stream_options")
    return {name: value for name, value in options.items() if value is not None}


def _flag(given: dict[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false.", name)
    return value


def _string(given: dict[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a string.", name)
    return value
