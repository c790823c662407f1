"""`DecodeSteps`: steps in which all requests decode, over buffers that never move: CUDA replays them as graphs.

A step of one chat on an H200 took 36 ms from Python, 7 of them in kernels; the same kernels in one graph took 6.2. A
graph has a fixed number of rows, so there are graphs of several sizes. A step uses the next larger one, whose spare
rows write to a page of their own.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from llava_demo.engines.batched.attention import Cache, rotated
from llava_demo.engines.batched.pages import PAGE_TOKENS
from llava_demo.engines.batched.schedule import Request
from llava_demo.engines.batched.step import Decoder

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
SIZE_STEP = 32  # between sizes beyond SIZES
WARM_UP_RUNS = 2  # before a capture, for the workspaces of bitsandbytes and cuBLAS

Heads = tuple[Tensor, Tensor, Tensor]
Attend = Callable[[Heads, Tensor, tuple[Tensor, Tensor], Tensor, Tensor], Tensor]


def sizes_for(requests: int) -> list[int]:
    """The row counts of the graphs, up to the first one that holds all `requests`."""
    sizes = [*SIZES, *range(SIZES[-1] + SIZE_STEP, requests + SIZE_STEP, SIZE_STEP)]
    return [size for size, smaller in zip(sizes, [0, *sizes], strict=False) if smaller < requests]


class DecodeSteps:
    """Decode steps. `attend` is `attend_pages` below, or `kernels.attend`, which computes the same."""

    def __init__(self, model: Decoder, embeddings: nn.Module, cache: Cache, requests: int, pages: int) -> None:
        """For at most `requests` requests with at most `pages` pages each; the last page of `cache` is spare."""
        self.attend: Attend = attend_pages
        self._model, self._embeddings, self._cache = model, embeddings, cache
        self.sizes = sizes_for(requests)
        self._spare = len(cache.layers[0][0]) // PAGE_TOKENS - 1
        # A row is an id, the number of tokens before it, and a block table: one copy per step moves all of them.
        self._host = torch.zeros(self.sizes[-1], 2 + pages, dtype=torch.int32)
        if cache.device.type == "cuda":
            self._host = self._host.pin_memory()
        self._rows, self._device = self._host.numpy(), self._host.to(cache.device)
        self._tables: list[tuple[list[int], int] | None] = [None] * self.sizes[-1]  # block tables in the rows
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def run(self, requests: Sequence[Request]) -> Tensor:
        """The logits after the last token of each request, (requests, vocabulary); the next run may overwrite them."""
        size = next(size for size in self.sizes if size >= len(requests))
        self._fill(requests, size)
        self._device[:size].copy_(self._host[:size], non_blocking=True)
        if size in self._graphs:
            graph, logits = self._graphs[size]
            graph.replay()
        else:
            logits = self._body(size, max(len(table[0]) for table in self._tables[: len(requests)] if table))
        return logits[: len(requests)]

    @torch.inference_mode()
    def capture(self) -> None:
        """Make the graphs, the largest one first, so that the others fit into its memory.

        Raises:
            Exception: whatever a driver, a compiler or a kernel raises.
        """
        stream, pool = torch.cuda.Stream(), None
        self._fill((), self.sizes[-1])
        self._device.copy_(self._host)
        for size in reversed(self.sizes):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_RUNS):
                    self._body(size, self._device.shape[1] - 2)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                logits = self._body(size, self._device.shape[1] - 2)
            self._graphs[size], pool = (graph, logits), graph.pool()

    def _fill(self, requests: Sequence[Request], size: int) -> None:
        for row, request in enumerate(requests):
            pages = request.pages
            self._rows[row, 0], self._rows[row, 1] = request.ids[-1], request.computed
            known = self._tables[row]
            if known is None or known[0] is not pages or known[1] != len(pages):  # a readmitted request has a new list
                self._rows[row, 2 : 2 + len(pages)] = pages
                self._tables[row] = pages, len(pages)
        for row in range(len(requests), size):
            self._rows[row, :3], self._tables[row] = (0, 0, self._spare), None

    def _body(self, size: int, pages: int) -> Tensor:
        rows = self._device[:size]
        ids, past, table = rows[:, 0], rows[:, 1].contiguous(), rows[:, 2 : 2 + pages]
        hidden = self._embeddings(ids)
        rotary = self._model.rotary_of(past, hidden)
        logits: Tensor = self._model(hidden, _PagedAttention(self._cache, self.attend, rotary, table, past))
        return logits


class _PagedAttention:
    """`Attention` in which each request has one row."""

    drawn, decode = slice(None), None

    def __init__(
        self, cache: Cache, attend: Attend, rotary: tuple[Tensor, Tensor], table: Tensor, past: Tensor
    ) -> None:
        self._cache, self._attend, self._where = cache, attend, (rotary, table, past)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self._attend((query, key, value), self._cache.layers[layer], *self._where)


def attend_pages(heads: Heads, pages: Tensor, rotary: tuple[Tensor, Tensor], table: Tensor, past: Tensor) -> Tensor:
    """`kernels.attend` in plain torch: for tests, and for GPUs on which Triton does not run."""
    cosine, sine = (x[:, None] for x in rotary)
    query, key, value = rotated(heads[0], cosine, sine), rotated(heads[1], cosine, sine), heads[2]
    page = table.gather(1, (past // PAGE_TOKENS).long()[:, None])[:, 0].long()
    for target, new in zip(pages, (key, value), strict=True):
        target.index_copy_(0, page * PAGE_TOKENS + past % PAGE_TOKENS, new)
    places = (table.long()[:, :, None] * PAGE_TOKENS + torch.arange(PAGE_TOKENS, device=table.device)).flatten(1)
    is_key = torch.arange(places.shape[1], device=table.device) <= past[:, None]
    # Memory that was never written may be NaN, which a mask alone does not keep out.
    keys, values = (part[places].masked_fill(~is_key[:, :, None, None], 0).transpose(1, 2) for part in pages)
    attended: Tensor = scaled_dot_product_attention(
        query[:, :, None], keys, values, attn_mask=is_key[:, None, None], enable_gqa=query.shape[1] != key.shape[1]
    )
    return attended[:, :, 0]
