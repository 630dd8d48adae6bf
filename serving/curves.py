"""The numbers of one run's metrics.jsonl in memory, and as many points of them as a picture shows.

Shapes: n rows, the lines with numbers; every field is a column of n, NaN where a line lacks it.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from pathlib import Path

import numpy as np

from serving.growing_file import GrowingFile, parse
from serving.run_folders import LONGEST_NAME, MOST_FIGURES, as_number, is_step

UNITS = ("tokens", "pairs", "examples")  # what a run counts its data in
AXES = ("step", "seen", "time")
_NOT_DRAWN = {"step", "epoch", *UNITS}
MOST_ROWS = 4_000_000  # of a run; later ones are not read
MOST_NOTES = 1_000  # events and, apart from them, samples
MOST_TEXTS, LONGEST_TEXT = 8, 2_000


class Curves:
    """What a metrics.jsonl says, read as it grows: `read`, then `points` and `notes`.

    Hold `lock` around both: reading replaces what they look at.

    version  a word that changes when the file was cut or replaced, and everything is read again
    rows     lines with numbers so far
    unit     "tokens", "pairs" or "examples": what the axis "seen" counts
    """

    def __init__(self, path: Path):
        self.lock = threading.Lock()
        self.file = GrowingFile(path)
        self._times_begun = 0
        self._forget()

    def _forget(self):
        self.version = secrets.token_hex(4)
        self.rows, self.unit = 0, None
        self.is_complete = False  # read to the end, as far as it is written
        # x in three ways, filled in where a line does not say: float64 holds every count
        self.axes = {axis: np.empty(1024) for axis in AXES}
        self.columns: dict[str, np.ndarray] = {}  # float32: more digits than any picture
        self.samples, self.events = Notes(), Notes()
        self._shapes: set[tuple] = set()  # the keys of lines that were met before
        # of the last line that counts its data: step, data, seconds, and data per step
        self._last = (0.0, 0.0, 0.0, 0.0)

    @property
    def bytes(self) -> int:
        """Memory of the arrays."""
        return sum(a.nbytes for a in (*self.axes.values(), *self.columns.values()))

    def read(self, seconds: float):
        """Read what is new, for so long at most; `is_complete` says whether that was all."""
        until = time.monotonic() + seconds
        try:
            for lines in self.file.blocks():
                if self.file.times_begun != self._times_begun:
                    self._begin()
                if self.rows >= MOST_ROWS:
                    break
                self._add(parse(lines))
                if time.monotonic() > until:
                    self.is_complete = False
                    return
            if self.file.times_begun != self._times_begun:  # cut, and nothing written yet
                self._begin()
            self.is_complete = True
        except OSError:  # not there (yet, or no more)
            self.file = GrowingFile(self.file.path)
            self._times_begun = 0
            self._forget()
            self.is_complete = True

    def _begin(self):
        self._times_begun = self.file.times_begun
        self._forget()

    def _add(self, records: list[dict]):
        rows = []
        for record in records:
            if not is_step(record.get("step")):
                continue
            if "event" in record:
                self._note(record)
            else:
                rows.append(record)
                if (shape := tuple(record)) not in self._shapes:
                    self._add_columns(record, shape)
        if not rows:
            return
        begin, end = self.rows, self.rows + len(rows)
        self._make_room(end)
        steps = _numbers([row["step"] for row in rows], np.float64)
        for axis, values in zip(AXES, (steps, *self._seen_and_time(rows, steps))):
            self.axes[axis][begin:end] = values
        for name, column in self.columns.items():
            column[begin:end] = _numbers([row.get(name, np.nan) for row in rows], np.float32)
        self.rows = end

    def _add_columns(self, record: dict, shape: tuple):
        if len(self._shapes) < 1000:
            self._shapes.add(shape)
        for name, value in record.items():
            if name in UNITS and self.unit is None:
                self.unit = name
            is_new = name not in self.columns and name not in _NOT_DRAWN
            has_room = len(self.columns) < MOST_FIGURES and len(name) <= LONGEST_NAME
            if is_new and has_room and as_number(value) is not None:
                self.columns[name] = np.full(len(self.axes["step"]), np.nan, np.float32)

    def _make_room(self, rows: int):
        """Twice as long, as often as needed."""
        size = len(self.axes["step"])
        while size < rows:
            size *= 2
        if size > len(self.axes["step"]):
            for arrays in (self.axes, self.columns):
                for name, array in arrays.items():
                    longer = np.full(size, np.nan, array.dtype)
                    longer[: self.rows] = array[: self.rows]
                    arrays[name] = longer

    def _seen_and_time(self, rows: list[dict], steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Data seen and seconds of training at every line, [rows] each.

        A line without a count (held-out figures) is where the last one with it was, and as much
        further as its step is. The seconds follow from the speeds: evaluating and saving are not
        among them.
        """
        last_step, last_seen, last_time, per_step = self._last
        unit = self.unit or UNITS[0]
        seen = _numbers([row.get(unit, np.nan) for row in rows], np.float64)
        rate = _numbers([row.get(f"{unit}_per_s", np.nan) for row in rows], np.float64)
        known = np.flatnonzero(np.isfinite(seen))
        counts = np.concatenate([[last_seen], seen[known]])
        places = np.concatenate([[last_step], steps[known]])
        more, further = np.diff(counts).clip(0), np.diff(places)
        with np.errstate(divide="ignore", invalid="ignore"):
            took = np.nan_to_num(more / rate[known], nan=0.0, posinf=0.0, neginf=0.0).clip(0)
            rates = np.nan_to_num(more / further, nan=0.0, posinf=0.0, neginf=0.0).clip(0)
        times = last_time + np.concatenate([[0.0], np.cumsum(took)])
        rates = np.concatenate([[per_step], rates])
        before = np.searchsorted(known, np.arange(len(rows)), side="right")  # into the four
        beyond = (steps - places[before]).clip(0) * rates[before]
        with np.errstate(divide="ignore", invalid="ignore"):
            of_rate = np.concatenate([[np.nan], rate[known]])[before]
            seconds = np.nan_to_num(beyond / of_rate, nan=0.0, posinf=0.0, neginf=0.0).clip(0)
        self._last = tuple(float(values[-1]) for values in (places, counts, times, rates))
        return counts[before] + beyond, times[before] + seconds

    def _note(self, record: dict):
        step, event = int(record["step"]), record["event"]
        if event == "samples" and isinstance(record.get("texts"), list):
            texts = [t[:LONGEST_TEXT] for t in record["texts"][:MOST_TEXTS] if isinstance(t, str)]
            if texts:
                self.samples.add({"step": step, "texts": texts})
        elif isinstance(event, str) and event != "end":
            more = {k: v for k, v in record.items() if k not in ("step", "event")}
            try:
                text = json.dumps(more, ensure_ascii=False)[:LONGEST_TEXT]
            except RecursionError:
                text = ""
            self.events.add({"step": step, "event": event[:LONGEST_NAME], "text": text})

    def points(
        self, count: int, axis: str = "step", since: int = 0, low: float = -np.inf,
        high: float = np.inf, fields: list[str] | None = None,
    ) -> dict[str, dict[str, list]]:  # fmt: skip
        """At most `count` points of every field: {"x", "y"} and, where they stand for several
        lines each, "low" and "high", between which all of these lie.

        since      rows to leave out, as they are known
        low, high  of x; the points just outside come too, so that lines reach the edges
        fields     names of columns; None: all
        """
        found = {}
        for name in self.columns if fields is None else fields:
            if name not in self.columns:
                continue
            y = self.columns[name][since : self.rows]
            there = np.flatnonzero(np.isfinite(y))
            x, y = self.axes[axis][since : self.rows][there], y[there]
            if np.isfinite(low) or np.isfinite(high):
                inside = np.flatnonzero((x >= low) & (x <= high))
                if len(inside):
                    part = slice(max(0, inside[0] - 1), inside[-1] + 2)
                else:  # between two points: the line that joins them
                    at = int(np.searchsorted(x, low))
                    part = slice(max(0, at - 1), at + 1)
                x, y = x[part], y[part]
            if len(y):
                found[name] = thinned(x, y, count)
        return found


