"""model/engine.py: whoever joins or leaves beside it, a request has the tokens of `generate`."""

import gc
import random
import weakref

import pytest
import torch
import torch.nn.functional as F
from oracle_models import our_model, random_numbers
from torch._dynamo.utils import counters

from model.decoding_layers import for_decoding
from model.engine import Engine
from model.generation import generate
from model.request import Request
from model.sampling import Sampling, filter_logits
from model.step_cache import StepCache

MODELS = {
    "dense": random_numbers(1, num_hidden_layers=2),
    "yarn": random_numbers(2),
    "moe": random_numbers(4, moe=True),
}
SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 1.7, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 7, "min_p": 0.02},
    {"temperature": 1.2, "repetition_penalty": 1.4, "logit_bias": {5: 3.0, 9: -100.0}},
    {"temperature": 0.0, "frequency_penalty": 1.0, "presence_penalty": 0.5},
]


def alone(model, request: Request) -> list[int]:
    sampling = {k: v for k, v in vars(request.sampling).items()}
    tokens = generate(
        model, request.prompt, request.max_new_tokens, request.stop_ids, request.seed, **sampling
    )
    return list(tokens)


def finish(engine: Engine, *requests: Request) -> list[list[int]]:
    for request in requests:
        engine.add(request)
    while engine.has_work:
        engine.step()
    return [request.tokens for request in requests]


def test_of_a_known_prompt_the_last_token_is_read_as_an_answer_s(monkeypatch):
    """Eight answers to one prompt: it is read in one piece, by the first; all are generate's."""
    model = our_model(MODELS["dense"])
    pieces = []

    class Spy(StepCache):
        def __init__(self, cache, lengths, new_pieces, device):
            pieces.extend(new_pieces)
            super().__init__(cache, lengths, new_pieces, device)

    monkeypatch.setattr("model.engine.StepCache", Spy)
    requests = [Request(list(range(3, 33)), 5 + seed, seed=seed) for seed in range(8)]
    assert finish(Engine(model, 8, kept=0), *requests) == [alone(model, r) for r in requests]
    assert [(piece.start, piece.end) for piece in pieces] == [(0, 30)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", MODELS)
def test_a_request_among_others_equals_generate(kind, seed):
    """Requests come at any time, share beginnings, have settings of their own, and are cancelled.

    What is drawn, greedy or with a seed, is what the plain loop draws for each alone; a cancelled
    one has the beginning of it. Prompts are read in small pieces, and the cache has few rows.
    """
    rng = random.Random(f"{kind}{seed}")
    model = our_model(MODELS[kind])
    vocabulary = model.config.vocab_size
    stems = [[rng.randrange(vocabulary) for _ in range(rng.randint(3, 30))] for _ in range(3)]
    engine = Engine(model, max_running=rng.choice([1, 3, 5]), kept=rng.choice([0, 2]),
                    prompt_tokens=rng.choice([1, 7, 64]))  # fmt: skip
    requests, cancelled = [], 0
    for number in range(24):
        prompt = rng.choice(stems)[: rng.randint(1, 30)]
        prompt = prompt + [rng.randrange(vocabulary) for _ in range(rng.randint(0, 5))]
        if requests and rng.random() < 0.3:  # a chat goes on
            prompt = requests[-1].prompt + requests[-1].tokens + prompt
        request = Request(
            prompt[:60], rng.randint(1, 20), {rng.randrange(vocabulary) for _ in range(3)},
            Sampling(**rng.choice(SETTINGS)), seed=number,
        )  # fmt: skip
        requests.append(request)
        engine.add(request)
        for _ in range(rng.randint(0, 8)):
            engine.step()
        going = [request for request in requests if not request.ending]
        if going and number % 6 == 5:
            engine.cancel(rng.choice(going))
            cancelled += 1
    while engine.has_work:
        engine.step()
    assert engine.running == 0
    for request in requests:
        expected = alone(model, request)
        if request.ending == "cancelled":
            assert request.tokens == expected[: len(request.tokens)]
        else:
            assert request.tokens == expected
            assert (request.ending == "stop") == (expected[-1] in request.stop_ids)
    assert cancelled and any(request.cached for request in requests)


def test_layers_for_decoding_and_bfloat16_run_in_the_engine():
    """Greedy tokens of the packed layers are those of the plain model; bfloat16 and int8 run."""
    model = our_model(MODELS["dense"])
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6], [5]]
    requests = [Request(p, 12, sampling=Sampling(temperature=0)) for p in prompts]
    expected = [alone(model, request) for request in requests]
    assert finish(Engine(for_decoding(model)), *requests) == expected
    half = our_model(MODELS["dense"]).bfloat16()
    for fast in (half, for_decoding(half), for_decoding(half, int8=True)):
        new = [Request(p, 12, sampling=Sampling(temperature=0)) for p in prompts]
        assert [len(tokens) for tokens in finish(Engine(fast), *new)] == [12] * 3


