"""What the lessons of training share: how long and how fast, several processes, bookmarks, and the log of the curve.

Minutes are minutes of CPU of one process, so that a busy machine takes longer but does not learn less.
"""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed
from torch import nn

_SAVE_EVERY_S = 120.0  # wall time between two saves


@dataclass(frozen=True)
class Lesson:
    minutes: float  # CPU minutes of one process
    rate: float  # learning rate after the warm-up
    batch: int  # pictures per process and step
    seed: int
    hold: float  # share of the lesson after which the learning rate falls along a cosine
    warm_up: int = 100  # steps

    def set_rate(self, optimizer: torch.optim.Optimizer, step: int, progress: float) -> None:
        """Warm up, hold, fall to 2 %. A group's own `share` scales it."""
        fall = max(0.0, (progress - self.hold) / (1 - self.hold))
        rate = self.rate * min(1.0, (step + 1) / self.warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fall)))
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1.0)


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies matrices faster in bfloat16: GPUs do, and CPUs with its instructions (3.4 times)."""
    return device.type == "cuda" or any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))


class Keeps(Protocol):
    """A module or an optimizer: what a bookmark saves and loads."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class Bookmark:
    """Where a lesson stands, saved at its first step and then every two minutes; a killed run goes on from there."""

    def __init__(self, file: Path, parts: Mapping[str, Keeps]) -> None:
        self._file, self._parts, self._saved_at = file, parts, -math.inf

    def load(self, device: torch.device) -> dict[str, Any]:
        """Load the parts, and return the numbers that were saved with them; none where nothing was saved."""
        if not self._file.exists():
            return {}
        saved = torch.load(self._file, map_location=device)
        for name, part in self._parts.items():
            part.load_state_dict(saved[name])
        return dict(saved["numbers"])

    def save(self, **numbers: float) -> None:
        """Save the parts and these numbers; a kill at any moment leaves the old file or the new one."""
        if time.monotonic() - self._saved_at < _SAVE_EVERY_S:
            return
        self._saved_at, new = time.monotonic(), self._file.with_suffix(".new")
        torch.save({name: part.state_dict() for name, part in self._parts.items()} | {"numbers": numbers}, new)
        new.replace(self._file)


class Workers:
    """The processes that train together: each on its own pictures, all with the mean of their gradients."""

    def __init__(self, rank: int, count: int, log: Path, port: int) -> None:
        self.rank, self.count, self._log = rank, count, log
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._start = time.process_time()
        if count > 1:
            address = f"tcp://127.0.0.1:{port}"
            torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=count)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def seconds(self) -> float:
        """CPU time that the lesson has taken in this process."""
        return time.process_time() - self._start

    def begin(self, seconds: float = 0.0) -> None:
        """A lesson begins now, or goes on after so many seconds."""
        self._start = time.process_time() - seconds

    def progress(self, lesson: Lesson) -> float:
        """Share of the lesson's time that is over, the same number in all processes."""
        share = torch.tensor(self.seconds / (60 * lesson.minutes))
        if self.count > 1:
            torch.distributed.broadcast(share, 0)
        return share.item()

    def mean(self, value: float) -> float:
        tensor = torch.tensor(value)
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
        return tensor.item() / self.count

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if self.count == 1:
            return
        flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        at = 0
        for p in parameters:
            p.grad = flat[at : at + p.numel()].view_as(p)
            at += p.numel()

    def report(self, lesson: str, step: int, progress: float, row: dict[str, float]) -> None:
        """Append a line to the log and show it; the first process only."""
        if not self.is_first:
            return
        minutes = round(self.seconds / 60, 2)
        line = {"lesson": lesson, "minutes": minutes, "step": step, "progress": round(progress, 4)}
        line |= {name: round(value, 4) for name, value in row.items()}
        with self._log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        shown = "  ".join(f"{name} {value}" for name, value in line.items() if name not in ("lesson", "progress"))
        sys.stdout.write(f"{lesson} {progress:4.0%}  {shown}\n")
        sys.stdout.flush()
