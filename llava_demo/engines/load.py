"""`load_engine`: from settings to an engine that answers. Decides the checkpoint; importing it costs nothing."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llava_demo.engines import Engine, EngineInfo
from llava_demo.engines.loading import LoadingEngine, Report
from llava_demo.errors import EngineUnavailable
from llava_demo.model import MINIATURE
from llava_demo.settings import SettingError, Settings

if TYPE_CHECKING:
    import torch

    from llava_demo.model.device import Hardware, Plan
    from llava_demo.model.llava import Llava

LLAVA_7B = "llava-hf/llava-1.5-7b-hf"
LLAVA_7B_BYTES = 6 * 2**30  # in 4-bit with one conversation: 4.5 GiB of weights, CUDA's own and the cache of keys
HUB_TIMEOUT_S = 5.0
BATCHED_ATTENTION = "SDPA on pages"
TEXT_AND_ANSWER_TOKENS = 512  # of the context that pictures leave free

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What is to be loaded: a Hub id or a folder, as transformers takes it, and why it is this one."""

    source: str
    reason: str
    is_local: bool = True  # nothing is asked of the Hub

    @property
    def is_miniature(self) -> bool:
        return self.source == str(MINIATURE)

    @property
    def name(self) -> str:
        """For people: never the path of a folder, only its name."""
        if self.is_miniature:
            return "miniature"
        return Path(self.source).name if Path(self.source).is_dir() else self.source


def load_engine(settings: Settings) -> Engine:
    """Load what `settings` ask for; takes seconds for the miniature, minutes for a first download.

    torch and transformers are imported here, where a model is loaded, so that importing this module is cheap.

    Raises:
        EngineUnavailable: the checkpoint cannot be had or loaded; the message says why.
        SettingError: other servers are to answer, and none is named; or batches are wanted on ZeroGPU.
    """
    engine = engine_at_once(settings)
    return engine.loaded() if isinstance(engine, LoadingEngine) else engine


def engine_at_once(settings: Settings) -> Engine:
    """As `load_engine`, but where a model is loaded, a `LoadingEngine` stands for it as soon as its sizes are known.

    The thread in which it is loaded ends, and with it the threads of OpenMP that it brought. Those of the main thread
    would stay, and as soon as there are more than cores libgomp sends them all to sleep between two products: 8 % of an
    answer's time.

    Raises:
        EngineUnavailable: it is known already that it cannot be loaded.
        SettingError: as above.
    """
    if settings.is_remote:
        from llava_demo.engines.remote import remote_engine

        return remote_engine(settings)
    if settings.is_zero_gpu:
        if settings.engine == "batched":
            raise SettingError("Engine batched cannot run on ZeroGPU, which lends a GPU for one answer; leave it auto.")
        import llava_demo.engines.zero_gpu  # noqa: F401, first: `spaces` makes it look as if the GPU were there
    from llava_demo.model.device import Hardware, Weights, Wishes, planned
    from llava_demo.model.llava import Llava

    hardware = Hardware.found()
    checkpoint = chosen_checkpoint(settings.model, hardware)
    wishes = Wishes(settings.quantize, settings.dtype, settings.attention)
    plan = planned(wishes, hardware, Weights(_stored_dtype(checkpoint), checkpoint.is_miniature))
    load = partial(_loaded, checkpoint, plan, settings)
    if settings.is_zero_gpu:  # which must see the engine before the page is launched
        return load(lambda _: None)
    with _failures_named(checkpoint):
        sketch = Llava.sketch(checkpoint.source, settings.image_mode, checkpoint.is_local)
    info = _info(sketch, checkpoint, plan, settings)
    if settings.engine != "generate":
        info = replace(info, engine="batched", attention=BATCHED_ATTENTION)
    return LoadingEngine(info, load, sketch.seen, settings.max_queue)


