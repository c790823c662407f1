"""The streams of other people's servers, byte by byte as they write them, read by the remote engine."""

import asyncio
import base64
import io
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import PIL.Image
import pytest
from pictures import encoded

from llava_demo.chat import ChatRequest, Completion, Message, SamplingParams
from llava_demo.engines import complete, remote
from llava_demo.engines.load import load_engine
from llava_demo.errors import EngineBusy, EngineUnavailable, GenerationFailed, InvalidRequest, PromptTooLong
from llava_demo.images import Image
from llava_demo.settings import Settings

REQUEST = ChatRequest((Message("user", "What?"),), SamplingParams(temperature=0, max_tokens=9))
HEAD = '"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"llava"'


@contextmanager
def server_of(
    body: bytes,
    kind: str = "text/event-stream",
    refusal: tuple[int, str] | None = None,
    asked: Any = None,
    models: bytes = b'{"object":"list","data":[{"id":"llava"}]}',
) -> Iterator[str]:
    """A server that answers with these bytes, and then hangs up; a question with `max_tokens` may have a `refusal`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(models, "application/json")

        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(question)
            if refusal and "max_tokens" in question:
                self._send(refusal[1].encode(), "application/json", refusal[0])
            else:
                self._send(body, kind)

        def _send(self, data: bytes, content_type: str, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    asked = [] if asked is None else asked
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def answer_to(
    body: str | bytes, kind: str = "text/event-stream", request: ChatRequest = REQUEST, **server: Any
) -> Completion:
    async def ask(url: str) -> Completion:
        engine = load_engine(Settings(remote_url=url))
        try:
            return await complete(engine, request)
        finally:
            await engine.aclose()

    with server_of(body.encode() if isinstance(body, str) else body, kind, **server) as url:
        return asyncio.run(ask(url))


def event(delta: str, finish: str = "null", rest: str = "") -> str:
    return f'data: {{{HEAD},"choices":[{{"index":0,"delta":{delta},"finish_reason":{finish}}}]{rest}}}\n\n'


USAGE = '"usage":{"prompt_tokens":590,"total_tokens":592,"completion_tokens":2}'
DONE = "data: [DONE]\n\n"
STREAMS = {
    # entrypoints/openai/chat_completion/{serving,protocol}.py at 002032ee: chunks are written without unset fields
    "vLLM": event('{"role":"assistant","content":""}', rest=',"prompt_token_ids":null')
    + event('{"content":"A red"}')
    + event('{"content":" cat."}', '"stop","stop_reason":null')
    + f'data: {{{HEAD},"choices":[],{USAGE}}}\n\n'
    + DONE,
    # entrypoints/openai/sse_utils.py at 06713058: unset fields of a delta are left out, `matched_stop` is the end token
    "SGLang": event('{"role":"assistant","content":""}', 'null,"matched_stop":null')
    + event('{"content":"A red"}', 'null,"matched_stop":null')
    + event('{"content":" cat."}', 'null,"matched_stop":null')
    + event("{}", '"stop","matched_stop":2')
    + f'data: {{{HEAD},"choices":[],{USAGE}}}\n\n'
    + DONE,
    # SGLang before: every field, null or not, in every chunk
    "SGLang, older": event('{"role":"assistant","content":"","reasoning_content":null}', rest=',"usage":null')
    + event('{"role":null,"content":"A red","tool_calls":null}', rest=',"usage":null')
    + event('{"role":null,"content":" cat."}', rest=',"usage":null')
    + event('{"role":null,"content":null}', '"stop"', ',"usage":null')
    + f'data: {{{HEAD},"choices":[],{USAGE}}}\n\n'
    + DONE,
    # tools/server/server-task.cpp at 00efb3e1: the reason stands first, the end has its timings beside the counts
    "llama.cpp": "".join(
        f'data: {{"choices":[{{"finish_reason":{finish},"index":0,"delta":{delta}}}],"created":1,'
        '"id":"chatcmpl-1","model":"llava","system_fingerprint":"b6000","object":"chat.completion.chunk"}\n\n'
        for delta, finish in (
            ('{"role":"assistant","content":null}', "null"),
            ('{"content":"A red"}', "null"),
            ('{"content":" cat."}', "null"),
            ("{}", '"stop"'),
        )
    )
    + 'data: {"choices":[],"created":1,"id":"chatcmpl-1","model":"llava","object":"chat.completion.chunk",'
    + f'{USAGE},"timings":{{"cache_n":0,"prompt_n":590,"predicted_n":2,"predicted_per_second":50.2}}}}\n\n'
    + DONE,
    # openai/openai.go at 00988753, middleware/openai.go at 077a50ba: the role is in every chunk
    "Ollama": event('{"role":"assistant","content":"A red"}', rest=',"system_fingerprint":"fp_ollama"')
    + event('{"role":"assistant","content":" cat."}')
    + event('{"role":"assistant","content":""}', '"stop"')
    + f'data: {{{HEAD},"system_fingerprint":"fp_ollama","choices":[],{USAGE}}}\n\n'
    + DONE,
    # LM Studio, whose source is closed: the model's name as fingerprint, counts in a chunk of their own or with the end
    "LM Studio": event('{"role":"assistant","content":"A red"}', rest=',"system_fingerprint":"llava","stats":{}')
    + event('{"content":" cat."}')
    + event("{}", '"stop"', f",{USAGE}")
    + DONE,
    # router/src/{chat,lib}.rs at 03fe626a and 014d3fd4: no id, the last text stands with the reason
    "TGI": (
        event('{"role":"assistant","content":"A red"}', "null", ',"usage":null')
        + event('{"role":"assistant","content":" cat."}', '"stop"', ',"usage":null')
        + f'data: {{{HEAD},"choices":[],{USAGE}}}\n\n'
        + DONE
    ).replace('"id":"chatcmpl-1"', '"id":""'),
    # TGI before: its own words for the reason and the object, no space after the colon
    "TGI, older": (
        event('{"role":"assistant","content":"A red"}') + event('{"role":"assistant","content":" cat."}', '"eos_token"')
    )
    .replace("data: ", "data:")
    .replace("chat.completion.chunk", "text_completion"),
    # Kinds of writing that the format allows, or that somebody has
    "an empty reason": event('{"content":"A red"}', '""') + event('{"content":" cat."}', '"stop"', f",{USAGE}") + DONE,
    "no [DONE]": event('{"content":"A red cat."}', '"stop"', f",{USAGE}"),
    "no usage": event('{"content":"A red"}') + event('{"content":" cat."}', '"stop"') + DONE,
    "keep-alives": ": OPENROUTER PROCESSING\n\nevent: ping\ndata: \n\nretry: 100\n\n"
    + event('{"content":"A red cat."}', '"stop"', f",{USAGE}"),
    "no blank lines": "".join(
        text.replace("\n\n", "\n")
        for text in (event('{"content":"A red"}'), event('{"content":" cat."}', '"stop"'), DONE)
    )
    + "\n",
    "lines that end at CR LF": event('{"content":"A red cat."}', '"stop"').replace("\n", "\r\n"),
    "lines that end at CR": event('{"content":"A red cat."}', '"stop"').replace("\n", "\r"),
    "a byte order mark": "\ufeff" + event('{"content":"A red cat."}', '"stop"'),
    "data over several lines": "data: "
    + json.dumps(
        {"choices": [{"delta": {"content": "A red cat."}, "finish_reason": "stop"}], "error": None}, indent=1
    ).replace("\n", "\ndata: ")
    + "\n\n",
    "keep-alives in words": "data: ping\n\nevent: heartbeat\ndata: still here\n\ndata: null\n\n"
    + event('{"content":"A red cat."}', '"stop"', f",{USAGE}"),
    "names of events": "event: message\nid: 1\n" + event('{"content":"A red cat."}', '"stop"') + "event: done\n" + DONE,
    "JSON lines": "".join(
        text.removeprefix("data: ").replace("\n\n", "\n")
        for text in (event('{"content":"A red"}'), event('{"content":" cat."}', '"stop"'))
    ),
    "an end without its blank line": event('{"content":"A red"}') + event('{"content":" cat."}', '"stop"').rstrip(),
    "no stream": json.dumps({"choices": [{"message": {"content": "A red cat."}, "finish_reason": "stop"}]}, indent=1),
    "parts": event('{"content":[{"type":"text","text":"A red cat."}]}', '"stop"'),
}


@pytest.mark.parametrize("name", STREAMS)
def test_the_stream_of_every_server_is_read(name: str) -> None:
    answer = answer_to(STREAMS[name])
    assert (answer.text, answer.finish_reason) == ("A red cat.", "stop")
    assert answer.usage.completion_tokens in (1, 2)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"], ids=ascii)
def test_lines_end_at_cr_and_lf_only(separator: str) -> None:
    text = f"A red{separator}cat."
    quoted = json.dumps(text, ensure_ascii=False)
    assert answer_to(event(f'{{"content":{quoted}}}', '"stop"') + DONE).text == text


def test_letters_are_utf_8_whatever_the_header_says() -> None:
    stream = event('{"content":"Ein rotes Kätzchen 😀"}', '"stop"')
    assert answer_to(stream, "text/event-stream; charset=iso-8859-1").text == "Ein rotes Kätzchen 😀"


def test_a_character_that_a_server_cuts_through_is_whole() -> None:
    """JavaScript's strings are of 16-bit units: sliced, half an emoji stands in each of two events."""
    halves = event('{"content":"A \\ud83d"}') + event('{"content":"\\ude00"}', '"stop"')
    assert answer_to(halves).text == "A 😀"
    assert answer_to(event('{"content":"A \\ude00 cat"}', '"stop"')).text == "A \ufffd cat"


