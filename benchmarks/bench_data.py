"""How fast text becomes batches: tokenising, start-up with a cold and a warm cache, the loader.

    python benchmarks/bench_data.py                     # 100 MB of text, a minute or two
    python benchmarks/bench_data.py --gigabytes 1       # what the targets are stated for
    python benchmarks/bench_data.py --data_path a.jsonl # other text to repeat
    python benchmarks/bench_data.py --conversations     # conversations, with tools too, and pairs

The text is repeated until it is large enough; in every repetition all documents are cut at another
place and their parts swapped, so that no two are equal. Every figure is of a process of its own.
On a shared machine wall times say little: tokens per CPU second count. MiB: the most a process
held; own MiB: the same apart from mapped files, which all processes of a machine share.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import conversation_data
from benchmarks.own_process import HEADER, ROOT, measure, print_figures, row
from dataset.demo import write_demo
from dataset.readers import read_texts
from dataset.token_cache import cached_tokens
from dataset.tokenizer import load_tokenizer
from training.terminal import forgive_encodings

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
    add("--data_path", nargs="+", default=None, help="data to repeat; None: real data, or the demo")
    add("--conversations", action="store_true", help="conversations and pairs in place of text")
    add("--tokenizer", default="model/tokenizer", help="tokenizer folder")
    add("--max_seq_len", type=int, default=None, help="tokens per row; None: the script's default")
    add("--batch_size", type=int, default=16, help="rows per batch of the loader (default 16)")
    add("--work_dir", default=None, help="folder for file and cache; None: a temporary one")
    add("--lengths", type=int, default=10_000_000, help="packed in --conversations (default 10⁷)")
    add("--step", default=None, help=argparse.SUPPRESS)  # in a process of its own
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


def benchmark(args, work_dir: Path):
    data = work_dir / "text.jsonl"
    sources = args.data_path or sorted(SHARED.glob("pretrain_*.jsonl"))
    make_text(
        data, sources or [write_demo("out/demo_data")["pretrain.jsonl"]], args.gigabytes * 1e9
    )
    print(f"{data.stat().st_size / 1e6:,.0f} MB of text, {os.cpu_count()} cores")
    results = measure_steps(args, data, STEPS)
    print(json.dumps({"bytes": data.stat().st_size, "cores": os.cpu_count(), **results}))


def benchmark_conversations(args, work_dir: Path):
    results = {"gigabytes": args.gigabytes, "cores": os.cpu_count()}
    for kind, steps in conversation_data.STEPS_OF.items():
        if args.data_path and kind != "conversations":
            continue
        data = work_dir / kind / "data.jsonl"
        data.parent.mkdir()
        sources = args.data_path or conversation_data.sources_of(kind)
        conversation_data.make_records(data, sources, args.gigabytes * 1e9, kind == "tools")
        print(f"{data.stat().st_size / 1e6:,.0f} MB of {kind}, {os.cpu_count()} cores")
        titles = {step: conversation_data.STEPS[step] for step in steps}
        results[kind] = measure_steps(args, data, titles, kind)
    print(json.dumps(results))


def measure_steps(args, data: Path, titles: dict[str, str], kind: str = "") -> dict:
    """Run steps, each in a process of its own, and print the table."""
    time.sleep(2.1)  # the hash of a file that is younger is not remembered
    print(HEADER)
    flags = {"work_dir": data.parent}
    for name in ("tokenizer", "max_seq_len", "batch_size", "lengths"):
        if getattr(args, name) is not None:
            flags[name] = getattr(args, name)
    results = {}
    for step, title in titles.items():
        results[step] = measure(__file__, flags | {"step": f"{kind}-{step}"})
        print(row(title, results[step]), flush=True)
    return results


def run_step(args):
    """One step in this process, whose figures are printed."""
    kind, _, name = args.step.rpartition("-")
    folder = Path(args.work_dir)
    if kind:
        print_figures(lambda: conversation_data.step(name, kind, folder, args))
    else:
        args.max_seq_len = args.max_seq_len or 256
        print_figures(lambda: globals()[name](args, folder / "text.jsonl", folder / "cache"))


def main():
    args = parse_args()
    run = benchmark_conversations if args.conversations else benchmark
    if args.step:
        run_step(args)
    elif args.work_dir:
        Path(args.work_dir).mkdir(parents=True, exist_ok=True)
        run(args, Path(args.work_dir))
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(args, Path(folder))


if __name__ == "__main__":
    forgive_encodings()
    main()
