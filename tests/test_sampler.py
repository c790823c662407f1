"""The sampling maths, against transformers' own processors and against statistics."""

import math

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llava_demo.chat import SamplingParams
from llava_demo.engines.sampler import (
    CANDIDATES,
    OPEN,
    Draw,
    candidates,
    choose,
    draw_key,
    gumbel_noise,
    likelihoods,
    penalised,
    settled,
    tokens_of,
)

VOCABULARY = 300


def logits(rows: int = 20, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * scale


def filtered(scores: torch.Tensor, *knobs: torch.Tensor) -> torch.Tensor:
    """The logits with -inf for what the filters drop, as transformers writes them."""
    kept, ids, is_more = candidates(scores, *knobs, CANDIDATES)
    found = torch.full_like(scores, -torch.inf).scatter_(1, ids, kept)
    kept, ids, is_still_more = candidates(scores, *knobs, scores.shape[-1])
    assert not is_still_more.any()
    return torch.where(is_more[:, None], torch.full_like(scores, -torch.inf).scatter_(1, ids, kept), found)


def noise_of(keys: torch.Tensor, vocabulary: int) -> torch.Tensor:
    return gumbel_noise(keys, torch.arange(vocabulary))


def row(*knobs: float) -> torch.Tensor:
    return torch.tensor(knobs)[:, None]


def filters(top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> tuple[torch.Tensor, ...]:
    return row(top_k), row(top_p), row(min_p)


@pytest.mark.parametrize("top_k", [0, 1, 5, 299, 300, 1000])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 1.0])
def test_filters_keep_what_transformers_keeps(top_k: int, top_p: float, min_p: float) -> None:
    theirs = LogitsProcessorList()
    if top_k:
        theirs.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        theirs.append(TopPLogitsWarper(top_p))
    if min_p:
        theirs.append(MinPLogitsWarper(min_p))
    scores = logits()
    assert torch.equal(filtered(scores, *filters(top_k, top_p, min_p)), theirs(None, scores.clone()))


@pytest.mark.parametrize("top_p", [0.3, 0.99, 1.0])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_of_a_large_vocabulary_no_less_is_kept(top_p: float, scale: float) -> None:
    """Flat logits keep more than the CANDIDATES that are looked at first."""
    scores = torch.randn(3, 4 * CANDIDATES, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[scale], [0.1], [3.0]]
    )
    theirs = TopPLogitsWarper(top_p)(None, scores.clone()) if top_p < 1 else scores
    ours = filtered(scores, *(knob.expand(3, 1) for knob in filters(top_p=top_p)))
    kept, expected = torch.isfinite(ours), torch.isfinite(theirs)
    assert (kept != expected).sum() <= 3  # the last one of a row, where sums of thousands are rounded otherwise
    assert torch.equal(ours[kept], scores[kept])


def test_neutral_filters_drop_nothing() -> None:
    scores = logits(scale=30)  # some tokens have a probability of 0 in float32
    assert torch.equal(filtered(scores, *filters()), scores)


def test_the_likeliest_token_is_never_dropped() -> None:
    scores = torch.zeros(1, VOCABULARY)  # all alike
    assert torch.isfinite(filtered(scores, *filters(top_p=0.0, min_p=1.0))).any()


def test_repetition_penalty_is_that_of_transformers() -> None:
    scores = logits(4)
    ids = torch.randint(0, VOCABULARY, (4, 30), generator=torch.Generator().manual_seed(1))
    in_prompt = torch.zeros(4, VOCABULARY, dtype=torch.bool).scatter_(1, ids[:, :20], True)
    counts = torch.zeros(4, VOCABULARY).scatter_add_(1, ids[:, 20:], torch.ones(4, 10))
    ours = penalised(scores, in_prompt, counts, row(1.3), row(0.0), row(0.0))
    assert torch.equal(ours, RepetitionPenaltyLogitsProcessor(1.3)(ids, scores.clone()))


def test_frequency_and_presence_penalties_are_openais_formula() -> None:
    """mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, of OpenAI's API reference."""
    scores, prompt = torch.zeros(1, 4), torch.tensor([[True, False, False, False]])
    counts = torch.tensor([[0.0, 0.0, 1.0, 3.0]])
    ours = penalised(scores, prompt, counts, row(1.0), row(0.5), row(0.25))
    assert ours.tolist() == [[0.0, 0.0, -0.75, -1.75]]


