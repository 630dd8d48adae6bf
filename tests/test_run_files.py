"""What the training page's server reads: runs as they are found, grow, are cut and end."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving import growing_file, run_folders, runs
from serving.curves import MOST_NOTES, Curves, Notes, thinned
from serving.errors import APIError
from serving.growing_file import GrowingFile, parse
from serving.run_folders import RunFolder, find_runs
from tests import small_runs
from training import cli, run_lock
from training.run_log import RunLog
from training.state import RunState

ROOT = Path(__file__).resolve().parent.parent


def line(step: int, **values) -> str:
    return json.dumps({"step": step} | values) + "\n"


def training_line(step: int, loss: float = 1.0, **more) -> str:
    return line(step, epoch=0, tokens=100 * step, loss=loss, tokens_per_s=50.0, **more)


def make_run(folder: Path, lines: list[str] = (), **args) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(json.dumps({"command": ["train_pretrain.py"]} | args))
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def read_all(path: Path) -> Curves:
    curves = Curves(path)
    while not curves.is_complete:
        curves.read(1)
    return curves


@pytest.fixture
def client(tmp_path):
    """Answers for the runs in tmp_path / "out"; an exception of a route is the test's."""
    (tmp_path / "out").mkdir()
    app = FastAPI()
    app.include_router(runs.router(tmp_path / "out"))
    app.add_exception_handler(
        APIError,
        lambda _, e: JSONResponse({"error": {"message": e.message, "param": e.param}}, e.status),
    )
    return TestClient(app)


@pytest.fixture(autouse=True)
def found_at_once(monkeypatch):
    monkeypatch.setattr(runs, "FOUND_FOR", -1)


def data(client, *names, **params) -> dict:
    answer = client.get("/runs/data", params={"run": names, **params})
    assert answer.status_code == 200, answer.text
    return answer.json()


# ---- finding runs


def test_runs_are_found_two_levels_down_and_through_no_link(tmp_path):
    """Folders with metrics.jsonl or args.json; not those in runs, further down, or linked to."""
    out = tmp_path / "out"
    for name in ("a", "group/b", "group/more/c", "a/inside", ".hidden"):
        make_run(out / name)
    make_run(tmp_path / "elsewhere")
    (out / "empty").mkdir()
    (out / "link").symlink_to(tmp_path / "elsewhere")
    (out / "linked_file").mkdir()
    (out / "linked_file" / "metrics.jsonl").symlink_to(tmp_path / "elsewhere" / "metrics.jsonl")
    (out / "pipe").mkdir()
    os.mkfifo(out / "pipe" / "metrics.jsonl")
    assert list(find_runs(out)) == ["a", "group/b"]
    assert list(find_runs(out / "a")) == ["a", "inside"]
    assert find_runs(out / "nowhere") == {}


def test_of_very_many_runs_the_latest_are_found(tmp_path, monkeypatch):
    """Not the first ones of the alphabet."""
    monkeypatch.setattr(run_folders, "MOST_RUNS", 2)
    for at, name in enumerate("dacb"):
        os.utime(make_run(tmp_path / name), (at, at))
    assert set(find_runs(tmp_path)) == {"c", "b"}


