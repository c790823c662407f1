"""`Batch`: transformers' continuous batching, made to see pictures and to draw each request's tokens by its own rules.

transformers 5.23 has the paged cache, its scheduler and its bookkeeping; they are used as they are. Its own thread is
not: it dies with the first exception, drops what comes later without a word (`add_request` returns None), and never
ends a request that was cancelled (scheduler.py:96). Here a step is a call, what it raises reaches the caller, and its
tokens are what it returns.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache, group_layers_by_attn_type
from transformers.generation.continuous_batching.cache_allocators import FULL_ATTENTION
from transformers.generation.continuous_batching.model_runner import ModelRunner
from transformers.generation.continuous_batching.requests import FutureRequestState

from llava_demo.engines.answer import TokenLikelihood
from llava_demo.engines.batched.attention import PagedAttention, twin_of
from llava_demo.engines.batched.prefix_cache import keep_recent_prefixes
from llava_demo.engines.batched.shortcuts import keep_freed_memory, last_layer_by_rows, products_on_a_cpu
from llava_demo.engines.sampler import Draw, choose, likelihood
from llava_demo.model.image_tokens import ImageTokens
from llava_demo.model.llava import Llava

PAGE_TOKENS = 16  # what two prompts share is counted in whole pages: the smaller, the more of a follow-up is shared
BIG_CHUNK = 1024  # tokens of prompts in a step that nobody waits for, or so many that it is worth the pause
TOKENS_FOR_EACH = 16  # of a prompt in a step, at least, for each who answers: the more they are, the longer a step is
CROWD = 3  # so many newcomers are read in big chunks: what they lose by waiting is more


@dataclass(frozen=True)
class BatchSize:
    """How much a batch holds."""

    pages: int  # of PAGE_TOKENS tokens each
    requests: int
    chunk: int = 128  # tokens of a prompt in a step while others wait for their next one: so it stalls them
    is_sharing: bool = True  # of pages between requests whose prompts begin alike

    @property
    def tokens(self) -> int:
        return self.pages * PAGE_TOKENS


@dataclass(frozen=True)
class Token:
    """One token that a step drew."""

    request_id: str
    token: int
    likelihood: TokenLikelihood | None
    is_last: bool


class Batch:
    """Requests that are answered together, one step at a time, in the thread of the caller."""

    def __init__(self, llava: Llava, images: ImageTokens, size: BatchSize) -> None:
        """Raises:
        ValueError: this model cannot be batched; the message says why.
        """
        check_model(llava)
        self.size = size
        self._end_ids = sorted(llava.end_ids)
        self.model = twin_of(llava.model)
        is_by_rows = last_layer_by_rows(self.model)
        if self.model.device.type == "cpu":
            products_on_a_cpu(self.model)
            keep_freed_memory()
        self._manager = self.model.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=self._end_ids or -1),
            ContinuousBatchingConfig(
                page_size=PAGE_TOKENS,
                num_blocks=size.pages,  # left open, it would take 60 % of the machine's memory (5.23)
                max_batch_tokens=BIG_CHUNK,
                max_requests_per_batch=size.requests,
                max_blocks_per_request=0,
                allow_block_sharing=size.is_sharing,
                use_async_batching=False,
                use_cuda_graph=False,
                auto_switch_to_flash=False,  # it would download a kernel from the Hub where `kernels` is installed
            ),
        )
        self._processor = self._manager._create_batch_processor()
        self.cache: PagedAttentionCache = self._processor.cache
        self.cached_tokens: dict[str, int] = {}  # of each request's prompt, those that were found in the cache
        keep_recent_prefixes(self.cache, self.cached_tokens)
        self.cache.extend_read_and_write_indices = lambda *_: None  # PagedAttention makes its own, and fewer
        layers = self.model.config.get_text_config().num_hidden_layers
        self.attention = PagedAttention(self.cache, layers, is_by_rows)
        old = self._processor.model_runner
        self._runner = _Runner(old.logit_processor, old.cb_config, old.inputs_and_outputs, old.cache, False, False)
        self._runner.images = images
        self._runner.attention = self.attention
        self._processor.model_runner = self._runner

    def add(self, request_id: str, ids: list[int], room: int, draw: Draw) -> None:
        """Take in a request for an answer of at most `room` tokens."""
        self._runner.draws[request_id] = draw
        self._manager.add_request(ids, request_id, max_new_tokens=room, eos_token_id=self._end_ids or -1)

    def remove(self, request_id: str) -> None:
        """Forget a request, ended or not; its pages are free with the next step."""
        self._manager.cancel_request(request_id)
        self._runner.draws.pop(request_id, None)
        self.cached_tokens.pop(request_id, None)

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Run the model once over the next token of whoever answers, and over a chunk of new prompts."""
        scheduler = self._processor.scheduler
        self._processor.max_batch_tokens = self._room_in_step()
        if not self._processor.prepare_next_batch():
            return []
        self._runner.active = set(scheduler.active_requests)
        self._processor._generation_step(self.model)
        self._processor.update_batch()
        ended = set()
        while (output := self._manager.get_result(timeout=0)) is not None:
            ended.add(output.request_id)
        return [Token(*drawn, is_last=drawn[0] in ended) for drawn in self._runner.drawn]

    def _room_in_step(self) -> int:
        """How many tokens the next step may have."""
        states = self._processor.scheduler.active_requests.values()
        answering = sum(not state.remaining_prefill_tokens for state in states)
        if not answering:
            return BIG_CHUNK
        newcomers = len(self._runner.draws) - answering
        chunk = BIG_CHUNK if newcomers >= CROWD else max(self.size.chunk, answering * TOKENS_FOR_EACH)
        return min(answering + chunk, BIG_CHUNK)

    def close(self) -> None:
        """Let go of the cache's memory, whatever else still holds this batch."""
        del self.attention, self._runner, self._processor, self._manager.batch_processor
        self.cache.cache_tensor.untyped_storage().resize_(0)

    @property
    def shareable_tokens(self) -> int:
        """Tokens in pages that a new prompt could share."""
        return PAGE_TOKENS * sum(len(a.ledger.hash_to_block) for a in self.cache.cache_allocators.values())

    @property
    def used_pages(self) -> int:
        """Pages that requests hold at this moment."""
        tables = (table for a in self.cache.cache_allocators.values() for table in a.block_table.values())
        return len({page for table in tables for page in table})


