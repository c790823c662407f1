"""`python -m examples.bench`: its options, and what they lead to. torch is imported only when something is run."""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from examples.bench import suite_cpu
from examples.bench.llama_cpp import INSTALL
from examples.bench.report import BadReport, comparison, report, write
from examples.bench.run import Measuring, measure
from examples.bench.shapes import SHAPES, make_checkpoint
from llava_demo.cli import run
from llava_demo.settings import OneLineParser, SettingError, Settings, add_options

PROGRAM = "python -m examples.bench"
_OWN = ("shape", "chats", "max_tokens", "rounds", "suite", "parts", "out")  # the others are `Settings`
PARTS = ("answers", "speed", "settings")  # parts of the GPU suite
_MOST = 4096  # chats, tokens, rounds
_SUITES = {"cpu": suite_cpu.PARTS, "gpu": PARTS}
_DESCRIPTION = (
    "Measure the engine beside the model card's way (generate and a streamer, one question after the other), with the "
    "same weights in the same run: throughput and time to the first token of several chats at once, of a next question "
    "about a picture and of another user's, the pause that a newcomer causes, and memory."
)


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code, as `python -m llava_demo` gives it."""
    return run(bench, arguments, PROGRAM)


def bench(arguments: Sequence[str], program: str) -> int:
    """Run the command; returns its exit code."""
    parser = _parser(program)
    given = vars(parser.parse_args(arguments))
    if "compare" in given:
        return _compare(parser, *given["compare"])
    own = {name: given.pop(name) for name in _OWN if name in given}
    if "shape" in own and "model" in given:
        parser.error("--shape and --model cannot both be given: a shape is a model.")
    try:
        settings = Settings.of(given).model_copy(update={"max_queue": _MOST})  # nobody is to be refused
    except SettingError as error:
        parser.error(str(error))
    if settings.is_remote:
        parser.error("--engine remote: another server is measured where it runs.")
    if problem := _suite_problem(own):
        parser.error(problem)
    command = f"{PROGRAM} {shlex.join(arguments)}".strip()
    with ExitStack() as stack:
        if "shape" in own:
            folder = settings.cache or stack.enter_context(tempfile.TemporaryDirectory(prefix="llava-shape-"))
            settings = settings.model_copy(update={"model": str(make_checkpoint(own["shape"], Path(folder)))})
        return _suite(settings, own, command) if "suite" in own else _run(settings, own, command)


def _run(settings: Settings, own: dict[str, Any], command: str) -> int:
    result = measure(settings, _measuring(own))
    result.about["command"] = command
    sys.stdout.write(report(result))
    if "out" in own:
        sys.stdout.write("\n" + "".join(f"{path}\n" for path in write(result, own["out"])))
    return 0


def _suite_problem(own: dict[str, Any]) -> str:
    """What is wrong with --suite, --parts and --shape together; nothing where they fit."""
    suite, parts = own.get("suite"), own.get("parts", ())
    if suite == "cpu" and "shape" not in own:
        return "--suite cpu needs --shape: llama.cpp gets random weights of the same sizes."
    if suite is None:
        return "--parts needs --suite." if parts else ""
    if suite == "gpu" and own.get("rounds", 1) > 1:
        return "--suite gpu measures everything once; --rounds is not for it."
    known = _SUITES[suite]
    if not set(parts) <= set(known):
        return f"--parts {','.join(parts)}: the parts of --suite {suite} are {', '.join(known)}."
    return ""


def _suite(settings: Settings, own: dict[str, Any], command: str) -> int:
    if own["suite"] == "cpu":
        asked = _measuring({"chats": suite_cpu.CHATS} | own)
        found = suite_cpu.run_cpu_suite(own["shape"], settings, asked, own.get("parts", suite_cpu.PARTS))
        return suite_cpu.tell(found, asked, command, own.get("out"))
    from examples.bench.suite_gpu import CHATS, TOKENS, Suite, run_suite

    suite = Suite(settings, _measuring({"chats": CHATS, "max_tokens": TOKENS} | own), command, own.get("out"))
    return run_suite(suite, own.get("parts", PARTS))


def _measuring(own: dict[str, Any]) -> Measuring:
    return Measuring(**{name: own[name] for name in ("chats", "max_tokens", "rounds") if name in own})


def _compare(parser: OneLineParser, before: Path, after: Path) -> int:
    try:
        sys.stdout.write(comparison(before, after))
    except BadReport as error:
        parser.error(str(error))
    return 0


def _parser(program: str) -> OneLineParser:
    parser = OneLineParser(program, description=_DESCRIPTION)
    what = parser.add_argument_group("what is measured")
    names = "; ".join(f"{name}: {words}" for name, words in SHAPES.items())
    what.add_argument("--shape", choices=SHAPES, help=f"random weights of true sizes, in place of --model. {names}")
    what.add_argument("--chats", type=_counts, metavar="N,N", help="how many chats at once (default: 1,4,8,16)")
    what.add_argument("--max-tokens", type=_count, metavar="N", help="the length of each answer (default: 48)")
    what.add_argument("--rounds", type=_count, metavar="N", help="how often everything is measured (default: 2)")
    what.add_argument(
        "--suite",
        choices=_SUITES,
        help="gpu: everything that is due when a GPU is at hand, from right answers to memory; cpu: int8, the model "
        f"card's way in float32, and llama.cpp, which is installed by: {INSTALL.replace('%', '%%')}",
    )
    known = "; ".join(f"{suite}: {', '.join(parts)}" for suite, parts in _SUITES.items())
    what.add_argument("--parts", type=_parts, metavar="NAME,NAME", help=f"only these parts of the suite. {known}")
    where = parser.add_argument_group("results")
    where.add_argument("--out", type=Path, metavar="FOLDER", help="also write bench.json, bench.md and bench.png there")
    where.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A", "B"), help="run nothing: show B beside A, two runs of --out"
    )
    add_options(parser, ("model",))
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {_MOST}.")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({_count(part) for part in text.split(",")}))


def _parts(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
