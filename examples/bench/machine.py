"""Where a run happened, and what the machine could do at most. torch is imported when a model is looked at."""

import os
import platform
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped]

if TYPE_CHECKING:
    import torch

    from llava_demo.model.llava import Llava

LONG_CHAT = 2048  # tokens
_COPIED_BYTES = 2**28
_PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "flash-attn")


@dataclass(frozen=True)
class Limits:
    """What the weights take and the memory holds, just after loading."""

    weights_bytes: int  # size of the whole model
    read_bytes: int  # for each token of one chat: the language model and its head, without the embeddings
    cache_bytes: int  # keys and values, for each token of a chat
    free_bytes: int  # free memory of the GPU, or of the machine without one
    threads: int  # torch's CPU threads

    @property
    def long_chats(self) -> int:
        """How many chats of LONG_CHAT tokens the free memory holds."""
        return self.free_bytes // (self.cache_bytes * LONG_CHAT)


def limits_of(llava: "Llava") -> Limits:
    import torch

    from llava_demo.engines.batched.attention import CacheShape

    model = llava.model
    parts = [model.get_decoder(), model.get_output_embeddings()]
    embeddings = model.get_input_embeddings()
    read = sum(_bytes(part) for part in parts) - _bytes(embeddings)
    cache = CacheShape.of(model).token_bytes
    is_cuda = model.device.type == "cuda"
    free = torch.cuda.mem_get_info()[0] if is_cuda else psutil.virtual_memory().available
    return Limits(_bytes(model), read, cache, free, torch.get_num_threads())


def about_here() -> dict[str, Any]:
    """Date, processor and versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def most_bytes() -> int:
    """The most memory that this process has held so far: of the GPU where there is one, else of the machine."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def copy_speed() -> float:
    """Bytes read and written a second where models run, the best of five copies."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = torch.ones(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * _COPIED_BYTES / best


def _bytes(part: "torch.nn.Module") -> int:
    return sum(weights.nbytes for weights in (*part.parameters(), *part.buffers()))


def _processor() -> str:
    names = Path("/proc/cpuinfo")
    if names.exists():
        for line in names.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
