"""One line per answer, however it ended, with nothing of what was said."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import httpx
import pytest
from servers import Server

from llava_demo import log
from llava_demo.chat import Chunk, Usage
from llava_demo.errors import EngineBusy, GenerationFailed
from llava_demo.metrics import AnswerRecord

SECRET = "my secret question"
LAST = Chunk("!", "stop", Usage(prompt_tokens=600, completion_tokens=2))


@pytest.fixture(autouse=True)
def fresh_logger() -> Iterator[None]:
    before = list(log.logger.handlers), log.logger.level
    yield
    log.logger.handlers[:], log.logger.level = before


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_an_answer_is_one_line_with_its_counts_and_times(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("json")
    with log.log_answer(AnswerRecord("page"), "generate", images=1) as answer:
        for chunk in (Chunk(), Chunk("A cat"), LAST):
            answer.saw(chunk)
    [line] = lines(capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", str(line.pop("time")))
    assert re.fullmatch("[0-9a-f]{12}", str(line.pop("id")))
    first, total = line.pop("first_token_ms"), line.pop("total_ms")
    assert isinstance(first, int)
    assert isinstance(total, int)
    assert 0 <= first <= total < 1000
    assert line == {
        "level": "info",
        "message": "answer",
        "endpoint": "page",
        "engine": "generate",
        "prompt_tokens": 600,
        "completion_tokens": 2,
        "images": 1,
        "finish": "stop",
    }
    assert answer.usage == LAST.usage
    assert answer.first_token_s is not None


def test_a_text_line_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("text")
    with log.log_answer(AnswerRecord("page"), "generate", images=0) as answer:
        answer.saw(LAST)
    assert re.fullmatch(
        r"\S+ INFO answer id=\w{12} endpoint=page engine=generate prompt_tokens=600 completion_tokens=2 images=0 "
        r"first_token_ms=\d+ total_ms=\d+ finish=stop\n",
        capsys.readouterr().err,
    )


def test_heart_beats_are_no_first_token(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("json")
    with log.log_answer(AnswerRecord("page"), "generate", images=0) as answer:
        answer.saw(Chunk())
    [line] = lines(capsys)
    assert "first_token_ms" not in line
    assert line["finish"] == "cancelled"  # the block was left without the last chunk


def test_a_refusal_is_logged_by_its_code_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("json")
    with pytest.raises(EngineBusy), log.log_answer(AnswerRecord("client"), "generate", images=0):
        raise EngineBusy("The line is full.")
    [line] = lines(capsys)
    assert line["finish"] == "engine_busy"


def test_the_cause_of_a_failure_is_logged_without_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("json")
    with pytest.raises(GenerationFailed), log.log_answer(AnswerRecord("client"), "generate", images=0):
        raise GenerationFailed("The model failed.") from ValueError(SECRET)
    [line] = lines(capsys)
    assert (line["finish"], line["cause"]) == ("generation_failed", "ValueError")
    assert SECRET not in json.dumps(line)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_defect_is_logged_with_its_places_and_without_its_words(
    log_format: log.LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    log.setup(log_format)
    question = SECRET
    with pytest.raises(KeyError), log.log_answer(AnswerRecord("page"), "generate", images=0):
        try:
            int(question)
        except ValueError as error:
            raise KeyError(question) from error
    written = capsys.readouterr().err
    for expected in ("test_log.py", "int(question)", "ValueError", "raise KeyError(question)", "internal_error"):
        assert expected in written
    assert SECRET not in written


@pytest.mark.parametrize("how", ["closed", "cancelled"])
def test_an_answer_that_nobody_waits_for_is_logged_as_cancelled(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("json")

    async def answer() -> AsyncGenerator[Chunk, None]:
        with log.log_answer(AnswerRecord("page"), "generate", images=0) as measured:
            while True:
                measured.saw(Chunk("word "))
                yield Chunk("word ")
                await asyncio.sleep(10)

    async def ask() -> None:
        async with aclosing(answer()) as chunks:
            async for _ in chunks:
                if how == "closed":
                    return

    async def ask_for_a_moment() -> None:
        task = asyncio.create_task(ask())
        await asyncio.wait([task], timeout=0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(ask_for_a_moment())
    [line] = lines(capsys)
    assert line["finish"] == "cancelled"
    assert "first_token_ms" in line


def test_an_answer_whose_last_chunk_was_seen_is_not_cancelled_by_closing_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A way in that passes chunks on is closed while it stands at its last yield."""
    log.setup("json")

    async def answer() -> AsyncGenerator[Chunk, None]:
        with log.log_answer(AnswerRecord("page"), "generate", images=0) as measured:
            measured.saw(LAST)
            yield LAST

    async def take_the_first() -> None:
        async with aclosing(answer()) as chunks:
            await anext(chunks)

    asyncio.run(take_the_first())
    [line] = lines(capsys)
    assert line["finish"] == "stop"


