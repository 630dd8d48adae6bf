"""train_distillation.py: its loss against trl's GKDTrainer, and runs of it."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train_distillation
import train_full_sft
import train_pretrain
from dataset.chat import stop_ids
from dataset.sft import SFTDataset
from dataset.tokenizer import load_tokenizer
from model.generation import generate
from model.hf_format import load_model, save_model, weights_sha256
from tests.encode import encode
from tests.oracle_models import our_model, random_numbers, same_bits
from tests.processes import in_two_processes
from tests.small_runs import TINY, figures, make_inputs
from tests.test_interruptions import check_interrupted_runs
from train_distillation import divergence
from training import teacher as teachers
from training.own_samples import OwnSamples
from training.teacher import at_every_token
from training.teacher_memory import of_the_likeliest
from training.writer import CheckpointWriter

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
SCRIPTS = {"distillation": train_distillation, "full_sft": train_full_sft,
           "pretrain": train_pretrain}  # fmt: skip


def options(kind="forward_kl", jsd_beta=0.5, temperature=1.0):
    return SimpleNamespace(divergence=kind, jsd_beta=jsd_beta, temperature=temperature)


def random_logits(rows=3, tokens=7, vocab=97, seed=0):
    """Student's (which wants a gradient) and teacher's logits, some far apart, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(rows, tokens, vocab, generator=generator) for _ in "st")
    student[0, :2], teacher[0, 1:3] = 20 * student[0, :2], 20 * teacher[0, 1:3]
    mask = (torch.rand(rows, tokens, generator=generator) < 0.6).float()
    mask[-1] = 0
    return student.requires_grad_(True), teacher, mask


def gaps(student, teacher, args, *ids):
    """The divergence at every place, of the vocabulary that both have."""
    V = min(student.shape[-1], teacher.shape[-1]) if not ids else student.shape[-1]
    return at_every_token(divergence, args, V, student, teacher, *ids)


def mean(student, teacher, mask, args):
    return (gaps(student, teacher, args) * mask).sum() / mask.sum()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize(
    ("kind", "beta"),
    [("forward_kl", 0), ("reverse_kl", 1), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.97)],
)
def test_loss_and_gradient_equal_trl(kind, beta, temperature):
    """Every divergence is GKDTrainer's, at every temperature, over the targets of the mask alone.

    trl does not multiply by T²; so the gradient is compared before that.
    """
    from trl.experimental.gkd import GKDTrainer

    student, teacher, mask = random_logits()
    ours = mean(student, teacher, mask, options(kind, beta, temperature))
    (gradient,) = torch.autograd.grad(ours, student)
    labels = torch.where(mask == 1, 1, -100)
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta, temperature)
    (expected,) = torch.autograd.grad(theirs, student)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    largest = expected.abs().max().item()
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * largest)
    assert largest > 1e-5 and not gradient[mask == 0].any()


def test_soft_targets_gradient_is_hintons():
    """T² · KL has the gradient T (q - p), which is Hinton's for soft targets (2015, eq. 2)."""
    student, teacher, _ = random_logits(1, 1)
    T = 2.5
    loss = T**2 * gaps(student, teacher, options(temperature=T)).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    q, p = (torch.softmax(logits / T, -1) for logits in (student, teacher))
    torch.testing.assert_close(gradient, T * (q - p), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", train_distillation.DIVERGENCES)
def test_a_model_is_not_apart_from_itself(kind):
    """0 and no gradient where both say the same; more than 0 elsewhere; never NaN."""
    student, teacher, _ = random_logits()
    same = gaps(student, student.detach(), options(kind))
    assert same.abs().max() < 1e-5
    assert torch.autograd.grad(same.sum(), student)[0].abs().max() < 1e-5
    far = gaps(50 * student, 50 * teacher, options(kind))
    assert far.isfinite().all() and (far > -1e-6).all() and far.max() > 0.5
    assert torch.autograd.grad(far.sum(), student)[0].isfinite().all()


def test_chunks_give_the_same_and_keep_no_copy(monkeypatch):
    """In chunks: equal values and gradients; what the backward pass keeps is no float32 copy."""
    student, teacher, _ = random_logits(vocab=128)
    student, teacher = student.detach().bfloat16().requires_grad_(True), teacher.bfloat16()
    kept = []

    def both():
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append((t.dtype, t.numel())) or t, lambda t: t
        ):
            values = gaps(student, teacher, options("jsd", 0.3))
        return values, torch.autograd.grad(values.sum(), student)[0]

    whole, of_whole = both()
    big = (torch.float32, student.numel())
    assert big in kept
    monkeypatch.setattr(teachers, "CHUNK", 4 * 3 * 128)  # three places at a time
    parts, of_parts = both()
    assert big not in kept
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
    torch.testing.assert_close(of_parts, of_whole, rtol=0, atol=0)


