"""How runs begin: what is checked first, what belongs together, one run at a time in a folder."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from model.config import LMConfig
from tests.small_runs import REPOSITORY, STEPS, make_inputs, metrics, run, start
from tests.test_interruptions import wait_for
from training import checkpoint, cli, run_lock
from training.identity import changed_flags
from training.run_log import RunLog

SCRIPTS = ("pretrain", "full_sft", "lora", "dpo")


@pytest.fixture
def flags(tmp_path, tiny_tokenizer_dir):
    return make_inputs(tmp_path, tiny_tokenizer_dir)


@pytest.fixture
def here(monkeypatch, capsys):
    """A function as `small_runs.run`, in this process: what a script prints, after its status."""

    def run_here(script: str, out_dir: Path, *flags, expect: int = 0) -> str:
        argv = [f"train_{script}.py", "--out_dir", out_dir, *flags]
        monkeypatch.setattr("sys.argv", [str(word) for word in argv])
        capsys.readouterr()
        status = 0
        try:
            cli.run(importlib.import_module(f"train_{script}").main)
        except SystemExit as stopped:
            status = stopped.code
        output = "".join(capsys.readouterr())
        assert status == expect, output
        return output

    return run_here


def stop_after(monkeypatch, updates: int):
    """Let runs in this process ask themselves to stop after so many updates."""
    step, calls = RunLog.step, []

    def stop(self, tokens):
        step(self, tokens)
        calls.append(None)
        if len(calls) == updates:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "step", stop)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def other_base(tmp_path: Path) -> Path:
    """The base of `make_inputs` with one weight changed."""
    folder = tmp_path / "other_base"
    subprocess.run(["cp", "-r", tmp_path / "base", folder], check=True)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("script", ["full_sft", "lora", "dpo"])
def test_another_base_is_another_run(here, tmp_path, flags, script):
    """The same command with other weights in --init_from is refused, finished run or not."""
    few = [*flags[script], "--max_steps", 2]
    here(script, tmp_path / "run", *few)
    before = contents(tmp_path / "run")
    more = ["--init_from", other_base(tmp_path)]
    for steps in (2, 4):
        output = here(script, tmp_path / "run", *few, *more, "--max_steps", steps, expect=2)
        assert "give the --init_from it had" in output and "Traceback" not in output
        assert str(tmp_path / "base") in output and str(tmp_path / "other_base") in output
        assert contents(tmp_path / "run") == before


def test_pretraining_knows_its_base(here, tmp_path, flags):
    """A run from random weights is not one that begins from a model, nor the other way round."""
    common = [*flags["pretrain"], "--max_steps", 2]
    here("pretrain", tmp_path / "new", *common)
    base = ["--init_from", tmp_path / "base"]
    output = here("pretrain", tmp_path / "new", *common, *base, expect=2)
    assert "it began from random weights" in output
    here("pretrain", tmp_path / "based", *common, *base)
    output = here("pretrain", tmp_path / "based", *common, expect=2)
    assert "this run begins from random weights" in output


def test_a_checkpoint_without_the_new_keys_goes_on(here, tmp_path, flags):
    """Runs of earlier versions lack the base, the means and the changes, and still resume."""
    few = [*flags["full_sft"], "--max_steps", 2]
    here("full_sft", tmp_path / "run", *few)
    folder = tmp_path / "run" / "step-00000002"
    state = json.loads((folder / "resume/trainer_state.json").read_text())
    for key in ("base_sha256", "since_log", "pairs"):
        del state[key]
    (folder / "resume/trainer_state.json").write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["resume/trainer_state.json"] = checkpoint._describe(
        folder / "resume/trainer_state.json"
    )
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "run" / "args.json").unlink()
    output = here("full_sft", tmp_path / "run", *few, "--max_steps", 4)
    assert f"going on from {folder}" in output and "step 4/4" in output


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_finished_run_has_nothing_to_do(here, tmp_path, flags, script):
    """Started again with other flags or fewer steps: one line, status 0, nothing is written."""
    here(script, tmp_path / "run", *flags[script], "--max_steps", 4)
    before = contents(tmp_path / "run")
    again = ["--max_steps", 2, "--learning_rate", 0.5]
    output = here(script, tmp_path / "run", *flags[script], *again)
    (line,) = [line for line in output.splitlines() if "nothing to do" in line]
    assert "nothing to do: step 4 of 2 " in line and "parameters" not in output
    assert "--max_steps 4 → 2" in line and "→ 0.5" in line and "--learning_rate" in line
    output = here(script, tmp_path / "run", *flags[script], "--max_steps", 4)
    assert "nothing to do: step 4 of 4 " in output and "other flags" not in output
    assert contents(tmp_path / "run") == before


def test_a_run_killed_before_its_last_line_is_finished_by_the_next(here, tmp_path, flags):
    """All is saved, the end is not noted yet: the same command notes it, other flags do not."""
    few = [*flags["pretrain"], "--max_steps", 4]
    here("pretrain", tmp_path / "run", *few)
    metrics, image = tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "loss.png"
    whole = metrics.read_text()
    *lines, end = whole.splitlines(keepends=True)
    assert json.loads(end) == {"step": 4, "event": "end", "state": "finished"}
    for cut in ("", end[: len(end) // 2]):
        metrics.write_text("".join(lines) + cut)
        image.unlink()
        output = here("pretrain", tmp_path / "run", *few, "--max_steps", 2)
        assert "nothing to do" in output and metrics.read_text() == "".join(lines) + cut
        output = here("pretrain", tmp_path / "run", *few)
        assert "nothing to do" in output and metrics.read_text() == whole
        assert image.exists()


def test_a_finished_run_of_epochs_has_nothing_to_do(here, tmp_path, flags):
    """Where --epochs counts, the data is read first; two processes say it once."""
    epochs = [*flags["full_sft"], "--max_steps", 0, "--batch_size", 2]
    here("full_sft", tmp_path / "run", *epochs, "--epochs", 2)
    before = contents(tmp_path / "run")
    output = here("full_sft", tmp_path / "run", *epochs, "--epochs", 1)
    assert "nothing to do: step" in output and "--epochs 2 → 1" in output
    assert contents(tmp_path / "run") == before
    two = ["--epochs", 2, "--batch_size", 1]
    output = run("full_sft", tmp_path / "run", *epochs, *two, processes=2)
    assert output.count("nothing to do: step") == 1
    assert contents(tmp_path / "run") == before


def test_changes_on_resume_are_named(here, tmp_path, flags):
    """Learning rate, schedule and weights of losses may change: one line, kept in args.json."""
    here("dpo", tmp_path / "run", *flags["dpo"], "--max_steps", 4)
    more = ["--learning_rate", 0.25, "--warmup_steps", 3, "--sft_weight", 0.5]
    output = here("dpo", tmp_path / "run", *flags["dpo"], *more, "--max_steps", 6)
    (line,) = [line for line in output.splitlines() if line.startswith("changed since step 4")]
    for text in ("--learning_rate 5e-05 → 0.25", "--warmup_steps 2 → 3", "--sft_weight 0.0 → 0.5",
                 "--max_steps 4 → 6"):  # fmt: skip
        assert text in line
    (change,) = json.loads((tmp_path / "run" / "args.json").read_text())["changes"]
    assert change["step"] == 4 and change["learning_rate"] == [5e-05, 0.25]


def test_a_resume_without_changes_says_nothing(here, monkeypatch, tmp_path, flags):
    """The same command again, also with a base that is a run's folder and --auto_batch."""
    more = ["--auto_batch", "--batch_size", 2, "--accumulation_steps", 2]
    stop_after(monkeypatch, 1)
    here("full_sft", tmp_path / "run", *flags["full_sft"], *more, expect=143)
    output = here("full_sft", tmp_path / "run", *flags["full_sft"], *more)
    assert "going on from" in output and "changed" not in output
    assert json.loads((tmp_path / "run" / "args.json").read_text())["changes"] == []


