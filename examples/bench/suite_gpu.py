"""`bench --suite gpu`: everything that is due on the day a GPU is at hand, as one command with one table at last.

First right answers, then each precision (loading, memory, speed, roofline), then what each setting of the engine gives.
It runs on a CPU as well, where only its own working can be seen. A part that fails is a row that says why.

Nothing of Gradio is imported. A machine without a network needs, beside torch, our versions of transformers,
accelerate, tokenizers, bitsandbytes, Pillow, pi_heif, jinja2, psutil, tqdm, pydantic-settings and annotated-types.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from examples.bench import measures
from examples.bench.figures import FOLLOW_UP, PAUSE, STEP, THROUGHPUT, Measured, equal_answers, figures_of
from examples.bench.machine import LONG_CHAT, about_here
from examples.bench.report import aligned, write
from examples.bench.run import OURS, PLAIN, Measuring, Result, Step, loaded_side, measure, put_through, steps_of
from examples.bench.side import SideFailed, on_the_cpu, our_engine, plain_way
from llava_demo.engines import Engine
from llava_demo.settings import Settings

CHATS = (1, 4, 8, 16, 32)
PRECISIONS = ("4bit", "none")
_TELLING = (THROUGHPUT, FOLLOW_UP, PAUSE)
VARIANTS: dict[str, dict[str, Any]] = {  # what is otherwise in the batched engine's `BatchSize`
    "as it decides by itself": {},
    "no pages shared": {"is_sharing": False},
    **{f"chunks of {tokens} tokens": {"chunk": tokens} for tokens in (64, 128, 256, 512, 1024)},
}
_JSON_NAME, _TABLE_NAME = "suite.json", "suite.md"


@dataclass(frozen=True)
class Row:
    """One finding."""

    part: str
    what: str
    found: str


@dataclass
class Suite:
    """The rows as they come; each is kept at once, so that a machine that is taken away takes nothing with it."""

    settings: Settings
    asked: Measuring
    command: str
    out: Path | None
    rows: list[Row] = field(default_factory=list)

    def add(self, part: str, what: str, found: str) -> None:
        self.rows.append(Row(part, what, found))
        if self.out:
            self.out.mkdir(parents=True, exist_ok=True)
            about = about_here() | {"command": self.command, "asked": asdict(self.asked)}
            written = json.dumps({"about": about, "rows": [asdict(row) for row in self.rows]}, indent=1)
            (self.out / _JSON_NAME).write_text(written + "\n", encoding="utf-8")
            (self.out / _TABLE_NAME).write_text(self.report(), encoding="utf-8")

    def report(self) -> str:
        """Date, versions and command above the table of what was found."""
        about, rows = about_here(), [[row.part, row.what, row.found] for row in self.rows]
        versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
        table = aligned([["part", "what", "found"], *rows], words=3)
        return f"{about['date'][:10]}, {about['processor']}, {versions}.\n\n`{self.command}`\n\n{table}"

    @contextmanager
    def part(self, part: str, what: str) -> Iterator[None]:
        """What fails in the block becomes a row, and the suite goes on."""
        try:
            yield
        except SideFailed as error:
            self.add(part, what, f"failed: {error}")


def run_suite(suite: Suite, parts: tuple[str, ...]) -> int:
    """Run some of PARTS, write the table; returns the exit code, 1 if something failed."""
    for part in parts:
        PARTS[part](suite)
    sys.stdout.write(suite.report())
    return int(any(row.found.startswith("failed") for row in suite.rows))


def _answers(suite: Suite) -> None:
    """The miniature with its trained weights: a GPU must say what a CPU says."""
    settings = suite.settings.model_copy(update={"model": "miniature", "quantize": "none"})
    steps = [Step("answers", measures.crowd, ("the miniature", max(suite.asked.chats), suite.asked.max_tokens))]
    what = "the miniature: answers as the model card's way gives them on a CPU"
    with suite.part("answers", what), _bar(4) as bar, ExitStack() as stack:
        sides = []
        for name, make in ((PLAIN, on_the_cpu), (OURS, our_engine)):
            sides.append(stack.enter_context(loaded_side(name, make, settings, bar)))
        measured = put_through(sides, steps, bar)
        equal, total = equal_answers(measured[PLAIN], measured[OURS])
        suite.add("answers", "device", sides[1].loaded.info.device)
        suite.add("answers", what, f"{equal} of {total} equal")


def _speed(suite: Suite) -> None:
    """Each precision, or the one that was asked for, beside the model card's way."""
    asked = suite.settings.quantize
    for quantize in PRECISIONS if asked == "auto" else (asked,):
        with suite.part("speed", f"--quantize {quantize}"):
            result = measure(suite.settings.model_copy(update={"quantize": quantize}), suite.asked)
            result.about["command"] = suite.command
            for what, found in _findings(result):
                suite.add(result.sides[OURS].info.precision, what, found)
            if suite.out:
                write(result, suite.out / quantize)


