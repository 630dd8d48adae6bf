"""Data files in, records out: jsonl, json, txt, csv and parquet, one record at a time.

Every record knows the file and line it came from, every bad record is counted and named, and
nothing is left out silently. jsonl, json, txt and csv may be gzipped (`.jsonl.gz`). Memory stays
flat whatever the size of the file: it follows the longest record, which is bounded. Only a `.json`
list is loaded whole.

The line of a record is its line in jsonl and txt, its row in csv (the header is row 1) and parquet
(the first row is row 1), and its place in the list, from 1, in json.
"""

import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

EXTENSIONS = (".jsonl", ".json", ".txt", ".csv", ".parquet")
TEXT_DOCUMENT_BYTES = 16 * 1024  # a txt file is cut into documents of about this size
LONGEST_TEXT_LINE = 1024 * 1024  # a longer line of a txt file is cut, so that memory stays flat
LONGEST_RECORD = 64 * 1024 * 1024  # bytes of a jsonl line or a csv cell; a longer one is bad
SHOWN_PROBLEMS = 10
UTF8_BOM = b"\xef\xbb\xbf"


class DataError(ValueError):
    """Bad records in data files; the message holds the first ten, one per line, and the count."""


@dataclass(frozen=True)
class Record:
    """One record of a data file, with the file and line to name in an error."""

    fields: dict
    path: str
    line: int


@dataclass
class Problems:
    """Counts bad records and keeps the words of the first ones (ten, unless told otherwise).

    Whoever consumes the records may add what it finds wrong with them: a reader in "stop" mode
    raises for these too when it reaches the end.
    """

    count: int = 0
    first: list[str] = field(default_factory=list)
    most_shown: int = SHOWN_PROBLEMS

    def add(self, path: str, line: int, expected: str, got: str) -> None:
        """Count one bad record: at `path:line` `expected` was wanted and `got` came."""
        self.count += 1
        if len(self.first) < self.most_shown:
            self.first.append(f"{path}:{line}: expected {expected}, got {got}")

    def raise_if_any(self) -> None:
        """Raise a DataError with the count and the first ten problems if there is any."""
        if self.count:
            records = "bad record" if self.count == 1 else "bad records"
            head = f"{self.count} {records}; fix the data or pass --on_bad_record skip"
            more = f". The first {len(self.first)}:" if self.count > len(self.first) else ":"
            raise DataError("\n".join([head + more, *self.first]))


Progress = Callable[[int], None]  # called with the number of bytes of the file read since last time
Paths = str | Path | Iterable[str | Path]


def read_records(
    paths: Paths,
    on_bad_record: str = "stop",
    problems: Problems | None = None,
    progress: Progress | None = None,
    flag: str = "--data_path",
) -> Iterator[Record]:
    """Yield the records of one or several files, in order.

    A bad record (broken JSON, not an object, invalid UTF-8, lone surrogates, a csv row with the
    wrong number of columns) is added to `problems` and left out. With `on_bad_record="stop"`
    reading goes on to the end to count them all and then raises one DataError; with `"skip"` it
    only counts.

    Raises ValueError, naming the path and `flag`, for a missing file, a folder, an unknown
    extension (all three at once, before anything is read), a damaged file or one without records.
    """
    if on_bad_record not in ("stop", "skip"):
        raise ValueError(f"--on_bad_record: expected 'stop' or 'skip', got {on_bad_record!r}")
    paths = [paths] if isinstance(paths, str | Path) else paths
    paths = [check_path(path, flag) for path in paths]
    if not paths:
        raise ValueError(f"{flag}: expected at least one data file, got none")
    problems = Problems() if problems is None else problems
    return _read_all(paths, on_bad_record, problems, progress, flag)