@pytest.mark.parametrize("name", ["vLLM", "JSON lines", "no stream"])
@pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/x-ndjson", "application/octet-stream"])
def test_a_stream_is_known_by_its_first_bytes_whatever_its_label_is(kind: str, name: str) -> None:
    assert answer_to(STREAMS[name], kind).text == "A red cat."


def test_a_web_page_in_place_of_an_answer_is_said_to_be_one() -> None:
    with pytest.raises(EngineUnavailable, match="answers with a web page; is --remote-url right"):
        answer_to("\n<!doctype html><title>Log in</title>", "text/html")


def test_words_in_place_of_an_answer_are_no_answer() -> None:
    with pytest.raises(GenerationFailed, match="broke off"):
        answer_to("A red cat.", "text/plain")


@pytest.mark.parametrize(("header", "seconds"), [("7", 7), ("1000000", 600), ("Wed, 21 Oct 2099 07:28:00 GMT", 5)])
def test_the_pause_that_a_server_asks_for_is_passed_on(header: str, seconds: int) -> None:
    answer = httpx.Response(429, headers={"retry-after": header})
    assert remote._retry_after_s(answer) == seconds


@pytest.mark.parametrize("models", [b"[" * 100_000, b'{"data": 5}', b'{"data": [5]}'], ids=["a nest", "5", "[5]"])
def test_a_list_of_models_that_is_none_does_not_end_the_start(models: bytes) -> None:
    with server_of(STREAMS["vLLM"].encode(), models=models) as url:
        engine = load_engine(Settings(remote_url=url))
        assert engine.status().state == "ready"
        asyncio.run(engine.aclose())


