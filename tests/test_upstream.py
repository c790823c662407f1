"""Why `continuous.py`, `paged_attention.py` and `prefix_cache.py` do what they do themselves: transformers 5.23.0.

Each test shows one thing that transformers does. When one fails, transformers has mended it: look whether what we do
about it, named in the test's docstring, can go.
"""

import inspect
from collections.abc import Iterator

import pytest
import torch
from test_image_tokens import shown
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.initialization import resolve_max_memory_percent

from llava_demo.chat import SamplingParams
from llava_demo.engines.batched.attention import twin_of
from llava_demo.engines.batched.continuous import Batch, BatchSize
from llava_demo.engines.sampler import Draw
from llava_demo.model.image_tokens import ImageTokens
from llava_demo.model.llava import Llava


@pytest.fixture
def manager(tiny_llava: Llava) -> ContinuousBatchingManager:
    config = ContinuousBatchingConfig(num_blocks=50, page_size=16, max_batch_tokens=64, auto_switch_to_flash=False)
    return twin_of(tiny_llava.model).init_continuous_batching(GenerationConfig(eos_token_id=-1), config)


@pytest.fixture
def batch(tiny_llava: Llava) -> Iterator[Batch]:
    images = ImageTokens(tiny_llava, 1000)
    batch = Batch(tiny_llava, images, BatchSize(pages=50, requests=4, chunk=16))
    for number in range(3):
        prompt = shown(images, number)
        images.hold(prompt)
        draw = Draw(SamplingParams(), torch.tensor(prompt.ids), tiny_llava.image_token_id, tiny_llava.vocabulary)
        batch.add(str(number), prompt.ids, 50, draw)
    yield batch
    batch.close()


def test_requests_are_ids_only_and_pictures_cannot_enter() -> None:
    """Hence image_tokens.py. huggingface/transformers#43386 asks for pictures."""
    names = set(inspect.signature(ContinuousBatchingManager.add_request).parameters)
    assert not {name for name in names if "image" in name or "pixel" in name or "embed" in name}


def test_there_is_no_seed_for_a_request() -> None:
    """Hence our own drawing in `_Runner`."""
    assert "seed" not in inspect.signature(ContinuousBatchingManager.add_request).parameters


def test_after_a_fatal_error_requests_vanish_without_a_word(manager: ContinuousBatchingManager) -> None:
    """Hence our own thread, which drives transformers step by step and knows what happened."""
    manager.background_thread_status.record_fatal_error(RuntimeError())
    assert manager.add_request([5, 6, 7], "lost") is None


def test_a_cancelled_request_gets_no_last_output(batch: Batch) -> None:
    """Hence streams end themselves when their caller goes."""
    batch.step()
    batch._manager.cancel_request("0")
    for _ in range(3):
        batch._processor.prepare_next_batch()
    assert batch._manager.get_result(timeout=0) is None
    assert "0" not in batch._processor.scheduler.active_requests


def test_rows_of_logits_beyond_the_new_tokens_are_left_over(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hence `_Runner` cuts them off. A step that only reads prompts has no new token and yet such rows."""
    seen = []
    compute = batch._runner.compute_batch
    monkeypatch.setattr(
        batch._runner,
        "compute_batch",
        lambda model, data: seen.append(len(data["logits_indices"])) or compute(model, data),
    )
    batch._processor.max_batch_tokens = 8
    batch._processor.prepare_next_batch()
    batch._processor._generation_step(batch.model)
    assert seen == [1]
    assert batch._runner.drawn == []


def test_all_pages_that_nobody_holds_are_dropped_at_once(batch: Batch) -> None:
    """Hence prefix_cache.py."""
    for _ in range(6):
        batch.step()
    for number in range(3):
        batch.remove(str(number))
    batch.step()
    cached = sum(len(allocator.ledger.cached_blocks) for allocator in batch.cache.cache_allocators.values())
    assert cached >= 3
    batch.cache.evict_cached_blocks()  # ours: enough is free, and who calls it all the same needs everything
    PagedAttentionCache.evict_cached_blocks(batch.cache)
    assert batch.shareable_tokens == 0


def test_left_to_itself_it_takes_60_percent_of_a_machines_memory() -> None:
    """Hence memory.py, which also knows containers."""
    config = ContinuousBatchingConfig()
    resolve_max_memory_percent(config, has_logit_processors=True, device=torch.device("cpu"))
    assert config.max_memory_percent == 0.6
