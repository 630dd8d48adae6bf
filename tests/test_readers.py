"""Every format gives the same records, and every mistake in the data is named with its place."""

import csv
import gzip
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.conversations import read_conversations
from dataset.readers import format_of, read_records, read_texts
from dataset.records import DataError, Problems

TEXTS = [
    "One line.",
    "Two\nlines, and a comma",
    '"quotes"',
    "中文。\r\n第二行",
    "\u2028 \x0b odd",
    "z",
]
JSONL = "".join(json.dumps({"text": text, "n": "1"}) + "\n" for text in TEXTS).encode()


def as_json() -> bytes:
    return json.dumps([{"text": text, "n": "1"} for text in TEXTS], ensure_ascii=False).encode()


def as_csv() -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerows([["text", "n"], *[[text, "1"] for text in TEXTS]])
    return out.getvalue().encode()


def as_parquet() -> bytes:
    import pyarrow
    from pyarrow import parquet

    out = io.BytesIO()
    table = pyarrow.table({"text": TEXTS, "n": ["1"] * len(TEXTS)})
    parquet.write_table(table, out, row_group_size=2)
    return out.getvalue()


def write(tmp_path, name: str, content: bytes):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.csv", "a.csv.gz", "a.parquet"]
)
@pytest.mark.parametrize("bom", [False, True])
def test_every_format_gives_the_same_records(tmp_path, name, bom):
    """json, csv, parquet and gzip give what jsonl gives, with or without a byte-order mark."""
    make = {"json": as_json, "csv": as_csv, "parquet": as_parquet, "jsonl": lambda: JSONL}
    content = make[name.split(".")[1]]()
    if bom and "parquet" not in name:
        content = b"\xef\xbb\xbf" + content
    path = write(tmp_path, name, content)
    steps = []
    records = list(read_records(path, progress=steps.append))
    assert [record.fields for record in records] == [{"text": t, "n": "1"} for t in TEXTS]
    first = 2 if "csv" in name else 1
    assert [record.line for record in records] == list(range(first, first + len(TEXTS)))
    assert {record.path for record in records} == {str(path)}
    assert sum(steps) == path.stat().st_size
    assert [text for text, _ in read_texts([path, path])] == TEXTS * 2