class Notes:
    """Things noted at some step, at most MOST_NOTES of them: then every other one goes.

    count  noted so far, those that have gone among them
    """

    def __init__(self):
        self.count, self._kept = 0, []

    def add(self, note: dict):
        self._kept.append((self.count, note))
        self.count += 1
        if len(self._kept) > MOST_NOTES:
            del self._kept[1:-1:2]

    def since(self, number: int, most: int) -> list[dict]:
        """Those from the number-th on; if they are too many, evenly chosen, the last included."""
        notes = [note for at, note in self._kept if at >= number]
        if len(notes) <= most:
            return notes
        return [notes[i] for i in np.linspace(0, len(notes) - 1, most).round().astype(int)]


def thinned(x: np.ndarray, y: np.ndarray, count: int) -> dict[str, list]:
    """Points [m] → at most `count`, each the mean of a run of them, with the least and the most.

    A single high value among a million is still in "high". Six digits of y.
    """
    if len(y) <= count:
        return {"x": _short(x, 12), "y": _short(y, 6)}
    edges = np.arange(count + 1) * len(y) // count
    begins, sizes = edges[:-1], np.diff(edges)
    mean = np.add.reduceat(y.astype(np.float64), begins) / sizes
    low, high = np.minimum.reduceat(y, begins), np.maximum.reduceat(y, begins)
    middle = x[begins + sizes // 2]
    middle[0], middle[-1] = x[0], x[-1]  # the curve keeps its ends
    return {
        "x": _short(middle, 12), "y": _short(mean, 6), "low": _short(low, 6),
        "high": _short(high, 6),
    }  # fmt: skip


def _short(values: np.ndarray, digits: int) -> list:
    """Finite numbers rounded to so many digits; whole ones become int."""
    values = values.astype(np.float64)
    with np.errstate(divide="ignore"):
        exponents = np.floor(np.log10(np.abs(values)))
    exponents[~np.isfinite(exponents)] = 0
    scale = 10.0 ** (digits - 1 - exponents)
    rounded = np.round(values * scale) / scale
    is_whole = np.array_equal(rounded, np.round(rounded)) and np.abs(rounded).max() < 2**53
    return (rounded.astype(np.int64) if is_whole else rounded).tolist()


def _numbers(values: list, dtype) -> np.ndarray:
    """JSON values as an array; NaN for what is no number."""
    with np.errstate(over="ignore"):
        try:
            array = np.array(values, dtype)
        except (ValueError, TypeError, OverflowError):
            array = None
        if array is None or array.ndim != 1:  # lists, words and the like among them
            numbers = [as_number(value) for value in values]
            array = np.array([np.nan if n is None else n for n in numbers], dtype)
        return array