@pytest.mark.parametrize(
    "name", ["../elsewhere", "/etc", "a/../a", "./a", "a/", "a\0", "link", "", "a" * 10_000]
)
def test_a_name_is_one_of_those_found(client, tmp_path, name):
    """Whatever else a client names is gone, and none of it is read."""
    make_run(tmp_path / "out" / "a", [training_line(1)])
    make_run(tmp_path / "elsewhere", [training_line(1)])
    (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere")
    answer = data(client, "a", name)
    assert [run["name"] for run in answer["runs"]] == ["a"]
    assert answer["gone"] == [name[: runs.LONGEST_NAME]]
    assert client.get("/runs/flags", params={"run": [name]}).json() == {"runs": [], "flags": []}


# ---- reading what grows


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b" ")), max_size=30),
    cuts=st.lists(st.integers(1, 50), max_size=40),
    small=st.booleans(),
)
def test_however_it_grows_every_line_comes_once(tmp_path_factory, lines, cuts, small):
    """Written in pieces of any size, read after each: the whole lines of the file, in order."""
    path = tmp_path_factory.mktemp("grow") / "file"
    text, read = b"".join(line + b"\n" for line in lines), []
    with pytest.MonkeyPatch.context() as patch:
        if small:  # lines longer than a block, blocks that end anywhere
            patch.setattr(growing_file, "BLOCK", 16)
        file = GrowingFile(path)
        path.write_bytes(b"")
        while text:
            size = cuts.pop() if cuts else len(text)
            with open(path, "ab") as f:
                f.write(text[:size])
            text = text[size:]
            for block in file.blocks():
                read += block
    assert read == lines
    assert file.times_begun == (1 if lines else 0)


def test_a_line_too_long_is_left_out(tmp_path, monkeypatch):
    """It is passed over in pieces, and the lines around it are read."""
    monkeypatch.setattr(growing_file, "LONGEST_LINE", 1 << 19)
    path = tmp_path / "metrics.jsonl"
    long = json.dumps({"step": 2, "text": "x" * (1 << 21)}) + "\n"
    path.write_text(training_line(1) + long + training_line(3))
    curves = read_all(path)
    assert curves.points(10)["loss"]["x"] == [1, 3]


def test_a_look_reads_what_is_new_and_no_more(tmp_path):
    """The bytes read of a growing file are its bytes; a look at what has not changed reads none."""
    path = make_run(tmp_path / "run", [training_line(i) for i in range(1, 20_001)])
    path = path / "metrics.jsonl"
    curves = read_all(path)
    assert curves.file.bytes_read < 1.2 * path.stat().st_size  # the ends of blocks are read twice
    for step in range(20_001, 20_101):
        before, new = curves.file.bytes_read, training_line(step)
        with open(path, "a") as f:
            f.write(new)
        curves.read(1)
        curves.read(1)
        assert curves.file.bytes_read - before == len(new)
    assert curves.rows == 20_100


@pytest.mark.parametrize("how", ["resume", "truncated", "rewritten in place"])
def test_a_cut_file_is_read_anew(client, tmp_path, how):
    """After a resume the lines that it dropped are gone; `begins` says that all of it is sent."""
    path = make_run(tmp_path / "out/a", [training_line(i, loss=i) for i in range(1, 101)])
    path = path / "metrics.jsonl"
    (first,) = data(client, "a")["runs"]
    assert first["begins"] and first["fields"]["loss"]["x"] == list(range(1, 101))
    kept = [training_line(i, loss=i) for i in range(1, 51)]
    new = kept + [training_line(i, loss=i + 0.5) for i in range(51, 131)]
    if how == "resume":
        path.with_suffix(".tmp").write_text("".join(new))
        path.with_suffix(".tmp").replace(path)
    elif how == "truncated":
        new = kept
        with open(path, "r+") as f:
            f.truncate(len("".join(kept)))
    else:
        with open(path, "r+") as f:
            f.write("".join(new))
    (again,) = data(client, "a", since=[first["position"]])["runs"]
    assert again["begins"]
    steps = [json.loads(text)["step"] for text in new]
    losses = [json.loads(text)["loss"] for text in new]
    assert again["fields"]["loss"] == {"x": steps, "y": losses}