def test_a_rounded_up_vocabulary_is_no_other_one():
    """Entries that only one of them has, filled up to a rounder number, do not count."""
    student, teacher, mask = random_logits()
    more = torch.cat([teacher, torch.full((*mask.shape, 31), 9.0)], -1)
    expected = mean(student, teacher, mask, options())
    assert mean(student, more, mask, options()) == expected
    longer = torch.cat([student, torch.zeros(*mask.shape, 5)], -1)
    assert mean(longer, teacher, mask, options()) == expected


@pytest.mark.parametrize("kind", train_distillation.DIVERGENCES)
def test_the_likeliest_and_the_rest_are_a_distribution(kind):
    """Of k tokens and the rest, computed by hand in float64; never more than that of all tokens.

    With all but one token among the k nothing is lost.
    """
    student, teacher, _ = random_logits(vocab=20)
    args, T = options(kind, 0.3, 1.5), 1.5
    of_all = gaps(student, teacher, args)
    for k in (1, 5, 19):
        p = (teacher / T).log_softmax(-1)
        ids = p.topk(k).indices
        top = torch.stack([of_the_likeliest(p[i], ids[i]) for i in range(len(p))])
        assert top.exp().sum(-1).sub(1).abs().max() < 1e-5
        found = gaps(student, top, args, ids)
        q64, p64 = ((x.detach().double() / T).softmax(-1).numpy() for x in (student, teacher))
        by_hand = np.zeros(found.shape)
        for place in np.ndindex(by_hand.shape):
            chosen = ids[place].numpy()
            Q, P = (np.append(x[place][chosen], np.delete(x[place], chosen).sum())
                    for x in (q64, p64))  # fmt: skip
            M = {"forward_kl": Q, "reverse_kl": P, "jsd": 0.3 * P + 0.7 * Q}[kind]
            to_p, to_q = (P * np.log(P / M)).sum(), (Q * np.log(Q / M)).sum()
            by_hand[place] = {"forward_kl": to_p, "reverse_kl": to_q}.get(
                kind, 0.3 * to_p + 0.7 * to_q
            )
        torch.testing.assert_close(found.double(), torch.from_numpy(by_hand), rtol=1e-4, atol=1e-6)
        assert (found < of_all + 1e-5).all()
        if k == 19:
            torch.testing.assert_close(found, of_all, rtol=1e-4, atol=1e-6)
        assert torch.autograd.grad(found.sum(), student)[0].isfinite().all()


# ---- runs


@pytest.fixture
def flags(tmp_path, tiny_tokenizer_dir):
    """The flags of each script; "distillation" has a teacher of other size and random weights."""
    flags = make_inputs(tmp_path, tiny_tokenizer_dir)
    teacher = make_teacher(tmp_path / "teacher", tiny_tokenizer_dir)
    flags["distillation"] = [*flags["full_sft"], "--teacher", str(teacher)]
    return flags


