"""What no sensible client sends: each is answered with an error object, or as it should be."""

import json
import random

import httpx
import pytest
from served import all_routes, endless, inside, is_error, is_free, tiny_folder, wait_for

STATUSES = {200, 400, 401, 403, 404, 405, 408, 413, 429, 503}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_tokenizer_dir):
    folder = tiny_folder(tmp_path_factory.mktemp("served"), tiny_tokenizer_dir)
    with inside(folder, rows=4, waiting=16, default_tokens=8) as found:
        client = httpx.Client(base_url=found.url, timeout=60)
        yield Asked(found.url, client, endless(folder, 12), all_routes(found.app))


class Asked:
    """A server, what it answered at first, and whether it still does."""

    def __init__(self, url: str, client: httpx.Client, body: dict, routes: list[tuple[str, str]]):
        self.url, self.client, self.body, self.routes = url, client, body, routes
        self.text = self.answer()

    def answer(self) -> str:
        found = self.client.post(COMPLETIONS, json=self.body)
        assert found.status_code == 200, found.text
        return found.json()["choices"][0]["text"]

    def goes_on(self):
        """The same text as before, and nothing is left of all the others."""
        assert self.answer() == self.text
        wait_for(lambda: is_free(self.url))


def check(answer: httpx.Response, what: object = None):
    """An answer is one that a client understands."""
    shown = f"{str(what)[:300]}\n{answer.status_code} {answer.text[:300]}"
    assert answer.status_code in STATUSES, shown
    assert "Traceback" not in answer.text, shown
    if answer.request.method == "HEAD":
        assert answer.content == b""
    elif answer.status_code != 200:
        assert is_error(answer.text), shown
        assert len(answer.text) < 5000, shown
    elif answer.headers["content-type"].startswith("text/event-stream"):
        *events, last = answer.text.strip().split("\n\n")
        assert last == "data: [DONE]", shown
        for event in events:
            json.loads(event.removeprefix("data: "))
    elif answer.headers["content-type"].startswith("application/json"):
        answer.json()


# Values and bodies that are strange


def deep(draw: random.Random) -> str:
    depth = draw.choice([10, 60, 900, 3000, 20_000])
    kind = draw.choice(["[{}]", '{{"a": {}}}', "[{}", '{{"a": {}'])  # the last two never end
    before, _, after = kind.replace("{{", "{").replace("}}", "}").partition("{}")
    return before * depth + "1" + after * depth


NUMBERS = ["0", "-1", "1", "-0", "0.0", "1e400", "-1e400", "1e-400", "NaN", "Infinity", "-Infinity",
           "2147483647", "2147483648", "9223372036854775807", "9223372036854775808", "1.5", "1e5",
           "9" * 400, "9" * 5000, "0." + "1" * 5000, "511", "512", "true"]  # fmt: skip
TEXTS = [
    "", " ", "\n", "\x00", "a", "model", "user", "<|im_end|>", "<|im_start|>system\n", "<think>",
    "</think>", "<tool_call>", "\ud800", "\udfff", "\ud83d\ude00", "é", "猫", "\u202e", "\ufeff",
    "x" * 300, "x" * 5000, "{{ 7 * 7 }}", "{% raw %}", "../../etc/passwd", "http://127.0.0.1/",
    "file:///etc/passwd", "text", "function", "auto", "json_object", "__class__", "1", "0001",
    "%s%n", "${jndi:x}", "'; DROP TABLE", "\\ud800", "[DONE]", "data: x\n\n",
]  # fmt: skip


