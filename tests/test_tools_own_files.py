"""A user's own Python file: what it may do, what its tools are called, and what is told of it."""

import sys

import pytest

from tools.calls import answer, load_tools
from tools.own_files import load_file


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A function: the tools of a file that holds some text."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def load(source, name="mine.py"):
        (tmp_path / name).write_text(source)
        return load_tools(tmp_path / name)

    return load


DECORATED = '''
import functools
from functools import lru_cache, partial
from json import dumps as library
from elsewhere import plain_decorator, tool as imported_tool

def bare(function):
    def wrapper(a: int) -> int:
        """Whatever it wraps."""
        return function(a) + 100
    return wrapper

def _impl(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b

@lru_cache
def cached(a: int) -> int:
    """Is cached."""
    return a

@lru_cache(maxsize=3)
def cached_too(a: int) -> int:
    """Is cached, too."""
    return a + 1

@bare
def wrapped(a: int) -> int:
    """Never seen."""
    return a

if True:
    @plain_decorator
    def from_elsewhere(a: int) -> int:
        """Never seen."""
        return a

def _ignored(): ...

add = _impl
add_ten = partial(_impl, b=10)
del bare
'''
ELSEWHERE = '''
def plain_decorator(function):
    def wrapper(a: int) -> int:
        """Made elsewhere."""
        return function(a) + 200
    return wrapper

def tool(a: int) -> int:
    """Is imported, and no tool of this file."""
    return a
'''


def test_decorated_functions_have_the_names_of_the_file(load, tmp_path):
    """lru_cache, decorators without functools.wraps, partial and aliases; told and called alike."""
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    tools = load(DECORATED)
    results = {"cached": 5, "cached_too": 6, "wrapped": 105, "from_elsewhere": 205, "add": 6,
               "add_ten": 15}  # fmt: skip
    assert {name: int(answer(name, {"a": 5}, tools)) for name in tools} == results
    told = {name: tool.description["function"] for name, tool in tools.items()}
    assert [(name, t["name"]) for name, t in told.items()] == [(name, name) for name in results]
    assert told["cached"]["description"] == "Is cached."
    assert told["wrapped"]["description"] == "Whatever it wraps."
    assert told["add_ten"]["description"] == "Add two numbers."
    assert told["add_ten"]["parameters"]["required"] == ["a"]
    assert answer("add_ten", {"a": 5, "b": 1}, tools) == "6"


def test_annotations_as_text_and_lists_of_anything(load):
    """A dataclass in the file, `from __future__ import annotations`, List without its items."""
    tools = load(
        """from __future__ import annotations
from dataclasses import dataclass
from typing import Any, Dict, List

@dataclass
class Item:
    price: float = 2.0

def total(xs: List, ys: list[Any], z: Dict = None) -> float:
    '''Sum it.'''
    return sum(xs) * len(ys) * Item().price
"""
    )
    properties = tools["total"].description["function"]["parameters"]["properties"]
    assert properties == {"xs": {"type": "array"}, "ys": {"type": "array"}, "z": {"type": "object"}}
    assert answer("total", {"xs": [1, 2], "ys": ["a"]}, tools) == "6.0"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def f(a: [1]):\n  'Says.'", "f: the parameter a has the type [1]; expected str, int"),
        ("def f(a: list[set]):\n  'Says.'", "f: the parameter a has the type <class 'set'>"),
        ("def f(a: 'Missing'):\n  'Says.'", "f: its type hints cannot be read (NameError"),
        ("import sys\nsys.exit()", "SystemExit; what only a script does belongs behind if"),
        ("import sys\nsys.exit('gone')", "SystemExit: gone; what only"),
        ("exit(3)", "SystemExit: 3; what only"),
        ("import argparse\np = argparse.ArgumentParser()\np.add_argument('--x', required=True)\n"
         "p.parse_args()", "SystemExit: 2; what only"),
        ("def _d(f): return 3\n@_d\ndef add(a: int):\n  'Adds.'",
         "add: expected a function, got int"),
        ("class D:\n  'A class.'\n  def __init__(self, f): pass\n  def __call__(self, a): ...\n"
         "@D\ndef add(a: int):\n  'Adds.'", "add: its type hints cannot be read (TypeError"),
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_tool_is_named(load, capsys, source, words):
    """File, function and parameter, in a line; a file that ends the program does not end it."""
    with pytest.raises(ValueError) as caught:
        load(source)
    message = str(caught.value)
    assert "mine.py: " in message and words in message and "\n" not in message


def test_a_tool_that_ends_the_program_has_failed(load):
    """sys.exit() while it is called is an error for the model to read; Ctrl-C stays one."""
    tools = load(
        "import sys\n"
        "def leave() -> str:\n  'Leaves.'\n  sys.exit('bye')\n"
        "class Odd(Exception):\n  def __str__(self): return self.missing\n"
        "def odd() -> str:\n  'Odd.'\n  raise Odd\n"
        "def stop() -> str:\n  'Stops.'\n  raise KeyboardInterrupt\n"
    )
    assert answer("leave", {}, tools) == "error: leave failed: SystemExit: bye"
    assert answer("odd", {}, tools) == "error: odd failed: Odd"
    with pytest.raises(KeyboardInterrupt):
        answer("stop", {}, tools)
    with pytest.raises(KeyboardInterrupt):
        load("raise KeyboardInterrupt")


def test_a_result_is_json(load):
    """nan and infinity, which JSON does not have, are errors, wherever they stand."""
    tools = load(
        "def odd(of: float) -> list:\n  'Odd.'\n  return [{'a': of * float('inf')}]\n"
        "def text() -> str:\n  'Text.'\n  return 'NaN'\n"
    )
    for of in (0, 1, -1):
        text = answer("odd", {"of": of}, tools)
        assert text.startswith("error: odd failed: ValueError: ") and "JSON" in text
    assert answer("text", {}, tools) == "NaN"


def test_a_file_may_import_its_neighbours(load, tmp_path):
    """Also when it is called; but none that is named as a module of the repository or of Python."""
    (tmp_path / "neighbour_of_mine.py").write_text("VALUE = 3")
    (tmp_path / "late_neighbour.py").write_text("VALUE = 4")
    for taken in ("model.py", "serving.py", "random.py", "torch.py"):
        (tmp_path / taken).write_text("raise RuntimeError('hidden')")
    tools = load(
        "import model.config, serving.errors, random, torch\n"
        "from neighbour_of_mine import VALUE\n"
        "def say() -> int:\n  'Says.'\n  import late_neighbour\n"
        "  return VALUE + late_neighbour.VALUE\n"
    )
    assert answer("say", {}, tools) == "7"


def test_two_files_of_one_name_are_two_modules(tmp_path, monkeypatch):
    """Each keeps what it holds; a relative path and a suffix in capitals are as good."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my.PY").write_text(f"NAME = {folder!r}")
    first, second = load_file("a/my.PY"), load_file("b/my.PY")
    assert (first.NAME, second.NAME) == ("a", "b") and first.__file__ == str(tmp_path / "a/my.PY")
    assert sys.modules[first.__name__] is first and sys.modules[second.__name__] is second
    for path, words in (("c.py", "no such file: c.py"), ("a", "a: expected a Python file")):
        with pytest.raises(ValueError, match=words):
            load_file(path)
