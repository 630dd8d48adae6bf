"""Many clients at once, slow and vanishing ones, limits: nobody disturbs another, nothing leaks."""

import asyncio
import contextlib
import json
import random
import socket
import struct
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch
from served import (
    connected,
    endless,
    gauge,
    inside,
    is_error,
    is_free,
    request_bytes,
    serving,
    tiny_folder,
    wait_for,
)  # fmt: skip

from model import lora
from model.hf_format import load_model, weights_sha256
from serving import answers

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
CONTEXT = 1 << 14  # tokens: answers that take minutes are possible


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer_dir):
    return tiny_folder(tmp_path_factory.mktemp("served"), tiny_tokenizer_dir, context=CONTEXT)


@pytest.fixture(scope="module")
def server(folder):
    """A server of four rows in this process."""
    with inside(folder, rows=4, waiting=16) as found:
        yield found


def post(url: str, body: dict, path: str = COMPLETIONS, seconds: float = 60) -> httpx.Response:
    return httpx.post(url + path, json=body, timeout=seconds)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


# What clients ask for


def question(draw: random.Random) -> tuple[str, dict]:
    """A path and a body: some kind of request, whose answer is the same every time."""
    words = ["cat", "小猫", "the", "42", "def", "moon", "月亮", "\n", "<|im_end|>", "?"]
    text = " ".join(draw.choices(words, k=draw.randint(1, 40)))
    body = {"max_tokens": draw.randint(1, 24), "seed": draw.randint(0, 99)}
    body |= draw.choice([
        {"temperature": 0}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 20, "min_p": 0.05},
        {"temperature": 0, "logit_bias": {"5": 3}},
        {"temperature": 0.9, "frequency_penalty": 0.5, "presence_penalty": 0.5},
        {"temperature": 0, "repetition_penalty": 1.3},
    ])  # fmt: skip
    body |= draw.choice([{}, {}, {"n": 2}, {"n": 3, "stop": ["e", "qu"]}, {"stop": "h"},
                         {"stop": ["一", "\n", "zzz"]}])  # fmt: skip
    if draw.random() < 0.5:
        if draw.random() < 0.4:
            body |= {"logprobs": True, "top_logprobs": draw.randint(0, 5)}
        messages = [{"role": "system", "content": "Be brief."}] * (draw.random() < 0.5)
        return CHAT, body | {"messages": [*messages, {"role": "user", "content": text}]}
    if draw.random() < 0.4:
        body["logprobs"] = draw.randint(0, 5)
    if draw.random() < 0.3:
        body["echo"] = True
        body["max_tokens"] = draw.choice([0, 4])
    return COMPLETIONS, body | {"prompt": draw.choice([text, [5, 6, 7, 300], [text, "b"]])}


def assert_same(a: dict, b: dict):
    """Two whole answers say the same: choices, and usage but for what came from the cache.

    Log-probabilities may differ in float32's last places, with what is computed beside them.
    """
    for name in ("prompt_tokens", "completion_tokens"):
        assert a["usage"][name] == b["usage"][name]
    _assert_close(a["choices"], b["choices"])


def _assert_close(a, b):
    if isinstance(a, float) and isinstance(b, float):
        assert a == pytest.approx(b, abs=1e-3)
    elif isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys()
        for name in a:
            _assert_close(a[name], b[name])
    elif isinstance(a, list) and isinstance(b, list):
        assert len(a) == len(b)
        for one, other in zip(a, b):
            _assert_close(one, other)
    else:
        assert a == b


def whole_of(events: list[dict]) -> dict:
    """The whole answer that the events of a stream are the parts of."""
    assert len({event["id"] for event in events}) == 1
    choices: dict[int, dict] = {}
    for event in events:
        for part in event["choices"]:
            empty = {"index": part["index"], "text": "", "logprobs": None, "finish_reason": None}
            whole = choices.setdefault(part["index"], empty)
            assert whole["finish_reason"] is None, "something came after the end"
            whole["finish_reason"] = part["finish_reason"]
            delta = part.get("delta", part)
            whole["text"] += delta.get("text", delta.get("content")) or ""
            if part["logprobs"] is not None:
                kept = whole["logprobs"] = whole["logprobs"] or {}
                for name, values in part["logprobs"].items():
                    kept[name] = kept.get(name, []) + (values or [])
    usage = events[-1]["usage"]
    return {"choices": [choices[i] for i in sorted(choices)], "usage": usage}


