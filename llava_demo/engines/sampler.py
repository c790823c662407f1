"""Which token comes next: penalties, filters, and a draw that a seed fixes. Works on rows of logits.

Every function takes logits as (rows, vocabulary) and its knobs as (rows, 1), so that requests with different knobs can
share a batch. A draw depends on its own row only: the same seed gives the same text alone or in a full batch. `choose`
does everything for rows that belong to one `Draw` each.
"""

import hashlib
import secrets
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llava_demo.chat import MAX_SEED, SamplingParams
from llava_demo.engines.grammar import Grammar

MIN_TEMPERATURE = 1e-4  # logits divided by less could overflow; the choice is greedy there anyway
CANDIDATES = 1024  # tokens sorted first; top_k is at most 1000
OPEN = -1  # in place of a token that is not drawn yet
BROKEN = -2  # in place of a token that cannot be drawn: the logits are NaN or infinite, as sums in 16 bits may be
Likelihood = tuple[float, list[tuple[int, float]]]  # a token's log-probability, the likeliest tokens and theirs
NO_PENALTIES = (1, 0, 0)  # repetition, frequency, presence
NO_FILTERS = (0, 1, 0)  # top_k, top_p, min_p


class Draw:
    """The knobs of one request, and the state of its answer that the next draw depends on.

    `prompt` holds the prompt's ids. Penalties do not apply to the ids of pictures: `image_token_id`, and all ids above
    the vocabulary. With a `grammar`, only tokens that it allows are drawn.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        prompt: Tensor,
        image_token_id: int,
        vocabulary: int,
        grammar: Grammar | None = None,
    ) -> None:
        self.sampling, self.grammar = sampling, grammar
        self.seed = sampling.seed if sampling.seed is not None else secrets.randbelow(MAX_SEED)
        self.step = 0  # tokens drawn so far
        self.penalties = (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        self.filters = (sampling.top_k, sampling.top_p, sampling.min_p)
        self.temperature = max(sampling.temperature, MIN_TEMPERATURE)
        self.is_penalised = self.penalties != NO_PENALTIES
        if self.is_penalised:
            self.counts = torch.zeros(vocabulary, device=prompt.device)  # how often the answer holds each token
            self.in_prompt = torch.zeros(vocabulary, dtype=torch.bool, device=prompt.device)
            self.in_prompt[prompt[(prompt < vocabulary) & (prompt != image_token_id)].long()] = True

    @property
    def key(self) -> int:
        return draw_key(self.seed, self.step)

    def took(self, token: int) -> None:
        """Note the token that was drawn."""
        self.step += 1
        if self.grammar:
            self.grammar.took(token)
        if self.is_penalised:
            self.counts[token] += 1


@torch.inference_mode()
def choose(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Draw the next token of each row, and note it in the row's `Draw`; `logits` as in `tokens_of`.

    Raises:
        FloatingPointError: a row has NaN or infinity.
    """
    tokens = settled(tokens_of(logits, draws), logits, draws)
    if BROKEN in tokens:
        raise FloatingPointError
    for draw, token in zip(draws, tokens, strict=True):
        draw.took(token)
    return tokens


@torch.inference_mode()
def tokens_of(logits: Tensor, draws: Sequence[Draw], width: int = CANDIDATES) -> Tensor:
    """The next token of each row, (rows), on the device of `logits`; it does not wait for a GPU.

    `logits` is (rows, vocabulary), float32, one row for each of `draws`. A row whose filters keep more than `width`
    tokens is OPEN, and `settled` draws it: only the GPU knows yet how many they keep. A row with NaN or infinity is
    BROKEN: its maximum is not finite.
    """
    logits = _with_grammars(_with_penalties(logits, draws), draws)
    most, tokens = logits.max(dim=-1)
    sampled = [i for i, draw in enumerate(draws) if not draw.sampling.is_greedy]
    filtered = [i for i in sampled if draws[i].filters != NO_FILTERS]
    free = [i for i in sampled if draws[i].filters == NO_FILTERS]
    for rows in (filtered, free):
        if not rows:
            continue
        drawing, all_or_some = [draws[i] for i in rows], slice(None) if len(rows) == len(draws) else _sent(rows, logits)
        keys, temperatures, *knobs = _columns([(draw.key, draw.temperature, *draw.filters) for draw in drawing], logits)
        scaled = logits[all_or_some] / temperatures.float()
        if rows is free:
            everything = torch.arange(logits.shape[-1], device=logits.device)
            tokens[all_or_some] = (scaled + gumbel_noise(keys.long(), everything)).argmax(-1)
        else:
            top_k, top_p, min_p = (knob.float() for knob in knobs)
            kept, ids, is_more = candidates(scaled, top_k, top_p, min_p, width)
            places = (kept + gumbel_noise(keys.long(), ids)).argmax(-1, keepdim=True)
            tokens[all_or_some] = ids.gather(1, places)[:, 0].masked_fill(is_more, OPEN)
    return tokens.masked_fill(~most.isfinite(), BROKEN)


