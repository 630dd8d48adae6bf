"""benchmarks/gpu.sh and what makes tables of its figures, as far as a CPU goes."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bench_curve, gpu_tables
from tests.small_runs import REPOSITORY

SCRIPT = REPOSITORY / "benchmarks" / "gpu.sh"

# In place of Python on a GPU machine: says which card is there, and repeats what it is asked to do.
STAND_IN = """#!/bin/bash
case "$*" in
    *--machine*) echo '{"memory_gb": GB, "card": "a card"}' > "$2/machine.json" ;;
    -c*) exec REAL "$@" ;;
    *--only_compile*) echo "$*" >> "$COMPILED" ;;
    *bench_checkpoint*) sleep "${HANG:-0}"; echo '{"command": "checkpoint"}' ;;
    *muon*) [ -z "${HANG:-}" ] && echo "{\\"command\\": \\"$*\\"}" ;;
    *) echo "some output"; echo "{\\"command\\": \\"$*\\"}" ;;
esac
"""


def run_script(folder: Path, *parts, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(SCRIPT), str(folder), *parts], text=True, timeout=600,
        env=os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture
def card(tmp_path):
    """A function: gpu.sh on a card with so much memory, all commands only repeated.

    It returns the folder and the commands by part.
    """

    def run(gigabytes: int, *parts, status: int = 0, **environment):
        folder, python = tmp_path / f"{gigabytes}", tmp_path / "python"
        python.write_text(STAND_IN.replace("GB", str(gigabytes)).replace("REAL", sys.executable))
        python.chmod(0o755)
        environment |= {"PYTHON": str(python), "COMPILED": str(tmp_path / "compiled")}
        done = run_script(folder, *parts, **environment)
        assert done.returncode == status, done.stdout
        results = (path for path in folder.glob("*.json") if path.stem != "machine")
        return folder, {path.stem: json.loads(path.read_text())["command"] for path in results}

    return run


def ended(folder: Path) -> dict[str, int]:
    """Status by part, in the order in which they ran."""
    lines = (folder / "parts.jsonl").read_text().splitlines()
    return {part["part"]: part["status"] for part in map(json.loads, lines)}


def flag(command: str, name: str) -> str:
    words = shlex.split(command)
    return words[words.index(name) + 1]


def test_right_comes_first_then_what_has_a_bar(card, tmp_path):
    """The order of the parts; each step is compiled before any is measured, with the same flags."""
    folder, commands = card(80)
    names = list(ended(folder))
    assert names[:3] == ["tests", "curve", "compile"]
    steps = [f"train_{size}_{T}" for size in ("30m", "64m", "108m") for T in (512, 2048)]
    for name in (*steps, "generate", "packed", "experts", "muon"):
        assert names.index(name) > 2 and set(ended(folder).values()) == {0}
    compiled = (tmp_path / "compiled").read_text().splitlines()
    measured = {commands[name] for name in (*steps, "packed", "experts", "muon")}
    assert {line.removesuffix(" --only_compile") for line in compiled} == measured
    sizes = {(flag(commands[n], "--preset"), flag(commands[n], "--seq_len")) for n in steps}
    assert sizes == {(p, T) for p in ("small", "base", "large") for T in ("512", "2048")}
    assert flag(commands["generate"], "--batch_sizes") == "64"
    assert "--optimizer muon" in commands["muon"] and "--only_ours" not in commands["train_30m_512"]


@pytest.mark.parametrize(("gigabytes", "part"), [(143, 1), (80, 1), (48, 2), (24, 4), (12, 8)])
def test_rows_are_chosen_by_the_cards_memory(card, gigabytes, part):
    """24 GB take a quarter of what 80 take, in every step."""
    _, commands = card(gigabytes, "train_64m_512", "train_108m_2048")
    assert flag(commands["train_64m_512"], "--batch_size") == str(96 // part)
    assert flag(commands["train_108m_2048"], "--batch_size") == str(16 // part)


def test_what_hangs_or_fails_costs_only_itself(card):
    """A part is cut off at what is left of the time; its name and the others' figures are kept."""
    parts = ("train_64m_512", "muon", "checkpoint")
    folder, commands = card(80, *parts, status=1, HANG="60", DEADLINE="3")
    assert ended(folder) == {"train_64m_512": 0, "muon": 1, "checkpoint": 124}
    assert set(commands) == {"train_64m_512"}
    _, commands = card(80, "checkpoint")  # once more, by its name
    assert ended(folder)["checkpoint"] == 0 and set(commands) == {"train_64m_512", "checkpoint"}
    card(80, "no_such_part", status=2)