def test_rows_stay_as_long_as_they_were(here, tmp_path, flags):
    """A run goes on with its own --max_seq_len where that was the default of then."""
    at = flags["full_sft"].index("--max_seq_len")
    short = flags["full_sft"][:at] + flags["full_sft"][at + 2 :]
    here("full_sft", tmp_path / "run", *short, "--max_seq_len", 96, "--max_steps", 2)
    assert "step 4/4" in here("full_sft", tmp_path / "run", *short, "--max_steps", 4)
    small = [*short, "--max_position_embeddings", 128]
    here("full_sft", tmp_path / "new", *small, "--max_steps", 1)
    used = json.loads((tmp_path / "new" / "args.json").read_text())
    assert used["max_seq_len"] == 128, "no default is longer than the context"


# flags that change what a run is, and what the error has to say
OTHER_RUNS = {
    "fewer rows": ("full_sft", ["--batch_size", 2], "batch_size × accumulation_steps × processes "
                   "was 8, is 4: add --accumulation_steps 4"),
    "odd rows": ("full_sft", ["--batch_size", 3], "was 8, is 6: add --batch_size 4"),
    "no way": ("full_sft", ["--batch_size", 3, "--accumulation_steps", 3],
               "was 8, is 9: add --batch_size 8 --accumulation_steps 1"),
    "seed": ("full_sft", ["--seed", 7], "--seed was 42, is 7: give --seed 42"),
    "optimizer": ("full_sft", ["--optimizer", "muon"],
                  "--optimizer was adamw, is muon: give --optimizer adamw"),
    "row length": ("full_sft", ["--max_seq_len", 96],
                   "--max_seq_len was 160, is 96: give --max_seq_len 160"),
    "held out": ("full_sft", ["--val_fraction", 0.1], "--val_fraction was 0.2, is 0.1"),
    "dropout": ("full_sft", ["--dropout", 0], "--dropout was 0.1, is 0.0: give --dropout 0.1"),
    "loss": ("dpo", ["--loss", "ipo"], "--loss was sigmoid, is ipo: give --loss sigmoid"),
    "beta": ("dpo", ["--beta", 0.5], "--beta was 0.1, is 0.5: give --beta 0.1"),
    "rank": ("lora", ["--lora_rank", 4], "--lora_rank was 8, is 4: give --lora_rank 8"),
    "targets": ("lora", ["--lora_targets", "q_proj"], "give --lora_targets q_proj k_proj"),
}  # fmt: skip
FIXED = ("optimizer", "rank", "targets")


