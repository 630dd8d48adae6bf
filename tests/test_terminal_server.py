"""eval_model.py --server: against a server that says what a test gives it, and against our own."""

import io
import json
import sys
import threading

import pytest
import served
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, StreamingResponse

import eval_model
from serve_model import listen
from terminal.screen import Screen
from training import cli


def chunk(finish: str | None = None, **delta) -> dict:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [choice]}  # fmt: skip


def said(*texts: str, finish: str = "stop") -> list:
    return [chunk(role="assistant", content=""), *(chunk(content=t) for t in texts), chunk(finish)]


USAGE = chunk() | {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 21,
                                            "total_tokens": 24}}  # fmt: skip


class Fake:
    """An application. answers: for each request chunks, texts for the wire as they are, or a
    (status, body). asked: what came, bodies and keys."""

    def __init__(self):
        self.answers, self.asked, self.keys, self.models = [], [], [], ["first", "org/second"]
        self.app = FastAPI()

        @self.app.get("/v1/models")
        def models(request: Request):
            self.keys.append(request.headers.get("authorization"))
            return {"object": "list", "data": [{"id": id, "object": "model"} for id in self.models]}

        @self.app.get("/html/{path:path}")
        def html(path: str):
            return PlainTextResponse("<html>not an API</html>", media_type="text/html")

        @self.app.post("/v1/chat/completions")
        async def chat(request: Request):
            self.asked.append(await request.json())
            answer = self.answers.pop(0)
            if isinstance(answer, tuple):
                status, body = answer
                body = body if isinstance(body, str) else json.dumps(body)
                return PlainTextResponse(body, status, media_type="application/json")
            return StreamingResponse(self.lines(answer), media_type="text/event-stream")

    async def lines(self, answer: list):
        for part in answer:
            if part is BREAK:
                raise ConnectionError("the test ends the connection here")
            yield part if isinstance(part, str) else f"data: {json.dumps(part)}\n\n"
        yield "data: [DONE]\n\n"


BREAK = object()


@pytest.fixture(scope="module")
def url_of_fake():
    fake = Fake()
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(fake.app, log_level="critical"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    served.wait_for(lambda: server.started, 30)
    yield fake, f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=30)


@pytest.fixture
def fake(url_of_fake, monkeypatch):
    fake, fake.url = url_of_fake
    fake.answers, fake.asked, fake.keys = [], [], []
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return fake


@pytest.fixture
def run(monkeypatch, capsys):
    """eval_model.py with flags and typed lines: what it prints."""

    def run(*flags, typed=()):
        monkeypatch.setattr(sys, "argv", ["eval_model.py", *map(str, flags)])
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in typed)))
        capsys.readouterr()
        eval_model.main()
        return capsys.readouterr().out

    return run


def test_a_chat_streams_and_remembers(fake, run):
    """The first model, all turns in every request, nothing in it that OpenAI does not know."""
    fake.answers = [said("Hel", "lo, ", "小猫!"), said("\n\nAgain.")]
    out = run("--server", fake.url, "--system", "Be brief.", typed=["Hi", "More"])
    assert out == (
        f"first at {fake.url}/v1. /help lists the commands.\n"
        "> Hi\nHello, 小猫!\n> More\nAgain.\n> \n"
    )
    turns = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello, 小猫!"}, {"role": "user", "content": "More"},
    ]  # fmt: skip
    assert [asked["messages"] for asked in fake.asked] == [turns[:2], turns]
    assert fake.asked[0] == {
        "model": "first", "messages": turns[:2], "stream": True,
        "stream_options": {"include_usage": True}, "temperature": 0.7, "top_p": 0.9,
    }  # fmt: skip


def test_settings_are_sent_that_were_asked_for(fake, run):
    """Those of vLLM and ours beside OpenAI's; thinking only after /think or --thinking."""
    fake.answers = [said("x") for _ in range(4)]
    flags = ["--top_k", 5, "--repetition_penalty", 1.5, "--seed", 7, "--max_new_tokens", 9,
             "--temperature", 0]  # fmt: skip
    run("--server", fake.url, *flags, typed=["a", "/think on", "/retry", "/model org/second", "b"])
    first, again, other = fake.asked
    given = {"top_k": 5, "repetition_penalty": 1.5, "seed": 7, "max_tokens": 9, "temperature": 0.0}
    assert first.items() >= given.items() and "chat_template_kwargs" not in first
    assert again["chat_template_kwargs"] == {"enable_thinking": True} and again["seed"] == 8
    assert again["messages"] == first["messages"]
    assert other["model"] == "org/second" and other["seed"] == 7
    run("--server", fake.url, "--no-thinking", "--prompt", "x", "--model", "org/second")
    assert fake.asked[3]["chat_template_kwargs"] == {"enable_thinking": False}
    assert fake.asked[3]["model"] == "org/second" and "seed" not in fake.asked[3]


