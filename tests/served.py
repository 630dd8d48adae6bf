"""Servers for tests: serve_model.py as a process, and the same application in a thread here.

`tiny_folder` writes the model: random, a few thousand numbers, with our tokenizer and chat format.
"""

import contextlib
import os
import re
import selectors
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from dataset.tokenizer import load_tokenizer
from serving.app import make_app
from serving.connection import server_config
from serving.metrics import Metrics
from serving.models import open_models
from serving.worker import Worker

REPOSITORY = Path(__file__).resolve().parent.parent
TEMPLATE = REPOSITORY / "model" / "tokenizer" / "chat_template.jinja"
START_SECONDS = 120  # for imports on a busy machine


def tiny_folder(folder: Path, tokenizer_folder: Path, seed: int = 0, context: int = 512) -> Path:
    """A chat model of random numbers, written by transformers."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(tokenizer_folder)
    config = Qwen3Config(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, intermediate_size=64, max_position_embeddings=context,
        tie_word_embeddings=True, initializer_range=0.4,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save(folder, chat_template=False)
    shutil.copyfile(TEMPLATE, folder / "chat_template.jinja")
    return folder


def start(folder: Path, *flags, ready: bool = True) -> tuple[subprocess.Popen, str]:
    """serve_model.py on a free port: the process, and its address once it says that it is there.

    ready: False does not wait, and the address is "". Output goes to process.stdout, errors to
    process.stderr, as text. Whoever starts it ends it (`stop`).
    """
    command = [sys.executable, "serve_model.py", "--model", folder, "--port", "0", *flags]
    process = subprocess.Popen(
        [str(word) for word in command], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if not ready:
        return process, ""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline() if selector.select(START_SECONDS) else ""
    found = re.search(r"http://\S+", line)
    if found is None:
        process.kill()
        raise AssertionError(f"serve_model.py did not start: {line}{process.stderr.read()}")
    return process, found[0]


def stop(process: subprocess.Popen, seconds: float = 60) -> tuple[int, str]:
    """SIGTERM, and SIGKILL for one that does not listen: (exit status, what it wrote to stderr)."""
    if process.poll() is None:
        process.terminate()
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
        raise AssertionError(f"still there {seconds} seconds after SIGTERM: {errors}") from None
    return process.returncode, errors


@contextlib.contextmanager
def serving(folder: Path, *flags) -> Iterator[tuple[str, int]]:
    """serve_model.py while the block runs: (address, process id). It has to end with status 0."""
    process, url = start(folder, *flags)
    try:
        yield url, process.pid
    finally:
        status, errors = stop(process)
    assert status == 0, errors


@contextlib.contextmanager
def inside(
    folder: Path, api_key: str | None = None, rows: int = 4, waiting: int = 16,
    seconds: float = 60.0, default_tokens: int = 64, names: set[str] = frozenset(),
    adapters: dict | None = None,
) -> Iterator[tuple[str, Worker]]:  # fmt: skip
    """The application in a thread of this process: (address, its worker)."""
    models = open_models(
        folder, adapters or {}, torch.device("cpu"), torch.float32, False, False, rows, None
    )
    worker = Worker(models, Metrics(), rows, waiting, seconds)
    with running(make_app(worker, folder, default_tokens, names, api_key), worker) as url:
        yield url, worker


@contextlib.contextmanager
def running(app, worker: Worker) -> Iterator[str]:
    """Any application with serve_model.py's settings of HTTP, on a free port."""
    import uvicorn

    from serve_model import listen

    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(server_config(app, 5))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started, 30)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
    assert not thread.is_alive()


def wait_for(condition, seconds: float = 10.0):
    """Until condition() is true; AssertionError if it does not become so."""
    end = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < end, f"not within {seconds} seconds"
        time.sleep(0.02)


def gauge(url: str, name: str, headers: dict | None = None) -> float:
    """The sum of what /metrics tells under this name, over its labels."""
    lines = httpx.get(f"{url}/metrics", headers=headers).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[{{ ]", line))


def is_free(url: str, headers: dict | None = None) -> bool:
    """Whether nothing is answered and no row is in use."""
    names = ("minimind_sequences", "minimind_rows_in_use")
    return sum(gauge(url, name, headers) for name in names) == 0
