"""csv, parquet and Arrow files, whose records are rows of columns.

Only the columns that are asked for are converted: a date that Python cannot hold in another one
costs nothing. In structs Arrow fills the members that a row does not have with null; here they are
absent again.
"""

import csv
import io
import itertools
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dataset import line_readers
from dataset.records import Problems, Progress, Record, is_utf8
from model.json_file import read_json, shown

ROWS_TOGETHER = 256  # converted at a time


def read_csv(path: Path, stream: io.BufferedReader, problems: Problems) -> Iterator[Record]:
    """Rows under a header of column names. A row that is not like the header is a bad record.

    ValueError where a quote takes more than its own line with it: nobody knows how many rows were
    lost in it, nor whether what follows is inside or outside of quotes.
    """
    name = str(path)
    # The default limit, 128 KB a cell, is below the length of a long document.
    csv.field_size_limit(line_readers.LONGEST_RECORD)
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
        raise ValueError(f"{path}:1: expected different column names, got {shown(header)}")
    if len(header) == 1 and ("\t" in header[0] or ";" in header[0]):
        raise ValueError(f"{path}:1: expected commas between columns, got {shown(header[0], 60)!r}")
    for number in itertools.count(2):
        lines_before = rows.line_num
        try:
            row = next(rows, None)
        except csv.Error as error:
            if rows.line_num > lines_before + 1:
                raise ValueError(
                    f"{path}:{number}: expected a quote that is closed, got one that runs from "
                    f"line {lines_before + 1} to line {rows.line_num} ({error}); which rows are "
                    "in it cannot be known: close it, or double the quotes inside a cell"
                ) from None
            problems.add(name, number, "a row of comma-separated values", str(error))
            continue
        if row is None:
            return
        if not row:  # a blank line
            continue
        if len(row) != len(header):
            got = "1 column" if len(row) == 1 else f"{len(row)} columns"
            if rows.line_num > lines_before + 1:
                got += f", in a row from line {lines_before + 1} to line {rows.line_num}"
            problems.add(name, number, f"{len(header)} columns, as in the header", got)
        elif not all(map(is_utf8, row)):
            problems.add(name, number, "UTF-8", "bytes that are not UTF-8")
        else:
            yield Record(dict(zip(header, row)), name, number)


def read_columns(
    path: Path, problems: Problems, progress: Progress | None, wanted: Collection[str] | None
) -> Iterator[Record]:
    """The rows of a parquet or Arrow file, or of a folder of Arrow files that `datasets` saved.

    wanted  the columns to convert (None: all); the names of the others are in `Record.unread`
    """
    try:
        import pyarrow  # only here: other formats need not wait for its import
    except ImportError:
        raise ValueError(f"reading {path} needs pyarrow: pip install pyarrow") from None
    row = 0
    for file in files_of(path):
        size, reported, row_before = file.stat().st_size, 0, row
        if size == 0:
            continue
        kind = "parquet" if file.suffix.lower() == ".parquet" else "Arrow"
        try:
            with ExitStack() as stack:
                open_file = _open_parquet if kind == "parquet" else _open_arrow
                num_rows, names, batches = open_file(file, stack, wanted)
                if len(set(names)) < len(names):
                    got = shown([name for name in names if names.count(name) > 1])
                    raise ValueError(f"{path}: expected different column names, got {got}")
                used = [name for name in names if wanted is None or name in wanted]
                unread = tuple(name for name in names if name not in used)
                for batch in batches:
                    for fields in _rows(batch, used, kind == "Arrow"):
                        row += 1
                        if isinstance(fields, _Unreadable):
                            problems.add(str(path), row, fields.expected, fields.got)
                        else:
                            yield Record(fields, str(path), row, unread)
                    if progress is not None:
                        position = size * (row - row_before) // max(num_rows, row - row_before)
                        progress(position - reported)
                        reported = position
        except (pyarrow.ArrowException, OSError) as error:
            reason = shown(str(error).split("\n")[0])
            raise ValueError(f"{file}: expected a complete {kind} file, got: {reason}") from None
        if progress is not None:
            progress(size - reported)


