"""OpenAI's chat completions, to and from our values.

messages   the conversation, with its pictures
requests   what is asked for, and how it is sampled
answers    the answer, whole or as the events of a stream
failures   the error object

Source: https://platform.openai.com/docs/api-reference/chat. Each direction reads what the other writes.
"""

from llava_demo.wire.openai.answers import Head, chunk_from
from llava_demo.wire.openai.failures import error_from, error_json
from llava_demo.wire.openai.messages import messages_from, messages_json, web_addresses
from llava_demo.wire.openai.requests import STREAMED, Call, call_from, request_json

__all__ = [
    "STREAMED",
    "Call",
    "Head",
    "call_from",
    "chunk_from",
    "error_from",
    "error_json",
    "messages_from",
    "messages_json",
    "request_json",
    "web_addresses",
]
