"""model/generation.py: the tokens of transformers' generate, from a cache that changes nothing."""

import pytest
import torch
from oracle_models import our_model, pair, random_ids, random_numbers

from model.attention import attention
from model.generation import KVCache, generate, generate_batch
from training.evaluation import greedy_answers

# dense with plain positions, dense with YaRN, and experts
MODELS = {
    "dense": random_numbers(1, num_hidden_layers=2),
    "yarn": random_numbers(2),
    "moe": random_numbers(4, moe=True),
}


@pytest.fixture(scope="module", params=MODELS)
def models(request, tmp_path_factory):
    """The same weights here and in transformers, and their numbers."""
    numbers = MODELS[request.param]
    return *pair(numbers, tmp_path_factory.mktemp("generation") / "m"), numbers


def prompts(numbers: dict) -> list[list[int]]:
    return [random_ids(numbers, 1, n, seed=n)[0].tolist() for n in (1, 2, 7, 30)]


def their_tokens(theirs, prompt: list[int], new_tokens: int, stop_ids: set[int], **options):
    ids = torch.tensor([prompt])
    stop = sorted(stop_ids) or [theirs.config.vocab_size + 1]  # an id that never comes
    output = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=0,
        **options,
    )
    return output[0, len(prompt) :].tolist()


def test_greedy_tokens_equal_those_of_transformers(models):
    """temperature 0 gives the tokens of generate(do_sample=False), for prompts of any length."""
    model, theirs, numbers = models
    for prompt in prompts(numbers):
        tokens = list(generate(model, prompt, 24, set(), temperature=0))
        assert tokens == their_tokens(theirs, prompt, 24, set())
        assert len(tokens) == 24


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_greedy_tokens_with_a_repetition_penalty_equal_those_of_transformers(models, penalty):
    """The penalty counts prompt and generated tokens, as repetition_penalty there."""
    model, theirs, numbers = models
    changed = False
    for prompt in prompts(numbers):
        tokens = list(generate(model, prompt, 24, set(), temperature=0, repetition_penalty=penalty))
        assert tokens == their_tokens(theirs, prompt, 24, set(), repetition_penalty=penalty)
        changed |= tokens != list(generate(model, prompt, 24, set(), temperature=0))
    assert changed  # or the penalty was not tested


def test_a_stop_id_ends_generation_and_is_yielded(models):
    """Any of several stop ids ends the stream, itself included, as in transformers."""
    model, theirs, numbers = models
    prompt = prompts(numbers)[2]
    free = list(generate(model, prompt, 24, set(), temperature=0, repetition_penalty=1.3))
    stop_ids = {free[5], free[9]}
    expected = their_tokens(theirs, prompt, 24, stop_ids, repetition_penalty=1.3)
    tokens = list(generate(model, prompt, 24, stop_ids, temperature=0, repetition_penalty=1.3))
    assert tokens == expected
    assert len(tokens) <= 6 and tokens[-1] in stop_ids and not set(tokens[:-1]) & stop_ids


def test_cached_generation_equals_recomputing_everything(models):
    """A loop without any cache, one forward over all tokens per step, gives the same tokens."""
    model, _, numbers = models
    prompt = prompts(numbers)[2]
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(24):
            tokens = torch.cat([tokens, model(tokens)[0][:, -1].argmax(-1)[:, None]], dim=1)
    assert list(generate(model, prompt, 24, set(), temperature=0)) == tokens[0, 7:].tolist()


@pytest.mark.parametrize("chunks", [[30], [1] * 30, [7, 1, 1, 5, 16], [29, 1], [2, 28]])
def test_cached_logits_equal_uncached_logits(models, chunks):
    """However the tokens are cut into calls, two rows at once, every logit stays within 1e-4."""
    model, _, numbers = models
    ids = random_ids(numbers, 2, 30)
    cache = KVCache(model.config, 2, 40, "cpu", torch.float32)
    with torch.no_grad():
        parts = [model(part, cache=cache)[0] for part in ids.split(chunks, dim=1)]
        difference = (torch.cat(parts, dim=1) - model(ids)[0]).abs().max()
    assert cache.length == 30
    assert difference <= 1e-4


