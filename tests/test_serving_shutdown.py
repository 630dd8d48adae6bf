"""SIGTERM and Ctrl-C: running answers are finished or cut, new ones refused; exit status 0."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from served import (
    REPOSITORY,
    connected,
    endless,
    gauge,
    is_error,
    request_bytes,
    start,
    stop,
    tiny_folder,
    wait_for,
)  # fmt: skip

BOTH = [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer_dir):
    """A model with a context in which answers take long."""
    return tiny_folder(tmp_path_factory.mktemp("served"), tiny_tokenizer_dir, context=1 << 15)


class Answer(threading.Thread):
    """A request on its way: `events` so far, and all of `text` at the end."""

    def __init__(self, url: str, body: dict):
        super().__init__(daemon=True)
        self.url, self.body, self.text, self.status = url, body, "", None
        self.failure: Exception | None = None
        self.start()

    def run(self):
        try:
            with httpx.stream(
                "POST", f"{self.url}/v1/completions", json=self.body, timeout=60
            ) as answer:
                self.status = answer.status_code
                for part in answer.iter_text():
                    self.text += part
        except httpx.HTTPError as error:
            self.failure = error

    @property
    def events(self) -> list[str]:
        lines = self.text.splitlines()
        return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


@pytest.mark.parametrize("number", BOTH)
def test_running_answers_are_finished(folder, number):
    """A signal comes while two answers are on their way: both come to their end, streaming or not;
    new clients are refused; the exit status is 0 and nothing is written to stderr."""
    process, url = start(folder)
    body = endless(folder, 100)
    alone = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
    body["max_tokens"] = 800
    streamed = Answer(url, body | {"stream": True})
    whole = Answer(url, body)
    kept = connected(url)  # was there before
    wait_for(lambda: len(streamed.events) > 3 and gauge(url, "minimind_sequences") == 2, 30)
    process.send_signal(number)
    refused = 0
    while process.poll() is None and streamed.is_alive():
        try:
            status = httpx.post(f"{url}/v1/completions", json=endless(folder, 1)).status_code
            refused += status == 503
            assert status in (200, 503)  # 200: before the signal was there
        except httpx.TransportError:
            refused += 1
        time.sleep(0.05)
    streamed.join(30)
    whole.join(30)
    assert refused > 0
    assert streamed.status == whole.status == 200
    assert streamed.events[-1] == "[DONE]"
    told = "".join(json.loads(event)["choices"][0]["text"] for event in streamed.events[:-1])
    choice = json.loads(whole.text)["choices"][0]
    assert choice["text"] == told and told.startswith(alone.rstrip("\ufffd"))
    assert choice["finish_reason"] == "length"
    kept.close()
    assert process.wait(10) == 0
    assert stop(process) == (0, "")


@pytest.mark.slow
def test_a_connection_that_is_kept_is_refused(folder):
    """Who connected before SIGTERM and asks afterwards is told 503, or finds it closed."""
    process, url = start(folder)
    running = Answer(url, endless(folder, 1000) | {"stream": True})
    wait_for(lambda: running.events, 30)
    with connected(url) as client:
        client.sendall(request_bytes("/v1/completions", endless(folder, 1))[:-5])  # not all of it
        time.sleep(0.2)
        process.terminate()
        time.sleep(0.3)
        try:
            client.sendall(request_bytes("/v1/completions", endless(folder, 1))[-5:])
            seen = client.recv(10_000)
        except ConnectionError:
            seen = b""
    if seen:
        head, _, body = seen.partition(b"\r\n\r\n")
        assert b" 503 " in head and is_error(body) and b"retry-after" in head.lower()
    running.join(60)
    assert running.events[-1] == "[DONE]"
    assert process.wait(10) == 0
    assert stop(process) == (0, "")


def test_long_answers_are_cut(folder):
    """After --shutdown_seconds what still runs ends: a stream with an error as its last event, an
    answer in one piece with 503 and an error object; exit status 0, and no traceback."""
    process, url = start(folder, "--shutdown_seconds", 1)
    streamed = Answer(url, endless(folder, 30_000) | {"stream": True})
    whole = Answer(url, endless(folder, 30_000))
    silent = connected(url)
    half = connected(url)
    half.sendall(request_bytes("/v1/completions", endless(folder, 1))[:-5])
    deaf = connected(url)  # reads nothing of an answer that is larger than what the system keeps
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    body = endless(folder, 30_000) | {"stream": True, "logprobs": 20}
    deaf.sendall(request_bytes("/v1/completions", body))
    wait_for(lambda: streamed.events, 30)
    process.terminate()
    begun = time.perf_counter()
    streamed.join(30)
    whole.join(30)
    assert process.wait(30) == 0
    assert 0.5 < time.perf_counter() - begun < 15
    assert streamed.failure is None and is_error(streamed.events[-1])
    assert whole.status == 503 and is_error(whole.text) and "shutting down" in whole.text
    for client in (silent, half, deaf):
        client.close()
    assert stop(process) == (0, "")


@pytest.mark.parametrize("second", BOTH)
def test_a_second_signal_does_not_wait(folder, second):
    """Who signals twice wants it to end now: it does, and still with status 0."""
    process, url = start(folder, "--shutdown_seconds", 60)
    running = [Answer(url, endless(folder, 30_000) | {"stream": i > 0}) for i in range(3)]
    wait_for(lambda: running[1].events, 30)
    process.terminate()
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(second)
    begun = time.perf_counter()
    status = process.wait(30)
    assert time.perf_counter() - begun < 5
    _, errors = stop(process)
    assert status == 0 and "Traceback" not in errors


SLOW_MODELS = """
import sys, time, serve_model
from training import cli

def open_models(*_):
    print("opening", flush=True)
    time.sleep(60)

serve_model.decoding.start = open_models
sys.argv = ["serve_model.py", "--port", "0"]
cli.run(serve_model.main)
"""


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_while_models_are_opened(number):
    """There is nothing to finish: it ends at once, without a traceback, as signals end programs."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_MODELS], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "opening\n"
    process.send_signal(number)
    begun = time.perf_counter()
    assert process.wait(60) in {signal.SIGTERM: (0, -15), signal.SIGINT: (0, 130)}[number]
    assert time.perf_counter() - begun < 30
    assert "Traceback" not in stop(process)[1]
