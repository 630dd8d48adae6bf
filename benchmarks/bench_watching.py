"""What it costs to watch a run on /runs: CPU time of the server and of the browser.

    python benchmarks/bench_watching.py               # a run of 20,000 lines, a line every second

Starts serve_model.py and Chromium (through playwright, of requirements-dev.txt) on this machine,
lets a run grow, and adds up what both use while the page is open, and without the page. The browser
draws in software, as on a machine without a screen. Last comes one JSON line.
"""

import argparse
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from playwright.sync_api import sync_playwright

from benchmarks.bench_serve import make_folder, started
from training import run_lock
from training.terminal import forgive_encodings

TICKS = os.sysconf("SC_CLK_TCK")
SETTLED = 15  # seconds until the page has drawn what was there


def parse_args():
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    add = parser.add_argument
    add("--lines", type=int, default=20_000, help="metrics the run has when the page is opened")
    add("--interval", type=float, default=1.0, help="seconds from one line to the next")
    add("--seconds", type=float, default=60, help="how long to look")
    return parser.parse_args()


def line(step: int, total: int) -> str:
    """What training writes of a step."""
    values = {
        "step": step, "epoch": 0, "tokens": 4096 * step, "loss": 2 + 6 * math.exp(-step / 3000),
        "lr": 1e-3 * (1 - step / total), "grad_norm": 1 + math.sin(step), "tokens_per_s": 9000.0,
        "mfu": 0.3, "memory_gb": 1.1, "data_wait": 0.002, "minutes_left": (total - step) / 60,
    }  # fmt: skip
    return json.dumps(values) + "\n"


def family(parent: int) -> set[int]:
    """A process and all below it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with_name = read(entry / "stat")
            if with_name:
                parents[int(entry.name)] = int(with_name.rsplit(")", 1)[1].split()[1])
    found, size = {parent}, 0
    while len(found) > size:
        size = len(found)
        found |= {child for child, of in parents.items() if of in found}
    return found


def read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # the process has ended
        return ""


def cpu_seconds(processes: set[int]) -> float:
    ticks = 0
    for process in processes:
        if text := read(Path(f"/proc/{process}/stat")):
            ticks += sum(map(int, text.rsplit(")", 1)[1].split()[11:13]))
    return ticks / TICKS


def main():
    args = parse_args()
    forgive_encodings()
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "out" / "watched"
        run.mkdir(parents=True)
        run_lock.take(run)  # or it would not be shown as running
        model = Path(temporary) / "model"
        model.mkdir()
        flags = ["--model", make_folder(model, "demo"), "--runs", run.parent, "--port", "0"]
        command = [sys.executable, "serve_model.py", *flags]
        step, total = args.lines, 10 * args.lines
        (run / "args.json").write_text(json.dumps({"max_steps": total, "learning_rate": 1e-3}))
        with (run / "metrics.jsonl").open("w", buffering=1) as metrics:
            metrics.write("".join(line(number, total) for number in range(step)))

            def grow(seconds: float):
                nonlocal step
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    time.sleep(args.interval)
                    metrics.write(line(step, total))
                    step += 1

            own = re.escape("http://") + r"[\d.]+:\d+"
            with started(command, own, {}) as (url, server), sync_playwright() as play:
                browser = play.chromium.launch(
                    executable_path=shutil.which("chromium"), args=["--no-sandbox"]
                )
                [browser_process] = [
                    child for child in family(os.getpid())
                    if "--headless" in (text := read(Path(f"/proc/{child}/cmdline")))
                    and "--type=" not in text
                ]  # fmt: skip
                shares = {}
                for name, address in (("no page", "about:blank"), ("watched", f"{url}/runs")):
                    page = browser.new_page(viewport={"width": 1280, "height": 800})
                    page.goto(address)
                    grow(SETTLED)
                    before = {"server": cpu_seconds(family(server)),
                              "browser": cpu_seconds(family(browser_process))}  # fmt: skip
                    begin = time.monotonic()
                    grow(args.seconds)
                    seconds = time.monotonic() - begin
                    after = {"server": cpu_seconds(family(server)),
                             "browser": cpu_seconds(family(browser_process))}  # fmt: skip
                    shares[name] = {
                        part: round((after[part] - before[part]) / seconds, 5) for part in before
                    }
                    page.close()
                browser.close()
        run_lock.release()
    shares["machine"] = sum(shares["watched"].values()) / os.cpu_count()
    print(f"{'':10}{'server':>10}{'browser':>10}   of one core")
    for name in ("no page", "watched"):
        print(f"{name:10}{shares[name]['server']:>10.2%}{shares[name]['browser']:>10.2%}")
    print(f"watching takes {shares['machine']:.2%} of this machine's {os.cpu_count()} cores\n")
    print(json.dumps(shares))


if __name__ == "__main__":
    main()
