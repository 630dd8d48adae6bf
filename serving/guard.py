"""Who may ask, and how much: looked at before anything else reads a request.

A web page elsewhere must not be able to talk to a server on this machine. A browser lets it send,
but says where it comes from: the `Origin` has to be this server's own. And a name that somebody
else's DNS points here (rebinding) comes as `Host`: it has to be a name of this machine.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import APIError, response

HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+(%[\w.%-]+)?\]|[A-Za-z0-9._-]+)(:[0-9]*)?")
LARGEST_HEAD = 64 << 10  # bytes of the path and all headers, however they come
LARGEST_BODY = 4 << 20  # bytes
BODY_SECONDS = 30.0  # for all of a body to arrive
OPEN_ROUTES = ("/health",)  # need no key


class Guard:
    """Checks Host, Origin, key and the body's size; then the application gets the whole body.

    names    host names under which the server may be asked, besides localhost and addresses
    api_key  what `Authorization: Bearer` has to hold on every route but /health (or the password of
             Basic, which is what a browser asks its user for); None: nothing
    """

    def __init__(self, app: ASGIApp, names: set[str], api_key: str | None = None):
        self.app = app
        self.names = {"localhost", *(name.lower().rstrip(".") for name in names)}
        self.digest = None if api_key is None else _digest(api_key.encode("utf-8"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            _check_head(headers, scope)
            self._check_host(headers)
            self._check_origin(headers)
            if scope["path"] not in OPEN_ROUTES:
                self._check_key(headers, scope)
            body = await _whole_body(headers, receive)
        except APIError as error:
            return await response(error)(scope, receive, send)
        if body is None:  # the client has gone
            return None
        await self.app(scope, _replayed(body, receive), send)

    def _check_host(self, headers: Headers):
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            name = hosts[0][:100] if hosts else "none"
            raise APIError(403, f"Host: {name!r} is not a name of this server (--allowed_hosts)")

    def _is_ours(self, host: str) -> bool:
        found = HOST.fullmatch(host)
        if found is None:
            return False
        name = found["name"].lower()
        return name.rstrip(".") in self.names or _is_address(name.strip("[]"))

    def _check_origin(self, headers: Headers):
        """Browsers send it with all that a page of another site could do harm with."""
        for origin in headers.getlist("origin"):
            try:
                same = urlsplit(origin).netloc.lower() == headers["host"].lower()
            except ValueError:
                same = False
            if not same:
                raise APIError(403, f"Origin: pages of {origin[:100]!r} may not use this server")
        # forms and images of other sites come without Origin, but with this
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            mode = headers.get("sec-fetch-mode")
            if mode != "navigate" or headers.get("sec-fetch-dest") != "document":
                raise APIError(403, "other sites may not use this server")

    def _check_key(self, headers: Headers, scope: Scope):
        if self.digest is None:
            return
        given = _given_key(headers.get("authorization", "").encode("latin-1"))
        if given is not None and hmac.compare_digest(_digest(given), self.digest):
            return
        of_a_page = scope["method"] == "GET" and "text/html" in headers.get("accept", "")
        raise APIError(
            401,
            "the API key is missing or wrong (Authorization: Bearer KEY)",
            code="invalid_api_key",
            headers={"WWW-Authenticate": 'Basic realm="MiniMind"' if of_a_page else "Bearer"},
        )


def _check_head(headers: Headers, scope: Scope):
    size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    size += sum(len(name) + len(value) for name, value in headers.raw)
    if size > LARGEST_HEAD:
        raise APIError(400, f"path and headers are larger than {LARGEST_HEAD >> 10} KiB")


def _digest(key: bytes) -> bytes:
    """Equal in length whatever the key, so that comparing says nothing of it."""
    return hashlib.sha256(key).digest()


def _given_key(authorization: bytes) -> bytes | None:
    scheme, _, value = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()
    if scheme.lower() == b"basic":
        with contextlib.suppress(binascii.Error):
            return base64.b64decode(value, validate=True).partition(b":")[2]
    return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.split("%")[0])
    except ValueError:
        return False
    return True


async def _whole_body(headers: Headers, receive: Receive) -> bytes | None:
    """The body; None if the client goes away before all of it has come."""
    too_large = APIError(413, f"the body is larger than {LARGEST_BODY >> 20} MiB")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > LARGEST_BODY:
        raise too_large

    async def collect() -> bytes | None:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > LARGEST_BODY:
                raise too_large
            if not message.get("more_body", False):
                return bytes(body)

    try:
        return await asyncio.wait_for(collect(), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise APIError(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What the application receives: the body, then what comes from the client (that it goes)."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay
