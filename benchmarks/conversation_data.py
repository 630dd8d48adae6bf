"""How fast conversations and pairs become batches: what `bench_data.py --conversations` measures.

The scripts' own functions run, training/data.py's, on real conversations that are repeated until
the file is large enough; no two of them are equal.
"""

import argparse
import json
import sys
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from benchmarks.own_process import ROOT, cpu_seconds, own_bytes

SHARED = ROOT.parent / "shared" / "data"
SCRIPTS = {"conversations": "train_full_sft", "tools": "train_full_sft", "pairs": "train_dpo"}
STEPS = {
    "encode": "first start: encoding into the cache",
    "start": "second start, up to the first batch",
    "resume": "resumed in the middle of the epoch",
    "load": "loader, --num_workers 0",
    "pack": "best fit alone",
}
STEPS_OF = {
    "conversations": list(STEPS),
    "tools": ["encode", "start"],
    "pairs": ["encode", "start", "resume"],
}


def sources_of(kind: str) -> list[Path]:
    """Real data files of a kind, those of the demo where there are none."""
    from dataset.demo import write_demo

    names = {"conversations": "sft_[!t]*", "tools": "sft_tools*", "pairs": "dpo_*"}
    if found := sorted(SHARED.glob(f"{names[kind]}.jsonl")):
        return found
    return [write_demo("out/demo_data")["dpo.jsonl" if kind == "pairs" else "sft.jsonl"]]


def make_records(path: Path, sources: list, size: int, with_tools: bool = False):
    """Write a jsonl file of `size` bytes in which no two records are equal.

    In every repetition all contents are cut at another place and their parts swapped; equal
    contents of a record, such as the prompt of a pair, stay equal. with_tools: of the records those
    that offer tools.
    """
    lines = [line for source in sources for line in open(source, encoding="utf-8")]  # noqa: SIM115
    records = [json.loads(line) for line in lines if '"tools"' in line or not with_tools]
    written = number = 0
    with open(path, "w", encoding="utf-8") as file:
        for repetition in count():
            for record in records:
                number += 1
                line = json.dumps(_changed(record, repetition, number), ensure_ascii=False)
                file.write(line + "\n")
                written += len(line.encode("utf-8")) + 1
                if written >= size:
                    return


def _changed(record: dict, repetition: int, number: int) -> dict:
    """The record with its contents cut and swapped, numbered in its first words and tools."""
    changed = dict(record)
    for key, messages in record.items():
        if not isinstance(messages, list) or not messages or "content" not in messages[0]:
            continue
        changed[key] = [dict(message) for message in messages]
        for message in changed[key]:
            if text := message["content"]:
                cut = repetition * 7919 % len(text)
                message["content"] = f"{text[cut:]} {text[:cut]}"
            if tools := message.get("tools"):
                description = '"description": "'
                message["tools"] = tools.replace(description, f"{description}{number} ", 1)
        first = next(message for message in changed[key] if message["role"] == "user")
        first["content"] += f" {number}"
    return changed


# ---- the steps, each run in a process of its own; imports are no part of their seconds


def step(name: str, kind: str, folder: Path, args: argparse.Namespace) -> dict:
    """Run one step on folder/data.jsonl and its cache; the figures."""
    begin = time.perf_counter()
    flags = _flags(kind, folder, args)
    imports = time.perf_counter() - begin
    begin, cpu = time.perf_counter(), cpu_seconds()
    dataset, _ = _datasets(kind, flags, args.tokenizer)
    figures = {"records": dataset.encoded.num_records, "dataset_rows": len(dataset)}
    if name == "encode":
        figures["tokens"] = int(dataset.encoded.lengths().sum())
    elif name == "pack":
        return _pack(dataset, flags.max_seq_len, args.lengths)
    else:
        loader = _loader(dataset, flags, resumed=name == "resume")
        batches = iter(loader)
        assert len(next(batches)[0]) == flags.batch_size
        if name == "load":
            return _load(batches, flags.max_seq_len) | {"import_seconds": imports}
    took = {"seconds": time.perf_counter() - begin, "cpu_seconds": cpu_seconds() - cpu}
    return {"import_seconds": imports} | took | figures


def _flags(kind: str, folder: Path, args: argparse.Namespace) -> argparse.Namespace:
    """The flags of the script that trains on such data, as it reads them itself."""
    import train_dpo
    import train_full_sft

    script = {"train_dpo": train_dpo, "train_full_sft": train_full_sft}[SCRIPTS[kind]]
    words = ["--data_path", folder / "data.jsonl", "--cache_dir", folder / "cache"]
    words += ["--batch_size", args.batch_size, "--device", "cpu"]
    words += ["--max_seq_len", args.max_seq_len or script.SEQ_LEN]
    before, sys.argv = sys.argv, [script.__file__, *map(str, words)]
    try:
        return script.parse_args()
    finally:
        sys.argv = before


def _datasets(kind: str, flags: argparse.Namespace, tokenizer: str) -> tuple:
    """(dataset, val_dataset or None), as the script makes them."""
    from dataset.tokenizer import load_tokenizer
    from training import data
    from training.distributed import init_distributed

    run = SimpleNamespace(
        ranks=init_distributed("cpu"), args=flags, data_before=None,
        say=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    read = data.pairs if kind == "pairs" else data.conversations
    tokenizer = load_tokenizer(tokenizer)
    tokenizer.chat_template = None  # a pretrained model has none: the data chooses
    return read(flags, tokenizer, run)


def _loader(dataset, flags: argparse.Namespace, resumed: bool):
    """The loader of a run that begins, or that goes on from the middle of its first epoch."""
    from torch.utils.data import DataLoader

    from dataset.sampler import UpdateSampler

    count = dataset.num_pairs if hasattr(dataset, "num_pairs") else dataset.loss_tokens
    sampler = UpdateSampler(len(dataset), count, flags.batch_size, seed=flags.seed)
    assert dataset.fingerprint  # every start compares it
    if resumed:
        sampler.set_position(0, sampler.updates_per_epoch // 2)
    return DataLoader(dataset, batch_sampler=sampler)


def _load(batches, max_seq_len: int) -> dict:
    """Five CPU seconds of batches, or all there are."""
    rows = 0
    begin, cpu = time.perf_counter(), time.process_time()
    for X, *_ in batches:
        rows += len(X)
        if time.process_time() - cpu > 5:
            break
    took = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
    return {"rows": rows, "tokens": rows * max_seq_len} | took


def _pack(dataset, max_seq_len: int, number: int) -> dict:
    """Best fit on `number` lengths drawn from those of the conversations."""
    from dataset.best_fit import best_fit

    tokens = dataset.encoded.cut_lengths(max_seq_len + 1)
    lengths = (tokens[tokens > 0] - 1).astype(np.uint32)
    lengths = np.random.default_rng(0).choice(lengths, number)
    before, begin, cpu = own_bytes(), time.perf_counter(), cpu_seconds()
    items, ends = best_fit(lengths, max_seq_len)
    took = {"seconds": time.perf_counter() - begin, "cpu_seconds": cpu_seconds() - cpu}
    efficiency = lengths.sum(dtype=np.int64) / (len(ends) * max_seq_len)
    note = (
        f"{len(items):,} items, {efficiency:.3%} of the positions used, {before >> 20} MiB before"
    )
    return took | {"efficiency": efficiency, "bytes_before": before, "note": note}
