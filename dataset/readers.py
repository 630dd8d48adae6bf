"""Data files in, records out: jsonl, json, txt, csv, parquet and Arrow, one record at a time.

Every record knows the file and line it came from, every bad record is counted and named, and
nothing is left out silently. jsonl, json, txt and csv may be compressed (`.jsonl.gz`,
`.jsonl.zst`). A folder that `datasets` wrote with `save_to_disk` is read like one file. Memory
stays flat whatever the size of the file. docs/data.md shows the formats.

The line of a record is its line in jsonl and txt, its row in csv (the header is row 1), parquet and
Arrow (the first row is row 1), and its place in the list, from 1, in json.
"""

import gzip
import io
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dataset.line_readers import holds_json_lines, read_json_list, read_jsonl, read_txt
from dataset.records import (
    Problems,
    Progress,
    Record,
    kind_of,
    names_in,
    nearest,
    says_something,
)
from dataset.table_readers import files_of, read_columns, read_csv
from model.json_file import shown

EXTENSIONS = (".jsonl", ".json", ".txt", ".csv", ".parquet", ".arrow")
COMPRESSED = (".gz", ".zst")  # not parquet and Arrow, which are compressed inside
UTF8_BOM = b"\xef\xbb\xbf"

Paths = str | Path | Iterable[str | Path]


