"""model/inside.py says of a model what the model itself, run by hand, and transformers say."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from oracle_models import our_model, pair, random_ids, random_numbers

from model import inside
from model.decoding_layers import for_decoding
from model.inside import as_numbers, logits_of, look_inside, read_once

T = 24
SEEDS = [0, 1, 2, 3, 4, 7]  # tied and not, 1 to 3 layers, 1 to 4 key heads, plain RoPE and YaRN


def one_row(numbers: dict, tokens: int = T) -> list[int]:
    return random_ids(numbers, 1, tokens)[0].tolist()


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape and a.isfinite().all()
    return (a - b).abs().max().item()


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_last_stream_gives_the_models_own_logits(seed, moe):
    """The pass is the model's forward, bit by bit: last norm and head give model(ids)[0]."""
    numbers = random_numbers(seed, moe=moe)
    model, ids = our_model(numbers, seed), torch.tensor(one_row(numbers))
    run = read_once(model, ids)
    assert len(run.streams) == model.config.num_hidden_layers + 1
    with torch.no_grad():
        assert torch.equal(logits_of(model, run.streams[-1]), model(ids[None])[0][0])


@pytest.mark.parametrize("at_once", [inside.LOGITS_AT_ONCE, 300])
def test_surprise_is_cross_entropy_and_rank_counts_the_likelier_tokens(at_once, monkeypatch):
    """Whether logits are made in one part or in many; top ten and rank are those of a full sort."""
    monkeypatch.setattr(inside, "LOGITS_AT_ONCE", at_once)  # 300: of 2 to 4 places at a time
    numbers = random_numbers(1)
    model, ids = our_model(numbers), one_row(numbers)
    reading = look_inside(model, ids).reading
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0][0]
    expected = F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    assert expected.std() > 0.1
    assert largest_difference(reading.surprise, expected) <= 1e-5
    assert largest_difference(reading.probs, logits.softmax(-1).sort(-1, True)[0][:, :10]) <= 1e-6
    order = logits.argsort(-1, descending=True).tolist()
    assert reading.ids.tolist() == [row[:10] for row in order]
    ranks = [row.index(came) + 1 for row, came in zip(order, ids[1:])]
    assert reading.rank.tolist() == ranks and len(set(ranks)) > 5


@pytest.mark.parametrize("seed", SEEDS)
def test_attention_is_that_of_transformers(seed, tmp_path):
    """Every layer and head: the weights Qwen3's eager attention gives out for the same folder."""
    numbers = random_numbers(seed)
    model, theirs = pair(numbers, tmp_path / "m", seed)
    ids = one_row(numbers)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids]), output_attentions=True).attentions
    seen = []
    for layer in range(model.config.num_hidden_layers):
        for head in range(model.config.num_attention_heads):
            weights = look_inside(model, ids, layer, head).attention
            assert largest_difference(weights, expected[layer][0, head]) <= 1e-5
            seen.append(weights)
    different = [largest_difference(seen[0], other) for other in seen[1:]]
    assert min(different) > 0.01  # so that a wrong head or layer would be seen


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("seed", [0, 3, 4, 5])
def test_the_lens_reads_the_hidden_states_of_transformers(seed, moe, tmp_path):
    """Each layer's likeliest tokens, and what the real one costs, from transformers' states."""
    numbers = random_numbers(seed, moe=moe, num_hidden_layers=3)
    model, theirs = pair(numbers, tmp_path / "m", seed)
    ids = one_row(numbers)
    found = look_inside(model, ids, lens=True)
    with torch.no_grad():
        out = theirs(torch.tensor([ids]), output_hidden_states=True)
        *states, last = out.hidden_states  # the last one went through the norm already
        expected = [theirs.lm_head(theirs.model.norm(x))[0] for x in states]
        expected.append(theirs.lm_head(last)[0])
    assert len(found.lens) == len(expected) == 4
    for reading, logits in zip(found.lens, expected):
        probs, best = logits.softmax(-1).topk(3)
        assert reading.ids.tolist() == best.tolist()
        assert largest_difference(reading.probs, probs) <= 1e-5
        nats = F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
        assert largest_difference(reading.surprise, nats) <= 1e-4
    assert torch.equal(found.lens[-1].surprise, found.reading.surprise)
    assert found.lens[0].ids.tolist() != found.lens[-1].ids.tolist()


@pytest.mark.parametrize(("k", "norm"), [(1, False), (2, False), (2, True), (3, True)])
def test_experts_are_those_of_transformers_router(k, norm, tmp_path):
    """Which experts, with which weights and which load, from Qwen3Moe's router logits."""
    fixed = {"num_experts_per_tok": k, "norm_topk_prob": norm, "num_hidden_layers": 3}
    numbers = random_numbers(2, moe=True, **fixed)
    model, theirs = pair(numbers, tmp_path / "m")
    ids = one_row(numbers)
    found = look_inside(model, ids)
    with torch.no_grad():
        out = theirs(torch.tensor([ids]), output_router_logits=True)
    for layer, logits in enumerate(out.router_logits):
        weights, experts = logits.reshape(T, -1).softmax(-1).sort(-1, descending=True)
        weights, experts = weights[:, :k], experts[:, :k]
        if norm:
            weights = weights / weights.sum(-1, keepdim=True)
        assert found.experts[layer].tolist() == experts.tolist()
        assert largest_difference(found.expert_weights[layer], weights) <= 1e-5
        load = torch.bincount(experts.flatten(), minlength=logits.shape[-1]) / (T * k)
        assert largest_difference(found.expert_load[layer], load) <= 1e-6
    assert len(found.experts.unique()) > 2