def _findings(result: Result) -> Iterator[tuple[str, str]]:
    """What and found, of one precision."""
    ours, limits = result.sides[OURS], result.sides[OURS].limits
    equal, total = result.equal_answers
    yield "answers as the model card's way gives them", f"{equal} of {total} equal"
    yield "loaded in", f"{ours.seconds:.1f} s"
    yield "weights", f"{limits.weights_bytes / 2**30:.2f} GB"
    # The first side was alone on the GPU when it counted, and keeps no memory for a cache.
    yield f"chats of {LONG_CHAT:,} tokens that free memory holds", f"{result.sides[PLAIN].limits.long_chats:,}"
    for figure in result.figures:
        yield figure.words, f"{figure.plain:,.3f} to {figure.ours:,.3f} {figure.unit}, {figure.gain:.2f} x"
    memory, step = result.measured[OURS].memory, next(figure for figure in result.figures if figure.name == STEP)
    if memory and step.plain and step.ours:
        most = memory.bytes_per_s / limits.read_bytes
        yield (
            f"roofline of one chat: {limits.read_bytes / 2**30:.2f} GB a token at {memory.bytes_per_s / 1e9:,.0f} GB/s",
            f"{most:,.0f} tokens/s; reached {1 / step.plain / most:.0%} to {1 / step.ours / most:.0%}",
        )


def _settings(suite: Suite) -> None:
    """The batched engine as it decides by itself, then with one thing otherwise at a time, on the same weights."""
    asked = replace(suite.asked, chats=(1, max(suite.asked.chats)), rounds=1)
    base: Measured | None = None
    with (
        suite.part("settings", "loading"),
        _bar(1 + len(VARIANTS)) as bar,
        loaded_side("batched", plain_way, suite.settings, bar) as side,
    ):
        for name, changes in VARIANTS.items():
            bar.set_description(f"batched: {name}")
            with suite.part("settings", name):
                measured: Measured = side.run(_batched_with, changes, asked, suite.settings.max_queue)
                base = base or measured
                suite.add("settings", name, _told(base, measured))
            bar.update()


async def _batched_with(engine: Engine, changes: dict[str, Any], asked: Measuring, max_queue: int) -> Measured:
    """In the other process: a new batched engine on the weights of `engine`, measured and ended."""
    import torch

    from llava_demo.engines.batched.engine import BatchedEngine
    from llava_demo.engines.batched.memory import batch_size

    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # else what the engine before has given back is counted as taken
    llava = engine.llava  # type: ignore[attr-defined]
    size, _ = batch_size(llava, max(asked.chats))
    batched, measured = BatchedEngine(llava, engine.info, max_queue, replace(size, **changes)), Measured()
    try:
        for step in steps_of(asked):
            result = await step.job(batched, *step.arguments)
            if step.is_kept:
                measured.add(result)
    finally:
        await batched.aclose()
    return measured


def _told(base: Measured, measured: Measured) -> str:
    """What changed, in some telling figures."""
    figures = [figure for figure in figures_of(base, measured) if figure.name in _TELLING]
    return "; ".join(f"{figure.words}: {figure.ours:,.3f} {figure.unit}, {figure.gain:.2f} x" for figure in figures)


def _bar(steps: int) -> "tqdm[Any]":
    return tqdm(total=steps, unit="step", leave=False)


PARTS: dict[str, Callable[[Suite], None]] = {"answers": _answers, "speed": _speed, "settings": _settings}