def test_blank_lines_are_allowed_and_lines_are_counted(tmp_path):
    """Blank lines in jsonl are ignored, and the records after them keep their line numbers."""
    path = write(tmp_path, "a.jsonl", b'\n{"text": "a"}\r\n  \n\n{"text": "b"}')
    assert [(text, record.line) for text, record in read_texts(path)] == [("a", 2), ("b", 5)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_record_without_end_is_a_bad_one(tmp_path, monkeypatch, name):
    """A line or cell over the bound is counted and passed over; memory follows the bound."""
    monkeypatch.setattr("dataset.line_readers.LONGEST_RECORD", 100)
    if name == "a.jsonl":
        lines = [json.dumps({"text": "x" * n}) for n in (87, 88, 5000, 1)]
    else:
        lines = ["text", "x" * 100, "x" * 101, "x" * 5000, "x"]
    problems = Problems()
    path = write(tmp_path, name, "\n".join(lines).encode())
    texts = [text for text, _ in read_texts(path, "skip", problems)]
    assert sorted(map(len, texts)) == [1, 87 if name == "a.jsonl" else 100]
    line = 2 if name == "a.jsonl" else 3
    assert problems.count == 2 and problems.first[0].startswith(f"{path}:{line}: expected ")


def test_nan_is_read_as_python_reads_it(tmp_path):
    """NaN and Infinity beside a text are not mistakes."""
    path = write(tmp_path, "a.jsonl", b'{"x": NaN, "y": -Infinity, "text": "a"}')
    assert [text for text, _ in read_texts(path)] == ["a"]


BAD_LINES = {
    b'{"text": "a"': ("one JSON object", "broken JSON"),
    b'{"text": "a"} x': ("one JSON object", "broken JSON"),
    b'["a"]': ("a JSON object", "a list"),
    b"7": ("a JSON object", "a number"),
    b"null": ("a JSON object", "null"),
    b'{"text": "\xff"}': ("UTF-8", "0xff"),
    b'{"text": "\xed\xa0\x80"}': ("UTF-8", "0xed"),
    b'{"text": "\\ud800"}': ("UTF-8", "surrogate"),
    b'{"text": "a", "more": ["\\uDC00 a"]}': ("UTF-8", "surrogate"),
    b'{"text": ' + b"[" * 200_000 + b"}": ("one JSON object", "nested too deeply"),
    b'{"text": ' + b"9" * 5000 + b"}": ("one JSON object", "digits"),
    b'{"txt": "a"}': ('a field "text"', "'txt'"),
    b'{"text": "b", "text": "a"}': ("every key once", "the key 'text' twice"),
    b'{"text": "b", "meta": [{"k": 1, "k": 1}]}': ("every key once", "the key 'k' twice"),
    b"{}": ('a field "text"', "none"),
    b'{"text": ""}': ("text in", "an empty string"),
    b'{"text": " \\n"}': ("text in", "an empty string"),
    b'{"text": null}': ("a string", "null"),
    b'{"text": ["a"]}': ("a string", "a list"),
    b'{"text": true}': ("a string", "true or false"),
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:30].decode("latin-1"))
def test_a_bad_line_is_named(tmp_path, line):
    """Stop: one DataError with file, line, what was expected and what came. Skip: counted."""
    expected, got = BAD_LINES[line]
    path = write(tmp_path, "a.jsonl", b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    with pytest.raises(DataError) as error:
        list(read_texts(path))
    head, place = str(error.value).split("\n")
    assert head == "1 bad record; fix the data or, in training, pass --on_bad_record skip:"
    assert place.startswith(f"{path}:2: expected ") and len(place) < 300 + len(str(path))
    assert expected in place and got in place.split(", got ")[1]

    problems = Problems()
    texts = [text for text, _ in read_texts(path, on_bad_record="skip", problems=problems)]
    assert texts == ["a", "b"] and problems.count == 1 and problems.first == [place]


def test_an_escaped_pair_of_surrogates_is_a_character(tmp_path):
    r"""\ud83d\ude00 is a smiley, not a mistake, and so is a backslash before the letters ud800."""
    path = write(tmp_path, "a.jsonl", b'{"text": "\\ud83d\\ude00"}\n{"text": "\\\\ud800"}')
    assert [text for text, _ in read_texts(path)] == ["😀", "\\ud800"]


def test_all_problems_are_counted_and_ten_kinds_are_shown(tmp_path):
    """The error counts the bad records of all files and names the first ten kinds of them."""
    bad = "".join(json.dumps({f"field{i}": 1}) + "\n" for i in range(7)).encode()
    one = write(tmp_path, "a.jsonl", b'{"text": "a"}\n' + bad)
    two = write(tmp_path, "b.jsonl", b'{"text": "a"}\n' + bad + bad)
    with pytest.raises(DataError) as error:
        list(read_texts([one, two]))
    lines = str(error.value).split("\n")
    assert lines[0].startswith("21 bad records") and lines[0].endswith("The first 10 kinds:")
    assert len(lines) == 11
    places = [f"{one}:{i}" for i in range(2, 9)] + [f"{two}:{i}" for i in range(2, 5)]
    assert [line.split(": expected")[0] for line in lines[1:]] == places
    assert lines[7].endswith("the fields 'field6'")
    assert lines[8].endswith("the fields 'field0' (2 such records, the last in line 9)")


def test_equal_problems_are_one_line_with_a_count(tmp_path):
    """Ten thousand lines of one fault are one line; another file has a line of its own."""
    one = write(tmp_path, "a.jsonl", b'{"txt": "a"}\n' * 10_000)
    two = write(tmp_path, "b.jsonl", b'{"txt": "a"}\n')
    with pytest.raises(DataError) as error:
        list(read_texts([one, two]))
    head, first, second = str(error.value).split("\n")
    assert head.startswith("10001 bad records") and head.endswith("skip:")
    assert first.startswith(f"{one}:1: expected ") and "--text_field txt" in first
    assert first.endswith("(10,000 such records, the last in line 10000)")
    assert second.startswith(f"{two}:1: expected ") and "such records" not in second


def test_consumers_can_add_problems(tmp_path):
    """What a consumer finds wrong counts like what the reader finds wrong."""
    path = write(tmp_path, "a.jsonl", b'{"text": "a"}\nx\n')
    problems = Problems()
    with pytest.raises(DataError, match="2 bad records"):
        for record in read_records(path, problems=problems):
            problems.add(record.path, record.line, "more", "less")


NAMES = ["a.jsonl", "a.json", "a.txt", "a.csv", "a.csv.gz"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.parquet", b""), *[(name, blank) for name in NAMES for blank in (b"", b"\n\n")]],
)
def test_a_file_without_records_is_an_error(tmp_path, name, content):
    """An empty file is one line that names the path and the flag."""
    path = write(tmp_path, name, content)
    with pytest.raises(ValueError) as error:
        list(read_texts(path, flag="--val_data_path"))
    message = str(error.value)
    assert str(path) in message and "--val_data_path" in message and "\n" not in message


def test_wrong_paths_are_errors_before_anything_is_read(tmp_path):
    """Folder, missing file, unknown extension: one line with path and flag, at the call itself."""
    odd = write(tmp_path, "a.doc", b"x")
    gzipped_parquet = write(tmp_path, "a.parquet.gz", b"x")
    for path in (tmp_path, tmp_path / "none.jsonl", odd, gzipped_parquet):
        with pytest.raises(ValueError) as error:
            read_records([path])
        assert str(path) in str(error.value) and "--data_path" in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="--data_path"):
        read_records([])
    with pytest.raises(ValueError, match="--on_bad_record"):
        read_records(odd, on_bad_record="ignore")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b'[{"text": "a"},\n{"text": }]', ["a.json:2", "a JSON list", "column 10"]),
        ("a.json", b'{"text": "a"}', ["a JSON list", "an object", ".jsonl"]),
        ("a.json", b'{\n"a": "b"}\n{"a": "c"}', ["a JSON list", "Extra data", ".jsonl"]),
        ("a.json", b'{"train": [{"text": "a"}]}', ["a JSON list", "'train'"]),
        ("a.json", b'[\n"\xff"]', ["a.json:2", "UTF-8", "0xff"]),
        ("a.json", b"[" * 200_000, ["a JSON list", "recursion"]),
        ("a.jsonl", "text".encode("utf-16"), ["UTF-8", "UTF-16"]),
        ("a.parquet", b"PAR1 not really", ["complete parquet file"]),
        ("a.csv", b"text,text\na,b\n", ["a.csv:1", "different column names"]),
    ],
)
def test_a_damaged_file_is_an_error_also_when_skipping(tmp_path, name, content, words):
    """What makes a whole file unreadable is one line, whatever on_bad_record says."""
    path = write(tmp_path, name, content)
    for on_bad_record in ("stop", "skip"):
        with pytest.raises(ValueError) as error:
            list(read_records(path, on_bad_record))
        message = str(error.value)
        assert "\n" not in message and all(word in message for word in [str(path), *words])


