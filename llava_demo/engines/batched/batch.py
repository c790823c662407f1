"""`Batch`: requests that are answered together, one step of the model at a time, in the thread that calls it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from llava_demo.engines.answer import TokenLikelihood
from llava_demo.engines.batched.attention import Cache, CacheShape, SpanAttention
from llava_demo.engines.batched.pages import PAGE_TOKENS, Pages
from llava_demo.engines.batched.products import keep_freed_memory
from llava_demo.engines.batched.schedule import BatchSize, Request, Scheduler, Span
from llava_demo.engines.batched.step import Decoder
from llava_demo.engines.sampler import likelihood, tokens_of
from llava_demo.model.image_tokens import ImageTokens
from llava_demo.model.llava import Llava


@dataclass(frozen=True)
class Drawn:
    """The token that a step drew for a request."""

    request: Request
    token: int
    likelihood: TokenLikelihood | None
    is_last: bool


@dataclass
class Step:
    """A step on its way; `logits` (rows, vocabulary) and `tokens` (rows) are of the `requests` that get a token."""

    spans: list[Span]
    requests: list[Request] = field(default_factory=list)
    logits: Tensor | None = None
    tokens: Tensor | None = None


class Batch:
    """The cache, the scheduler and the model, put together."""

    def __init__(self, llava: Llava, images: ImageTokens, size: BatchSize) -> None:
        """Raises:
        ValueError: this model cannot be batched; the message says why.
        """
        self.model = Decoder(llava.model)
        self.size, self._images, self._end_ids = size, images, llava.end_ids
        self._is_on_gpu = llava.model.device.type == "cuda"
        if not self._is_on_gpu:
            keep_freed_memory()
        self.pages = Pages(size.pages, size.is_sharing)
        self.scheduler = Scheduler(size, self.pages)
        like = torch.empty(0, dtype=llava.model.dtype, device=llava.model.device)
        self.cache = Cache(CacheShape.of(llava.model.config.get_text_config()), size.pages, like)

    def add(self, request: Request) -> None:
        self.scheduler.add(request)

    def remove(self, request: Request) -> None:
        """Forget a request, ended or not, and free its pages."""
        self.scheduler.remove(request)

    def step(self) -> list[Drawn]:
        """Run the model once over the next token of each decoding request and a chunk of new prompts."""
        return self.finish(self.start())

    @torch.inference_mode()
    def start(self) -> Step:
        """Schedule a step. A GPU begins to compute it; meanwhile the caller can do something else."""
        step = Step(self.scheduler.next_step())
        self.cache.keep_only(self.scheduler.running)
        if self._is_on_gpu:
            self._compute(step)
        return step

    @torch.inference_mode()
    def finish(self, step: Step) -> list[Drawn]:
        """The tokens of a step; those of requests that were removed meanwhile are left out."""
        if not self._is_on_gpu:
            step.spans = [span for span in step.spans if span.request.table is not None]
            self._compute(step)
        if step.tokens is None or step.logits is None:
            return []
        drawn = []
        for row, (request, token) in enumerate(zip(step.requests, step.tokens.tolist(), strict=True)):
            if request.table is None:
                continue
            request.draw.took(token)
            request.ids.append(token)
            is_end = token in self._end_ids and not request.draw.sampling.ignore_eos
            is_last = is_end or len(request.ids) == request.prompt_tokens + request.room
            if is_last:
                self.scheduler.remove(request)
            top = request.draw.sampling.top_logprobs
            values = None if top is None else likelihood(step.logits[row], token, top)
            drawn.append(Drawn(request, token, values, is_last))
        return drawn

    def close(self) -> None:
        """Let go of the cache's memory."""
        self.cache.close()

    @property
    def shareable_tokens(self) -> int:
        """Tokens in pages that a new prompt could share."""
        return PAGE_TOKENS * self.pages.shareable

    def _compute(self, step: Step) -> None:
        spans = step.spans
        if not spans:
            return
        hidden = self._images.embedded([token for span in spans for token in span.request.ids[span.past : span.keys]])
        positions = torch.cat([torch.arange(span.past, span.keys) for span in spans]).to(self.cache.device)
        attention = SpanAttention(self.cache, spans, self.model.rotary_of(positions, hidden))
        logits = self.model(hidden, attention)
        step.requests = [span.request for span in spans if span.is_drawn]
        self.scheduler.computed(spans)
        if step.requests:
            step.logits, step.tokens = logits, tokens_of(logits, [request.draw for request in step.requests])
