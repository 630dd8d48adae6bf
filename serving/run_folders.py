"""The training runs in a folder, from what they have written there: names, flags, states, figures.

Nothing is locked, nothing is written, and no link is followed: a run does not notice being watched.
"""

from __future__ import annotations

import json
import math
import os
import stat
import threading
import time
from itertools import islice
from pathlib import Path

from serving.growing_file import GrowingFile, open_regular, parse
from training import run_lock

METRICS, ARGS = "metrics.jsonl", "args.json"
MOST_RUNS = 500
MOST_ENTRIES = 5_000  # of a folder that are looked at
LARGEST_ARGS = 1 << 18  # bytes
MOST_FLAGS, LONGEST_VALUE = 500, 300
TAIL = 1 << 18  # bytes of metrics.jsonl that the last figures are looked for in
MOST_FIGURES, LONGEST_NAME = 128, 64
LARGEST_STEP = 2**53
_NOT_FLAGS = ("config", "changes", "command", "total_steps")
_UNSEEN = ("step-", ".", "tensorboard", "wandb")  # beginnings of folders that hold no runs


def find_runs(root: Path) -> dict[str, Path]:
    """The folders of runs: name -> path; `root` itself, those in it, and those in their folders.

    A run is a folder with metrics.jsonl or args.json. Its name is the path from `root`, with "/".
    """
    root = Path(root)
    found = {root.resolve().name: root} if _is_run(root) else {}
    for folder in _folders_in(root):
        if _is_run(folder):
            found[folder.name] = folder
            continue
        for inner in _folders_in(folder):
            if _is_run(inner):
                found[f"{folder.name}/{inner.name}"] = inner
    if len(found) > MOST_RUNS:
        latest = sorted(found, key=lambda name: -_modified(found[name]))[:MOST_RUNS]
        found = {name: found[name] for name in latest}
    return found


def _modified(folder: Path) -> float:
    try:
        return os.lstat(folder).st_mtime
    except OSError:
        return 0.0


def _folders_in(folder: Path) -> list[Path]:
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in islice(entries, MOST_ENTRIES):
                is_shown = not entry.name.startswith(_UNSEEN) and _is_text(entry.name)
                if is_shown and entry.is_dir(follow_symlinks=False):
                    names.append(entry.name)
    except OSError:  # it has just gone, or is not ours to read
        pass
    return [folder / name for name in sorted(names)]


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode("utf-8"))
    except UnicodeEncodeError:  # bytes that are no text: no request could name it
        return False


def _is_run(folder: Path) -> bool:
    for name in (METRICS, ARGS):
        try:
            if stat.S_ISREG(os.lstat(folder / name).st_mode):
                return True
        except OSError:
            pass
    return False


