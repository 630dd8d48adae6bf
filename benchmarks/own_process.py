"""Steps of a benchmark in processes of their own: their seconds, memory, and a line of a table."""

import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = f"{'':41} seconds  CPU sec      tokens/s  tok/CPU sec     MiB  own MiB"


def cpu_seconds() -> float:
    """Of this process with its threads, and of the processes it started and waited for."""
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def memory() -> dict:
    """On Linux, bytes: peak_bytes, the most this process held at any time; own_bytes, what it has
    now that is no mapped file, which all processes of a machine share and the system takes back."""
    status = Path("/proc/self/status")
    if not status.exists():
        return {}
    kib = dict(re.findall(r"(\w+):\s+(\d+) kB", status.read_text()))
    return {"peak_bytes": int(kib["VmHWM"]) * 1024, "own_bytes": int(kib["RssAnon"]) * 1024}


def print_figures(step: Callable[[], dict]):
    """Run a step here and print its figures as JSON; its own say more than those of the process.

    Figures of a step: tokens, rows, seconds, import_seconds, note, those of `memory`, any others.
    """
    begin, cpu = time.perf_counter(), cpu_seconds()
    figures = step()
    took = {"seconds": time.perf_counter() - begin, "cpu_seconds": cpu_seconds() - cpu}
    print(json.dumps(took | memory() | figures))


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