def read_texts(
    paths: Paths,
    on_bad_record: str = "stop",
    problems: Problems | None = None,
    progress: Progress | None = None,
    flag: str = "--data_path",
) -> Iterator[tuple[str, Record]]:
    """Yield (text, record) for pretraining: the field `text` of every record of `read_records`.

    A text that is missing, not a string, blank or impossible to write as UTF-8 is a bad record.
    Raises what `read_records` raises.
    """
    problems = Problems() if problems is None else problems
    # The call stays outside the generator so that a wrong path is reported before anything is read.
    return _texts_of(read_records(paths, on_bad_record, problems, progress, flag), problems)


def _texts_of(records: Iterator[Record], problems: Problems) -> Iterator[tuple[str, Record]]:
    for record in records:
        text = record.fields.get("text")
        if isinstance(text, str) and text and not text.isspace():
            yield text, record
        elif "text" not in record.fields:
            names = ", ".join(map(repr, list(record.fields)[:5])) or "none"
            problems.add(record.path, record.line, 'a field "text"', f"the fields {names}")
        elif isinstance(text, str):
            problems.add(record.path, record.line, 'text in the field "text"', "an empty string")
        else:
            problems.add(record.path, record.line, 'a string in the field "text"', kind_of(text))


def format_of(path: str | Path) -> str:
    """The format a file is read as, from its name: ".jsonl", ".json", ".txt", ".csv", ".parquet".

    Empty when the name has none of these. A trailing ".gz" is ignored, except for parquet, which
    is compressed inside.
    """
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    gzipped = suffixes[-1:] == [".gz"]
    extension = "".join(suffixes[:-1][-1:] if gzipped else suffixes[-1:])
    if extension not in EXTENSIONS or (extension == ".parquet" and gzipped):
        return ""
    return extension