@pytest.mark.parametrize(
    "script", [pytest.param("full_sft", marks=pytest.mark.slow), "lora", "dpo"]
)
def test_what_makes_another_run_is_refused_in_flags(here, tmp_path, flags, script):
    """Every difference names its flag; --allow_changes goes on where the tensors still fit."""
    common = [*flags[script], "--batch_size", 4, "--accumulation_steps", 2]
    here(script, tmp_path / "run", *common, "--max_steps", 2)
    for name, (of_script, more, expected) in OTHER_RUNS.items():
        if of_script != script:
            continue
        output = here(script, tmp_path / "run", *common, *more, "--max_steps", 4, expect=2)
        assert expected in output and "Traceback" not in output, (name, output)
        assert ("--allow_changes" in output) == (name not in (*FIXED, "row length", "held out"))
        copy = tmp_path / f"copy {name}"
        subprocess.run(["cp", "-r", tmp_path / "run", copy], check=True)
        output = here(script, copy, *common, *more, "--max_steps", 4, "--allow_changes",
                     expect=2 if name in FIXED else 0)  # fmt: skip
        assert name in FIXED or ("going on although" in output and "step 4/4" in output), output


@pytest.mark.slow
def test_rows_of_an_update_that_no_flag_can_mend(tmp_path, flags):
    """An odd update on two processes: the number of processes is what has to change."""
    run("full_sft", tmp_path / "run", *flags["full_sft"], "--batch_size", 3, "--max_steps", 2)
    output = run("full_sft", tmp_path / "run", *flags["full_sft"], "--batch_size", 1, processes=2,
                 expect=1)  # fmt: skip
    assert "was 3, is 2: start a number of processes that divides 3" in output


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_runs_in_one_folder(here, tmp_path, flags, processes):
    """The second is refused at once, with the first one's host and process; the first goes on."""
    command = [*flags["pretrain"], "--max_steps", 100000]
    first, output = start("pretrain", tmp_path / "run", *command), []
    try:
        wait_for(first, "step      5/", output)
        status = 2 if processes == 1 else 1  # torchrun's own
        text = run("pretrain", tmp_path / "run", *command, processes=processes, expect=status)
        (line,) = [line for line in text.splitlines() if line.startswith("error:")]
        assert "another run is writing there" in line and f"process {first.pid} on " in line
        # its checkpoints are there for other folders
        here("pretrain", tmp_path / "other", *flags["pretrain"], "--resume", tmp_path / "run",
            "--max_steps", 1)  # fmt: skip
    finally:
        first.kill()
        first.communicate(timeout=60)
    assert (tmp_path / "run" / run_lock.NAME).exists(), "a killed run leaves the file"
    output = here("pretrain", tmp_path / "run", *flags["pretrain"], "--max_steps", 1)
    assert "nothing to do" in output, "and the file alone keeps nobody out"
    assert not (tmp_path / "run" / run_lock.NAME).exists()


