"""What the training page asks for: the runs in a folder, their curves, samples and flags.

Names that a client sends are looked up among the runs that were found; no path is made of them. The
functions are plain ones, which FastAPI calls in threads: reading a long file keeps nobody waiting.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Response

from serving.curves import AXES, Curves
from serving.errors import APIError
from serving.run_folders import METRICS, MOST_FIGURES, RunFolder, find_runs

MOST_CHOSEN = 12  # runs in one request
LONGEST_NAME = 512
MOST_POINTS, MOST_NUMBERS = 4_000, 1_000_000  # of a curve; of an answer
MOST_SAMPLES, MOST_EVENTS = 60, 200  # in one answer
MEMORY = 512 << 20  # bytes of curves kept; those not asked for the longest go first
READING = 0.5  # seconds that an answer may take to read files; then it says that there is more
FOUND_FOR = 1.0  # seconds for which the list of folders holds
_POSITION = re.compile(r"([0-9a-f]{8})\.(\d{1,9})\.(\d{1,9})\.(\d{1,9})")

Names = Annotated[list[str], Query(min_length=1, max_length=MOST_CHOSEN)]


class Runs:
    """The runs below a folder, and what was read of them."""

    def __init__(self, out_dir: Path):
        self.out_dir = Path(out_dir)
        self._lock = threading.Lock()  # around the two dicts
        self._folders: dict[str, RunFolder] = {}
        self._found_at = -math.inf
        self._curves: OrderedDict[str, Curves] = OrderedDict()

    def folders(self) -> dict[str, RunFolder]:
        """The runs that are there, by name."""
        with self._lock:
            if time.monotonic() - self._found_at > FOUND_FOR:
                found = find_runs(self.out_dir)
                self._folders = {
                    name: self._folders.get(name) or RunFolder(name, path)
                    for name, path in found.items()
                }
                self._found_at = time.monotonic()
                for name in self._curves.keys() - found.keys():
                    del self._curves[name]
            return self._folders

    def curves(self, run: RunFolder) -> Curves:
        """The curves of a run. Others go where memory is short."""
        with self._lock:
            curves = self._curves.pop(run.name, None) or Curves(run.path / METRICS)
            self._curves[run.name] = curves
            size = sum(other.bytes for other in self._curves.values())
            for other in list(self._curves)[:-MOST_CHOSEN]:
                if size > MEMORY:
                    size -= self._curves.pop(other).bytes
            return curves


def router(out_dir: Path) -> APIRouter:
    """The routes for the runs below `out_dir`."""
    runs, routes = Runs(out_dir), APIRouter(prefix="/runs")

    @routes.get("/list")
    def list_runs() -> Response:
        """Every run, the latest first: RunFolder.look says what of each."""
        found = [run.look() for run in runs.folders().values()]
        found.sort(key=lambda run: -(run["updated"] or run["started"] or 0))
        return _json({"folder": str(out_dir), "now": time.time(), "runs": found})

    @routes.get("/data")
    def data(
        run: Names,
        since: Annotated[list[str], Query(max_length=MOST_CHOSEN)] = (),
        field: Annotated[list[str], Query(max_length=MOST_FIGURES)] = (),
        points: Annotated[int, Query(ge=2, le=MOST_POINTS)] = 1_000,
        axis: Annotated[str, Query(max_length=8)] = "step",
        low: float = -math.inf,
        high: float = math.inf,
    ) -> Response:
        """The curves of some runs; with `since`, what has been added to them.

        run    names; those that are not there (any more) come back in "gone"
        since  for every run, in their order, the "position" of the answer before, or ""
        field  which numbers; none: all that there are
        points  at most so many of every curve, spikes among them (curves.thinned)
        axis   what x is: step; seen (tokens, pairs or examples: "unit"); time (seconds of training)
        low, high  of x: the part to show

        Of every run what is in the list; "begins": whether this is all, and nothing to be added to
        what the client has; "more": whether there is more to read: ask again at once.
        """
        if axis not in AXES:
            raise APIError(400, f"axis: expected one of {', '.join(AXES)}", param="axis")
        if math.isnan(low) or math.isnan(high):
            raise APIError(400, "low, high: expected numbers", param="low")
        if len(since) not in (0, len(run)):
            message = f"since: expected one for each of {len(run)} runs, got {len(since)}"
            raise APIError(400, message, param="since")
        folders, answers, gone = runs.folders(), [], []
        until = time.monotonic() + READING
        positions = dict(zip(run, since or [""] * len(run)))  # a name given twice counts once
        for name, position in positions.items():
            if name not in folders:
                gone.append(name[:LONGEST_NAME])
                continue
            curves = runs.curves(folders[name])
            if not curves.lock.acquire(timeout=10 * READING):
                raise APIError(503, "too many requests for one run", code="busy")
            try:
                curves.read(max(0.0, until - time.monotonic()))
                answer = _new_of(curves, position)
                share = MOST_NUMBERS // (4 * len(positions) * max(1, len(curves.columns)))
                answer["fields"] = curves.points(
                    max(2, min(points, share)), axis, answer.pop("row"), low, high,
                    list(dict.fromkeys(field)) or None,
                )  # fmt: skip
            finally:
                curves.lock.release()
            answers.append(folders[name].look() | answer)
        return _json({"now": time.time(), "runs": answers, "gone": gone})

    @routes.get("/flags")
    def flags(run: Names) -> Response:
        """The flags of some runs side by side, and of the model: [{"name", "values", "differs"}].

        A value is null where a run has no such flag.
        """
        folders = runs.folders()
        chosen = {name: folders[name] for name in run if name in folders}
        for folder in chosen.values():
            folder.look()
        names = dict.fromkeys(name for folder in chosen.values() for name in folder.flags)
        rows = []
        for name in names:
            values = [folder.flags.get(name) for folder in chosen.values()]
            rows.append({"name": name, "values": values, "differs": _differ(values)})
        return _json({"runs": list(chosen), "flags": rows})

    return routes


def _new_of(curves: Curves, position: str) -> dict:
    """What an answer says besides points; "row": from which row on these are new."""
    known = _POSITION.fullmatch(position)
    row = event = sample = 0
    if known and known[1] == curves.version:
        row, event, sample = (int(number) for number in known.groups()[1:])
    return {
        "position": f"{curves.version}.{curves.rows}.{curves.events.count}.{curves.samples.count}",
        "begins": row == 0, "row": min(row, curves.rows), "rows": curves.rows,
        "more": not curves.is_complete, "unit": curves.unit,
        "events": curves.events.since(event, MOST_EVENTS),
        "samples": curves.samples.since(sample, MOST_SAMPLES),
    }  # fmt: skip


def _differ(values: list) -> bool:
    return any(json.dumps(value) != json.dumps(values[0]) for value in values[1:])


def _json(content: dict) -> Response:
    """Without FastAPI's encoder, which looks at every number for itself."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Response(text, media_type="application/json", headers={"Cache-Control": "no-store"})
