"""The functions a model may call, and calling them: whatever it writes, it gets a text."""

import csv
import json
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionFunctionToolParam
from pydantic import TypeAdapter

from tools.calls import (
    DESCRIPTIONS,
    MOST_CHARACTERS,
    TOOLS,
    ToolError,
    answer,
    call,
    load_tools,
    named_tools,
    table_tool,
    tool_of,
)
from tools.clock import CITY_NAMES, find_zone, get_time, time_in
from tools.lookup import LONGEST_NAME, LONGEST_VALUE, load_table


def test_the_clock_is_datetimes():
    """Winter and summer, both sides of the date line, half hours, before and after."""
    for moment, city, date, time, offset in [
        ("2024-02-29 23:30", "Asia/Tokyo", "2024-03-01", "08:30", "+09:00"),
        ("2024-07-01 12:00", "Paris", "2024-07-01", "14:00", "+02:00"),
        ("2024-01-01 12:00", "europe/paris", "2024-01-01", "13:00", "+01:00"),
        ("2024-07-01 03:00", "New York", "2024-06-30", "23:00", "-04:00"),
        ("2024-01-01 00:00", "北京", "2024-01-01", "08:00", "+08:00"),
        ("2024-01-01 00:00", "Delhi", "2024-01-01", "05:30", "+05:30"),
        ("2024-01-01 00:00", "Pacific/Kiritimati", "2024-01-01", "14:00", "+14:00"),
        ("2024-01-01 00:00", " utc ", "2024-01-01", "00:00", "+00:00"),
    ]:
        now = datetime.fromisoformat(moment).replace(tzinfo=timezone.utc)
        found = time_in(city, now)
        assert (found["date"], found["time"], found["utc_offset"]) == (date, time, offset)
        weekday = datetime.fromisoformat(date).strftime("%A")
        assert found["weekday"] == weekday
    here = time_in("", datetime(2024, 5, 6, 7, 8, tzinfo=timezone.utc))
    local = datetime(2024, 5, 6, 7, 8, tzinfo=timezone.utc).astimezone()
    assert here["time"] == local.strftime("%H:%M") and here["date"] == local.strftime("%Y-%m-%d")
    before = datetime.now(timezone.utc)
    shown = get_time("UTC")
    told = datetime.fromisoformat(f"{shown['date']} {shown['time']}").replace(tzinfo=timezone.utc)
    assert before - timedelta(minutes=1) <= told <= datetime.now(timezone.utc)


def test_cities_are_time_zones_and_paths_are_not():
    """Every city named has a zone; nothing that a model writes becomes the path of a file."""
    for zone, names in CITY_NAMES.items():
        for name in names.split():
            assert str(find_zone(name.replace("_", " ").title())) == zone
    for odd in ("../../etc/passwd", "/etc/passwd", "Europe", "Europe/", "Europe/../Europe/Paris",
                "\x00", "\ud800", "a" * 10**6, "Atlantis", ".", "zone.tab"):  # fmt: skip
        with pytest.raises(ValueError, match="unknown city"):
            find_zone(odd)


@pytest.fixture
def prices(tmp_path):
    """A table in a CSV file."""
    with open(tmp_path / "prices.csv", "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(
            [["name", "value"], ["Apple", "1.50"], ["苹果, 红", "3"], ["ABC", "x"], ["abc", "y"]]
        )
    return tmp_path / "prices.csv"


def test_lookup_finds_names_in_any_case(prices, tmp_path):
    """The name itself first; one that several differ from only in case is asked for again."""
    tools = table_tool(prices, "price")
    assert call("price", {"name": "Apple"}, tools) == '{"result": "1.50"}'
    assert call("price", {"name": " aPPLE "}, tools) == '{"result": "1.50"}'
    assert call("price", {"name": "苹果, 红"}, tools) == '{"result": "3"}'
    assert call("price", {"name": "abc"}, tools) == '{"result": "y"}'
    assert "expected one of ABC, abc" in answer("price", {"name": "Abc"}, tools)
    assert "there are Apple" in answer("price", {"name": "the apple pie"}, tools)
    assert "no entry" in answer("price", {"name": "\ud800" + "x" * 10**6}, tools)
    assert tools["price"].description["function"]["name"] == "price"
    (tmp_path / "t.json").write_text('{"a": 1, "b": {"c": [true, null]}}')
    tools = table_tool(tmp_path / "t.json")
    assert json.loads(call("lookup", {"name": "B"}, tools)) == {"result": {"c": [True, None]}}