def make_teacher(folder, tokenizer_dir, moe=False, vocab_size=512, dtype=torch.float32):
    """A folder with a random model that is sure of what it says."""
    folder.mkdir()
    tokenizer = load_tokenizer(tokenizer_dir)
    numbers = random_numbers(1, moe, vocab_size=vocab_size)
    save_model(our_model(numbers, seed=5).to(dtype), folder, tokenizer.eos_id)
    tokenizer.save(folder, chat_template=False)
    return folder


def train(monkeypatch, script, out_dir, *flags):
    argv = [f"train_{script}.py", "--out_dir", str(out_dir), *map(str, flags)]
    monkeypatch.setattr(sys, "argv", argv)
    try:
        SCRIPTS[script].main()
    except SystemExit as left:  # there was nothing to do
        assert left.code == 0


def without(line, *names):
    return {name: x for name, x in line.items() if name not in names}


@pytest.mark.parametrize("script", ["full_sft", "pretrain"])
def test_alpha_1_is_the_script_without_a_teacher(monkeypatch, tmp_path, flags, script):
    """With --alpha 1 the weights have the bits of train_full_sft.py, or train_pretrain.py."""
    teacher = flags["distillation"][-2:]
    more = [*flags[script], "--max_steps", 4, "--batch_size", 4]
    train(monkeypatch, script, tmp_path / "alone", *more)
    if script == "pretrain":
        at = more.index("--tokenizer")
        more = [*more[:at], *more[at + 2 :], "--data", "text", "--weight_decay", 0.1]
        more += ["--learning_rate", 2e-3]
    train(monkeypatch, "distillation", tmp_path / "taught", *more, *teacher, "--alpha", 1)
    alone, taught = (load_file(tmp_path / run / "step-00000004/model.safetensors")
                     for run in ("alone", "taught"))  # fmt: skip
    assert same_bits(alone, taught)
    lines = list(zip(figures(tmp_path / "alone"), figures(tmp_path / "taught"), strict=True))
    assert len(lines) == 6
    for one, other in lines:
        assert other.get("val_divergence", other.get("divergence")) > 0.01
        more = ("cross_entropy", "divergence", "val_divergence", "val_bits_per_byte")
        assert without(one, *more) == without(other, *more)
        assert one.get("loss") == other.get("cross_entropy")


