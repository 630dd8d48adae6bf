"""policy_loss of train_grpo.py against trl's GRPOTrainer, on packed rows."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from tests.oracle_models import open_there, our_model, random_numbers, save_here
from train_grpo import EPSILONS, LOSSES, policy_loss, token_weights
from training.rollouts import Rows, token_log_probs

NUMBERS = random_numbers(1, vocab_size=512)
LONGEST = 9  # --max_new_tokens
T = 40


def flags(loss="grpo", **more):
    low, high = EPSILONS.get(loss, (0.2, 0.2))
    if loss == "gspo":
        low, high = 0.05, 0.08  # else nothing of what is drawn here is inside
    numbers = {"beta": 0.0, "epsilon": low, "epsilon_high": high, "temperature": 0.7}
    return SimpleNamespace(loss=loss, max_new_tokens=LONGEST, **numbers | more)


def completions(seed=0, count=12):
    """(prompt ids, completion ids, advantage, is_masked), of uneven lengths."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low, high):
        length = int(torch.randint(low, high + 1, (), generator=generator))
        return torch.randint(3, 512, (length,), generator=generator).tolist()

    return [
        (ids(2, 7), ids(1, LONGEST), torch.randn((), generator=generator).item(), i % 5 == 3)
        for i in range(count)
    ]


def packed(samples, old, reference, args):
    """All of them as one micro-batch of Rows of at most T tokens each, by hand."""
    kept = [i for i, (*_, is_masked) in enumerate(samples) if not is_masked]
    tokens = sum(len(samples[i][1]) for i in kept)
    rows, room = [[]], T
    for i in kept:
        needed = len(samples[i][0]) + len(samples[i][1]) - 1
        if needed > room:
            rows.append([])
            room = T
        rows[-1].append(i)
        room -= needed
    B = len(rows)
    X, documents = (torch.zeros(B, T, dtype=torch.int64) for _ in range(2))
    places, Y, sequences, advantages, weights = [], [], [], [], []
    for row, members in enumerate(rows):
        at = 0
        for document, i in enumerate(members, start=1):
            prompt, answer, advantage, _ = samples[i]
            ids = torch.tensor([*prompt, *answer])
            end, length = at + len(ids) - 1, len(answer)
            X[row, at:end], documents[row, at:end] = ids[:-1], document
            places += range(row * T + end - length, row * T + end)
            Y += answer
            sequences += [i] * length
            advantages += [advantage] * length
            weight = token_weights(torch.tensor([float(length)]), len(samples), tokens, args)
            weights += [weight.item()] * length
            at = end
    order = [i for members in rows for i in members]
    n = len(Y)
    return Rows(
        X, documents, torch.tensor(places), torch.tensor(Y), torch.ones(n),
        torch.tensor(sequences), torch.tensor(advantages), torch.tensor(weights), torch.zeros(n),
        torch.tensor(1.0), {}, *(torch.cat([said[i] for i in order]) for said in (old, reference)),
    )  # fmt: skip


def padded(samples, old, reference):
    """The same as trl lays it out: prompts padded on the left, completions on the right."""
    longest = max(len(prompt) for prompt, *_ in samples)
    inputs = {name: [] for name in ("prompt_ids", "prompt_mask", "completion_ids",
              "completion_mask", "old_per_token_logps", "ref_per_token_logps")}  # fmt: skip
    for i, (prompt, answer, _, is_masked) in enumerate(samples):
        left, right = longest - len(prompt), LONGEST - len(answer)
        inputs["prompt_ids"].append([0] * left + prompt)
        inputs["prompt_mask"].append([0] * left + [1] * len(prompt))
        inputs["completion_ids"].append(answer + [0] * right)
        inputs["completion_mask"].append([0 if is_masked else 1] * len(answer) + [0] * right)
        inputs["old_per_token_logps"].append(old[i].tolist() + [0.0] * right)
        inputs["ref_per_token_logps"].append(reference[i].tolist() + [0.0] * right)
    inputs = {name: torch.tensor(rows) for name, rows in inputs.items()}
    inputs["advantages"] = torch.tensor([advantage for *_, advantage, _ in samples])
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
    return inputs


@pytest.fixture
def trainer_for(tmp_path, tiny_tokenizer_dir):
    """A function: GRPOTrainer with the numbers of our flags, on the model in a folder."""

    def make(folder, args):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
        tokenizer.pad_token = tokenizer.eos_token
        trainer = GRPOTrainer(
            open_there(folder), reward_funcs=lambda completions, **_: [0.0] * len(completions),
            processing_class=tokenizer, train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
            args=GRPOConfig(
                output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none",
                gradient_checkpointing=False, per_device_train_batch_size=2, num_generations=2,
                gradient_accumulation_steps=1, disable_dropout=True, use_bias_correction_kl=False,
                loss_type="grpo" if args.loss == "gspo" else args.loss,
                importance_sampling_level="sequence" if args.loss == "gspo" else "token",
                beta=args.beta, epsilon=args.epsilon, epsilon_high=args.epsilon_high,
                temperature=args.temperature, max_completion_length=args.max_new_tokens,
            ),
        )  # fmt: skip
        trainer.current_gradient_accumulation_steps = 1
        return trainer

    return make


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradients_equal_trl(tmp_path, trainer_for, loss, beta):
    """Loss and gradient of packed rows are trl's of padded ones: all five forms, KL and masks.

    The old log-probabilities are so far away that ratios are clipped on both sides.
    """
    args = flags(loss, beta=beta)
    model = our_model(NUMBERS, seed=1)
    folder = save_here(model, tmp_path / "policy")
    samples = completions()
    generator = torch.Generator().manual_seed(1)
    old, reference = [], []
    for prompt, answer, *_ in samples:
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logits = model(ids[:, :-1])[0] / args.temperature
        own = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[0, -len(answer) :, 0]
        old.append(own + 0.5 * torch.randn(own.shape, generator=generator))
        reference.append(own + torch.randn(own.shape, generator=generator))
    if loss == "cispo":
        args.epsilon_high = 1.2  # so that some are above it

    rows = packed(samples, old, reference, args)
    logits, _ = model(rows.X, rows.document_ids, places=rows.places)
    log_probs, entropy = token_log_probs(logits, rows.Y, args.temperature)
    losses, values = policy_loss(log_probs, rows, args)
    ours = (losses * rows.weights).sum()
    ours.backward()
    clipped = values["clipped"].float().mean()
    assert 0.05 < clipped < 0.95 and ("kl" in values) == (beta > 0)

    trainer = trainer_for(folder, args)
    theirs = trainer._compute_loss(trainer.model, padded(samples, old, reference))
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    gradients = dict(trainer.model.named_parameters())
    largest = 0
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-5, msg=name
        )
        largest = max(largest, parameter.grad.abs().max().item())
    assert largest > 1e-3
    means = rows.means(values | {"entropy": entropy})
    keys = {"entropy": "entropy", "kl": "kl", "clipped": "clip_ratio/region_mean"}
    logged = {name: trainer._metrics["eval"][key] for name, key in keys.items() if name in means}
    if loss in ("gspo", "cispo"):  # there it is a mean over completions, or of good ones alone
        del logged["clipped"]
    for name, (theirs,) in logged.items():
        assert means[name].item() == pytest.approx(theirs, rel=1e-4), name