def check_model(llava: Llava) -> None:
    """Raises:
    ValueError: transformers' batches, or ours, would compute something else than the model.
    """
    config = llava.model.config.get_text_config()
    devices = {parameter.device for parameter in llava.model.parameters()}
    if len(devices) > 1:
        raise ValueError("the model is spread over several devices")
    if devices.pop().type not in ("cpu", "cuda"):
        raise ValueError("only CPUs and NVIDIA GPUs can")
    if set(group_layers_by_attn_type(config)) != {FULL_ATTENTION}:
        raise ValueError("the language model looks at a window of the conversation only")
    if "mrope_section" in (getattr(config, "rope_parameters", None) or {}):
        raise ValueError("the language model gives pictures positions in three dimensions")


class _Runner(ModelRunner):
    """Runs the model on a batch that transformers has prepared: pictures in, each request's own tokens out."""

    images: ImageTokens
    attention: PagedAttention

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.draws: dict[str, Draw] = {}
        self.active: set[str] = set()
        self.drawn: list[tuple[str, int, TokenLikelihood | None]] = []

    def compute_batch(self, model: nn.Module, batch_data: dict[str, Any]) -> None:
        """In place of transformers': `batch_data` has the inputs; the tokens go where transformers looks for them."""
        states: list[FutureRequestState] = self.inputs_and_outputs.requests_in_batch
        spans = [(s.state.request_id, s.state.position_offset - s.query_length, s.query_length) for s in states]
        answering = [s.state.request_id for s in states if s.has_new_token]
        # Beyond those with a new token the rows of `logits_indices` are left over from earlier steps (5.23).
        rows = batch_data["logits_indices"][: len(answering)]
        output = model(
            inputs_embeds=self.images.embedded(batch_data["input_ids"]),
            position_ids=batch_data["position_ids"],
            logits_to_keep=0 if self.attention.is_by_rows else rows,  # 0: of all that come out of the last layer
            use_cache=False,
            step=self.attention.plan(spans, self.active, rows),
        )
        self.drawn = []
        if not answering:
            return
        logits = output.logits[0].float()
        draws = [self.draws[request_id] for request_id in answering]
        tokens = choose(logits, draws)
        self.inputs_and_outputs.output_ids[0, : len(tokens)] = torch.tensor(tokens, device=logits.device)
        for row, (request_id, draw, token) in enumerate(zip(answering, draws, tokens, strict=True)):
            top = draw.sampling.top_logprobs
            self.drawn.append((request_id, token, None if top is None else likelihood(logits[row], token, top)))
