"""Which token comes next: penalties, filters, and a draw that a seed fixes. Works on rows of logits, knows no requests.

Every function takes logits as (rows, vocabulary) and its knobs as (rows, 1), so that requests with different knobs can
share a batch. A draw depends on nothing but its own row: the same seed gives the same text alone or in a full batch.
"""

import hashlib

import torch
from torch import Tensor

MIN_TEMPERATURE = 1e-4  # below it logits divided by the temperature could overflow; the choice is the likeliest anyway


def penalised(
    logits: Tensor, in_prompt: Tensor, counts: Tensor, repetition: Tensor, frequency: Tensor, presence: Tensor
) -> Tensor:
    """Make tokens that were there before less likely.

    `in_prompt` (bool) and `counts` (how often the answer holds a token) are (rows, vocabulary). The repetition penalty
    (Keskar et al. 2019, arXiv 1909.05858) is over prompt and answer; frequency and presence penalties are over the
    answer, as OpenAI defines them.
    """
    in_answer = counts > 0
    divided = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(in_prompt | in_answer, divided, logits)
    return logits - frequency * counts - presence * in_answer


def filtered(logits: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Keep the tokens that all three filters keep, and put -inf in place of the others; the likeliest is always kept.

    `top_p` sees what `top_k` left, as in transformers; `top_k` 0 keeps all.
    """
    ordered, order = logits.sort(dim=-1, descending=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    kept = (rank < top_k) | (top_k == 0)
    probabilities = ordered.masked_fill(~kept, -torch.inf).softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = kept & ((before < top_p) | (top_p == 1))  # with 1 nothing is dropped, whatever the rounding of the sum
    kept = kept & (probabilities >= min_p * probabilities[:, :1])
    kept[:, 0] = True
    return logits.masked_fill(~torch.zeros_like(kept).scatter(1, order, kept), -torch.inf)


def draw_key(seed: int, step: int) -> int:
    """The key, 32 bits, of the draw of token number `step` of an answer."""
    data = seed.to_bytes(8, "little") + step.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "little")


def gumbel_noise(keys: Tensor, vocabulary: int) -> Tensor:
    """Noise (rows, vocabulary): the argmax of logits plus it is a draw from softmax(logits) (the Gumbel-max trick).

    It is a hash of (key, token id) and no state, so it is the same on every device and in every batch. `keys` is
    (rows, 1), int64 below 2^32.
    """
    tokens = torch.arange(vocabulary, device=keys.device)
    uniform = (_mixed(tokens * 0x9E3779B1 + _mixed(keys)).double() + 0.5) / 2**32
    return -torch.log(-torch.log(uniform)).float()


def _mixed(x: Tensor) -> Tensor:
    """The 32-bit mixer `lowbias32` (Wellons, "Prospecting for Hash Functions", 2018) in int64 lanes."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)