def test_what_comes_in_pieces_is_the_whole(client, tmp_path):
    """Positions carried along: every point, sample and event of the file once, in order."""
    path = make_run(tmp_path / "out/a") / "metrics.jsonl"
    position, loss, samples, events = "", [], [], []
    expected = {"loss": [], "samples": [], "events": []}
    for step in range(1, 40):
        with open(path, "a") as f:
            for number in range(step % 4):
                f.write(training_line(10 * step + number, loss=step))
                expected["loss"].append((10 * step + number, step))
            if step % 5 == 0:
                f.write(line(10 * step, event="samples", texts=[f"a {step}", "b"]))
                expected["samples"].append({"step": 10 * step, "texts": [f"a {step}", "b"]})
            if step % 7 == 0:
                f.write(line(10 * step, event="spike", spike_loss=9.0))
                expected["events"].append(10 * step)
        (run,) = data(client, "a", since=[position])["runs"]
        assert run["begins"] == (loss == [])
        position = run["position"]
        points = run["fields"].get("loss", {"x": [], "y": []})
        loss += zip(points["x"], points["y"])
        samples += run["samples"]
        events += [event["step"] for event in run["events"]]
    assert loss == expected["loss"]
    assert samples == expected["samples"] and events == expected["events"]


# ---- lines of any kind

JUNK = [
    "", "{", "[]", "3", '"a"', "null", "[1, 2]", '{"step": "5", "loss": 1}', '{"loss": 1}',
    '{"step": -1, "loss": 1}', '{"step": 1.5, "loss": 1}', '{"step": NaN, "loss": 1}',
    '{"step": true, "loss": 1}', '{"step": 1e300, "loss": 1}', '{"step": 5, "lo{"step": 6}',
    '{"step": ' + "9" * 5000 + "}", "[" * 100_000, '{"step": 1, "event": 5}',
    '{"step": 1, "event": "samples", "texts": "no list"}', '{"step": 1}, {"step": 2, "loss": 1}',
    '{"step": 1, "event": "samples", "texts": [1, {}, null]}', "\udcff", '{"step": 1} {"step": 2}',
    '{"step": 1, "event": {"a": [1]}, "x": 1}',
]  # fmt: skip


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_a_broken_line_costs_no_other(client, tmp_path, junk):
    """The lines before and after it are read, and nothing is made of it."""
    path = make_run(tmp_path / "out/a") / "metrics.jsonl"
    text = training_line(1) + junk + "\n" + training_line(2) + junk
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    (run,) = data(client, "a")["runs"]
    assert run["fields"]["loss"] == {"x": [1, 2], "y": [1, 1]}
    assert run["step"] == 2 and run["samples"] == []
    assert client.get("/runs/list").json()["runs"][0]["step"] == 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
keys = st.sampled_from(["step", "loss", "tokens", "tokens_per_s", "minutes_left", "lr", "event"])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.dictionaries(keys | st.text(max_size=4), json_values, max_size=6), max_size=12),
    json_values,
    st.sampled_from(["step", "seen", "time"]),
)
def test_any_json_is_answered(tmp_path_factory, records, args, axis):
    """Whatever values lines and flags have, the answers are strict JSON."""
    out = tmp_path_factory.mktemp("any")
    folder = make_run(out / "a", [json.dumps(record) + "\n" for record in records])
    (folder / "args.json").write_text(json.dumps(args))
    app = FastAPI()
    app.include_router(runs.router(out))
    with TestClient(app) as client:
        for path in ("list", f"data?run=a&axis={axis}&points=2", "flags?run=a"):
            answer = client.get(f"/runs/{path}")
            assert answer.status_code == 200
            json.loads(answer.text, parse_constant=pytest.fail)  # NaN or Infinity


def test_numbers_that_are_none_leave_a_gap(tmp_path):
    """NaN, infinities, words and lists are not drawn; what is around them is."""
    values = ["1.0", "NaN", "Infinity", "-Infinity", '"x"', "[1]", "null", "1e400", "2.0"]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {i}, "loss": {v}}}\n' for i, v in enumerate(values)))
    assert read_all(path).points(100)["loss"] == {"x": [0, 8], "y": [1, 2]}


