"""How much a server does for one client and for many, and how long the first token takes.

    python benchmarks/bench_serve.py                                  # preset base, random weights
    python benchmarks/bench_serve.py --model out/full_sft --temperature 0.7
    python benchmarks/bench_serve.py --vllm ../vllm/bin/vllm          # beside vLLM, the same folder

Starts serve_model.py (and vLLM's server, where it is given) on this machine and asks it as clients
do: streamed completions, each client beginning its next request when the last one is finished. How
long prompts and answers are differs by half up and down, so that clients do not march in step; no
two prompts begin alike, so that nothing of them is cached. One client and many take turns; figures
are medians of --repeats rounds, of one server and then of the other. Last comes one JSON line.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from dataset.tokenizer import load_tokenizer
from model.config import PRESETS, LMConfig
from model.hf_format import save_model
from model.model import MiniMindLM
from training.checkpoint import model_folder
from training.cli import TOKENIZER
from training.terminal import forgive_encodings

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 600


def parse_args():
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    add = parser.add_argument
    add("--preset", choices=list(PRESETS), default="base", help="size of the model")
    add("--model", type=Path, default=None, help="a folder or run in place of random weights")
    add("--clients", type=int, default=16, help="clients at a time, beside one")
    add("--requests", type=int, default=10, help="requests of each client in a round")
    add("--prompt_tokens", type=int, default=64, help="tokens of a prompt, on average")
    add("--new_tokens", type=int, default=64, help="tokens to write after it, on average")
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    add("--repeats", type=int, default=5, help="rounds after the warm-up")
    add("--flags", default="", help='more flags of serve_model.py, as in --flags="--compile"')
    add("--vllm", default=None, help="the command vllm, to be measured beside")
    return parser.parse_args()


@contextlib.contextmanager
def started(
    command: list, ready: str, environment: dict, url: str | None = None
) -> Iterator[tuple[str, int]]:
    """A server's address and process, once it has printed `ready` (a pattern: its address)."""
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
    process = subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, env=os.environ | environment, text=True,
        stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        end, found = time.monotonic() + START_SECONDS, None
        while found is None:
            time.sleep(0.2)
            log.seek(0)
            text = log.read()
            found = re.search(ready, text)
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{command[0]} did not start:\n{text[-3000:]}")
        yield url or found[0], process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


async def one_request(host: str, port: int, body: dict) -> tuple[float, float, int]:
    """Seconds to the first text, seconds in all, tokens."""
    data = json.dumps(body).encode()
    begin = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    first, tokens = None, 0
    async for line in reader:
        if not line.startswith(b"data: {"):
            if line.startswith(b"HTTP") and b" 200 " not in line:
                raise SystemExit(line + await reader.read())
            continue
        chunk = json.loads(line[6:])
        if chunk["choices"] and first is None:
            first = time.perf_counter() - begin
        if chunk.get("usage"):
            tokens = chunk["usage"]["completion_tokens"]
    writer.close()
    return first, time.perf_counter() - begin, tokens


async def measured(url: str, model: str, clients: int, args, rng, vocabulary: int) -> dict:
    """Tokens per second of all clients, and the median time to the first token."""
    host, port = url.removeprefix("http://").split(":")

    def about(count: int) -> int:
        return rng.randint(max(1, count // 2), count * 3 // 2)

    def body() -> dict:
        prompt = [rng.randrange(300, vocabulary) for _ in range(about(args.prompt_tokens))]
        return {
            "model": model, "prompt": prompt,
            "max_tokens": about(args.new_tokens), "temperature": args.temperature, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip

    async def client() -> list[tuple[float, float, int]]:
        return [await one_request(host, int(port), body()) for _ in range(args.requests)]

    begin = time.perf_counter()
    everyone = await asyncio.gather(*(client() for _ in range(clients)))
    answers = [answer for own in everyone for answer in own]
    seconds = time.perf_counter() - begin
    return {
        "tokens_per_s": sum(tokens for _, _, tokens in answers) / seconds,
        "first_token_ms": statistics.median(first for first, _, _ in answers) * 1e3,
    }


def make_folder(folder: Path, preset: str) -> Path:
    torch.manual_seed(0)
    tokenizer = load_tokenizer(TOKENIZER)
    save_model(MiniMindLM(LMConfig.preset(preset)), folder, tokenizer.eos_id)
    tokenizer.save(folder, chat_template=False)
    return folder


def servers(args, folder: Path) -> Iterator[tuple]:
    """Name, what it calls the model, and a context manager in which it runs, of each in turn.

    Never two at a time: an idle one may use a core, and one that is stopped has to wake up.
    """
    flags = ["--model", folder, "--port", "0", *shlex.split(args.flags)]
    address = re.escape("http://") + r"[\d.]+:\d+"
    yield "ours", None, started([sys.executable, "serve_model.py", *flags], address, {})
    if args.vllm:
        url = "http://127.0.0.1:18471"
        flags = ["--host", "127.0.0.1", "--port", "18471", "--dtype", "float32",
                 "--max-model-len", "2048", "--served-model-name", "model"]  # fmt: skip
        environment = {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
        ready = "Application startup complete"
        server = started([args.vllm, "serve", folder, *flags], ready, environment, url)
        yield "vLLM", "model", server


def main():
    args = parse_args()
    rng = random.Random(0)
    with contextlib.ExitStack() as stack:
        if args.model is None:
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model"
            temporary.mkdir()
            folder = make_folder(temporary, args.preset)
        else:
            folder = model_folder(args.model, "--model")
        vocabulary, rounds = load_tokenizer(folder).vocab_size, {}
        for name, model, server in servers(args, folder):
            with server as (url, _):
                for turn in range(args.repeats + 1):
                    for clients in (1, args.clients):
                        result = asyncio.run(measured(url, model, clients, args, rng, vocabulary))
                        if turn:  # the first round warms up
                            rounds.setdefault((name, clients), []).append(result)
    table = {
        f"{name}, {clients}": {
            field: round(statistics.median(result[field] for result in results), 2)
            for field in results[0]
        }
        for (name, clients), results in rounds.items()
    }
    print(f"{folder if args.model else args.preset}, {torch.get_num_threads()} threads\n")
    print("| server, clients | tokens/s | first token ms |\n|---|---|---|")
    for name, row in table.items():
        print(f"| {name} | {row['tokens_per_s']:.1f} | {row['first_token_ms']:.1f} |")
    ratios = {}
    for name in dict.fromkeys(name for name, _ in rounds):
        one, many = table[f"{name}, 1"], table[f"{name}, {args.clients}"]
        ratios[name] = {
            "tokens_per_s": round(many["tokens_per_s"] / one["tokens_per_s"], 2),
            "first_token": round(many["first_token_ms"] / one["first_token_ms"], 2),
        }
        print(f"{name}: {args.clients} clients : one client, {ratios[name]}")
    print(
        json.dumps({k: str(v) for k, v in vars(args).items()} | {"table": table, "ratios": ratios})
    )


if __name__ == "__main__":
    forgive_encodings()
    main()
