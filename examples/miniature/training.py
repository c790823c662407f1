"""Trains the miniature from nothing: first the tower learns to see, then the whole model to answer, then to be exact.

A run may go on after another one: it begins with what that one knew, and answers about the whole world from the start.
A run lives in a folder: `processor/` (made first; a checkpoint keeps its own tokenizer), `vision.pt`, `language.pt` and
`polish.pt` (states after each lesson), `log.jsonl` (the curve). Lessons whose state is there are not repeated.
"""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.multiprocessing

from examples.miniature.architecture import ReadOuts, build
from examples.miniature.language_training import LanguageLesson, Pace
from examples.miniature.lesson import Lesson, Workers
from examples.miniature.processor import saved_processor
from examples.miniature.scenes import MAX_OBJECTS
from examples.miniature.vision_training import teach_vision

VISION = Lesson(minutes=14, rate=1.5e-3, batch=24, seed=1, hold=0.45)
LANGUAGE = Lesson(minutes=45, rate=2e-3, batch=6, seed=5, hold=0.45, warm_up=150)
POLISH = Lesson(minutes=19, rate=1e-3, batch=6, seed=7, hold=0.0)
LESSONS = ("vision", "language", "polish")


@dataclass(frozen=True)
class Run:
    """One training from nothing to a checkpoint."""

    folder: Path
    vision_minutes: float = VISION.minutes
    language_minutes: float = LANGUAGE.minutes
    polish_minutes: float = POLISH.minutes
    processes: int = 2
    after: Path | None = None  # the folder of an earlier run to go on from
    port: int = 29611  # on loopback, where the processes meet

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"


def train(run: Run) -> None:
    """Teach the lessons, each process on one core, and leave the states in `run.folder`."""
    run.folder.mkdir(parents=True, exist_ok=True)
    if run.after and not (run.folder / "vision.pt").exists():
        shutil.copytree(run.after / "processor", run.folder / "processor")
        shutil.copy(run.after / run.log.name, run.log)
        shutil.copy(run.after / f"{LESSONS[-1]}.pt", run.folder / f"{LESSONS[0]}.pt")
    saved_processor(run.folder / "processor")
    for name in LESSONS:
        if not (run.folder / f"{name}.pt").exists():
            torch.multiprocessing.spawn(_teach, (run, name), nprocs=run.processes)


def export(run: Run, target: Path) -> None:
    """Save what was learned as an ordinary `from_pretrained` folder, in fp16.

    Of a run that went on after another one the weights are the mean of both: it errs less often than either ("Model
    soups", Wortsman et al. 2022, arXiv 2203.05482).
    """
    folders = [run.folder, run.after] if run.after else [run.folder]
    states = [torch.load(folder / f"{LESSONS[-1]}.pt")["model"] for folder in folders]
    model = build()
    model.load_state_dict({name: sum(state[name] for state in states) / len(states) for name in states[0]})
    model.eval().half().save_pretrained(target)
    saved_processor(run.folder / "processor").save_pretrained(target)


def _teach(rank: int, run: Run, name: str) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    workers = Workers(rank, run.processes, run.log, run.port)
    model, read_outs = build(), ReadOuts()
    workers.begin()
    if name == "vision":
        teach_vision(model, read_outs, dataclasses.replace(VISION, minutes=run.vision_minutes), workers)
    else:
        state = torch.load(run.folder / f"{LESSONS[LESSONS.index(name) - 1]}.pt")
        is_new = name == "language" and not run.after
        if is_new:  # of the first lesson only the tower has learned something
            state["model"] = {key: weight for key, weight in state["model"].items() if "vision_tower" in key}
        model.load_state_dict(state["model"], strict=not is_new)
        read_outs.load_state_dict(state["read_outs"])
        pace = Pace() if is_new else Pace(MAX_OBJECTS)
        processor = saved_processor(run.folder / "processor")
        LanguageLesson(name, model, read_outs, processor, _lesson(run, name), workers, pace).teach()
    if workers.is_first:
        state = {"model": model.state_dict(), "read_outs": read_outs.state_dict()}
        torch.save(state, run.folder / f"{name}.pt")


def _lesson(run: Run, name: str) -> Lesson:
    """How long and how fast to learn in this run; one that goes on after another asks with other seeds."""
    lesson, minutes = (LANGUAGE, run.language_minutes) if name == "language" else (POLISH, run.polish_minutes)
    return dataclasses.replace(lesson, minutes=minutes, seed=lesson.seed + (100 if run.after else 0))