def test_a_field_that_comes_late_has_its_own_steps(tmp_path):
    """Held-out figures, and fields that begin or end within the run."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        line(0, val_loss=9.0) + training_line(1) + training_line(2, new=5.0) + line(2, val_loss=8.0)
    )
    points = read_all(path).points(10)
    assert points["val_loss"] == {"x": [0, 2], "y": [9, 8]}
    assert points["new"] == {"x": [2], "y": [5]} and points["loss"]["x"] == [1, 2]
    assert "tokens" not in points and "epoch" not in points


# ---- thinning


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.integers(2, 200), st.integers(0, 2**32 - 1))
@example(size=45, count=33, seed=0)  # 45 · 11 / 33 is no whole number of float64
def test_thinned_points_cover_every_value(size, count, seed):
    """Of any curve: at most so many points, the ends where they were, the mean and every extreme.

    Compared with a plain loop over the same runs of values.
    """
    draw = np.random.default_rng(seed)
    x = np.cumsum(draw.integers(1, 5, size)).astype(float)
    y = draw.normal(size=size).astype(np.float32)
    points = thinned(x, y, count)
    assert len(points["x"]) == min(size, count)
    assert (points["x"][0], points["x"][-1]) == (x[0], x[-1])
    if size <= count:
        assert points["y"] == pytest.approx(y.tolist(), rel=1e-5)
        return
    at = 0
    for i in range(count):
        end = size * (i + 1) // count
        part = [float(value) for value in y[at:end]]
        at = end
        assert points["low"][i] == pytest.approx(min(part), rel=1e-5)
        assert points["high"][i] == pytest.approx(max(part), rel=1e-5)
        assert points["y"][i] == pytest.approx(sum(part) / len(part), rel=1e-4, abs=1e-5)


def test_one_spike_in_a_long_run_is_seen(client, tmp_path):
    """One high value among 50,000 lines is in the answer of 100 points, and a zoom finds its step.

    Whole numbers of tokens stay whole, however many.
    """
    lines = [training_line(i, loss=50.0 if i == 31_416 else 2.0) for i in range(1, 50_001)]
    make_run(tmp_path / "out/a", lines)
    answer = data(client, "a", points=100)["runs"][0]
    while answer["more"]:
        answer = data(client, "a", points=100)["runs"][0]
    loss = answer["fields"]["loss"]
    assert len(loss["x"]) == 100 and max(loss["high"]) == 50 and max(loss["y"]) < 3
    at = loss["high"].index(50)
    low, high = loss["x"][at - 1], loss["x"][at + 1]
    closer = data(client, "a", points=4_000, low=low, high=high)["runs"][0]["fields"]["loss"]
    assert closer["x"][closer["y"].index(50)] == 31_416
    assert closer["x"][0] == low - 1 and closer["x"][-1] == high + 1  # lines reach the edges
    seen = data(client, "a", axis="seen", low=99 * 100, high=101 * 100)["runs"][0]
    assert seen["fields"]["loss"]["x"] == [9800, 9900, 10000, 10100, 10200]


def test_data_and_time_are_those_of_the_lines(tmp_path):
    """Against a plain loop over the lines: data seen, and seconds as the speeds give them."""
    path, draw = tmp_path / "metrics.jsonl", np.random.default_rng(0)
    lines, pairs, seconds, expected = [line(0, val_loss=9.0)], 0, 0.0, []
    for step in range(1, 3000):
        more, rate = int(draw.integers(1, 20)), float(draw.uniform(10, 20))
        pairs += more
        seconds += more / rate
        lines.append(line(step, pairs=pairs, loss=1.0, pairs_per_s=rate))
        if step % 10 == 0:
            lines.append(line(step, val_loss=1.0))
            expected.append((step, pairs, seconds))
    path.write_text("".join(lines))
    curves = read_all(path)
    assert curves.unit == "pairs"
    found = [curves.points(10_000, axis)["val_loss"]["x"] for axis in ("step", "seen", "time")]
    for values, wanted in zip(found, zip(*[(0, 0, 0), *expected])):
        assert values == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_a_line_between_two_log_lines_lies_between_them(tmp_path):
    """Held-out figures of step 15, where lines with counts are at 10 and 20."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(training_line(10) + line(15, val_loss=1.0) + training_line(20))
    curves = read_all(path)
    assert curves.points(9, "seen")["val_loss"]["x"] == [1500]
    assert curves.points(9, "time")["val_loss"]["x"] == [30]  # 50 tokens a second