def test_several_answers_to_one_prompt_read_it_once():
    """With one seed they are its first, second, … sequence; each is repeatable, and they differ."""
    model = our_model(MODELS["dense"])
    prompt = list(range(2, 40))

    def answers():
        engine, places = Engine(model, 8), []
        hook = model.register_forward_hook(lambda _, inputs, __: places.append(inputs[0].numel()))
        requests = [Request(prompt, 10, seed=7, number=i) for i in range(4)]
        found = finish(engine, *requests)
        hook.remove()
        return found, sum(places)

    (first, places), (second, _) = answers(), answers()
    assert first == second and len({tuple(tokens) for tokens in first}) == 4
    # at least one token of every prompt is asked for, and each token but the last is read again
    assert places <= len(prompt) + 4 * (1 + 9) + 4
    assert first[0] == alone(model, Request(prompt, 10, seed=7))


def test_a_chat_computes_only_what_is_new():
    """The next prompt is known up to its new tokens; the least recently used row goes first."""
    model = our_model(MODELS["dense"])
    engine = Engine(model, max_running=1, kept=1)
    chat = [5, 6, 7, 8, 9, 10]
    for turn in range(4):
        request = Request(chat, 6, sampling=Sampling(temperature=0))
        [tokens] = finish(engine, request)
        assert request.cached == (0 if turn == 0 else len(chat) - 1 - 3)
        assert tokens == alone(model, request)
        chat = chat + tokens + [11 + turn, 3, 4]
    other = [Request([20 + i, 1, 2], 2) for i in range(2)]
    finish(engine, *other)  # two rows: both are needed
    request = Request(chat, 1)
    finish(engine, request)
    assert request.cached == 0


def test_forgetting_lets_new_weights_be_seen():
    """Changed weights change the answer to the same prompt, once `forget` was called."""
    model = our_model(MODELS["dense"])
    engine, prompt = Engine(model), list(range(5, 25))
    finish(engine, Request(prompt, 8, sampling=Sampling(temperature=0)))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    engine.forget()
    request = Request(prompt, 8, sampling=Sampling(temperature=0))
    [tokens] = finish(engine, request)
    assert request.cached == 0 and tokens == alone(model, request)


@pytest.mark.parametrize("pieces", [3, 64])
def test_log_probabilities_are_those_of_the_plain_forward_pass(pieces):
    """Of the prompt, of what was drawn, and of the likeliest; with a penalty still the model's."""
    model = our_model(MODELS["dense"])
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    options = {"temperature": 0.7, "repetition_penalty": 1.3}
    request = Request(prompt, 9, sampling=Sampling(**options), seed=1, logprobs=3,
                      prompt_logprobs=True)  # fmt: skip
    engine, told = Engine(model, prompt_tokens=pieces), []
    finish(engine, Request(prompt, 2))  # its keys are known, and are not enough
    for drawn in engine.stream(request):
        told.append(drawn.logprob)
    ids = torch.tensor([prompt + request.tokens])
    with torch.no_grad():
        scores = model(ids)[0][0].log_softmax(-1)
    tops = request.prompt_tops + told
    assert len(tops) == ids.shape[1] - 1
    for place, (top, token) in enumerate(zip(tops, ids[0, 1:].tolist())):
        assert top.token == pytest.approx(scores[place, token].item(), abs=1e-5)
        expected = scores[place].topk(3)
        assert [id for id, _ in top.likeliest] == expected.indices.tolist()
        values = torch.tensor([value for _, value in top.likeliest])
        assert torch.allclose(values, expected.values, atol=1e-5)


def test_log_probabilities_as_drawn_are_those_of_temperature_and_penalties():
    """What importance ratios need: log p of a token under what was sampled from."""
    model = our_model(MODELS["dense"])
    sampling = Sampling(temperature=0.6, logit_bias={4: 2.0})
    request = Request([3, 1, 4], 12, sampling=sampling, seed=5, logprobs=0, as_drawn=True)
    told = [drawn.logprob.token for drawn in Engine(model).stream(request)]
    with torch.no_grad():
        logits = model(torch.tensor([request.prompt + request.tokens]))[0][0, 2:-1]
    logits[:, 4] += 2.0
    scores = filter_logits(logits, Sampling(temperature=0.6)).log_softmax(-1)
    expected = -F.nll_loss(scores, torch.tensor(request.tokens), reduction="none")
    assert torch.allclose(torch.tensor(told), expected, atol=1e-5)


def test_a_prompt_can_be_looked_at_without_an_answer():
    """max_new_tokens 0: its log-probabilities, and no token."""
    model = our_model(MODELS["dense"])
    request = Request([1, 2, 3, 4], 0, prompt_logprobs=True)
    [drawn] = list(Engine(model).stream(request))
    assert drawn.token is None and drawn.last and request.tokens == []
    assert len(request.prompt_tops) == 3 and request.ending == "length"