def test_a_tool_call_in_pieces_is_run_and_answered(fake, run):
    """Arguments come letter by letter; call and result have one id; thoughts go along with them,
    and not into the next question."""

    def piece(index, **function):
        id = {"id": f"id{index}", "type": "function"} if "name" in function else {}
        return chunk(tool_calls=[{"index": index, "function": function, **id}])

    calling = [
        chunk(reasoning_content="Two "), chunk(reasoning_content="sums."),
        piece(0, name="calculator", arguments=""), piece(0, arguments='{"expression": '),
        piece(0, arguments='"12 + 30"}'), piece(1, name="calculator", arguments="{no json"),
        chunk("tool_calls"), USAGE,
    ]  # fmt: skip
    fake.answers = [calling, said("42."), said("Yes.")]
    out = run(
        "--server", fake.url + "/v1/", "--show_speed", typed=["/tools calculator", "12 + 30?", "?"]
    )
    assert "<think>\nTwo sums.\n</think>" in out and '"arguments": {"expression": "12 + 30"}' in out
    assert '<tool_response>\n{"result": 42}\n</tool_response>' in out
    assert "\n42.\n" in out and "(21 tokens, " in out
    (offered,) = fake.asked[0]["tools"]
    assert offered["type"] == "function" and offered["function"]["name"] == "calculator"
    question, call, first, second = fake.asked[1]["messages"]
    assert question == {"role": "user", "content": "12 + 30?"}
    functions = [one["function"] for one in call["tool_calls"]]
    assert [one["name"] for one in functions] == ["calculator"] * 2
    assert json.loads(functions[0]["arguments"]) == {"expression": "12 + 30"}
    assert functions[1]["arguments"] == "{no json"
    assert [one["id"] for one in call["tool_calls"]] == [
        first["tool_call_id"], second["tool_call_id"],
    ]  # fmt: skip
    assert first["tool_call_id"] != second["tool_call_id"]
    assert first["content"] == '{"result": 42}' and second["content"].startswith("error: expected")
    assert call["reasoning_content"] == "Two sums."
    assert not any("reasoning_content" in message for message in fake.asked[2]["messages"])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((400, {"error": {"message": "no such\nfield", "param": "x"}}), "(400: no such field)"),
        ((401, {"error": {"message": "wrong key"}}), "(401: wrong key)"),
        ((404, {"error": "model gone"}), "(404: model gone)"),
        ((422, {"detail": [{"msg": "bad"}]}), "(422: [{'msg': 'bad'}])"),
        ((400, "<html>\x1b[2Jproxy</html>"), "(400: <html> [2Jproxy</html>)"),
        ((418, ""), "(418: Error code: 418)"),
        ([chunk(content="half"), {"error": {"message": "the card is full"}}], "(the card is full)"),
        ([chunk(content="half"), BREAK], "(no answer from "),
        (["data: {no json\n\n"], "does not answer as OpenAI's API does"),
        (["data: [1, 2]\n\n"], "does not answer as OpenAI's API does"),
    ],
)
def test_errors_are_one_line_in_the_servers_words(fake, run, answer, expected):
    """… and the chat goes on as if nothing had been asked."""
    fake.answers = [answer, said("fine")]
    out = run("--server", fake.url, typed=["a", "b"])
    failed, fine = out.split("> a\n")[1].split("> b\n")
    assert expected in failed and failed.strip().count("\n") == failed.count("half")
    assert fine == "fine\n> \n" and "\x1b" not in out
    assert fake.asked[1]["messages"] == [{"role": "user", "content": "b"}]


def test_a_busy_server_is_asked_once_more(fake, run):
    """429, 500 and 503 may be over in a moment; the second time they are told."""
    busy = (503, {"error": {"message": "no place"}})
    fake.answers = [busy, said("fine"), busy, busy]
    out = run("--server", fake.url, typed=["a", "b"])
    assert "> a\nfine\n> b\n(503: no place)\n" in out


def test_odd_chunks_are_no_errors(fake, run):
    """Null for what is left out, chunks without choices, half of a character as an escape."""
    odd = chunk() | {"choices": None}
    empty = chunk(content=None, reasoning=None, tool_calls=None)
    no_delta = chunk() | {"choices": [{"index": 0, "delta": None, "finish_reason": None}]}
    fake.answers = [[odd, empty, no_delta, chunk(reasoning="Hm"), chunk(content="a\ud83d"),
                     chunk("length")], said("ok")]  # fmt: skip
    out = run("--server", fake.url, typed=["a", "b"])
    assert "<think>\nHm\n</think>\n\na?\n" in out
    assert fake.asked[1]["messages"][1] == {"role": "assistant", "content": "a?"}