def check_path(path: str | Path, flag: str = "--data_path") -> Path:
    """The path of a data file; ValueError unless it is a file with a known extension."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{flag}: expected a data file, got the folder {path}")
    if not path.is_file():
        raise ValueError(f"{flag}: no such file: {path}")
    if not format_of(path):
        raise ValueError(
            f"{flag}: expected a file ending in {', '.join(EXTENSIONS)} (all but .parquet also "
            f"with .gz), got {path}"
        )
    return path


def _read_all(
    paths: list[Path], on_bad_record: str, problems: Problems, progress: Progress | None, flag: str
) -> Iterator[Record]:
    read = {".jsonl": _read_jsonl, ".json": _read_json_list, ".txt": _read_txt, ".csv": _read_csv}
    for path in paths:
        count_before, num_records = problems.count, 0
        if format_of(path) == ".parquet":
            records = _read_parquet(path, problems, progress)
        else:
            records = _read_file(path, read[format_of(path)], problems, progress)
        for record in records:
            num_records += 1
            yield record
        if num_records == 0 and problems.count == count_before:
            raise ValueError(f"{flag}: expected at least one record, got the empty file {path}")
        if num_records == 0 and on_bad_record == "skip":
            raise ValueError(
                f"{flag}: no usable record in {path}: all {problems.count - count_before} are bad; "
                f"--on_bad_record stop names them"
            )
    if on_bad_record == "stop":
        problems.raise_if_any()


def _read_file(
    path: Path, read: Callable, problems: Problems, progress: Progress | None
) -> Iterator[Record]:
    """Open a file, through gzip when its name says so, and hand the bytes to `read`."""
    with open(path, "rb", buffering=0) as raw:
        gzipped = path.suffix.lower() == ".gz"
        stream = io.BufferedReader(gzip.GzipFile(fileobj=raw) if gzipped else raw, 1 << 20)
        reported = 0
        try:
            start = stream.peek(3)
            if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise ValueError(f"{path}: expected UTF-8, got UTF-16; save the file as UTF-8")
            if start[:3] == UTF8_BOM:
                stream.read(3)
            for record in read(path, stream, problems):
                yield record
                # The place in the file on disk: compressed bytes, so that a bar ends at its size.
                if progress is not None and (position := raw.tell()) > reported:
                    progress(position - reported)
                    reported = position
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: expected a complete gzip file, got: {error}") from None
        if progress is not None:
            progress(path.stat().st_size - reported)


def _read_jsonl(path: Path, stream: io.BufferedReader, problems: Problems) -> Iterator[Record]:
    name = str(path)
    number = 0
    while line := stream.readline(LONGEST_RECORD + 1):
        number += 1
        if len(line) > LONGEST_RECORD:
            got = f"more than {LONGEST_RECORD:,} bytes without a line end"
            problems.add(name, number, "one JSON object on the line", got)
            while line and not line.endswith(b"\n"):
                line = stream.readline(LONGEST_RECORD)
            continue
        if line.isspace():
            continue
        try:
            fields = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            problems.add(name, number, "UTF-8", f"the byte 0x{line[error.start]:02x}")
        except json.JSONDecodeError as error:
            got = f"broken JSON ({error.msg} at column {error.colno})"
            problems.add(name, number, "one JSON object on the line", got)
        except RecursionError:
            problems.add(name, number, "one JSON object on the line", "JSON nested too deeply")
        except ValueError as error:  # an integer with more digits than Python converts
            problems.add(name, number, "one JSON object on the line", f"JSON with {error}")
        else:
            # Only an escape such as \ud800 can make a lone surrogate here; few lines have one.
            suspicious = b"\\ud" in line or b"\\uD" in line
            if _is_good_object(fields, suspicious, name, number, problems):
                yield Record(fields, name, number)


def _read_json_list(path: Path, stream: io.BufferedReader, problems: Problems) -> Iterator[Record]:
    data = stream.read()
    if not data.strip():
        return
    # One mistake makes the whole list unreadable: an error, whatever on_bad_record says.
    hint = "name the file .jsonl if it has one object per line"
    try:
        items = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        place = f"{path}:{data.count(10, 0, error.start) + 1}"
        raise ValueError(f"{place}: expected UTF-8, got {data[error.start]:#04x}") from None
    except json.JSONDecodeError as error:
        got = f"broken JSON ({error.msg} at column {error.colno})"
        place = f"{path}:{error.lineno}"
        raise ValueError(f"{place}: expected a JSON list, got {got}; {hint}") from None
    except (RecursionError, ValueError) as error:  # too deep, or an integer of too many digits
        raise ValueError(f"{path}: expected a JSON list that can be read, got: {error}") from None
    if not isinstance(items, list):
        raise ValueError(f"{path}: expected a JSON list, got {kind_of(items)}; {hint}")
    suspicious = b"\\ud" in data or b"\\uD" in data
    for number, fields in enumerate(items, start=1):
        if _is_good_object(fields, suspicious, str(path), number, problems):
            yield Record(fields, str(path), number)


def _read_txt(path: Path, stream: io.BufferedReader, problems: Problems) -> Iterator[Record]:
    """Cut one long text at line ends; the documents joined are the file, byte for byte.

    A document ends at the last blank line of its second half, or, without one, at the first line
    end after TEXT_DOCUMENT_BYTES. Only a blank tail of the file is left out.
    """
    name = str(path)
    lines: list[str] = []  # of the document that is growing
    size, first_line = 0, 1  # its bytes, and the line of the file it starts on
    cut, cut_size = 0, 0  # the place after its last blank line: number of lines, bytes
    number, rest = 1, b""
    while line := rest + stream.readline(LONGEST_TEXT_LINE - len(rest)):
        rest = b""
        if not line.endswith(b"\n") and len(line) >= LONGEST_TEXT_LINE:
            line, rest = _split_at_character(line)
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            problems.add(name, number, "UTF-8", f"the byte 0x{line[error.start]:02x}")
            text = ""
        lines.append(text)
        size += len(line)
        number += line.endswith(b"\n")
        if line.isspace() and size >= TEXT_DOCUMENT_BYTES // 2:
            cut, cut_size = len(lines), size
        if size >= TEXT_DOCUMENT_BYTES:
            if cut == 0:
                cut, cut_size = len(lines), size
            document = "".join(lines[:cut])
            if document and not document.isspace():
                yield Record({"text": document}, name, first_line)
                lines, size = lines[cut:], size - cut_size
                first_line = number - sum(text.endswith("\n") for text in lines)
            cut, cut_size = 0, 0
    document = "".join(lines)
    if document and not document.isspace():
        yield Record({"text": document}, name, first_line)


def _split_at_character(line: bytes) -> tuple[bytes, bytes]:
    """Split off the last, perhaps incomplete, UTF-8 character of a line that was cut anywhere."""
    for length in range(1, 5):
        if line[-length] & 0xC0 != 0x80:  # not a continuation byte: a character starts here
            return line[:-length], line[-length:]
    return line, b""


def _read_csv(path: Path, stream: io.BufferedReader, problems: Problems) -> Iterator[Record]:
    name = str(path)
    # The default limit, 128 KB a cell, is below the length of a long document.
    csv.field_size_limit(LONGEST_RECORD)
    # Bytes that are not UTF-8 become lone surrogates here and are found below, row by row.
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
    rows = csv.reader(text, strict=True)
    try:
        header = next(rows, None)
    except csv.Error as error:
        raise ValueError(f"{path}:1: expected a row of column names, got: {error}") from None
    if header is None:
        return
    if len(set(header)) < len(header):
        raise ValueError(f"{path}:1: expected different column names, got {header}")
    for number in itertools.count(2):
        try:
            row = next(rows, None)
        except csv.Error as error:
            problems.add(name, number, "a row of comma-separated values", str(error))
            continue
        if row is None:
            return
        if not row:  # a blank line
            continue
        if len(row) != len(header):
            columns = "1 column" if len(row) == 1 else f"{len(row)} columns"
            problems.add(name, number, f"{len(header)} columns, as in the header", columns)
        elif not all(map(is_utf8, row)):
            problems.add(name, number, "UTF-8", "bytes that are not UTF-8")
        else:
            yield Record(dict(zip(header, row)), name, number)


def _read_parquet(path: Path, problems: Problems, progress: Progress | None) -> Iterator[Record]:
    try:
        import pyarrow  # only here: other formats need not wait for its import
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"reading {path} needs pyarrow: pip install pyarrow") from None
    size, reported, row = path.stat().st_size, 0, 0
    if size == 0:
        return
    try:
        # A row group may hold the whole file; buffered reading keeps only pages of it in memory.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            num_rows = max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=256):
                for fields in _parquet_rows(batch):
                    row += 1
                    if isinstance(fields, UnicodeDecodeError):
                        got = f"the byte 0x{fields.object[fields.start]:02x}"
                        problems.add(str(path), row, "UTF-8", got)
                    else:
                        yield Record(fields, str(path), row)
                if progress is not None:
                    progress((position := size * row // num_rows) - reported)
                    reported = position
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: expected a complete parquet file, got: {reason}") from None


def _parquet_rows(batch) -> list[dict | UnicodeDecodeError]:
    """The rows of an Arrow batch; where one is not UTF-8, the error in its place."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [error]
        return [row for i in range(batch.num_rows) for row in _parquet_rows(batch.slice(i, 1))]


def _is_good_object(fields, suspicious: bool, name: str, number: int, problems: Problems) -> bool:
    if not isinstance(fields, dict):
        problems.add(name, number, "a JSON object", kind_of(fields))
        return False
    if suspicious and not is_utf8(json.dumps(fields, ensure_ascii=False)):
        got = "a lone surrogate (\\ud800 to \\udfff)"
        problems.add(name, number, "text that UTF-8 can write", got)
        return False
    return True


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can write the text: lone surrogates it cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def kind_of(value: object) -> str:
    """What a JSON value is, for an error message."""
    kinds = {bool: "true or false", str: "a string", list: "a list", dict: "an object"}
    kinds |= {int: "a number", float: "a number", type(None): "null"}
    return kinds.get(type(value), f"a value of type {type(value).__name__}")
