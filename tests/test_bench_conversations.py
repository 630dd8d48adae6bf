"""benchmarks/bench_data.py --conversations: its data, and its steps at tiny size."""

import argparse
import json
import subprocess
import sys

import pytest

from benchmarks import conversation_data
from benchmarks.conversation_data import STEPS_OF, make_records, sources_of
from benchmarks.own_process import ROOT
from dataset.conversations import read_conversations
from dataset.pairs import read_pairs


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One small file of each kind."""
    folder = tmp_path_factory.mktemp("made")
    for kind in STEPS_OF:
        (folder / kind).mkdir()
        data = folder / kind / "data.jsonl"
        make_records(data, sources_of(kind)[:1], 150_000, kind == "tools")
    return folder


@pytest.mark.parametrize("kind", STEPS_OF)
def test_no_two_records_are_equal(made, tmp_path, kind):
    """Of a source that is repeated many times; and the reader takes every one."""
    source = tmp_path / "few.jsonl"
    source.write_text("".join((made / kind / "data.jsonl").open(encoding="utf-8").readlines()[:3]))
    data = tmp_path / "many.jsonl"
    make_records(data, [source], 60_000)
    lines = data.read_text(encoding="utf-8").splitlines()
    assert 0 <= data.stat().st_size - 60_000 < len(lines[-1].encode()) + 1
    records = list(read_pairs([data]) if kind == "pairs" else read_conversations([data]))
    assert len(records) == len(lines) > 6
    texts = {repr(r.prompt + r.chosen if kind == "pairs" else r.messages) for r in records}
    assert len(texts) == len(lines)
    if kind == "tools":
        tools = [json.dumps(record.tools) for record in records if record.tools]
        assert len(set(tools)) == len(tools) > 6


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in STEPS_OF.items() for name in names]
)
def test_every_step_runs_and_counts(made, kind, name):
    """On the data of its kind, whatever step came before."""
    args = argparse.Namespace(
        batch_size=2, max_seq_len=2048, tokenizer="model/tokenizer", lengths=1000
    )
    figures = conversation_data.step(name, kind, made / kind, args)
    assert figures["seconds"] > 0 and figures["cpu_seconds"] >= 0
    if name in ("encode", "load"):
        assert figures["tokens"] > 10_000
    if name == "pack":
        assert 0.9 < figures["efficiency"] <= 1


@pytest.mark.slow
def test_the_command_prints_a_table_and_json(tmp_path):
    command = [sys.executable, "benchmarks/bench_data.py", "--conversations", "--gigabytes", "1e-4"]
    command += ["--lengths", "1000", "--work_dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *table, last = done.stdout.splitlines()
    results = json.loads(last)
    assert {kind: list(results[kind]) for kind in STEPS_OF} == STEPS_OF
    assert len(table) == sum(len(steps) + 2 for steps in STEPS_OF.values())
