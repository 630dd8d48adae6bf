"""Records of data files, and what is worth telling about them.

`Problems` collects it while files are read, whoever reads them: bad records, fields that nothing
reads, how things were read. One line tells of a kind, however many records are of it.
"""

import copy
import difflib
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from model.json_file import shown

SHOWN_PROBLEMS = 10  # kinds of bad records, unless told otherwise
SHOWN_NAMES = 20  # of fields that are not used, per file
MOST_NAMES = 1000  # kept apart per file: keys made of data would fill the memory
OTHER_NAMES = "other fields"

Progress = Callable[[int], None]  # called with the number of bytes of the file read since last time


class DataError(ValueError):
    """Bad records in data files; the message holds their first kinds, one per line, and a count."""


@dataclass(frozen=True)
class Record:
    """One record of a data file, with the file and line to name in an error.

    unread  names of further columns, whose values were not asked for
    """

    fields: dict
    path: str
    line: int
    unread: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of all its fields."""
        return [*self.fields, *self.unread]


@dataclass
class Remarks:
    """What is said about records that are good.

    not_used    how often each field said something that nothing reads
    read_as     how often something was read as what it is not by its name, in words
    most_names  so many fields are kept apart
    """

    not_used: Counter = field(default_factory=Counter)
    read_as: Counter = field(default_factory=Counter)
    most_names: int = MOST_NAMES

    def add(self, other: "Remarks") -> None:
        """Add the counts of another one."""
        for name, count in other.not_used.items():
            self.count_not_used(name, count)
        self.read_as.update(other.read_as)

    def count_not_used(self, name: str, count: int = 1) -> None:
        """Count a field that says something and is not read."""
        counts = self.not_used
        if name not in counts:
            name = name if len(counts) < self.most_names else OTHER_NAMES
        counts[name] = counts.get(name, 0) + count

    def lines(self) -> list[str]:
        """What there is to say, without the file's name; none where there is nothing."""
        lines = []
        if self.not_used:
            names = self.not_used.most_common(SHOWN_NAMES)
            text = ", ".join(f"{shown(name, 60)} ({count:,})" for name, count in names)
            if (more := len(self.not_used) - len(names)) > 0:
                text += f" and {more:,} more fields"
            lines.append(f"not used: {text}")
        if self.read_as:
            lines.append("; ".join(f"{count:,} {what}" for what, count in self.read_as.items()))
        return lines


