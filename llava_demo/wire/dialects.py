"""What other servers take beside OpenAI's own fields, under which names, and how they are told from each other.

Read in their sources, which ignore a field that they do not know and answer as if it had not been asked for:
vLLM 002032ee `entrypoints/openai/chat_completion/protocol.py`, SGLang 004c82e0 `entrypoints/openai/protocol.py`,
llama.cpp 00efb3e1 `tools/server/server-task.cpp`, Ollama 00988753 `openai/openai.go`, TGI 014d3fd4 `router/src/lib.rs`;
LM Studio has its list at https://lmstudio.ai/docs/developer/openai-compat/chat-completions.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llava_demo.chat import ChatRequest, SamplingParams
from llava_demo.errors import UnsupportedParameter

# The fields of `SamplingParams` that OpenAI's chat completions lack.
EXTENSIONS = ("top_k", "min_p", "repetition_penalty", "ignore_eos", "stop_token_ids")


@dataclass(frozen=True)
class Dialect:
    """How one server spells what OpenAI's chat completions lack."""

    server: str  # for people
    names: Mapping[str, str] = field(default_factory=lambda: {name: name for name in EXTENSIONS})
    stated: Mapping[str, Any] = field(default_factory=dict)  # always sent: the server's own defaults filter
    continuing: Mapping[str, Any] | None = None  # what asks for the rest of an answer; None where nothing does
    needs_partial_top_p: bool = False  # it refuses 1, which is its default
    has_values_for_schemas: bool = False
    note: str = ""  # what its users should know

    def fields_of(self, request: ChatRequest) -> dict[str, Any]:
        """The fields for what `request` asks beyond OpenAI's knobs.

        Raises:
            UnsupportedParameter: the server would leave it out without a word.
        """
        sampling, neutral = request.sampling, SamplingParams()
        fields = dict(self.stated)
        for name in EXTENSIONS:
            value = getattr(sampling, name)
            if value == getattr(neutral, name):
                continue
            if name not in self.names:
                raise UnsupportedParameter(f"{self.server}, which answers here, takes no {name}; leave it out.", name)
            fields[self.names[name]] = list(value) if isinstance(value, tuple) else value
        if request.is_continuation:
            if self.continuing is None:
                words = f"{self.server}, which answers here, goes on with no answer: end with a user's message."
                raise UnsupportedParameter(words, "messages")
            fields |= self.continuing
        if sampling.json_schema is not None:
            fields["response_format"] = self._response_format(json.loads(sampling.json_schema))
        return fields

    def _response_format(self, schema: Any) -> dict[str, Any]:
        if self.has_values_for_schemas:
            return {"type": "json", "value": schema}
        # The one form that all others know: LM Studio takes no json_object.
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


_CONTINUING = {"continue_final_message": True, "add_generation_prompt": False}
_ALL_TOKENS = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}  # a checkpoint's defaults may be others
_OLLAMA = "Ollama keeps its own top_k (40) and repeat_penalty (1.1), which its OpenAI interface does not take."

UNKNOWN = Dialect("The server")
OLLAMA = Dialect("Ollama", {}, continuing={}, note=_OLLAMA)
TGI = Dialect("TGI", {}, needs_partial_top_p=True, has_values_for_schemas=True)
BY_OWNER = {
    "llava_demo": Dialect("The other llava_demo", continuing=_CONTINUING),
    "vllm": Dialect("vLLM", stated=_ALL_TOKENS, continuing=_CONTINUING),
    "sglang": Dialect("SGLang", stated=_ALL_TOKENS, continuing={"continue_final_message": True}),
    "llamacpp": Dialect(
        "llama-server",
        {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repeat_penalty", "ignore_eos": "ignore_eos"},
        stated={"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "repeat_last_n": -1},
        continuing={},
    ),
    "library": OLLAMA,
    "organization_owner": Dialect("LM Studio", {"top_k": "top_k", "repetition_penalty": "repeat_penalty"}),
}


def dialect_of(model: Mapping[str, Any]) -> Dialect:
    """The dialect of the server with this entry in its list of models: most servers name themselves as the owner."""
    name, owner = str(model.get("id", "")), str(model.get("owned_by", ""))
    if owner in BY_OWNER:
        return BY_OWNER[owner]
    if ":" in name:  # the tag, which Ollama's names always have; the owner is a user of its library
        return OLLAMA
    return TGI if owner and owner == name else UNKNOWN