def files_of(path: Path) -> list[Path]:
    """The files that a path stands for: itself, or those of a folder that `datasets` saved.

    ValueError if the folder's list of files is damaged or one of them is missing.
    """
    if not path.is_dir():
        return [path]
    state = read_json(path / "state.json")
    entries = state.get("_data_files")
    entries = entries if isinstance(entries, list) and entries else [None]
    names = [e.get("filename") if isinstance(e, dict) else None for e in entries]
    for name in names:
        # a name from a file is never followed out of its folder
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".arrow"):
            raise ValueError(f"{path}/state.json: expected .arrow files, got {shown(name)}")
        if not (path / name).is_file():
            raise ValueError(f"{path}: no such file: {name}, which state.json names")
    if state.get("_indices_data_files"):
        raise ValueError(f"{path}: expected rows in order; save it after flatten_indices()")
    return [path / name for name in names]


def _open_parquet(file: Path, stack: ExitStack, wanted: Collection[str] | None):
    """(rows, column names, batches with at least the wanted columns)."""
    from pyarrow import parquet

    # A row group may hold the whole file; buffered reading keeps only pages of it in memory.
    opened = stack.enter_context(parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20))
    names, num_rows = opened.schema_arrow.names, opened.metadata.num_rows
    used = [name for name in names if wanted is None or name in wanted]
    if names and not used:  # pyarrow would give no batch: the rows are there all the same
        batches = (range(min(ROWS_TOGETHER, num_rows - i))
                   for i in range(0, num_rows, ROWS_TOGETHER))  # fmt: skip
    else:
        batches = opened.iter_batches(batch_size=ROWS_TOGETHER, columns=used)
    return num_rows, names, batches


def _open_arrow(file: Path, stack: ExitStack, wanted: Collection[str] | None):
    """The same of an Arrow file, in the file format or in the stream format of `datasets`."""
    import pyarrow

    source = stack.enter_context(pyarrow.memory_map(str(file)))
    if source.read(6) == b"ARROW1":
        reader = pyarrow.ipc.open_file(source)
        whole = map(reader.get_batch, range(reader.num_record_batches))
    else:
        source.seek(0)
        reader = pyarrow.ipc.open_stream(source)
        whole = iter(reader)
    batches = (
        batch.slice(start, ROWS_TOGETHER)
        for batch in whole
        for start in range(0, batch.num_rows, ROWS_TOGETHER)
    )
    return 0, reader.schema.names, batches


@dataclass(frozen=True)
class _Unreadable:
    """Stands for a value, or a row, that cannot be converted."""

    expected: str
    got: str


def _rows(batch, used: list[str], check: bool) -> Iterator[dict | _Unreadable]:
    """The used columns of a batch, row by row."""
    if isinstance(batch, range):
        yield from ({} for _ in batch)
        return
    columns = [_values(batch.column(name), name, check) for name in used]
    for values in zip(*columns) if columns else itertools.repeat((), batch.num_rows):
        bad = next((value for value in values if isinstance(value, _Unreadable)), None)
        yield bad or dict(zip(used, values))


def _values(column, name: str, check: bool) -> list:
    """The values of an Arrow array, `_Unreadable` where one cannot be converted.

    check  look at its offsets first: an Arrow file is taken as it lies on the disk
    """
    try:
        if check:
            column.validate(full=True)
        values = column.to_pylist(maps_as_pydicts="strict")
    except Exception as error:  # of many types: not UTF-8, dates out of range, unknown time zones
        if len(column) > 1:
            return [v for i in range(len(column)) for v in _values(column.slice(i, 1), name, check)]
        if isinstance(error, UnicodeDecodeError):
            return [_Unreadable("UTF-8", f"the byte 0x{error.object[error.start]:02x}")]
        wanted = f"a value of {shown(name, 40)} that can be read"
        return [_Unreadable(wanted, shown(str(error).split("\n")[0], 100) or type(error).__name__)]
    return [_without_padding(value) for value in values]


def _without_padding(value: object) -> object:
    """The value without the members of structs that are null."""
    if isinstance(value, dict):
        return {name: _without_padding(v) for name, v in value.items() if v is not None}
    return [_without_padding(item) for item in value] if isinstance(value, list) else value
