"""Files worked on in several processes give what one process gives, reading record after record."""

import csv
import gzip
import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset import line_readers, record_chunks
from dataset.conversations import FIELDS, converted, read_conversations, to_conversation
from dataset.encoding import ConversationJob
from dataset.line_readers import cut_at_lines, read_jsonl
from dataset.readers import read_records
from dataset.record_chunks import work_through
from dataset.records import DataError, Problems, Remarks, all_problems

ROOT = Path(__file__).resolve().parent.parent
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def as_texts(records, problems) -> list[tuple[int, str]]:
    """The job of these tests: (line, text) of every conversation."""
    return [
        (record.line, json.dumps(parts, ensure_ascii=False))
        for record, parts in converted(records, to_conversation, problems)
    ]


def in_order(path, problems) -> list[tuple[int, str]]:
    """The same, serially, as training has always read them."""
    return [
        (c.line, json.dumps((c.messages, c.tools), ensure_ascii=False))
        for c in read_conversations(path, "skip", problems)
    ]


def told(problems: Problems) -> list:
    """All that problems say, in order."""
    remarks = [
        (p, [*r.not_used.items()], [*r.read_as.items()]) for p, r in problems.remarks.items()
    ]
    return [problems.count, problems.num_not_shown, problems.first, problems.lines(), remarks]


def random_line(rng: random.Random) -> bytes:
    """A record as people write them: good, bad in one of many ways, or blank."""
    talk = [
        {"role": "user", "content": f"question {rng.randrange(50)} 问"},
        {"role": "assistant", "content": f"answer {rng.randrange(50)}"},
    ]
    kind = rng.randrange(14)
    record: object = {"messages": talk}
    if kind == 0:
        return rng.choice([b"", b"  ", b"\r"])
    if kind == 1:
        return rng.choice([b"{", b'{"a": 1} x', b'{"a": "\xff"}', b'{"a": 1, "a": 2}', b"\xed\xa0"])
    if kind == 2:
        return b'{"messages": "\\ud800"}'
    if kind == 3:
        record = rng.choice([[], 3, None, {}, {"messages": []}, {"text": "a"}])
    elif kind == 4:
        talk[1]["role"] = f"robot{rng.randrange(20)}"
    elif kind == 5:
        talk.pop()
    elif kind < 9:  # what nothing reads
        record = {"messages": talk, f"field {rng.randrange(6000)}": 1, "meta": "x"}
    elif kind == 9:
        talk[1]["content"] = "<think>t</think>a"
    elif kind == 10:
        talk[0]["content"] = "x" * rng.randrange(600)
    return json.dumps(record, ensure_ascii=False).encode()


def random_file(path: Path, seed: int, lines: int = 400, end: bytes = b"\n") -> Path:
    rng = random.Random(seed)
    content = end.join(random_line(rng) for _ in range(lines)) + end * rng.randrange(2)
    if rng.randrange(2):
        content = b"\xef\xbb\xbf" + content
    if path.suffix == ".gz":
        content = gzip.compress(content)
    if path.suffix == ".zst":
        pyarrow = pytest.importorskip("pyarrow")
        content = pyarrow.Codec("zstd").compress(content, asbytes=True)
    path.write_bytes(content)
    return path


def chunks_of(monkeypatch, size: int) -> None:
    """Chunks of about so many bytes, and processes however small the file is."""
    monkeypatch.setattr(record_chunks, "CHUNK_BYTES", size)
    monkeypatch.setattr(record_chunks, "SMALL", 1)


@pytest.mark.parametrize(
    ("name", "processes", "size"),
    [
        *[("a.jsonl", processes, 10) for processes in (1, 2)],
        *[("a.jsonl", processes, 3000) for processes in (1, 2, 3)],
        *[("a.jsonl", processes, 100_000) for processes in (1, 2, 3)],
        ("a.jsonl.gz", 2, 20_000),
        ("a.jsonl.zst", 2, 20_000),
    ],
)
def test_results_and_problems_are_those_of_serial_reading(
    tmp_path, monkeypatch, name, processes, size
):
    """Records and their order, counts, first kinds, lines and remarks: all the same."""
    chunks_of(monkeypatch, size)
    monkeypatch.setattr(line_readers, "LONGEST_RECORD", 500)  # some lines are longer
    path = random_file(tmp_path / name, seed=size, lines=200 if size == 10 else 7000)
    expected, found, steps = Problems(), Problems(), []
    texts = in_order(path, expected)
    made = work_through(
        path,
        as_texts,
        found,
        steps.append,
        wanted=FIELDS,
        processes=processes,
        on_bad_record="skip",
    )
    assert [pair for chunk in made for pair in chunk] == texts
    assert told(found) == told(expected)
    assert sum(steps) == path.stat().st_size and min(steps) >= 0
    assert size == 10 or (found.num_not_shown and len(texts) > 1000)
    assert size == 10 or "and 981 more fields" in found.lines()[-2]  # more names than are kept


