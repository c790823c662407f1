"""The key-value cache, and attention over its pages for a step in which many requests read and write at once.

`SpanAttention` attends request by request; only chunks of a prompt need a mask. On a CPU the keys and values of a
decoding request also stand in one piece beside the pages, so that a step copies nothing. The cache of a model in 8 bits
is in 8 bits as well, an eighth of the memory: a layer turns keys and values into floating point while it attends, and
`native.c` does so without a copy. On GPUs from Ampere on, FlashAttention attends for all prompts of a step in one call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from llava_demo.engines.batched.pages import PAGE_TOKENS
from llava_demo.engines.batched.schedule import Request, Span
from llava_demo.model import native
from llava_demo.model.device import can_flash
from llava_demo.model.int8 import Int8Linear, digits_of

GROWTH = 128  # tokens added when the piece of a decoding request is full
SPARE_TOKENS = 1024  # room in a new buffer for keys beyond its first use


@dataclass(frozen=True)
class CacheShape:
    """The sizes of a language model's cache, and the type of its numbers."""

    layers: int
    heads: int  # key-value heads
    width: int  # numbers per head
    dtype: torch.dtype  # for computing, and for storing without `is_int8`
    device: torch.device
    is_int8: bool = False  # stored as int8, with a scale for each token's head

    @classmethod
    def of(cls, model: PreTrainedModel) -> "CacheShape":
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        heads = getattr(config, "num_key_value_heads", None) or heads
        is_int8 = isinstance(model.get_output_embeddings(), Int8Linear)
        return cls(config.num_hidden_layers, heads, width, model.dtype, model.device, is_int8)

    @property
    def has_pieces(self) -> bool:
        """Whether the keys and values of decoding requests are kept in one piece as well."""
        return self.device.type == "cpu" and not self.is_int8

    @property
    def token_bytes(self) -> int:
        """Bytes for one token in the cache."""
        head = self.width + torch.float32.itemsize if self.is_int8 else self.width * self.dtype.itemsize
        return 2 * self.layers * self.heads * head * (2 if self.has_pieces else 1)


@dataclass
class _Piece:
    """Keys and values of one decoding request: for each layer (2, heads, tokens with room to grow, width).

    One tensor for all layers would be too large for the C library to keep its memory for the next request.
    """

    storage: list[Tensor]
    tokens: int = 0