def test_notes_are_bounded_and_keep_their_ends():
    """Of very many samples, old ones go; the first and the latest are there."""
    notes = Notes()
    for step in range(10 * MOST_NOTES):
        notes.add({"step": step})
    kept = [note["step"] for note in notes.since(0, 10**9)]
    assert len(kept) <= MOST_NOTES and kept[0] == 0 and kept[-1] == 10 * MOST_NOTES - 1
    assert kept == sorted(set(kept)) and notes.count == 10 * MOST_NOTES
    few = [note["step"] for note in notes.since(0, 5)]
    assert len(few) == 5 and (few[0], few[-1]) == (0, kept[-1])
    assert notes.since(notes.count - 1, 5) == [{"step": kept[-1]}]


# ---- how a run stands

HOLDER = """
import sys
from training import run_lock
run_lock.take(sys.argv[1])
print("has it", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds a folder as a run does, until it is killed."""

    def start(folder: Path):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "has it\n"
        return process

    started = []
    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_run_is_running_as_long_as_it_holds_its_folder(client, tmp_path, holder):
    """Nobody else takes it away by looking, and a kill is seen at once."""
    folder = make_run(tmp_path / "out/a", [training_line(1, minutes_left=3.0)], total_steps=9)
    process = holder(folder)
    for _ in range(20):
        (run,) = client.get("/runs/list").json()["runs"]
        assert run["state"] == "running" and 2.9 < run["minutes_left"] <= 3
        data(client, "a")
    code = "import sys; from training import run_lock; run_lock.take(sys.argv[1])"
    other = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert "another run is writing there" in other.stderr
    process.kill()
    process.wait()
    assert (folder / run_lock.NAME).exists()  # left behind, and held by nobody
    (run,) = client.get("/runs/list").json()["runs"]
    assert (run["state"], run["why"], run["minutes_left"]) == ("failed", None, None)


@pytest.mark.parametrize(
    ("stopped_by", "expected"),
    [(0, ("finished", None)), (signal.SIGTERM, ("stopped", "SIGTERM"))],
)
def test_a_log_says_how_its_run_ended(tmp_path, capsys, stopped_by, expected):
    """What RunLog.end writes is what the list says; a resume drops it, and goes on."""
    log = RunLog(tmp_path, 5, RunState(), is_main=True)
    log.metrics(3, loss=1.0)
    kept = log.lines
    log.end(3, stopped_by)
    run = RunFolder("a", tmp_path)
    assert run.look()["state"] == expected[0] and run.state() == expected
    log = RunLog(tmp_path, 5, RunState(step=3, metrics_lines=kept), is_main=True)
    log.metrics(4, loss=1.0)
    log.file.close()  # and then it is killed
    assert run.look()["step"] == 4 and run.state() == ("failed", None)


def test_a_run_with_all_its_steps_has_finished(tmp_path, capsys):
    """A signal in its last update does not change what is in the log, unless a figure is due."""
    for is_due, expected in ((False, ("finished", None)), (True, ("stopped", "SIGTERM"))):
        (tmp_path / str(is_due)).mkdir()
        log = RunLog(tmp_path / str(is_due), 5, RunState(step=5, eval_due=is_due), is_main=True)
        log.metrics(5, loss=1.0)
        log.end(5, signal.SIGTERM)
        run = RunFolder("a", tmp_path / str(is_due))
        run.look()
        assert run.state() == expected


def test_a_failure_is_recorded_with_its_reason(tmp_path, capsys):
    """The line that ends the script is the one that the page shows."""

    def main():
        log = RunLog(tmp_path, 5, RunState(step=2), is_main=True)
        log.metrics(2, loss=1.0)
        raise ValueError("--max_bad_steps 5: too many")

    with pytest.raises(SystemExit):
        cli.run(main)
    run = RunFolder("a", tmp_path)
    run.look()
    assert run.state() == ("failed", "--max_bad_steps 5: too many")


