"""Completions: sampled with this step's weights, judged, packed; their log-probabilities."""

import random
from statistics import fmean, pstdev
from types import SimpleNamespace

import pytest
import torch

from dataset.chat import stop_ids
from dataset.tokenizer import load_tokenizer
from model import lora
from model.decoding_layers import for_decoding
from model.request import Request
from model.sampling import Sampling
from tasks.rewards import make_rewards
from tasks.task import Prompt
from tests.oracle_models import our_model, random_numbers
from train_grpo import group_advantages, policy_loss, token_weights
from training import completions as completions_module
from training.completions import decoding_copy, sample
from training.distributed import Ranks
from training.rollouts import Rollouts, sequence_means, token_log_probs

ALONE = Ranks(0, 0, 1, torch.device("cpu"))


def model_of(kind: str):
    """A tiny model for the tiny tokenizer: dense, with experts, or with an adapter."""
    model = our_model(random_numbers(1, moe=kind == "experts", vocab_size=512))
    if kind == "adapter":
        config = lora.LoRAConfig(4, lora_targets=("q_proj", "down_proj"))
        lora.attach(model, config)
        torch.manual_seed(0)
        for _, layer in lora.adapters(model):
            torch.nn.init.normal_(layer.lora_B.weight, std=0.3)
    return model


def run_of(model, **flags):
    """What Rollouts needs of a Run."""
    numbers = {
        "fsdp": False, "seed": 1, "max_new_tokens": 12, "temperature": 1.0, "max_running": 256,
        "num_generations": 4, "mask_truncated": False, "batch_size": 2, "max_seq_len": 64,
        "loss": "dapo", "beta": 0.0, "epsilon": 0.2, "epsilon_high": 0.2, "scale_rewards": "group",
        "eval_generations": 3,
    }  # fmt: skip
    return SimpleNamespace(
        args=SimpleNamespace(**numbers | flags), model=model, compiled=model, device=ALONE.device,
        ranks=ALONE, dtype=torch.float32, step=3, adapter=None, config=model.config,
        autocast=torch.autocast("cpu", enabled=False), log=SimpleNamespace(sampled=0.0),
        stop=SimpleNamespace(signal=0),
    )  # fmt: skip


def prompts_of(tokenizer, count=5):
    texts = [f"What is {i} + {i}?" * (1 + i % 3) for i in range(count)]
    return [Prompt(text, tokenizer.encode_text(text), f"{2 * i}") for i, text in enumerate(texts)]


@pytest.fixture
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture
def rollouts(tokenizer):
    def make(model, rewards=("number=1",), **flags):
        return Rollouts(run_of(model, **flags), tokenizer, make_rewards(list(rewards)))

    return make


@pytest.mark.parametrize("kind", ["dense", "experts", "adapter"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_the_ratio_is_one(tokenizer, rollouts, kind, temperature):
    """The engine's log-probabilities are those of packed training rows to 1e-5: ratio 1."""
    model = model_of(kind)
    made = rollouts(model, temperature=temperature, max_new_tokens=9)
    prompts = list(enumerate(prompts_of(tokenizer)))
    groups = made.sample(prompts)
    rewards = made.judge(groups)
    seen = 0
    for rows in made.rows(groups, rewards, rewards, token_weights):
        logits, _ = model(**rows.inputs)
        rows.old, _ = token_log_probs(logits, rows.Y, temperature)
        assert (rows.old - rows.sampled).abs().max() < 1e-5
        seen += len(rows.Y)
    assert seen == sum(len(s.completion.ids) for group in groups for s in group) > 60
    assert any(s.completion.is_cut for group in groups for s in group)


def alone(model, tokenizer, prompt, seed, number, temperature, longest):
    """A completion drawn by a plain loop over the whole model: ids, log-probabilities."""
    source, ids, log_probs = random.Random(f"{seed}/{number}"), [], []
    while len(ids) < longest:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt.ids, *ids]]))[0][0, -1] / temperature
        scores = logits.log_softmax(-1)
        sums = scores.double().exp().cumsum(0)
        ids.append(int((sums <= source.random() * sums[-1]).sum()))
        log_probs.append(scores[ids[-1]].item())
        if ids[-1] in stop_ids(tokenizer):
            break
    return ids, log_probs


