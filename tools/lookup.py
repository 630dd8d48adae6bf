"""Looks names up in a user's table: a JSON object, or a CSV file of two columns with a header."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

from model.json_file import parse_json, read_bytes, shown

LARGEST_FILE = 16 << 20  # bytes
MOST_NAMES = 100_000
LONGEST_NAME = 200  # characters
LONGEST_VALUE = 2000  # characters, as JSON
MOST_NEAR = 5  # names shown where one is not there
NUMBER = re.compile(r"[-+$€£¥]{0,2}[0-9][0-9.,]*%?")


class Table:
    """Values by their names.

    values   dict from name to a JSON value
    columns  what its header calls names and values; None if it says no more than "name" and "value"
    """

    def __init__(self, values: dict[str, object], columns: tuple[str, str] | None = None):
        self.values, self.columns = values, columns
        self._any_case: dict[str, list[str]] = {}
        for name in values:
            self._any_case.setdefault(name.casefold(), []).append(name)

    def lookup(self, name: str) -> dict:
        """Look up a name in a table.

        name: as it stands in the table
        """
        stripped = name.strip()[: LONGEST_NAME + 1]
        if stripped in self.values:
            return {"result": self.values[stripped]}
        found = self._any_case.get(stripped.casefold(), [])
        if len(found) == 1:
            return {"result": self.values[found[0]]}
        if found:
            raise ValueError(f"expected one of {', '.join(found[:MOST_NEAR])} in their own case")
        near = self._near(stripped.casefold())
        told = f"; there are {', '.join(shown(known, 40) for known in near)}" if near else ""
        raise ValueError(f"no entry {shown(stripped, 40)!r} in the table{told}")

    def _near(self, name: str) -> list[str]:
        """Some names that hold a part of this one, or else the first of the table."""
        words = [word for word in name.split() if len(word) > 1][:3]
        near = [known for known in self.values if any(word in known.casefold() for word in words)]
        return (near or list(self.values))[:MOST_NEAR]


def load_table(path: str | Path) -> Table:
    """The table of a .json or a .csv file (UTF-8), for `tools.calls.table_tool`.

    The first row of a CSV file is a header, whatever its columns are called, and no entry. Raises
    ValueError with the path for another kind of file, more than LARGEST_FILE bytes or MOST_NAMES
    names, a header with a number as the second column, and names that are empty, too long or there
    twice.
    """
    path = Path(path)
    try:
        if path.suffix.lower() not in (".json", ".csv"):
            raise ValueError("expected a file that ends in .json or .csv")
        data = read_bytes(path, LARGEST_FILE)
        if path.suffix.lower() == ".json":
            return Table(_checked(_json_pairs(data)))
        header, *pairs = _csv_pairs(data) or [("", "")]
        if NUMBER.fullmatch(header[1]):
            raise ValueError("expected names of the two columns, such as name,value, as the first "
                             f"row, got {shown(','.join(header), 60)!r}")  # fmt: skip
        columns = None if [x.lower() for x in header] == ["name", "value"] else header
        told = tuple(shown(x, 40) for x in columns) if columns and all(columns) else None
        return Table(_checked(pairs), told)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise ValueError(f"{path}: {shown(error)}") from None


def _json_pairs(data: bytes) -> list[tuple[str, object]]:
    content = parse_json(data.removeprefix(b"\xef\xbb\xbf"))
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object from names to values, got "
                         f"{type(content).__name__}")  # fmt: skip
    return list(content.items())


def _csv_pairs(data: bytes) -> list[tuple[str, str]]:
    """Its rows, the header included."""
    pairs = []
    reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
    for row in reader:
        if not row:
            continue
        if len(row) != 2:
            raise ValueError(f"line {reader.line_num}: expected a name and a value, got {len(row)} "
                             "columns")  # fmt: skip
        pairs.append((row[0].strip(), row[1].strip()))
    return pairs


def _checked(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if not 0 < len(pairs) <= MOST_NAMES:
        raise ValueError(f"expected 1 to {MOST_NAMES:,} names, got {len(pairs):,}")
    values = {}
    for name, value in pairs:
        name = name.strip()
        if not 0 < len(name) <= LONGEST_NAME:
            raise ValueError(f"expected names of 1 to {LONGEST_NAME} characters, got {len(name):,}")
        if name in values:
            raise ValueError(f"the name {shown(name, 40)!r} is there twice")
        text = json.dumps(value, ensure_ascii=False)
        if len(text) > LONGEST_VALUE:
            raise ValueError(f"the value of {shown(name, 40)!r} has {len(text):,} characters, "
                             f"expected at most {LONGEST_VALUE:,}")  # fmt: skip
        (name + text).encode("utf-8")  # a lone surrogate could not be sent
        values[name] = value
    return values
