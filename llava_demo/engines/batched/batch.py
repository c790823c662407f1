"""`Batch`: requests that are answered together, one step of the model at a time, in the thread that calls it."""

import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from llava_demo.chat import SamplingParams
from llava_demo.engines.answer import TokenLikelihood
from llava_demo.engines.batched.attention import Cache, CacheShape, SpanAttention
from llava_demo.engines.batched.graphs import SIZES, DecodeSteps
from llava_demo.engines.batched.pages import PAGE_TOKENS, Pages
from llava_demo.engines.batched.schedule import BatchSize, Request, Scheduler, Span
from llava_demo.engines.batched.step import Decoder, add_norm, gated
from llava_demo.engines.sampler import BROKEN, Draw, likelihoods, settled, tokens_of
from llava_demo.model import native
from llava_demo.model.image_tokens import ImageTokens
from llava_demo.model.llava import Llava
from llava_demo.model.products import keep_freed_memory

LONGEST_PAUSE_S = 0.1  # the longest delay of decoding requests by a chunk of a newcomer's prompt
SMALL_CHUNK = 256  # on GPUs on which a big chunk takes longer


@dataclass(frozen=True)
class Drawn:
    """The token that a step drew for a request; BROKEN where the logits are no numbers, and the request was removed."""

    request: Request
    token: int
    likelihood: TokenLikelihood | None
    is_last: bool


@dataclass
class Step:
    """A step under way; `logits` (rows, vocabulary) and `tokens` (rows) belong to `requests`."""

    spans: list[Span]
    requests: list[Request] = field(default_factory=list)
    logits: Tensor | None = None
    tokens: Tensor | None = None


class Batch:
    """The cache, the scheduler and the model of the requests that run."""

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
        self.cache = Cache(CacheShape.of(llava.model), size.pages + 1)  # one is spare, see `DecodeSteps`
        if self.cache.native:
            self.model.add_norm, self.model.gated = native.add_norm, native.gated
        self._embeddings, self._context = llava.model.get_input_embeddings(), llava.context_tokens
        self.decode = self.decode_steps() if self._is_on_gpu else None  # on a CPU all spans are computed together

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
        """The tokens of a step, without those of requests that were removed meanwhile."""
        if not self._is_on_gpu:
            step.spans = [span for span in step.spans if span.request.table is not None]
            self._compute(step)
        if step.tokens is None or step.logits is None:
            return []
        draws = [request.draw for request in step.requests]
        tokens = settled(step.tokens, step.logits, draws)
        values, drawn = likelihoods(step.logits, tokens, draws), []
        for request, token, value in zip(step.requests, tokens, values, strict=True):
            if request.table is None:
                continue
            if token == BROKEN:
                self.pages.unpublish(request.table)
            else:
                request.draw.took(token)
                request.ids.append(token)
            is_end = token == BROKEN or token in request.draw.sampling.end_ids(self._end_ids)
            is_last = is_end or len(request.ids) == request.prompt_tokens + request.room
            if is_last:
                self.scheduler.remove(request)
            drawn.append(Drawn(request, token, value, is_last))
        return drawn

    def close(self) -> None:
        """Free the cache's memory."""
        self.cache.close()

    def _compute(self, step: Step) -> None:
        spans = step.spans
        if not spans:
            return
        prompts = [span for span in spans if self.decode is None or not span.request.is_decoding]
        decoding = [span.request for span in spans if self.decode is not None and span.request.is_decoding]
        logits = [self._logits(prompts)] if prompts else []
        step.requests = [*(span.request for span in prompts if span.is_drawn), *decoding]
        if self.decode is not None and decoding:
            logits.append(self.decode.run(decoding))
        self.scheduler.computed(spans)
        if step.requests:
            step.logits = logits[0] if len(logits) == 1 else torch.cat(logits)
            step.tokens = tokens_of(step.logits, [request.draw for request in step.requests])

    def decode_steps(self) -> DecodeSteps:
        """Static steps for as many requests as the batch holds, of as many tokens as each may have."""
        pages = -(-min(self._context, self.size.tokens) // PAGE_TOKENS)
        return DecodeSteps(self.model, self._embeddings, self.cache, self.size.requests, pages)

    def warm_up(self) -> str | None:
        """Have a GPU compile its kernels, capture its graphs and read prompts; returns a sentence about the graphs.

        Where compiling or capturing fails, steps run one operation after the other. Returns None on a CPU.
        """
        if self.decode is None:
            return None
        with torch.cuda.device_of(self.cache.layers[0]):
            words = self._captured(self.decode)
            big = self.size.big_chunk
            lengths = *SIZES, big, big  # kernels for 4-bit weights are chosen on the way; only the last run is timed
            seconds = [self._prompt_seconds(token, length) for token, length in enumerate(lengths, start=1)]
        if seconds[-1] > LONGEST_PAUSE_S:
            self.scheduler.size = replace(self.size, chunk=min(self.size.chunk, SMALL_CHUNK))
        return words

    def _captured(self, decode: DecodeSteps) -> str:
        try:
            from llava_demo.engines.batched import kernels

            self.model.add_norm, self.model.gated = kernels.add_norm, kernels.gated
            decode.attend = kernels.attend
            decode.capture()
        except Exception as error:  # noqa: BLE001, whatever a driver, a compiler or a kernel raises
            self.model.add_norm, self.model.gated = add_norm, gated
            self.decode = self.decode_steps()
            words = (str(error).splitlines() or [""])[0][:200]
            return f"Decode steps run one operation after the other: no CUDA graph, {type(error).__name__}: {words}."
        return f"Decode steps are CUDA graphs, for up to {decode.sizes[-1]} chats at once."

    def _prompt_seconds(self, token: int, length: int) -> float:
        """How long the model reads a prompt of `length` tokens, or as many as fit, which are all `token`."""
        started, tokens = time.perf_counter(), min(length, self._context - 1, self.size.tokens - PAGE_TOKENS)
        draw = Draw(SamplingParams(temperature=0), torch.tensor([token], device=self.cache.device), -1, 2)
        request = Request([token] * tokens, 1, draw)
        self.scheduler.add(request)
        self.step()
        return time.perf_counter() - started

    def _logits(self, spans: list[Span]) -> Tensor:
        """The logits of the spans for which a token is drawn."""
        hidden = self._images.embedded([token for span in spans for token in span.request.ids[span.past : span.keys]])
        positions = torch.cat([torch.arange(span.past, span.keys) for span in spans]).to(self.cache.device)
        attention = SpanAttention(self.cache, spans, self.model.rotary_of(positions, hidden))
        logits: Tensor = self.model(hidden, attention)
        return logits