def test_the_loss_is_what_it_is_made_of(monkeypatch, tmp_path, flags):
    """loss = α · cross-entropy + (1 - α) · T² · divergence in every line of the log."""
    train(monkeypatch, "distillation", tmp_path / "run", *flags["distillation"], "--max_steps", 3,
          "--alpha", 0.3, "--temperature", 2, "--divergence", "jsd", "--jsd_beta", 0.2)  # fmt: skip
    lines = [line for line in figures(tmp_path / "run") if "loss" in line]
    assert len(lines) == 3
    for line in lines:
        expected = 0.3 * line["cross_entropy"] + 0.7 * 4 * line["divergence"]
        assert line["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("moe_teacher", "dtype"), [(False, torch.bfloat16), (True, torch.float32)])
def test_a_student_comes_nearer_to_its_teacher(
    monkeypatch, tmp_path, flags, tiny_tokenizer_dir, moe_teacher, dtype
):
    """A new student, dense or of experts, gets nearer to a teacher of another kind, on text.

    The teacher keeps its dtype and its bits, gets no gradient, and its bigger table is no matter.
    """
    folder = make_teacher(tmp_path / "other", tiny_tokenizer_dir, moe_teacher, 520, dtype)
    before, seen = weights_sha256(folder), []
    load = teachers.Teacher._load
    monkeypatch.setattr(
        teachers.Teacher, "_load", lambda *args: seen.append(load(*args)) or seen[-1]
    )
    text = flags["pretrain"][:2]
    experts = (
        [] if moe_teacher else ["--use_moe", "--num_experts", 4, "--moe_intermediate_size", 16]
    )
    train(monkeypatch, "distillation", tmp_path / "run", *text, "--teacher", folder, "--data",
          "text", *TINY, *experts, *flags["pretrain"][-17:], "--max_steps", 30, "--alpha", 0,
          "--learning_rate", 2e-2, "--eval_interval", 30, "--max_seq_len", 32)  # fmt: skip
    first, *_, last = [line for line in figures(tmp_path / "run") if "val_divergence" in line]
    assert first["step"] == 0 and last["val_divergence"] < 0.6 * first["val_divergence"]
    (teacher,) = seen
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert {p.dtype for p in teacher.parameters()} == {dtype} and not teacher.training
    assert same_bits(teacher.state_dict(), load_model(folder, dtype=dtype).state_dict())
    assert weights_sha256(folder) == before
    student = load_model(tmp_path / "run/step-00000030")
    assert student.config.use_moe != moe_teacher and student.config.vocab_size == 512


def gradients(checkpoint):
    """The gradient of a run's first update: AdamW's exp_avg after one step is 0.1 times it."""
    state = load_file(checkpoint / "resume/optimizer.tensors")
    return {k.removesuffix(".exp_avg"): v / 0.1 for k, v in state.items() if k.endswith(".exp_avg")}


TWO = pytest.mark.slow  # processes


@pytest.mark.parametrize(
    ("more", "processes"),
    [
        ([], 1),
        (["--on_policy", 1], 1),
        pytest.param([], 2, marks=TWO),
        pytest.param(["--on_policy", 1], 2, marks=TWO),
        pytest.param(["--fsdp"], 2, marks=TWO),
        pytest.param(["--on_policy", 1, "--fsdp"], 2, marks=TWO),
        pytest.param(["--teacher_top_k", 8], 2, marks=TWO),
    ],
)
def test_an_update_is_a_mean_however_it_is_shared_out(
    monkeypatch, tmp_path, flags, more, processes
):
    """1 × 24 rows, 8 × 3, two processes × 4 × 3, these with shards or without: one gradient."""
    once = [
        *flags["distillation"],
        "--max_steps",
        1,
        "--val_fraction",
        0,
        "--grad_clip",
        0,
        "--dropout",
        0,
        "--temperature",
        2,
        "--alpha",
        0.2,
        "--max_new_tokens",
        16,
        *more,
    ]
    other = [*once, "--batch_size", 3, "--accumulation_steps", 8 // processes]  # fmt: skip
    once = [*(word for word in once if word != "--fsdp"), "--batch_size", 24]
    train(monkeypatch, "distillation", tmp_path / "one", *once)
    if processes == 2:
        in_two_processes("train_distillation.py", tmp_path / "other", *other)
    else:
        train(monkeypatch, "distillation", tmp_path / "other", *other)
    one, other = (gradients(tmp_path / run / "step-00000001") for run in ("one", "other"))
    assert sum(gradient.abs().sum() for gradient in one.values()) > 1
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=1e-7, msg=name)
    ours, theirs = (figures(tmp_path / run)[0] for run in ("one", "other"))
    assert ours["tokens"] == theirs["tokens"]
    for name in ("loss", "divergence"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5)


def stop_after_save(monkeypatch, step):
    """From now on a run ends as by Ctrl-C when it has saved that step."""
    save = CheckpointWriter.save

    def save_and_stop(writer, *args):
        save(writer, *args)
        if args[2]["step"] == step:
            writer.wait()
            raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointWriter, "save", save_and_stop)
    return lambda: monkeypatch.setattr(CheckpointWriter, "save", save)