def told_of(tools: dict, name: str) -> str:
    """What a model is told of a tool."""
    return tools[name].description["function"]["description"]


def test_a_tables_header_is_no_entry_and_says_what_it_holds(prices, tmp_path):
    """Whatever its columns are called; without a header, or with name,value, it holds names."""
    (tmp_path / "t.csv").write_text("\nproduct,price\nApple,1.50\n")
    tools = table_tool(tmp_path / "t.csv")
    assert told_of(tools, "lookup") == "Look up price of product in a table."
    assert "no entry 'product'" in answer("lookup", {"name": "product"}, tools)
    assert answer("lookup", {"name": "apple"}, tools) == '{"result": "1.50"}'
    assert told_of(table_tool(prices), "lookup") == "Look up a name in a table."
    (tmp_path / "t.csv").write_text("name,\nApple,1\n")
    assert told_of(table_tool(tmp_path / "t.csv"), "lookup") == "Look up a name in a table."


def test_several_tables_are_told_apart(prices, tmp_path):
    """The first is "lookup", further ones have their files' names; suffixes in any case."""
    for name in ("UP.CSV", "价格.csv", "my table.JSON"):
        is_csv = name.lower().endswith("csv")
        (tmp_path / name).write_text("city,people\nParis,2\n" if is_csv else '{"a": 1}')
    paths = [str(tmp_path / name) for name in ("UP.CSV", "prices.csv", "价格.csv", "my table.JSON")]
    tools = named_tools([paths[0], "calculator", *paths[1:]])
    assert list(tools) == ["lookup", "calculator", "lookup_prices", "lookup_4", "lookup_my_table"]
    assert [tool.description["function"]["name"] for tool in tools.values()] == list(tools)
    assert told_of(tools, "lookup") == "Look up people of city in a table."
    assert told_of(tools, "lookup_prices") == "Look up a name in the table prices."
    assert answer("lookup_prices", {"name": "apple"}, tools) == '{"result": "1.50"}'
    assert answer("lookup_my_table", {"name": "a"}, tools) == '{"result": 1}'
    assert list(named_tools(paths[1:2])) == ["lookup"]
    with pytest.raises(ValueError, match="a tool of the name lookup_prices already"):
        named_tools([paths[0], paths[1], paths[1]])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.txt", "a,b", "ends in .json or .csv"), ("t.csv", "", "1 to 100,000 names, got 0"),
        ("t.csv", "name,value\n", "got 0"), ("t.csv", "a\n", "line 1: expected a name and a value"),
        ("t.csv", "a,b\na,2,3\n", "line 2"), ("t.csv", "a,b\na,1\n a,2\n", "'a' is there twice"),
        ("t.csv", 'a,"1\n', "unexpected end"), ("t.csv", "a,b\n,1\n", "names of 1 to"),
        ("t.csv", "a,b\n" + "a" * (LONGEST_NAME + 1) + ",1", "names of 1 to"),
        ("t.csv", "a,b\na," + "b" * LONGEST_VALUE, "expected at most 2,000"),
        ("t.csv", "Apple,1.50\nPear,2\n", "such as name,value, as the first row, got 'Apple,1.50'"),
        ("t.csv", "\nApple,$1\n", "got 'Apple,$1'"), ("t.csv", "product,price\n", "got 0"),
        ("t.json", "[1]", "got list"), ("t.json", "{", "Expecting"),
        ("t.json", '{"a":1,"a":2}', "twice"),
        ("t.json", '{"a": NaN}', "NaN"), ("t.json", '{"a":' + "[" * 10**5, "t.json"),
        ("t.json", '{"a": "\\ud800"}', "surrogates"),
        ("t.csv", "a,b\n" + "".join(f"{i},1\n" for i in range(100_001)), "got 100,001"),
    ],
)  # fmt: skip
def test_broken_tables_are_refused(tmp_path, name, content, reason):
    """With the path, in one line."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        load_table(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_refused(tmp_path):
    """No file, and a folder."""
    (tmp_path / "folder.csv").mkdir()
    for name in ("no.csv", "folder.csv"):
        with pytest.raises(ValueError, match=name):
            load_table(tmp_path / name)


def test_descriptions_are_openais():
    """Each is a function tool of the openai package, and tells of all its parameters."""
    for description in DESCRIPTIONS:
        TypeAdapter(ChatCompletionFunctionToolParam).validate_python(description)
        assert json.loads(json.dumps(description)) == description
        told = description["function"]
        assert told["description"] and len(json.dumps(told, ensure_ascii=False)) < 500
        for schema in told["parameters"]["properties"].values():
            assert schema["type"] in ("string", "number") and schema["description"]
    assert [d["function"]["name"] for d in DESCRIPTIONS] == list(TOOLS)


def test_calls_have_results():
    """As JSON texts."""
    assert call("calculator", {"expression": "0.1 + 0.2"}) == '{"result": 0.3}'
    arguments = {"value": 2, "from_unit": "公里", "to_unit": "m"}
    assert json.loads(call("convert_units", arguments)) == {"result": 2000, "unit": "m"}
    assert json.loads(call("get_time", {}))["date"]
    assert json.loads(call("get_time", {"city": None}))["date"]  # not required: null is nothing


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("nothing", {}, "expected one of calculator, get_time, convert_units"),
        (None, {}, "unknown tool"), (["calculator"], {}, "unknown tool"), ("\ud800", {}, "unknown"),
        ("calculator", {}, "no expression; calculator takes expression (string)"),
        ("calculator", {"expr": "1"}, "unknown argument 'expr'; calculator takes expression"),
        ("calculator", {"expression": "1", "x\x00": 2}, "unknown argument"),
        ("calculator", {"expression": 5}, "expression to be of type string, got integer"),
        ("calculator", {"expression": None}, "got null"),
        ("calculator", "1 + 1", "arguments as an object, got string"),
        ("calculator", ["1 + 1"], "got array"), ("calculator", None, "got null"),
        ("calculator", {"expression": "1/0"}, "division by zero"),
        ("convert_units", {"value": "5", "from_unit": "m", "to_unit": "km"}, "of type number"),
        ("convert_units", {"value": True, "from_unit": "m", "to_unit": "km"}, "got boolean"),
        ("convert_units", {"value": 1}, "to_unit (string)"),
        ("get_time", {"city": {}}, "got object"), ("get_time", {"city": "Nowhere"}, "unknown city"),
    ],
)  # fmt: skip
def test_wrong_calls_are_told_what_was_expected(name, arguments, expected):
    """As a ToolError, and as a text that begins with "error: "."""
    with pytest.raises(ToolError) as caught:
        call(name, arguments)
    text = answer(name, arguments)
    assert text == f"error: {caught.value}" and expected in text
    assert text.isprintable() and len(text) < 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(
        st.characters(exclude_categories=()), max_size=20
    ) | st.sampled_from(["1+1", "km", "m", "Paris", "9**9**9"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
names = st.sampled_from([*TOOLS, "", "eval"]) | json_values
keys = st.sampled_from(["expression", "value", "from_unit", "to_unit", "city"])
arguments = st.dictionaries(keys, json_values, max_size=4) | json_values


@settings(max_examples=200, deadline=None)
@given(names, arguments)
def test_any_call_is_answered(name, arguments):
    """Whatever JSON a model writes, the answer is a text that UTF-8 can write, and never raises."""
    answer(name, arguments).encode("utf-8")


USERS = '''
import math as library
from typing import Literal, Optional

def add(a: int, b: int = 1, *, times: float = 1.0) -> float:
    """Add two numbers,
    and multiply them.

    a: the first one
    times: a factor
    """
    return (a + b) * times

def pick(words: list[str], way: Literal["first", "last"], extra: Optional[dict] = None) -> dict:
    """Pick a word."""
    return {"word": words[0 if way == "first" else -1], "extra": extra}

def broken(on: bool = False) -> str:
    """Fails."""
    raise KeyError("it\\nfailed \\ud800")

def refused() -> str:
    """Refuses."""
    raise ValueError("expected something else")

def odd() -> str:
    """Gives half a character."""
    return "a\\ud800"

def long() -> str:
    """Says too much."""
    return "x" * 10_001

def unwritable() -> object:
    """Gives what JSON cannot hold."""
    return object()

def _private(x): ...
'''


def test_a_users_own_tools(tmp_path):
    """Public functions of a file, described by type hints and docstrings; imports are none."""
    (tmp_path / "mine.py").write_text(USERS)
    tools = load_tools(tmp_path / "mine.py")
    assert list(tools) == ["add", "pick", "broken", "refused", "odd", "long", "unwritable"]
    assert tools["add"].description == {"type": "function", "function": {
        "name": "add", "description": "Add two numbers, and multiply them.",
        "parameters": {"type": "object", "required": ["a"], "properties": {
            "a": {"type": "integer", "description": "the first one"}, "b": {"type": "integer"},
            "times": {"type": "number", "description": "a factor"}}}}}  # fmt: skip
    assert tools["pick"].description["function"]["parameters"] == {
        "type": "object", "required": ["words", "way"], "properties": {
            "words": {"type": "array", "items": {"type": "string"}},
            "way": {"type": "string", "enum": ["first", "last"]},
            "extra": {"type": "object"}}}  # fmt: skip
    assert (
        answer("add", {"a": 2.0}, tools) == "3.0"
        and answer("add", {"a": 2, "b": 2, "times": 2}, tools) == "8"
    )
    given = {"words": ["中", "b"], "way": "first", "extra": None}
    assert answer("pick", given, tools) == '{"word": "中", "extra": null}'
    for name, arguments, wanted in [
        ("add", {"a": 2.5}, "a to be of type integer, got number"),
        ("pick", {"words": ["a", 1], "way": "last"}, "every item of words"),
        ("pick", {"words": [], "way": "middle"}, "one of first, last, got 'middle'"),
        ("pick", {"words": [], "way": "last"}, "pick failed: IndexError"),
        ("broken", {}, "broken failed: KeyError: 'it"), ("refused", {}, "error: expected some"),
        ("long", {}, f"at most {MOST_CHARACTERS:,}"), ("unwritable", {}, "TypeError"),
    ]:  # fmt: skip
        text = answer(name, arguments, tools)
        assert text.startswith("error: ") and wanted in text and text.isprintable()
    assert answer("odd", {}, tools) == "a?"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("x = 1", "a public function"), ("def f(a): ...", "a docstring"),
        ("1/0", "ZeroDivisionError"), ("def f(a):\n  'Says.'", "no type hint"),
        ("def f(*a: int):\n  'Says.'", "names of their own"),
        ("def f(a: set):\n  'Says.'", "expected str, int"), ("async def f():\n  'Says.'", "async"),
        ("def f(a: int | str):\n  'Says.'", "expected str, int"), ("def f(:", "SyntaxError"),
        ("import sys; sys.stdin.no", "AttributeError"),
    ],
)  # fmt: skip
def test_files_without_tools_are_refused(tmp_path, source, reason):
    """With the path and what was expected."""
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(ValueError) as caught:
        load_tools(tmp_path / "mine.py")
    assert "mine.py" in str(caught.value) and reason in str(caught.value)


def test_files_that_are_no_python_are_refused(tmp_path):
    """Or not there."""
    for name in ("tools.txt", "missing.py"):
        with pytest.raises(ValueError, match=name):
            load_tools(tmp_path / name)


def test_a_function_is_a_tool_without_a_file():
    """For rollouts: a clock that stands still, for example."""
    noon = datetime(2024, 1, 1, 12, tzinfo=timezone.utc)

    def get_time(city: str = "") -> dict:
        """Get the date and time in a city."""
        return time_in(city, noon)

    tools = {**TOOLS, "get_time": tool_of(get_time)}
    assert json.loads(call("get_time", {"city": "Tokyo"}, tools))["time"] == "21:00"
