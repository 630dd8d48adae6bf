"""docs/serving.md names what there is: routes, fields and their bounds, errors, limits, metrics."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import types
from pathlib import Path

import pytest
from openai.types import completion_create_params as openai_completion
from openai.types.chat import completion_create_params as openai_chat
from PIL import Image
from pydantic import ValidationError
from served import all_routes, inside, tiny_folder

import serve_model
from serving import guard, lab, tools
from serving.app import make_app
from serving.connection import HEAD_SECONDS
from serving.errors import TYPES, error_object
from serving.metrics import Metrics
from serving.protocol import ChatRequest, CompletionRequest, Ignored, SamplingFields

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
MESSAGES = [{"role": "user", "content": "Hi"}]
LEAST = {ChatRequest: {"messages": MESSAGES}, CompletionRequest: {"prompt": "Hi"}}


def tables(title: str) -> list[list[list[str]]]:
    """The tables of a section: rows of cells, without the heads."""
    [section] = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    found = re.findall(r"(?:^\|.*\n)+", section, re.M)
    return [
        [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in table.splitlines()[2:]
        ]
        for table in found
    ]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


COMMON, CHAT, COMPLETIONS, REFUSED = tables("Fields")


def fields(table, *states: str) -> set[str]:
    return {name for cell, state, _ in table if state in states for name in names(cell)}


def test_the_tables_name_the_fields_of_the_requests():
    """Exactly those of serving/protocol.py: common ones, each route's own, and the ignored."""
    every = ("supported", "ignored")
    common = set(SamplingFields.model_fields)
    assert fields(COMMON, *every) == common
    assert fields(COMMON, "ignored") == set(Ignored.model_fields)
    assert fields(CHAT, *every) == set(ChatRequest.model_fields) - common
    assert fields(COMPLETIONS, *every) == set(CompletionRequest.model_fields) - common
    assert fields(CHAT, "ignored") == fields(COMPLETIONS, "ignored") == set()


@pytest.mark.parametrize(
    ("params", "model"), [(openai_chat, ChatRequest), (openai_completion, CompletionRequest)]
)
def test_every_field_of_openais_client_is_in_a_table(params, model):
    """What the openai package can send is a row: supported, ignored, or refused."""
    known = set(params.CompletionCreateParamsBase.__annotations__) | {"stream"}
    refused = {name for cell, _, _ in REFUSED for name in names(cell)}
    assert known - set(model.model_fields) <= refused
    assert len(known & set(model.model_fields)) >= 17


REFUSALS = {"best_of": [2]}


def test_what_is_called_refused_is_refused():
    """By both routes, with an error at the field of this name."""
    words = {name for cell, _, _ in REFUSED for name in names(cell)}
    for name in words:
        for model, least in LEAST.items():
            for value in REFUSALS.get(name, ["x"]):
                with pytest.raises(ValidationError) as refused:
                    model.model_validate(least | {name: value})
                assert refused.value.errors()[0]["loc"][0] == name


