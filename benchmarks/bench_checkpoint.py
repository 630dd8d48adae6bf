"""What saving a checkpoint costs training: the stall, as a share of the time the write takes.

    python benchmarks/bench_checkpoint.py                               # preset small, CPU
    python benchmarks/bench_checkpoint.py --preset base --device cuda

A thread copies weights and AdamW's moments to host memory and writes the copy. Training waits in
`save`, and before its next optimizer step if the copy is not finished by then: both together are
the stall. Target: at most 5% of the time from the save to the finished checkpoint. Also measured:
the update that follows a save against one that does not; on a CPU both compete for the cores.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model.config import PRESETS, LMConfig
from model.hf_format import save_model
from model.model import MiniMindLM
from training.compute import choose_dtype
from training.losses import masked_cross_entropy
from training.optimizers import build_optimizer
from training.terminal import forgive_encodings
from training.writer import CheckpointWriter


def parse_args():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="small", help="size of the model (default small)")
    add("--device", default="cpu", help="cpu or cuda (default cpu)")
    add("--saves", type=int, default=6, help="checkpoints written, the first apart (default 6)")
    add("--batch_size", type=int, default=4, help="rows of 256 tokens per update (default 4)")
    add("--out_dir", default=None, help="folder on the disk in question; None: a temporary one")
    return parser.parse_args()


def synchronize(device: str):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


class Trainer:
    """A model in training, as far as its checkpoints go."""

    def __init__(self, args, out_dir: Path):
        config = LMConfig.preset(args.preset)
        self.device, self.out_dir = args.device, out_dir
        self.model = MiniMindLM(config).to(args.device)
        self.optimizer = build_optimizer("adamw", self.model, 1e-3, 0.1, torch.float32)
        self.writer = CheckpointWriter(out_dir, keep=2, is_main=True)
        self.X = torch.randint(config.vocab_size, (args.batch_size, 256), device=args.device)
        dtype = choose_dtype("auto", torch.device(args.device))
        self.autocast = torch.autocast(args.device, dtype, enabled=dtype != torch.float32)
        self.step = 0

    def update(self) -> dict:
        """One update; seconds of all of it, and of waiting for the copy of an earlier save."""
        begin = time.perf_counter()
        with self.autocast:
            logits, _ = self.model(self.X)
            loss = masked_cross_entropy(logits, self.X, torch.ones_like(self.X))
        loss.backward()
        ready = time.perf_counter()
        self.writer.wait_for_copy()
        waited = time.perf_counter() - ready
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        synchronize(self.device)
        self.step += 1
        return {"update": time.perf_counter() - begin, "waited": waited}

    def save(self) -> dict:
        """One save and the updates until it is written; seconds."""
        begin = time.perf_counter()
        state = {"step": self.step, "best_step": None}
        self.writer.save(self.model, self.optimizer, state, self.write_model)
        in_save = time.perf_counter() - begin
        first = self.update()
        while self.writer._thread.is_alive():
            self.update()
        total = time.perf_counter() - begin
        self.writer.wait()
        stall = in_save + first["waited"]
        return {"stall": stall, "update": first["update"] + in_save, "total": total}

    def write_model(self, folder: Path, weights: dict):
        save_model(self.model, folder, 0, weights)


def benchmark(args, out_dir: Path):
    trainer = Trainer(args, out_dir)
    usual = [trainer.update()["update"] for _ in range(6)][1:]
    saves = []
    for _ in range(args.saves):
        saves.append(trainer.save())
        usual += [trainer.update()["update"] for _ in range(2)]
    trainer.writer.close()
    newest = max(out_dir.glob("step-*"))
    size = sum(file.stat().st_size for file in newest.iterdir())
    where = "cpu" if args.device == "cpu" else torch.cuda.get_device_name(args.device)
    print(f"{args.preset}: {size / 1e6:,.0f} MB a checkpoint, {where}, torch {torch.__version__}")
    print(f"an update without a save takes {statistics.median(usual) * 1e3:,.1f} ms")
    print("save    stall, ms  until written, ms    share   update with the save, ms")
    median = {key: statistics.median(save[key] for save in saves[1:]) for key in saves[0]}
    for name, save in (("first", saves[0]), ("median", median)):
        print(
            f"{name:6} {save['stall'] * 1e3:10.1f} {save['total'] * 1e3:18.1f}"
            f" {save['stall'] / save['total']:8.1%} {save['update'] * 1e3:26.1f}"
        )
    result = {"preset": args.preset, "device": where, "bytes": size, "first": saves[0]}
    result |= {"median": median, "share": median["stall"] / median["total"]}
    print(json.dumps(result | {"usual_update": statistics.median(usual)}))


def main():
    args = parse_args()
    if args.out_dir is not None:
        benchmark(args, Path(args.out_dir))
    else:
        with tempfile.TemporaryDirectory() as folder:
            benchmark(args, Path(folder))


if __name__ == "__main__":
    forgive_encodings()
    main()
