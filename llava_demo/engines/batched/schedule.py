"""`Scheduler`: which requests take part in the next step of the model, and with how many tokens.

Each decoding request has one token in every step. The rest of a step goes to prompts, in chunks, first come first
served. Where pages run out, the request that came last gives up its own and is computed again later.
"""

from collections import deque
from dataclasses import dataclass, field, replace

from llava_demo.engines.batched.pages import PAGE_TOKENS, BlockTable, Pages
from llava_demo.engines.sampler import Draw

BIG_CHUNK = 1024
SMALLEST_CHUNK = 64
CHUNK_PER_DECODING = 16  # minimum prompt tokens per step for each decoding request: with many, a step is long anyway
CROWD = 3  # newcomers for which chunks are big: they would lose more by waiting than the others by the pause


@dataclass(frozen=True)
class BatchSize:
    """How much a batch holds."""

    pages: int  # PAGE_TOKENS tokens each
    requests: int
    chunk: int = 128  # prompt tokens in a step while others decode: a longer chunk is a longer pause for them
    is_sharing: bool = True  # whether prompts that begin alike share pages
    big_chunk: int = BIG_CHUNK  # prompt tokens in a step when none decodes, or when it is worth the pause

    @property
    def tokens(self) -> int:
        return self.pages * PAGE_TOKENS

    def with_smaller_chunks(self) -> "BatchSize":
        """Chunks of half the tokens, for steps that take less memory."""
        chunk, big = (min(x, max(x // 2, SMALLEST_CHUNK)) for x in (self.chunk, self.big_chunk))
        return replace(self, chunk=chunk, big_chunk=big)


@dataclass(eq=False)
class Request:
    """One prompt and its answer as it grows."""

    ids: list[int]
    room: int  # tokens that the answer may have
    draw: Draw
    prompt_tokens: int = field(init=False)
    computed: int = 0  # number of tokens, from the first on, whose keys and values are in its pages
    table: BlockTable | None = None  # None while it waits
    cached_tokens: int | None = None  # prompt tokens that were found in the cache at its first step

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.ids)

    @property
    def pages(self) -> list[int]:
        """Its pages in order; a new list each time that it is admitted."""
        return self.table.pages if self.table is not None else []

    @property
    def is_decoding(self) -> bool:
        return self.table is not None and self.computed == len(self.ids) - 1 and self.computed >= self.prompt_tokens


@dataclass(frozen=True)
class Span:
    """One request's part of a step: `queries` tokens, after `past` ones whose keys are in the cache."""

    request: Request
    past: int
    queries: int

    @property
    def keys(self) -> int:
        return self.past + self.queries

    @property
    def is_drawn(self) -> bool:
        """Whether the step gives the request its next token."""
        return self.keys == len(self.request.ids)


class Scheduler:
    """The requests of a batch: `running` ones hold pages, in the order in which they came, `waiting` ones do not."""

    def __init__(self, size: BatchSize, pages: Pages) -> None:
        self.size, self.pages = size, pages
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Forget a request, if it is here, and free its pages."""
        if request in self.running:
            self.running.remove(request)
            self._release(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def next_step(self) -> list[Span]:
        """The spans of the next step, decoding requests first; empty where there is nothing to do."""
        spans: list[Span] = []
        is_short = False
        for request in [request for request in self.running if request.is_decoding]:
            while request.table is not None and not self._grow(request):
                is_short = True
                self._preempt()
            if request.table is not None:
                spans.append(Span(request, request.computed, 1))
        room = self._prompt_tokens(len(spans))
        prompts = [request for request in self.running if not request.is_decoding]
        while room > 0:
            prompt = prompts.pop(0) if prompts else None if is_short else self._admitted()
            if prompt is None:
                break
            queries = min(room, len(prompt.ids) - prompt.computed)
            spans.append(Span(prompt, prompt.computed, queries))
            room -= queries
        return spans

    def computed(self, spans: list[Span]) -> None:
        """Note that the keys and values of `spans` are in their pages."""
        for span in spans:
            request = span.request
            if request.table is not None:  # else it was removed meanwhile
                request.computed = span.keys
                self.pages.publish(request.table, request.ids, request.computed)

    def _prompt_tokens(self, decoding: int) -> int:
        """How many prompt tokens the next step may have beside `decoding` requests."""
        newcomers = len(self.running) + len(self.waiting) - decoding
        is_pause_worth_it = not decoding or newcomers >= CROWD
        big = self.size.big_chunk
        chunk = big if is_pause_worth_it else max(self.size.chunk, decoding * CHUNK_PER_DECODING)
        return min(chunk, max(big - decoding, CHUNK_PER_DECODING))

    def _admitted(self) -> Request | None:
        """Admit the first waiting request; None where there are not enough pages for all of its tokens.

        It gets all of them at once: two prompts with half of their pages each would wait for each other.
        """
        if not self.waiting or len(self.running) >= self.size.requests:
            return None
        request = self.waiting[0]
        request.table = self.pages.find(request.ids)
        request.computed = len(request.table.pages) * PAGE_TOKENS
        if not self._grow(request):
            self._release(request)
            return None
        if request.cached_tokens is None:
            request.cached_tokens = request.computed
        self.running.append(self.waiting.popleft())
        return request

    def _grow(self, request: Request) -> bool:
        return request.table is not None and self.pages.grow(request.table, len(request.ids))

    def _preempt(self) -> None:
        """Take the pages of the request that came last, which is then the first to be admitted again."""
        request = self.running.pop()
        self._release(request)
        self.waiting.appendleft(request)

    def _release(self, request: Request) -> None:
        if request.table is not None:
            self.pages.release(request.table)
        request.table, request.computed = None, 0
