"""Servers for tests: serve_model.py as a process, and the same application in a thread here.

`tiny_folder` writes the model: random, a few thousand numbers, with our tokenizer and chat format.
"""

import contextlib
import http.client
import json
import multiprocessing
import os
import re
import selectors
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import torch
import uvicorn
from fastapi import FastAPI
from transformers import Qwen3Config, Qwen3ForCausalLM

from dataset.tokenizer import load_tokenizer
from serve_model import listen
from serving.app import make_app
from serving.connection import server_config
from serving.decoding import Decoding, OpenModel
from serving.metrics import Metrics
from serving.models import end_ids, open_models
from serving.worker import Worker

REPOSITORY = Path(__file__).resolve().parent.parent
TEMPLATE = REPOSITORY / "model" / "tokenizer" / "chat_template.jinja"
START_SECONDS = 120  # for imports on a busy machine


class Inside(NamedTuple):
    url: str
    app: FastAPI
    worker: Worker
    models: dict[str, OpenModel]


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
) -> Iterator[Inside]:  # fmt: skip
    """The application in a thread of this process, and what decodes in another."""
    models = open_models(folder, adapters or {}, "cpu", "float32", False, False, rows, None)
    ours, theirs = multiprocessing.Pipe()
    threading.Thread(target=Decoding(models, theirs).run, daemon=True).start()
    described = {name: model.described for name, model in models.items()}
    worker = Worker(described, ours, Metrics(), rows, waiting, seconds)
    app = make_app(worker, folder / "no_runs", default_tokens, names, api_key)
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(server_config(app, 5))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started, 30)
        yield Inside(f"http://127.0.0.1:{listening.getsockname()[1]}", app, worker, models)
    finally:
        server.should_exit = True
        thread.join(timeout=30)
    assert not thread.is_alive()


def raw(url: str, *parts: bytes | float, seconds: float = 20) -> tuple[int, dict, bytes]:
    """Send these bytes as they are, waiting so many seconds at each number: what comes back.

    (status, headers by their names in small letters, body). ConnectionError: nothing came back.
    """
    with connected(url, seconds) as client:
        for part in parts:
            if isinstance(part, bytes):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    client.sendall(part)
            else:
                time.sleep(part)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, headers, answer.read()


def connected(url: str, seconds: float = 20) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=seconds)


def request_bytes(path: str, body: dict | None = None, method: str = "", more: str = "") -> bytes:
    """A request as it goes over the wire. more: further header lines, each with its line end."""
    content = b"" if body is None else json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    lines = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{more}"
    if body is not None:
        lines += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return lines.encode() + b"\r\n" + content


def is_error(body: bytes | str) -> bool:
    """Whether this is OpenAI's error object and nothing else, with no trace of Python's."""
    try:
        content = json.loads(body)
    except ValueError:
        return False
    if not isinstance(content, dict) or list(content) != ["error"]:
        return False
    error = content["error"]
    fits = isinstance(error, dict) and set(error) == {"message", "type", "param", "code"}
    fits = fits and isinstance(error["message"], str) and isinstance(error["type"], str)
    fits = fits and all(isinstance(error[name], str | None) for name in ("param", "code"))
    return fits and bool(error["message"]) and "Traceback" not in error["message"]


def all_routes(app: FastAPI) -> list[tuple[str, str]]:
    """(method, path) of everything that the application answers, parameters as their names."""

    def found(routes, prefix: str = ""):
        for route in routes:
            included = getattr(route, "original_router", None)
            if included is not None:
                yield from found(included.routes, prefix + route.include_context.prefix)
            else:
                path = re.sub(r"\{(\w+)[^}]*\}", r"\1", prefix + route.path)
                yield from ((method, path) for method in sorted(route.methods))

    routes = list(found(app.routes))
    assert {path.replace("{", "").replace("}", "") for path in app.openapi()["paths"]} <= {
        path for _, path in routes
    }
    return routes


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


def endless(folder: Path, tokens: int = 100_000) -> dict:
    """Fields of a request whose answer has exactly so many tokens: no end is ever drawn."""
    ends = end_ids(load_tokenizer(folder), folder)
    bias = {str(id): -100 for id in ends}
    return {"prompt": "Once", "max_tokens": tokens, "temperature": 0, "logit_bias": bias}
