"""Steps of a benchmark in processes of their own: their seconds, memory, and a line of a table."""

import json
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = f"{'':41} seconds  CPU sec      tokens/s  tok/CPU sec     MiB  own MiB"


def cpu_seconds() -> float:
    """Of this process with its threads, and of the processes it started and waited for."""
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


class Memory:
    """On Linux: the most memory this process held at any time; on other systems nothing."""

    def __init__(self):
        self.own_bytes = 0
        if Path("/proc/self/status").exists():
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        while True:  # the system keeps no peak of this one
            self.own_bytes = max(self.own_bytes, own_bytes())
            time.sleep(0.02)

    def figures(self) -> dict:
        """peak_bytes, all; own_bytes, apart from mapped files, which all processes of a machine
        share and which the system takes back where it needs room (looked at 50 times a second)."""
        if not self.own_bytes:
            return {}
        return {"peak_bytes": _status_bytes("VmHWM"), "own_bytes": self.own_bytes}


def own_bytes() -> int:
    """What this process holds now that is no mapped file; 0 where the system does not say it."""
    return _status_bytes("RssAnon")


def _status_bytes(name: str) -> int:
    status = Path("/proc/self/status")
    found = status.exists() and re.search(rf"{name}:\s+(\d+) kB", status.read_text())
    return int(found[1]) * 1024 if found else 0


def print_figures(step: Callable[[], dict]):
    """Run a step here and print its figures as JSON.

    Figures of a step: tokens, rows, import_seconds, note; seconds and cpu_seconds, where only some
    of its time counts; and any others.
    """
    memory = Memory()
    begin, cpu = time.perf_counter(), cpu_seconds()
    figures = step()
    took = {"seconds": time.perf_counter() - begin, "cpu_seconds": cpu_seconds() - cpu}
    print(json.dumps(took | memory.figures() | figures))


def measure(script: str, flags: dict) -> dict:
    """The figures that a new process prints: the script with --flag value for each of them."""
    command = [sys.executable, script]
    for flag, value in flags.items():
        command += [f"--{flag}", str(value)] if value is not True else [f"--{flag}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def row(title: str, figures: dict) -> str:
    """One line of the table below HEADER."""
    seconds, cpu = figures["seconds"], figures["cpu_seconds"]
    cells = [f"{title:41}", f"{seconds:8.2f}", f"{cpu:8.2f}"]
    for each in (seconds, cpu):
        cells.append(f"{figures['tokens'] / each:13,.0f}" if "tokens" in figures else " " * 13)
    cells.append(f"{figures.get('peak_bytes', 0) / 2**20:7,.0f}")
    cells.append(f"{figures.get('own_bytes', 0) / 2**20:8,.0f}")
    if "import_seconds" in figures:
        cells.append(f"  and {figures['import_seconds']:.2f} s of imports")
    if "rows" in figures:
        cells.append(f"  {figures['rows'] / seconds:,.0f} rows/s")
    if "note" in figures:
        cells.append(f"  {figures['note']}")
    return " ".join(cells)