class Cache:
    """Keys and values of all pages: for each layer (2, tokens, heads, width); int8 has scales, (2, tokens, heads)."""

    def __init__(self, shape: CacheShape, pages: int) -> None:
        self.shape, self.device = shape, shape.device
        size, dtype = (2, pages * PAGE_TOKENS, shape.heads, shape.width), torch.int8 if shape.is_int8 else shape.dtype
        self.layers = [torch.empty(size, dtype=dtype, device=self.device) for _ in range(shape.layers)]
        self._scales = [torch.empty(size[:-1]) for _ in self.layers] if shape.is_int8 else []
        self.can_flash = can_flash(shape.device, shape.dtype)
        self.native: Sequence[native.LayerPages] = ()  # one for each layer, where `native.c` attends
        if shape.is_int8 and native.library() is not None:
            numbers = zip(self.layers, self._scales, strict=True)
            self.native = native.in_one_piece([native.LayerPages.of(*layer, PAGE_TOKENS) for layer in numbers])
        self._pieces: dict[Request, _Piece] | None = {} if shape.has_pieces else None
        self._buffers: dict[tuple[int, torch.dtype], Tensor] = {}  # reused: fresh memory costs page faults

    def places(self, pages: Sequence[int], start: int, end: int) -> Tensor:
        """The places in the cache of a request's tokens `start` to `end`; `pages` is its block table."""
        first = start // PAGE_TOKENS
        numbers = torch.tensor(pages[first : -(-end // PAGE_TOKENS)], device=self.device)[:, None] * PAGE_TOKENS
        all_places = (numbers + torch.arange(PAGE_TOKENS, device=self.device)).flatten()
        return all_places[start - first * PAGE_TOKENS : end - first * PAGE_TOKENS]

    def rotate(
        self, layer: int, places: Tensor, heads: tuple[Tensor, Tensor, Tensor], rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Write rotated keys, and values, to `places`; returns rotated queries and keys.

        `heads` are queries, keys and values, each (tokens, heads, width). `native.c` returns keys that are not rotated.
        """
        query, key, value = heads
        if self.native:
            native.write_rotated(self.native[layer], heads, native.Positions.of(*rotary, places))
            return query, key
        query, key = (rotated(x, *(part[:, None] for part in rotary)) for x in (query, key))
        self._write(layer, places, (key, value))
        return query, key

    def _write(self, layer: int, places: Tensor, new: tuple[Tensor, Tensor]) -> None:
        if not self._scales:
            for page, numbers in zip(self.layers[layer], new, strict=True):
                page.index_copy_(0, places, numbers)
            return
        numbers = torch.stack(new)
        digits, steps = digits_of(numbers, numbers.abs().amax(-1, keepdim=True))
        self.layers[layer].index_copy_(1, places, digits)
        self._scales[layer].index_copy_(1, places, steps.squeeze(-1))

    def read(self, layer: int, kind: int, places: Tensor) -> Tensor:
        """Keys (kind 0) or values (1), (tokens, heads, width), in a buffer that the next call overwrites."""
        source = self.layers[layer][kind]
        found = torch.index_select(source, 0, places, out=self._buffer(kind, source.dtype, len(places)))
        if not self._scales:
            return found
        steps = self._scales[layer][kind][places][..., None]
        return self._buffer(kind, self.shape.dtype, len(places)).copy_(found).mul_(steps)

    def _buffer(self, kind: int, dtype: torch.dtype, tokens: int) -> Tensor:
        buffer = self._buffers.get((kind, dtype))
        if buffer is None or len(buffer) < tokens:
            size = (tokens + SPARE_TOKENS, self.shape.heads, self.shape.width)
            buffer = self._buffers[kind, dtype] = torch.empty(size, dtype=dtype, device=self.device)
        return buffer[:tokens]

    def piece(self, span: Span) -> tuple[_Piece | None, bool]:
        """The piece of a decoding request, if it has one, and whether keys must be read from the pages."""
        if self._pieces is None or span.queries > 1 or not span.is_drawn:  # the last layer would not fill it
            return None, True
        piece = self._pieces.get(span.request)
        is_new = piece is None or piece.tokens != span.past or span.past == piece.storage[0].shape[2]
        if piece is None or is_new:
            shape = (2, self.shape.heads, span.keys + GROWTH, self.shape.width)
            piece = self._pieces[span.request] = _Piece([layer.new_empty(shape) for layer in self.layers])
        piece.tokens = span.keys
        return piece, is_new

    def keep_only(self, running: Sequence[Request]) -> None:
        """Drop the pieces of other requests."""
        if self._pieces:
            self._pieces = {request: self._pieces[request] for request in running if request in self._pieces}

    def close(self) -> None:
        """Free the memory, even if something still refers to this cache."""
        for numbers in (*self.layers, *self._scales):
            numbers.untyped_storage().resize_(0)


@dataclass(frozen=True)
class _Part:
    """One request's rows in a step, and where its keys are."""

    rows: slice
    past: int
    drawn: int | None  # its row among those from which tokens are drawn
    reads: Tensor | None  # places of its keys in the cache; None where all are new, or in `piece`
    mask: Tensor | None
    piece: _Piece | None = None

    @property
    def keys(self) -> int:
        return self.past + self.rows.stop - self.rows.start


class SpanAttention:
    """Attention of one step: rotates queries and keys, writes keys and values to their pages, and attends.

    The last layer returns only the rows from which tokens are drawn, `drawn`.
    """

    def __init__(self, cache: Cache, spans: Sequence[Span], rotary: tuple[Tensor, Tensor]) -> None:
        """`rotary` is cosine and sine of each row's position, both (rows, width)."""
        self._cache, self._rotary = cache, rotary
        ends = list(accumulate(span.queries for span in spans))
        self.drawn = torch.tensor(
            [end - 1 for span, end in zip(spans, ends, strict=True) if span.is_drawn], dtype=torch.long
        ).to(cache.device)
        self._writes = torch.cat([cache.places(span.request.pages, span.past, span.keys) for span in spans])
        drawn = iter(range(len(spans)))
        self._parts = [
            self._part(span, slice(end - span.queries, end), next(drawn) if span.is_drawn else None)
            for span, end in zip(spans, ends, strict=True)
        ]
        self._flash = _Flash(self._parts, spans, cache) if cache.can_flash else None
        self._decoding = decoding = _Decoding(self._parts, spans) if cache.native else None
        self.decode: Callable[[Sequence[native.Layer], Tensor], Tensor] | None = None
        if decoding is not None and not decoding.others:
            positions = native.Positions.of(*rotary, self._writes)
            self.decode = partial(native.decode, cache.native, positions, decoding.requests)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Each (rows, heads, width), before the rotation; returns (rows, heads, width)."""
        query, key = self._cache.rotate(layer, self._writes, (query, key, value), self._rotary)
        is_last = layer == self._cache.shape.layers - 1
        if is_last:
            query = query[self.drawn]
        elif self._flash is not None:
            return self._flash(layer, query)
        outputs, parts = torch.empty_like(query), self._parts
        if self._decoding is not None:
            parts = self._decoding.others
            self._decoding(self._cache.native[layer], query, outputs, is_last)
        for part in parts:
            rows, mask = part.rows, part.mask
            if is_last:
                if part.drawn is None:
                    continue
                rows, mask = slice(part.drawn, part.drawn + 1), None  # a request's last row sees all of its keys
            attended = scaled_dot_product_attention(
                query[rows].transpose(0, 1)[None],
                self._seen(part, layer, 0, key),
                self._seen(part, layer, 1, value),
                attn_mask=mask,
                is_causal=mask is None and rows.stop - rows.start > 1,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            outputs[rows] = attended[0].transpose(0, 1)
        return outputs

    def _part(self, span: Span, rows: slice, drawn: int | None) -> _Part:
        pages = span.request.pages
        if span.past == 0:
            # In 8 bits they are read back: an answer must not depend on how its prompt was divided.
            reads = self._cache.places(pages, 0, span.keys) if self._cache.shape.is_int8 else None
            return _Part(rows, 0, drawn, reads, None)
        if self._cache.native and span.queries == 1 and span.is_drawn:
            return _Part(rows, span.past, drawn, None, None)  # `_Decoding` attends for it
        piece, must_read = self._cache.piece(span)
        reads = self._cache.places(pages, 0, span.keys) if must_read else None
        if piece is not None or span.queries == 1 or self._cache.can_flash:
            return _Part(rows, span.past, drawn, reads, None, piece)
        mask = torch.full((span.queries, span.keys), -torch.inf, dtype=self._cache.shape.dtype)
        return _Part(rows, span.past, drawn, reads, mask.triu_(span.past + 1).to(self._cache.device))

    def _seen(self, part: _Part, layer: int, kind: int, new: Tensor) -> Tensor:
        """The keys (kind 0) or values (1) that a request sees, (1, heads, tokens, width)."""
        if part.piece is not None:
            whole = part.piece.storage[layer][kind]
            if part.reads is None:
                whole[:, part.past] = new[part.rows.start]
            else:
                whole[:, : part.keys] = self._cache.layers[layer][kind][part.reads].transpose(0, 1)
            return whole[None, :, : part.keys]
        if part.reads is None:
            return new[part.rows].transpose(0, 1)[None]
        return self._cache.read(layer, kind, part.reads).transpose(0, 1)[None]


class _Decoding:
    """Attention of requests with one row each over their pages, by `native.c`; `others` are the other parts."""

    def __init__(self, parts: Sequence[_Part], spans: Sequence[Span]) -> None:
        self.others, mine = [], []
        for part, span in zip(parts, spans, strict=True):
            if span.past and span.queries == 1 and part.drawn is not None:
                mine.append((part.rows.start, part.drawn, span))
            else:
                self.others.append(part)
        tables, keys = [span.request.pages for *_, span in mine], [span.keys for *_, span in mine]
        rows = [row for row, *_ in mine], [drawn for _, drawn, _ in mine]
        self.requests, self._last = (native.Requests.of(x, tables, keys) for x in rows)

    def __call__(self, pages: native.LayerPages, query: Tensor, outputs: Tensor, is_last: bool) -> None:
        """Fill the requests' rows of `outputs`, (rows, heads, width), which in the last layer has drawn rows only."""
        if self.requests.count:
            native.attend(pages, query, self._last if is_last else self.requests, outputs)


class _Flash:
    """FlashAttention over all requests of a step at once."""

    def __init__(self, parts: Sequence[_Part], spans: Sequence[Span], cache: Cache) -> None:
        self._cache = cache
        lengths = [part.rows.stop - part.rows.start for part in parts], [part.keys for part in parts]
        self._ends = [torch.tensor([0, *accumulate(x)], dtype=torch.int32, device=cache.device) for x in lengths]
        self._most = max(lengths[0]), max(lengths[1])
        self._reads = torch.cat([cache.places(span.request.pages, 0, span.keys) for span in spans])

    def __call__(self, layer: int, query: Tensor) -> Tensor:
        keys, values = (self._cache.read(layer, kind, self._reads) for kind in (0, 1))
        group = query.shape[1] // keys.shape[1]
        if group > 1:  # torch 2.11 has no enable_gqa here
            keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
        causal = (-1, 0)  # aligned at the last key
        attended: Tensor = varlen_attn(query, keys, values, *self._ends, *self._most, window_size=causal)
        return attended


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding, as in Llama: `x` is (rows, heads, width), the others are (rows, 1, width)."""
    one, other = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-other, one), dim=-1) * sine