@pytest.mark.slow
def test_all_parts_run_on_a_cpu(tmp_path):
    """Every command of the script is one that its benchmark takes, and ends in figures."""
    done = run_script(tmp_path, DEVICE="cpu", DEADLINE="3000")
    assert done.returncode == 0, done.stdout
    table = [sys.executable, REPOSITORY / "benchmarks" / "gpu_tables.py", tmp_path]
    text = subprocess.run(table, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert text.startswith("**CPU, ") and "Saving `demo`" in text
    found = gpu_tables.read_folder(tmp_path)
    assert set(found["parts"]) - {"tests"} == set(found) - {"machine", "parts", "tests"}
    assert len(found["parts"]) == 13


# ---- the tables, of made-up figures


def made_up(folder: Path, card: str = "NVIDIA H100 80GB HBM3") -> Path:
    """A folder as gpu.sh leaves it."""

    def contender(name: str, speed: float, share: float) -> dict:
        return {"name": name, "tokens_per_s": speed, "step_s": 49152 / speed, "share": share,
                "memory_gb": 12.5, "first_step_s": 40.0, "arithmetic_rate": 7.1e14,
                "tokens_per_cpu_s": 1.0}  # fmt: skip

    def run(preset: str, kind: str, rows: int, T: int, *contenders) -> dict:
        ours = contenders[0]["tokens_per_s"]
        ratios = {c["name"]: ours / c["tokens_per_s"] for c in contenders}
        more = {"rows": rows, "seq_len": T, "results": list(contenders), "ratios": ratios}
        return {"torch": "2.11.0", "device": card, "preset": preset, kind: more}

    ours, theirs = "ours, bfloat16, compiled", "transformers, bfloat16, compiled"
    results = {
        "train_64m_512": run("base", "pretrain", 96, 512, contender(ours, 900_000, 0.43)),
        "train_108m_2048": run("large", "pretrain", 16, 2048, contender(ours, 400_000, 0.41)),
        "train_30m_512": run("small", "pretrain", 128, 512, contender(ours, 1_500_000, 0.35),
                             contender(theirs, 1_250_000, 0.29)),
        "muon": run("base", "pretrain", 96, 512, contender(ours + ", Muon", 750_000, 0.36)),
        "packed": run("small", "fine-tuning", 64, 768, contender("ours, packed", 9e5, 0.2)),
        "generate": {
            "preset": "base",
            "batch_1": {"ours bf16": {"tokens_per_s": 400.0, "of_limit": 0.02},
                        "ours bf16 compiled": {"tokens_per_s": 1600.0, "of_limit": 0.08}},
            "batches": {"64": {"ours bf16": 20_000.0, "ours bf16 compiled": 39_000.0}},
        },
        "curve": {"steps": 200, "last_loss": 4.861, "last_loss_of_cpu": 4.8555, "tolerance": 0.02,
                  "largest_difference": 0.0071, "agrees": True},
    }  # fmt: skip
    results["train_64m_512"]["pretrain"]["profile"] = {"matrix products": 0.5, "idle": 0.1,
                                                       "seconds": 0.05}  # fmt: skip
    machine = {"card": card, "memory_gb": 85, "capability": "9.0", "torch": "2.11.0+cu130",
               "transformers": "5.17.0", "python": "3.12.9", "cuda": "13.0", "cudnn": 91900,
               "triton": "3.6.0", "flash_attn": None, "commit": "abc1234"}  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "machine.json").write_text(json.dumps(machine))
    lines = [{"part": name, "status": 0, "seconds": 30} for name in results]
    lines += [{"part": "tests", "status": 1, "seconds": 90}]
    lines += [{"part": "experts", "status": 124, "seconds": 60}]
    (folder / "parts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "tests.log").write_text(
        "..\n2 passed in 9s\n.F\n1 failed, 1 passed in 8s\n3 skipped\n"
    )
    for name, result in results.items():
        (folder / f"{name}.json").write_text(json.dumps(result) + "\n")
    return folder


