"""Tiny runs of all training scripts in processes of their own, made to be killed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from dataset.tokenizer import load_tokenizer
from model.config import LMConfig
from model.hf_format import save_model
from model.model import MiniMindLM
from training.run_log import SPEEDS

REPOSITORY = Path(__file__).resolve().parent.parent
STEPS = 12
TINY = ["--hidden_size", "32", "--num_hidden_layers", "2", "--num_attention_heads", "2",
        "--num_key_value_heads", "1", "--intermediate_size", "64"]  # fmt: skip
COMMON = ["--device", "cpu", "--dtype", "float32", "--no-compile", "--max_steps", str(STEPS),
          "--log_interval", "1", "--eval_interval", "4", "--save_interval", "2",
          "--warmup_steps", "2", "--dropout", "0.1"]  # fmt: skip


def make_inputs(folder: Path, tokenizer_dir: Path) -> dict[str, list[str]]:
    """Write small data files and a base model; return the flags of each script by its name."""
    texts, chats, pairs, judged = [], [], [], []
    for i in range(40):
        texts.append({"text": f"Story {i}. " + "The cat sat on the mat. " * (i % 7 + 1)})
        turns = [
            {"role": "user", "content": f"What is {i}?"},
            {"role": "assistant", "content": "The cat. " * (i % 5 + 1)},
        ]
        chats.append({"conversations": turns * (i % 3 + 1)})
        other = {"role": "assistant", "content": f"No, {i}."}
        pairs.append({"chosen": turns, "rejected": [turns[0], other]})
        judged.append({"messages": turns if i % 3 else [turns[0], other], "label": i % 3 > 0})
    files = {}
    by_name = {"texts": texts, "chats": chats, "pairs": pairs, "judged": judged}
    for name, records in by_name.items():
        files[name] = str(folder / f"{name}.jsonl")
        Path(files[name]).write_text("".join(json.dumps(record) + "\n" for record in records))
    base = folder / "base"
    base.mkdir()
    torch.manual_seed(0)
    config = LMConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=64, initializer_range=0.1,
    )  # fmt: skip
    tokenizer = load_tokenizer(tokenizer_dir)
    save_model(MiniMindLM(config), base, tokenizer.eos_id)
    tokenizer.save(base, chat_template=False)
    common = [*COMMON, "--cache_dir", str(folder / "cache")]
    tuning = ["--init_from", str(base), "--max_seq_len", "160", "--val_fraction", "0.2", *common]
    return {
        "pretrain": ["--data_path", files["texts"], "--tokenizer", str(tokenizer_dir), *TINY,
                     "--max_seq_len", "32", "--val_fraction", "0.1", *common],
        "full_sft": ["--data_path", files["chats"], *tuning],
        "lora": ["--data_path", files["chats"], "--lora_dropout", "0.1", *tuning],
        "dpo": ["--data_path", files["pairs"], *tuning],
        "kto": ["--data_path", files["judged"], *tuning],
        "reward": ["--data_path", files["pairs"], *tuning],
    }  # fmt: skip


def start(
    script: str | Path, out_dir: Path, *flags, processes: int = 1, max_restarts: int = 0,
    folder: Path = REPOSITORY,
):  # fmt: skip
    """Start train_<script>.py, or the script at a path, in `folder`, under torchrun for several."""
    file = script if str(script).endswith(".py") else REPOSITORY / f"train_{script}.py"
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes,
                    "--max-restarts", max_restarts]  # fmt: skip
    command += [file, "--out_dir", out_dir, *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [str(word) for word in command], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def run(
    script, out_dir: Path, *flags, processes: int = 1, max_restarts: int = 0,
    expect: int | None = 0, folder: Path = REPOSITORY, timeout: float = 300,
) -> str:  # fmt: skip
    """Run a script to its end; its output. `expect` is its exit status, None any."""
    process = start(
        script, out_dir, *flags, processes=processes, max_restarts=max_restarts, folder=folder
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:  # it would go on without us
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert expect is None or process.returncode == expect, output
    return output


def result(out_dir: Path) -> dict:
    """What a finished run must reproduce: SHA-256 of weights and optimizer, the metrics."""
    last = out_dir / f"step-{STEPS:08d}"
    hashes = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in [*last.glob("*.safetensors"), *last.glob("resume/*.tensors")]
    }
    assert len(hashes) >= 2
    return {"files": hashes, "metrics": metrics(out_dir)}


def metrics(out_dir: Path) -> list[dict]:
    """The lines of metrics.jsonl without the speeds."""
    lines = map(json.loads, (out_dir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in SPEEDS} for line in lines]


def figures(out_dir: Path) -> list[dict]:
    """The same without events: what was measured, all numbers."""
    return [line for line in metrics(out_dir) if "event" not in line]