def test_a_prompt_is_answered_once(fake, run):
    """--prompt prints the answer and nothing else."""
    fake.answers = [said("One ", "two.")]
    assert run("--server", fake.url, "--prompt", "Count.", "--system", "S") == "One two.\n"
    assert [m["content"] for m in fake.asked[0]["messages"]] == ["S", "Count."]


def test_the_key_is_the_flags_or_the_environments(fake, run, monkeypatch):
    """Without either some word, which a server without keys does not look at."""
    fake.answers = [said("x")] * 3
    run("--server", fake.url, "--prompt", "x")
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    run("--server", fake.url, "--prompt", "x")
    run("--server", fake.url, "--prompt", "x", "--api_key", "from-flag")
    assert fake.keys[1:] == ["Bearer from-environment", "Bearer from-flag"]
    assert fake.keys[0].startswith("Bearer ")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--server", "127.0.0.1:8000"], "expected an address such as http://127.0.0.1:8000"),
        (["--server", "http://127.0.0.1:1"], "Connection refused"),
        (["--server", "{url}/html"], "--server {url}/html: "),
        (["--server", "{url}/nothing"], "--server {url}/nothing: 404"),
        (["--server", "{url}", "--model", "third"], "--model third: the server has first, org/sec"),
        (["--server", "{url}", "--lora", "x"], "--lora is about a model in this process"),
        (["--server", "{url}", "--quantize", "int8"], "--quantize is about a model in this"),
        (["--server", "{url}", "--eval_data", "x"], "--eval_data is about a model in this"),
        (["--server", "{url}", "--compile"], "--compile is about a model in this"),
        (["--server", "{url}", "--device", "cpu"], "--device is about a model in this"),
        (["--api_key", "x"], "--api_key is for --server"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_by_name(fake, monkeypatch, capsys, flags, expected):
    """One line, and status 2."""
    flags = [flag.format(url=fake.url) for flag in flags]
    monkeypatch.setattr(sys, "argv", ["eval_model.py", *flags, "--prompt", "x"])
    with pytest.raises(SystemExit) as stopped:
        cli.run(eval_model.main)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert expected.format(url=fake.url) in error


def test_no_models_listed_needs_a_name(fake, run, monkeypatch):
    """A server that lists none, or cannot, is asked for the name that was given."""
    monkeypatch.setattr(fake, "models", [])
    fake.answers = [said("x")] * 2
    with pytest.raises(ValueError, match="it lists no models; --model names one"):
        run("--server", fake.url, "--prompt", "x")
    assert run("--server", fake.url, "--prompt", "x", "--model", "hidden") == "x\n"
    assert fake.asked[0]["model"] == "hidden"


@pytest.fixture(scope="module")
def ours(tmp_path_factory, tiny_tokenizer_dir):
    """(folder of a tiny thinking model, its address, the worker)."""
    place = tmp_path_factory.mktemp("tiny") / "tiny"
    folder = served.tiny_folder(place, tiny_tokenizer_dir, context=2048)
    with served.inside(folder) as inside:
        yield folder, inside.url, inside.worker


def test_our_server_says_what_the_model_says_here(ours, run):
    """Greedy, several turns, with and without thinking, tools offered: letter for letter."""
    folder, url, _ = ours
    typed = ["你好", "And?", "/think on", "/retry", "/tools on", "12 + 30?", "/system Hm.", "x"]
    flags = ["--temperature", 0, "--max_new_tokens", 24]
    there = run("--server", url, "--model", "tiny", *flags, typed=typed).splitlines()
    here = run("--model", folder, "--device", "cpu", *flags, typed=typed).splitlines()
    assert there[1:] == here[1:] and len(here) > 10


def test_our_servers_errors_are_told(ours, run):
    """A prompt that is longer than the context; the chat goes on."""
    _, url, _ = ours
    out = run("--server", url, "--max_new_tokens", 4, typed=["word " * 2000, "x"])
    assert "(400: the prompt has " in out and out.count("\n> ") == 3


def test_ctrl_c_ends_the_servers_work(ours, run, monkeypatch):
    """The connection is closed, the server stops decoding, and the next answer is whole."""
    _, url, worker = ours
    show, shown = Screen.show, []

    def interrupted(screen, delta):
        show(screen, delta)
        shown.append(delta)
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Screen, "show", interrupted)
    flags = ["--server", url, "--temperature", 0, "--max_new_tokens", 400]
    out = run(*flags, typed=["go", "/reset"])
    assert "\n(stopped)\n" in out and len(shown) == 3
    served.wait_for(lambda: worker.sequences == 0, 5)
