"""The tools that the chat page calls when a model asks for one: their descriptions, and calls."""

from __future__ import annotations

import threading
from typing import Any

import anyio
from fastapi import APIRouter

from serving.errors import APIError
from serving.protocol import Fields
from tools.calls import TOOLS, Tool, ToolError, call

MOST_TOGETHER = 8  # calls at once; more are told to come back
MOST_SECONDS = 30.0  # of a call; a user's own tool may take long, ours take milliseconds


class ToolCall(Fields):
    """A call as a model writes it, but for the tool's name, which is in the path."""

    arguments: dict[str, Any]


def router(tools: dict[str, Tool] = TOOLS, most_seconds: float = MOST_SECONDS) -> APIRouter:
    """GET /tools: OpenAI's descriptions. POST /tools/{name}: {"result": text}.

    What a model may have done wrong is an error of status 400 that says what was expected, or 404
    for a tool that is not there. Calls are run in threads: one that takes long keeps its place
    among MOST_TOGETHER until it is done, though its client was told no more than that.
    """
    routes = APIRouter()
    free = threading.BoundedSemaphore(MOST_TOGETHER)

    def run(name: str, arguments: dict) -> str:
        if not free.acquire(blocking=False):
            raise APIError(503, f"{MOST_TOGETHER} calls of tools are running: try again later")
        try:
            return call(name, arguments, tools)
        finally:
            free.release()

    @routes.get("/tools")
    async def descriptions() -> dict:
        return {"tools": [tool.description for tool in tools.values()]}

    @routes.post("/tools/{name}")
    async def run_tool(name: str, body: ToolCall) -> dict:
        if name not in tools:
            have = ", ".join(tools)
            raise APIError(404, f"no such tool; there are {have}", "name", "tool_not_found")
        try:
            with anyio.fail_after(most_seconds):
                result = await anyio.to_thread.run_sync(
                    run, name, body.arguments, abandon_on_cancel=True,
                    limiter=anyio.CapacityLimiter(1),
                )  # fmt: skip
        except ToolError as error:
            raise APIError(400, str(error), "arguments", "wrong_tool_call") from None
        except TimeoutError:
            raise APIError(503, f"{name} took longer than {most_seconds:g} seconds") from None
        return {"result": result}

    return routes