def read_records(
    paths: Paths,
    on_bad_record: str = "stop",
    problems: Problems | None = None,
    progress: Progress | None = None,
    flag: str = "--data_path",
    wanted: Collection[str] | None = None,
) -> Iterator[Record]:
    """Yield the records of one or several files, in order.

    A bad record (broken JSON, not an object, a key twice, invalid UTF-8, lone surrogates, a csv row
    with the wrong number of columns, a value in a column of Arrow that cannot be read) is added to
    `problems` and left out. With `on_bad_record="stop"` reading goes on to the end to count them
    all and then raises one DataError; with `"skip"` it only counts.

    wanted  the fields that will be looked at (None: all): other columns of parquet and Arrow files
            are not converted

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
    return _read_all(paths, on_bad_record, problems, progress, flag, wanted)


def read_texts(
    paths: Paths,
    on_bad_record: str = "stop",
    problems: Problems | None = None,
    progress: Progress | None = None,
    flag: str = "--data_path",
    text_field: str = "text",
) -> Iterator[tuple[str, Record]]:
    """Yield (text, record) for pretraining: one field of every record of `read_records`.

    A text that is missing, not a string, blank or impossible to write as UTF-8 is a bad record.
    Fields beside it are counted in `problems.remarks`. Raises what `read_records` raises.
    """
    problems = Problems() if problems is None else problems
    # The call stays outside the generator so that a wrong path is reported before anything is read.
    records = read_records(paths, on_bad_record, problems, progress, flag, (text_field,))
    return texts_of(records, problems, text_field)


def texts_of(
    records: Iterable[Record], problems: Problems, text_field: str
) -> Iterator[tuple[str, Record]]:
    """(text, record) of the records that hold a text; the others are problems."""
    name, path = text_field, None
    for record in records:
        if record.path != path:
            path = record.path
            name = "text" if format_of(path) == ".txt" else text_field  # a txt file has no fields
            remarks = problems.remarks_of(path)
        text = record.fields.get(name)
        if isinstance(text, str) and text and not text.isspace():
            for other, value in record.fields.items():
                if other != name and says_something(value):
                    remarks.count_not_used(other)
            for other in record.unread:
                remarks.count_not_used(other)
            yield text, record
        elif name not in record.fields:
            close = shown(nearest(name, record.names), 40)
            got = names_in(record.names) + (f"; did you mean --text_field {close}?" * bool(close))
            problems.add(path, record.line, f'a field "{name}"', got)
        elif isinstance(text, str):
            problems.add(path, record.line, f'text in the field "{name}"', "an empty string")
        else:
            problems.add(path, record.line, f'a string in the field "{name}"', kind_of(text))


def format_of(path: str | Path) -> str:
    """The format a file is read as, from its name: ".jsonl", ".json", ".txt", …, ".arrow".

    Empty when the name has none of these. A trailing ".gz" or ".zst" is ignored, except for
    parquet and Arrow. A folder is one of Arrow files.
    """
    if Path(path).is_dir():
        return ".arrow"
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    is_compressed = suffixes[-1:] in ([".gz"], [".zst"])
    extension = "".join(suffixes[:-1][-1:] if is_compressed else suffixes[-1:])
    if extension not in EXTENSIONS or (extension in (".parquet", ".arrow") and is_compressed):
        return ""
    return extension


def check_path(path: str | Path, flag: str = "--data_path") -> Path:
    """The path of data; ValueError unless it is a file with a known extension or a saved folder."""
    path = Path(path)
    if path.is_dir():
        if (path / "dataset_dict.json").is_file():
            splits = ", ".join(sorted(str(state.parent) for state in path.glob("*/state.json")))
            raise ValueError(f"{flag}: expected one split of a data set, got {path}; has {splits}")
        if not (path / "state.json").is_file():
            raise ValueError(f"{flag}: expected a data file, got the folder {path}")
        files_of(path)
        return path
    if not path.is_file():
        raise ValueError(f"{flag}: no such file: {path}")
    if not format_of(path):
        raise ValueError(
            f"{flag}: expected a file ending in {', '.join(EXTENSIONS)} (all but .parquet and "
            f".arrow also with .gz or .zst), got {path}"
        )
    return path


def _read_all(
    paths: list[Path],
    on_bad_record: str,
    problems: Problems,
    progress: Progress | None,
    flag: str,
    wanted: Collection[str] | None,
) -> Iterator[Record]:
    for path in paths:
        tally, count_before = Tally(), problems.count
        yield from tally.counted(records_of(path, problems, progress, wanted), problems)
        tally.check(path, problems.count - count_before, on_bad_record, flag)
    if on_bad_record == "stop":
        problems.raise_if_any()


@dataclass
class Tally:
    """Counts the records of one file as somebody takes them.

    num_records  those that could be read
    num_good     … and that whoever took them found nothing wrong with
    """

    num_records: int = 0
    num_good: int = 0

    def counted(self, records: Iterable[Record], problems: Problems) -> Iterator[Record]:
        """The records, counted as they pass."""
        for record in records:
            self.num_records += 1
            before = problems.count
            yield record
            self.num_good += problems.count == before

    def add(self, other: "Tally") -> None:
        """Add the counts of another part of the file."""
        self.num_records += other.num_records
        self.num_good += other.num_good

    def check(self, path: Path, num_bad: int, on_bad_record: str, flag: str) -> None:
        """ValueError for a file without records, or of which nothing is left after skipping."""
        if self.num_records == 0 and num_bad == 0:
            raise ValueError(f"{flag}: expected at least one record, got the empty file {path}")
        if self.num_good == 0 and on_bad_record == "skip":
            raise ValueError(
                f"{flag}: no usable record in {path}: all {num_bad} are bad; "
                f"--on_bad_record stop names them"
            )


def records_of(
    path: Path, problems: Problems, progress: Progress | None, wanted: Collection[str] | None
) -> Iterator[Record]:
    """The records of one file, which `check_path` knows."""
    read = {".jsonl": read_jsonl, ".json": read_json_list, ".txt": read_txt, ".csv": read_csv}
    if format_of(path) in (".parquet", ".arrow"):
        return read_columns(path, problems, progress, wanted)
    return _read_file(path, read[layout_of(path)], problems, progress)


def layout_of(path: Path) -> str:
    """`format_of` a file that is there; ".jsonl" for a .json that holds one object on every line.

    Raises ValueError for a damaged file.
    """
    if format_of(path) != ".json":
        return format_of(path)
    with opened(path) as (stream, _):
        return ".jsonl" if holds_json_lines(stream) else ".json"


def _read_file(
    path: Path, read: Callable, problems: Problems, progress: Progress | None
) -> Iterator[Record]:
    """Open a file and hand its bytes to `read`."""
    with opened(path) as (stream, raw):
        reported = 0
        for record in read(path, stream, problems):
            yield record
            # The place in the file on disk: compressed bytes, so that a bar ends at its size.
            if progress is not None and (position := raw.tell()) > reported:
                progress(position - reported)
                reported = position
        if progress is not None:
            progress(path.stat().st_size - reported)


@contextmanager
def opened(path: Path) -> Iterator[tuple[io.BufferedReader, io.RawIOBase]]:
    """(stream, the file on disk): the stream is decompressed and stands behind a byte-order mark.

    What turns out to be damaged while the stream is read becomes a ValueError with the path.
    """
    with open(path, "rb", buffering=0) as raw:
        try:
            stream = io.BufferedReader(_decompressed(path, raw), 1 << 20)
            start = stream.peek(3)
            if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise ValueError(f"{path}: expected UTF-8, got UTF-16; save the file as UTF-8")
            if start[:3] == UTF8_BOM:
                stream.read(3)
            yield stream, raw
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: expected a complete gzip file, got: {error}") from None
        except OSError as error:
            if path.suffix.lower() != ".zst":
                raise
            raise ValueError(f"{path}: expected a complete zstd file, got: {error}") from None


def _decompressed(path: Path, raw: io.RawIOBase) -> io.RawIOBase:
    if path.suffix.lower() == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if path.suffix.lower() == ".zst":
        try:
            import pyarrow  # reads zstd, and notices when a file is cut off
        except ImportError:
            raise ValueError(f"reading {path} needs pyarrow: pip install pyarrow") from None
        return pyarrow.CompressedInputStream(raw, "zstd")
    return raw
