"""A server for the chat page that says what a test has told it to, piece by piece."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles

PAGES = Path(__file__).parent.parent / "serving" / "pages"
POLICY = "default-src 'self'; img-src 'self' data:"
CHAT = {"kind": "chat", "can_think": True, "context": 1024, "adapter": False}
MODELS = [
    {"id": "minimind", "minimind": CHAT},
    {"id": "toyshop", "minimind": {**CHAT, "can_think": False, "adapter": True}},
    {"id": "pretrain", "minimind": {**CHAT, "kind": "base", "can_think": False}},
]
CALCULATOR = {
    "type": "function",
    "function": {"name": "calculator", "description": "computes", "parameters": {}},
}
USAGE = {"prompt_tokens": 1234, "completion_tokens": 5, "total_tokens": 1239}


class Wait:
    """In a script: nothing more comes until the test says `go()`."""

    def __init__(self) -> None:
        self.gone = threading.Event()

    def go(self) -> None:
        self.gone.set()


def delta(finish: str | None = None, **fields: object) -> dict:
    """A chunk of a chat completion."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "minimind",
        "choices": [{"index": 0, "delta": fields, "finish_reason": finish}],
    }


def says(*pieces: str | Wait, finish: str = "stop", **fields: object) -> list:
    """The script of an answer that arrives in these pieces."""
    usage = {**delta(), "choices": [], "usage": USAGE}
    chunks = [piece if isinstance(piece, Wait) else delta(content=piece) for piece in pieces]
    return [delta(role="assistant", content="", **fields), *chunks, delta(finish), usage, "[DONE]"]


def calls(name: str, arguments: str, call_id: str = "call_1") -> list:
    """The script of an answer that calls a tool, its arguments cut in two."""
    half = len(arguments) // 2
    call = {"index": 0, "id": call_id, "type": "function"}
    first = {**call, "function": {"name": name, "arguments": arguments[:half]}}
    second = {"index": 0, "function": {"arguments": arguments[half:]}}
    usage = {**delta(), "choices": [], "usage": USAGE}
    pieces = [delta(tool_calls=[first]), delta(tool_calls=[second]), delta("tool_calls")]
    return [*pieces, usage, "[DONE]"]


def refuses(message: str, status: int = 400) -> JSONResponse:
    """A script that is an error object."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": error}, status)


class FakeServer:
    """scripts: the answers to come, in order; asked: (path, body) of what the page has sent."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.scripts: list = []
        self.asked: list[tuple[str, dict]] = []
        self.models = MODELS
        self.tools = [CALCULATOR]
        self.key: str | None = None
        self.packet_size: int | None = None  # bytes that are sent together
        self.left = threading.Event()  # a client has gone before its answer ended

    @property
    def bodies(self) -> list[dict]:
        """What was asked of the model."""
        return [body for path, body in self.asked if path.startswith("/v1/")]

    async def stream(self, script: list):
        """The server-sent events of a script; strings stand as they are."""
        try:
            for step in script:
                if isinstance(step, Wait):
                    while not step.gone.is_set():
                        await asyncio.sleep(0.005)
                elif step == "break":
                    raise ConnectionError("as the script says")
                else:
                    data = step if isinstance(step, str) else json.dumps(step)
                    event = f"data: {data}\n\n".encode()
                    size = self.packet_size or len(event)
                    for at in range(0, len(event), size):
                        yield event[at : at + size]
                        await asyncio.sleep(0.002)
        except (asyncio.CancelledError, GeneratorExit):
            self.left.set()
            raise


def make_app(server: FakeServer) -> FastAPI:
    """The routes that the page knows."""
    app = FastAPI()

    @app.middleware("http")
    async def guard(request: Request, call_next):
        path = request.url.path
        given = request.headers.get("authorization")
        is_open = path == "/" or path.startswith("/pages")
        if server.key and not is_open and given != f"Bearer {server.key}":
            return refuses("Incorrect API key", 401)
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(PAGES / "chat.html")

    @app.get("/v1/models")
    def models() -> dict:
        return {"object": "list", "data": [{"object": "model", **each} for each in server.models]}

    @app.get("/tools")
    def tools() -> dict:
        return {"tools": server.tools}

    @app.post("/tools/{name}")
    async def tool(name: str, request: Request):
        body = await request.json()
        server.asked.append((f"/tools/{name}", body))
        if "expression" not in body["arguments"]:
            return refuses("expression is missing")
        return {"result": "144"}

    async def complete(request: Request):
        server.asked.append((request.url.path, await request.json()))
        script = server.scripts.pop(0) if server.scripts else says("Hello.")
        if isinstance(script, JSONResponse):
            return script
        return StreamingResponse(server.stream(script), media_type="text/event-stream")

    app.post("/v1/chat/completions")(complete)
    app.post("/v1/completions")(complete)
    app.mount("/pages", StaticFiles(directory=PAGES))
    return app


@contextmanager
def running(server: FakeServer, port: int = 0):
    """Serve on a port of this machine; yields the address."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    config = uvicorn.Config(make_app(server), log_level="critical", timeout_graceful_shutdown=1)
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not runner.started:
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        runner.should_exit = True
        thread.join(5)
        listener.close()
