"""A small server of the /lab page alone: its routes, the static pages, the page's security policy.

    python -m tests.lab_server NAME=FOLDER [NAME=FOLDER ...] [--port 8000]

serves model folders (or runs) by hand, to look at the page while it is worked on.
"""

import argparse
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from dataset.tokenizer import Tokenizer, load_tokenizer
from model.hf_format import load_model
from model.inside import as_numbers, look_inside
from model.model import MiniMindLM
from serving import lab
from serving.errors import APIError

PAGES = Path(__file__).resolve().parent.parent / "serving" / "pages"
POLICY = "default-src 'self'; img-src 'self' data:"


class Entry:
    """A model as the routes want it."""

    def __init__(self, model: MiniMindLM, tokenizer: Tokenizer):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.context = model.config.max_position_embeddings

    def look(self, ids: list[int], layer: int | None, head: int | None, lens: bool) -> dict:
        return as_numbers(self.model, look_inside(self.model, ids, layer, head, lens))


def make_app(models: dict, longest: int = lab.LONGEST) -> FastAPI:
    app = FastAPI()
    app.include_router(lab.router(models, longest))
    app.mount("/pages", StaticFiles(directory=PAGES))

    @app.get("/lab")
    def page() -> FileResponse:
        return FileResponse(PAGES / "lab.html")

    @app.exception_handler(APIError)
    def refused(request: Request, error: APIError) -> JSONResponse:
        content = {"message": error.message, "param": error.param, "code": error.code}
        return JSONResponse({"error": content}, error.status)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # without the input, which FastAPI would send back: it may be what UTF-8 cannot write
        said = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
        return JSONResponse({"error": {"message": "; ".join(said)}}, 422)

    @app.middleware("http")
    async def policy(request: Request, call_next):
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    return app


@contextlib.contextmanager
def serving(app: FastAPI, port: int = 0) -> Iterator[str]:
    """The address of the app, served in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


if __name__ == "__main__":
    from training.checkpoint import model_folder

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    opened = {}
    for name, _, path in (text.partition("=") for text in args.models):
        folder = model_folder(Path(path), name)
        opened[name] = Entry(load_model(folder), load_tokenizer(folder))
    uvicorn.run(make_app(opened), port=args.port)