def plain(answer: dict, path: str) -> dict:
    """A whole answer in the form that `whole_of` gives."""
    choices = []
    for choice in answer["choices"]:
        choice = dict(choice)
        if path == CHAT:
            message = choice.pop("message")
            choice["text"] = message["content"] or ""
            if choice["logprobs"] is not None:
                choice["logprobs"] = {"content": choice["logprobs"]["content"]}
        if choice["logprobs"] is not None and not any(choice["logprobs"].values()):
            choice["logprobs"] = None
        choices.append(choice)
    return {"choices": choices, "usage": answer["usage"]}


def events_of(text: str) -> list[dict]:
    """The events of a stream that has come to its end."""
    parts = text.split("\n\n")
    assert parts[-1] == "" and parts[-2] == "data: [DONE]"
    assert all(part.startswith("data: ") for part in parts[:-1])
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


@pytest.mark.parametrize("seed", range(24))
def test_streams_say_what_whole_answers_say(server, seed):
    """Any request, streamed: the same text, log-probabilities, ends, usage; and twice the same."""
    path, body = question(random.Random(seed))
    whole = post(server.url, body, path).json()
    again = post(server.url, body, path).json()
    assert_same(again, whole)
    stream = post(server.url, body | STREAM, path)
    assert stream.headers["content-type"].startswith("text/event-stream")
    streamed = whole_of(events_of(stream.text))
    assert_same(streamed, plain(whole, path))


# Load


class Crowd:
    """Clients that ask at the same time, in all ways, and what became of it."""

    def __init__(self, url: str, questions: list[tuple[str, dict, dict]]):
        self.url, self.questions = url, questions
        self.answered = self.refused = self.left = 0

    async def come(self, clients: int, requests: int, seed: int):
        """So many requests, by so many clients: each asks until it is answered, or leaves early."""
        work = iter(range(requests))
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        async with httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits) as client:

            async def ask(number: int):
                draw = random.Random(f"{seed}/{number}")
                for _ in work:
                    await self._ask(client, draw)

            await asyncio.gather(*(ask(number) for number in range(clients)))

    async def _ask(self, client: httpx.AsyncClient, draw: random.Random):
        path, body, expected = draw.choice(self.questions)
        way = draw.choice(["whole", "whole", "stream", "stream", "leave", "leave stream", "junk"])
        if way == "junk":
            answer = await client.post(path, content=draw.randbytes(50))
            assert answer.status_code == 400 and is_error(answer.text)
        elif way == "leave":
            with contextlib.suppress(httpx.TimeoutException):
                await client.post(path, json=body, timeout=draw.uniform(0.001, 0.1))
            self.left += 1
        elif way == "leave stream":
            chunks = draw.randint(0, 3)
            body = body | {"stream": True}
            async with client.stream("POST", path, json=body) as answer:
                async for _ in answer.aiter_bytes():
                    chunks -= 1
                    if chunks < 0:
                        break
            self.left += 1
        else:
            if way == "stream":
                text = await self._until_answered(client, path, body | STREAM, draw)
                found = whole_of(events_of(text))
            else:
                text = await self._until_answered(client, path, body, draw)
                found = plain(json.loads(text), path)
            assert_same(found, expected)
            self.answered += 1

    async def _until_answered(self, client, path: str, body: dict, draw: random.Random) -> str:
        while True:
            answer = await client.post(path, json=body)
            if answer.status_code == 200:
                return answer.text
            assert answer.status_code in (429, 503) and is_error(answer.text), answer.text
            assert float(answer.headers["retry-after"]) > 0
            self.refused += 1
            await asyncio.sleep(draw.uniform(0.05, 0.5))


