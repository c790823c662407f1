"""How many requests are answered at once on this machine: from its free memory to a `BatchSize`."""

import torch

from llava_demo.engines.batched.attention import CacheShape
from llava_demo.engines.batched.pages import PAGE_TOKENS
from llava_demo.engines.batched.schedule import BIG_CHUNK, BatchSize
from llava_demo.errors import EngineUnavailable
from llava_demo.model import ram
from llava_demo.model.llava import Llava

GIB = 2**30
CHATS_ON_CPU, CHATS_ON_GPU = 16, 64  # at most; more would make each of them slow to read
TEXT_AND_ANSWER_TOKENS = 512  # in an ordinary chat, beside its picture
SHARE_OF_RAM = 0.4  # share of the free memory for the cache; the rest is for the steps, and for other programs
KEPT_ON_CPU, KEPT_ON_GPU = 1.0, 0.5  # number of earlier chats in the prefix cache, for each chat that may run
ENCODING_BYTES = GIB  # left free on a GPU for the activations of the vision tower


def batch_size(llava: Llava, max_concurrent: int | None, gpu_memory: float = 0.85) -> tuple[BatchSize, str]:
    """The batch that fits, and a sentence about it; `gpu_memory` is the share of a GPU's memory for this process.

    Raises:
        EngineUnavailable: there is no room for one chat.
    """
    device = llava.model.device
    is_gpu = device.type == "cuda"
    free, total = torch.cuda.mem_get_info(device) if is_gpu else (ram.free_ram(), 0)
    budget = gpu_budget(free, total, gpu_memory) if is_gpu else int(free * SHARE_OF_RAM)
    wanted = max_concurrent or (CHATS_ON_GPU if is_gpu else CHATS_ON_CPU)
    each = token_bytes(llava)
    chat = min(llava.image_tokens + TEXT_AND_ANSWER_TOKENS, llava.context_tokens)
    useful = int(wanted * chat * (1 + (KEPT_ON_GPU if is_gpu else KEPT_ON_CPU)))
    tokens = min(budget // each, max(useful, 2 * llava.context_tokens))
    if (fitting := tokens // chat) < 1:
        raise EngineUnavailable(f"There is room for {max(tokens, 0):,} tokens in memory; one chat takes {chat:,}.")
    requests = min(wanted, fitting)
    size = BatchSize(pages=tokens // PAGE_TOKENS, requests=requests, chunk=BIG_CHUNK if is_gpu else 128)
    return size, (
        f"Up to {requests} chats are answered at once; the cache holds {size.tokens:,} tokens "
        f"({size.tokens * each / GIB:.1f} GB), {fitting} chats of {chat:,}."
    )


def gpu_budget(free: int, total: int, share: float) -> int:
    """Bytes for pages and features: `share` of a GPU's memory, minus what is in use and what the vision tower needs."""
    return int(total * share) - (total - free) - ENCODING_BYTES


def token_bytes(llava: Llava) -> int:
    """Bytes for one token of a chat: its keys and values in all layers, and its row of features."""
    features: int = llava.model.config.get_text_config().hidden_size * llava.model.dtype.itemsize
    return CacheShape.of(llava.model).token_bytes + features