def test_a_long_prompt_does_not_hold_up_the_answers_beside_it():
    """While it is read in pieces, every step still gives a running answer its token."""
    model = our_model(random_numbers(1, num_hidden_layers=1, max_position_embeddings=512))
    engine = Engine(model, prompt_tokens=16)
    running = Request([1, 2, 3], 60, sampling=Sampling(temperature=0))
    engine.add(running)
    engine.step()
    engine.add(Request([7] * 400, 1))
    before = len(running.tokens)
    for _ in range(20):
        engine.step()
    assert len(running.tokens) == before + 20
    assert engine.rows[1].length == 20 * 16


def test_sequences_end_at_the_limit_and_prompts_without_room_are_refused():
    model = our_model(random_numbers(1, max_position_embeddings=16))
    requests = [Request([1] * n, 100, sampling=Sampling(temperature=0)) for n in (10, 15, 1)]
    assert [len(tokens) for tokens in finish(Engine(model), *requests)] == [6, 1, 15]
    short = Request([1] * 10, 100)
    finish(Engine(model, max_tokens=12), short)
    assert len(short.tokens) == 2
    for prompt, words in (([], "no tokens"), ([1] * 16, "16 tokens"), ([1] * 99, "99 tokens")):
        with pytest.raises(ValueError, match=words):
            Engine(model).add(Request(prompt, 5))
    with pytest.raises(ValueError, match="12 tokens"):
        Engine(model, max_tokens=12).add(Request([1] * 12, 5))


def test_leaving_a_stream_early_frees_its_row():
    model = our_model(MODELS["dense"])
    engine = Engine(model, max_running=1, kept=0)
    stream = engine.stream(Request([1, 2], 50))
    next(stream), next(stream)
    stream.close()
    assert not engine.has_work
    request = Request([1, 2], 5, sampling=Sampling(temperature=0))
    assert finish(engine, request) == [alone(model, request)]


def test_after_a_step_that_failed_the_engine_starts_anew(monkeypatch):
    """All that was going on is lost and told; what comes next is answered as ever."""
    model = our_model(MODELS["dense"])
    engine = Engine(model, max_running=2)
    requests = [Request([i + 1, 2], 9) for i in range(4)]
    for request in requests:
        engine.add(request)
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(model.model.norm, "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    assert set(engine.fail()) == set(requests) and not engine.has_work
    request = Request([3, 2], 5, sampling=Sampling(temperature=0))
    assert finish(engine, request) == [alone(model, request)]


def compiled_engine(model, rows: int = 1) -> Engine:
    return Engine(for_decoding(model), max_running=rows, kept=2, compiled=True)


def test_the_compiled_step_is_compiled_once_and_gives_the_same_tokens():
    """After prompts of any length, and when the cache has grown meanwhile."""
    numbers = random_numbers(2, num_hidden_layers=2, max_position_embeddings=512)
    model = our_model(numbers)
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    engine = compiled_engine(model)
    for n in (1, 7, 300):
        request = Request([(7 * i) % 50 for i in range(n)], 24, sampling=Sampling(temperature=0))
        assert finish(engine, request) == [alone(model, request)]
    assert counters["stats"]["unique_graphs"] == before + 1


@pytest.mark.slow
def test_every_model_has_a_compiled_step_of_its_own():
    """Models that differ in weights, in a number that is no tensor's shape, in shapes, in kind.

    The compiled step does not ask whose layers it was made from.
    """
    numbers = random_numbers(2, num_hidden_layers=2)
    changed = {**numbers, "rms_norm_eps": 0.5}
    larger = {**numbers, "num_hidden_layers": 3, "vocab_size": 200}
    moe = random_numbers(2, moe=True, num_hidden_layers=1)
    models = [our_model(numbers), our_model(numbers, seed=1), our_model(changed)]
    models += [our_model(larger), our_model(moe)]
    engines = [compiled_engine(model) for model in models]
    for prompt in ([3, 1, 4, 1, 5], [9, 2]):
        for model, engine in zip(models, engines):
            request = Request(prompt, 12, sampling=Sampling(temperature=0))
            assert finish(engine, request) == [alone(model, request)]


@pytest.mark.slow
def test_a_compiled_step_goes_with_its_model():
    engine = compiled_engine(our_model(random_numbers(2, num_hidden_layers=1)))
    finish(engine, Request([1, 2], 3))
    alive = weakref.ref(engine.model)
    del engine
    gc.collect()
    assert alive() is None


@pytest.mark.slow
def test_compiled_steps_give_the_same_tokens():
    """Any number of rows, filled up to a power of two with rows that keep what they hold."""
    numbers = random_numbers(2, num_hidden_layers=2)
    model = our_model(numbers)
    engine = compiled_engine(model, 4)
    engine.warm_up()
    rng = random.Random(0)
    requests = [
        Request([rng.randrange(60) for _ in range(rng.randint(5, 20))], rng.randint(2, 12),
                sampling=Sampling(temperature=rng.choice([0, 1.0])), seed=i)
        for i in range(14)
    ]  # fmt: skip
    requests[9].prompt = requests[2].prompt[:5] + [1, 2]
    for request in requests:
        engine.add(request)
        engine.step()
        engine.step()
    while engine.has_work:
        engine.step()
    assert [request.tokens for request in requests] == [alone(model, r) for r in requests]