@pytest.mark.slow
def test_a_restart_by_torchrun_is_not_refused(tmp_path, flags):
    """A rank that dies is started again with its predecessor's lock file still there."""
    script = tmp_path / "dies_once.py"
    script.write_text(
        "import os, signal, train_pretrain as script\n"
        "from training import cli\n"
        "from training.run_log import RunLog\n"
        "step = RunLog.step\n"
        "def die(self, tokens):\n"
        "    step(self, tokens)\n"
        "    if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and os.environ['RANK'] == '0':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "RunLog.step = die\n"
        "cli.run(script.main)\n"
    )
    output = run(script, tmp_path / "run", *flags["pretrain"], processes=2, max_restarts=1)
    assert "another run" not in output and f"step {STEPS}/{STEPS}" in output


def test_loader_processes_do_not_keep_the_lock(here, tmp_path, flags):
    """SIGKILL to the run alone: its forked loader lives on, and the folder is free."""
    command = [*flags["pretrain"], "--max_steps", 100000, "--num_workers", 1]
    first, output = start("pretrain", tmp_path / "run", *command), []
    wait_for(first, "step      5/", output)
    first.kill()
    first.wait(timeout=60)
    output = here("pretrain", tmp_path / "run", *flags["pretrain"], "--max_steps", 1)
    assert "another run" not in output


HOLDING = """
import sys, time
from training import run_lock
run_lock.take(sys.argv[1])
print("taken", flush=True)
time.sleep(float(sys.argv[2]))
run_lock.release()
"""


def test_the_lock_waits_for_a_run_that_is_ending(tmp_path):
    """A holder that ends within two seconds is waited for; its deleted file is no lock."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDING, tmp_path / "a" / "run", "1"],
        cwd=REPOSITORY, text=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout.readline() == "taken\n"
    begin = time.monotonic()
    run_lock.take(tmp_path / "a" / "run")
    assert 0.2 < time.monotonic() - begin < run_lock.WAIT_SECONDS
    assert holder.wait(timeout=10) == 0
    with pytest.raises(subprocess.CalledProcessError) as refused:
        subprocess.run(
            [sys.executable, "-c", HOLDING, tmp_path / "a" / "run", "0"],
            cwd=REPOSITORY, check=True, capture_output=True, text=True,
        )  # fmt: skip
    assert "another run is writing there" in refused.value.stderr
    run_lock.release()
    run_lock.take(tmp_path / "b" / "run")
    run_lock.release()
    assert not (tmp_path / "b").exists(), "what was made for the lock alone is gone again"


def test_experts_that_there_are_not_are_no_change(tmp_path):
    """A dense run's numbers of experts, of whatever version, are not named as changed flags."""
    folder = tmp_path / "run" / "step-00000001"
    folder.mkdir(parents=True)
    config = LMConfig.preset("demo")
    before = config.to_dict() | {"num_experts": 99, "norm_topk_prob": False, "hidden_size": 8}
    (tmp_path / "run" / "args.json").write_text(json.dumps({"config": before}))
    args = Namespace(data_path=["a"], auto_batch=False)
    assert changed_flags(folder, args, config) == {"hidden_size": (8, config.hidden_size)}


def early_mistakes(tmp_path: Path) -> dict[str, tuple[list, str]]:
    """Flags that are wrong whatever the data says, and what the line must name."""
    (tmp_path / "a_file").write_text("")
    (tmp_path / "data.unknown").write_text("")
    return {
        "data": (["--data_path", tmp_path / "none.jsonl"], "--data_path: no such file"),
        "format": (["--data_path", tmp_path / "data.unknown"], "--data_path"),
        "held out": (["--val_data_path", tmp_path / "none.jsonl"], "--val_data_path: no such file"),
        "questions": (["--questions", tmp_path / "none.jsonl"], "--questions: no such file"),
        "weights": (["--data_weights", 1, 2], "--data_weights"),
        "out_dir": (["--out_dir", tmp_path / "a_file"], "--out_dir"),
        "out_dir below a file": (["--out_dir", tmp_path / "a_file" / "run"], "--out_dir"),
        "cache_dir": (["--cache_dir", tmp_path / "a_file" / "x"], "--cache_dir"),
        "init_from": (["--init_from", tmp_path / "none"], "--init_from"),
        "resume": (["--resume", tmp_path / "none"], "--resume"),
        "batch": (["--batch_size", 1], "was 2, is 1: add --accumulation_steps 2"),
        "seed": (["--seed", 1], "--seed was 42"),
    }


