"""A client's connection, below the application: bounded in time and size, errors as objects."""

from __future__ import annotations

import asyncio
import json

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.errors import error_object

LARGEST_HEAD = 16 << 10  # bytes of a request's first line and headers that come in parts
HEAD_SECONDS = 20.0  # between two answers: for the next request's head to be there


def server_config(app: ASGIApp, shutdown_seconds: float) -> uvicorn.Config:
    """uvicorn's settings. shutdown_seconds: after SIGTERM, for what still runs."""
    return uvicorn.Config(
        app, http=Connection, h11_max_incomplete_event_size=LARGEST_HEAD, ws="none",
        log_level="warning", access_log=False, server_header=False, lifespan="on",
        timeout_graceful_shutdown=shutdown_seconds,
    )  # fmt: skip


class Connection(H11Protocol):
    """uvicorn's, which lets a client be silent for ever, and tells of bad HTTP in plain text."""

    waiting: asyncio.TimerHandle | None = None  # while nothing is being answered

    def connection_made(self, transport: asyncio.Transport):
        super().connection_made(transport)
        self._limit_waiting()

    def connection_lost(self, exc: Exception | None):
        super().connection_lost(exc)
        self._stop_waiting()

    def data_received(self, data: bytes):
        super().data_received(data)
        self._limit_waiting()

    def on_response_complete(self):
        super().on_response_complete()
        self._limit_waiting()

    def shutdown(self):
        """The server is about to leave: it does not wait for the rest of a request."""
        super().shutdown()
        if self.cycle is not None and self.cycle.more_body:
            self.transport.close()

    def _limit_waiting(self):
        """Bytes do not renew the limit: a head, or a body nobody wants, may come in small drops."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self.waiting is None:
            self.waiting = self.loop.call_later(HEAD_SECONDS, self._leave)

    def _stop_waiting(self):
        if self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None

    def _leave(self):
        self.transport.close()
        # the last of an answer goes out first, but not to a client that never reads it
        self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str):
        body = json.dumps(error_object(400, msg, None, None)).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no answer has begun
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        self.transport.close()