def test_rows_with_different_knobs_share_a_batch() -> None:
    scores = logits(3)
    knobs = [(0, 0.5, 0.0), (7, 1.0, 0.0), (0, 1.0, 0.1)]
    together = filtered(scores, *(torch.tensor(column)[:, None] for column in zip(*knobs, strict=True)))
    alone = [filtered(scores[i : i + 1], *filters(*knobs[i])) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_noise_depends_on_its_row_alone() -> None:
    keys = torch.tensor([[draw_key(seed, step)] for seed, step in [(1, 0), (1, 1), (2, 0)]])
    together = noise_of(keys, VOCABULARY)
    assert torch.equal(together, torch.cat([noise_of(key[None], VOCABULARY) for key in keys]))
    assert torch.equal(together[:, :100], noise_of(keys, 100))
    assert len({tuple(noise.tolist()) for noise in together}) == 3


def test_the_seed_of_an_answer_means_the_same_for_ever() -> None:
    """A number that somebody wrote down with an answer must not lose its meaning with an upgrade."""
    assert draw_key(7, 0) == 3106562625
    noise = noise_of(torch.tensor([[draw_key(7, 0)]]), 3)
    assert noise[0].tolist() == pytest.approx([-0.3358, 0.2464, 2.7839], abs=1e-4)


@pytest.mark.parametrize("seed", [0, 12345, 2**63 - 1])
def test_draws_follow_the_probabilities(seed: int) -> None:
    """Chi-squared over 40 tokens and 20,000 draws; 999 of 1,000 fair samplers stay below 39 + 4 * sqrt(78)."""
    scores = logits(1, scale=1.0)[:, :40]
    draws, expected = 20_000, scores.softmax(-1)[0]
    keys = torch.tensor([[draw_key(seed, step)] for step in range(draws)])
    counts = (scores + noise_of(keys, 40)).argmax(-1).bincount(minlength=40)
    chi_squared = ((counts - draws * expected) ** 2 / (draws * expected)).sum()
    assert chi_squared < 39 + 4 * math.sqrt(78)


def test_draws_of_neighbours_are_independent() -> None:
    """Of one token to the next, of one step to the next, and of one seed to the next; 5 standard errors of 200,000."""
    keys = torch.tensor([[[draw_key(seed, step)] for step in range(100)] for seed in range(8)]).view(-1, 1)
    noise = noise_of(keys, 250).view(8, 100, 250)
    pairs = [
        (noise[:, :, 1:], noise[:, :, :-1]),
        (noise[:, 1:], noise[:, :-1]),
        (noise[1:], noise[:-1]),
    ]
    for one, other in pairs:
        correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 5 / math.sqrt(one.numel())


# What a request's row gets, whoever else is in the batch


KNOBS = [
    {"temperature": 0.7, "top_p": 0.8},
    {"temperature": 1.3, "min_p": 0.02, "top_k": 60},
    {"temperature": 1.0},
    {"temperature": 0.5, "top_k": 7},
]


def draws_of(count: int, **knobs: float) -> list[Draw]:
    prompt = torch.tensor([1, 2, 3])
    return [Draw(SamplingParams(seed=seed, **knobs), prompt, 4, 40) for seed in range(count)]


@pytest.mark.parametrize("knobs", KNOBS)
def test_choices_follow_the_probabilities_that_the_knobs_leave(knobs: dict[str, float]) -> None:
    """Chi-squared over 20,000 seeds in batches of 1,000, against softmax of transformers' own warpers."""
    scores = logits(1, scale=1.0)[:, :40]
    warpers = LogitsProcessorList([TemperatureLogitsWarper(knobs["temperature"])])
    if "top_k" in knobs:
        warpers.append(TopKLogitsWarper(int(knobs["top_k"])))
    if "top_p" in knobs:
        warpers.append(TopPLogitsWarper(knobs["top_p"]))
    if "min_p" in knobs:
        warpers.append(MinPLogitsWarper(knobs["min_p"]))
    expected = warpers(None, scores.clone()).softmax(-1)[0] * 20_000
    draws = draws_of(20_000, **knobs)
    chosen = [
        token for start in range(0, 20_000, 1000) for token in choose(scores.expand(1000, -1), draws[start:][:1000])
    ]
    counts = torch.tensor(chosen).bincount(minlength=40)
    assert counts[expected == 0].sum() == 0
    big = expected > 5
    freedom = int(big.sum()) - 1
    chi_squared = ((counts - expected) ** 2 / expected)[big].sum()
    assert chi_squared < freedom + 4 * math.sqrt(2 * freedom)


def test_a_row_is_chosen_as_if_it_were_alone() -> None:
    """Greedy, sampled and penalised rows share a batch; each one's choice is the one that it gets by itself."""
    scores = logits(12)
    mixture = [*KNOBS, {"temperature": 0.0}, {"temperature": 0.9, "repetition_penalty": 1.4, "frequency_penalty": 0.3}]

    def draws() -> list[Draw]:
        prompt = torch.tensor([1, 2, 3, VOCABULARY + 5])
        return [Draw(SamplingParams(seed=n, **mixture[n % 6]), prompt, 4, VOCABULARY) for n in range(12)]

    together, alone = draws(), draws()
    for _ in range(5):
        assert choose(scores, together) == [choose(scores[n : n + 1], [alone[n]])[0] for n in range(12)]
    greedy = [n for n in range(12) if mixture[n % 6] == {"temperature": 0.0}]
    assert [choose(scores, together)[n] for n in greedy] == scores[greedy].argmax(-1).tolist()


def test_likelihoods_are_of_the_models_own_probabilities() -> None:
    scores = logits(3)
    draws = [Draw(SamplingParams(top_logprobs=top), torch.tensor([1]), 2, VOCABULARY) for top in (5, None, 0)]
    (value, top), nothing, (_, none) = likelihoods(scores, [7, 7, 7], draws)
    assert nothing is None
    expected = scores[0].log_softmax(-1)
    assert value == pytest.approx(float(expected[7]))
    assert [token for token, _ in top] == expected.topk(5).indices.tolist()
    assert [value for _, value in top] == pytest.approx(expected.topk(5).values.tolist())
    assert none == []


def test_rows_that_keep_more_than_was_looked_at_are_drawn_like_the_others() -> None:
    """Beside rows with sharp logits stand flat ones, of which a draw that sees CANDIDATES tokens only knows half."""
    scores = torch.randn(60, 4 * CANDIDATES, generator=torch.Generator().manual_seed(0))
    scores[::2] *= 10

    def draws() -> list[Draw]:
        knobs = ({"top_p": 0.99}, {"min_p": 1e-6}, {"top_k": 1000})
        each = (SamplingParams(temperature=1, seed=seed, **knobs[seed % 3]) for seed in range(60))
        return [Draw(sampling, torch.tensor([1]), 2, 4 * CANDIDATES) for sampling in each]

    tokens = tokens_of(scores, draws())
    is_open = [row % 2 == 1 and row % 3 != 2 for row in range(60)]
    assert (tokens == OPEN).tolist() == is_open
    found = settled(tokens, scores, draws())
    assert found == tokens_of(scores, draws(), 4 * CANDIDATES).tolist()
    ranks = (scores > scores.gather(1, torch.tensor(found)[:, None])).sum(-1)
    assert any(rank > CANDIDATES for rank, is_wide in zip(ranks.tolist(), is_open, strict=True) if is_wide)


def test_until_all_tokens_are_read_at_once_nothing_waits_for_a_gpu() -> None:
    """On torch's "meta" device whatever looks at a number fails, as it would make a GPU's queue run empty."""
    knobs = ({"temperature": 0}, {}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 5}, {"frequency_penalty": 1})
    draws, vocabulary = [], 4 * CANDIDATES
    for knob in knobs:
        draw = Draw(SamplingParams(**{"temperature": 1, "seed": 1} | knob), torch.tensor([1]), 2, vocabulary)
        if draw.is_penalised:
            draw.counts, draw.in_prompt = draw.counts.to("meta"), draw.in_prompt.to("meta")
        draws.append(draw)
    tokens = tokens_of(torch.empty(len(draws), vocabulary, device="meta"), draws)
    assert tokens.shape == (len(draws),)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        tokens.tolist()


def test_frequency_penalty_grows_with_each_time_that_a_token_came() -> None:
    sampling = SamplingParams(temperature=0, frequency_penalty=1, repetition_penalty=1)
    draw = Draw(sampling, torch.tensor([1]), image_token_id=2, vocabulary=VOCABULARY)
    scores = torch.full((1, VOCABULARY), -10.0)
    scores[0, 5], scores[0, 6] = 2.5, 0.0
    assert [choose(scores, [draw])[0] for _ in range(5)] == [5, 5, 5, 6, 5]  # 2.5, 1.5, 0.5, then -0.5 against 0


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_smallest_temperatures_choose_the_likeliest_token(top_p: float) -> None:
    """Divided by them, two large logits are both infinite in float32, and the first one would be taken."""
    scores = torch.full((1, VOCABULARY), -10.0)
    scores[0, 5], scores[0, 6] = 2.9, 3.0
    for seed in range(10):
        sampling = SamplingParams(temperature=1e-40, top_p=top_p, seed=seed)
        assert choose(scores, [Draw(sampling, torch.tensor([1]), 2, VOCABULARY)]) == [6]
