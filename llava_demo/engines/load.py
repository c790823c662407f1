"""`load_engine`: from settings to an engine. Importing this module is cheap: torch is imported where it is needed."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llava_demo.engines import Engine, EngineInfo
from llava_demo.engines.checkpoint import Checkpoint, chosen_checkpoint, files_of, instead_of, kept_copy
from llava_demo.engines.loading import LoadingEngine, Report
from llava_demo.environment import quick_imports
from llava_demo.errors import EngineUnavailable
from llava_demo.settings import SettingError, Settings

if TYPE_CHECKING:
    from llava_demo.model.device import Hardware, Plan
    from llava_demo.model.llava import Llava

BATCHED_ATTENTION = "SDPA on pages"
TEXT_AND_ANSWER_TOKENS = 512  # part of the context that pictures leave free
MAX_WORDS = 300  # characters of a library's error that are passed on: some errors list all models

_log = logging.getLogger(__name__)


def load_engine(settings: Settings) -> Engine:
    """Load the engine that `settings` ask for; it takes seconds for the miniature, minutes for a first download.

    Raises:
        EngineUnavailable: the checkpoint is not available or cannot be loaded; the message says why.
        SettingError: the engine is remote, and no server is named; or it is batched, on ZeroGPU.
    """
    engine = engine_at_once(settings)
    return engine.loaded() if isinstance(engine, LoadingEngine) else engine


def engine_at_once(settings: Settings) -> Engine:
    """As `load_engine`, but a model is loaded by a `LoadingEngine`, which is returned as soon as its sizes are known.

    The model is loaded in a thread of its own, whose OpenMP threads end with it. Those of the main thread would stay,
    and with more of them than cores, libgomp sends all to sleep between two products: 8 % of an answer's time.

    Raises:
        EngineUnavailable: it is already known that the model cannot be loaded.
        SettingError: as above.
    """
    if settings.is_remote:
        from llava_demo.engines.remote import remote_engine

        return remote_engine(settings)
    if settings.is_zero_gpu:
        if settings.engine == "batched":
            raise SettingError("Engine batched cannot run on ZeroGPU, which lends a GPU for one answer; leave it auto.")
        import llava_demo.engines.zero_gpu  # noqa: F401, first: `spaces` makes it look as if the GPU were there
    with quick_imports():
        planned = _planned_or_instead(settings)
    return _sketched(planned, settings)


def _planned_or_instead(settings: Settings) -> "_Planned":
    from llava_demo.model.device import Hardware

    hardware = Hardware.found()
    checkpoint = chosen_checkpoint(settings.model, hardware)
    try:
        return _planned(checkpoint, hardware, settings)
    except EngineUnavailable as error:
        return _planned(_instead_of(checkpoint, error, settings), hardware, settings)


@dataclass(frozen=True)
class _Planned:
    """What will be loaded, and how. `sketch` is a model without weights; config and processor are read once, for it."""

    checkpoint: Checkpoint
    sketch: "Llava"
    plan: "Plan"


def _sketched(planned: _Planned, settings: Settings) -> Engine:
    """The `LoadingEngine` of a checkpoint; on ZeroGPU the engine itself."""
    load = partial(_loaded, planned, settings)
    if settings.is_zero_gpu:  # ZeroGPU must see the engine before the page is launched
        return load(lambda _: None)
    info = _info(planned.sketch, planned, settings)
    if settings.engine != "generate":
        info = replace(info, engine="batched", attention=BATCHED_ATTENTION)
    return LoadingEngine(info, load, planned.sketch.seen, settings.max_queue)


def _planned(checkpoint: Checkpoint, hardware: "Hardware", settings: Settings) -> _Planned:
    """Read config and processor, and decide how the checkpoint will be loaded.

    Raises:
        EngineUnavailable: it is not a checkpoint, or there is too little memory for it; known before a download.
    """
    from llava_demo.model.checks import check_config
    from llava_demo.model.device import GIB, Weights, Wishes, bytes_needed, planned
    from llava_demo.model.llava import Llava, config_of
    from llava_demo.model.ram import free_ram

    with _failures_named(checkpoint):
        config = config_of(checkpoint.source, checkpoint.is_local)
        check_config(json.loads((files_of(checkpoint) / "config.json").read_text("utf-8")), config)
    weights = Weights(config.dtype, checkpoint.nbytes)
    if settings.quantize == "auto" and not weights.is_small:
        hardware = hardware.measured()
    plan = planned(Wishes(settings.quantize, settings.dtype, settings.attention), hardware, weights)
    needed, free = 0 if hardware.has_gpu else bytes_needed(plan, weights), free_ram()
    if needed > free:
        raise EngineUnavailable(
            f"{checkpoint.name} takes {needed / GIB:.1f} GB of memory in {plan.precision}, and {free / GIB:.1f} GB are "
            "free."
        )
    with _failures_named(checkpoint):
        sketch = Llava.sketch(checkpoint.source, config, settings.image_mode, checkpoint.is_local)
    return _Planned(checkpoint, sketch, plan)


def _instead_of(checkpoint: Checkpoint, error: EngineUnavailable, settings: Settings) -> Checkpoint:
    """The model that replaces a failed checkpoint of our own choice; one that was asked for is never replaced."""
    if settings.model != "auto" or checkpoint.is_miniature:
        raise error
    _log.warning("the miniature answers in place of %s: %s", checkpoint.name, error)
    return instead_of(checkpoint, error)


def _loaded(planned: _Planned, settings: Settings, report: Report) -> Engine:
    try:
        return _loaded_as_planned(planned, settings, report)
    except EngineUnavailable as error:
        other = _instead_of(planned.checkpoint, error, settings)
        return _loaded_as_planned(_planned(other, planned.plan.hardware, settings), settings, report)


def _loaded_as_planned(planned: _Planned, settings: Settings, report: Report) -> Engine:
    started, checkpoint, plan = time.monotonic(), planned.checkpoint, planned.plan
    _log.info("loading %s on %s, %s", checkpoint.name, plan.hardware.name, plan.precision)
    llava = _load(planned, settings, report)
    info = _info(llava, planned, settings)
    _log.info("loaded %s in %.1f s", checkpoint.name, time.monotonic() - started)
    report("starting the engine")
    if settings.is_zero_gpu:
        return _on_zero_gpu(llava, info, settings)
    return _batched(llava, info, settings) if settings.engine != "generate" else _generate(llava, info, settings)


def _on_zero_gpu(llava: "Llava", info: EngineInfo, settings: Settings) -> Engine:
    from llava_demo.engines.zero_gpu import CHATS_AT_ONCE, ZeroGpuEngine

    words = "Engine generate: ZeroGPU lends a GPU for one answer at a time, so that there is nothing to batch."
    reasons = (*info.reasons, words)
    slots = settings.max_concurrent or CHATS_AT_ONCE
    return ZeroGpuEngine(llava, replace(info, device="ZeroGPU", reasons=reasons), settings.max_queue, slots)


def _batched(llava: "Llava", info: EngineInfo, settings: Settings) -> Engine:
    """The batched engine; where it cannot run and was not asked for, `generate`."""
    import torch

    from llava_demo.engines.batched.engine import BatchedEngine
    from llava_demo.engines.batched.memory import batch_size

    try:
        size, words = batch_size(llava, settings.max_concurrent, settings.gpu_memory)
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


def _load(planned: _Planned, settings: Settings, report: Report) -> "Llava":
    import torch

    from llava_demo.engines.progress import fetch, weights_told
    from llava_demo.model.checks import check_size

    checkpoint, plan = planned.checkpoint, planned.plan
    if checkpoint.is_miniature and not plan.hardware.has_gpu:
        # For matrices this small, a second thread makes it slower: 15 ms a step of 8 chats in place of 6, on two cores
        # that had other work, too.
        torch.set_num_threads(1)
    with _failures_named(checkpoint), weights_told(report):
        if not checkpoint.is_local:
            fetch(checkpoint.source, report)
        kept = kept_copy(checkpoint, settings.cache) if plan.is_int8_on_cpu else None
        if kept is None or not kept.exists():
            check_size(planned.sketch.model, files_of(checkpoint))
        llava = planned.sketch.loaded(checkpoint.source, plan, checkpoint.is_local, kept)
        if not settings.is_zero_gpu:  # there is no GPU yet
            report("trying the model")
            llava.check()
        return llava


@contextmanager
def _failures_named(checkpoint: Checkpoint) -> Iterator[None]:
    from pickle import UnpicklingError

    import torch
    from huggingface_hub.errors import HTTPError, StrictDataclassError
    from safetensors import SafetensorError

    told = (OSError, HTTPError, ValueError, ImportError, RuntimeError, SafetensorError, UnpicklingError)
    unexpected = (LookupError, TypeError, AttributeError, ArithmeticError, AssertionError)
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineUnavailable(f"The GPU has too little free memory for {checkpoint.name}.") from error
    except MemoryError as error:
        raise EngineUnavailable(f"This machine has too little free memory for {checkpoint.name}.") from error
    except (*told, *unexpected, StrictDataclassError) as error:  # the last is no ValueError
        _log.debug("loading failed", exc_info=True)
        words = " ".join(str(error).replace(checkpoint.source, checkpoint.name).split())  # callers are told no path
        if isinstance(error, OSError) and error.filename:
            words = f"{Path(error.filename).name}: {error.strerror}"
        if isinstance(error, UnpicklingError):  # torch's own words advise to run the code in the file
            words = "a .bin file is damaged, or holds more than weights"
        if isinstance(error, unexpected):
            words = f"its files hold what transformers does not expect, {type(error).__name__}: {words}"
        shown = words if len(words) <= MAX_WORDS else f"{words[:MAX_WORDS]}..."
        raise EngineUnavailable(f"{checkpoint.name} could not be loaded: {shown}") from error


def _info(llava: "Llava", planned: _Planned, settings: Settings) -> EngineInfo:
    checkpoint, plan = planned.checkpoint, planned.plan
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
