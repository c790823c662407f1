"""`bench --suite gpu`: everything that is due on the day a GPU is at hand, as one command with one table at last.

First right answers, then each precision (speed, roofline, kernels), then what each setting of the engine gives. Every
part takes less than two minutes on a 7B; `generate` is asked few chats for that. The suite runs on a CPU as well, where
only its own working can be seen. A part that fails is a row that says why.

Neither Gradio nor matplotlib is imported. A machine without a network needs, beside torch, our versions of
transformers, accelerate, tokenizers, bitsandbytes, Pillow, pi_heif, jinja2, psutil, tqdm, pydantic-settings,
annotated-types, llguidance and prometheus_client.
"""

import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from examples.bench import gpu_jobs, measures
from examples.bench.figures import FOLLOW_UP, NEW_PICTURE, THROUGHPUT
from examples.bench.gpu_jobs import Way
from examples.bench.machine import about_here
from examples.bench.report import aligned
from examples.bench.run import Measuring
from examples.bench.side import Maker, Side, SideFailed, our_engine, plain_way
from llava_demo.settings import Settings

CHATS = (1, 4, 16, 32, 64)
TOKENS = 32  # per answer
SLOW_CHATS = 4  # at most at once of `generate`, which needs a minute for 16
PRECISIONS = ("4bit", "none")
NEWCOMER_AMONG = 16  # chats, or as many as were asked for
VARIANTS: dict[str, dict[str, Any]] = {  # what is otherwise in the batched engine; see `gpu_jobs.batched_with`
    "as it decides by itself": {},
    "no graphs": {"has_graphs": False},
    "no pages shared": {"is_sharing": False},
    **{f"chunks of {tokens} tokens": {"chunk": tokens} for tokens in (256, 512)},
}
# Which part of the model card's way is slow? Each but the first has one thing otherwise than the one that it names.
WAYS: dict[str, Way] = {
    "next token, main thread": Way(),
    "next token, main thread, the same answer again": Way(is_again=True),
    "next token, main thread, without cuDNN's attention": Way(has_cudnn=False),
    "next token, main thread, a streamer that only waits": Way(has_streamer=True),
    "next token, a fresh thread": Way(is_fresh_thread=True),
    "next token, a fresh thread, the same answer again": Way(is_fresh_thread=True, is_again=True),
    "next token, a fresh thread, without cuDNN's attention": Way(is_fresh_thread=True, has_cudnn=False),
}
TURNS = "next token, threads that take turns after 0.1 ms"
NOTE = (
    "Bare is `generate` in the main thread; the model card's way is `generate` in a fresh thread with a streamer. On "
    "an H200 the latter took 94 ms a token, the former 26 to 35 for lengths that it had seen before (2026-11-26). By "
    "its source torch prefers cuDNN's attention on Hopper, and keeps its plans by thread and by length of keys: each "
    "token in a fresh thread waits for a plan. That this is the cause was not measured. It is if a fresh thread is as "
    "fast as the main one without cuDNN's attention and with the same answer again; if short turns help, threads wait "
    "for Python's lock. On a CPU, with 11.5 ms a token of many small operations, neither thread nor streamer cost "
    "anything; another thread at work in Python did (96 ms)."
)
_JSON_NAME, _TABLE_NAME = "suite.json", "suite.md"


@dataclass(frozen=True)
class Row:
    """One finding, for each side that was asked."""

    part: str
    what: str
    ours: str = ""
    card: str = ""
    bare: str = ""