def test_draws_depend_on_nothing_beside(tokenizer):
    """Each completion is that of a plain loop with its own numbers, whatever runs beside it."""
    model, prompts = model_of("dense"), prompts_of(tokenizer)
    fast = for_decoding(model).eval()
    seeds = [f"1/2/{i}" for i in range(5)]
    sampling = Sampling(temperature=0.7)
    together = sample(fast, tokenizer, prompts, seeds, 3, 10, sampling)
    few = sample(fast, tokenizer, prompts[3:2:-1], seeds[3:2:-1], 3, 10, sampling, max_running=2)
    assert [s.completion.ids for s in few[0]] == [s.completion.ids for s in together[3]]
    for prompt, seed, group in zip(prompts, seeds, together):
        assert len({tuple(s.completion.ids) for s in group}) > 1
        for number, one in enumerate(group):
            ids, log_probs = alone(model, tokenizer, prompt, seed, number, 0.7, 10)
            assert one.completion.ids == ids and one.log_probs == pytest.approx(log_probs, abs=1e-4)


@pytest.mark.parametrize("kind", ["dense", "adapter"])
def test_sampling_uses_the_weights_of_this_step(tokenizer, rollouts, kind):
    """Weights changed between two calls change log-probabilities at once; changed back, too."""
    model = model_of(kind)
    made, prompts = rollouts(model), list(enumerate(prompts_of(tokenizer)))

    def said():
        return [(s.completion.ids, s.log_probs) for group in made.sample(prompts) for s in group]

    before = said()
    assert said() == before
    trained = [p for p in model.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in trained]
    with torch.no_grad():
        for p in trained:
            p.mul_(0.9)
    after = said()
    assert all(a != b for a, b in zip(before, after))
    with torch.no_grad():
        for p, old in zip(trained, kept):
            p.copy_(old)
    assert said() == before
    made.run.step += 1  # and another step draws anew
    assert said() != before