def test_runs_of_before_there_was_a_last_line(tmp_path):
    """Complete if they have all their steps; else nobody can say more than that they ended."""
    for name, step, args, expected in (
        ("all", 9, {"max_steps": 9}, "finished"),
        ("epochs", 9, {"max_steps": 0}, "finished"),
        ("half", 8, {"max_steps": 9}, "failed"),
    ):
        lines = [training_line(step, minutes_left=float(expected == "failed"))]
        run = RunFolder(name, make_run(tmp_path / name, lines, **args))
        assert run.look()["state"] == expected, name


def test_the_list_says_what_the_files_say(client, tmp_path):
    """The latest first; flags of runs side by side, with those of the model."""
    old = make_run(
        tmp_path / "out/a", [training_line(1, val_loss=3.0), training_line(2, 0.5)], seed=1,
        total_steps=7, config={"hidden_size": 64}, learning_rate=1e-3,
    )  # fmt: skip
    os.utime(old / "metrics.jsonl", (1_000_000, 1_000_000))
    make_run(tmp_path / "out/b", [], seed=2, learning_rate=1e-3, data_path=["x", "y"])
    answer = client.get("/runs/list").json()
    assert [run["name"] for run in answer["runs"]] == ["b", "a"]
    run = answer["runs"][1]
    assert (run["script"], run["step"], run["total_steps"]) == ("train_pretrain.py", 2, 7)
    assert run["figures"]["loss"] == 0.5 and run["figures"]["val_loss"] == 3
    assert run["updated"] == 1_000_000
    answer = client.get("/runs/flags", params={"run": ["a", "b"]}).json()
    flags = {row["name"]: (row["values"], row["differs"]) for row in answer["flags"]}
    assert flags == {
        "seed": ([1, 2], True), "learning_rate": ([1e-3, 1e-3], False),
        "hidden_size": ([64, None], True), "data_path": ([None, '["x", "y"]'], True),
    }  # fmt: skip


def test_a_run_of_a_script_from_its_start_to_its_end(client, tmp_path, tiny_tokenizer_dir):
    """All that the page tells of a run is in what the scripts write."""
    flags = small_runs.make_inputs(tmp_path, tiny_tokenizer_dir)["pretrain"]
    small_runs.run("pretrain", tmp_path / "out/a", *flags)
    (run,) = data(client, "a")["runs"]
    assert (run["state"], run["step"], run["total_steps"]) == ("finished", 12, 12)
    assert run["script"] == "train_pretrain.py" and run["unit"] == "tokens"
    assert [sample["step"] for sample in run["samples"]] == [0, 4, 8, 12]
    assert all(" ⟶ " in text for sample in run["samples"] for text in sample["texts"])
    lines = small_runs.figures(tmp_path / "out/a")
    for name in ("loss", "val_loss", "lr", "grad_norm"):
        points = run["fields"][name]
        expected = [(line["step"], line[name]) for line in lines if name in line]
        assert points["x"] == [step for step, _ in expected]
        assert points["y"] == pytest.approx([value for _, value in expected], rel=1e-5)


# ---- what a client may ask


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 422), ("run=a&points=1", 422), ("run=a&points=4001", 422), ("run=a&points=x", 422),
        ("run=a&axis=name", 400), ("run=a&low=nan", 400), ("run=a&since=x&since=y", 400),
        ("&".join(["run=a"] * 13), 422), ("run=a&" + "&".join(["field=a"] * 129), 422),
        ("run=a&low=inf&high=-inf", 200), ("run=a&since=00000000.9.9.9", 200),
        ("run=a&since=" + "9" * 9999, 200), ("run=a&run=a&since=&since=", 200),
        ("run=a&low=1e308&high=1e308", 200), ("run=a&field=none", 200),
    ],
)  # fmt: skip
def test_requests_are_bounded(client, tmp_path, query, status):
    """Wrong ones are refused with a 4xx, odd ones answered; none is an error of the server."""
    make_run(tmp_path / "out/a", [training_line(i) for i in range(50)])
    assert client.get(f"/runs/data?{query}").status_code == status