def rows_of(text: str, first: str) -> list[list[str]]:
    """The cells of the table rows that begin with `first`."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [cells for cells in lines if cells[0] == first]


def test_tables_say_what_was_measured(monkeypatch, capsys, tmp_path):
    """Card, versions, what failed, figures and bars, of JSON lines worked out by hand."""
    monkeypatch.setattr("sys.argv", ["gpu_tables.py", str(made_up(tmp_path / "gpu"))])
    gpu_tables.main()
    text = capsys.readouterr().out
    assert text.startswith(
        "**NVIDIA H100 80GB HBM3** (85 GB, capability 9.0); CUDA 13.0, cuDNN 91900,"
    )
    assert "commit abc1234." in text and "flash-attn" not in text
    assert "Part `experts` was cut off after 60 s." in text
    assert "Part `tests` failed (1) after 90 s." in text
    assert "GPU tests: 3 passed, 1 failed, 3 skipped." in text
    assert "they agree, the largest difference is 0.71% (2% allowed)" in text
    ((_, *cells),) = rows_of(text, "64M")
    assert cells == ["96 × 512", "900,000", "54.6", "43.0%", "710", "12.5", "40%: reached"]
    ((_, *cells),) = rows_of(text, "108M")
    assert cells[:3] == ["16 × 2048", "400,000", "122.9"] and cells[-1] == "45%: **not reached**"
    ((_, *cells),) = rows_of(text, "transformers, bfloat16, compiled")
    assert cells[-2:] == ["1.20", "1.3 ×: **not reached**"]
    ((_, *cells),) = rows_of(text, "packed, 30M")
    assert cells[:2] == ["64 × 768", "900,000"]
    assert "A step with Muon takes 1.20 times AdamW's." in text
    assert "50% matrix products, 10% idle" in text
    assert rows_of(text, "ours bf16 compiled") == [["ours bf16 compiled", "1,600", "8%", "39,000"]]
    ((_, *cells),) = rows_of(text, "bar, of the best")
    assert cells == ["1,500: reached", "", "40,000: **not reached**"]
    widths = {line.count("|") for line in text.split("\n\n")[-1].splitlines()}
    assert len(widths) == 1  # every row has a cell for every column


def test_bars_are_for_hopper(tmp_path):
    """The bars say nothing about a 3090."""
    found = gpu_tables.read_folder(made_up(tmp_path / "gpu", "NVIDIA GeForce RTX 3090"))
    text = "\n".join((*gpu_tables.steps(found), *gpu_tables.decoding(found)))
    assert "reached" not in text and "–" in text


def test_a_folder_with_nothing_in_it_is_an_error(monkeypatch, tmp_path):
    """Named, as every mistake is; a machine without a GPU is one, too."""
    monkeypatch.setattr("sys.argv", ["gpu_tables.py", str(tmp_path)])
    with pytest.raises(ValueError, match=r"no machine\.json"):
        gpu_tables.main()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU here"):
        gpu_tables.machine("cuda")


# ---- the loss curve


@pytest.mark.slow
def test_a_short_run_has_the_losses_that_are_committed(monkeypatch, capsys):
    """Ten updates in float32 here are those of benchmarks/cpu_curve.json; other losses are told."""
    flags = ["--device", "cpu", "--dtype", "float32", "--no-compile", "--steps", "10"]
    monkeypatch.setattr("sys.argv", ["bench_curve.py", *flags, "--tolerance", "1e-4"])
    assert bench_curve.main() == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["agrees"]


def test_the_committed_curve_is_one_of_learning():
    """A loss for every ten of 200 updates, from about that of drawing lots down."""
    curve = json.loads(bench_curve.CURVE.read_text())
    assert list(map(int, curve)) == list(range(10, 201, 10))
    assert curve["10"] > 8 and curve["200"] < 5


def test_curves_that_part_are_found():
    """The largest difference counts, at the steps that were run."""
    expected = {10: 8.0, 20: 6.0, 30: 5.0}
    assert bench_curve.compare({10: 8.0, 20: 6.03}, expected) == pytest.approx(0.005)
    assert bench_curve.compare({10: 7.6, 20: 6.03}, expected) == pytest.approx(0.05)