def test_line_ends_of_windows_and_json_of_lines(tmp_path, monkeypatch):
    """CRLF, and a .json that holds a record a line, are cut like any other."""
    chunks_of(monkeypatch, 500)
    for path, end in ((tmp_path / "a.jsonl", b"\r\n"), (tmp_path / "b.json", b"\n")):
        random_file(path, seed=5, end=end)
        if path.suffix == ".json":
            record = {"messages": [{"role": "user", "content": "q"}]}
            path.write_bytes((json.dumps(record).encode() + b"\n") * 2 + path.read_bytes()[3:])
        expected, found = Problems(), Problems()
        texts = in_order(path, expected)
        made = [*work_through(path, as_texts, found, processes=2, on_bad_record="skip")]
        assert [pair for chunk in made for pair in chunk] == texts and len(made) > 10
        assert told(found) == told(expected)


TALKS = [
    [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}" * (i % 9)}]
    for i in range(700)
]


def as_json(path: Path):
    path.write_text(json.dumps([{"messages": talk, "n": 1} for talk in TALKS] + [3, {}]))


def as_csv(path: Path):
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["messages", "n"])
        for i, talk in enumerate(TALKS):
            rows.writerow([json.dumps(talk), 1])
            if i % 5 == 0:  # bad for the reader, before and after what is bad for its consumer
                rows.writerow(["x"] * (3 + i % 15))


def as_parquet(path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"messages": TALKS, "n": [1] * len(TALKS)}), path)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("write", [as_json, as_csv, as_parquet])
def test_other_formats_are_read_by_the_parent(tmp_path, monkeypatch, write, processes):
    """json lists, csv and parquet give the same records and problems as serially."""
    chunks_of(monkeypatch, 2000)
    path = tmp_path / write.__name__.replace("as_", "a.")
    write(path)
    expected, found, steps = Problems(), Problems(), []
    texts = in_order(path, expected)
    made = [
        *work_through(
            path, as_texts, found, steps.append, wanted=FIELDS, processes=processes,
            on_bad_record="skip",
        )
    ]  # fmt: skip
    assert [pair for chunk in made for pair in chunk] == texts and len(made) > 5
    assert told(found) == told(expected) and found.count > 50
    assert sum(steps) == path.stat().st_size


# lines of all lengths around the limit, also without an end
pieces = st.lists(
    st.sampled_from(
        [b"{}", b"\n", b"\n\n", b"x", b'{"a": 1}\n', b"y" * 9, b"z" * 25, b" ", b"\r\n"]
    ),
    max_size=40,
)