def test_a_position_of_this_run_that_is_beyond_it(client, tmp_path):
    """There is nothing new there, and it is no error."""
    make_run(tmp_path / "out/a", [training_line(1)])
    version = data(client, "a")["runs"][0]["position"].split(".")[0]
    (run,) = data(client, "a", since=[f"{version}.999999999.0.0"])["runs"]
    assert run["fields"] == {} and run["rows"] == 1


def test_a_folder_may_go_at_any_time(client, tmp_path):
    """Between finding and reading: it is listed without figures, then not at all."""
    folder = make_run(tmp_path / "out/a", [training_line(1)])
    position = data(client, "a")["runs"][0]["position"]
    (folder / "metrics.jsonl").unlink()
    (run,) = data(client, "a", since=[position])["runs"]
    assert run["begins"] and run["fields"] == {} and run["step"] is None
    (folder / "args.json").unlink()
    assert data(client, "a")["gone"] == ["a"]
    make_run(folder, [training_line(1), training_line(2)])
    assert data(client, "a", since=[position])["runs"][0]["fields"]["loss"]["x"] == [1, 2]


def test_long_files_are_read_in_turns(client, tmp_path, monkeypatch):
    """An answer takes no longer than READING; `more` asks for another, until all is there."""
    monkeypatch.setattr(runs, "READING", 0.0)
    lines = [training_line(i) for i in range(1, 10_001)]
    make_run(tmp_path / "out/a", lines)
    make_run(tmp_path / "out/b", lines[:10])
    rows = []
    for _ in range(1000):
        a, b = data(client, "a", "b")["runs"]
        rows.append(a["rows"])
        if not a["more"]:
            break
    assert rows == sorted(rows) and len(set(rows)) > 3 and rows[-1] == 10_000
    assert b["rows"] == 10


def test_memory_is_bounded(tmp_path, monkeypatch):
    """Beyond the newest few, curves that were not asked for the longest go first."""
    monkeypatch.setattr(runs, "MEMORY", 100_000)
    monkeypatch.setattr(runs, "MOST_CHOSEN", 2)
    for name in "abcdef":
        make_run(tmp_path / name, [training_line(i) for i in range(3000)])
    served = runs.Runs(tmp_path)
    for name in "abcdef":
        served.curves(served.folders()[name]).read(1)
    kept = list(served._curves)
    assert kept == ["e", "f"], "two are asked for at once, so two stay"
    assert served.curves(served.folders()["a"]).rows == 0  # read anew
    shutil.rmtree(tmp_path / "a")
    served.folders()
    assert "a" not in served._curves


def test_requests_at_the_same_time_agree(client, tmp_path):
    """Eight at once, while the file grows: each sees a beginning of the file, none fails."""
    path = make_run(tmp_path / "out/a") / "metrics.jsonl"
    is_over, problems = threading.Event(), []

    def ask():
        while not is_over.is_set():
            x = data(client, "a", points=4000)["runs"][0]["fields"].get("loss", {"x": []})["x"]
            if x != list(range(1, len(x) + 1)):
                problems.append(x)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    with open(path, "a") as f:
        for step in range(1, 1501):
            f.write(training_line(step))
            f.flush()
    is_over.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert data(client, "a", points=4000)["runs"][0]["rows"] == 1500


def test_answers_stay_small(client, tmp_path, monkeypatch):
    """However many points, fields and runs are asked for."""
    monkeypatch.setattr(runs, "MOST_NUMBERS", 2_000)
    fields = {f"f{i}": math.pi for i in range(20)}
    make_run(tmp_path / "out/a", [line(i, **fields) for i in range(500)])
    found = data(client, "a", points=4_000)["runs"][0]["fields"]
    assert sum(len(p) for points in found.values() for p in points.values()) <= 2_000
    assert len(found) == 20


def test_parse_falls_back_line_by_line():
    """Lines that are only together JSON are not one."""
    assert parse([b'{"a": [1', b"2]}", b'{"b": 1}']) == [{"b": 1}]
    assert parse([]) == []