def test_a_copy_in_bfloat16_has_the_same_angles():
    """Weights are rounded, rotary frequencies are not: far back a rounded one is another angle."""
    run = run_of(model_of("dense"))
    run.dtype = torch.bfloat16
    fast = decoding_copy(run)
    assert torch.equal(fast.inv_freq, run.model.inv_freq) and fast.inv_freq.dtype == torch.float32
    assert not torch.equal(fast.inv_freq.bfloat16().float(), fast.inv_freq)
    assert {p.dtype for p in fast.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_a_shared_prompt_is_read_once(tokenizer, monkeypatch):
    """Of several completions of a long prompt all but the first take over what is known of it."""
    requests = []

    def kept(*numbers, **more):
        requests.append(Request(*numbers, **more))
        return requests[-1]

    monkeypatch.setattr(completions_module, "Request", kept)
    model = for_decoding(model_of("dense")).eval()
    text = "What is 12 + 30? " * 6
    prompt = Prompt(text, tokenizer.encode_text(text), "42")
    sample(model, tokenizer, [prompt], ["s"], 4, 5, Sampling())
    assert [request.cached for request in requests] == [0] + [len(prompt.ids) - 1] * 3


def test_rows_hold_every_token_once(tokenizer, rollouts):
    """Packed rows have the completions' tokens, each with its weight, advantage and document.

    The weights of dapo, and of grpo, add up to 1 over the update; cut ones are left out on request.
    """
    model = model_of("dense")
    for loss, masked in (("dapo", False), ("grpo", False), ("dapo", True)):
        made = rollouts(model, loss=loss, mask_truncated=masked, max_new_tokens=9)
        groups = made.sample(list(enumerate(prompts_of(tokenizer))))
        rewards = torch.arange(20.0).view(5, 4)
        made.judge(groups)
        batches = made.rows(groups, rewards, rewards, token_weights)
        told = {}
        for rows in batches:
            assert rows.X.shape[1] <= 64 and (masked or len(batches) > 1)
            flat, documents = rows.X.flatten(), rows.document_ids.flatten()
            prefixes = rows.prefixes.flatten()
            for sequence in rows.sequences.unique().tolist():
                at = rows.places[rows.sequences == sequence]
                row = at[0] // rows.X.shape[1]
                inside = (documents == documents[at[0]]) | (documents == prefixes[at[0]])
                inside &= torch.arange(len(flat)) // rows.X.shape[1] == row
                ids = [*flat[inside].tolist(), int(rows.Y[rows.sequences == sequence][-1])]
                (number,) = rows.advantages[rows.sequences == sequence].unique().tolist()
                told[int(number)] = ids
        samples = [s.completion for group in groups for s in group]
        kept = {i: c for i, c in enumerate(samples) if not (masked and c.is_cut)}
        assert told == {i: [*c.prompt.ids, *c.ids] for i, c in kept.items()}
        assert 0 < len(kept) < 20 if masked else len(kept) == 20
        total = sum(rows.weights.sum().item() for rows in batches)
        assert total == pytest.approx(1.0, rel=1e-5)
        assert sum(rows.share.item() for rows in batches) == pytest.approx(1.0)
        figures = {name: sum(r.figures[name].item() for r in batches) for name in rows.figures}
        assert figures["length"] == pytest.approx(sum(len(c.ids) for c in samples) / 20)
        assert figures["truncated"] == pytest.approx(sum(c.is_cut for c in samples) / 20)
        assert figures["reward"] == pytest.approx(9.5)
        assert figures["reward_std"] == pytest.approx(1.29099, rel=1e-4)  # of 0, 1, 2, 3


@pytest.mark.parametrize("loss", ["grpo", "gspo", "dapo"])
def test_rows_of_one_shape_are_the_same(tokenizer, rollouts, loss):
    """What is filled up for the compiler has the loss, gradient and figures of what is not."""
    told = []
    for is_compiled in (False, True):
        made = rollouts(model_of("dense"), loss=loss, beta=0.1, max_new_tokens=9)
        model = made.run.model
        made.run.compiled = None if is_compiled else model
        groups = made.sample(list(enumerate(prompts_of(tokenizer))))
        made.judge(groups)
        rewards = torch.arange(20.0).view(5, 4) % 7
        advantages = group_advantages(rewards, made.run.args)
        batches = made.rows(groups, rewards, advantages, token_weights)
        shapes = {(rows.X.shape, rows.Y.shape) for rows in batches}
        assert len(shapes) == 1 or not is_compiled
        total, figures = 0.0, {}
        for rows in batches:
            logits, _ = model(**rows.inputs)
            log_probs, entropy = token_log_probs(logits, rows.Y, 1.0)
            rows.old, rows.reference = log_probs.detach() - 0.1, log_probs.detach() + 0.2
            losses, values = policy_loss(log_probs, rows, made.run.args)
            total = total + (losses * rows.weights).sum()
            for name, part in rows.means(values | {"entropy": entropy}).items():
                figures[name] = figures.get(name, 0) + part.item()
        total.backward()
        told.append((total.item(), figures, [p.grad for p in model.parameters()]))
    (a, figures_a, grads_a), (b, figures_b, grads_b) = told
    assert a == pytest.approx(b, abs=1e-6) and figures_a == pytest.approx(figures_b, rel=1e-5)
    torch.testing.assert_close(grads_a, grads_b, rtol=1e-4, atol=1e-6)


def test_a_prompt_in_a_row_once_is_as_good_as_before_each_completion(tokenizer, rollouts):
    """Loss and gradient of shared prompts are those of every completion in a row of its own.

    Only a prompt's last token, which predicts each completion's first one, stands there for each;
    a prompt of one token shares nothing.
    """
    made = rollouts(model_of("dense"), max_new_tokens=9, batch_size=64)
    model, prompts = made.run.model, prompts_of(tokenizer)
    prompts[1] = Prompt("W", prompts[1].ids[:1], "2")
    groups = made.sample(list(enumerate(prompts)))
    made.judge(groups)
    advantages = torch.arange(20.0).view(5, 4) % 7 - 3
    (rows,) = made.rows(groups, advantages, advantages, token_weights)
    samples = [s.completion for group in groups for s in group]
    prompts_told = int((rows.prefixes == rows.document_ids)[rows.document_ids > 0].sum())
    assert prompts_told < 0.6 * sum(len(c.prompt.ids) - 1 for c in samples)
    log_probs, _ = token_log_probs(model(**rows.inputs)[0], rows.Y, 1.0)
    loss = -(log_probs * rows.advantages * rows.weights).sum()
    loss.backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    total, tokens = 0.0, sum(len(c.ids) for c in samples)
    for completion, advantage in zip(samples, advantages.flatten().tolist()):
        n, ids = len(completion.ids), torch.tensor([[*completion.prompt.ids, *completion.ids]])
        scores = model(ids[:, :-1])[0][0, -n:].log_softmax(-1)
        own = scores.gather(1, ids[0, -n:, None]).sum()
        (-own * advantage / tokens).backward()
        total -= own.item() * advantage / tokens
    assert loss.item() == pytest.approx(total, rel=1e-4)
    expected = [p.grad for p in model.parameters()]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["grpo", "dapo", "cispo", "gspo"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_compact_rows_learn_the_same(tokenizer, rollouts, loss, beta):
    """Completions that are alike told once, and without a KL none without an advantage.

    Loss and gradient are those of all, clipped ratios among them; with a KL, where none is left
    out, so are the means over tokens.
    """
    made = rollouts(model_of("dense"), loss=loss, beta=beta, max_new_tokens=9)
    groups = made.sample(list(enumerate(prompts_of(tokenizer))))
    groups[0][2:] = [groups[0][1]] * 2
    groups[3][1:3] = [groups[3][0]] * 2
    made.judge(groups)
    rewards = torch.arange(20.0).view(5, 4) % 7
    rewards[0, 1:] = rewards[1] = rewards[4] = 1.0
    rewards[2] = torch.tensor([0.0, 1.0, 2.0, 1.0])  # two are as good as their group
    rewards[3] = torch.tensor([2.0, 2.0, 0.0, 1.0])  # the judge is not sure of the same text
    advantages, model, told = group_advantages(rewards, made.run.args), made.run.model, []
    for compact in (False, True):
        batches = made.rows(groups, rewards, advantages, token_weights, compact)
        model.zero_grad()
        total, figures = 0.0, {"one": 0.0, "entropy": 0.0, "clipped": 0.0}
        for rows in batches:
            log_probs, entropy = token_log_probs(model(**rows.inputs)[0], rows.Y, 1.0)
            rows.old = log_probs.detach() - torch.sin(rows.Y.float())
            rows.reference = log_probs.detach() + torch.cos(rows.Y.float())
            losses, values = policy_loss(log_probs, rows, made.run.args)
            total = total + (losses * rows.weights).sum()
            values |= {"one": torch.ones(len(rows.Y)), "entropy": entropy}
            for name, part in rows.means({name: values[name].float() for name in figures}).items():
                figures[name] += part.item()
        total.backward()
        assert figures["one"] == pytest.approx(1.0)
        tokens = sum(len(rows.Y) for rows in batches)
        grads = [p.grad.clone() for p in model.parameters()]
        told.append((tokens, total.item(), grads, figures))
    (all_tokens, a, grads_a, figures_a), (tokens, b, grads_b, figures_b) = told
    assert a == pytest.approx(b, abs=1e-5)
    torch.testing.assert_close(grads_a, grads_b, rtol=1e-4, atol=1e-6)
    lengths = torch.tensor([[len(s.ids) for s in group] for group in groups])
    copies = lengths[0, 1] * 2 + lengths[3, 0]
    left_out = 0 if beta else lengths[advantages == 0].sum()
    assert all_tokens - tokens == int(copies + left_out) > 0
    if beta:
        assert figures_a == pytest.approx(figures_b, rel=1e-4)


def test_groups_without_spread_alone_make_an_empty_update(tokenizer, rollouts):
    """One micro-batch without tokens: a loss and a gradient of 0, and the figures of all."""
    made = rollouts(model_of("dense"), max_new_tokens=9)
    groups = made.sample(list(enumerate(prompts_of(tokenizer))))
    made.judge(groups)
    rewards = torch.ones(5, 4)
    (rows,) = made.rows(groups, rewards, 0 * rewards, token_weights, compact=True)
    log_probs, _ = token_log_probs(made.run.model(**rows.inputs)[0], rows.Y, 1.0)
    rows.old = log_probs.detach()
    losses, values = policy_loss(log_probs, rows, made.run.args)
    loss = (losses * rows.weights).sum()
    loss.backward()
    assert loss.item() == 0 and len(rows.Y) == 0
    assert all(p.grad is None or not p.grad.any() for p in made.run.model.parameters())
    assert rows.figures["no_spread"].item() == 1 and rows.figures["reward"].item() == 1
    assert not any(value.item() for value in rows.means(values).values())


def test_completions_of_one_token(tokenizer, rollouts):
    """As many sequences as tokens: each has its own mean."""
    made = rollouts(model_of("dense"), loss="gspo", max_new_tokens=1)
    groups = made.sample(list(enumerate(prompts_of(tokenizer))))
    rewards = made.judge(groups)
    (*_, rows) = made.rows(groups, rewards, rewards, token_weights)
    values = torch.randn(len(rows.Y))
    torch.testing.assert_close(sequence_means(values, rows), values)


def test_rewards_are_weighed_and_told_by_name(tokenizer, rollouts):
    """The total is the weighted sum; each is logged by itself; groups without spread counted."""
    made = rollouts(model_of("dense"), ["number=1", "exact=0.5"], num_generations=2)
    groups = made.sample(list(enumerate(prompts_of(tokenizer, 2))))
    for sample_, text in zip((s for g in groups for s in g), ("It is 0", "0", "5", "6")):
        object.__setattr__(sample_.completion, "text", text)
    rewards = made.judge(groups)
    assert rewards.tolist() == [[1.0, 1.5], [0.0, 0.0]]
    batches = made.rows(groups, rewards, rewards, token_weights)
    figures = {n: sum(r.figures[n].item() for r in batches) for n in batches[0].figures}
    assert figures["reward"] == pytest.approx(2.5 / 4)
    assert figures["reward_number"] == pytest.approx(0.5)
    assert figures["reward_exact"] == pytest.approx(0.25)
    assert figures["no_spread"] == pytest.approx(0.5)


def test_failures_of_a_reward_of_ones_own_are_told(tokenizer, rollouts, tmp_path):
    """Their share of the completions; what was judged before does not count."""
    (tmp_path / "my.py").write_text(
        "def score(some):\n    return [1 / len(c.text) for c in some]\n"
    )
    own = f"{tmp_path / 'my.py'}:score"
    made = rollouts(model_of("dense"), ["number=1", own], num_generations=2)
    groups = made.sample(list(enumerate(prompts_of(tokenizer, 2))))
    for texts, expected in (("", "a", "b", "c"), 1), (("0", "a", "b", "c"), 0):
        for sample_, text in zip((s for g in groups for s in g), texts):
            object.__setattr__(sample_.completion, "text", text)
        rewards = made.judge(groups)
        batches = made.rows(groups, rewards, rewards, token_weights)
        assert sum(r.figures["reward_failed"].item() for r in batches) == expected
    (*_, rows) = rollouts(model_of("dense")).rows(groups, rewards, rewards, token_weights)
    assert "reward_failed" not in rows.figures


def test_advantages_are_trl_s():
    """(r - mean) / (unbiased deviation + 1e-4), 0 where all are alike; without scaling r - mean."""
    rewards = torch.tensor([[0.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    scaled = group_advantages(rewards, SimpleNamespace(scale_rewards="group"))
    deviation = (2 / 3) ** 0.5
    expected = [-1 / (deviation + 1e-4), 0, 0, 1 / (deviation + 1e-4)]
    assert scaled[0].tolist() == pytest.approx(expected) and scaled[1].tolist() == [0.0] * 4
    plain = group_advantages(rewards, SimpleNamespace(scale_rewards="none"))
    assert plain[0].tolist() == [-1, 0, 0, 1]


@pytest.mark.parametrize("scale", ["group", "none"])
def test_equal_rewards_teach_nothing(scale):
    """Whatever the reward: a mean may be another number by rounding, advantages are exactly 0."""
    for value in (0.1, 0.3, 2 / 3, 0.7, 1.1, 12.34, -0.1):
        for count in range(2, 17):
            rewards = torch.full((3, count), value)
            advantages = group_advantages(rewards, SimpleNamespace(scale_rewards=scale))
            assert not advantages.any(), (value, count)


def test_the_reference_of_an_adapter_is_its_base(tokenizer, rollouts):
    """With the adapter off the log-probabilities are those of the model before; it comes back."""
    model = model_of("adapter")
    base = our_model(random_numbers(1, vocab_size=512))
    made = rollouts(model, beta=0.1)
    groups = made.sample(list(enumerate(prompts_of(tokenizer))))
    rewards = made.judge(groups)
    batches = made.rows(groups, rewards, rewards, token_weights)
    made.ask_reference(model, batches)
    for rows in batches:
        with torch.no_grad():
            before = base(**rows.inputs)[0]
            now = model(**rows.inputs)[0]
        torch.testing.assert_close(rows.reference, token_log_probs(before, rows.Y, 1.0)[0])
        rows.old, _ = token_log_probs(now, rows.Y, 1.0)
        assert (rows.old - rows.reference).abs().max() > 0.1
        _, values = policy_loss(rows.old, rows, made.run.args)
        assert values["kl"].min() >= 0 and values["kl"].mean() > 0.01


def test_held_out_figures(tokenizer, rollouts):
    """pass@1 is the mean over completions, pass@k whether any is right, from the same ones.

    So are the mean and the standard deviation of their rewards, here 2 for each right one.
    """
    made = rollouts(model_of("dense"), ["exact=2"], eval_generations=3)
    prompts = prompts_of(tokenizer, 4)
    kinds = {
        "greedy": [[1], [0], [0], [1]],
        "held out": [[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 1]],
    }
    real = made._sample

    def answered(numbered, name, *more):
        groups = real(numbered, name, *more)
        for group, rights in zip(groups, kinds[name]):
            for one, right in zip(group, rights):
                text = one.completion.prompt.answer if right else "no"
                object.__setattr__(one.completion, "text", text)
        return groups

    made._sample = answered
    figures, lines = made.measure(Prompts(prompts))
    sampled = [2.0] * 5 + [0.0] * 7
    assert figures == pytest.approx(
        {"val_reward": 1.0, "greedy": 0.5, "pass@1": 5 / 12, "pass@3": 0.75,
         "sampled_reward": fmean(sampled), "sampled_std": pstdev(sampled)}
    )  # fmt: skip
    assert len(lines) == 3 and lines[0].endswith("(exact 1)") and lines[1].endswith("(exact 0)")


def test_held_out_rewards_are_told_by_name(tokenizer, rollouts):
    """Where there are several: each as it is, beside their weighted sum."""
    rewards = ["length:1:99=0.5", "overlong:1:12=2"]  # of 1 to 12 tokens: 1; from 0 to -1
    made = rollouts(model_of("dense"), rewards, eval_generations=0)
    figures, _ = made.measure(Prompts(prompts_of(tokenizer, 4)))
    assert figures["val_reward_length"] == 1 and -1 <= figures["val_reward_overlong"] < 0
    total = 0.5 + 2 * figures["val_reward_overlong"]
    assert figures["val_reward"] == pytest.approx(total, rel=1e-6)
    assert figures.keys() == {"val_reward", "greedy", "val_reward_length", "val_reward_overlong"}


class Prompts:
    def __init__(self, prompts):
        self.prompts = prompts

    def __len__(self):
        return len(self.prompts)
