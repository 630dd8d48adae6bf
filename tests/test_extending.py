"""docs/extending.md: every example's edits fit the code as it is, and its command trains."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_runs import REPOSITORY, TINY, make_inputs

PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
SMALL = ["--device", "cpu", "--dtype", "float32", "--no-compile", "--max_steps", "3",
         "--log_interval", "1", "--eval_interval", "3", "--warmup_steps", "1"]  # fmt: skip


def copy_of_the_repository(folder: Path) -> Path:
    """The code alone, to be edited."""
    for name in ("model", "dataset", "training", "serving", "terminal", "tools", "tasks"):
        shutil.copytree(REPOSITORY / name, folder / name)
    for script in REPOSITORY.glob("*.py"):
        shutil.copy(script, folder)
    return folder


def apply(section: str, folder: Path) -> list[str]:
    """Make a section's edits in a copy of the repository; its last command.

    An edit is two blocks of python, "instead of … write …", in the file named last before them.
    """
    blocks = re.split(r"```(\w+)\n(.*?)```", section, flags=re.S)
    file, before, command = None, None, []
    for words, kind, code in zip(blocks[::3], blocks[1::3], blocks[2::3]):
        if named := re.findall(r"[Ii]n `([\w/]+\.py)`", words):
            file = folder / named[-1]
        if new := re.findall(r"`([\w/]+\.py)` is\s*$", words):
            (folder / new[-1]).write_text(code, encoding="utf-8")
            continue
        if kind == "bash":
            command = shlex.split(code)
            if command[0] == "cp":
                shutil.copy(folder / command[1], folder / command[2])
        elif re.search(r"[Ii]nstead of\s*$", words):
            before = code
        else:
            assert before is not None and re.search(r"write\s*$", words), words
            text = file.read_text(encoding="utf-8")
            assert text.count(before) == 1, f"{file.name} has {text.count(before)} times:\n{before}"
            file.write_text(text.replace(before, code), encoding="utf-8")
            before = None
    return command


@pytest.fixture
def train(tmp_path, tiny_tokenizer_dir):
    """A function: make a section's edits and run its command for three steps; the run's folder.

    more: flags behind those of the command.
    """
    inputs = make_inputs(tmp_path, tiny_tokenizer_dir)

    def run_section(name: str, *more: str) -> Path:
        folder = copy_of_the_repository(tmp_path / f"copy{more}")
        _, script, *flags = apply(SECTIONS[name], folder)
        out = folder / "run"
        flags += ["--out_dir", str(out)]
        if script == "train_pretrain.py":
            flags += [*inputs["pretrain"][:4], *TINY, "--max_seq_len", "32", *SMALL]
        else:
            base = inputs["full_sft"][inputs["full_sft"].index("--init_from") + 1]
            flags = [base if word.startswith("out/") else word for word in flags]
            flags += [*inputs["full_sft"][:2], "--max_seq_len", "160", *SMALL, *more]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        done = subprocess.run([sys.executable, script, *flags], cwd=folder, env=environment,
                              capture_output=True, text=True, timeout=300)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return out

    return run_section


def metrics(out: Path) -> list[dict]:
    return list(map(json.loads, (out / "metrics.jsonl").read_text().splitlines()))


def test_change_the_model(train):
    """The folder names the edited model by a name of its own, not Qwen3's."""
    config = json.loads((train("Change the model") / "step-00000003/config.json").read_text())
    assert config["model_type"] == "minimind"


def test_change_the_loss(train):
    """The new term is in every line, near 1e-4 · (log V)² while the logits are near 0."""
    lines = [line for line in metrics(train("Change the loss")) if "loss" in line]
    assert len(lines) == 3
    assert lines[0]["z_loss"] == pytest.approx(1e-4 * 6.238**2, rel=0.2)  # V = 512


def test_change_the_schedule(train):
    """One step of warmup to the peak, then peak · √(2 / (step + 1)) from step 1, counted from 0."""
    rates = [line["lr"] for line in metrics(train("Change the schedule")) if "lr" in line]
    peak = rates[0]
    assert rates[1:] == pytest.approx([peak, peak * (2 / 3) ** 0.5])


def test_records_of_a_new_kind(train):
    """It trains on what the dataset says, and every position counts."""
    lines = [line for line in metrics(train("Records of a new kind")) if "loss" in line]
    assert [line["tokens"] for line in lines] == [lines[0]["tokens"] * n for n in (1, 2, 3)]


def test_add_a_stage(train):
    """With dropout two passes are apart, and that is in the log; without it they say the same."""
    lines, same = (
        [line for line in metrics(train("Add a stage", *more)) if "loss" in line]
        for more in ((), ("--dropout", "0"))
    )
    assert len(lines) == 3 and all(1e-5 < line["apart"] < 1 for line in lines)
    assert all(abs(line["apart"]) < 1e-9 for line in same)
