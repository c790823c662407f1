"""Attention over transformers' paged cache, for a step in which many requests read and write at once.

transformers 5.23's own paged SDPA copies all keys and values at every step and masks a dense square of all requests'
queries against all their keys: with 16 chats it is slower than answering one after the other. This one attends per
request, without masks but in the chunks of a prompt, and on a CPU keeps the keys and values of those who decode in one
piece beside the pages, so that a step copies nothing. On GPUs that can, torch's FlashAttention attends for all requests
in one call; that path was tried with a stand-in for the kernel only, no GPU being at hand.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.masking_utils import flash_attention_mask

# "flash" in the name: transformers 5.23 makes no dense masks then (utils/generic.py). No 2 or 3 after it: it would look
# for a kernel that reads block tables.
NAME = "paged_flash_by_request"
GROWTH = 128  # tokens by which the piece of a decoding request grows


def twin_of(model: PreTrainedModel) -> PreTrainedModel:
    """A second model on the same weights, whose language model has our attention; the first one stays as it is."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    for module in model.modules():  # bitsandbytes keeps scales beside the weights
        shared |= {id(x): x for x in vars(module).values() if type(x).__module__.startswith("bitsandbytes")}
    twin = copy.deepcopy(model, shared)
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    twin.set_attn_implementation({"text_config": NAME})
    return twin


@dataclass
class _Piece:
    """Keys and values of one decoding request: for each layer (2, heads, tokens with room to grow, width of a head).

    In one tensor for all layers they would be too large for the memory that the C library keeps for the next request.
    """

    storage: list[Tensor]
    tokens: int = 0


@dataclass(frozen=True)
class _Part:
    """What one request does in a step: its queries in the batch, and how far its keys reach."""

    rows: slice
    past: int
    reads: Tensor | None  # where its keys lie in the cache; None: they are all new, or in `piece`
    mask: Tensor | None
    piece: _Piece | None = None

    @property
    def queries(self) -> int:
        return self.rows.stop - self.rows.start

    @property
    def keys(self) -> int:
        return self.past + self.queries


@dataclass(frozen=True)
class _AllAtOnce:
    """What FlashAttention takes of the requests of a step: where each one's queries and keys end, and lie."""

    query_ends: Tensor
    key_ends: Tensor
    most_queries: int
    most_keys: int
    reads: Tensor


@dataclass
class Step:
    """The plan of one step; the layers of the model get it as the keyword `step`."""

    cache: PagedAttentionCache
    asked: Tensor  # the rows that tokens are drawn from, each the last of its request
    short_layer: int | None  # the layer that computes no other rows
    writes: Tensor
    parts: Sequence[_Part]  # or, where the GPU can:
    all_at_once: _AllAtOnce | None
    buffers: dict[int, Tensor] = field(repr=False)  # reused from step to step: fresh memory costs page faults