def _loaded(checkpoint: Checkpoint, plan: "Plan", settings: Settings, report: Report) -> Engine:
    started = time.monotonic()
    _log.info("loading %s on %s, %s", checkpoint.name, plan.hardware.name, plan.precision)
    llava = _load(checkpoint, plan, settings, report)
    info = _info(llava, checkpoint, plan, settings)
    _log.info("loaded %s in %.1f s", checkpoint.name, time.monotonic() - started)
    report("starting the engine")
    if settings.is_zero_gpu:
        return _on_zero_gpu(llava, info, settings)
    return _batched(llava, info, settings) if settings.engine != "generate" else _generate(llava, info, settings)


def _on_zero_gpu(llava: "Llava", info: EngineInfo, settings: Settings) -> Engine:
    from llava_demo.engines.zero_gpu import ZeroGpuEngine

    words = "Engine generate: ZeroGPU lends a GPU for one answer at a time, so that there is nothing to batch."
    reasons = (*info.reasons, words)
    return ZeroGpuEngine(llava, replace(info, device="ZeroGPU", reasons=reasons), settings.max_queue)


def _batched(llava: "Llava", info: EngineInfo, settings: Settings) -> Engine:
    """The batched engine; where it cannot run, `generate` if the choice was left to us."""
    import torch

    from llava_demo.engines.batched.engine import BatchedEngine
    from llava_demo.engines.batched.memory import batch_size

    try:
        size, words = batch_size(llava, settings.max_concurrent)
        batched = replace(info, engine="batched", attention=BATCHED_ATTENTION, reasons=(*info.reasons, words))
        return BatchedEngine(llava, batched, settings.max_queue, size)
    except (EngineUnavailable, ValueError, torch.OutOfMemoryError) as error:
        _log.debug("no batching", exc_info=True)
        reason = "too little memory is free" if isinstance(error, torch.OutOfMemoryError) else str(error).rstrip(".")
        if settings.engine == "batched":
            raise EngineUnavailable(f"Questions cannot be answered in batches here: {reason}.") from error
        words = f"One question at a time, by generate, since batching cannot run here: {reason}."
        _log.warning(words)
        return _generate(llava, replace(info, reasons=(*info.reasons, words)), settings)


def _generate(llava: "Llava", info: EngineInfo, settings: Settings) -> Engine:
    from llava_demo.engines.generate import GenerateEngine

    return GenerateEngine(llava, info, settings.max_queue)


def chosen_checkpoint(model: str, hardware: "Hardware") -> Checkpoint:
    """What `--model` means on this machine.

    Raises:
        EngineUnavailable: a Hub id was asked for, and it is neither on the Hub, as far as it can be reached, nor here.
    """
    if model == "auto":
        return _automatic(hardware)
    if model == "miniature":
        return Checkpoint(str(MINIATURE), "The built-in miniature, as asked.")
    if Path(model).is_dir():
        return Checkpoint(model, "The checkpoint in this folder, as asked.")
    return _on_hub(model, f"{model}, as asked.")


def _automatic(hardware: "Hardware") -> Checkpoint:
    how = f"For the real one: a machine with an NVIDIA GPU, or --model {LLAVA_7B} (28 GB of memory, and slow)."
    if not hardware.has_gpu:
        return Checkpoint(str(MINIATURE), f"The built-in miniature, since there is no CUDA GPU. {how}")
    if hardware.free_bytes < LLAVA_7B_BYTES:
        free = hardware.free_bytes / 2**30
        return Checkpoint(
            str(MINIATURE), f"The built-in miniature: {free:.1f} GB of the GPU are free; LLaVA-1.5-7B needs 6. {how}"
        )
    try:
        return _on_hub(LLAVA_7B, "LLaVA-1.5-7B, since there is a CUDA GPU with room for it.")
    except EngineUnavailable as error:
        return Checkpoint(str(MINIATURE), f"The built-in miniature: {error} Restart when the Hub can be reached.")


