"""How fast text becomes batches: tokenising, start-up with a cold and a warm cache, the loader.

    python benchmarks/bench_data.py                     # 100 MB of text, a minute or two
    python benchmarks/bench_data.py --gigabytes 1       # what the targets are stated for
    python benchmarks/bench_data.py --data_path a.jsonl # other text to repeat

The text is repeated until it is large enough; in every repetition all documents are cut at another
place and their parts swapped, so that no two are equal. Every figure is of a process of its own.
On a shared machine wall times say little: tokens per CPU second count.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset.demo import write_demo
from dataset.readers import read_texts
from dataset.token_cache import cached_tokens
from dataset.tokenizer import load_tokenizer
from training.terminal import forgive_encodings

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
STEPS = {
    "read": "reading records",
    "encode": "the library's encoding alone",
    "tokenise": "tokenising into the cache",
    "start": "start-up to the first batch, warm cache",
    "rehash": "the same, content hash not remembered",
    "load": "loader, --num_workers 0",
}


def parse_args():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--gigabytes", type=float, default=0.1, help="size of the text file (default 0.1)")
    add("--data_path", nargs="+", default=None, help="text to repeat; None: real text, or the demo")
    add("--tokenizer", default="model/tokenizer", help="tokenizer folder")
    add("--max_seq_len", type=int, default=256, help="tokens per row of the loader (default 256)")
    add("--batch_size", type=int, default=16, help="rows per batch of the loader (default 16)")
    add("--work_dir", default=None, help="folder for file and cache; None: a temporary one")
    add("--step", choices=STEPS, default=None, help=argparse.SUPPRESS)  # in a process of its own
    return parser.parse_args()


def make_text(path: Path, sources: list, size: int):
    """Write a jsonl file of `size` bytes in which no two documents are equal."""
    texts = [text for text, _ in read_texts(sources)]
    written = number = 0
    with open(path, "w", encoding="utf-8") as file:
        for repetition in count():
            for text in texts:
                number += 1
                cut = repetition * 7919 % len(text)
                changed = f"{text[cut:]} {number} {text[:cut]}"
                line = json.dumps({"text": changed}, ensure_ascii=False)
                file.write(line + "\n")
                written += len(line.encode("utf-8")) + 1
                if written >= size:
                    return


# ---- the steps, each run in a process of its own; seconds are of the wall clock


def read(args, data: Path, cache: Path) -> dict:
    num_bytes = sum(len(text.encode("utf-8")) for text, _ in read_texts(data))
    return {"bytes": num_bytes}


def encode(args, data: Path, cache: Path) -> dict:
    """On all cores, in batches as large as the cache's, nothing but the ids' number is kept."""
    tokenizer = load_tokenizer(args.tokenizer)
    batches, size = [[]], 0
    for text, _ in read_texts(data):
        batches[-1].append(text)
        size += len(text)
        if size > 1_000_000 * len(batches):
            if len(batches) == 30:
                break
            batches.append([])
    begin, cpu = time.perf_counter(), time.process_time()
    tokens = sum(len(ids) for batch in batches for ids in tokenizer.encode_texts(batch))
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    return {"tokens": tokens, "seconds": seconds, "cpu_seconds": cpu_seconds}


def tokenise(args, data: Path, cache: Path) -> dict:
    file = cached_tokens(data, load_tokenizer(args.tokenizer), cache, show_progress=False)
    return {"tokens": file.num_tokens, "bytes": file.num_bytes, "documents": file.num_documents}


def start(args, data: Path, cache: Path) -> dict:
    """What train_pretrain.py does up to its first batch, without the model."""
    begin = time.perf_counter()
    import train_pretrain  # noqa: F401

    imports = time.perf_counter() - begin
    begin, cpu = time.perf_counter(), time.process_time()
    loader = first_loader(args, data, cache)
    X, _, _ = next(iter(loader))
    assert X.shape == (args.batch_size, args.max_seq_len)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    return {"import_seconds": imports, "seconds": seconds, "cpu_seconds": cpu_seconds}


def rehash(args, data: Path, cache: Path) -> dict:
    (cache / "content_hashes.json").unlink()
    return start(args, data, cache)


def load(args, data: Path, cache: Path) -> dict:
    loader = first_loader(args, data, cache)
    batches = iter(loader)
    next(batches)
    rows = 0
    begin, cpu = time.perf_counter(), time.process_time()
    for X, _, _ in batches:
        rows += len(X)
        if time.process_time() - cpu > 5:
            break
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    tokens = rows * args.max_seq_len
    return {"rows": rows, "tokens": tokens, "seconds": seconds, "cpu_seconds": cpu_seconds}


def first_loader(args, data: Path, cache: Path):
    from torch.utils.data import DataLoader

    from dataset.packing import split_documents
    from dataset.pretrain import PretrainDataset
    from dataset.sampler import UpdateSampler

    tokenizer = load_tokenizer(args.tokenizer)
    file = cached_tokens(data, tokenizer, cache)
    stream, _ = split_documents([file], 0.01)
    dataset = PretrainDataset(stream, args.max_seq_len)
    sampler = UpdateSampler(len(dataset), dataset.loss_tokens, args.batch_size)
    assert dataset.fingerprint
    return DataLoader(dataset, batch_sampler=sampler)


def run_step(name: str, args, data: Path, cache: Path):
    """Run one step here and print its figures as JSON."""
    begin, cpu = time.perf_counter(), time.process_time()
    result = globals()[name](args, data, cache)
    result.setdefault("seconds", time.perf_counter() - begin)
    result.setdefault("cpu_seconds", time.process_time() - cpu)
    status = Path("/proc/self/status")
    if status.exists():  # the most memory this process held at any time
        result["peak_bytes"] = int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) * 1024
    print(json.dumps(result))


def measure(name: str, args, work_dir: Path) -> dict:
    """Run one step in a new process."""
    command = [sys.executable, __file__, "--step", name, "--work_dir", work_dir]
    for flag in ("tokenizer", "max_seq_len", "batch_size"):
        command += [f"--{flag}", getattr(args, flag)]
    done = subprocess.run(map(str, command), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def row(name: str, result: dict) -> str:
    """One line of the table."""
    cpu = result["cpu_seconds"]
    cells = [f"{STEPS[name]:41}", f"{result['seconds']:8.2f}", f"{cpu:8.2f}"]
    cells.append(
        f"{result['tokens'] / result['seconds']:13,.0f}" if "tokens" in result else " " * 13
    )
    cells.append(f"{result['tokens'] / cpu:13,.0f}" if "tokens" in result else " " * 13)
    cells.append(f"{result.get('peak_bytes', 0) / 2**20:7,.0f}")
    if "import_seconds" in result:
        cells.append(f"  and {result['import_seconds']:.2f} s of imports")
    if "rows" in result:
        cells.append(f"  {result['rows'] / result['seconds']:,.0f} rows/s")
    return " ".join(cells)


def benchmark(args, work_dir: Path):
    data = work_dir / "text.jsonl"
    sources = args.data_path or sorted(SHARED.glob("pretrain_*.jsonl"))
    make_text(
        data, sources or [write_demo("out/demo_data")["pretrain.jsonl"]], args.gigabytes * 1e9
    )
    time.sleep(2.1)  # the hash of a file that is younger is not remembered
    print(f"{data.stat().st_size / 1e6:,.0f} MB of text, {os.cpu_count()} cores")
    print(f"{'':41} seconds  CPU sec      tokens/s  tok/CPU sec     MiB")
    results = {}
    for name in STEPS:
        results[name] = measure(name, args, work_dir)
        print(row(name, results[name]), flush=True)
    print(json.dumps({"bytes": data.stat().st_size, "cores": os.cpu_count(), **results}))


def main():
    args = parse_args()
    if args.step:
        work_dir = Path(args.work_dir)
        run_step(args.step, args, work_dir / "text.jsonl", work_dir / "cache")
    elif args.work_dir:
        Path(args.work_dir).mkdir(parents=True, exist_ok=True)
        benchmark(args, Path(args.work_dir))
    else:
        with tempfile.TemporaryDirectory() as folder:
            benchmark(args, Path(folder))


if __name__ == "__main__":
    forgive_encodings()
    main()