def test_setting_the_log_up_again_changes_its_format_and_does_not_double_its_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.setup("text")
    log.setup("json")
    with log.log_answer(AnswerRecord("page"), "generate", images=0) as answer:
        answer.saw(LAST)
    assert len(lines(capsys)) == 1


def test_a_line_that_repeats_is_written_five_times_a_minute_and_then_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.setup("json")
    for _ in range(20):
        log.logger.warning("an upload broke off")
    log.logger.warning("something else")
    assert len(lines(capsys)) == log.MOST_ALIKE + 1
    monkeypatch.setattr(log, "MINUTE_S", 0.0)
    log.logger.warning("an upload broke off")
    [line] = lines(capsys)
    assert line["message"] == "an upload broke off (and 15 times in the minute before)"


def test_nothing_that_callers_send_reaches_the_log(tiny: Server, capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("text")
    secret, url = "mysecretquestion", tiny.url
    file = {"path": f"/{secret}", "meta": {"_type": "gradio.FileData"}}
    events = [event["id"] for event in httpx.get(f"{url}config").json()["dependencies"]]
    with httpx.Client(base_url=url, headers={"x-forwarded-for": "203.0.113.7", "user-agent": secret}) as client:
        for event in events:
            for data in ([secret], [{"text": secret, "files": [file]}] * 30, [[{"role": secret, "content": secret}]]):
                client.post("gradio_api/run/predict", json={"data": data, "fn_index": event})
                join = {"data": data, "fn_index": event, "session_hash": f"{secret}{event}"}
                client.post("gradio_api/queue/join", json=join)
                with client.stream("GET", f"gradio_api/queue/data?session_hash={secret}{event}") as response:
                    next((line for line in response.iter_lines() if "process_completed" in line), None)
        for path in ("v1/chat/completions", "api/chat", "gradio_api/call/ask", "ai/run/@cf/llava-hf/llava-1.5-7b-hf"):
            for body in (secret, json.dumps(secret), json.dumps({"messages": secret}), json.dumps({"data": [secret]})):
                client.post(path, content=body, headers={"content-type": "application/json"})
            client.post(f"{path}/{secret}?{secret}={secret}")
        client.post("gradio_api/upload", files={"files": (f"{secret}.png", secret.encode())})
        client.get(f"gradio_api/file={secret}")
    written = "".join(capsys.readouterr())
    assert secret not in written
    assert "203.0.113.7" not in written
    assert "127.0.0.1" not in written


def test_a_clock_that_is_set_back_silences_no_warning() -> None:
    repeats, record = log._Repeats(), logging.makeLogRecord({"levelno": logging.WARNING, "msg": "an upload broke off"})
    assert [repeats.filter(record) for _ in range(log.MOST_ALIKE + 1)] == [True] * log.MOST_ALIKE + [False]
    record.created -= 3600
    assert repeats.filter(record)


def test_an_exception_that_is_its_own_cause_is_traced_once() -> None:
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    assert log.trace_of(first) == "KeyError\nValueError"
