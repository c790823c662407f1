"""What other servers are asked: each in its own words, and never what it would leave out without a word."""

from typing import Any

import pytest

from llava_demo.chat import ChatRequest, Message, SamplingParams
from llava_demo.errors import UnsupportedParameter
from llava_demo.wire.openai_client import AnswerReader, request_json, served_from

QUESTION = Message("user", "What?")
PLAIN = {"messages": [{"role": "user", "content": "What?"}], "temperature": 0.2, "top_p": 1.0, "max_tokens": 512}
ALL_TOKENS = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
LLAMA = {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "repeat_last_n": -1}

# As each lists its model: `id` and `owned_by`.
SERVERS = {
    "llava_demo": ("miniature", "llava_demo"),
    "vLLM": ("llava-hf/llava-1.5-7b-hf", "vllm"),
    "SGLang": ("llava-hf/llava-1.5-7b-hf", "sglang"),
    "llama-server": ("llava.gguf", "llamacpp"),
    "Ollama": ("llava:7b", "library"),
    "Ollama, a user's": ("hf.co/second-state/llava:q4", "second-state"),
    "LM Studio": ("llava-v1.5-7b", "organization_owner"),
    "TGI": ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
    "another": ("llava-hf/llava-1.5-7b-hf", "llava-hf"),
}


def asked(server: str, *messages: Message, **knobs: Any) -> dict[str, Any]:
    """What the remote engine sends to `server`."""
    name, owner = SERVERS[server]
    served = served_from({"object": "list", "data": [{"id": name, "object": "model", "owned_by": owner}]})
    return request_json(ChatRequest(messages or (QUESTION,), SamplingParams(**knobs)), None, served.dialect)


@pytest.mark.parametrize(
    ("server", "fields"),
    [
        ("llava_demo", {}),
        ("vLLM", ALL_TOKENS),
        ("SGLang", ALL_TOKENS),
        ("llama-server", LLAMA),
        ("Ollama", {}),
        ("LM Studio", {}),
        ("another", {}),
    ],
)
def test_a_plain_question_is_filtered_by_no_servers_defaults(server: str, fields: dict[str, Any]) -> None:
    assert asked(server) == PLAIN | fields


def test_tgi_is_not_told_the_top_p_that_it_refuses() -> None:
    assert asked("TGI") == {name: value for name, value in PLAIN.items() if name != "top_p"}
    assert asked("TGI", top_p=0.5)["top_p"] == 0.5


@pytest.mark.parametrize("server", ["llava_demo", "vLLM", "SGLang", "another"])
def test_knobs_go_by_vllms_names(server: str) -> None:
    knobs: dict[str, Any] = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.5, "ignore_eos": True}
    sent = asked(server, **knobs, stop_token_ids=(2, 7))
    assert {name: sent[name] for name in knobs} == knobs
    assert sent["stop_token_ids"] == [2, 7]


def test_llama_server_has_a_name_of_its_own_for_the_repetition_penalty() -> None:
    sent = asked("llama-server", top_k=5, repetition_penalty=1.5, ignore_eos=True)
    assert (sent["top_k"], sent["repeat_penalty"], sent["ignore_eos"], sent["min_p"]) == (5, 1.5, True, 0.0)
    assert "repetition_penalty" not in sent


@pytest.mark.parametrize(
    ("server", "knobs"),
    [
        ("Ollama", {"top_k": 5}),
        ("Ollama, a user's", {"repetition_penalty": 1.5}),
        ("Ollama", {"ignore_eos": True}),
        ("LM Studio", {"min_p": 0.1}),
        ("TGI", {"min_p": 0.1}),
        ("llama-server", {"stop_token_ids": (2,)}),
    ],
)
def test_what_a_server_lacks_is_refused_by_name(server: str, knobs: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedParameter, match=rf"{server.split(',')[0]}, which answers here, takes no") as caught:
        asked(server, **knobs)
    assert caught.value.param == next(iter(knobs))


@pytest.mark.parametrize(
    ("server", "fields"),
    [
        ("llava_demo", {"continue_final_message": True, "add_generation_prompt": False}),
        ("vLLM", {"continue_final_message": True, "add_generation_prompt": False} | ALL_TOKENS),
        ("SGLang", {"continue_final_message": True} | ALL_TOKENS),
        ("llama-server", LLAMA),
        ("Ollama", {}),
    ],
)
def test_the_rest_of_an_answer_is_asked_for_as_each_server_wants_it(server: str, fields: dict[str, Any]) -> None:
    sent = asked(server, QUESTION, Message("assistant", "A red"))
    assert sent == PLAIN | {"messages": [*PLAIN["messages"], {"role": "assistant", "content": "A red"}]} | fields  # type: ignore[misc]


@pytest.mark.parametrize("server", ["LM Studio", "TGI", "another"])
def test_where_nothing_goes_on_with_an_answer_that_is_said(server: str) -> None:
    with pytest.raises(UnsupportedParameter, match="continues no answer"):
        asked(server, QUESTION, Message("assistant", "A red"))


@pytest.mark.parametrize("server", SERVERS)
def test_a_schema_reaches_every_server(server: str) -> None:
    sent = asked(server, json_schema='{"type": "object"}')["response_format"]
    schema = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    usual = {"type": "json_schema", "json_schema": schema}
    assert sent == ({"type": "json", "value": {"type": "object"}} if server == "TGI" else usual)


def test_log_probabilities_that_do_not_come_are_said_before_any_text() -> None:
    reader = AnswerReader(has_logprobs=True)
    reader.chunk_from('{"choices": [{"delta": {"role": "assistant", "content": ""}}]}')
    with pytest.raises(UnsupportedParameter, match="gives no logprobs"):
        reader.chunk_from('{"choices": [{"delta": {"content": "A red"}}]}')