class PagedAttention:
    """Plans the attention of each step for one cache."""

    def __init__(self, cache: PagedAttentionCache, layers: int, is_by_rows: bool) -> None:
        """`is_by_rows`: the last of the `layers` needs only the rows that are asked."""
        (self._allocator,) = cache.cache_allocators.values()
        self._cache, self._layers, self.is_by_rows = cache, layers, is_by_rows
        self._keeps_pieces = torch.device(cache.device).type == "cpu"
        self._pieces: dict[str, _Piece] = {}
        self._buffers: dict[int, Tensor] = {}
        self.is_flash = can_flash(torch.device(cache.device), cache.dtype)

    def plan(self, requests: Iterable[tuple[str, int, int]], active: set[str], asked: Tensor) -> Step:
        """Plan a step of `requests`: (id, tokens before, tokens now); tokens are drawn from the rows `asked`.

        Who is not in `active` is forgotten.
        """
        spans = list(requests)
        writes = self._index([place for span in spans for place in self._allocator.get_write_indices(*span)])
        step = partial(Step, self._cache, asked, self._layers - 1 if self.is_by_rows else None, writes)
        if self.is_flash:
            return step((), self._all_at_once(spans), self._buffers)
        self._pieces = {name: piece for name, piece in self._pieces.items() if name in active}
        ends = list(accumulate(queries for _, _, queries in spans))
        parts = [
            self._part(name, past, slice(end - queries, end))
            for (name, past, queries), end in zip(spans, ends, strict=True)
        ]
        return step(parts, None, self._buffers)

    def _all_at_once(self, spans: list[tuple[str, int, int]]) -> _AllAtOnce:
        queries, keys = [now for _, _, now in spans], [past + now for _, past, now in spans]
        reads = [place for span in spans for place in self._allocator.get_read_indices(*span)]
        return _AllAtOnce(self._ends(queries), self._ends(keys), max(queries), max(keys), self._index(reads))

    def _ends(self, lengths: list[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=self._cache.device)

    def _part(self, name: str, past: int, rows: slice) -> _Part:
        queries = rows.stop - rows.start
        if past == 0:
            return _Part(rows, past, None, None)
        if queries == 1 and self._keeps_pieces:
            piece = self._pieces.get(name)
            reads = None
            if piece is None or piece.tokens != past or past == piece.storage[0].shape[2]:
                piece, reads = _Piece(self._storage(past + 1)), self._reads(name, past, 1)
                self._pieces[name] = piece
            piece.tokens = past + 1
            return _Part(rows, past, reads, None, piece)
        mask = None if queries == 1 else self._mask(past, queries)
        return _Part(rows, past, self._reads(name, past, queries), mask)

    def _storage(self, tokens: int) -> list[Tensor]:
        allocator = self._allocator
        shape = (2, allocator.num_key_value_heads, tokens + GROWTH, allocator.head_dim)
        return [torch.empty(shape, dtype=allocator.cache_dtype) for _ in range(self._layers)]

    def _reads(self, name: str, past: int, queries: int) -> Tensor:
        return self._index(self._allocator.get_read_indices(name, past, queries))

    def _index(self, places: list[int]) -> Tensor:
        return torch.tensor(places, device=self._cache.device)

    def _mask(self, past: int, queries: int) -> Tensor:
        """0 where a query may look, -inf where a key comes after it: (queries, past + queries)."""
        mask = torch.full((queries, past + queries), -torch.inf, dtype=self._cache.dtype, device=self._cache.device)
        return mask.triu_(past + 1)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Any,
    step: Step | None = None,
    scaling: float | None = None,
    **__: Any,
) -> tuple[Tensor, None]:
    """transformers' interface: query, key and value are (1, heads, rows, width), its output (1, rows, heads, width)."""
    if step is None:
        raise RuntimeError("this attention works within a step of the batched engine only")
    layer: int = module.layer_idx  # type: ignore[assignment]
    pages = step.cache.layer_to_allocator[layer]._kv_token_views[layer]
    for page, new in zip(pages, (key, value), strict=True):
        page.index_copy_(0, step.writes, new[0].transpose(0, 1))
    if step.all_at_once is not None:
        return _flash(step, step.all_at_once, query, pages, scaling), None
    outputs = query.new_empty(query.shape[2], query.shape[1], query.shape[3])
    for part in step.parts:
        rows, mask = part.rows, part.mask
        if layer == step.short_layer:
            rows, mask = slice(rows.stop - 1, rows.stop), None  # the last row looks at all keys
        attended = scaled_dot_product_attention(
            query[:, :, rows],
            _seen(step, part, layer, 0, pages[0], key),
            _seen(step, part, layer, 1, pages[1], value),
            attn_mask=mask,
            is_causal=mask is None and rows.stop - rows.start > 1,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs[rows] = attended[0].transpose(0, 1)
    return outputs[None], None


def can_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's FlashAttention of sequences of different lengths runs: from Ampere on, in 16 bits."""
    is_gpu = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return is_gpu and dtype in (torch.float16, torch.bfloat16)


def _flash(step: Step, plan: _AllAtOnce, query: Tensor, pages: Sequence[Tensor], scaling: float | None) -> Tensor:
    keys, values = (_read(step, kind, page, plan.reads) for kind, page in enumerate(pages))
    attended = varlen_attn(
        query[0].transpose(0, 1),
        keys,
        values,
        plan.query_ends,
        plan.key_ends,
        plan.most_queries,
        plan.most_keys,
        scale=scaling,
        window_size=(-1, 0),  # causal, aligned at the last key
        enable_gqa=query.shape[1] != keys.shape[1],
    )
    return attended[None]


def _read(step: Step, kind: int, page: Tensor, reads: Tensor) -> Tensor:
    """Keys (kind 0) or values (1) from their places in the cache, (tokens, heads, width)."""
    if kind not in step.buffers or len(step.buffers[kind]) < len(reads):
        step.buffers[kind] = page.new_empty(len(reads) + 1024, *page.shape[1:])
    return torch.index_select(page, 0, reads, out=step.buffers[kind][: len(reads)])


def _seen(step: Step, part: _Part, layer: int, kind: int, page: Tensor, new: Tensor) -> Tensor:
    """The keys (kind 0) or values (1) that a request looks at, (1, heads, tokens, width)."""
    if part.piece is not None:
        whole = part.piece.storage[layer][kind]
        if part.reads is None:
            whole[:, part.past] = new[0, :, part.rows.start]
        else:
            whole[:, : part.keys] = page[part.reads].transpose(0, 1)
        return whole[None, :, : part.keys]
    if part.reads is None:
        return new[:, :, part.rows]
    return _read(step, kind, page, part.reads).transpose(0, 1)[None]
