"""Runs begun with an earlier version go on with this one (tests/fixtures/make_old_runs.py)."""

import json
import shutil
from pathlib import Path

import pytest

from tests.small_runs import figures, run

OLD = Path(__file__).parent / "fixtures/old_runs"
EXPECTED = json.loads((OLD / "expected.json").read_text("utf-8"))
STOPPED = 7  # the step of their checkpoints


@pytest.mark.parametrize("script", EXPECTED)
def test_an_old_run_goes_on(tmp_path, script):
    """The same data, split, rows and order: every later figure is what the old version measured.

    Not the same bits: they were computed on another machine.
    """
    folder = tmp_path / "anywhere"
    shutil.copytree(OLD, folder)
    out_dir = folder / "runs" / script
    old = EXPECTED[script]
    output = run(script, f"runs/{script}", *old["flags"], folder=folder)
    said = output.partition(f"step {STOPPED + 1:>2}/")[0].splitlines()
    assert f"going on from runs/{script}/step-{STOPPED:08d}" in said
    assert "changed since" not in output  # the same flags
    of_data = [line for line in old["says"] if line.startswith(("data: ", "warning: "))]
    assert [line for line in said if line in of_data] == of_data  # each said once
    lines = figures(out_dir)
    assert [list(line) for line in lines] == [list(line) for line in old["metrics"]]
    assert lines[-1]["step"] > STOPPED
    for line, before in zip(lines, old["metrics"], strict=True):
        assert line == pytest.approx(before, rel=1e-4, abs=1e-5)


def test_another_schedule_is_named(tmp_path):
    """An old run, which knew no other than the cosine, says what it is changed to."""
    shutil.copytree(OLD, tmp_path / "old")
    flags = [*EXPECTED["pretrain"]["flags"], "--lr_schedule", "wsd", "--max_steps", "8"]
    output = run("pretrain", "runs/pretrain", *flags, folder=tmp_path / "old")
    assert "changed since step 7: " in output and "--lr_schedule cosine → wsd" in output


def test_nothing_in_the_old_runs_says_where_they_were_made():
    """No absolute path is written in them, so a copy anywhere is as good."""
    files = [
        f for f in OLD.rglob("*") if f.suffix in (".json", ".md") and f.name != "tokenizer.json"
    ]
    assert len(files) > 20
    for file in files:
        assert '"/' not in file.read_text("utf-8"), file
