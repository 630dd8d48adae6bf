"""What the routes wait for: requests are decoded in a process of its own (serving/decoding.py).

Two processes, since Python runs one thread at a time: while one writes the tokens of a step to many
clients, the other computes the next. Requests and cancellations go one way through a pipe, all
tokens of a step the other way in one message.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection

from dataset.tokenizer import Tokenizer
from model.request import Drawn, Request
from serving.errors import APIError
from serving.grammar import Grammars
from serving.metrics import Metrics

RETRY_SECONDS = "1"  # what a client that is refused for now is told to wait


@dataclass
class ServedModel:
    """One name that requests may ask for.

    context     longest prompt and answer together, in tokens
    vocab_size  ids that the model knows
    ends        ids at which an answer ends
    kind        "chat" or "base" (it has no chat template)
    created     when its weights were written, in seconds since 1970
    """

    name: str
    tokenizer: Tokenizer
    context: int
    vocab_size: int
    ends: frozenset[int]
    kind: str
    can_think: bool
    is_adapter: bool
    created: int

    @cached_property
    def grammars(self) -> Grammars:
        """To check the grammars that answers are to follow; the other process has its own."""
        return Grammars(self.tokenizer, self.ends, self.vocab_size)

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
    """Passes requests to the process that decodes, and its tokens to those who wait for them.

    pipe         to that process
    max_running  sequences decoded at a time, of each model
    max_waiting  more that may wait for a place; beyond these, 429
    max_seconds  longest that one answer may take, waiting included
    alive        whether the process still answers
    """

    models: dict[str, ServedModel]
    pipe: Connection
    metrics: Metrics
    max_running: int
    max_waiting: int
    max_seconds: float
    closing: bool = False
    alive: bool = True
    open: set[Job] = field(default_factory=set)

    def __post_init__(self):
        self.keys = itertools.count()
        self.key_of: dict[Request, int] = {}  # of the requests that have not ended
        self.waiting: dict[int, tuple[Job, Request]] = {}  # by key
        self.looks: dict[int, asyncio.Future] = {}  # by key
        self.rows = dict.fromkeys(self.models, 0)  # of each model's cache that are in use

    def start(self):
        self.loop = asyncio.get_running_loop()
        self.loop.add_reader(self.pipe.fileno(), self._read)

    def stop(self):
        """The process ends after its present step."""
        self.loop.remove_reader(self.pipe.fileno())
        self._send(None)

    @property
    def sequences(self) -> int:
        """Sequences that run or wait; not those whose clients have yet to read the end."""
        return sum(job.left for job in self.open)

    def check_room(self, count: int):
        """Raises APIError where there is no place for so many sequences, or no longer."""
        headers = {"Retry-After": RETRY_SECONDS}
        if self.closing or not self.alive:
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
        keyed = [(next(self.keys), request) for request in requests]
        for key, request in keyed:
            self.key_of[request] = key
            self.waiting[key] = job, request
        self._send(("add", model.name, keyed))
        return job

    def cancel(self, request: Request):
        key = self.key_of.pop(request, None)
        if key is not None:
            job, _ = self.waiting.pop(key)
            self._send(("cancel", job.model.name, key))

    def cut(self):
        """The time after SIGTERM is over: what still runs ends as it is."""
        for job in self.open:
            job.fail(APIError(503, "the server is shutting down, the answer was cut"))

    def closed(self, job: Job):
        if job in self.open:
            self.open.remove(job)
            self.metrics.count(job)

    async def look(self, model: str, *arguments) -> dict:
        """What model/inside.py sees of a text. Raises ValueError for what it refuses."""
        if not self.alive:
            raise APIError(503, "the server is shutting down")
        key, future = next(self.keys), self.loop.create_future()
        self.looks[key] = future
        self._send(("look", model, key, arguments))
        try:
            return await future
        finally:
            self.looks.pop(key, None)

    def _send(self, message):
        try:
            self.pipe.send(message)
        except OSError:
            self._lost()

    def _read(self):
        """All that the process has said by now."""
        try:
            while self.pipe.poll():
                kind, *content = self.pipe.recv()
                getattr(self, f"_{kind}")(*content)
        except (EOFError, OSError):
            self._lost()

    def _lost(self):
        """The process has ended: nothing more comes."""
        if self.alive:
            self.alive = False
            self.loop.remove_reader(self.pipe.fileno())
            self._failed([*self.waiting], "the process that decodes has ended")
            for future in self.looks.values():
                future.set_exception(APIError(503, "the process that decodes has ended"))

    def _drawn(self, model: str, rows: int, told: list[tuple]):
        """Tokens of a step; rows: of the model's cache that are in use."""
        self.rows[model] = rows
        for key, token, logprob, ending, of_prompt in told:
            if key not in self.waiting:  # it was cancelled meanwhile
                continue
            job, request = self.waiting[key]
            if of_prompt is not None:
                request.cached, request.prompt_tops = of_prompt
            if token is not None:
                request.tokens.append(token)
            if ending:
                request.ending = ending
                job.left -= 1
                del self.waiting[key], self.key_of[request]
            if job.first_token is None:
                job.first_token = time.perf_counter() - job.begun
            job.news.append(Drawn(request, token, logprob, bool(ending)))
            job.changed.set()

    def _failed(self, keys: list[int], message: str):
        for key in keys:
            if key in self.waiting:
                job, request = self.waiting.pop(key)
                del self.key_of[request]
                job.fail(APIError(500, message))

    def _looked(self, key: int, found: dict | None, error: Exception | None):
        future = self.looks.get(key)
        if future is not None and not future.done():
            future.set_exception(error) if error else future.set_result(found)
