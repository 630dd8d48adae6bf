"""From logits to tokens: the distribution is that of transformers' processors, the draws fit it."""

import math

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.sampling import PREFIX, Draws, Said, Sampler, Sampling, filter_logits, inverse

FILTERS = [
    {},
    {"temperature": 0.7},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 150},
    {"top_k": 10_000},
    {"top_p": 0.9},
    {"top_p": 0.3},
    {"top_p": 1e-6},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 0.6},
    {"logit_bias": {3: 4.0, 7: -100.0}},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.2},
    {"temperature": 1.7, "top_k": 200, "top_p": 0.95, "repetition_penalty": 1.1},
    {"temperature": 3.0, "top_k": 200, "top_p": 0.9, "min_p": 0.01},
]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_filters_give_the_distribution_of_transformers_processors(options):
    """Bias, penalty, temperature, top-k, top-p, min-p: the same tokens are left, as probable."""
    logits = randn(16, 300) * 3
    generator = torch.Generator().manual_seed(0)
    seen = torch.randint(300, (16, 40), generator=generator)  # with repeats
    processors = LogitsProcessorList()
    for key, processor in (
        ("repetition_penalty", RepetitionPenaltyLogitsProcessor),
        (
            "logit_bias",
            lambda bias: SequenceBiasLogitsProcessor({(k,): v for k, v in bias.items()}),
        ),
        ("temperature", TemperatureLogitsWarper),
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
        ("min_p", MinPLogitsWarper),
    ):
        if key in options:
            processors.append(processor(options[key]))
    before, sampling = logits.clone(), Sampling(**options)
    said = [Said(sampling, row.tolist(), 300, "cpu") for row in seen]
    penalised = torch.stack([s.penalise(row) for s, row in zip(said, logits)])
    filtered = filter_logits(penalised, sampling)
    assert torch.equal(logits, before)
    expected = processors(seen, logits)
    assert torch.equal(filtered.isneginf(), expected.isneginf())
    assert (filtered.softmax(-1) - expected.softmax(-1)).abs().max() <= 1e-6


def test_frequency_and_presence_penalties_are_openais():
    """mu[j] − c[j] · frequency − (c[j] > 0) · presence, c counting what was generated alone."""
    sampling = Sampling(frequency_penalty=0.5, presence_penalty=0.25)
    logits = randn(20)
    said = Said(sampling, [1, 2, 3], 20, "cpu")
    answer = [2, 5, 5, 9, 5]
    for token in answer:
        said.add(token)
    for token, before, after in zip(range(20), logits.tolist(), said.penalise(logits).tolist()):
        count = answer.count(token)
        assert after == pytest.approx(before - 0.5 * count - 0.25 * (count > 0), abs=1e-6)


def draws_of(*settings, seed=0, vocab=6):
    return [Draws(s, [0, 4], seed, row, vocab, "cpu") for row, s in enumerate(settings)]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.3},
        {"temperature": 0.9, "top_k": 5, "top_p": 0.95, "repetition_penalty": 1.2},
        {"min_p": 0.1, "logit_bias": {5: 6.0}},
    ],
    ids=str,
)
def test_draws_have_the_frequencies_of_the_filtered_softmax(options):
    """Over many rows, each with numbers of its own."""
    rows, sampling = 20_000, Sampling(**options)
    logits = torch.tensor([[2.0, 1.5, 1.0, 0.0, -1.0, -4.0]])
    draws = draws_of(*[sampling] * rows)
    sampler = Sampler(draws, "cpu")
    expected = filter_logits(sampler.penalised(logits.expand(rows, -1))[:1], sampling).softmax(-1)
    drawn = torch.tensor(sampler.next(logits.expand(rows, -1)))
    frequency = drawn.bincount(minlength=6) / rows
    assert (frequency[expected[0] == 0] == 0).all()
    sigma = (expected[0] * (1 - expected[0]) / rows).sqrt()
    assert ((frequency - expected[0]).abs() <= 5 * sigma).all()


def test_without_temperature_it_is_the_likeliest_token():
    """temperature 0 is argmax whatever the filters say, in float16 too; so is a filter to one."""
    logits = randn(8, 50).half()
    best = logits.float().argmax(-1).tolist()
    for options in (
        {"temperature": 0, "top_k": 3, "top_p": 0.1},
        {"top_k": 1},
        {"top_p": 1e-9},
        {"min_p": 1.0},
    ):
        draws = draws_of(*[Sampling(**options)] * 8, vocab=50)
        assert Sampler(draws, "cpu").next(logits) == best


def test_rows_with_other_settings_draw_what_they_draw_alone():
    """Greedy, plain, filtered and penalised rows in one batch, over several tokens."""
    settings = [Sampling(**options) for options in [*FILTERS, {"temperature": 0}]]
    steps = [randn(len(settings), 300, seed=s) * 2 for s in range(12)]
    together = Sampler(draws_of(*settings, vocab=300), "cpu")
    expected = [together.next(logits) for logits in steps]
    for row, draws in enumerate(draws_of(*settings, vocab=300)):
        alone = Sampler([draws], "cpu")
        tokens = [alone.next(logits[row : row + 1]) for logits in steps]
        assert [[tokens[row]] for tokens in expected] == tokens


def test_a_draw_never_falls_on_what_is_ruled_out():
    """Numbers at and next to both ends, probabilities of 0 at both ends."""
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).expand(5, -1)
    numbers = [0.0, math.nextafter(0.25, 0), 0.25, 0.5, math.nextafter(1, 0)]
    places = inverse(probs, torch.tensor(numbers, dtype=torch.float64))
    assert places.tolist() == [1, 1, 3, 3, 3]


@pytest.mark.parametrize("vocab", [50, 3000])
@pytest.mark.parametrize("flatness", [0.01, 1.0, 8.0])
@pytest.mark.parametrize(
    "options",
    [{"top_p": p} for p in (0.05, 0.5, 0.9, 0.999)]
    + [{"top_k": 500}, {"top_k": 20, "top_p": 0.5}, {"min_p": 0.02}],
    ids=str,
)
def test_looking_at_the_likeliest_first_changes_nothing(vocab, flatness, options):
    """Few or many tokens are left: a draw is the one at its place among all that are left, sorted.

    The border may fall on either of two tokens whose probabilities are equal in float32.
    """
    rows, sampling = 64, Sampling(**options)
    logits = randn(rows, vocab) * flatness
    uniform = torch.rand(rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = Sampler(draws_of(*[sampling] * rows, vocab=vocab), "cpu").draw(logits, uniform)
    ordered, index = filter_logits(logits, sampling).double().sort(descending=True)
    reached = ordered.softmax(-1).cumsum(-1)
    place = (index == drawn[:, None]).double().argmax(-1, keepdim=True)
    end = reached.gather(1, place)[:, 0]
    begin = torch.where(place[:, 0] > 0, reached.gather(1, (place - 1).clamp(min=0))[:, 0], 0)
    assert (begin - 1e-5 <= uniform).all() and (uniform <= end + 1e-5).all()
    if vocab == 3000 and flatness == 0.01 and options == {"top_p": 0.9}:
        assert place.max() > 8 * PREFIX  # or more were never sorted


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("flatness", [0.01, 1.0, 8.0])
def test_the_nucleus_is_the_smallest_set_that_reaches_p(flatness, top_p):
    """By a sort in float64; the border may fall on either of two that are equal in float32."""
    logits = randn(8, 1000) * flatness
    ordered, index = logits.double().sort(descending=True)
    probs = ordered.softmax(-1)
    reached = probs.cumsum(-1) - probs
    kept = ~filter_logits(logits, Sampling(top_p=top_p)).isneginf().gather(1, index)
    clear = (reached - top_p).abs() > 1e-6
    clear[:, 0] = False
    assert torch.equal(kept[clear], (reached < top_p)[clear])
    assert kept[:, 0].all()