def _on_hub(model: str, reason: str) -> Checkpoint:
    """One short question to the Hub: transformers would try for minutes before it gives up (5.23: 5 times a file)."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, RepositoryNotFoundError

    try:
        is_here = isinstance(try_to_load_from_cache(model, "config.json"), str)
        get_hf_file_metadata(hf_hub_url(model, "config.json"), timeout=HUB_TIMEOUT_S)
    except HFValidationError as error:
        raise EngineUnavailable(f"{model} is neither a folder nor a Hub id (owner/name).") from error
    except RepositoryNotFoundError as error:
        raise EngineUnavailable(
            f"{model} is no folder here and not on the Hub, unless it needs a login (HF_TOKEN)."
        ) from error
    except EntryNotFoundError as error:
        raise EngineUnavailable(f"{model} on the Hub has no config.json: it is no checkpoint.") from error
    except (HTTPError, OSError) as error:
        if is_here:
            return Checkpoint(model, f"{reason} The Hub cannot be reached; this is the copy that was loaded before.")
        raise EngineUnavailable(
            f"{model} is no folder here, was never loaded from the Hub, and the Hub cannot be reached."
        ) from error
    return Checkpoint(model, reason, is_local=False)


def _stored_dtype(checkpoint: Checkpoint) -> "torch.dtype | None":
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(checkpoint.source, local_files_only=checkpoint.is_local).dtype
    except (OSError, ValueError) as error:
        raise EngineUnavailable(f"{checkpoint.name} is no checkpoint that transformers can read.") from error


def _load(checkpoint: Checkpoint, plan: "Plan", settings: Settings, report: Report) -> "Llava":
    import torch

    from llava_demo.engines.progress import fetch, weights_told
    from llava_demo.model.llava import Llava

    if checkpoint.is_miniature and not plan.hardware.has_gpu:
        # For matrices this small a second thread costs more than it does: 15 ms a step of 8 chats in place of 6 (on two
        # cores that had other work, too).
        torch.set_num_threads(1)
    with _failures_named(checkpoint), weights_told(report):
        if not checkpoint.is_local:
            fetch(checkpoint.source, report)
        return Llava.load(checkpoint.source, plan, settings.image_mode, is_local=checkpoint.is_local)


@contextmanager
def _failures_named(checkpoint: Checkpoint) -> Iterator[None]:
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineUnavailable(f"The GPU has too little free memory for {checkpoint.name}.") from error
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        _log.debug("loading failed", exc_info=True)
        raise EngineUnavailable(f"{checkpoint.name} could not be loaded: {error}") from error


def _info(llava: "Llava", checkpoint: Checkpoint, plan: "Plan", settings: Settings) -> EngineInfo:
    fitting = max(1, (llava.context_tokens - TEXT_AND_ANSWER_TOKENS) // llava.image_tokens)
    return EngineInfo(
        model=checkpoint.name,
        engine="generate",
        device=plan.hardware.name,
        precision=plan.precision,
        attention=plan.attention,
        context_tokens=llava.context_tokens,
        image_tokens=llava.image_tokens,
        max_images=settings.max_images or fitting,
        is_miniature=checkpoint.is_miniature,
        reasons=(checkpoint.reason, *plan.reasons, _image_mode_reason(llava, settings)),
        image_side=None if llava.has_tiles else llava.side,
        image_mode=None if llava.has_tiles else llava.mode,
    )


def _image_mode_reason(llava: "Llava", settings: Settings) -> str:
    if llava.mode != settings.image_mode:
        return "Pictures go to the processor as they are: it cuts them into tiles and so shows all of them."
    return {
        "pad": "Pictures are padded to a square, as the original LLaVA was given them, so that all of them is seen.",
        "crop": "Pictures are cropped as the Hub's processor does, as asked.",
        "resize": "Pictures are squeezed into a square, as asked.",
    }[llava.mode]