def test_broken_gzip_files_are_errors(tmp_path):
    """A gzip file that is cut off, damaged or not one at all is named."""
    whole = gzip.compress(JSONL * 50)
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 0xFF
    for content in (whole[:-20], whole[: len(whole) // 2], bytes(damaged), JSONL):
        path = tmp_path / "a.jsonl.gz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.jsonl\.gz"):
            list(read_texts(path))


def test_skipping_everything_is_an_error(tmp_path):
    """Skip mode does not quietly train on nothing."""
    path = write(tmp_path, "a.jsonl", b"x\ny\n")
    with pytest.raises(ValueError, match=r"no usable record in .*a\.jsonl: all 2 are bad"):
        list(read_texts(path, on_bad_record="skip"))


def test_skipping_everything_that_a_consumer_refuses_is_an_error(tmp_path):
    """Records that are no conversations leave nothing to train on, either."""
    path = write(tmp_path, "a.jsonl", JSONL)
    with pytest.raises(ValueError, match=r"no usable record in .*a\.jsonl: all 6 are bad"):
        list(read_conversations(path, on_bad_record="skip"))
    with pytest.raises(ValueError, match=r"no usable record in .*a\.jsonl: all 6 are bad"):
        list(read_texts(path, on_bad_record="skip", text_field="content"))


def test_csv_rows_with_mistakes_are_named(tmp_path):
    """Wrong column counts, bytes that are not UTF-8 and open quotes are bad rows; others stay."""
    rows = [b"text,n", b"a,1", b"b", b"c,\xff", b"", b'"d"x,2', b"e,2", b'f,"open']
    path = write(tmp_path, "a.csv", b"\n".join(rows))
    problems = Problems()
    texts = [text for text, _ in read_texts(path, "skip", problems)]
    assert texts == ["a", "e"] and problems.count == 4
    assert [line.split(": ")[0].rsplit(":", 1)[1] for line in problems.first] == [
        "3",
        "4",
        "6",
        "8",
    ]


def test_csv_cells_may_be_long(tmp_path):
    """A cell may be longer than the 128 KB that Python's csv module allows by default."""
    path = write(tmp_path, "a.csv", b"text\n" + b"a" * 300_000 + b"\n")
    assert [len(text) for text, _ in read_texts(path)] == [300_000]


def test_parquet_values_keep_their_types(tmp_path):
    """Conversations in parquet arrive as lists of objects, as from JSON."""
    import pyarrow
    from pyarrow import parquet

    conversations = [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "你好"}]]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"conversations": conversations}), path)
    assert [r.fields["conversations"] for r in read_records(path)] == conversations


