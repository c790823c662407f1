"""The program's log: one line per answer, written at its end, as text or as JSON.

It never holds a prompt, a picture or a caller's address. So exceptions are logged with their classes and their places
in the code, but without their words, which may quote a prompt.
"""

import asyncio
import json
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TextIO

from llava_demo.errors import DemoError
from llava_demo.metrics import AnswerRecord, count_answer

LogFormat = Literal["text", "json"]

MOST_ALIKE, MINUTE_S = 5, 60.0  # the same warning is written this often in that time
MOST_KINDS = 1000  # different warnings that are counted

logger = logging.getLogger("llava_demo")


def setup(log_format: LogFormat = "text") -> None:
    """Write the program's log and the warnings of libraries to stderr. A second call changes the format."""
    handler = _Stderr()
    handler.setFormatter(_Formatter(log_format))
    handler.addFilter(_Repeats())
    for each in (logger, logging.getLogger()):
        for old in [h for h in each.handlers if isinstance(h.formatter, _Formatter)]:
            each.removeHandler(old)
        each.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # Gradio 6.31 prints the exceptions of its events, whose words quote the request.
    traceback.print_exc = _log_current  # type: ignore[assignment]


def take_over(name: str) -> None:
    """Have a library's logger write here in place of its own handlers, which log the words of exceptions."""
    for each in (name, f"{name}.error", f"{name}.access"):
        logging.getLogger(each).handlers.clear()
        logging.getLogger(each).propagate = True
    logging.getLogger(f"{name}.error").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """False for uvicorn's message about an answer that broke off: its reason was logged before."""
    return not str(record.msg).startswith("ASGI callable returned without completing")


def _log_current(*_: object, **__: object) -> None:
    """In place of `traceback.print_exc`."""
    logger.warning("a library reported an exception", exc_info=True)


@contextmanager
def log_answer(answer: AnswerRecord, engine: str, images: int) -> Iterator[AnswerRecord]:
    """Log and count `answer` when the block ends, however it ends.

    `finish` is `stop` or `length`; a DemoError's code; `cancelled` where the caller disconnected or stopped the
    answer; or `internal_error`, after a line with the traceback. Exceptions of the block propagate.
    """
    failure: str | None = None
    cause: BaseException | None = None
    try:
        yield answer
    except DemoError as error:
        failure, cause = error.code, error.__cause__
        raise
    except (GeneratorExit, asyncio.CancelledError, KeyboardInterrupt, BrokenPipeError):
        raise
    except BaseException as error:
        failure, cause = "internal_error", error
        logger.exception("a defect ended an answer")
        raise
    finally:
        finish = failure or answer.finish_reason or "cancelled"  # no last chunk: the caller stopped it
        logger.info("answer", extra={"fields": _fields(engine, images, answer, finish, cause)})
        count_answer(answer, engine, images, finish)


def _fields(
    engine: str, images: int, answer: AnswerRecord, finish: str, cause: BaseException | None
) -> dict[str, object]:
    usage = answer.usage
    first = answer.first_token_s
    fields = {
        "id": answer.id,
        "endpoint": answer.endpoint,
        "engine": engine,
        "prompt_tokens": usage and usage.prompt_tokens,
        "completion_tokens": usage and usage.completion_tokens,
        "images": images,
        "first_token_ms": None if first is None else round(first * 1000),
        "total_ms": round(answer.total_s * 1000),
        "finish": finish,
        "cause": cause and type(cause).__name__,
    }
    return {name: value for name, value in fields.items() if value is not None}


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to the `sys.stderr` of that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Repeats(logging.Filter):
    """Passes a warning MOST_ALIKE times a minute; the first one of the next minute tells how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}  # start of the minute, and count since then

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        key = (record.name, str(record.msg))
        if len(self._seen) > MOST_KINDS:
            self._seen.clear()
        start, count = self._seen.get(key, (record.created, 0))
        if abs(record.created - start) >= MINUTE_S:  # the clock may be set back
            left_out, start, count = max(0, count - MOST_ALIKE), record.created, 0
            if left_out:
                record.msg = f"{record.msg} (and {left_out} times in the minute before)"
        self._seen[key] = (start, count + 1)
        return count < MOST_ALIKE


class _Formatter(logging.Formatter):
    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self._is_json = log_format == "json"

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = getattr(record, "fields", {})
        when = self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z")
        error = record.exc_info[1] if record.exc_info else None
        trace = trace_of(error) if error else getattr(record, "trace", "")
        # asyncio's messages continue with the exception and its words.
        words = record.getMessage() if record.name.startswith(logger.name) else record.getMessage().partition("\n")[0]
        if self._is_json:
            line = {"time": when, "level": record.levelname.lower(), "message": words, **fields}
            return json.dumps(line | ({"traceback": trace} if trace else {}), default=str)
        pairs = "".join(f" {name}={value}" for name, value in fields.items())
        return f"{when} {record.levelname} {words}{pairs}" + (f"\n{trace}" if trace else "")


def trace_of(error: BaseException | None) -> str:
    """Tracebacks, without words, of an exception and of those that led to it, the first one first.

    As `extra={"trace": ...}` of a record it is written below the record's line.
    """
    chain: dict[int, str] = {}
    while error is not None and id(error) not in chain:
        chain[id(error)] = "".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(reversed(chain.values()))


def place_of(error: BaseException) -> str:
    """The class of an exception, and of the one that led to it, with the innermost line of code, in one line."""
    cause = f", from {type(error.__cause__).__name__}" if error.__cause__ else ""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}{cause}, {'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}"