def test_an_answer_that_is_no_stream_is_read_whole() -> None:
    body = {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "A red cat."}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 590, "completion_tokens": 2, "total_tokens": 592},
    }
    answer = answer_to(json.dumps(body), "application/json")
    assert (answer.text, answer.finish_reason, answer.usage.prompt_tokens) == ("A red cat.", "length", 590)


@pytest.mark.parametrize(
    "rest",
    ["", DONE, event("{}", "null"), event("{}", '"abort"') + DONE, event("{}", '"error"') + DONE, "data: {"],
    ids=["nothing", "only [DONE]", "no reason", "abort", "error", "half an event"],
)
def test_a_stream_without_an_end_broke_off(rest: str) -> None:
    with pytest.raises(GenerationFailed, match="broke off"):
        answer_to(event('{"content":"A red"}') + rest)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ('{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}', InvalidRequest),
        ('{"object":"error","message":"too long","type":"BadRequest","param":null,"code":400}', InvalidRequest),
        ('{"error":{"code":400,"message":"too long","type":"invalid_request_error"}}', InvalidRequest),
        ('{"error":{"message":"too long","http_status_code":422}}', InvalidRequest),
        ('{"error":"too long","error_type":"validation"}', InvalidRequest),
        ('{"error":"Model is overloaded","error_type":"overloaded"}', EngineBusy),
        ('{"error":{"message":"boom","type":"server_error"}}', GenerationFailed),
        ('{"error":"boom"}', GenerationFailed),
        ("boom", GenerationFailed),
    ],
)
def test_an_error_within_a_stream_is_told_as_what_it_is(error: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        answer_to(f"event: error\ndata: {error}\n\n")


@pytest.mark.parametrize(("form", "sent"), [("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "png"), ("GIF", "png")])
def test_a_picture_travels_in_a_format_that_every_server_reads(form: str, sent: str) -> None:
    """llama-server, and Ollama with it, has no decoder for WebP; Ollama takes no GIF."""
    asked: list[dict[str, Any]] = []
    image = Image.from_bytes(encoded(PIL.Image.new("RGB", (40, 30), "red"), form))
    request = ChatRequest((Message("user", "What?", (image,)),))
    answer_to(event('{"content":"Red."}', '"stop"') + DONE, asked=asked, request=request)
    url = asked[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith(f"data:image/{sent};base64,")
    seen = PIL.Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert (seen.format, seen.size) == (sent.upper(), (40, 30))


# vLLM 017638d7 `renderers/params.py`; SGLang `managers/tokenizer_manager.py`; TGI 06227f7b `router/src/validation.rs`
TOO_MUCH_TOGETHER = {
    "vLLM": (
        400,
        '{"error":{"message":"You passed 590 input tokens and requested 9 output tokens. However, the model\'s context'
        " length is only 595 tokens, resulting in a maximum input length of 586 tokens. Please reduce the length of the"
        ' input prompt.","type":"BadRequestError","param":"input_tokens","code":400}}',
    ),
    "vLLM, of max_tokens alone": (
        400,
        '{"error":{"message":"max_tokens=9 cannot be greater than max_model_len=8. Please request fewer.",'
        '"type":"BadRequestError","param":"max_tokens","code":400}}',
    ),
    "SGLang": (
        400,
        '{"object":"error","message":"Requested token count exceeds the model\'s maximum context length of 595 tokens.'
        ' You requested a total of 599 tokens: 590 tokens from the input messages and 9 tokens for the completion.",'
        '"type":"BadRequest","param":null,"code":400}',
    ),
    "TGI": (
        422,
        '{"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 595. Given: 590 `inputs`'
        ' tokens and 9 `max_new_tokens`","error_type":"validation"}',
    ),
}


@pytest.mark.parametrize("name", TOO_MUCH_TOGETHER)
def test_a_prompt_that_fits_alone_is_answered_with_the_rest_of_the_context(name: str) -> None:
    asked: list[dict[str, Any]] = []
    stream = event('{"content":"A red"}', '"length"') + DONE
    assert answer_to(stream, refusal=TOO_MUCH_TOGETHER[name], asked=asked).text == "A red"
    first, second = asked
    assert first == second | {"max_tokens": 9}


@pytest.mark.parametrize(
    "words",
    [
        "The decoder prompt (length 4700) is longer than the maximum model length of 4096. Make sure that",
        "The input (4700 tokens) is longer than the model's context length (4096 tokens).",
        "request (4700 tokens) exceeds the available context size (4096 tokens), try increasing it",
        "The number of tokens to keep from the initial prompt is greater than the context length.",
        "Input validation error: `inputs` must have less than 4096 tokens. Given: 4700",
    ],
    ids=["vLLM", "SGLang", "llama-server and Ollama", "LM Studio", "TGI"],
)
def test_a_prompt_that_is_too_long_is_known_by_every_servers_words(words: str) -> None:
    with pytest.raises(PromptTooLong, match=re.escape(words)):
        answer_to(f"data: {json.dumps({'error': {'message': words, 'code': 400}})}\n\n")
