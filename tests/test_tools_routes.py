"""GET /tools and POST /tools/{name}, over HTTP."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from serving import errors
from serving.tools import MOST_TOGETHER, router
from tools.calls import DESCRIPTIONS, tool_of


def client_of(routes) -> TestClient:
    """An application with these routes, and the server's own answers to errors."""
    app = FastAPI()
    app.include_router(routes)
    app.add_exception_handler(errors.APIError, errors.api_error)
    app.add_exception_handler(HTTPException, errors.http_error)
    app.add_exception_handler(RequestValidationError, errors.validation_error)
    return TestClient(app)


CLIENT = client_of(router())


def test_tools_are_described():
    """As the model is told of them."""
    response = CLIENT.get("/tools")
    assert response.status_code == 200 and response.json() == {"tools": DESCRIPTIONS}


def test_a_call_has_a_result():
    """A text, whatever the tool returns."""
    for name, arguments, result in [
        ("calculator", {"expression": "（1,200＋34）× 2"}, '{"result": 2468}'),
        ("convert_units", {"value": 3, "from_unit": "公里", "to_unit": "m"},
         '{"result": 3000, "unit": "m"}'),
    ]:  # fmt: skip
        response = CLIENT.post(f"/tools/{name}", json={"arguments": arguments})
        assert response.status_code == 200 and response.json() == {"result": result}


@pytest.mark.parametrize(
    ("name", "body", "status", "message"),
    [
        ("eval", {"arguments": {}}, 404, "there are calculator, get_time, convert_units"),
        ("calculator", {"arguments": {}}, 400, "no expression; calculator takes expression"),
        ("calculator", {"arguments": {"expression": "9**9**9"}}, 400, "too large"),
        ("calculator", {"arguments": {"expression": 1}}, 400, "to be of type string"),
        ("calculator", {"arguments": "1 + 1"}, 400, "arguments"),
        ("calculator", {}, 400, "arguments"),
        ("calculator", {"arguments": {"expression": "1"}, "more": 1}, 400, "more"),
        ("calculator", [], 400, ""), ("calculator", None, 400, ""),
    ],
)  # fmt: skip
def test_wrong_calls_get_openais_error_object(name, body, status, message):
    """With what was expected, for the model to mend its call."""
    response = CLIENT.post(f"/tools/{name}", json=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and message in error["message"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=10)
    | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(["\ud800", "1/0", "km"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["arguments", "expression", "city", "value"]), inner),
    max_leaves=6,
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["calculator", "get_time", "convert_units", "x"]), json_values)
def test_any_body_is_answered(name, body):
    """With a result, or an error object; with a lone surrogate in a text, too."""
    for value in (body, {"arguments": body}):
        response = CLIENT.post(f"/tools/{name}", content=json.dumps(value))
        assert response.status_code in (200, 400, 404)
        assert "result" in response.json() or "message" in response.json()["error"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"arguments": {"a": 1e999}}']
)
def test_what_is_no_json_is_refused(body):
    """Cut off, not UTF-8, deeper than can be read, larger than a number can be."""
    response = CLIENT.post("/tools/calculator", content=body)
    assert response.status_code == 400 and response.json()["error"]["message"]


def test_slow_tools_end_for_the_client_and_are_few():
    """A call that takes too long is told so; as many as may run together go on, and no more."""
    go, begun = threading.Event(), []

    def wait() -> str:
        """Wait."""
        begun.append(1)
        go.wait(20)
        return "done"

    client = client_of(router({"wait": tool_of(wait)}, most_seconds=1.5))

    def ask():
        return client.post("/tools/wait", json={"arguments": {}})

    with client, ThreadPoolExecutor(MOST_TOGETHER + 2) as threads:
        answers = list(threads.map(lambda _: ask(), range(MOST_TOGETHER + 2)))
        assert {answer.status_code for answer in answers} == {503} and len(begun) == MOST_TOGETHER
        messages = [answer.json()["error"]["message"] for answer in answers]
        assert sum("longer than 1.5 seconds" in message for message in messages) == MOST_TOGETHER
        assert sum("try again later" in message for message in messages) == 2
        assert ask().status_code == 503  # they are still running
        go.set()
        until = time.monotonic() + 10
        while (answer := ask()).status_code == 503 and time.monotonic() < until:
            time.sleep(0.05)
        assert answer.json() == {"result": "done"}
        assert all(ask().status_code == 200 for _ in range(2 * MOST_TOGETHER))  # none leaked