@dataclass
class Suite:
    """The rows as they come; each is kept at once, so that a machine that is taken away takes nothing with it."""

    settings: Settings
    asked: Measuring
    command: str
    out: Path | None
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        sys.stderr.write(" · ".join(text for text in asdict(row).values() if text) + "\n")
        if self.out:
            self.out.mkdir(parents=True, exist_ok=True)
            about = about_here() | {"command": self.command, "asked": asdict(self.asked)}
            written = json.dumps({"about": about, "rows": [asdict(row) for row in self.rows]}, indent=1)
            (self.out / _JSON_NAME).write_text(written + "\n", encoding="utf-8")
            (self.out / _TABLE_NAME).write_text(self.report(), encoding="utf-8")

    def report(self) -> str:
        """Date, versions and command above the table of what was found."""
        about, rows = about_here(), [[row.part, row.what, row.bare, row.card, row.ours] for row in self.rows]
        versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
        table = aligned([["part", "what", "bare generate", "model card's way", "ours"], *rows], words=5)
        heading = f"{about['date'][:10]}, {about['processor']}, {versions}."
        return f"{heading}\n\n`{self.command}`\n\n{table}\n{NOTE}\n"

    def add_found(self, part: str, make: Maker, find: Callable[[Side], Iterable[Row]], **changes: str) -> None:
        """What is found in a process of its own; what fails there becomes a row, and the suite goes on."""
        try:
            with Side(part, make, self.settings.model_copy(update=changes)) as side:
                for row in find(side):
                    self.add(row)
        except SideFailed as error:
            self.add(Row(part, "failed", str(error)))


def run_suite(suite: Suite, parts: tuple[str, ...]) -> int:
    """Run some of PARTS, write the table; returns the exit code, 1 if something failed."""
    for part in parts:
        PARTS[part](suite)
    sys.stdout.write(suite.report())
    return int(any(row.what == "failed" for row in suite.rows))


def _answers(suite: Suite) -> None:
    """The miniature with its trained weights: a GPU must say what a CPU says."""
    miniature = {"model": "miniature", "quantize": "none"}

    def found(side: Side) -> Iterator[Row]:
        settings = suite.settings.model_copy(update=miniature)
        equal, total = side.run(gpu_jobs.equal_to_a_cpu, settings, max(suite.asked.chats), suite.asked.max_tokens)
        yield Row("answers", "the miniature's, equal to those of `generate` on a CPU", f"{equal} of {total}")
        yield Row("answers", "device", side.loaded.info.device)

    suite.add_found("answers", our_engine, found, **miniature)


def _speed(suite: Suite) -> None:
    """Each precision, or the one that was asked for: ours, the model card's way and bare `generate` on one model."""

    def found(side: Side) -> Iterator[Row]:
        for what, cells in _findings(side, suite.asked):
            yield Row(side.loaded.info.precision, what, **cells)

    asked = suite.settings.quantize
    for quantize in PRECISIONS if asked == "auto" else (asked,):
        suite.add_found(f"--quantize {quantize}", our_engine, found, quantize=quantize)


