"""Runs that are killed, stopped, starved of disk or fed bad numbers, in processes of their own."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model import hf_format
from tests.small_runs import STEPS, figures, make_inputs, metrics, result, run, start
from training import checkpoint

SCRIPTS = ("pretrain", "full_sft", "lora", "dpo", "kto", "reward")


@pytest.fixture
def flags(tmp_path, tiny_tokenizer_dir):
    return make_inputs(tmp_path, tiny_tokenizer_dir)


def family(pid: int) -> list[int]:
    """A process and all it has started, itself first: what dies when a machine does."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in family(int(child)))]


def kill_and_restart(script, out_dir, flags, number, rng, processes, kills, length):
    """Start a run, send it `number` after a random time, start it again, until it has finished.

    Times are drawn over the length of a whole run (seconds), so signals come while it imports,
    tokenises, trains, evaluates and saves. Returns how often it was really interrupted.
    """
    interrupted = 0
    for _ in range(kills):
        process = start(script, out_dir, *flags, processes=processes)
        try:
            process.wait(timeout=rng.uniform(0.2, 0.95) * length)
        except subprocess.TimeoutExpired:
            for pid in family(process.pid) if number == signal.SIGKILL else [process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            interrupted += 1
        output, _ = process.communicate(timeout=120)
        if process.returncode == 0:
            break
        if number == signal.SIGTERM and processes == 1:
            # before Python has come as far as our handler, the signal ends it by itself
            assert process.returncode in (128 + number, -number), output
        assert "Error" not in output or number == signal.SIGKILL or processes > 1, output
    run(script, out_dir, *flags, processes=processes)
    return interrupted


def check_interrupted_runs(tmp_path, flags, script, processes, number, runs, kills):
    flags = [*flags[script], "--batch_size", 4 // processes]
    begin = time.monotonic()
    run(script, tmp_path / "whole", *flags, processes=processes)
    length = time.monotonic() - begin
    expected = result(tmp_path / "whole")
    rng = random.Random(f"{script} {processes} {number}")
    interrupted = 0
    for i in range(runs):
        out_dir = tmp_path / f"run{i}"
        interrupted += kill_and_restart(
            script, out_dir, flags, number, rng, processes, kills, length
        )
        assert result(out_dir) == expected
        assert not list(out_dir.glob(".tmp-*")), "leftovers of killed saves are removed"
    name = signal.Signals(number).name
    print(f"{script}, {processes} processes: {interrupted} × {name}, {runs} runs, all the same")
    return interrupted


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path, flags, number):
    """Killed at random moments and started again, a run ends with the same bits and metrics."""
    assert check_interrupted_runs(tmp_path, flags, "pretrain", 1, number, runs=1, kills=3)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_many_killed_runs_end_like_undisturbed_ones(tmp_path, flags, script, processes, number):
    """The same for six scripts, in one and in two processes: 84 runs in all."""
    runs = 4 if processes == 1 else 3
    assert check_interrupted_runs(tmp_path, flags, script, processes, number, runs, kills=3)


def wait_for(process, text: str, output: list[str]):
    """Read a process's output until a line contains `text`."""
    for line in process.stdout:
        output.append(line)
        if text in line:
            return
    raise AssertionError("".join(output))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves(tmp_path, flags, number, status):
    """The running update is finished and saved, the status tells the signal."""
    flags = [*flags["pretrain"], "--save_interval", 1000, "--max_steps", 100000,
             "--num_workers", 1]  # fmt: skip
    process, output = start("pretrain", tmp_path / "run", *flags), []
    wait_for(process, "step      5/", output)
    os.killpg(process.pid, number)  # the loader's process gets it too
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == status, rest
    assert f"stopped by {number.name} after step" in rest and "Traceback" not in rest
    (saved,) = checkpoint.step_folders(tmp_path / "run")
    step = json.loads((saved / "resume/trainer_state.json").read_text())["step"]
    assert step >= 5 and checkpoint.damage(saved) is None
    assert metrics(tmp_path / "run")[-1]["step"] == step


INTERRUPTED = """
import os, signal, SCRIPT as script
from training import cli, evaluation, reference
from training.stopping import Stopping
evaluations, begin = [], Stopping.begin_training
def begin_training(self):
    evaluations.append(None)
    begin(self)
Stopping.begin_training = begin_training
batches = evaluation.shared_batches
def interrupted(*args):
    if evaluations:
        evaluations.append(None)
    if len(evaluations) == 1 + NUMBER:
        os.kill(os.getpid(), signal.SIGTERM)
    return batches(*args)
evaluation.shared_batches = reference.shared_batches = interrupted
cli.run(script.main)
"""


@pytest.mark.parametrize(
    ("script", "number", "expected"),
    [
        ("pretrain", 1, "before the first update"),  # the held-out loss of step 0
        pytest.param("pretrain", 2, "after step 4", marks=pytest.mark.slow),
        pytest.param("full_sft", 2, "after step 4", marks=pytest.mark.slow),
        ("dpo", 2, "after step 4"),
    ],
)
def test_a_signal_during_evaluation(tmp_path, flags, script, number, expected):
    """Evaluation is given up, the step saved; the resumed run evaluates it: the same metrics."""
    slow = tmp_path / "evaluation.py"  # asks itself to stop in that evaluation
    text = INTERRUPTED.replace("SCRIPT", f"train_{script}").replace("NUMBER", str(number))
    slow.write_text(text)
    run(script, tmp_path / "whole", *flags[script])
    output = run(slow, tmp_path / "run", *flags[script], expect=143)
    assert f"stopped by SIGTERM {expected}" in output
    run(script, tmp_path / "run", *flags[script])
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_another_number_of_processes_goes_on_with_the_next_sample(tmp_path, flags):
    """1 → 2 → 1 processes with the same global batch: the loss curve of the undisturbed run."""
    flags = [*flags["pretrain"], "--dropout", 0]
    run("pretrain", tmp_path / "whole", *flags, "--batch_size", 8)
    for steps, processes in ((4, 1), (8, 2), (STEPS, 1)):
        # the schedule is that of the whole run; the run is stopped by its own signal
        stopping = tmp_path / f"stop_at_{steps}.py"
        stopping.write_text(
            "import os, signal, train_pretrain as script\n"
            "from training import cli\n"
            "from training.run_log import RunLog\n"
            "step = RunLog.step\n"
            "def stop_at(self, tokens):\n"
            "    step(self, tokens)\n"
            "    stop_at.count = getattr(stop_at, 'count', 0) + 1\n"
            f"    if stop_at.count == 4 and {steps} != {STEPS}:\n"
            "        os.kill(os.getpid(), signal.SIGTERM)\n"
            "RunLog.step = stop_at\n"
            "cli.run(script.main)\n"
        )
        run(stopping, tmp_path / "run", *flags, "--batch_size", 8 // processes,
            processes=processes, expect=None)  # fmt: skip
        newest = checkpoint.step_folders(tmp_path / "run")[-1]
        assert newest.name == f"step-{steps:08d}"
    whole, moved = figures(tmp_path / "whole"), figures(tmp_path / "run")
    assert [line["step"] for line in whole] == [line["step"] for line in moved]
    for a, b in zip(whole, moved):
        assert a == pytest.approx(b, rel=1e-4)


NAN = """
import os, train_pretrain as script
from training import cli
cross_entropy, calls = script.masked_cross_entropy, []
def broken(logits, Y, loss_mask):
    calls.append(1)
    loss = cross_entropy(logits, Y, loss_mask)
    bad = {first} <= len(calls) <= {last} and os.environ.get("RANK", "0") == "{rank}"
    return loss * float("nan") if bad else loss
script.masked_cross_entropy = broken
cli.run(script.main)
"""


def test_a_nan_on_one_rank_skips_the_update_on_all(tmp_path, flags):
    """Weights and moments keep their bits, the update is counted and its rows are named."""
    script = tmp_path / "nan.py"
    script.write_text(NAN.format(first=4, last=4, rank=1))
    flags = [*flags["pretrain"], "--batch_size", 2, "--save_interval", 1, "--keep_checkpoints", 99]
    output = run(script, tmp_path / "run", *flags, processes=2)
    steps = [tmp_path / "run" / f"step-{n:08d}" for n in (2, 3, 4, 5)]
    for name in ("model.safetensors", "resume/optimizer.tensors"):
        a, before, skipped, after = (load_file(step / name) for step in steps)
        assert all(torch.equal(before[k], skipped[k]) for k in before)
        assert not all(torch.equal(a[k], before[k]) for k in before)
        assert not all(torch.equal(skipped[k], after[k]) for k in before)
    (event,) = [line for line in metrics(tmp_path / "run") if "rows" in line]
    assert event["step"] == 4 and event["event"] == "skipped" and len(event["rows"]) == 4
    assert all(row.startswith("texts.jsonl document ") for row in event["rows"])
    assert "update 4 skipped: loss nan" in output


def test_too_many_bad_updates_end_the_run(tmp_path, flags):
    """After --max_bad_steps in a row: one line that names the rows, status 2, good checkpoints."""
    script = tmp_path / "nan.py"
    script.write_text(NAN.format(first=4, last=99, rank=0))
    flags = [*flags["pretrain"], "--save_interval", 1, "--max_bad_steps", 2]
    output = run(script, tmp_path / "run", *flags, expect=2)
    assert "error: --max_bad_steps 2: 3 updates in a row" in output and "Traceback" not in output
    assert "texts.jsonl document" in output.split("error:")[1]
    newest = checkpoint.newest_checkpoint(tmp_path / "run")
    assert all(t.isfinite().all() for t in load_file(newest / "model.safetensors").values())


@pytest.mark.slow
def test_ddp_fsdp_and_one_process_agree(tmp_path, flags):
    """50 steps: the same curve to 1e-4, and each continues the others' checkpoints."""
    flags = [*flags["pretrain"], "--max_steps", 50, "--dropout", 0, "--keep_checkpoints", 99]
    run("pretrain", tmp_path / "one", *flags, "--batch_size", 8)
    two = [*flags, "--batch_size", 2, "--accumulation_steps", 2]
    run("pretrain", tmp_path / "ddp", *two, processes=2)
    run("pretrain", tmp_path / "fsdp", *two, "--fsdp", processes=2)
    for name in ("one", "ddp", "fsdp"):  # shards are no edit of the model
        config = json.loads((tmp_path / name / "step-00000050/config.json").read_text())
        assert config["model_type"] == "qwen3"
    curves = [figures(tmp_path / name) for name in ("one", "ddp", "fsdp")]
    for curve in curves[1:]:
        assert len(curve) == len(curves[0])
        for a, b in zip(curves[0], curve):
            assert a == pytest.approx(b, rel=1e-4)
    for source, name, more, processes in (
        ("fsdp", "fsdp_to_one", ["--batch_size", 8], 1),
        ("one", "one_to_fsdp", ["--batch_size", 4, "--fsdp"], 2),
        ("fsdp", "fsdp_to_ddp", ["--batch_size", 4], 2),
    ):
        step = tmp_path / source / "step-00000040"
        run("pretrain", tmp_path / name, *flags, *more, "--resume", step, processes=processes)
        resumed = [line for line in figures(tmp_path / name) if line["step"] > 40]
        expected = [line for line in curves[0] if line["step"] > 40]
        assert len(resumed) == len(expected)
        for a, b in zip(expected, resumed):
            assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize(
    ("script", "more"),
    [
        ("pretrain", ["--optimizer", "muon"]),
        pytest.param("full_sft", [], marks=pytest.mark.slow),
        pytest.param("lora", ["--use_dora", "--lora_dropout", 0], marks=pytest.mark.slow),
        pytest.param("dpo", ["--lora_rank", 4], marks=pytest.mark.slow),
    ],
)
def test_shards_train_as_one_process_does(tmp_path, flags, script, more):
    """--fsdp with Muon, conversations, adapters, pairs: curve and resumed curve to 1e-4."""
    flags = [*flags[script], "--dropout", 0, *more, "--keep_checkpoints", 99]
    run(script, tmp_path / "one", *flags, "--batch_size", 4)
    run(script, tmp_path / "shards", *flags, "--batch_size", 2, "--fsdp", processes=2)
    step = tmp_path / "one" / "step-00000006"
    more = ["--batch_size", 2, "--fsdp", "--resume", step]
    run(script, tmp_path / "resumed", *flags, *more, processes=2)
    for name, first in (("shards", 0), ("resumed", 6)):
        expected, lines = (
            [line for line in figures(tmp_path / folder) if line["step"] > first]
            for folder in ("one", name)
        )
        assert len(lines) == len(expected)
        for a, b in zip(expected, lines):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


def test_a_rank_that_dies_takes_the_run_down(tmp_path, flags):
    """SIGKILL to one of two ranks: torchrun ends within a minute and names it."""
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, signal, train_pretrain as script\n"
        "from training import cli\n"
        "from training.run_log import RunLog\n"
        "step = RunLog.step\n"
        "def die(self, tokens):\n"
        "    if os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    step(self, tokens)\n"
        "RunLog.step = die\n"
        "cli.run(script.main)\n"
    )
    begin = time.monotonic()
    output = run(script, tmp_path / "run", *flags["pretrain"], processes=2, expect=1)
    assert time.monotonic() - begin < 60 + 30, "start-up included"
    assert "SIGKILL" in output.upper() or "Signal 9" in output


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_loses_nothing(tmp_path, flags):
    """On a tmpfs that fills up: saves that fail are reported, the last good checkpoint loads."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        flags = [*flags["pretrain"], "--save_interval", 1, "--keep_checkpoints", 99]
        output = run("pretrain", disk / "run", *flags, expect=2)
        assert "was not saved" in output and "No space left" in output
        assert "Traceback" not in output
        folders = checkpoint.step_folders(disk / "run")
        assert folders and all(checkpoint.damage(folder) is None for folder in folders)
        assert not list((disk / "run").glob(".tmp-*"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_write_that_fails_anywhere_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    """Every file operation of a save fails once: never half a folder under a valid name."""
    weights = {"w": torch.ones(3)}
    good = checkpoint.write_checkpoint(tmp_path, weights, {"step": 1}, lambda folder: None)
    calls = {"left": None}

    def failing(operation):
        def wrapped(*args, **kwargs):
            if calls["left"] is not None:
                calls["left"] -= 1
                if calls["left"] == -1:
                    raise OSError(28, "No space left on device")
            return operation(*args, **kwargs)

        return wrapped

    for owner, name in (
        (os, "fsync"), (os, "open"), (Path, "mkdir"), (Path, "write_text"), (Path, "rename"),
        (Path, "touch"), (Path, "chmod"), (hf_format, "save_file"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, failing(getattr(owner, name)))
    for operations in range(100):
        calls["left"] = operations
        try:
            checkpoint.write_checkpoint(tmp_path, weights, {"step": 2}, lambda folder: None)
        except OSError:
            calls["left"] = None
            newest = checkpoint.newest_checkpoint(tmp_path)
            # the rename had happened when syncing the parent failed: a complete checkpoint
            assert newest == good or checkpoint.damage(tmp_path / "step-00000002") is None
            assert not list(tmp_path.glob(".tmp-*"))
            for folder in checkpoint.step_folders(tmp_path)[1:]:
                checkpoint.shutil.rmtree(folder)
        else:
            break
    assert 8 < operations < 99, "each operation failed once, then the save went through"


def test_one_flipped_bit_is_noticed(tmp_path):
    """In whatever file and wherever it is."""
    weights = {"w": torch.arange(100.0)}
    folder = checkpoint.write_checkpoint(
        tmp_path, weights, {"step": 1}, lambda f: (f / "config.json").write_text("{}")
    )
    assert checkpoint.damage(folder) is None
    rng = random.Random(0)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        for _ in range(20):
            bit = rng.randrange(8 * len(content))
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            assert checkpoint.damage(folder) is not None or file.name == "manifest.json"
        file.write_bytes(content)


STOPPING = """
import os, signal, sys, time, torch
from training import cli
from training.distributed import init_distributed
from training.stopping import Stopping
def main():
    stop = Stopping(init_distributed("cpu"))
    if "training" in sys.argv:
        stop.begin_training()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # the same request, passed on by torchrun
    print("goes on", flush=True)
    time.sleep(2.1)
    os.kill(os.getpid(), signal.SIGINT)
    print("never comes here", flush=True)
cli.run(main)
"""


@pytest.mark.parametrize(("phase", "status"), [("training", 130), ("before", 143)])
def test_the_second_signal_ends_at_once(tmp_path, phase, status):
    """In training a later signal ends the process where it stands; before it, already the first."""
    script = tmp_path / "stopping.py"
    script.write_text(STOPPING)
    output = run(script, tmp_path / "run", phase, expect=status)
    assert "never" not in output and "Traceback" not in output
    assert ("goes on" in output) == (phase == "training")
