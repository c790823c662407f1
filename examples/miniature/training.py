"""Trains the miniature: first the tower learns to see, then the whole model to answer, then to be exact.

A run lives in a folder: `processor/` (made first; a checkpoint keeps its own tokenizer), `vision.pt`, `language.pt` and
`polish.pt` (states after each lesson), `LESSON.part` (where an unfinished lesson stands), `log.jsonl` (the curve). A
killed run goes on from there. A run may begin with what an exported checkpoint knows; it then has no first lesson.
"""

import dataclasses
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from transformers import LlavaForConditionalGeneration

from examples.miniature.answers import NOT_A_DRAWING
from examples.miniature.architecture import ReadOuts, build, patch_features
from examples.miniature.language_training import LanguageLesson, Pace, hidden_states
from examples.miniature.lesson import Lesson, Workers
from examples.miniature.packing import Packer
from examples.miniature.processor import saved_processor
from examples.miniature.questions import Asker
from examples.miniature.scenes import MAX_OBJECTS, World
from examples.miniature.vision_training import teach_vision

VISION = Lesson(minutes=14, rate=1.5e-3, batch=24, seed=1, hold=0.45)
LANGUAGE = Lesson(minutes=45, rate=2e-3, batch=6, seed=5, hold=0.45, warm_up=150)
POLISH = Lesson(minutes=19, rate=1e-3, batch=6, seed=7, hold=0.0)
LESSONS = ("vision", "language", "polish")
_PROCESSOR = ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Run:
    """One training, from nothing or from a checkpoint to a checkpoint."""

    folder: Path
    vision_minutes: float = VISION.minutes
    language_minutes: float = LANGUAGE.minutes
    polish_minutes: float = POLISH.minutes
    processes: int = 2
    after: Path | None = None  # an exported checkpoint to begin with
    port: int = 29611  # on loopback, where the processes meet

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def has_begun(self) -> bool:
        return (self.folder / "processor").exists()

    @property
    def lessons(self) -> tuple[str, ...]:
        return LESSONS[1:] if self.after else LESSONS


def train(run: Run) -> None:
    """Teach the lessons that are not finished, each process on one core; leave the states in `run.folder`."""
    if run.after and not run.has_begun:
        (run.folder / "processor").mkdir(parents=True)
        for name in _PROCESSOR:
            shutil.copy(run.after / name, run.folder / "processor")
    saved_processor(run.folder / "processor")
    for name in run.lessons:
        if (run.folder / f"{name}.pt").exists():
            continue
        if run.processes == 1:
            _teach(0, run, name)
        else:
            torch.multiprocessing.spawn(_teach, (run, name), nprocs=run.processes)


def export(folder: Path, target: Path, caution: float = 0.0, before: Sequence[Path] = ()) -> None:
    """Save what the run in `folder` has learned so far as an ordinary `from_pretrained` folder, in fp16.

    `caution` is added, on average, to the logit of declining where an answer begins. `before` are runs that this one
    went on from: each weight is then the mean of all.
    """
    model, processor = build(), saved_processor(folder / "processor")
    states = [_latest(each) for each in (folder, *before)]
    model.load_state_dict({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
    if caution:
        _make_cautious(model, Packer(processor), caution)
    model.eval().half().save_pretrained(target)
    processor.save_pretrained(target)


@torch.no_grad()
def _make_cautious(model: LlavaForConditionalGeneration, packer: Packer, caution: float) -> None:
    """Turn the row of the head that begins NOT_A_DRAWING towards the mean state in which answers begin.

    A head without biases has no other place for a threshold.
    """
    rng = random.Random(9)
    batch = packer.batch(rng, Asker(rng), World(mix=(0.8, 0.2, 0)), rows=48, pairs=0.0)
    last = hidden_states(model, patch_features(model, batch.pixels), batch)[-1]
    begins = [(row, start) for row, spans in enumerate(batch.spans) for start, _, _ in spans]
    mean = torch.stack([last[row, start] for row, start in begins]).mean(0)
    declining = packer.encode(f" {NOT_A_DRAWING}")[0]
    model.lm_head.weight[declining] += caution * mean / mean.dot(mean)


def _latest(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the last lesson that has begun; of an unfinished one, the running mean."""
    for name in reversed(LESSONS):
        if (folder / f"{name}.pt").exists():
            return torch.load(folder / f"{name}.pt", map_location="cpu")["model"]
        if name != "vision" and (folder / f"{name}.part").exists():
            average = torch.load(folder / f"{name}.part", map_location="cpu")["average"]
            return {key.removeprefix("module."): value for key, value in average.items() if key != "n_averaged"}
    raise FileNotFoundError(f"{folder} has no lesson that answers yet; train it first.")


def _teach(rank: int, run: Run, name: str) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    workers = Workers(rank, run.processes, run.log, run.port)
    model, read_outs, part = build(), ReadOuts(), run.folder / f"{name}.part"
    learned: torch.nn.Module = model
    if name == "vision":
        lesson = dataclasses.replace(VISION, minutes=run.vision_minutes)
        teach_vision(model.to(workers.device), read_outs.to(workers.device), lesson, workers, part)
    else:
        is_new = name == "language" and not run.after
        _remember(run, name, model, read_outs)
        teaching = LanguageLesson(
            name,
            model.to(workers.device),
            read_outs.to(workers.device),
            saved_processor(run.folder / "processor"),
            _lesson(run, name),
            workers,
            Pace() if is_new else Pace(MAX_OBJECTS),
            part,
        )
        teaching.teach()
        learned = teaching.average.module
    if workers.is_first:
        torch.save({"model": learned.state_dict(), "read_outs": read_outs.state_dict()}, run.folder / f"{name}.pt")
        part.unlink(missing_ok=True)


def _remember(run: Run, name: str, model: LlavaForConditionalGeneration, read_outs: ReadOuts) -> None:
    """Load what was known before this lesson; from the first lesson only the tower has learned something."""
    if run.after and name == "language":
        earlier = LlavaForConditionalGeneration.from_pretrained(run.after, dtype=torch.float32)
        model.load_state_dict(earlier.state_dict())
        return
    state: dict[str, Any] = torch.load(run.folder / f"{LESSONS[LESSONS.index(name) - 1]}.pt", map_location="cpu")
    is_vision = name == "language"
    known = {key: weight for key, weight in state["model"].items() if "vision_tower" in key or not is_vision}
    model.load_state_dict(known, strict=not is_vision)
    read_outs.load_state_dict(state["read_outs"])


def _lesson(run: Run, name: str) -> Lesson:
    """How long and how fast to learn in this run; one that begins with a checkpoint learns slowly, from other seeds."""
    lesson, minutes = (LANGUAGE, run.language_minutes) if name == "language" else (POLISH, run.polish_minutes)
    lesson = dataclasses.replace(lesson, minutes=minutes)
    return dataclasses.replace(lesson, rate=POLISH.rate, seed=lesson.seed + 100) if run.after else lesson
