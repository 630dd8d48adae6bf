"""The application: all routes, what guards them, and the pages."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import answers, chat, completions, errors, lab, runs, tools
from serving.errors import APIError
from serving.guard import Guard
from serving.worker import ServedModel, Worker

PAGES = Path(__file__).parent / "pages"
PAGE_OF = {"/": "chat.html", "/runs": "runs.html", "/lab": "lab.html"}
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
# Pages may load and ask nothing but this server, and no other page may show them in a frame.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def make_app(
    worker: Worker, out_dir: Path, default_tokens: int, names: set[str] = frozenset(),
    api_key: str | None = None,
) -> FastAPI:  # fmt: skip
    """The application over a worker that is started and stopped with it.

    out_dir: folder of the runs that /runs shows. names, api_key: as in Guard.
    """

    @asynccontextmanager
    async def lifespan(_app):
        worker.start()
        yield
        worker.stop()

    # the pages with the interactive reference would load scripts from elsewhere
    app = FastAPI(
        title="MiniMind",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={"default": {"model": errors.ErrorObject, "description": "An error"}},
    )
    app.include_router(chat.router(worker, default_tokens))
    app.include_router(completions.router(worker))
    looked_at = {name: LookedAt(worker, model) for name, model in worker.models.items()}
    app.include_router(lab.router(looked_at))
    app.include_router(runs.router(out_dir))
    app.include_router(tools.router())
    _add_small_routes(app, worker)
    _add_pages(app)
    app.add_exception_handler(APIError, errors.api_error)
    app.add_exception_handler(HTTPException, errors.http_error)
    app.add_exception_handler(RequestValidationError, errors.validation_error)
    app.add_exception_handler(Exception, errors.unforeseen)
    app.add_middleware(Guard, names=names, api_key=api_key)
    app.add_middleware(Counted, metrics=worker.metrics)
    return app


class LookedAt:
    """A model as serving/lab.py wants it."""

    def __init__(self, worker: Worker, model: ServedModel):
        self.worker, self.model = worker, model
        self.tokenizer, self.context = model.tokenizer, model.context

    def look(self, ids: list[int], layer: int | None, head: int | None, lens: bool) -> dict:
        """Called in a thread beside the event loop."""
        look = self.worker.look(self.model.name, ids, layer, head, lens)
        return asyncio.run_coroutine_threadsafe(look, self.worker.loop).result()


class Counted:
    """Counts answers by route and status for /metrics, those of the guard included."""

    def __init__(self, app: ASGIApp, metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def counted(message: Message):
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")  # not what clients make up
                self.metrics.responses.labels(route, message["status"]).inc()
            await send(message)

        await self.app(scope, receive, counted)


def _add_small_routes(app: FastAPI, worker: Worker):
    @app.get("/health")
    async def health() -> Response:
        status = 503 if worker.closing or not worker.alive else 200
        return JSONResponse({"status": "ok" if status == 200 else "closing"}, status)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(worker.metrics.text(worker), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [_described(model) for model in worker.models.values()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict:
        return _described(answers.find_model(worker.models, name))


def _described(model: ServedModel) -> dict:
    more = {
        "kind": model.kind,
        "can_think": model.can_think,
        "context": model.context,
        "adapter": model.is_adapter,
    }
    return {"id": model.name, "object": "model", "created": model.created or int(time.time()),
            "owned_by": "minimind", "minimind": more}  # fmt: skip


def _add_pages(app: FastAPI):
    files = {file.name: file for file in PAGES.iterdir() if file.suffix in KINDS}

    def page(name: str) -> Response:
        if name not in files:
            raise APIError(404, f"no such file: {name[: errors.LONGEST_SHOWN]}")
        kind = KINDS[files[name].suffix]
        return Response(files[name].read_bytes(), media_type=kind, headers=PAGE_HEADERS)

    for path, name in PAGE_OF.items():
        app.get(path, include_in_schema=False)(lambda name=name: page(name))

    @app.get("/pages/{name}", include_in_schema=False)
    def file(name: str) -> Response:
        return page(name)
