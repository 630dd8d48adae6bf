"""train_distillation.py from the outside: tiny runs, and what they remember of their teacher."""

import signal
import sys

import pytest
import torch
from safetensors.torch import load_file

import train_distillation
import train_full_sft
import train_pretrain
from dataset.tokenizer import load_tokenizer
from model.hf_format import load_model, save_model, weights_sha256
from tests.oracle_models import our_model, random_numbers, same_bits
from tests.processes import in_two_processes
from tests.small_runs import TINY, figures, make_inputs
from tests.test_finetuning import gradients
from tests.test_interruptions import check_interrupted_runs
from training import teacher as teachers
from training.writer import CheckpointWriter

SCRIPTS = {"distillation": train_distillation, "full_sft": train_full_sft,
           "pretrain": train_pretrain}  # fmt: skip


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
    once = [*flags["distillation"], "--max_steps", 1, "--val_fraction", 0, "--grad_clip", 0,
            "--dropout", 0, "--temperature", 2, "--alpha", 0.2, "--max_new_tokens", 16,
            *more]  # fmt: skip
    other = [*once, "--batch_size", 3, "--accumulation_steps", 8 // processes]
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
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path, flags, processes):
    """Killed at random moments and started again, it ends with the same bits and metrics."""
    flags["distillation"] += ["--divergence", "jsd", "--on_policy", "0.5", "--max_new_tokens", "8"]
    number = signal.SIGKILL
    assert check_interrupted_runs(tmp_path, flags, "distillation", processes, number, 1, 2)


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