@settings(max_examples=500, deadline=None)
@given(pieces.map(b"".join), st.integers(1, 60), st.sampled_from([8, 9, 10, 20, 1000]))
def test_any_bytes_are_cut_at_line_ends(content, size, longest):
    """However long lines and chunks are: the same records and problems as of the whole stream."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_readers, "LONGEST_RECORD", longest)
        expected, found = Problems(99), Problems(99)
        whole = list(read_jsonl(Path("f"), io.BytesIO(content), expected))
        parts = list(cut_at_lines(io.BufferedReader(io.BytesIO(content)), size))
        records = [
            record
            for lines, number in parts
            for record in read_jsonl(Path("f"), io.BytesIO(lines), found, number)
        ]
    assert records == whole and told(found) == told(expected)
    assert all(len(lines) <= longest + 2 * size + 1 for lines, _ in parts)  # memory is bounded


@pytest.mark.parametrize(
    ("name", "content", "mode"),
    [
        ("a.jsonl", b"", "stop"),
        ("a.jsonl", b"\n\n", "skip"),
        ("a.csv", b"", "stop"),
        ("a.jsonl", b"x\ny\n", "skip"),
        ("a.jsonl", b'{"text": "a"}\n' * 9, "skip"),  # only the job finds them bad
        ("a.jsonl.gz", gzip.compress(b'{"messages": 1}\n' * 9000)[:-9], "stop"),
        ("a.json", b'[{"a": 1},', "stop"),
        ("a.jsonl", "text".encode("utf-16"), "stop"),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_that_cannot_be_used_is_the_same_error(
    tmp_path, monkeypatch, name, content, mode, processes
):
    """Empty, all bad, cut off, broken: the ValueError of serial reading, with the flag."""
    chunks_of(monkeypatch, 30)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError) as expected:
        list(read_conversations(path, mode, flag="--val"))
    with pytest.raises(ValueError) as found:
        list(
            work_through(
                path, as_texts, Problems(), flag="--val", processes=processes, on_bad_record=mode
            )
        )
    assert str(found.value) == str(expected.value) and not isinstance(found.value, DataError)


def test_stopping_is_left_to_the_caller(tmp_path):
    """With "stop" the problems of all files are collected, and nothing is raised for them here."""
    paths = [random_file(tmp_path / f"{i}.jsonl", seed=i) for i in range(3)]
    problems = Problems()
    for path in paths:
        list(work_through(path, as_texts, problems, wanted=FIELDS))
    with pytest.raises(DataError) as found:
        problems.raise_if_any()
    with pytest.raises(DataError) as expected:
        list(read_conversations(paths))
    assert str(found.value) == str(expected.value)


def test_wrong_paths_are_errors_at_the_call(tmp_path):
    """Before anything is read, as with `read_records`."""
    with pytest.raises(ValueError, match="--val: no such file"):
        work_through(tmp_path / "none.jsonl", as_texts, Problems(), flag="--val")
    with pytest.raises(ValueError, match="--on_bad_record"):
        work_through(random_file(tmp_path / "a.jsonl", 0), as_texts, Problems(), on_bad_record="x")


def lines_of(records, problems) -> list[int]:
    return [record.line for record in records]


def numbered(path: Path, count: int = 2000) -> Path:
    path.write_text("".join(f'{{"n": {i}}}\n' for i in range(1, count + 1)))
    return path


def test_processes_that_are_spawned_give_the_same(tmp_path, monkeypatch, tiny_tokenizer):
    """Where there is no fork: the job, its tokenizer too, goes to the workers and results back."""
    chunks_of(monkeypatch, 3000)
    path = random_file(tmp_path / "a.jsonl", seed=1)
    made = []
    for processes, method in ((1, "fork"), (2, "spawn")):
        monkeypatch.setattr(record_chunks, "START_METHOD", method)
        problems = Problems()
        chunks = [*work_through(path, ConversationJob(tiny_tokenizer), problems,
                                processes=processes, on_bad_record="skip")]  # fmt: skip
        arrays = [[part.tolist() for part in chunk[:7]] + [*chunk[7:]] for chunk in chunks]
        made.append((arrays, told(problems)))
    assert made[0] == made[1] and len(made[0][0]) > 5


def killed(records, problems):
    for record in records:
        if record.line == 1000:
            os.kill(os.getpid(), signal.SIGKILL)


@linux_only
def test_a_worker_that_is_killed_is_one_clear_error(tmp_path, monkeypatch):
    """Most likely for lack of memory: the error names the file, and no process is left."""
    chunks_of(monkeypatch, 500)
    path = numbered(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"--data_path: .*a\.jsonl was killed.*memory") as error:
        list(work_through(path, killed, Problems(), processes=2))
    assert "\n" not in str(error.value)
    assert not multiprocessing.active_children()


def test_a_consumer_may_stop_early(tmp_path, monkeypatch):
    """Closing the generator, or an exception in the loop over it, leaves no process behind."""
    chunks_of(monkeypatch, 200)
    path = numbered(tmp_path / "a.jsonl")
    results = work_through(path, lines_of, Problems(), processes=2)
    assert next(results)[0] == 1 and multiprocessing.active_children()
    results.close()
    assert not multiprocessing.active_children()

    def consume():
        for _ in work_through(path, lines_of, Problems(), processes=2):
            raise KeyError

    with pytest.raises(KeyError):
        consume()
    assert not multiprocessing.active_children()


def failing(records, problems):
    for record in records:
        if record.line in (700, 1500):
            raise ValueError(f"line {record.line}")
    return []


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_first_error_of_a_job_is_raised(tmp_path, monkeypatch, processes):
    """That of the earlier record, also before a file that is damaged further on."""
    chunks_of(monkeypatch, 500)
    path = tmp_path / "a.jsonl.gz"
    lines = numbered(tmp_path / "a.jsonl", 200_000).read_bytes()  # more than is read at once
    path.write_bytes(gzip.compress(lines, 1)[:-9])
    with pytest.raises(ValueError, match=r"^line 700$"):
        list(work_through(path, failing, Problems(), processes=processes))


@pytest.mark.parametrize("processes", [1, 2])
def test_reading_is_not_far_ahead(tmp_path, monkeypatch, processes):
    """A slow consumer holds the reader back: memory does not grow with the file."""
    chunks_of(monkeypatch, 100)
    path = numbered(tmp_path / "a.jsonl")
    taken = []
    original = record_chunks._chunks
    monkeypatch.setattr(
        record_chunks, "_chunks", lambda *a: (taken.append(1) or chunk for chunk in original(*a))
    )
    results = work_through(path, lines_of, Problems(), processes=processes)
    for count in range(1, 20):
        next(results)
        assert len(taken) <= count + record_chunks.CHUNKS_AHEAD * processes
    results.close()


def signals(records, problems):
    list(records)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return [handlers == [signal.SIG_IGN, signal.SIG_DFL], os.environ["TOKENIZERS_PARALLELISM"]]


def test_workers_leave_signals_to_their_parent(tmp_path, monkeypatch):
    """Ctrl-C is ignored, SIGTERM ends them, whatever the parent has set; its own stays so."""
    chunks_of(monkeypatch, 5000)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        path = numbered(tmp_path / "a.jsonl")
        assert {*map(tuple, work_through(path, signals, Problems(), processes=2))} == {
            (True, "false")
        }
        assert callable(signal.getsignal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "TOKENIZERS_PARALLELISM" not in os.environ


ORPHANS = r"""
import os, sys, time
sys.path.insert(0, sys.argv[1])
from dataset import record_chunks
from dataset.records import Problems

