"""Which checkpoint `--model` means on this machine, whether it is available, and how large it is. Loads nothing."""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llava_demo.errors import EngineUnavailable
from llava_demo.model import MINIATURE

if TYPE_CHECKING:
    from llava_demo.model.device import Hardware

LLAVA_7B = "llava-hf/llava-1.5-7b-hf"
LLAVA_7B_BYTES = 6 * 2**30  # in 4 bits with one conversation: 4.5 GiB of weights, CUDA's own memory, and the cache
LLAVA_7B_ON_CPU = "about 9 GB of free memory, a download of 14 GB, and 5 tokens a second on two cores"
SMALL_LLAVA = "llava-hf/llava-interleave-qwen-0.5b-hf"
SMALL_LLAVA_BYTES = 4 * 2**30  # in 8 bits with 16 conversations
HUB_TIMEOUT_S = 5.0
WEIGHTS = ("*.safetensors", "*.bin")  # the second only where the first is missing


@dataclass(frozen=True)
class Checkpoint:
    """What to load: a Hub id or a folder, as transformers takes it, and why this one was chosen."""

    source: str
    reason: str
    is_local: bool = True  # the Hub is not asked
    nbytes: int | None = None  # size of the weights, if it is known

    @property
    def is_miniature(self) -> bool:
        return self.source == str(MINIATURE)

    @property
    def name(self) -> str:
        """Its name for people; of a folder never the whole path."""
        if self.is_miniature:
            return "miniature"
        return Path(self.source).name if Path(self.source).is_dir() else self.source


def chosen_checkpoint(model: str, hardware: "Hardware") -> Checkpoint:
    """What `--model` means on this machine.

    Raises:
        EngineUnavailable: the folder holds no checkpoint, or the id is neither on the Hub nor in the Hub's cache here.
    """
    if model == "auto":
        return _automatic(hardware)
    if model == "miniature":
        return miniature("The built-in miniature, as asked.")
    if Path(model).is_dir():
        folder = Path(os.path.abspath(model))  # noqa: PTH100, `resolve` would name the target of a link
        if not (folder / "config.json").is_file():
            raise EngineUnavailable(f"The folder {folder.name} has no config.json: it is no checkpoint.")
        return Checkpoint(str(folder), "The checkpoint in this folder, as asked.", nbytes=_weight_bytes(folder))
    return _on_hub(model, f"{model}, as asked.")


def miniature(reason: str) -> Checkpoint:
    """The model that is always there."""
    return Checkpoint(str(MINIATURE), reason, nbytes=_weight_bytes(MINIATURE))


def instead_of(checkpoint: Checkpoint, error: Exception) -> Checkpoint:
    """The model that replaces a checkpoint of our own choice that could not be loaded."""
    return miniature(f"The built-in miniature, since {checkpoint.name} failed: {error}")


def kept_copy(checkpoint: Checkpoint, folder: str | None) -> Path | None:
    """The place in `folder` of the 8-bit copy of exactly these files; None without a folder."""
    if folder is None:
        return None
    files = files_of(checkpoint).glob("*.*")
    facts = [(file.name, file.resolve().name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
    fingerprint = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return Path(folder) / f"{Path(checkpoint.name).name}-int8-{fingerprint}"


def files_of(checkpoint: Checkpoint) -> Path:
    """The folder with those files of a checkpoint that are on this machine."""
    if Path(checkpoint.source).is_dir():
        return Path(checkpoint.source)
    from huggingface_hub import try_to_load_from_cache

    return Path(str(try_to_load_from_cache(checkpoint.source, "config.json"))).parent


def _automatic(hardware: "Hardware") -> Checkpoint:
    if hardware.has_gpu:
        return _automatic_on_gpu(hardware)
    from llava_demo.model.ram import free_ram

    why = hardware.why_no_gpu
    better = f"LLaVA-1.5-7B, too, runs without a GPU, with --model {LLAVA_7B}: {LLAVA_7B_ON_CPU}."
    free = free_ram()
    if free < SMALL_LLAVA_BYTES:
        needed = SMALL_LLAVA_BYTES / 2**30
        return miniature(
            f"The built-in miniature: {why}, and {free / 2**30:.1f} GB of memory are free; {SMALL_LLAVA} needs "
            f"{needed:.0f}."
        )
    try:
        return _on_hub(SMALL_LLAVA, f"{SMALL_LLAVA}, the largest that is pleasant on a CPU: {why}. {better}")
    except EngineUnavailable as error:
        return miniature(f"The built-in miniature: {why}, and {error} Where the Hub can be reached: {better}")


def _automatic_on_gpu(hardware: "Hardware") -> Checkpoint:
    if hardware.free_bytes < LLAVA_7B_BYTES:
        free = hardware.free_bytes / 2**30
        return miniature(f"The built-in miniature: {free:.1f} GB of the GPU are free; LLaVA-1.5-7B needs 6.")
    try:
        return _on_hub(LLAVA_7B, "LLaVA-1.5-7B, since there is a CUDA GPU with room for it.")
    except EngineUnavailable as error:
        return miniature(f"The built-in miniature: {error} Restart when the Hub can be reached.")


def _on_hub(model: str, reason: str) -> Checkpoint:
    """Ask the Hub twice, briefly: transformers 5.23 would try for minutes, 5 times per file, before it gives up."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, RepositoryNotFoundError

    try:
        is_here = isinstance(try_to_load_from_cache(model, "config.json"), str)
        get_hf_file_metadata(hf_hub_url(model, "config.json"), timeout=HUB_TIMEOUT_S)
        return Checkpoint(model, reason, is_local=False, nbytes=_hub_weight_bytes(model))
    except HFValidationError as error:
        raise EngineUnavailable(f"{model} is neither a folder nor a Hub id (owner/name).") from error
    except RepositoryNotFoundError as error:
        raise EngineUnavailable(
            f"{model} is no folder here and not on the Hub, unless it needs a login (HF_TOKEN)."
        ) from error
    except EntryNotFoundError as error:
        raise EngineUnavailable(f"{model} on the Hub has no config.json: it is no checkpoint.") from error
    except (HTTPError, OSError) as error:
        if not is_here:
            raise EngineUnavailable(
                f"{model} is no folder here, was never loaded from the Hub, and the Hub cannot be reached."
            ) from error
    here = Checkpoint(model, f"{reason} The Hub cannot be reached now; this is the copy that was loaded before.")
    return replace(here, nbytes=_weight_bytes(files_of(here)))


def _hub_weight_bytes(model: str) -> int | None:
    from huggingface_hub import HfApi

    files = HfApi().model_info(model, files_metadata=True, timeout=HUB_TIMEOUT_S).siblings or []
    return _summed({file.rfilename: file.size or 0 for file in files})


def _weight_bytes(folder: Path) -> int | None:
    return _summed({file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()})


def _summed(sizes: dict[str, int]) -> int | None:
    for pattern in WEIGHTS:
        found = [size for name, size in sizes.items() if Path(name).match(pattern) and "/" not in name]
        if found:
            return sum(found) or None
    return None
