"""train_reward.py: its loss against trl's RewardTrainer, its folders in other hands, runs of it."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

import eval_model
import train_reward
from dataset.chat import NO_THINKING
from dataset.dpo import DPODataset
from dataset.tokenizer import load_tokenizer
from model.hf_format import is_reward_model, load_model
from model.reward_model import (
    RewardModel,
    from_language_model,
    load_reward_model,
    save_reward_model,
    score_sequences,
)
from tasks.rewards import make_rewards
from tasks.task import Prompt, completion_of
from tests.encode import encode
from tests.oracle_models import our_model, ours, random_numbers, same_bits, save_here, shake
from tests.processes import in_two_processes
from tests.small_runs import make_inputs
from tests.test_dpo import ALONE, NO_AUTOCAST, pairs_file, say
from train_reward import METRICS, reward_loss
from training import cli
from training.losses import document_scores
from training.reference import pair_log_probs
from training.run_log import SPEEDS
from training.scoring import model_reward, score_conversations

NUMBERS = random_numbers(1, vocab_size=512)
PAD, EOS = 0, 0


def our_scorer(numbers=NUMBERS, seed=0) -> RewardModel:
    return shake(RewardModel(ours(numbers)), seed).eval()


def saved(model, folder):
    folder.mkdir(parents=True)
    save_reward_model(model, folder, PAD, EOS)
    return folder


def open_there(folder):
    """transformers' AutoModelForSequenceClassification; nothing missing, nothing unexpected."""
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    assert not any(info.values()), info
    return model.eval()


@pytest.fixture
def encoded(tmp_path, tiny_tokenizer):
    return encode("pairs", pairs_file(tmp_path), tiny_tokenizer)


def padded_batch(dataset):
    """All chosen, then all rejected, padded on the right, as trl's collator lays them out."""
    pairs = [dataset.sides(pair) for pair in range(dataset.total)]
    sequences = [torch.from_numpy(pair[side][0]).long() for side in (0, 1) for pair in pairs]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=PAD)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


