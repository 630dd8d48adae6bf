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

import importlib.util
import inspect
import json
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from model.json_file import shown
from tools.calculator import calculator
from tools.clock import get_time
from tools.lookup import load_table
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


def tool_of(function: Callable) -> Tool:
    """A function as a tool.

    Its parameters have type hints: str, int, float, bool, list, list[...], dict, Literal[...], or
    one of these or None. The docstring's first paragraph tells what it does, and lines such as
    "name: text" what a parameter is (one line each). Raises ValueError if one of them is missing.
    """
    name = function.__name__
    text = inspect.getdoc(function) or ""
    if not text:
        raise ValueError(f"{name}: expected a docstring that tells the model what it does")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise ValueError(f"{name}: expected an ordinary function, not async and without yield")
    hints = typing.get_type_hints(function)
    properties, required = {}, []
    for parameter in inspect.signature(function).parameters.values():
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
        return {"type": "array", "items": _schema(inner[0], where)}
    if origin is dict or hint in TYPES:
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
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    except ValueError as error:
        raise ToolError(shown(error, 500)) from None
    except Exception as error:
        raise ToolError(f"{name} failed: {type(error).__name__}: {shown(error)}") from error
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
    """The public functions of a Python file as tools, by name.

    The file is run, and its functions are run whenever a model calls them, with what rights this
    process has: it is the user's own code, for the user to judge. ValueError with the path if it
    fails, or holds no function that `tool_of` takes.
    """
    path = Path(path)
    spec = importlib.util.spec_from_file_location(f"tools_of_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        found = {
            name: tool_of(function)
            for name, function in vars(module).items()
            if inspect.isfunction(function) and function.__module__ == module.__name__
            if not name.startswith("_")
        }
    except Exception as error:
        raise ValueError(f"{path}: {type(error).__name__}: {shown(error)}") from error
    if not found:
        raise ValueError(f"{path}: expected a public function, got none")
    return found


def table_tool(path: str | Path, name: str = "lookup") -> dict[str, Tool]:
    """The tool that looks names up in a .json or .csv file; ValueError as `load_table`."""
    function, description = tool_of(load_table(path).lookup)
    described = description["function"] | {"name": name}
    return {name: Tool(function, description | {"function": described})}


def named_tools(specs: list[str]) -> dict[str, Tool]:
    """The tools of a command line: names of TOOLS or "all", .py files, .json and .csv tables.

    Raises ValueError for a name that there is not, or that two of them have.
    """
    found: dict[str, Tool] = {}
    for spec in specs:
        if spec == "all":
            some = TOOLS
        elif spec in TOOLS:
            some = {spec: TOOLS[spec]}
        elif Path(spec).suffix == ".py":
            some = load_tools(spec)
        elif Path(spec).suffix in (".json", ".csv"):
            some = table_tool(spec)
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