def resident(pid: int) -> float:
    """MiB of memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def under_load(folder: Path, clients: int, warm: int, requests: int, growth: float):
    """A server, a crowd to warm it up, and one that counts. growth: MiB that memory may grow by."""
    questions = []
    with serving(folder, "--max_concurrency", 8, "--max_queue", 24) as (url, pid):
        for seed in range(40):
            path, body = question(random.Random(1000 + seed))
            questions.append((path, body, plain(post(url, body, path).json(), path)))
        crowd = Crowd(url, questions)
        asyncio.run(crowd.come(clients, warm, 0))
        wait_for(lambda: is_free(url), 30)
        before = resident(pid)
        asyncio.run(crowd.come(clients, requests, 1))
        wait_for(lambda: is_free(url), 30)
        grown = resident(pid) - before
        print(
            f"{crowd.answered} answered, {crowd.refused} refused for now, {crowd.left} left early; "
            f"{before:.0f} MiB, {grown:+.1f} after {requests} requests"
        )
        assert crowd.answered > requests / 3
        assert grown < growth
        for path, body, expected in questions[:5]:  # alone again
            assert_same(plain(post(url, body, path).json(), path), expected)


def test_a_crowd_is_answered(folder):
    """20 clients, 60 requests: streams, whole answers, some who leave, some junk. Every answer is
    the one given alone, nothing is refused but for lack of a place, and nothing stays behind."""
    under_load(folder, 20, 20, 60, 60)


@pytest.mark.slow
def test_a_large_crowd_is_answered(folder):
    """200 clients at once, 2,000 requests: the same, and memory is flat. To warm up: as many, since
    torch keeps kernels (oneDNN's, 300 MiB in all) for every number of tokens in a step."""
    under_load(folder, 200, 2000, 2000, 32)


@pytest.mark.slow
def test_prompts_that_are_all_different_take_no_more_memory(folder):
    """What is kept of finished sequences is bounded: 1,000 other prompts, and memory is flat."""
    with (
        serving(folder, "--max_concurrency", 4, "--max_context", 1024) as (url, pid),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        draw = random.Random(0)

        def ask(count: int):
            for _ in range(count):
                prompt = [draw.randrange(512) for _ in range(draw.randint(1, 900))]
                body = {"prompt": prompt, "max_tokens": 4}
                assert client.post(COMPLETIONS, json=body).status_code == 200

        ask(1200)  # steps of all sizes have been there
        before = resident(pid)
        ask(1000)
        assert resident(pid) - before < 10


# Clients that are slow, or go


def test_slow_readers_hold_nobody_up(server, folder):
    """Six clients, more than there are rows, who read a byte now and then of answers that are
    larger than the system's buffers: others are answered meanwhile, and their rows are free."""
    slow = [connected(server.url, 60) for _ in range(6)]
    body = endless(folder, 150) | {"stream": True, "logprobs": 20}
    for client in slow:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.sendall(request_bytes(COMPLETIONS, body))
    for _ in range(3):
        for client in slow:
            assert len(client.recv(1)) == 1
        answer = post(server.url, endless(folder, 5), seconds=10)
        assert answer.json()["usage"]["completion_tokens"] == 5
    wait_for(lambda: is_free(server.url), 30)
    for client in slow:
        client.close()
    wait_for(lambda: not server.worker.open)


def test_a_client_that_never_reads_is_left(folder, monkeypatch):
    """When the time for an answer is over, so is its connection, read or not."""
    monkeypatch.setattr(answers, "SECONDS_TO_READ", 0.5)
    with inside(folder, seconds=1.5) as server, connected(server.url) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        body = endless(folder, 10_000) | {"stream": True, "logprobs": 20}
        client.sendall(request_bytes(COMPLETIONS, body))
        wait_for(lambda: server.worker.open)
        wait_for(lambda: not server.worker.open, 15)
        assert is_free(server.url)


def leave(client: socket.socket, reset: bool):
    """Close a connection, politely (FIN) or not (RST)."""
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("more", [{}, {"stream": True}, {"stream": True, "n": 3}, {"n": 2}])
@pytest.mark.parametrize("after", ["at once", "later"])
def test_clients_that_go_free_their_places(server, folder, reset, more, after):
    """Answers of minutes whose clients go, at once or later, running or waiting: soon nothing is
    computed for them, and nothing is left of them."""
    for _ in range(10):
        client = connected(server.url)
        client.sendall(request_bytes(COMPLETIONS, endless(folder, 10_000) | more))
        if after == "later":
            time.sleep(0.02)
        leave(client, reset)
    wait_for(lambda: is_free(server.url), 10)
    wait_for(lambda: not server.worker.open and not server.worker.waiting)
    assert post(server.url, endless(folder, 3)).status_code == 200


# Limits


def test_a_full_queue_is_429(folder):
    """Beyond the rows and the queue: 429 with Retry-After. What could never fit is 400."""
    with inside(folder, rows=1, waiting=1) as server, httpx.Client(base_url=server.url) as client:
        many = client.post(COMPLETIONS, json=endless(folder, 3) | {"n": 3})
        assert many.status_code == 400 and is_error(many.text)
        running = [connected(server.url) for _ in range(2)]
        for one in running:
            one.sendall(request_bytes(COMPLETIONS, endless(folder, 10_000)))
        wait_for(lambda: server.worker.sequences == 2)
        for body in (endless(folder, 3), endless(folder, 3) | {"stream": True}):
            full = client.post(COMPLETIONS, json=body)
            assert full.status_code == 429 and is_error(full.text)
            assert int(full.headers["retry-after"]) >= 1
            assert full.json()["error"]["code"] == "rate_limit_exceeded"
        for one in running:
            one.close()
        wait_for(lambda: is_free(server.url))
        assert client.post(COMPLETIONS, json=endless(folder, 3)).status_code == 200


def test_an_answer_has_a_time_limit(folder):
    """After --max_seconds: 503 with an error object, as the last event of a stream, too; also of
    an answer that still waits for its place. The places are free."""
    with inside(folder, rows=1, seconds=1.0) as server:
        results = {}

        def ask(name: str, more: dict):
            results[name] = post(server.url, endless(folder, 10_000) | more)

        begun = time.perf_counter()
        threads = [
            threading.Thread(target=ask, args=each)
            for each in (("whole", {}), ("stream", {"stream": True}), ("waits", {"n": 2}))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.perf_counter() - begun < 15
        for name in ("whole", "waits"):
            assert results[name].status_code == 503 and is_error(results[name].text)
        last = results["stream"].text.strip().split("\n\n")[-1]
        assert is_error(last.removeprefix("data: ")) and "[DONE]" not in results["stream"].text
        wait_for(lambda: is_free(server.url))
        assert post(server.url, endless(folder, 3)).status_code == 200


# The engine fails


def test_a_step_that_fails_is_nobody_elses_trouble(folder, monkeypatch):
    """A bug in a step ends what runs with 500 and an error object, streamed or not. The next
    request is answered, with the text of before."""
    with inside(folder) as server:
        engine = next(iter(server.models.values())).engine
        before = text_of(post(server.url, endless(folder, 20)))
        step, failures = engine.step, []

        def broken():
            if engine.answering == 4 and not failures:  # all of them are on their way
                failures.append(None)
                raise IndexError("a bug")
            return step()

        results = {}

        def ask(name: str, more: dict):
            results[name] = post(server.url, endless(folder, 5000) | more)

        monkeypatch.setattr(engine, "step", broken)
        threads = [
            threading.Thread(target=ask, args=each)
            for each in (("whole", {}), ("stream", {"stream": True}), ("several", {"n": 2}))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name in ("whole", "several"):
            assert results[name].status_code == 500 and is_error(results[name].text)
            assert "a bug" not in results[name].text
        assert is_error(results["stream"].text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert is_free(server.url) and not server.worker.open
        assert text_of(post(server.url, endless(folder, 20))) == before


def test_a_request_that_cannot_be_added_is_told(folder, monkeypatch):
    """What the engine refuses in its own thread ends that request, not the thread."""
    with inside(folder) as server:
        engine = next(iter(server.models.values())).engine
        add = engine.add

        def refuse(request):
            if len(request.prompt) == 3:
                raise ValueError("no")
            add(request)

        monkeypatch.setattr(engine, "add", refuse)
        answer = post(server.url, endless(folder, 4) | {"prompt": [1, 2, 3]})
        assert answer.status_code == 500 and is_error(answer.text)
        assert post(server.url, endless(folder, 4)).status_code == 200
        assert is_free(server.url)


# Several models, small things


def adapter_of(folder: Path, where: Path) -> Path:
    """An adapter of random numbers that changes what the model says."""
    model = load_model(folder)
    config = lora.LoRAConfig(4, 8.0, 0.0, ("q_proj", "v_proj", "down_proj"), False, False)
    torch.manual_seed(1)
    lora.attach(model, config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    where.mkdir()
    lora.save_adapter(model, config, where, folder, weights_sha256(folder))
    return where


def test_two_models_at_once(folder, tmp_path):
    """A model and its adapter, asked by turns from many threads: each answers as it does alone."""
    with inside(folder, adapters={"shop": adapter_of(folder, tmp_path / "shop")}) as server:
        names = [folder.name, "shop"]
        body = endless(folder, 30)
        alone = {name: text_of(post(server.url, body | {"model": name})) for name in names}
        assert alone[names[0]] != alone["shop"]
        found = []

        def ask(name: str):
            found.append((name, text_of(post(server.url, body | {"model": name}))))

        threads = [threading.Thread(target=ask, args=(names[i % 2],)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 12 and all(text == alone[name] for name, text in found)
        assert gauge(server.url, "minimind_sequences") == 0


def test_answers_on_a_kept_connection_do_not_wait(server):
    """Nothing is delayed until the client acknowledges what it has got so far (40 ms)."""
    times = []
    with httpx.Client(base_url=server.url) as client:
        for _ in range(20):
            begun = time.perf_counter()
            client.get("/v1/models")
            times.append(time.perf_counter() - begun)
    assert sorted(times)[10] < 0.035


def test_large_prompts_do_not_hold_the_server_up(server, folder):
    """While texts of 4 MiB are read and refused, small questions are answered."""
    answered, text = [], "a " * (2 << 20 - 1)

    def large():
        answered.append(post(server.url, {"prompt": text[: (4 << 20) - 1000]}))

    threads = [threading.Thread(target=large) for _ in range(3)]
    for thread in threads:
        thread.start()
    worst = 0.0
    while any(thread.is_alive() for thread in threads):
        begun = time.perf_counter()
        assert post(server.url, endless(folder, 2)).status_code == 200
        worst = max(worst, time.perf_counter() - begun)
    assert worst < 2
    assert all(answer.status_code == 400 and is_error(answer.text) for answer in answered)


@pytest.mark.parametrize(
    "body",
    [
        '{"prompt": [' + ", ".join(["1.5"] * 400_000) + "]}",
        '{"prompt": [' + ", ".join(["-1"] * 400_000) + "]}",
        '{"prompt": [[' + ", ".join(["-1"] * 400_000) + "]]}",
        '{"prompt": [' + ", ".join(['""'] * 400_000) + "]}",
        '{"prompt": [' + ", ".join(["[]"] * 400_000) + "]}",
        '{"prompt": "a", "logit_bias": {' + ", ".join(f'"{i}": 1e9' for i in range(200_000)) + "}}",
        '{"prompt": "a", ' + ", ".join(f'"x{i}": 1' for i in range(200_000)) + "}",
        '{"prompt": "a", "stop": [' + ", ".join(["1"] * 400_000) + "]}",
    ],
    ids=["floats", "negative", "nested", "texts", "empty", "biases", "fields", "stops"],
)
def test_many_mistakes_cost_no_more_than_one(server, body):
    """A body in which everything is wrong: refused for the first of them, quickly (keeping an error
    for each took 15 seconds of the event loop, and gigabytes)."""
    begun = time.process_time()  # client and server: this process
    answer = httpx.post(
        server.url + COMPLETIONS, content=body, headers={"Content-Type": "application/json"},
        timeout=60,
    )  # fmt: skip
    assert answer.status_code == 400 and is_error(answer.text)
    assert len(answer.text) < 2000
    assert time.process_time() - begun < 2