def bounds_of(schema: dict) -> set[float]:
    """All limits in a JSON schema that a reader wants to know: not those of machine numbers."""
    if isinstance(schema, list):
        return set().union(*map(bounds_of, schema))
    if not isinstance(schema, dict):
        return set()
    keys = ("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "const")
    found = {schema[key] for key in keys if type(schema.get(key)) in (int, float)}
    parts = {key: value for key, value in schema.items() if key not in ("title", "propertyNames")}
    return {bound for bound in found if abs(bound) < 10**6} | bounds_of(list(parts.values()))


@pytest.mark.parametrize(
    ("model", "table"), [(ChatRequest, COMMON + CHAT), (CompletionRequest, COMMON + COMPLETIONS)]
)
def test_the_bounds_in_the_tables_are_those_of_the_fields(model, table):
    """Every limit that a field has stands in its row."""
    schema = model.model_json_schema()["properties"]
    checked = 0
    for cell, state, text in table:
        if state == "ignored":
            continue
        [name] = names(cell)
        written = {float(n.replace(",", "")) for n in re.findall(r"-?\b[\d,]*\.?\d+\b", text)}
        bounds = bounds_of(schema[name])
        assert bounds <= written, (name, bounds, written)
        checked += len(bounds)
    assert checked >= 20


def test_the_limits_of_code_stand_in_the_tables():
    """Those that no JSON schema has."""
    row = {names(cell)[0]: text for cell, _, text in COMMON}
    assert "up to 1,024" in row["logit_bias"]
    with pytest.raises(ValidationError, match="1024"):
        CompletionRequest(prompt="a", logit_bias={str(id): 0 for id in range(1025)})
    assert "below 0.0001" in row["temperature"]
    near, far = (CompletionRequest(prompt="a", temperature=t) for t in (9e-5, 1e-4))
    assert near.sampling().temperature == 0 != far.sampling().temperature


def test_the_routes_are_those_of_the_application():
    """Every route but HEAD of a GET, and no other."""
    app = make_app(types.SimpleNamespace(models={}, metrics=Metrics()), Path("out"), 1)
    told = {route for [cell, _] in tables("Routes")[0] for route in names(cell)}
    found = {f"{method} {path}" for method, path in all_routes(app) if method != "HEAD"}
    assert {route.replace("{", "").replace("}", "") for route in told} == found


def raised() -> set[tuple[int, str | None]]:
    """(status, code) of every APIError that the server's code makes."""
    found = set()
    for path in (ROOT / "serving").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "APIError":
                code = node.args[3] if len(node.args) > 3 else None
                code = next((word.value for word in node.keywords if word.arg == "code"), code)
                if isinstance(node.args[0], ast.Constant):
                    found.add((node.args[0].value, code and code.value))
    return found


def test_the_errors_are_those_that_are_raised():
    """Each status and code in the server's code has its row, with its type, and no row is more."""
    told = {}
    for status, kind, code, when in tables("Errors")[0]:
        told[int(status), names(code)[0] if code else None] = names(kind)[0]
        assert when
    # made by the web framework, or for what nobody foresaw
    assert {key for key in told if key not in raised()} == {(405, None), (500, None)} - raised()
    assert raised() <= set(told)
    for (status, _), kind in told.items():
        assert error_object(status, "x", None, None)["error"]["type"] == kind
    assert set(TYPES) <= {status for status, _ in told}


def test_the_limits_are_the_defaults(monkeypatch):
    """Of the flags in the table, and of the code for what has no flag."""
    monkeypatch.setattr("sys.argv", ["serve_model.py"])
    args = serve_model.parse_args()
    rows = {what: (value, names(flag)) for what, value, flag in tables("Limits")[0]}
    for value, flag in rows.values():
        if flag:
            default = getattr(args, flag[0].removeprefix("--"))
            assert default is None or value.replace(",", "").startswith(f"{default:.0f}"), flag
    assert len([flag for _, flag in rows.values() if flag]) == 5
    mib, seconds = guard.LARGEST_BODY >> 20, f"{guard.BODY_SECONDS:.0f}"
    assert rows["a body"][0] == f"{mib} MiB, within {seconds} s"
    kib = guard.LARGEST_HEAD >> 10
    assert rows["a request's path and headers"][0].startswith(f"{kib} KiB; {HEAD_SECONDS:.0f} s")
    assert rows["a text in `/lab`"][0] == f"{lab.LONGEST:,} tokens"
    assert tools.MOST_TOGETHER == 8
    assert rows["a tool call"][0] == f"{tools.MOST_SECONDS:.0f} s, eight at a time"
    assert f"`--shutdown_seconds` ({args.shutdown_seconds:.0f})" in PAGE


def test_the_metrics_are_those_of_the_code():
    """Names, labels and kinds."""
    registry = Metrics().registry
    kinds = {metric.name: metric.type for metric in registry.collect()}
    rows = {names(cell)[0]: (labels, text) for cell, labels, text in tables("Metrics")[0]}
    assert set(rows) == set(kinds)
    metrics = Metrics()
    for made in vars(metrics).values():
        if hasattr(made, "_labelnames"):
            labels, text = rows[made._name]
            assert labels == ", ".join(made._labelnames)
            kind = kinds[made._name]
            assert kind == "counter" or f"({kind})" in text


@pytest.mark.parametrize("name", ["page_chat", "page_runs", "page_lab"])
def test_the_screenshots_are_small(name):
    """A thousand pixels wide, 120 KB at most, and shown on the page."""
    file = ROOT / "docs" / "images" / f"{name}.png"
    assert f"(images/{name}.png)" in PAGE
    assert file.stat().st_size <= 120_000
    with Image.open(file) as image:
        assert image.width == 1000


@pytest.fixture(scope="module")
def url(tmp_path_factory, tiny_tokenizer_dir):
    """The address of a model with the name that the page uses."""
    folder = tmp_path_factory.mktemp("served") / "dpo"
    folder.mkdir()
    with inside(tiny_folder(folder, tiny_tokenizer_dir)) as server:
        yield server.url


def test_the_python_of_the_page_runs(url, capsys):
    """It prints an answer."""
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert code.count("http://127.0.0.1:8000") == 1
    exec(code.replace("http://127.0.0.1:8000", url), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_of_the_page_runs(url):
    """It brings a completion."""
    [command] = re.findall(r"^curl (?:.*\\\n)*.*$", PAGE, re.M)
    command = command.replace("\\\n", " ").replace("http://127.0.0.1:8000", url)
    words = shlex.split(command)
    done = subprocess.run([*words, "--silent"], capture_output=True, text=True, check=True)
    assert 1 <= json.loads(done.stdout)["usage"]["completion_tokens"] <= 64
