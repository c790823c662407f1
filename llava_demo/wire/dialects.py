"""The fields that other servers take beside OpenAI's own, under which names, and how to recognize each server.

Taken from their sources. They ignore fields that they do not know:
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
    """How one server names the parameters that OpenAI's chat completions lack."""

    server: str  # its name in messages
    names: Mapping[str, str] = field(default_factory=lambda: {name: name for name in EXTENSIONS})
    stated: Mapping[str, Any] = field(default_factory=dict)  # always sent, since the server's defaults filter tokens
    continuing: Mapping[str, Any] | None = None  # fields that ask to continue an answer; None if nothing does
    needs_partial_top_p: bool = False  # it refuses top_p=1, its default
    has_values_for_schemas: bool = False
    note: str = ""  # a sentence for its users

    def fields_of(self, request: ChatRequest) -> dict[str, Any]:
        """The fields for the parameters of `request` beyond OpenAI's.

        Raises:
            UnsupportedParameter: the server would silently ignore one.
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
                words = f"{self.server}, which answers here, continues no answer: end with a user's message."
                raise UnsupportedParameter(words, "messages")
            fields |= self.continuing
        if sampling.json_schema is not None:
            fields["response_format"] = self._response_format(json.loads(sampling.json_schema))
        return fields

    def _response_format(self, schema: Any) -> dict[str, Any]:
        if self.has_values_for_schemas:
            return {"type": "json", "value": schema}
        # The only form that all others take: LM Studio refuses json_object.
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


_CONTINUING = {"continue_final_message": True, "add_generation_prompt": False}
_ALL_TOKENS = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}  # a checkpoint's defaults may differ
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
    """The dialect of the server with this entry in its list of models; most servers name themselves as the owner."""
    name, owner = str(model.get("id", "")), str(model.get("owned_by", ""))
    if owner in BY_OWNER:
        return BY_OWNER[owner]
    if ":" in name:  # the tag, which Ollama's names always have; the owner is then a user of its library
        return OLLAMA
    return TGI if owner and owner == name else UNKNOWN
