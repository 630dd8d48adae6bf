"""The functions that a model may call, and the one way they are called.

A tool is a Python function with type hints and a docstring; what the model is told of it is made of
these. Whatever a model asks for, it gets a text: the result, or what it should have written. A
user's own tools come from a file of theirs:

    # my_tools.py                                             load_tools("my_tools.py")
    def add(a: int, b: int = 1) -> int:
        \"\"\"Add two numbers.

        a: the first one
        b: the second one
        \"\"\"
        return a + b
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from model.json_file import shown
from tools.calculator import calculator
from tools.clock import get_time
from tools.lookup import load_table
from tools.own_files import load_file, what_failed
from tools.unit_conversion import convert_units

MOST_CHARACTERS = 10_000  # of a result
TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array",
         dict: "object"}  # fmt: skip


class ToolError(ValueError):
    """Why a call has no result: what was expected, in words that the model may read."""


class Tool(NamedTuple):
    """A function and what a model is told of it: an OpenAI function description."""

    function: Callable
    description: dict


def tool_of(function: Callable, name: str | None = None) -> Tool:
    """A function as a tool, under a name (None: its own).

    Its parameters have type hints: str, int, float, bool, list, list[...], dict, Literal[...], or
    one of these or None. The docstring's first paragraph tells what it does, and lines such as
    "name: text" what a parameter is (one line each). Raises ValueError if one of them is missing.
    """
    behind = _behind(function)
    name = name or behind.__name__
    if not callable(function):
        raise ValueError(f"{name}: expected a function, got {type(function).__name__}")
    is_partial = isinstance(function, functools.partial)
    text = inspect.getdoc(behind if is_partial else function) or ""
    if not text:
        raise ValueError(f"{name}: expected a docstring that tells the model what it does")
    if inspect.iscoroutinefunction(behind) or inspect.isgeneratorfunction(behind):
        raise ValueError(f"{name}: expected an ordinary function, not async and without yield")
    try:
        hints = typing.get_type_hints(behind)
        signature = inspect.signature(function)
    except Exception as error:
        why = what_failed(error)
        raise ValueError(f"{name}: its type hints cannot be read ({why})") from None
    properties, required = {}, []
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"{name}: expected parameters with names of their own")
        if parameter.name not in hints:
            raise ValueError(f"{name}: the parameter {parameter.name} has no type hint")
        schema = _schema(hints[parameter.name], f"{name}: the parameter {parameter.name}")
        told = re.search(rf"^\s*{parameter.name}: *(.+)$", text, re.M)
        properties[parameter.name] = schema | ({"description": told[1]} if told else {})
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    what = " ".join(text.split("\n\n")[0].split())
    told = {"name": name, "description": what, "parameters": parameters}
    return Tool(function, {"type": "function", "function": told})


def _behind(function: object) -> object:
    """The function that is called at last, behind functools.partial, lru_cache and other wraps."""
    for _ in range(100):
        is_partial = isinstance(function, functools.partial)
        inner = function.func if is_partial else getattr(function, "__wrapped__", None)
        if inner is None:
            break
        function = inner
    return function


def _schema(hint: object, where: str) -> dict:
    """The JSON schema of a type hint."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in inner if option is not type(None)]
        if len(options) == 1:
            return _schema(options[0], where)
    if origin is typing.Literal and all(isinstance(option, str) for option in inner):
        return {"type": "string", "enum": list(inner)}
    if origin is list:
        if not inner or inner[0] is typing.Any:  # List, list[Any]
            return {"type": "array"}
        return {"type": "array", "items": _schema(inner[0], where)}
    if origin is dict or (isinstance(hint, type) and hint in TYPES):
        return {"type": TYPES[origin or hint]}
    raise ValueError(f"{where} has the type {shown(hint, 60)}; expected str, int, float, bool, "
                     "list, dict or Literal")  # fmt: skip


TOOLS = {tool.__name__: tool_of(tool) for tool in (calculator, get_time, convert_units)}
DESCRIPTIONS = [tool.description for tool in TOOLS.values()]


def call(name: str, arguments: dict, tools: dict[str, Tool] = TOOLS) -> str:
    """The result of a tool, as text: what it returns, as JSON unless it is a text already.

    Raises ToolError, and nothing else, for whatever name and arguments a model can write, and for
    what a user's tool raises.
    """
    tool = tools.get(name) if isinstance(name, str) else None
    if tool is None:
        known = ", ".join(tools)
        raise ToolError(f"unknown tool {shown(name, 40)!r}; expected one of {known}")
    checked = _checked_arguments(name, arguments, tool.description["function"]["parameters"])
    try:
        result = tool.function(**checked)
    except ValueError as error:
        raise ToolError(shown(error, 500)) from None
    except (Exception, SystemExit) as error:
        raise ToolError(f"{name} failed: {what_failed(error)}") from error
    try:
        is_text = isinstance(result, str)
        text = result if is_text else json.dumps(result, ensure_ascii=False, allow_nan=False)
    except Exception as error:  # nan, or what JSON cannot hold
        raise ToolError(f"{name} failed: {what_failed(error)}") from error
    if len(text) > MOST_CHARACTERS:
        raise ToolError(f"the result of {name} has {len(text):,} characters, expected at most "
                        f"{MOST_CHARACTERS:,}")  # fmt: skip
    return text.encode("utf-8", "replace").decode("utf-8")  # no lone surrogates


