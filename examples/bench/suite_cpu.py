"""`bench --suite cpu`: what a person without a GPU can choose from, one after the other, in one table.

Our engine in 8-bit integers, the model card's way in float32, and llama.cpp in 8 and 4 bits where it is installed. Each
has the machine and its memory to itself. A side that cannot be had is a column that says why.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

from tqdm import tqdm

from examples.bench import measures
from examples.bench.figures import Measured
from examples.bench.gguf_files import QUANTIZATIONS
from examples.bench.llama_cpp import INSTALL, llama_cpp_way
from examples.bench.machine import about_here
from examples.bench.report import aligned
from examples.bench.run import Measuring, Step, loaded_side
from examples.bench.side import Maker, SideFailed, our_engine, plain_way
from llava_demo.settings import Settings

CHATS = (1, 8, 16)
OURS, PLAIN = "ours", "plain"
PARTS = (OURS, PLAIN, *QUANTIZATIONS)
_WAYS = {OURS: "batched engine", PLAIN: "model card's way"}
_ALONE, _JSON_NAME, _TABLE_NAME = 1, "suite.json", "suite.md"


@dataclass(frozen=True)
class Found:
    """A column of the table; `failure` where there is none."""

    part: str
    title: str
    measured: Measured
    failure: str = ""


def run_cpu_suite(shape: str, settings: Settings, asked: Measuring, parts: tuple[str, ...]) -> list[Found]:
    """Measure some of PARTS, one after the other; `settings.model` is a checkpoint of `shape`."""
    folder = Path(settings.model).parent
    with tqdm(total=len(parts) * (1 + len(_steps(asked, OURS))), unit="step", leave=False) as bar:
        return [_measured(part, _maker(part, shape, folder), settings, asked, bar) for part in parts]


def table(found: list[Found], asked: Measuring) -> str:
    """The figures, a row each, a column for each side."""
    rows = [["", *(column.title for column in found)]]
    for name, figure in _figures(asked.chats).items():
        rows.append([name, *(figure(column.measured) if not column.failure else "" for column in found)])
    failures = "".join(f"\n{column.title}: {column.failure}\n" for column in found if column.failure)
    return aligned(rows) + failures


def report(found: list[Found], asked: Measuring, command: str) -> str:
    """Date, processor, versions and command above the table."""
    about = about_here()
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
    where = f"{about['date'][:10]}, {about['processor']}, {about['cores']} cores, {versions}"
    length = f"answers of {asked.max_tokens} tokens, rounds: {asked.rounds}"
    return f"{where}; {length}.\n\n`{command}`\n\n{table(found, asked)}"


def tell(found: list[Found], asked: Measuring, command: str, out: Path | None) -> int:
    """Print the report and keep it in `out`; returns the exit code, 1 if a side failed."""
    text = report(found, asked, command)
    sys.stdout.write(text)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        columns = [
            {"part": column.part, "title": column.title, "failure": column.failure} | asdict(column.measured)
            for column in found
        ]
        about = about_here() | {"command": command} | asdict(asked)
        (out / _JSON_NAME).write_text(json.dumps({"about": about, "sides": columns}, indent=1) + "\n", encoding="utf-8")
        (out / _TABLE_NAME).write_text(text, encoding="utf-8")
    return int(any(column.failure for column in found))


def _maker(part: str, shape: str, folder: Path) -> Maker:
    if part == OURS:
        return our_engine
    return plain_way if part == PLAIN else partial(llama_cpp_way, shape, part, folder)


def _measured(part: str, make: Maker, settings: Settings, asked: Measuring, bar: "tqdm[None]") -> Found:
    title, measured = f"llama.cpp {part}" if part in QUANTIZATIONS else part, Measured()
    if part in QUANTIZATIONS and not all(map(importlib.util.find_spec, ("llama_cpp", "gguf"))):
        return Found(part, title, measured, f"it is not installed; {INSTALL}")
    try:
        with loaded_side(part, make, settings, bar) as side:
            if part not in QUANTIZATIONS:
                title = f"{side.loaded.info.precision}, {_WAYS[part]}"
            for step in _steps(asked, part):
                bar.set_description(f"{part}: {step.words}")
                result = side.run(step.job, *step.arguments)
                if step.is_kept:
                    measured.add(result)
                bar.update()
    except SideFailed as error:
        return Found(part, title, measured, str(error))
    return Found(part, title, measured)


def _steps(asked: Measuring, part: str) -> list[Step]:
    """The model card's way answers one question after the other: a crowd would only make it wait."""
    crowds = asked.chats if part != PLAIN else (_ALONE,)
    steps = [Step("warming up", measures.crowd, ("warm-up", 1, measures.SHORT), is_kept=False)]
    for number in range(asked.rounds):
        for chats in crowds:
            label = f"round {number + 1}, {chats} at once"
            steps.append(Step(label, measures.crowd, (label, chats, asked.max_tokens)))
    return [*steps, Step("memory", measures.memory)]


def _figures(chats: tuple[int, ...]) -> dict[str, Callable[[Measured], str]]:
    rows: dict[str, Callable[[Measured], str]] = {"first token of a new picture, alone": _first_token}
    for count in chats:
        rows[f"{count} at once: tokens/s while all are answered"] = partial(_decoding, count)
        rows[f"{count} at once: tokens/s with reading their pictures"] = partial(_overall, count)
    rows["most memory"] = lambda measured: f"{measured.memory.most_bytes / 2**30:.1f} GB" if measured.memory else ""
    return rows


def _first_token(measured: Measured) -> str:
    firsts = [first.seconds for crowd in measured.crowds.get(_ALONE, []) for first in crowd.firsts]
    return f"{median(firsts):.2f} s" if firsts else ""


def _decoding(chats: int, measured: Measured) -> str:
    crowds = measured.crowds.get(chats, [])
    return f"{chats / median(crowd.step_s for crowd in crowds):.1f}" if crowds else ""


def _overall(chats: int, measured: Measured) -> str:
    crowds = measured.crowds.get(chats, [])
    return f"{sum(crowd.tokens for crowd in crowds) / sum(crowd.seconds for crowd in crowds):.1f}" if crowds else ""