class RunFolder:
    """One run: what its list entry says. `look` reads what is new; it takes turns with itself.

    flags  name -> JSON value, the architecture's among them; empty without a readable args.json
    """

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path
        self.flags: dict = {}
        self.total_steps: int | None = None
        self.script = self.started = None
        self._args_seen = None
        self._metrics = GrowingFile(path / METRICS, tail=TAIL)
        self._times_begun = 0
        self._forget()
        self._lock = threading.Lock()

    def _forget(self):
        self.step, self.figures, self.ended = None, {}, None

    def look(self) -> dict:
        """What to show of it in a list, as JSON values. See `state` for "state" and "why".

        step, total_steps  updates, or null where the files do not say
        minutes_left       as the last log line estimated it, less the time since; null if not
                           running
        figures            the last value of every number that is logged
        started, updated   seconds since 1970: its (last) start, its last line
        """
        with self._lock:
            self._read_args()
            self._read_metrics()
            state, why = self.state()
            updated = self._metrics.modified or None
            left = self.figures.get("minutes_left")
            if state != "running" or left is None or not math.isfinite(left):
                left = None
            else:
                left = max(0.0, left - max(0.0, time.time() - updated) / 60)
            figures = {k: v for k, v in self.figures.items() if math.isfinite(v)}
            return {
                "name": self.name, "script": self.script, "state": state, "why": why,
                "step": self.step, "total_steps": self.total_steps, "minutes_left": left,
                "figures": figures, "started": self.started, "updated": updated,
            }  # fmt: skip

    def state(self) -> tuple[str, str | None]:
        """running, finished, stopped or failed; and the signal or the error, if one is recorded.

        failed without a reason: no process has the folder, and the last line does not say that it
        had ended: it was killed, or its machine was (or it stopped before runs noted their end).
        """
        if run_lock.is_held(self.path):
            return "running", None
        if self.ended:
            state = self.ended.get("state")
            why = self.ended.get("signal") or self.ended.get("error")
            why = why[:LONGEST_VALUE] if isinstance(why, str) else None
            if state in ("finished", "stopped", "failed"):
                return state, why
        # runs of before there was a last line
        has_all = self.step is not None and self.step == self.total_steps
        is_done = has_all or self.figures.get("minutes_left") == 0
        return ("finished" if is_done else "failed"), None

    def _read_args(self):
        try:
            file = os.lstat(self.path / ARGS)
            seen = file.st_ino, file.st_size, file.st_mtime_ns
            if seen == self._args_seen:
                return
            self._args_seen, self.started = seen, file.st_mtime
            descriptor = open_regular(self.path / ARGS)
            with os.fdopen(descriptor, "rb") as f:
                args = json.loads(f.read(LARGEST_ARGS))
        except (OSError, ValueError, RecursionError):
            args = None
        args = args if isinstance(args, dict) else {}
        command, config = args.get("command"), args.get("config")
        first = command[0] if isinstance(command, list) and command else None
        self.script = os.path.basename(first)[:LONGEST_VALUE] if isinstance(first, str) else None
        total = args.get("total_steps", args.get("max_steps"))
        is_count = type(total) is int and 0 < total <= LARGEST_STEP
        self.total_steps = total if is_count else None
        flags = {k: v for k, v in args.items() if k not in _NOT_FLAGS}
        flags |= config if isinstance(config, dict) else {}
        self.flags = {
            str(name)[:LONGEST_NAME]: _bounded(value)
            for name, value in islice(flags.items(), MOST_FLAGS)
        }

    def _read_metrics(self):
        try:
            for lines in self._metrics.blocks():
                if self._metrics.times_begun != self._times_begun:
                    self._times_begun = self._metrics.times_begun
                    self._forget()
                for record in parse(lines):
                    self._note(record)
        except OSError:  # gone; should it come back, it is read anew
            self._metrics = GrowingFile(self.path / METRICS, tail=TAIL)
            self._times_begun = 0
            self._forget()

    def _note(self, record: dict):
        step = record.get("step")
        if not is_step(step):
            return
        self.step = int(step)
        self.ended = record if record.get("event") == "end" else None
        if "event" not in record:
            for name, value in record.items():
                has_room = name in self.figures or len(self.figures) < MOST_FIGURES
                is_named = name != "step" and len(name) <= LONGEST_NAME
                if has_room and is_named and (number := as_number(value)) is not None:
                    self.figures[name] = number


def is_step(value: object) -> bool:
    """Whether this can be a number of updates."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= LARGEST_STEP and value == int(value)


def as_number(value: object) -> float | int | None:
    """A number, perhaps NaN or infinite; None for anything else, and for what no float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) and abs(value) <= LARGEST_STEP else float(value)
    except OverflowError:
        return None


def _bounded(value: object) -> object:
    """A flag's value, as JSON, not longer than LONGEST_VALUE."""
    if isinstance(value, bool | None):
        return value
    if isinstance(value, int | float):
        number = as_number(value)
        return number if number is not None and math.isfinite(number) else str(number)
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        text = "…"
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