@torch.inference_mode()
def settled(tokens: Tensor, logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """The tokens of `tokens_of`, in one transfer; OPEN rows are drawn here, from the sorted vocabulary."""
    found: list[int] = tokens.tolist()
    rows = [row for row, token in enumerate(found) if token == OPEN]
    if rows:
        drawn = tokens_of(logits[rows], [draws[row] for row in rows], logits.shape[-1]).tolist()
        for row, token in zip(rows, drawn, strict=True):
            found[row] = token
    return found


@torch.inference_mode()
def likelihoods(logits: Tensor, tokens: Sequence[int], draws: Sequence[Draw]) -> list[Likelihood | None]:
    """The log-probabilities of each row of raw logits, in one transfer; None where they are not wanted."""
    tops = [draw.sampling.top_logprobs for draw in draws]
    rows = [row for row, top in enumerate(tops) if top is not None]
    if not rows:
        return [None] * len(tops)
    values, width = logits[rows].float().log_softmax(dim=-1), 1 + max(top or 0 for top in tops)
    most = values.topk(width - 1)
    taken = torch.tensor([max(tokens[row], 0) for row in rows], device=logits.device)[:, None]  # one may be BROKEN
    found = torch.cat([values.gather(1, taken), most.values, most.indices.float()], dim=1).tolist()
    wanted: list[Likelihood | None] = [None] * len(tops)
    for row, (own, *others) in zip(rows, found, strict=True):
        likeliest = zip(map(int, others[width - 1 :]), others[: width - 1], strict=True)
        wanted[row] = own, list(likeliest)[: tops[row]]
    return wanted


def _with_penalties(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    rows = [i for i, draw in enumerate(draws) if draw.is_penalised]
    if not rows:
        return logits
    mine = [draws[i] for i in rows]
    knobs = [column.float() for column in _columns([draw.penalties for draw in mine], logits)]
    in_prompt, counts = (torch.stack([getattr(draw, name) for draw in mine]) for name in ("in_prompt", "counts"))
    logits, some = logits.clone(), _sent(rows, logits)
    logits[some] = penalised(logits[some], in_prompt, counts, *knobs)
    return logits


def _with_grammars(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """-inf for the tokens that a grammar forbids. On a CPU it takes 0.2 ms a row of 32,000 tokens."""
    allowed = {row: draw.grammar.allowed() for row, draw in enumerate(draws) if draw.grammar}
    if not allowed:
        return logits
    words = torch.stack(list(allowed.values())).to(logits.device, non_blocking=True)
    bits = words[:, :, None] >> torch.arange(32, dtype=torch.int32, device=logits.device)
    is_forbidden = (bits & 1).flatten(1)[:, : logits.shape[-1]] == 0
    rows, logits = _sent(list(allowed), logits), logits.clone()
    logits[rows] = logits[rows].masked_fill(is_forbidden, -torch.inf)
    return logits


def _columns(rows: Sequence[tuple[float, ...]], like: Tensor) -> tuple[Tensor, ...]:
    """The columns of a table, each (rows, 1), float64 to hold every key, in one transfer to the device of `like`."""
    return _sent(rows, like, torch.float64).split(1, dim=1)


def _sent(values: Sequence[Any], like: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
    """A tensor on the device of `like`. By default torch waits for a GPU when it copies, or indexes with a list."""
    return torch.tensor(values, dtype=dtype).to(like.device, non_blocking=True)


def penalised(
    logits: Tensor, in_prompt: Tensor, counts: Tensor, repetition: Tensor, frequency: Tensor, presence: Tensor
) -> Tensor:
    """Make tokens that occurred before less likely.

    `in_prompt` (bool) and `counts` (occurrences in the answer) are (rows, vocabulary). The repetition penalty (Keskar
    et al. 2019, arXiv 1909.05858) is over prompt and answer; frequency and presence penalties are over the answer, as
    OpenAI defines them.
    """
    in_answer = counts > 0
    divided = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(in_prompt | in_answer, divided, logits)
    return logits - frequency * counts - presence * in_answer


def candidates(
    logits: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits of the tokens that all three filters keep, their ids, and which rows keep more than `width`.

    Logits and ids are (rows, n), likeliest first, of the `width` likeliest tokens, with -inf for tokens that are not
    kept; the likeliest token is always kept. `top_p` applies to what `top_k` left, as in transformers; `top_k` 0 keeps
    all.
    """
    is_whole = width >= logits.shape[-1]
    ordered, ids = logits.sort(dim=-1, descending=True) if is_whole else logits.topk(width, dim=-1)
    kept = _kept(ordered, logits.logsumexp(dim=-1, keepdim=True), top_k, top_p, min_p)
    is_more = torch.zeros_like(kept[:, -1]) if is_whole else kept[:, -1]
    return ordered.masked_fill(~kept, -torch.inf), ids, is_more


def _kept(ordered: Tensor, total: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Which of each row's likeliest tokens are kept; `total` is the logsumexp of the whole row."""
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    kept = (rank < top_k) | (top_k == 0)
    in_top_k = ordered.masked_fill(~kept, -torch.inf)
    total = torch.where(top_k == 0, total, in_top_k.logsumexp(dim=-1, keepdim=True))
    probabilities = (in_top_k - total).exp()
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = kept & ((before < top_p) | (top_p == 1))  # 1 drops nothing, even if the sum is rounded
    kept = kept & (probabilities >= min_p * probabilities[:, :1])
    kept[:, 0] = True
    return kept


def draw_key(seed: int, step: int) -> int:
    """The 32-bit key for drawing token number `step` of an answer."""
    data = seed.to_bytes(8, "little") + step.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "little")


def gumbel_noise(keys: Tensor, tokens: Tensor) -> Tensor:
    """Noise for `tokens`: the argmax of their logits plus it is a draw from softmax(logits) (the Gumbel-max trick).

    It is a hash of (key, token id) without state, so it is the same on every device and in every batch. `keys` is
    (rows, 1), int64 below 2^32; `tokens` is (n) or (rows, n).
    """
    uniform = (_mixed(tokens * 0x9E3779B1 + _mixed(keys)).double() + 0.5) / 2**32
    return -torch.log(-torch.log(uniform)).float()


def _mixed(x: Tensor) -> Tensor:
    """The 32-bit mixer `lowbias32` (Wellons, "Prospecting for Hash Functions", 2018) in int64 lanes."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)