class Problems:
    """Counts bad records, equal ones together, and keeps the remarks of every file.

    Whoever consumes the records may add what it finds wrong with them: a reader in "stop" mode
    raises for these too when it reaches the end.

    count    bad records
    remarks  the remarks of each file, by its path
    """

    def __init__(self, most_shown: int = SHOWN_PROBLEMS, most_names: int = MOST_NAMES) -> None:
        self.count = 0
        self.most_shown, self.most_names = most_shown, most_names
        self.remarks: dict[str, Remarks] = {}
        # (path, expected, got) → [first line, last line, how many], of the first kinds only
        self._kinds: dict[tuple[str, str, str], list[int]] = {}

    def add(self, path: str, line: int, expected: str, got: str) -> None:
        """Count one bad record: at `path:line` `expected` was wanted and `got` came."""
        self.count += 1
        kind = self._kinds.get((path, expected, got))
        if kind is not None:
            kind[1:] = line, kind[2] + 1
        elif len(self._kinds) < self.most_shown:
            self._kinds[path, expected, got] = [line, line, 1]

    def merge(self, other: "Problems") -> None:
        """Add what was found later, by somebody else, as if it had been found here.

        That holds if `other` keeps all kinds and names (`all_problems`).
        """
        self.count += other.count
        for place, (line, last, count) in other._kinds.items():
            if place in self._kinds:
                self._kinds[place][1:] = last, self._kinds[place][2] + count
            elif len(self._kinds) < self.most_shown:
                self._kinds[place] = [line, last, count]
        for path, remarks in other.remarks.items():
            self.remarks_of(path).add(remarks)

    def to_json(self, path: str) -> dict:
        """What is known of one file, without its name; `from_json` makes Problems of it again."""
        remarks = self.remarks_of(path)
        kinds = [[*kind[1:], *counts] for kind, counts in self._kinds.items() if kind[0] == path]
        return {
            "count": self.count,
            "kinds": kinds,
            "not_used": dict(remarks.not_used),
            "read_as": dict(remarks.read_as),
        }

    @classmethod
    def from_json(cls, path: str, known: dict) -> "Problems":
        """The problems of a file that `to_json` told of, wherever it lies now."""
        problems = cls()
        problems.count = known["count"]
        for expected, got, *counts in known["kinds"]:
            problems._kinds[path, expected, got] = counts
        found = Remarks(Counter(known["not_used"]), Counter(known["read_as"]))
        problems.remarks_of(path).add(found)
        return problems

    def taken(self) -> "Problems":
        """What has been added, as Problems of their own; these are empty again."""
        taken = copy.copy(self)
        self.__init__(self.most_shown, self.most_names)
        return taken

    def remarks_of(self, path: str) -> Remarks:
        """The remarks of one file."""
        if path not in self.remarks:
            self.remarks[path] = Remarks(most_names=self.most_names)
        return self.remarks[path]

    @property
    def first(self) -> list[str]:
        """The first kinds of bad records, each with its first place and how many there are."""
        lines = []
        for (path, expected, got), (line, last, count) in self._kinds.items():
            more = f" ({count:,} such records, the last in line {last})" if count > 1 else ""
            lines.append(f"{path}:{line}: expected {expected}, got {got}{more}")
        return lines

    @property
    def num_not_shown(self) -> int:
        """Bad records of which `first` says nothing."""
        return self.count - sum(count for _, _, count in self._kinds.values())

    def raise_if_any(self) -> None:
        """Raise a DataError with the count and the first kinds of problems if there is any."""
        if self.count:
            head = (
                f"{_counted(self.count)}; fix the data or, in training, pass --on_bad_record skip"
            )
            more = f". The first {len(self._kinds)} kinds:" if self.num_not_shown else ":"
            raise DataError("\n".join([head + more, *self.first]))

    def lines(self) -> list[str]:
        """What a run says before it trains: skipped records, fields not used, how it was read."""
        lines = []
        if self.count:
            lines += [f"skipped {_counted(self.count)}; the first:", *self.first]
        for path, remarks in self.remarks.items():
            lines += [f"{path}: {line}" for line in remarks.lines()]
        return lines


def all_problems() -> Problems:
    """Problems that keep all kinds and names: of a part of a file, to be merged with others."""
    return Problems(sys.maxsize, sys.maxsize)


def _counted(count: int) -> str:
    return f"{count} bad record" if count == 1 else f"{count} bad records"


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can write the text: lone surrogates it cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def kind_of(value: object) -> str:
    """What a JSON value is, for an error message."""
    if value == [] or value == {}:
        return "an empty list" if value == [] else "an empty object"
    kinds = {bool: "true or false", str: "a string", list: "a list", dict: "an object"}
    kinds |= {int: "a number", float: "a number", type(None): "null"}
    return kinds.get(type(value), f"a value of type {type(value).__name__}")


def says_something(value: object) -> bool:
    """Whether a field's value is more than the absence of one."""
    return value is not None and value != "" and value != [] and value != {}


def names_in(fields: Iterable[str]) -> str:
    """The first names of a record's fields, for an error message."""
    names = ", ".join(repr(name[:40]) for name in list(fields)[:5])
    return f"the fields {names or 'none'}"


def nearest(name: str, accepted: Iterable[str]) -> str:
    """The accepted name that is most like a wrong one, or "" if none is."""
    by_small = {name.lower(): name for name in accepted}
    matches = difflib.get_close_matches(name.lower(), by_small, 1, cutoff=0.7)
    return by_small[matches[0]] if matches else ""


def did_you_mean(name: object, accepted: Iterable[str]) -> str:
    """What to put behind a wrong name: "; did you mean …?", or "" if no accepted one is like it."""
    match = nearest(name, accepted) if isinstance(name, str) else ""
    return f"; did you mean {match!r}?" if match else ""
