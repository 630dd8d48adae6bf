"""What TensorBoard and wandb are given is what metrics.jsonl says, read with their own formats."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.small_runs import REPOSITORY, STEPS, make_inputs, run
from training.event_files import EventFiles
from training.run_log import RunLog
from training.state import RunState


@pytest.fixture
def flags(tmp_path, tiny_tokenizer_dir):
    return make_inputs(tmp_path, tiny_tokenizer_dir)


def lines(out_dir: Path) -> list[dict]:
    return list(map(json.loads, (out_dir / "metrics.jsonl").read_text("utf-8").splitlines()))


def numbers(out_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Every number of metrics.jsonl: name -> [(step, value)]."""
    found = {}
    for line in lines(out_dir):
        for name, value in line.items() if "event" not in line else ():
            if name != "step":
                found.setdefault(name, []).append((line["step"], value))
    return found


def events(out_dir: Path):
    """The event files of a run as TensorBoard loads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(out_dir / "tensorboard"), {"scalars": 0, "tensors": 0})
    return read.Reload()


def texts(read, tag: str) -> list[tuple[int, str]]:
    found = read.Tensors(f"{tag}/text_summary")
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in found]


def assert_same_curves(out_dir: Path):
    """Each once, in order, as exactly as float32 holds them."""
    read, expected = events(out_dir), numbers(out_dir)
    assert set(read.Tags()["scalars"]) == set(expected)
    for name, points in expected.items():
        found = [(e.step, e.value) for e in read.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in points], name
        values = [value for _, value in found]
        assert values == pytest.approx([value for _, value in points], rel=1e-6), name


def test_tensorboard_shows_what_metrics_say(tmp_path, flags):
    """The same numbers at the same steps; the flags and what the model wrote as text."""
    run("pretrain", tmp_path / "run", *flags["pretrain"], "--use_tensorboard")
    assert_same_curves(tmp_path / "run")
    samples = [(e["step"], e["texts"]) for e in lines(tmp_path / "run") if "texts" in e]
    assert [step for step, _ in samples] == [0, 4, 8, 12]
    written = texts(events(tmp_path / "run"), "samples")
    assert written == [(step, f"    {text}") for step, (text,) in samples]
    ((step, table),) = texts(events(tmp_path / "run"), "flags")
    assert step == 0 and f"| max_steps | `{STEPS}` |" in table.splitlines()
    assert f'| out_dir | `"{tmp_path / "run"}"` |' in table.splitlines()


KILLED = """
import os, signal, train_pretrain as script
from training import cli
from training.run_log import RunLog
step, count = RunLog.step, []
def counted(self, tokens):
    step(self, tokens)
    count.append(1)
    if len(count) == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
RunLog.step = counted
cli.run(script.main)
"""


@pytest.mark.parametrize("save_interval", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_no_step_is_drawn_twice_after_a_kill(tmp_path, flags, save_interval):
    """Killed after update 7: what it had drawn after its last checkpoint, or before, is forgotten.

    With a checkpoint of step 4 it goes on from there; without one it begins anew.
    """
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(after=7))
    flags = [*flags["pretrain"], "--use_tensorboard", "--save_interval", save_interval]
    run(script, tmp_path / "run", *flags, expect=-9)
    assert max(step for step, _ in numbers(tmp_path / "run")["loss"]) == 6
    assert_same_curves(tmp_path / "run")  # nothing is lost in a buffer
    run("pretrain", tmp_path / "run", *flags)
    assert_same_curves(tmp_path / "run")
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2
    run("pretrain", tmp_path / "run", *flags, "--resume", "never", "--overwrite")
    assert_same_curves(tmp_path / "run")
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_with_tensorboard_it_is_the_same_run(tmp_path, flags):
    """A run begun without goes on with it, and no flag is said to have changed."""
    run("pretrain", tmp_path / "run", *flags["pretrain"], "--max_steps", 6)
    more = [*flags["pretrain"], "--use_tensorboard", "--max_steps", 12]
    output = run("pretrain", tmp_path / "run", *more)
    assert "going on from" in output and "use_tensorboard" not in output
    drawn = [e.step for e in events(tmp_path / "run").Scalars("loss")]
    assert drawn == [7, 8, 9, 10, 11, 12], "the steps before had been drawn nowhere"


def test_without_the_package_one_line_says_so(tmp_path, flags):
    """Before anything is read or written, with the flag and the package's name."""
    script = tmp_path / "without.py"
    script.write_text(
        "import sys, train_pretrain\n"
        "from training import cli, start\n"
        "start.find_spec = lambda name: None\n"
        "cli.run(train_pretrain.main)\n"
    )
    output = run(script, tmp_path / "run", *flags["pretrain"], "--use_tensorboard", expect=2)
    assert output.splitlines() == [
        "error: --use_tensorboard: the package tensorboard is missing (pip install it)"
    ]
    assert not (tmp_path / "run").exists()


