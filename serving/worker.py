"""The thread that decodes, and what the routes wait for.

One thread steps the engines of all models in turn; the routes run in the event loop. What passes
between them: requests and cancellations one way, all tokens of a step in one message the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from dataset.tokenizer import Tokenizer
from model.engine import Drawn, Engine, Request
from serving.errors import APIError
from serving.metrics import Metrics

RETRY_SECONDS = "1"  # what a client that is refused for now is told to wait


@dataclass
class ServedModel:
    """One name that requests may ask for.

    ends     ids at which an answer ends
    kind     "chat" or "base" (it has no chat template)
    created  when its weights were written, in seconds since 1970
    look     what model/inside.py sees, as serving/lab.py asks for it
    """

    name: str
    tokenizer: Tokenizer
    engine: Engine
    ends: frozenset[int]
    kind: str
    can_think: bool
    is_adapter: bool
    created: int
    look: Callable[[list[int], int | None, int | None, bool], dict]

    @property
    def context(self) -> int:
        return self.engine.max_tokens

    def check_text(self, characters: int):
        """Raises APIError for more than fit, whatever they are: they need not be encoded first."""
        most = self.context * int(self.tokenizer.token_bytes.max())
        if characters > most:
            text = f"the prompt has {characters} characters, more than fit {self.context} tokens"
            raise APIError(400, text, code="context_length_exceeded")


class Job:
    """The requests that belong to one call of a client, and their tokens as they come."""

    def __init__(self, worker: Worker, model: ServedModel, requests: list[Request]):
        self.worker, self.model, self.requests = worker, model, requests
        self.begun = time.perf_counter()
        self.deadline = self.begun + worker.max_seconds
        self.timer = worker.loop.call_later(worker.max_seconds, self._give_up)
        self.first_token: float | None = None  # seconds after the beginning
        self.left = len(requests)  # that have not ended
        self.news: list[Drawn] = []
        self.failure: APIError | None = None
        self.changed = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[list[Drawn]]:
        """What has been drawn since the last time, until all requests have ended."""
        while self.left or self.news:
            if not self.news:
                await self.changed.wait()
            if self.failure is not None:
                raise self.failure
            news, self.news = self.news, []
            self.changed.clear()
            yield news

    def fail(self, failure: APIError):
        """Whoever waits for tokens gets this instead."""
        self.failure = failure
        self.changed.set()

    def _give_up(self):
        seconds = self.worker.max_seconds
        self.fail(APIError(503, f"the answer took longer than {seconds:.0f} seconds"))

    def end(self, request: Request):
        """A stop string came: no more of this one."""
        if not request.ending:
            self.worker.cancel(request)
            self.left -= 1

    def close(self):
        """Whatever still runs is cancelled, and the job's place given back."""
        self.timer.cancel()
        for request in self.requests:
            if not request.ending:
                self.worker.cancel(request)
        self.worker.closed(self)


@dataclass
class Worker:
    """Steps the engines in a thread of its own.

    max_running  sequences decoded at a time, over all models
    max_waiting  more that may wait for a place; beyond these, 429
    max_seconds  longest that one answer may take, waiting included
    """

    models: dict[str, ServedModel]
    metrics: Metrics
    max_running: int
    max_waiting: int
    max_seconds: float
    closing: bool = False
    jobs: dict[Request, Job] = field(default_factory=dict)

    def __post_init__(self):
        self.inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self.open: set[Job] = set()

    def start(self):
        self.loop = asyncio.get_running_loop()
        self.thread.start()

    def stop(self):
        """End the thread, after its present step."""
        self.inbox.put(None)
        self.thread.join(timeout=60)

    @property
    def sequences(self) -> int:
        """Sequences that run or wait; not those whose clients have yet to read the end."""
        return sum(job.left for job in self.open)

    def check_room(self, count: int):
        """Raises APIError where there is no place for so many sequences, or no longer."""
        headers = {"Retry-After": RETRY_SECONDS}
        if self.closing:
            raise APIError(503, "the server is shutting down", headers=headers)
        most = self.max_running + self.max_waiting
        if count > most:  # never to be answered: not to be asked again
            raise APIError(400, f"{count} answers are asked for, {most} are the most")
        if self.sequences + count > most:
            text = f"the server answers {self.max_running} sequences, and {self.max_waiting} wait"
            raise APIError(429, text, code="rate_limit_exceeded", headers=headers)

    def submit(self, model: ServedModel, requests: list[Request]) -> Job:
        """Have these requests answered. Raises APIError as `check_room`."""
        self.check_room(len(requests))
        job = Job(self, model, requests)
        self.open.add(job)
        for request in requests:
            self.jobs[request] = job
        self.inbox.put(lambda: self._add(job))
        return job

    def cancel(self, request: Request):
        job = self.jobs.pop(request, None)
        if job is not None:
            self.inbox.put(lambda: job.model.engine.cancel(request))

    def cut(self):
        """The time after SIGTERM is over: what still runs ends as it is."""
        for job in self.open:
            job.fail(APIError(503, "the server is shutting down, the answer was cut"))

    def closed(self, job: Job):
        for request in job.requests:
            self.jobs.pop(request, None)
        if job in self.open:
            self.open.remove(job)
            self.metrics.count(job)

    def _run(self):
        while True:
            if not self._take_inbox():
                return
            for model in self.models.values():
                if model.engine.has_work:
                    self._step(model)

    def _take_inbox(self) -> bool:
        """Do what was asked for; wait for it where there is nothing else. False: stop."""
        idle = not any(model.engine.has_work for model in self.models.values())
        while idle or not self.inbox.empty():
            command = self.inbox.get()
            if command is None:
                return False
            command()
            idle = False
        return True

    def _add(self, job: Job):
        engine = job.model.engine
        try:
            for request in job.requests:
                engine.add(request)
        except Exception as error:
            for request in job.requests:
                engine.cancel(request)
            self._lost(job.model, job.requests, error)

    def _step(self, model: ServedModel):
        try:
            drawn = model.engine.step()
        except Exception as error:
            self._lost(model, model.engine.fail(), error)
            return
        if drawn:
            self._tell(self._deliver, drawn)

    def _lost(self, model: ServedModel, requests: list[Request], error: Exception):
        logging.error("%s could not go on", model.name, exc_info=error)
        failure = APIError(500, f"the model could not go on ({type(error).__name__})")
        self._tell(self._fail, requests, failure)

    def _tell(self, call: Callable, *arguments):
        """Have the event loop do this, if there still is one: SIGTERM twice leaves at once."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(call, *arguments)

    def _deliver(self, drawn: list[Drawn]):
        for one in drawn:
            job = self.jobs.get(one.request)
            if job is None:  # it was cancelled meanwhile
                continue
            if job.first_token is None:
                job.first_token = time.perf_counter() - job.begun
            job.news.append(one)
            if one.last:
                job.left -= 1
                del self.jobs[one.request]
            job.changed.set()

    def _fail(self, lost: list[Request], failure: APIError):
        for request in lost:
            job = self.jobs.pop(request, None)
            if job is not None:
                job.fail(failure)