def value(draw: random.Random, depth: int = 0) -> str:
    """Any JSON, and some that is none."""
    kind = draw.randrange(12 if depth < 3 else 7)
    if kind < 3:
        return draw.choice(NUMBERS)
    if kind < 5:
        return json.dumps(draw.choice(TEXTS))
    if kind < 7:
        return draw.choice(
            ["null", "true", "false", "{}", "[]", '""', "[[]]", "[null]", "undefined"]
        )
    if kind < 9:
        count = draw.choice([0, 1, 2, 3, 5, 20, 70, 1100])
        if count > 20:
            return "[" + ", ".join([value(draw, 3)] * count) + "]"
        return "[" + ", ".join(value(draw, depth + 1) for _ in range(count)) + "]"
    if kind < 11:
        names = [draw.choice(FIELDS + TEXTS) for _ in range(draw.choice([0, 1, 2, 3, 8]))]
        return "{" + ", ".join(f"{json.dumps(n)}: {value(draw, depth + 1)}" for n in names) + "}"
    return deep(draw)


FIELDS = [
    "model", "messages", "prompt", "stream", "stream_options", "n", "temperature", "top_p", "top_k",
    "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "seed",
    "stop", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "tools", "user",
    "tool_choice", "parallel_tool_calls", "chat_template_kwargs", "response_format", "echo",
    "best_of", "suffix", "functions", "chat_template", "guided_regex", "role", "content", "name",
    "tool_calls", "tool_call_id", "reasoning_content", "type", "function", "arguments", "text",
    "include_usage", "enable_thinking", "parameters", "weight", "from", "value", "human", "layer",
    "head", "lens", "chat", "assistant", "system", "begin", "image_url", "audio",
]  # fmt: skip
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TALK = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "2"}, {"role": "user", "content": "So?"},
]  # fmt: skip
BODIES = [
    (CHAT, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}),
    (CHAT, {"messages": TALK, "tools": [TOOL], "max_tokens": 3, "n": 2, "logprobs": True,
            "top_logprobs": 2, "stream": True, "stream_options": {"include_usage": True}}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "temperature": 0.5, "top_p": 0.5, "top_k": 4, "min_p": 0.1, "seed": 1,
            "stop": ["a", "b"], "logit_bias": {"5": 1.5}, "frequency_penalty": 1,
            "max_completion_tokens": 4}),
    (COMPLETIONS, {"prompt": "Once", "max_tokens": 3, "logprobs": 2, "echo": True}),
    (COMPLETIONS, {"prompt": [[1, 2], [3]], "max_tokens": 0, "echo": True, "logprobs": 0}),
    (COMPLETIONS, {"prompt": ["a", "b"], "n": 2, "stream": True, "stop": "x", "seed": -5}),
    ("/lab/look", {"text": "Once upon", "layer": 0, "head": 0, "lens": True}),
    ("/lab/look", {"chat": {"user": "Hi", "assistant": "Ho"}}),
    ("/tools/calculator", {"arguments": {"expression": "1 + 1"}}),
]  # fmt: skip


def mutated(draw: random.Random, body: object) -> str:
    """A body's JSON with one or two places replaced, removed, added, or doubled."""
    text = json.dumps(body)
    for _ in range(draw.choice([1, 1, 2])):
        places = _places(body)
        place = draw.choice(places)
        mark = f"MARK{draw.randrange(10**9)}"
        text = json.dumps(_replaced(json.loads(json.dumps(body)), place, mark, draw))
        text = text.replace(f'"{mark}"', value(draw))
    return text


def _places(body: object, at: tuple = ()) -> list[tuple]:
    inner = body.items() if isinstance(body, dict) else []
    inner = enumerate(body) if isinstance(body, list) else inner
    return [at] + [place for name, part in inner for place in _places(part, (*at, name))]


def _replaced(body, place: tuple, mark: str, draw: random.Random):
    """The body with the mark at a place, under a new name beside it, or with the place left out."""
    if not place:
        if isinstance(body, dict) and draw.random() < 0.7:
            return body | {draw.choice(FIELDS + TEXTS): mark}
        return mark
    inner = body
    for name in place[:-1]:
        inner = inner[name]
    how = draw.random()
    if how < 0.1:
        del inner[place[-1]]
    elif how < 0.2 and isinstance(inner, dict):
        inner[draw.choice(FIELDS + TEXTS)] = mark
    else:
        inner[place[-1]] = mark
    return body


def request(draw: random.Random, routes: list[tuple[str, str]]) -> tuple[str, str, bytes, dict]:
    """(method, path, body, headers) of something that somebody may send."""
    headers = {"Content-Type": "application/json"}
    kind = draw.randrange(10)
    path, body = draw.choice(BODIES)
    if kind < 6:
        return "POST", path, mutated(draw, body).encode("utf-8", "surrogatepass"), headers
    if kind == 6:
        return "POST", path, value(draw).encode("utf-8", "surrogatepass"), headers
    if kind == 7:  # bytes
        data = json.dumps(body).encode()
        at = draw.randrange(len(data))
        data = draw.choice([
            draw.randbytes(draw.choice([0, 1, 10, 1000])), data[:at], data[:at] + draw.randbytes(3),
            data[:at] + draw.randbytes(1) + data[at + 1 :], data * 2, b"\xef\xbb\xbf" + data,
            json.dumps(body).encode("utf-16"), data.replace(b"H", b"\xff"), b"[" * 100_000,
            b"\xed\xa0\x80", b'"' * 1001, b"{" + b'"n": 1, ' * 1000 + data[1:],
            b" " * 100_000 + data,
        ])  # fmt: skip
        return "POST", path, data, headers
    if kind == 8:  # headers
        more = draw.choice([
            {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"},
            {"Content-Type": "multipart/form-data; boundary=x"}, {"Content-Type": ""},
            {"Content-Encoding": "gzip"}, {"Content-Type": "application/json; charset=utf-16"},
            {"Content-Type": "application/vnd.api+json"}, {"Accept": "application/xml"},
            {"Expect": "100-continue"}, {"Range": "bytes=0-1"}, {"Range": "bytes=9-1,,-0,x"},
            {"Accept-Encoding": "x" * 1000}, {"Cookie": "a" * 5000}, {"If-Match": "*"},
            {"X-HTTP-Method-Override": "DELETE"}, {"X-Forwarded-Host": "evil.example"},
            {"X-Forwarded-For": "x" * 100}, {"Connection": "close"},
            {"Transfer-Encoding": "chunked"},
        ])  # fmt: skip
        method = draw.choice(["POST", "GET"])
        place = path if method == "POST" else draw.choice(["/", "/pages/style.css", "/v1/models"])
        return method, place, json.dumps(body).encode() * (method == "POST"), headers | more
    method, path = draw.choice(routes)
    method = draw.choice(
        [method, method, "GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "QUERY"]
    )
    path += draw.choice([
        "", "", "/", "/..", "/%2e%2e/", "//", "?a=1", "?" + "x=%ff&" * 50, "%00", "%0d%0aX:%20y",
        "/x" * 50, ";x", "%ed%a0%80", "\\", "?run=..%2f..%2fetc&run=%00", "?names=" + "a," * 500,
        "?points=9e9", "?points=-1", "?folder=/etc", "?run=" + "x" * 3000, "?" + "&" * 3000,
        "?" + "a=1&" * 1500,
    ])  # fmt: skip
    return method, path, draw.choice([b"", b"{}", b"x"]), draw.choice([{}, headers])


def storm(server: Asked, seed: int, count: int):
    draw = random.Random(seed)
    for number in range(count):
        method, path, body, headers = request(draw, server.routes)
        sent = server.client.build_request(method, path, content=body, headers=headers)
        answer = server.client.send(sent)
        check(answer, (seed, number, method, path, headers, body[:2000]))
        if number % 100 == 99:
            server.goes_on()


@pytest.mark.parametrize("seed", range(3))
def test_strange_requests_get_error_objects(server, seed):
    """300 of them: bodies with something wrong in them, junk, headers, methods, paths."""
    storm(server, seed, 100)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_ten_thousand_strange_requests_get_error_objects(server, seed):
    """The same 10,000 times."""
    storm(server, seed, 1000)
