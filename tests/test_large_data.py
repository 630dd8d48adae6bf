"""Data larger than the memory it may take: 2 GB of text within 1 GB."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

SHARED = ROOT.parent / "shared" / "data"
SIZE = 2_000_000_000  # bytes of the file
MOST_MEMORY = 1 << 30  # bytes a process may hold at any time

# VmHWM is of this program alone; getrusage would count what pytest held when it started it.
PEAK = """
import atexit, re
from pathlib import Path

def tell():
    status = Path("/proc/self/status").read_text()
    print("peak", int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024)

atexit.register(tell)
"""
CACHE = """
from dataset.token_cache import cached_tokens
from dataset.tokenizer import load_tokenizer

file = cached_tokens(sys.argv[1], load_tokenizer("model/tokenizer"), sys.argv[2])
print(f"{file.num_documents:,} documents, {file.num_tokens:,} tokens")
"""
VALIDATE = """
from scripts import validate_data

sys.argv = ["validate_data.py", "--data_path", sys.argv[1]]
validate_data.main()
"""


def make_large_file(path: Path, size: int):
    """Real text over and over, every record with a number in front: no two are the same."""
    start = b'{"text": "'
    lines = [
        line
        for name in ("pretrain_en.jsonl", "pretrain_zh.jsonl")
        for line in (SHARED / name).read_bytes().splitlines(keepends=True)
        if line.startswith(start)
    ]
    number = written = 0
    with open(path, "wb") as file:
        while written < size:
            for line in lines:
                written += file.write(b"%s%d %s" % (start, number, line[len(start) :]))
                number += 1


def peak_memory(code: str, *arguments) -> tuple[int, str]:
    """(bytes that a program held at most, what it printed before)."""
    command = [sys.executable, "-c", "import sys\n" + PEAK + code, *map(str, arguments)]
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    assert done.returncode == 0, done.stderr
    printed, _, peak = done.stdout.rpartition("peak ")
    print(f"{printed.strip()}\n{int(peak) / 2**20:,.0f} MiB at most, {seconds:,.0f} s")
    return int(peak), printed


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real text is not here")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_two_gigabytes_within_one(tmp_path):
    """Validating and tokenising a file of 2 GB each take less than 1 GiB of memory."""
    data = tmp_path / "large.jsonl"
    try:
        make_large_file(data, SIZE)
        print(f"{data.stat().st_size:,} bytes")
        peak, printed = peak_memory(VALIDATE, data)
        assert peak < MOST_MEMORY and " 0 bad, 0 exact duplicates" in printed
        peak, _ = peak_memory(CACHE, data, tmp_path / "cache")
        assert peak < MOST_MEMORY
        peak, _ = peak_memory(CACHE, data, tmp_path / "cache")  # found again
        assert peak < MOST_MEMORY
    finally:
        data.unlink(missing_ok=True)
        for file in (tmp_path / "cache").glob("*/*.bin"):
            file.unlink()
