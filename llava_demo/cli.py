"""The commands `serve`, `ask`, `caption` and `check`. Heavy modules are imported when a command runs."""

import asyncio
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_demo import __version__, log
from llava_demo.chat import KNOBS, MAX_SEED, MAX_STOP_STRINGS, ChatRequest, Message, SamplingParams, number_from
from llava_demo.environment import (
    check_folder,
    check_limits,
    claim_upload_folder,
    drop_variables,
    quick_imports,
    reach_own_address,
    unusable_variables,
)
from llava_demo.errors import DemoError, InvalidImage, InvalidRequest, shown
from llava_demo.images import Image, ImageLimits
from llava_demo.metrics import AnswerRecord
from llava_demo.settings import OneLineParser, SettingError, Settings, add_options, unknown_variables

if TYPE_CHECKING:
    from llava_demo.engines import Engine

CAPTION_PROMPT = "Describe this picture in one sentence."
CAPTION_SAMPLING = SamplingParams(temperature=0, max_tokens=200)
CAPTIONS = "captions.jsonl"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EROFS)  # the machine's limits
SOME_FAILED = 3
INTERRUPTED = 130  # what shells report for Ctrl-C: 128 + SIGINT


Command = Callable[[Sequence[str], str], int]  # arguments and the program's name to an exit code