@pytest.mark.parametrize(
    "more", [["--divergence", "jsd"], ["--on_policy", 0.6, "--max_new_tokens", 8]]
)
def test_resumed_run_equals_uninterrupted(monkeypatch, tmp_path, flags, more):
    """Stopped after step 3 and started again: the same bits and the same metrics."""
    argv = [*flags["distillation"], *more, "--max_steps", 6, "--batch_size", 2, "--save_interval",
            1, "--accumulation_steps", 2, "--eval_interval", 2]  # fmt: skip
    train(monkeypatch, "distillation", tmp_path / "whole", *argv)
    go_on = stop_after_save(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(monkeypatch, "distillation", tmp_path / "stopped", *argv)
    go_on()
    train(monkeypatch, "distillation", tmp_path / "stopped", *argv)
    whole, stopped = (tmp_path / run for run in ("whole", "stopped"))
    assert figures(whole) == figures(stopped)
    for name in ("model.safetensors", "resume/optimizer.tensors"):
        files = (run / "step-00000006" / name for run in (whole, stopped))
        assert next(files).read_bytes() == next(files).read_bytes()


@pytest.mark.slow
def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path, flags):
    """Killed at random moments and started again, it ends with the same bits and metrics."""
    flags["distillation"] += ["--divergence", "jsd"]
    assert check_interrupted_runs(tmp_path, flags, "distillation", 1, signal.SIGKILL, 1, 2)


def test_another_teacher_is_another_run(monkeypatch, tmp_path, flags, tiny_tokenizer_dir):
    """A checkpoint is not continued with another teacher or divergence; α may change."""
    run = [*flags["distillation"], "--eval_interval", 100]
    train(monkeypatch, "distillation", tmp_path / "run", *run, "--max_steps", 1)
    other = make_teacher(tmp_path / "other", tiny_tokenizer_dir, moe=True)
    for more, expected in (
        (["--teacher", other], r"its teacher was .*teacher .*give the --teacher it had"),
        (["--divergence", "jsd"], r"--divergence was forward_kl, is jsd"),
        (["--temperature", 2], r"--temperature was 1\.0, is 2\.0"),
    ):
        with pytest.raises(ValueError, match=expected):
            train(monkeypatch, "distillation", tmp_path / "run", *run, "--max_steps", 2, *more)
    train(monkeypatch, "distillation", tmp_path / "run", *run, "--max_steps", 2, "--alpha", 0.9)
    assert (tmp_path / "run/step-00000002").is_dir()


def test_mistakes_are_one_line(monkeypatch, tmp_path, flags, tiny_tokenizer_dir):
    """What does not go together is said with its flag, before anything is trained."""
    run = flags["distillation"]
    words = tmp_path / "words"
    tokenizer = tmp_path / "other_tokenizer"
    tokenizer.mkdir()
    for file in tiny_tokenizer_dir.iterdir():
        text = file.read_text(encoding="utf-8")
        if file.name == "tokenizer.json":
            assert text.count('"the": ') <= 1
            text = text.replace("<think>", "<thank>")
        (tokenizer / file.name).write_text(text, encoding="utf-8")
    make_teacher(words, tokenizer)
    narrow = make_teacher(tmp_path / "narrow", tiny_tokenizer_dir, vocab_size=500)
    for more, expected in (
        (["--teacher", words], r"its vocabulary is not .*: id \d+ is '<thank>' for the teacher, "
                               "'<think>' for the student"),
        (["--teacher", narrow], "its tokenizer has 512 entries, its model 500"),
        (["--max_seq_len", 300], "the teacher's context is 256 tokens"),
        (["--teacher", tmp_path / "nothing"], "--teacher .*nothing: neither a model folder"),
        (["--jsd_beta", 0.3], "--jsd_beta: belongs to --divergence jsd, not forward_kl"),
        (["--teacher_top_k", 512], "--teacher_top_k 512: there are 512 tokens"),
        (["--teacher_top_k", 9, "--on_policy", 1], "--teacher_top_k: not with --on_policy"),
        (["--data", "text", "--on_policy", 1], "--on_policy: not with --data text"),
        (["--data", "text", "--questions", "x"], "--questions: belongs to --data conversations"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=expected) as error:
            train(monkeypatch, "distillation", tmp_path / "run", *run, *more)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("run/step-*"))