def _findings(side: Side, asked: Measuring) -> Iterator[tuple[str, dict[str, str]]]:
    """What was found, and the cells of its row."""
    limits, tokens = side.loaded.limits, asked.max_tokens
    yield "loaded, ready to answer", {"ours": f"{side.loaded.seconds:.1f} s"}
    yield from ((reason, {}) for reason in side.loaded.info.reasons)
    yield "weights", {"ours": f"{limits.weights_bytes / 2**30:.2f} GB"}
    first = side.run(measures.crowd, "first", 1, measures.SHORT).firsts[0]
    yield "first token of the first answer", {"ours": _ms(first.seconds)}
    apart = side.run(gpu_jobs.apart_from_generate, min(max(asked.chats), NEWCOMER_AMONG))
    yield "log-probabilities, furthest from `generate`'s", {"ours": f"{apart:.4f}"}
    _card(side)(measures.crowd, "warm-up", 2, measures.SHORT)
    steps, equal = dict[str, float](), list[bool]()
    for chats in asked.chats:
        crowds = {"ours": side.run(measures.crowd, f"{chats} chats", chats, tokens)}
        if chats <= SLOW_CHATS:
            crowds["card"] = _card(side)(measures.crowd, f"{chats} chats", chats, tokens)
            equal += map(str.__eq__, crowds["ours"].texts, crowds["card"].texts)
        for name, crowd in crowds.items():
            steps.setdefault(name, crowd.step_s)
        yield f"{THROUGHPUT}, {chats} at once", {name: _speed_of(crowd) for name, crowd in crowds.items()}
    yield "answers that are those of the model card's way", {"ours": f"{sum(equal)} of {len(equal)}"}
    bare = {what: side.run(gpu_jobs.bare, what, tokens, way) for what, way in WAYS.items()}
    first_s, steps["bare"] = bare[next(iter(WAYS))]
    yield from ((what, {"bare": _ms(step_s)}) for what, (_, step_s) in bare.items())
    yield TURNS, {"card": _ms(side.run(gpu_jobs.in_short_turns, "turns", tokens))}
    yield "next token of one chat", {name: _ms(seconds) for name, seconds in steps.items()}
    memory = side.run(measures.memory)
    most = memory.bytes_per_s / limits.read_bytes
    what = f"of the roofline: {limits.read_bytes / 2**30:.2f} GB a token at {memory.bytes_per_s / 1e9:,.0f} GB/s"
    yield what, {name: f"{1 / seconds / most:.1%}" for name, seconds in steps.items() if seconds}
    card, ours = (ask(measures.visits, "visits", tokens) for ask in (_card(side), side.run))
    yield NEW_PICTURE, {"bare": _ms(first_s), "card": _ms(card.new.seconds), "ours": _ms(ours.new.seconds)}
    yield FOLLOW_UP, {"card": _ms(card.follow_up.seconds), "ours": _ms(ours.follow_up.seconds)}
    asked_again = {"card": _ms(card.another_user.seconds), "ours": _ms(ours.another_user.seconds)}
    yield "first token, another user's question on it", asked_again
    among = min(max(asked.chats), NEWCOMER_AMONG)
    newcomer = side.run(measures.newcomer, "newcomer", 4 * tokens, among)
    yield f"longest pause of {among} chats as one more comes", {"ours": _ms(newcomer.worst_s)}
    yield "first token of the one that comes", {"ours": _ms(newcomer.first.seconds)}
    yield "a step of one chat", {"bare": _work(side.run(gpu_jobs.work_of_generate, tokens))}
    for chats in asked.chats:
        yield f"a step, {chats} at once", {"ours": _work(side.run(gpu_jobs.work, f"work {chats}", chats, tokens))}
    yield "most memory", {"ours": f"{memory.most_bytes / 2**30:.2f} GB"}


def _settings(suite: Suite) -> None:
    """The batched engine as it decides by itself, then with one thing otherwise at a time, on the same weights."""

    def found(side: Side) -> Iterator[Row]:
        texts: tuple[str, ...] = ()
        for name, changes in VARIANTS.items():
            crowd, visits, newcomer = side.run(gpu_jobs.batched_with, changes, suite.asked, suite.settings.max_queue)
            texts = texts or crowd.texts
            words = (
                f"{_speed_of(crowd)} with {len(texts)} at once, {sum(map(str.__eq__, texts, crowd.texts))} of them the "
                f"same answers; next question {_ms(visits.follow_up.seconds)}; a newcomer's pause "
                f"{_ms(newcomer.worst_s)}"
            )
            yield Row("settings", name, words)

    suite.add_found("settings", plain_way, found)


def _card(side: Side) -> Callable[..., Any]:
    """Asks the model card's way for what `side.run` asks ours."""

    def ask(job: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        return side.run(gpu_jobs.by_the_card, job, *arguments)

    return ask


def _speed_of(crowd: measures.Crowd) -> str:
    return f"{crowd.tokens / crowd.seconds:,.1f} tokens/s"


def _work(work: gpu_jobs.Work) -> str:
    return f"{work.launches:,.0f} launches, {work.kernels:,.0f} kernels, {work.kernel_s * 1e3:.2f} ms of them"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


# The names stand in `command`, too, which must answer before torch is imported.
PARTS: dict[str, Callable[[Suite], None]] = {"answers": _answers, "speed": _speed, "settings": _settings}