def test_tensorboard_is_imported_for_its_flag_alone():
    """A second of imports that nobody else waits for."""
    code = "import sys, train_pretrain; print('tensorboard' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.stdout.strip() == "False"


def test_numbers_are_on_disk_at_once(tmp_path):
    """What was logged can be read while the run goes on."""
    files, values = EventFiles(tmp_path, {}, 0), {f"n{i}": float(i) for i in range(200)}
    for step in (1, 2):
        files.metrics(step, values)
        read = events(tmp_path)
        assert {n: read.Scalars(n)[-1].step for n in values} == dict.fromkeys(values, step)
    files.close()


def test_text_stays_text(tmp_path):
    """No markup of a model or a path becomes markup of a page."""
    files = EventFiles(tmp_path, {"name": "a|b\n`c`"}, 0)
    files.samples(3, ["one\n# two ⟶ <b>", "three"])
    files.close()
    assert texts(events(tmp_path), "samples") == [(3, "    one # two ⟶ <b>\n\n    three")]
    ((_, table),) = texts(events(tmp_path), "flags")
    assert table.splitlines()[2].startswith('| name | `"a\\|b\\n')


def wandb_records(path: Path):
    """The records of a .wandb file: LevelDB's log format, after seven bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = (1 << 15) - at % (1 << 15)
        if left < 7:  # no header fits into the rest of the block
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if kind == 0:
            at += left
            continue
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole in one piece, or the last one of several
            yield Record.FromString(whole)
            whole = b""


def test_wandb_records_what_metrics_say(tmp_path, flags):
    """Offline, a real run: its history is metrics.jsonl, the numbers of a step together."""
    os.environ["WANDB_MODE"], os.environ["WANDB_SILENT"] = "offline", "true"
    try:
        run("pretrain", tmp_path / "run", *flags["pretrain"], "--use_wandb")
    finally:
        del os.environ["WANDB_MODE"], os.environ["WANDB_SILENT"]
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    history = {}
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            items = {i.key or ".".join(i.nested_key): i.value_json for i in record.history.item}
            values = {name: json.loads(value) for name, value in items.items()}
            own = {name: value for name, value in values.items() if not name.startswith("_")}
            history.setdefault(values["_step"], {}).update(own)
    expected = {}
    for name, points in numbers(tmp_path / "run").items():
        for step, value in points:
            expected.setdefault(step, {})[name] = value
    assert len(expected) == STEPS + 1
    assert history == {step: pytest.approx(values) for step, values in expected.items()}


def test_wandb_that_cannot_begin_is_one_clear_line(tmp_path, monkeypatch):
    """Nobody has logged in: the flag and wandb's own words."""
    wandb = pytest.importorskip("wandb")

    def refuse(**_):
        raise wandb.Error("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", refuse)
    args = SimpleNamespace(
        use_wandb=True, use_tensorboard=False, wandb_project="p", wandb_run_name=None
    )
    with pytest.raises(ValueError, match=r"^--use_wandb: api_key not configured"):
        RunLog(tmp_path, 5, RunState(), True, args)
