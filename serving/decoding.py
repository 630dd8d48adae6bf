"""The process that decodes: it opens the models and steps their engines, as a pipe tells it.

What it hears                                  what it says
    ("add", model, [(key, Request)])               ("drawn", model, rows in use, [tokens of a step])
    ("cancel", model, key)                         ("failed", keys, why)
    ("look", model, key, arguments)                ("looked", key, what was seen, or an exception)
    None: end
"""

from __future__ import annotations

import logging
import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from model.engine import Engine
from model.request import Drawn, Request
from serving.worker import ServedModel


@dataclass
class OpenModel:
    """A model in the process that decodes.

    described  what the other process knows of it
    look       what model/inside.py sees of a text: (ids, layer, head, lens) → numbers
    """

    described: ServedModel
    engine: Engine
    look: Callable[[list[int], int | None, int | None, bool], dict]


class Decoding:
    """Steps the engines in turn, for as long as the other end of the pipe is there."""

    def __init__(self, models: dict[str, OpenModel], pipe: Connection):
        self.models, self.pipe = models, pipe
        self.requests: dict[int, Request] = {}  # by key, those that have not ended
        self.key_of: dict[Request, int] = {}
        self.rows = dict.fromkeys(models, 0)  # in use, as told last
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        self.may_send = threading.Lock()

    def run(self):
        # read at once whatever comes: else both ends could wait for the other one to read
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            engines = [model.engine for model in self.models.values()]
            idle = not any(engine.has_work for engine in engines)
            while idle or not self.inbox.empty():
                message = self.inbox.get()
                if message is None:
                    return
                kind, name, *content = message
                getattr(self, f"_{kind}")(name, *content)
                idle = False
            for name, model in self.models.items():
                if model.engine.has_work:
                    self._step(name, model.engine)
                if model.engine.running != self.rows[name]:
                    self._tell(name, [])

    def _read(self):
        try:
            while (message := self.pipe.recv()) is not None:
                self.inbox.put(message)
        except (EOFError, OSError):  # the other process has gone
            pass
        self.inbox.put(None)

    def _send(self, *message):
        with self.may_send:
            try:
                self.pipe.send(message)
            except OSError:
                self.inbox.put(None)

    def _tell(self, name: str, told: list[tuple]):
        self.rows[name] = self.models[name].engine.running
        self._send("drawn", name, self.rows[name], told)

    def _add(self, name: str, keyed: list[tuple[int, Request]]):
        engine = self.models[name].engine
        for key, request in keyed:
            self.requests[key], self.key_of[request] = request, key
        try:
            for _, request in keyed:
                engine.add(request)
        except Exception as error:
            for _, request in keyed:
                engine.cancel(request)
            self._lost(name, [request for _, request in keyed], error)

    def _cancel(self, name: str, key: int):
        request = self.requests.pop(key, None)
        if request is not None:
            del self.key_of[request]
            self.models[name].engine.cancel(request)

    def _look(self, name: str, key: int, arguments: tuple):
        """In a thread, so that answers go on meanwhile."""

        def look():
            try:
                self._send("looked", key, self.models[name].look(*arguments), None)
            except Exception as error:
                self._send("looked", key, None, error)

        threading.Thread(target=look, daemon=True).start()

    def _step(self, name: str, engine: Engine):
        try:
            drawn = engine.step()
        except Exception as error:
            self._lost(name, engine.fail(), error)
            return
        for request in [one.request for one in drawn if one.request.ending == "failed"]:
            key = self.key_of.pop(request)
            del self.requests[key]
            self._send("failed", [key], f"the answer could not go on: {request.failure}")
        if drawn := [one for one in drawn if one.request in self.key_of]:
            self._tell(name, [self._told(one) for one in drawn])

    def _told(self, one: Drawn) -> tuple:
        request = one.request
        key = self.key_of[request]
        if one.last:
            del self.requests[key], self.key_of[request]
        is_first = len(request.tokens) <= 1
        of_prompt = (request.cached, request.prompt_tops) if is_first else None
        return key, one.token, one.logprob, request.ending if one.last else "", of_prompt

    def _lost(self, name: str, requests: list[Request], error: Exception):
        logging.error("%s could not go on", name, exc_info=error)
        keys = [self.key_of.pop(request) for request in requests]
        for key in keys:
            del self.requests[key]
        self._send("failed", keys, f"the model could not go on ({type(error).__name__})")


def decode(pipe: Connection, options: dict):
    """The life of the process: open the models, describe them (or say what is wrong), decode."""
    from serving.models import open_models  # here: the other process needs none of it

    try:
        models = open_models(**options)
    except ValueError as error:
        pipe.send(str(error))
        return
    # signals are for the process that clients talk to: it ends this one when it has told them
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    pipe.send([model.described for model in models.values()])
    Decoding(models, pipe).run()


def start(options: dict) -> tuple[dict[str, ServedModel], Connection, multiprocessing.Process]:
    """The process, the pipe to it, and its models, once they are open.

    options: as for serving.models.open_models, whose ValueErrors are raised here.
    """
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=decode, args=(theirs, options), daemon=True)
    process.start()
    theirs.close()
    try:
        described = pipe.recv()
    except EOFError:
        raise SystemExit("error: the models could not be opened (see above)") from None
    if isinstance(described, str):
        raise ValueError(described)
    return {model.name: model for model in described}, pipe, process