def sleeps(records, problems):
    os.write(1, f"{os.getpid()}\n".encode())  # in one piece
    time.sleep(100)

if __name__ == "__main__":
    record_chunks.CHUNK_BYTES = 100
    list(record_chunks.work_through(sys.argv[2], sleeps, Problems(), processes=2))
"""


@linux_only
def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path):
    """Not even after SIGKILL, which nobody can handle."""
    (tmp_path / "run.py").write_text(ORPHANS)
    command = [sys.executable, tmp_path / "run.py", ROOT, numbered(tmp_path / "a.jsonl")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
        parent.stdout.close()
    for _ in range(200):
        if not any(is_running(worker) for worker in workers):
            return
        time.sleep(0.1)
    raise AssertionError(f"{workers} are still there")


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"  # a zombie only waits for its new parent


def test_small_files_need_no_process(tmp_path, monkeypatch):
    """They are worked on by this one, through the same code."""
    monkeypatch.setattr(record_chunks, "ProcessPoolExecutor", None)
    path = random_file(tmp_path / "a.jsonl", seed=3)
    expected = [record.line for record in read_records(path, "skip")]
    made = work_through(path, lines_of, Problems(), processes=2, on_bad_record="skip")
    assert [line for chunk in made for line in chunk] == expected


finding = st.tuples(st.sampled_from(["bad", "not used", "read as"]), st.integers(0, 9))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(finding, max_size=30), max_size=4))
def test_what_parts_of_a_file_tell_is_merged_as_if_told_at_once(parts):
    """First kinds, names that are kept apart and their order, however the file was cut."""

    def tell(problems: Problems, line: int, what: str, number: int):
        remarks = Remarks()
        if what == "bad":
            problems.add(f"file {number % 2}", line, "this", f"that {number}")
        elif what == "not used":
            remarks.count_not_used(f"name {number}")
        else:
            remarks.read_as[f"texts {number}"] += 1
        problems.remarks_of("file 0").add(remarks)

    at_once, merged, line = Problems(3, 4), Problems(3, 4), 0
    for part in parts:
        found = all_problems()
        for what, number in part:
            line += 1
            tell(at_once, line, what, number)
            tell(found, line, what, number)
        merged.merge(found)
    assert told(merged) == told(at_once)


def test_a_name_stays_known_in_parts_with_many_others():
    """Where more names come than are kept apart, those of earlier parts are counted on."""
    at_once, merged = Problems(), Problems()
    for names in (["known"], [*map(str, range(1200)), "known"]):
        found = all_problems()
        for problems in (at_once, found):
            for name in names:
                problems.remarks_of("file").count_not_used(name)
        merged.merge(found)
    assert told(merged) == told(at_once)
    assert merged.remarks_of("file").not_used["known"] == 2