def test_parquet_rows_that_are_not_utf8_are_named(tmp_path):
    """A row with invalid UTF-8 is a bad record; its neighbours stay."""
    import pyarrow
    from pyarrow import parquet

    raw = pyarrow.array([b"a", b"\xff", b"c"])
    text = pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": text}), path)
    problems = Problems()
    assert [(t, r.line) for t, r in read_texts(path, "skip", problems)] == [("a", 1), ("c", 3)]
    assert problems.first == [f"{path}:2: expected UTF-8, got the byte 0xff"]


def test_a_long_text_is_cut_at_line_ends(tmp_path):
    """Documents of a txt file are about 16 KB, end at blank lines, and joined are the file."""
    paragraphs = [f"Paragraph {i}: " + "word " * 200 + "\nends here.\n\n" for i in range(100)]
    text = "".join(paragraphs)
    records = list(read_records(write(tmp_path, "a.txt", text.encode())))
    documents = [record.fields["text"] for record in records]
    assert "".join(documents) == text
    assert all(document.endswith("\n\n") for document in documents)
    assert all(8_000 <= len(document) <= 20_000 for document in documents[:-1])
    lines = text.split("\n")
    for record in records:
        assert lines[record.line - 1] == record.fields["text"].split("\n")[0]


def test_a_line_of_any_length_is_cut_between_characters(tmp_path, monkeypatch):
    """A txt file that is one endless line is read in pieces without breaking a character."""
    monkeypatch.setattr("dataset.line_readers.LONGEST_TEXT_LINE", 1000)
    text = "中文aé😀" * 5000
    documents = [text for text, _ in read_texts(write(tmp_path, "a.txt", text.encode()))]
    assert "".join(documents) == text and len(documents) > 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["word", "中", "\n", "\n\n", " ", "\r\n", "é" * 30]), max_size=60))
def test_no_character_of_a_txt_file_is_lost(tmp_path_factory, pieces):
    """Whatever the lines are, the documents joined are the file (up to a blank tail)."""
    text = "".join(pieces)
    if not text.strip():
        return
    path = write(tmp_path_factory.mktemp("txt"), "a.txt", text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataset.line_readers.TEXT_DOCUMENT_BYTES", 40)
        patch.setattr("dataset.line_readers.LONGEST_TEXT_LINE", 16)
        joined = "".join(document for document, _ in read_texts(path))
    assert text.startswith(joined) and not text[len(joined) :].strip()


def test_a_blank_beginning_does_not_stop_the_cutting(tmp_path):
    """After more blank lines than a document is long, the text is still cut into documents."""
    text = "\n" * 20_000 + "a line of text\n" * 10_000
    documents = [text for text, _ in read_texts(write(tmp_path, "a.txt", text.encode()))]
    assert "".join(documents) == text and max(map(len, documents)) < 40_000


def test_bad_bytes_in_a_txt_file_are_named(tmp_path):
    """A line of a txt file that is not UTF-8 is a bad record; the other lines stay."""
    path = write(tmp_path, "a.txt", b"one\ntw\xff\nthree\n")
    with pytest.raises(DataError, match=r"a\.txt:2: expected UTF-8, got the byte 0xff"):
        list(read_texts(path))
    assert [text for text, _ in read_texts(path, "skip")] == ["one\nthree\n"]


def test_the_format_comes_from_the_last_suffix():
    """Dots in a name do not matter, capital letters neither."""
    names = {"a.b.JSONL": ".jsonl", "a.txt.gz": ".txt", "a.gz": "", "json": "", "a.parquet.gz": ""}
    assert {name: format_of(name) for name in names} == names