# ---- what is remembered of the teacher


@pytest.mark.parametrize("kind", ["conversations", "text"])
def test_a_run_that_finds_the_files_needs_no_teacher(monkeypatch, tmp_path, flags, kind):
    """--teacher_top_k: the second run does not open the teacher, and ends with the same bits.

    With nearly all tokens it learns what a run beside the teacher does. Another temperature, or
    a file that is damaged, asks the teacher anew.
    """
    loads = []
    load = teachers.Teacher._load
    monkeypatch.setattr(teachers.Teacher, "_load", lambda *args: loads.append(0) or load(*args))
    more = [*flags["distillation"], "--max_steps", 4, "--alpha", 0.3, "--teacher_top_k"]
    if kind == "text":
        more = [*flags["pretrain"][:2], "--data", "text", *TINY, *more[2:]]
        at = more.index("--init_from")
        more = more[:at] + more[at + 2 :]

    def train_with(name, k, *others):
        loads.clear()
        train(monkeypatch, "distillation", tmp_path / name, *more, k, *others)
        return len(loads), load_file(tmp_path / name / "step-00000004/model.safetensors")

    asked, beside = train_with("beside", 0)
    assert asked == 1
    asked, first = train_with("first", 511)
    assert asked == 2  # for the rows to train on and the held-out ones
    asked, second = train_with("second", 511)
    assert asked == 0 and same_bits(first, second)
    assert figures(tmp_path / "first") == figures(tmp_path / "second")
    for name, weight in beside.items():
        torch.testing.assert_close(first[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    asked, few = train_with("few", 4)
    assert asked == 2 and not same_bits(few, beside)
    for lines in zip(figures(tmp_path / "few"), figures(tmp_path / "beside")):
        less, whole = (line.get("divergence", line.get("val_divergence")) for line in lines)
        assert 0 < less < 1.02 * whole
    assert train_with("warm", 4, "--temperature", 2)[0] == 2
    for file in (tmp_path / "cache").glob("*/log_probs.bin"):
        file.write_bytes(file.read_bytes()[:-4])
    asked, again = train_with("again", 4)
    assert asked == 2 and same_bits(again, few)


# ---- on-policy


@pytest.fixture
def own(tmp_path, flags, tiny_tokenizer):
    """A function: OwnSamples of a Run as far as it matters, beside a batch of its rows."""

    def make(rows=slice(0, 3), seed=42, step=5, most=12, model=None, max_seq_len=160):
        encoded = encode("conversations", Path(flags["full_sft"][1]), tiny_tokenizer)
        dataset = SFTDataset(encoded, max_seq_len)
        batch = [torch.stack(parts) for parts in zip(*(dataset[i] for i in range(len(dataset))))]
        run = SimpleNamespace(
            args=SimpleNamespace(seed=seed, fsdp=False), step=step, dtype=torch.float32,
            at_boundary=True, device=torch.device("cpu"), model=model,
            ranks=SimpleNamespace(rank=0),
            batches=lambda *_: [tuple(part[rows] for part in batch)],
            inner_updates=lambda steps: steps[0],
        )  # fmt: skip
        return OwnSamples(run, tiny_tokenizer, 1.0, most), [part[rows] for part in batch]

    return make


def documents_of(X, Y, loss_mask, document_ids):
    """(ids, mask) of every document of rows: mask 1 where a token is a target that counts."""
    found = []
    for x, y, mask, documents in zip(X, Y, loss_mask, document_ids):
        for number in documents[mask > 0].unique_consecutive().tolist():
            where = documents == number
            ids = [x[where][0].item(), *y[where].tolist()]
            found.append((ids, [0, *mask[where].int().tolist()]))
    return found


def test_prompts_end_where_an_answer_begins(own, tiny_tokenizer):
    """A prompt is a conversation of the row up to one of its answers; all of them come in turn."""
    turns = set()
    for step in range(12):
        samples, batch = own(step=step)
        texts = [tiny_tokenizer.decode(ids) for ids, _ in documents_of(*batch)]
        prompts = samples.prompts(*batch)
        for prompt in prompts:
            text = tiny_tokenizer.decode(prompt.ids)
            assert text.endswith("<|im_start|>assistant\n")
            assert any(whole.startswith(text + "The cat.") for whole in texts)
            turns.add(text.count("assistant"))
        for row in range(3):
            needed = [len(p.ids) + p.most - 1 for p in prompts if p.row == row]
            assert needed and sum(needed) <= 160
    assert turns == {1, 2, 3}


def test_own_rows_hold_what_the_student_says(own):
    """Each answer is that of `generate` with its seed; it counts, its prompt never does."""
    model = our_model(random_numbers(1, vocab_size=512), seed=3)
    samples, batch = own(model=model)
    prompts = samples.prompts(*batch)
    (made,) = samples.batches(None, 0)
    assert [part.shape for part in made] == [part.shape for part in batch]
    assert samples.run.update_size == made[2].sum() > 0
    documents = documents_of(*made)
    assert len(documents) == len(prompts) > 3
    for (ids, mask), prompt in zip(documents, prompts):
        answer = ids[len(prompt.ids) :]
        assert ids[: len(prompt.ids)] == prompt.ids
        assert mask == [0] * len(prompt.ids) + [1] * len(answer)
        ends, seed = set(stop_ids(samples.tokenizer)), f"42/5/{prompt.name}"
        assert answer == list(generate(model, prompt.ids, prompt.most, ends, seed))


def test_draws_depend_on_seed_step_and_prompt_alone(own):
    """Rows beside one another do not matter; another step, seed or other weights do."""
    model = our_model(random_numbers(1, vocab_size=512), seed=3)

    def said(**how):
        samples, _ = own(**{"model": model} | how)
        (made,) = samples.batches(None, 0)
        return [ids for ids, _ in documents_of(*made)]

    first, alone = said(rows=slice(0, 3)), said(rows=slice(1, 2))
    assert alone and all(ids in first for ids in alone)
    assert said() == first
    assert said(step=6) != first != said(seed=43)
    with torch.no_grad():  # an optimizer's step, say
        model.lm_head.weight[:256] *= 0.5
    assert said() != first


def test_a_row_without_room_keeps_its_shortest_prompt(own):
    """Where no prompt has room for the longest answer, one has what there is."""
    samples, batch = own(most=150, model=our_model(random_numbers(1, vocab_size=512)))
    prompts = samples.prompts(*batch)
    assert [p.row for p in prompts] == [0, 1, 2]
    assert all(len(p.ids) + p.most == 161 for p in prompts)
    assert samples.prompts(*(0 * part for part in batch)) == []


class Watched(OwnSamples):
    """Notes which updates are on-policy."""

    @property
    def is_due(self):
        DUE[self.run.step] = super().is_due
        return DUE[self.run.step]


DUE: dict[int, bool] = {}


def test_a_share_of_the_updates_is_on_policy(monkeypatch, tmp_path, flags):
    """Which ones depends on seed and step; their loss is T² · divergence alone."""
    monkeypatch.setattr(train_distillation, "OwnSamples", Watched)
    DUE.clear()
    train(monkeypatch, "distillation", tmp_path / "run", *flags["distillation"], "--max_steps", 12,
          "--on_policy", 0.5, "--max_new_tokens", 8, "--alpha", 1, "--temperature", 2)  # fmt: skip
    assert 3 <= sum(DUE.values()) <= 9 and len(DUE) == 12
    before = 0
    for line in (line for line in figures(tmp_path / "run") if "loss" in line):
        is_own = DUE[line["step"] - 1]
        expected = 4 * line["divergence"] if is_own else line["cross_entropy"]
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
        tokens, before = line["tokens"] - before, line["tokens"]
        assert tokens > 0