def test_what_needs_no_data_is_checked_before_data_is_read(here, monkeypatch, tmp_path, flags):
    """Within 3 s of the imports, before a model is loaded or a record is read; nothing is left."""
    common = [*flags["full_sft"], "--batch_size", 2]
    here("full_sft", tmp_path / "run", *common, "--max_steps", 2)

    def read(*args, **kwargs):
        raise AssertionError("data is read or a model loaded")

    for name in ("training.data.conversations", "train_full_sft.load_model"):
        monkeypatch.setattr(name, read)
    before = contents(tmp_path / "run")
    for name, (more, expected) in early_mistakes(tmp_path).items():
        begin = time.monotonic()
        output = here("full_sft", tmp_path / "run", *common, *more, "--max_steps", 4, expect=2)
        assert expected in output and "Traceback" not in output, (name, output)
        assert time.monotonic() - begin < 3, name
        assert contents(tmp_path / "run") == before


def test_a_file_given_twice_with_two_weights(here, tmp_path, flags):
    """Refused with the weight that both are together."""
    data = flags["full_sft"][1]
    twice = [*flags["full_sft"], "--data_path", data, data, "--data_weights", 1, 2]
    output = here("full_sft", tmp_path / "run", *twice, expect=2)
    assert "given 2 times; give it once, with the weight 3" in output
    assert not (tmp_path / "run").exists()


def test_scripts_run_from_any_folder(tmp_path):
    """What belongs to the repository is found there; what a user names stays where he is."""
    (tmp_path / "data.jsonl").write_text('{"text": "The cat sat on the mat."}\n' * 40)
    done = subprocess.run(
        [sys.executable, REPOSITORY / "train_pretrain.py", "--data_path", "data.jsonl",
         "--out_dir", "mine", "--max_steps", "1", "--max_seq_len", "32", "--val_fraction", "0",
         "--hidden_size", "32", "--intermediate_size", "64", "--num_hidden_layers", "1",
         "--no-compile", "--device", "cpu"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine" / "step-00000001" / "config.json").is_file()
    assert (tmp_path / "out" / "cache").is_dir()


@pytest.mark.parametrize(
    "script",
    ["pretrain", "dpo", *(pytest.param(s, marks=pytest.mark.slow) for s in ("full_sft", "lora"))],
)
def test_logged_values_are_means_since_the_last_line(here, monkeypatch, tmp_path, flags, script):
    """Of all updates, weighted with their targets or pairs, whatever came in between."""
    steps = ["--max_steps", 7, "--eval_interval", 3, "--dropout", 0, "--keep_checkpoints", 99]
    here(script, tmp_path / "each", *flags[script], *steps, "--log_interval", 1)
    few = [*flags[script], *steps, "--log_interval", 3]
    stop_after(monkeypatch, 2)  # in the middle of an interval
    here(script, tmp_path / "few", *few, expect=143)
    here(script, tmp_path / "few", *few)
    unit = "pairs" if script == "dpo" else "tokens"
    each = [line for line in metrics(tmp_path / "each") if unit in line]
    logged = [line for line in metrics(tmp_path / "few") if unit in line]
    assert [line["step"] for line in logged] == [3, 6, 7]
    counts = [b[unit] - a[unit] for a, b in zip([{unit: 0}, *each], each)]
    names = set(each[0]) & {"loss", "accuracy", "margin", "chosen_reward", "rejected_log_prob"}
    assert len(names) == (5 if script == "dpo" else 1)
    for line, part in zip(logged, (slice(0, 3), slice(3, 6), slice(6, 7))):
        for name in names:
            total = sum(n * one[name] for n, one in zip(counts[part], each[part]))
            mean = total / sum(counts[part])
            assert line[name] == pytest.approx(mean, rel=1e-6, abs=1e-9), (line["step"], name)


@pytest.mark.parametrize("script", SCRIPTS)
def test_held_out_figures_come_first(here, tmp_path, flags, script):
    """Step 0 is the model as it was; its loss is nobody's best, since no checkpoint holds it."""
    here(script, tmp_path / "run", *flags[script], "--max_steps", 2, "--learning_rate", 0)
    first, *rest = metrics(tmp_path / "run")
    assert first["step"] == 0 and "val_loss" in first
    assert first.get("val_accuracy", 0.5) == 0.5  # no answer is preferred to itself yet
    last = next(line for line in reversed(rest) if "val_loss" in line)
    assert last["val_loss"] == first["val_loss"], "nothing was learned at a rate of 0"
    saved = json.loads((tmp_path / "run/step-00000002/resume/trainer_state.json").read_text())
    assert saved["best_step"] == 2