def answer(name: str, arguments: dict, tools: dict[str, Tool] = TOOLS) -> str:
    """`call` for a conversation: a ToolError is a text, too, "error: " and what was expected."""
    try:
        return call(name, arguments, tools)
    except ToolError as error:
        return f"error: {error}"


def load_tools(path: str | Path) -> dict[str, Tool]:
    """The public functions of a Python file as tools, by the names that they have in it.

    The file is run (`own_files.load_file`), and its functions are run whenever a model calls them,
    with what rights this process has. What it imports is no tool. ValueError with the path if it
    fails, or holds a function that `tool_of` does not take, or none.
    """
    module = load_file(path)
    try:
        decorated = set(_decorated(ast.parse(Path(path).read_bytes()).body))
        found = {
            name: tool_of(value, name)
            for name, value in vars(module).items()
            if not name.startswith("_") and (name in decorated or _is_of(module, value))
        }
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not found:
        raise ValueError(f"{path}: expected a public function, got none")
    return found


def _decorated(statements: list) -> Iterator[str]:
    """Names of a module's functions that have decorators, of whatever these made of them."""
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            if statement.decorator_list:
                yield statement.name
        elif not isinstance(statement, ast.ClassDef):
            inner = ast.iter_child_nodes(statement)  # if, try, with
            yield from _decorated([x for x in inner if isinstance(x, ast.stmt | ast.excepthandler)])


def _is_of(module: types.ModuleType, value: object) -> bool:
    """Whether a value is a function of this module, and not an imported one."""
    behind = _behind(value) if callable(value) else None
    return inspect.isfunction(behind) and behind.__module__ == module.__name__


def table_tool(path: str | Path, name: str = "lookup") -> dict[str, Tool]:
    """The tool that looks names up in a .json or .csv file; ValueError as `load_table`."""
    table = load_table(path)
    function, description = tool_of(table.lookup)
    what = "Look up {1} of {0}".format(*table.columns) if table.columns else "Look up a name"
    where = "a table" if name == "lookup" else f"the table {shown(Path(path).stem, 40)}"
    described = description["function"] | {"name": name, "description": f"{what} in {where}."}
    return {name: Tool(function, description | {"function": described})}


def _table_name(path: str, others: Collection[str]) -> str:
    """What a table's tool is called: "lookup", and where there is one already, by its file."""
    if "lookup" not in others:
        return "lookup"
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(path).stem).strip("_")[:50]
    return f"lookup_{stem or len(others) + 1}"


def named_tools(specs: list[str]) -> dict[str, Tool]:
    """The tools of a command line: names of TOOLS or "all", .py files, .json and .csv tables.

    The first table is "lookup", a further one "lookup_" and the name of its file.
    Raises ValueError for a name that there is not, or that two of them have.
    """
    found: dict[str, Tool] = {}
    for spec in specs:
        if spec == "all":
            some = TOOLS
        elif spec in TOOLS:
            some = {spec: TOOLS[spec]}
        elif Path(spec).suffix.lower() == ".py":
            some = load_tools(spec)
        elif Path(spec).suffix.lower() in (".json", ".csv"):
            some = table_tool(spec, _table_name(spec, found))
        else:
            known = ", ".join(["all", *TOOLS])
            raise ValueError(f"expected {known}, or a .py, .json or .csv file, got {shown(spec)!r}")
        if twice := found.keys() & some.keys():
            raise ValueError(f"{shown(spec)}: there is a tool of the name {min(twice)} already")
        found |= some
    return found


def _checked_arguments(name: str, arguments: dict, parameters: dict) -> dict:
    """The arguments as the function takes them; ToolError if they are not what it is told."""
    known, required = parameters["properties"], parameters["required"]
    usage = f"{name} takes " + (", ".join(
        f"{key} ({schema['type']}{'' if key in required else ', not required'})"
        for key, schema in known.items()
    ) or "no arguments")  # fmt: skip
    if not isinstance(arguments, dict):
        raise ToolError(f"expected the arguments as an object, got {_kind(arguments)}; {usage}")
    unknown = [key for key in arguments if key not in known]
    missing = [key for key in required if key not in arguments]
    if unknown or missing:
        got = f"unknown argument {shown(unknown[0], 40)!r}" if unknown else f"no {missing[0]}"
        raise ToolError(f"{got}; {usage}")
    return {
        key: _checked(value, known[key], key)
        for key, value in arguments.items()
        if value is not None or key in required  # null is as good as nothing
    }


def _checked(value: object, schema: dict, where: str) -> object:
    """A JSON value, if it is of a schema's type: 3.0 is an integer, too, but true is no number."""
    kind = schema["type"]
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        value = int(value)
    allowed = {"string": str, "integer": int, "number": (int, float), "boolean": bool,
               "array": list, "object": dict}[kind]  # fmt: skip
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind != "boolean"):
        raise ToolError(f"expected {where} to be of type {kind}, got {_kind(value)}")
    if value not in schema.get("enum", [value]):
        options = ", ".join(schema["enum"])
        raise ToolError(f"expected {where} to be one of {options}, got {shown(value, 40)!r}")
    if "items" in schema:
        return [_checked(item, schema["items"], f"every item of {where}") for item in value]
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return TYPES.get(type(value), type(value).__name__)