def test_a_seed_repeats_the_draw_and_leaves_the_global_generator_alone():
    """Same seed, same tokens; other seed, other tokens; torch's own random state is not touched."""
    numbers = random_numbers(1)
    model = our_model(numbers)
    prompt = prompts(numbers)[2]
    state = torch.get_rng_state()
    runs = [list(generate(model, prompt, 30, set(), seed=seed)) for seed in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), state)
    assert runs[0] == runs[1] != runs[2]


def test_tokens_come_one_by_one():
    """The stream may be left early: nothing is computed beyond what was asked for."""
    numbers = random_numbers(1)
    model = our_model(numbers)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    stream = generate(model, [1, 2, 3], 200, set(), temperature=0)
    assert not calls
    next(stream), next(stream)
    stream.close()
    assert len(calls) == 2


def test_generation_keeps_inside_the_context():
    """It ends when max_position_embeddings are used up, and refuses prompts that leave no room."""
    numbers = random_numbers(1, max_position_embeddings=16)
    model = our_model(numbers)
    assert len(list(generate(model, [1] * 10, 100, set(), temperature=0))) == 6
    assert len(list(generate(model, [1] * 15, 100, set(), temperature=0))) == 1
    assert list(generate(model, [1] * 10, 0, set())) == []
    for length in (16, 17, 500):
        with pytest.raises(ValueError, match=rf"{length} tokens.*16 \(max_position_embeddings\)"):
            next(generate(model, [1] * length, 100, set()))
    with pytest.raises(ValueError, match="no tokens"):
        next(generate(model, [], 100, set()))


@pytest.mark.parametrize("kind", MODELS)
def test_generation_runs_in_bfloat16_and_under_autocast(kind):
    """Half-precision weights, and float32 weights under autocast, decode with the same cache."""
    model = our_model(MODELS[kind])
    with torch.autocast("cpu", torch.bfloat16):
        assert len(list(generate(model, [1, 2, 3], 8, set(), seed=0))) == 8
    assert len(list(generate(model.bfloat16(), [1, 2, 3], 8, set(), seed=0))) == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("query_heads", [2, 4, 6])