def main(arguments: Sequence[str] | None, program: str) -> int:
    """Run one command and return its exit code.

    1 after an error, 2 after a bad option, 3 where pictures could not be captioned, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = OneLineParser(program, description="Ask questions about pictures with LLaVA-1.5.", epilog=_COMMANDS_HELP)
    parser.add_argument("--version", action="version", version=f"llava_demo {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="|".join(COMMANDS))
    name = parser.parse_args(given[:1]).command
    return run(COMMANDS[name], given[1:], program if program.endswith(".py") else f"{program} {name}")


def run(command: Command, arguments: Sequence[str], program: str) -> int:
    """Run `command`. Its errors become one line that names `program`, and an exit code as `main` returns it."""
    _prepare_streams()
    try:
        check_folder()
        check_limits()
        return command(arguments, program)
    except (SettingError, DemoError) as error:
        return _failed(program, error, 2 if isinstance(error, SettingError) else 1)
    except MemoryError:
        return _failed(program, "There is too little memory.", 1)
    except (ValueError, RuntimeError) as error:
        if "start new thread" in str(error):  # Python's words where the system refuses one
            return _failed(program, "No more threads can be started; raise ulimit -u, or the container's limit.", 1)
        if not (names := unusable_variables(error)):
            raise
        return _failed(program, f"{' or '.join(names)} has a value that a library cannot use; unset it or mend it.", 2)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # as in `ask ... | head -1`; Python would complain once more when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # as for TORCHINDUCTOR_CACHE_DIR, if that folder cannot be made
        if error.filename is None and error.errno not in _FULL:
            raise
        return _failed(program, f"{error.filename or 'A file'} cannot be used: {error.strerror}.", 1)


def _prepare_streams() -> None:
    if sys.stdout is None or sys.stderr is None:  # closed by the caller, as `>&-` does
        nowhere = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every terminal can show Gradio's 🔨
            stream.reconfigure(errors="replace")


def serve(arguments: Sequence[str], program: str) -> int:
    settings = Settings.from_command_line(arguments, program)
    check_limits(file_bytes=settings.image_limits.max_bytes)
    reach_own_address(settings.host)  # before Gradio is imported, which makes HTTP clients
    _announce("Starting: the page is up in a few seconds.")
    try:
        claim_upload_folder(settings.port)
    except OSError as error:
        words = "There is no folder where uploads could be kept; set TMPDIR to one that can be written."
        raise SettingError(words) from error
    with quick_imports():
        from llava_demo.serve import launch

    launch(settings)
    return 0


def ask(arguments: Sequence[str], program: str) -> int:
    parser = OneLineParser(
        program,
        usage=f"{program} [options] [IMAGE ...] PROMPT",
        description="Stream one answer to the terminal. Standard output holds the answer and nothing else.",
    )
    parser.add_argument(
        "words", nargs="+", metavar="IMAGE ... PROMPT", help="picture files, no web addresses, then the question"
    )
    _add_sampling_options(parser, SamplingParams())
    add_options(parser, ("model", "remote", "pictures"))
    given = vars(parser.parse_intermixed_args(arguments))
    *paths, prompt = given.pop("words")
    if not paths and _is_file(prompt):
        parser.error("a question is missing after the picture.")
    sampling, settings = _values_from(given, SamplingParams(), parser)
    images = tuple(_image(path, settings.image_limits) for path in paths)
    request = ChatRequest((Message("user", prompt, images),), sampling)

    reach_own_address(settings.host)
    _announce("Loading the model.")
    log.setup(settings.log_format)
    from llava_demo.engines.load import load_engine

    asyncio.run(_write_answer(load_engine(settings), request))
    return 0


def caption(arguments: Sequence[str], program: str) -> int:
    parser = OneLineParser(
        program,
        usage=f"{program} [options] PLACE ...",
        description="Caption every picture of a folder, many at once. A run that was ended continues when run again.",
        epilog=f"Exit code: 0 if all have captions, {SOME_FAILED} if pictures failed, 1 if the run could not go on.",
    )
    parser.add_argument(
        "places", nargs="+", metavar="PLACE", help="folders, ZIP files, lists (.txt), patterns, pictures"
    )
    parser.add_argument("--prompt", default=CAPTION_PROMPT, help="what is asked of each picture (default: %(default)s)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="FILE", help=f".jsonl or .csv (default: {CAPTIONS} here)")
    where.add_argument("--beside", action="store_true", help="write photo.txt beside photo.jpg in place of one file")
    _add_sampling_options(parser, CAPTION_SAMPLING)
    add_options(parser, ("model", "remote", "pictures"))
    given = vars(parser.parse_intermixed_args(arguments))
    places, prompt = given.pop("places"), given.pop("prompt")
    out = None if given.pop("beside", False) else given.pop("out", Path(CAPTIONS))
    if out and out.suffix not in (".jsonl", ".csv"):
        parser.error(f"--out is {str(out)!r}; it must end in .jsonl or .csv.")
    sampling, settings = _values_from(given, CAPTION_SAMPLING, parser)

    from llava_demo.caption import Asked, Captions

    captions = Captions.of(places, out)
    if not captions.waiting:
        sys.stderr.write(f"{captions.summary()}\n")
        return SOME_FAILED if captions.failed else 0
    reach_own_address(settings.host)
    _announce("Loading the model.")
    from llava_demo.engines.load import load_engine

    asked = Asked(prompt, sampling, settings.image_limits)
    asyncio.run(captions.write_all(load_engine(settings), asked, settings.max_concurrent))
    return SOME_FAILED if captions.failed else 0


def check(arguments: Sequence[str], program: str) -> int:
    """The exit code is 1 where a remote server does not answer."""
    parser = OneLineParser(
        program, description="Load the model, say what was chosen for this machine and why, and end."
    )
    add_options(parser, ("model", "remote", "pictures"))
    settings = Settings.of(vars(parser.parse_args(arguments)))
    reach_own_address(settings.host)
    _announce("Asking the server." if settings.is_remote else "Loading the model.")
    from llava_demo.engines.load import load_engine

    engine = load_engine(settings)
    try:
        sys.stdout.write(_report(engine))
        if engine.status().state == "ready":
            return 0
        sys.stderr.write(f"{program}: no server answers at {', '.join(settings.remote_url)}.\n")
        return 1
    finally:
        asyncio.run(engine.aclose())


COMMANDS: dict[str, Command] = {"serve": serve, "ask": ask, "caption": caption, "check": check}
_COMMANDS_HELP = (
    "serve: the page and its API. ask: one answer in the terminal. caption: every picture of a folder. "
    "check: what was chosen for this machine, and why. Each has its own --help."
)


def _announce(words: str) -> None:
    """Say at once what takes a while, and which variables have no effect, and drop those of libraries."""
    for warning in [*unknown_variables(), *drop_variables()]:
        sys.stderr.write(f"{warning}\n")
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()


def _failed(program: str, error: Exception | str, exit_code: int) -> int:
    sys.stderr.write(f"{program}: {error}\n")
    return exit_code


def _values_from(
    given: dict[str, Any], defaults: SamplingParams, parser: OneLineParser
) -> tuple[SamplingParams, Settings]:
    """Make values of the options in `given`; where one is bad, the program ends with exit code 2."""
    try:
        sampling = {f.name: given.pop(f.name) for f in fields(SamplingParams) if f.name in given}
        return replace(defaults, **sampling), Settings.of(given)
    except (InvalidRequest, SettingError) as error:
        parser.error(str(error))


def _add_sampling_options(parser: OneLineParser, defaults: SamplingParams) -> None:
    section = parser.add_argument_group("sampling")
    for name, knob in KNOBS.items():
        default = getattr(defaults, name)
        words = f"{knob.doc} From {knob.low} to {knob.high} (default: {default})"
        section.add_argument(f"--{name.replace('_', '-')}", type=number_from, metavar="N", help=words)
    section.add_argument(
        "--seed", type=number_from, metavar="N", help=f"The same seed draws the same answer; 0 to {MAX_SEED}"
    )
    words = f"The answer ends before this text; may be given {MAX_STOP_STRINGS} times"
    section.add_argument("--stop", action="append", metavar="TEXT", help=words)


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except OSError:  # too long for a file name: it is a question
        return False


def _image(path: str, limits: ImageLimits) -> Image:
    if path.startswith(("http://", "https://")):
        raise InvalidRequest(f"{shown(path)} is an address. Pictures are read from files here; download it first.")
    try:
        return Image.from_path(path, limits)
    except InvalidImage as error:
        raise type(error)(f"{path}: {error}") from error


async def _write_answer(engine: "Engine", request: ChatRequest) -> None:
    from llava_demo.engines import stream_recorded

    try:
        answer = ""
        async with aclosing(stream_recorded(engine, request, AnswerRecord("ask"))) as chunks:
            async for chunk in chunks:
                answer += chunk.text
                # The line ends with the last chunk: on a terminal the log's line about the answer comes next.
                sys.stdout.write(chunk.text + "\n" * bool(chunk.finish_reason))
                sys.stdout.flush()
        if advice := engine.info.advice_on(answer):
            sys.stderr.write(f"{advice}\n")
    finally:
        await engine.aclose()


def _report(engine: "Engine") -> str:
    info = engine.info
    rows = {
        "model": info.model,
        "engine": info.engine,
        "device": info.device,
        "precision": info.precision,
        "attention": info.attention,
        "memory": _memory(is_on_gpu=info.engine != "remote" and info.device != "CPU"),
        "context": f"{info.context_tokens:,} tokens",
        "pictures": f"{info.image_tokens} tokens each, at most {info.max_images} in a conversation",
    }
    lines = [f"{name:<10} {value}" for name, value in rows.items()]
    return "\n".join([*lines, "", *(f"- {reason}" for reason in info.reasons)]) + "\n"


def _memory(is_on_gpu: bool) -> str:
    if is_on_gpu:
        import torch

        index = max(range(torch.cuda.device_count()), key=torch.cuda.memory_allocated)  # where the weights are
        free, total = torch.cuda.mem_get_info(index)
        taken, place = torch.cuda.memory_allocated(index), "the GPU"
    else:
        import psutil  # type: ignore[import-untyped]

        from llava_demo.model.ram import free_ram

        free, total = free_ram(), psutil.virtual_memory().total
        taken, place = psutil.Process().memory_info().rss, "the machine"
    return f"{taken / 2**30:.1f} GB taken, {free / 2**30:.1f} of {total / 2**30:.1f} GB of {place} free"