def trl_trainer(folder, tokenizer_dir, out, **config):
    from datasets import Dataset

    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_dir)
    one = {"chosen_ids": [[5, 6]], "rejected_ids": [[7]]}
    return RewardTrainer(
        folder if isinstance(folder, str) else open_there(folder), processing_class=tokenizer,
        train_dataset=Dataset.from_dict(one),
        args=RewardConfig(
            output_dir=str(out), use_cpu=True, bf16=False, report_to="none",
            gradient_checkpointing=False, **config,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("coefficient", [0.0, 0.05])
def test_loss_and_gradients_equal_trl(tmp_path, tiny_tokenizer_dir, encoded, coefficient):
    """Of packed pairs, with and without the centring of scores: RewardTrainer's, to 1e-5."""
    model, dataset = our_scorer(), DPODataset(encoded, 160, scored=True)
    assert len(dataset) > 1 and dataset.pairs_per_row > 1
    args = SimpleNamespace(center_rewards_coefficient=coefficient)
    total, values = 0.0, 0.0
    for row in dataset:
        X, Y, loss_mask, documents, pairs = (part[None] for part in row)
        scores, _ = model(X, documents)
        scores = document_scores(scores, Y, loss_mask, documents, 2 * pairs.shape[1])
        losses, figures = reward_loss(scores.view(*pairs.shape, 2), args)
        total = total + losses[pairs >= 0].sum() / dataset.total
        values = values + figures[pairs >= 0].sum(0) / dataset.total
    total.backward()

    config = {"center_rewards_coefficient": coefficient} if coefficient else {}
    trainer = trl_trainer(
        saved(model, tmp_path / "here"), tiny_tokenizer_dir, tmp_path / "trl", **config
    )
    trainer.model.train()
    theirs = trainer.compute_loss(trainer.model, padded_batch(dataset))
    theirs.backward()
    assert total.item() == pytest.approx(theirs.item(), rel=1e-5)
    logged = {name: x[0] for name, x in trainer._metrics["train"].items()}
    ours_logged = dict(zip(METRICS, values.tolist()))
    assert 0 < ours_logged["accuracy"] == pytest.approx(logged["accuracy"])
    assert ours_logged["margin"] == pytest.approx(logged["margin"], rel=1e-4)
    mean = (ours_logged["chosen_score"] + ours_logged["rejected_score"]) / 2
    assert mean == pytest.approx(logged["mean_reward"], rel=1e-4)
    gradients = {name: p.grad for name, p in trainer.model.named_parameters()}
    for name, parameter in model.named_parameters():
        size = gradients[name].abs().max()
        assert size > 0, name
        assert (parameter.grad - gradients[name]).abs().max() <= 1e-5 * max(1, size), name


def test_packed_scores_equal_single_ones(encoded):
    """The score of each answer in a packed row is that of its whole conversation alone."""
    model, dataset = our_scorer(), DPODataset(encoded, 160, scored=True)
    packed = pair_log_probs(model, dataset, 2, ALONE, NO_AUTOCAST, of=document_scores)
    sequences = [ids.tolist() for i in range(dataset.total) for ids, _ in dataset.sides(i)]
    alone = score_sequences(model, sequences, batch_size=1)
    assert packed.flatten().tolist() == pytest.approx(alone, abs=1e-5)
    assert score_sequences(model, sequences, batch_size=5) == pytest.approx(alone, abs=1e-5)
    assert max(alone) - min(alone) > 0.1


def test_rows_hold_whole_conversations(encoded):
    """Each pair is in one row, its conversations to their last token, which alone is marked."""
    dataset = DPODataset(encoded, 160, scored=True)
    seen = []
    for X, Y, loss_mask, documents, pairs in dataset:
        assert torch.equal(X, Y)
        for k, pair in enumerate(pairs[pairs >= 0].tolist()):
            seen.append(pair)
            for side, (ids, _) in enumerate(dataset.sides(pair)):
                at = documents == 2 * k + 1 + side
                assert X[at].tolist() == ids.tolist()
                assert loss_mask[at].tolist() == [0] * (len(ids) - 1) + [1]
        assert loss_mask.sum() == 2 * (pairs >= 0).sum()
    assert sorted(seen) == list(range(encoded.num_records))
    assert not dataset[-1][2].any()
    assert dataset.fingerprint != DPODataset(encoded, 160).fingerprint


@pytest.mark.parametrize("moe", [False, True])
def test_transformers_gives_the_same_scores(tmp_path, tiny_tokenizer_dir, moe):
    """Of conversations of several lengths in one padded batch, rendered by its chat template."""
    model = our_scorer(random_numbers(3, moe=moe, vocab_size=512))
    folder = saved(model, tmp_path / "here")
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    tokenizer.chat_template = NO_THINKING
    tokenizer.save(folder)
    conversations = [
        [say("user", "What is it?" * (1 + i % 3)), say("assistant", "It is a cat. " * (1 + i))]
        for i in range(5)
    ]
    conversations[1] = [say("system", "Be brief."), *conversations[0], *conversations[1]]
    there, their_tokenizer = open_there(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert type(there).__name__ == ("Qwen3Moe" if moe else "Qwen3") + "ForSequenceClassification"
    batch = their_tokenizer.apply_chat_template(
        conversations, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        theirs = there(**batch).logits[:, 0].tolist()
    here = load_reward_model(folder)
    assert score_conversations(here, tokenizer, conversations, 2) == pytest.approx(theirs, abs=1e-4)
    assert max(theirs) - min(theirs) > 0.1


@pytest.mark.parametrize("moe", [False, True])
def test_folders_of_transformers_are_opened(tmp_path, moe):
    """Saved there, opened here, saved here: the same bits, and the same scores."""
    model = our_scorer(random_numbers(2, moe=moe, tie_word_embeddings=True))
    there = open_there(saved(model, tmp_path / "first"))
    there.config.tie_word_embeddings = True  # as of most small models: the head is not there
    there.save_pretrained(tmp_path / "there")
    here = load_reward_model(tmp_path / "there")
    saved(here, tmp_path / "second")
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("first", "there",
             "second")]  # fmt: skip
    assert same_bits(files[0], files[1]) and same_bits(files[0], files[2])
    ids = torch.randint(50, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = there(ids).logits.item()
    assert score_sequences(here, ids.tolist()) == pytest.approx([theirs], abs=1e-4)


def test_a_head_is_all_that_is_new(tmp_path):
    """Built on a language model: its blocks to the bit; the head depends on the seed alone."""
    folder = save_here(our_model(random_numbers(2)), tmp_path / "base")  # tied
    a, b, other = (from_language_model(load_model(folder), seed) for seed in (1, 1, 2))
    base = load_model(folder).state_dict()
    state = a.state_dict()
    assert state.keys() - base.keys() == {"score.weight"}
    assert all(torch.equal(tensor, base[name]) for name, tensor in state.items() if name in base)
    assert torch.equal(state["score.weight"], b.score.weight)
    assert not torch.equal(state["score.weight"], other.score.weight)
    assert all(parameter.requires_grad for parameter in a.parameters())


def test_scores_keep_their_precision_in_mixed_precision():
    """Under autocast the head's product is float32: scores are not rounded to 8 bits."""
    model = our_scorer()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores, _ = model(torch.arange(40)[None])
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


# ---- runs


@pytest.fixture
def flags(tmp_path, tiny_tokenizer_dir):
    return make_inputs(tmp_path, tiny_tokenizer_dir)


def train(monkeypatch, out_dir, *flags):
    argv = ["train_reward.py", "--out_dir", str(out_dir), *map(str, flags)]
    monkeypatch.setattr(sys, "argv", argv)
    train_reward.main()


def metrics(out_dir):
    lines = map(json.loads, (out_dir / "metrics.jsonl").read_text().splitlines())
    lines = (line for line in lines if "event" not in line)
    return [{k: v for k, v in line.items() if k not in SPEEDS} for line in lines]


LEARN = ["--dropout", 0, "--max_steps", 20, "--eval_interval", 20, "--save_interval", 20,
         "--learning_rate", 3e-3]  # fmt: skip


def test_it_learns_and_trl_goes_on_with_its_folder(monkeypatch, tmp_path, flags):
    """Held-out accuracy 1 and a growing margin; trl's RewardTrainer opens the folder by path."""
    train(monkeypatch, tmp_path / "run", *flags["reward"], *LEARN)
    first, *lines = metrics(tmp_path / "run")
    last, step = lines[-1], lines[-2]
    assert (last["val_accuracy"], last["step"]) == (1, 20)
    assert last["val_margin"] > 1 > first["val_margin"] and last["val_loss"] < 0.3
    assert last["val_chosen_score"] > last["val_rejected_score"]
    assert step["pairs"] > 20 and {"accuracy", "margin", "grad_norm"} <= step.keys()
    folder = tmp_path / "run/step-00000020"
    trainer = trl_trainer(str(folder), folder, tmp_path / "trl")
    score = trainer.model.score.weight
    assert torch.equal(score, load_file(folder / "model.safetensors")["score.weight"])
    readme = (tmp_path / "run/README.md").read_text()
    assert "AutoModelForSequenceClassification.from_pretrained" in readme


def test_a_run_goes_on_from_a_reward_model(monkeypatch, tmp_path, flags):
    """--init_from a reward model's run: its head is kept, not drawn anew."""
    train(monkeypatch, tmp_path / "run", *flags["reward"], *LEARN)
    more = [*flags["reward"]]
    more[more.index("--init_from") + 1] = tmp_path / "run"
    train(monkeypatch, tmp_path / "more", *more, "--max_steps", 1)
    assert metrics(tmp_path / "more")[0]["val_loss"] == pytest.approx(
        metrics(tmp_path / "run")[-1]["val_loss"], rel=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--fsdp"]], ids=["ddp", "fsdp"])
def test_two_processes_learn_what_one_does(monkeypatch, tmp_path, flags, more):
    """DDP, FSDP and one process: the same figures and the same weights."""
    run = [*flags["reward"], "--dropout", 0, "--max_steps", 4, "--learning_rate", 3e-3,
           "--eval_interval", 4]  # fmt: skip
    train(monkeypatch, tmp_path / "one", *run, "--batch_size", 6)
    in_two_processes("train_reward.py", tmp_path / "two", *run, "--batch_size", 3, *more)
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    one, two = (
        load_file(tmp_path / run / "step-00000004/model.safetensors") for run in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=1e-3, atol=1e-5, msg=name)


def test_accumulation_changes_nothing(monkeypatch, tmp_path, flags):
    """1 × 8 rows = 2 × 4: every pair of an update weighs the same, however full the rows are."""
    more = [*flags["reward"], "--dropout", 0, "--max_steps", 1, "--grad_clip", 0,
            "--val_fraction", 0, "--max_seq_len", 96, "--save_interval", 1]  # fmt: skip
    train(monkeypatch, tmp_path / "one", *more, "--batch_size", 8)
    train(monkeypatch, tmp_path / "two", *more, "--batch_size", 2, "--accumulation_steps", 4)
    one, two = (
        load_file(tmp_path / run / "step-00000001/resume/optimizer.tensors")
        for run in ("one", "two")
    )
    for name in one:
        if name.endswith("exp_avg"):  # a tenth of the gradient
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-7, msg=name)


def test_a_rounded_base_keeps_its_dtype(monkeypatch, tmp_path, flags):
    """A bfloat16 base gives a bfloat16 folder; the run goes on from the exact weights."""
    base = tmp_path / "base"
    rounded = {name: t.bfloat16() for name, t in load_file(base / "model.safetensors").items()}
    save_file(rounded, base / "model.safetensors", {"format": "pt"})
    run = [*flags["reward"], "--min_lr_ratio", 1, "--max_steps"]  # the rate knows no last step
    train(monkeypatch, tmp_path / "run", *run, 4)
    train(monkeypatch, tmp_path / "run", *run, 8)
    train(monkeypatch, tmp_path / "whole", *run, 8)
    for name in ("model.safetensors", "resume/weights.tensors", "resume/optimizer.tensors"):
        a, b = (tmp_path / run / "step-00000008" / name for run in ("run", "whole"))
        assert a.read_bytes() == b.read_bytes(), name
    stored = load_file(tmp_path / "run/step-00000008/model.safetensors")
    assert stored["model.norm.weight"].dtype == torch.bfloat16


def test_unfit_folders_and_flags_are_one_clear_line(monkeypatch, tmp_path, flags, capsys):
    """Two labels, a language model in place of a reward model and the reverse, --lora_rank."""
    folder = saved(our_scorer(), tmp_path / "scorer")
    assert is_reward_model(folder) and not is_reward_model(tmp_path / "base")
    with pytest.raises(ValueError, match=r"a reward model, which scores conversations"):
        load_model(folder)
    monkeypatch.setattr(sys, "argv", ["eval_model.py", "--model", str(folder), "--prompt", "x"])
    load_tokenizer(tmp_path / "base").save(folder)
    with pytest.raises(SystemExit) as stopped:
        cli.run(eval_model.main)
    assert stopped.value.code == 2 and "a reward model" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no reward model"):
        load_reward_model(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    for labels, count in (({"0": "a", "1": "b"}, 2), (None, 2)):
        (folder / "config.json").write_text(json.dumps(config | {"id2label": labels}))
        with pytest.raises(ValueError, match=f"has one label, this one has {count}"):
            load_reward_model(folder)
    with pytest.raises(SystemExit) as stopped:
        train(monkeypatch, tmp_path / "run", *flags["reward"], "--lora_rank", 4)
    assert stopped.value.code == 2 and "--lora_rank" in capsys.readouterr().err


def test_another_coefficient_is_another_run(monkeypatch, tmp_path, flags):
    """A resumed run keeps its loss; a language model's checkpoint is not continued."""
    run = [*flags["reward"], "--eval_interval", 100, "--max_steps"]
    train(monkeypatch, tmp_path / "run", *run, 1)
    with pytest.raises(ValueError, match=r"--center_rewards_coefficient was 0\.0, is 0\.1"):
        train(monkeypatch, tmp_path / "run", *run, 2, "--center_rewards_coefficient", 0.1)


def test_folder_is_that_of_an_edited_model(monkeypatch, tmp_path):
    """Blocks that do not compute what Qwen3 computes: the folder says "minimind"."""
    from model import qwen3_check

    verdict = qwen3_check.Verdict("its logits differ", [0.0] * 6)
    monkeypatch.setattr(qwen3_check, "verdict", lambda cls, config, from_disk: verdict)
    folder = saved(our_scorer(), tmp_path / "edited")
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "minimind" and config["architectures"] == ["RewardModel"]
    assert score_sequences(load_reward_model(folder), [[1, 2]]) == pytest.approx(
        score_sequences(our_scorer(), [[1, 2]])
    )


def test_completions_are_scored_as_conversations(tmp_path, tiny_tokenizer_dir):
    """`--reward model=FOLDER`: a completion's messages follow its prompt's; cut or not, it ends."""
    folder, tokenizer = saved(our_scorer(), tmp_path / "scorer"), load_tokenizer(tiny_tokenizer_dir)
    tokenizer.chat_template = NO_THINKING
    tokenizer.save(folder)
    question, end = [say("user", "What is it?")], tokenizer.control_id("<|im_end|>")
    prompt = Prompt("What is it?", [1], None, question)
    said = tokenizer.encode_text("It is a cat.")
    completions = [
        completion_of(tokenizer, prompt, ids) for ids in ([*said, end], said, [*said, *said])
    ]
    scores = model_reward()(folder)(completions)
    answers = [[*question, say("assistant", text)] for text in ("It is a cat.", "It is a cat." * 2)]
    expected = score_conversations(load_reward_model(folder), tokenizer, answers)
    assert scores == pytest.approx([expected[0], expected[0], expected[1]], abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3
    nothing = tmp_path / "nothing"
    told = f"^--reward model={nothing}: the folder {nothing}: neither a model folder nor a run"
    with pytest.raises(ValueError, match=told):
        make_rewards([f"model={nothing}"], model_reward=model_reward())