@pytest.mark.parametrize("moe", [False, True])
def test_a_model_for_decoding_shows_the_same(moe):
    """Layers replaced for speed change nothing that is shown, but for rounding."""
    numbers = random_numbers(4, moe=moe, num_hidden_layers=2)
    model, ids = our_model(numbers), one_row(numbers)
    plain, fast = (look_inside(m, ids, 1, 2, lens=True) for m in (model, for_decoding(model)))
    assert largest_difference(plain.reading.surprise, fast.reading.surprise) <= 1e-4
    assert largest_difference(plain.attention, fast.attention) <= 1e-5
    for a, b in zip(plain.lens, fast.lens):
        assert largest_difference(a.probs, b.probs) <= 1e-5
    if moe:
        assert plain.experts.tolist() == fast.experts.tolist()
        assert largest_difference(plain.expert_weights, fast.expert_weights) <= 1e-5


def test_bfloat16_and_8_bit_integers_can_be_looked_into():
    """Half precision computes its shares in float32: rows of attention sum to 1."""
    numbers = random_numbers(4, head_dim=16)
    model, ids = our_model(numbers), one_row(numbers)
    half = copy.deepcopy(model).to(torch.bfloat16)
    for other in (half, for_decoding(half, int8=True)):
        found = look_inside(other, ids, 0, 3, lens=True)
        assert found.attention.dtype == found.reading.surprise.dtype == torch.float32
        assert largest_difference(found.attention.sum(-1), torch.ones(T)) <= 1e-5
        exact = look_inside(model, ids, 0, 3)
        assert largest_difference(found.attention, exact.attention) <= 0.2


def test_a_look_leaves_the_model_as_it_was():
    """No hook, no buffer, no parameter is another one: the model may answer others meanwhile."""
    numbers = random_numbers(2, moe=True)
    model = our_model(numbers)
    before = {name: t.clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}
    hooks = [
        (m._forward_hooks.copy(), m._forward_pre_hooks.copy(), m.forward) for m in model.modules()
    ]
    look_inside(model, one_row(numbers), 0, 0, lens=True)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.equal(tensor, before[name]), name
    after = [(m._forward_hooks, m._forward_pre_hooks, m.forward) for m in model.modules()]
    assert hooks == after


def test_a_single_token_has_a_next_one_and_no_surprise():
    """One id: what may follow is said, nothing has come yet; attention is all on itself."""
    numbers = random_numbers(0)
    found = as_numbers(our_model(numbers), look_inside(our_model(numbers), [5], 0, 0, lens=True))
    assert found["surprise"] == found["rank"] == []
    assert len(found["ids"]) == len(found["probs"]) == 1 and len(found["ids"][0]) == 10
    assert found["attention"] == [[1.0]]
    assert [reading["surprise"] for reading in found["lens"]] == [[]] * len(found["lens"])


def test_numbers_are_plain_and_attention_is_a_triangle():
    """as_numbers gives lists of Python numbers in the shapes that are written down."""
    numbers = random_numbers(2, moe=True, num_hidden_layers=2)
    model, ids = our_model(numbers), one_row(numbers, 7)
    found = as_numbers(model, look_inside(model, ids, 1, 3, lens=True))
    assert (found["layers"], found["heads"]) == (2, 4)
    assert found["experts_per_layer"] == numbers["num_experts"]
    assert [len(row) for row in found["attention"]] == [1, 2, 3, 4, 5, 6, 7]
    assert all(math.isclose(sum(row), 1, abs_tol=1e-5) for row in found["attention"])
    assert len(found["lens"]) == 3 and len(found["lens"][0]["ids"][6]) == 3
    assert len(found["experts"]["ids"]) == 2 and len(found["experts"]["ids"][0]) == 7
    assert type(found["experts"]["load"][0][0]) is float and type(found["rank"][0]) is int


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([], {}, "1 to 1024 tokens, got 0"),
        ([1] * 9, {"longest": 8}, "1 to 8 tokens, got 9"),
        ([1, 5000], {}, "expected ids from 0"),
        ([1, -1], {}, "expected ids from 0"),
        ([1, 2], {"layer": 1}, "both or neither"),
        ([1, 2], {"layer": 3, "head": 0}, "layer: expected 0 to 2, got 3"),
        ([1, 2], {"layer": -1, "head": 0}, "layer: expected 0 to 2, got -1"),
        ([1, 2], {"layer": 0, "head": 4}, "head: expected 0 to 3, got 4"),
    ],
)
def test_what_cannot_be_looked_at_is_named(ids, options, message):
    """Too long, too short, no such id, layer or head: a ValueError that says what is expected."""
    model = our_model(random_numbers(0, num_hidden_layers=3))
    with pytest.raises(ValueError, match=message):
        look_inside(model, ids, **options)
