"""Runs a user's own Python file, for its tools (`--tools FILE.py`) or rewards (`--reward`)."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from model.json_file import shown


def load_file(path: str | Path) -> ModuleType:
    """The module that a Python file is. The file is run, with what rights this process has.

    It is the user's own code, for the user to judge. It may import what lies beside it: its folder
    is the last place that is searched, from now on, so no file there hides a module of this
    repository, of Python or of a package. ValueError with the path, in one line, if there is no
    such file, or if it fails, or ends the program.
    """
    path = Path(path)
    if path.suffix.lower() != ".py":
        raise ValueError(f"{path}: expected a Python file, whose name ends in .py")
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    name = f"own_{path.stem}"
    while name in sys.modules:  # another file of the name
        name += "_"
    place = os.path.abspath(path)
    loader = SourceFileLoader(name, place)
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_file_location(name, place, loader=loader)
    )
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    sys.modules[name] = module  # a dataclass in it looks its module up
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        hint = ""
        if isinstance(error, SystemExit):  # sys.exit(), or argparse
            hint = '; what only a script does belongs behind if __name__ == "__main__":'
        raise ValueError(f"{path}: {what_failed(error)}{hint}") from error
    return module


def what_failed(error: BaseException) -> str:
    """An error of a user's code in a line, whatever its own text is."""
    try:
        return f"{type(error).__name__}: {shown(error)}".removesuffix(": ")
    except Exception:  # in its __str__
        return type(error).__name__