def test_attention_of_one_token(query_heads, dtype):
    """As the engine asks for it, of any number of sequences: float64's, to the dtype's precision.

    Without a mask the token looks at all that stands before it, not at the first token alone.
    """
    generator = torch.Generator().manual_seed(query_heads)
    for count in (1, 3, 17, 49, 52, 60, 128):
        for tokens in (2, 17, 33, 54, 92):
            q = torch.randn(1, query_heads, count, 64, generator=generator).to(dtype)
            q = q[0].transpose(0, 1)[:, :, None]  # [count, A, 1, 64], as in StepLayer.attend
            k, v = torch.randn(2, count, 2, 128, 64, generator=generator).to(dtype)[..., :tokens, :]
            ends = torch.randint(tokens, (count, 1), generator=generator)
            mask = (torch.arange(tokens) <= ends)[:, None, None]  # [count, 1, 1, tokens]
            k64, v64 = (t.double().repeat_interleave(query_heads // 2, 1) for t in (k, v))
            scores = q.double() @ k64.mT / 8
            for hidden in (~mask, None):
                shown = scores if hidden is None else scores.masked_fill(hidden, -torch.inf)
                y = attention(q, k, v, None if hidden is None else mask)
                error = (y.double() - shown.softmax(-1) @ v64).abs().max()
                assert error < (1e-5 if dtype == torch.float32 else 0.03), (count, tokens)


def greedy(model, prompt, new_tokens, stop_ids=frozenset(), **options):
    return list(generate(model, prompt, new_tokens, set(stop_ids), temperature=0, **options))


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_a_batch_of_any_lengths_equals_every_prompt_alone(models, penalty):
    """Greedy rows of one batch give the tokens of transformers' generate for each prompt alone.

    Rows stop at different steps, and leave the batch.
    """
    model, theirs, numbers = models
    batch = [random_ids(numbers, 1, n, seed=n)[0].tolist() for n in (30, 1, 7, 2, 7, 19)]
    free = [their_tokens(theirs, p, 24, set(), repetition_penalty=penalty) for p in batch]
    stop_ids = {free[0][2], free[1][5], free[2][1]}
    expected = [their_tokens(theirs, p, 24, stop_ids, repetition_penalty=penalty) for p in batch]
    options = {"temperature": 0, "repetition_penalty": penalty}
    assert generate_batch(model, batch, 24, stop_ids, **options) == expected
    assert generate_batch(model, batch, 24, set(), **options) == free
    assert len({len(answer) for answer in expected}) > 1  # or nothing left the batch


def test_finished_rows_leave_the_batch():
    """The model computes fewer rows once half have finished, and no step after the last stop."""
    numbers = random_numbers(1)
    model = our_model(numbers)
    batch = prompts(numbers)
    alone = [greedy(model, p, 24) for p in batch]
    stop_ids = {alone[0][3], alone[1][3]}
    rows = []
    model.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    answers = generate_batch(model, batch, 24, stop_ids, temperature=0)
    assert rows[0] == 4 and rows[-1] < 4 and rows == sorted(rows, reverse=True)
    assert len(rows) == max(len(answer) for answer in answers)


def test_a_batch_draws_with_its_seed_and_ends_at_the_context():
    """Same seed, same tokens; each row may fill the context to its end."""
    model = our_model(random_numbers(1, max_position_embeddings=16))
    runs = [generate_batch(model, [[1] * 10, [2], [3] * 15], 100, set(), seed=s) for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert [len(answer) for answer in runs[0]] == [6, 15, 1]
    assert generate_batch(model, [[1], [2]], 0, set()) == [[], []]
    with pytest.raises(ValueError, match="no tokens"):
        generate_batch(model, [[1], []], 5, set())


def test_greedy_answers_are_those_of_every_prompt_alone(models):
    """Whatever the batch size; stop ids are cut off; what does not fit the context stays empty."""
    model, _, numbers = models
    asked = [random_ids(numbers, 1, n, seed=n)[0].tolist() for n in (9, 3, 3, 21, 1)]
    stop_ids = {greedy(model, asked[0], 24)[4]}
    expected = []
    for prompt in asked:
        tokens = greedy(model, prompt, 24, stop_ids)
        expected.append(tokens[:-1] if tokens[-1] in stop_ids else tokens)
    for size in (1, 2, 32):
        assert greedy_answers(model, asked, 24, stop_ids, max_running=size) == expected
    full = [1] * model.config.max_position_embeddings
    assert greedy_answers(model, [full, asked[1]], 24, stop_ids) == [[], expected[1]]
    assert greedy_answers(model, asked, 24, stop_ids, is_over=lambda: True) == [[]] * 5


def test_greedy_answers_end_between_two_tokens():
    """Once is_over says so no step is begun; only answers that were finished by then are given."""
    numbers = random_numbers(1)
    model = our_model(numbers)
    asked = prompts(numbers)
    alone = [greedy(model, prompt, 24) for prompt in asked]
    stop = alone[0][1]
    expected = [answer[: answer.index(stop)] if stop in answer else [] for answer in alone]
    assert expected[0] and [] in expected
    steps = []
    model.register_forward_hook(lambda *_: steps.append(1))
    found = greedy_answers(model, asked, 24, {stop}, is_over=lambda: len(steps) == 23)
    assert len(steps) == 23 and found == expected
