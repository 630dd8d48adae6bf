"""Other tools, or other versions of one, in virtual environments of their own (slow tests only)."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "minimind" / "venvs"


def python_with(*requirements: str) -> Path:
    """The interpreter of an environment with these; made once, kept, torch taken from this one.

    Skips the test where they cannot be installed.
    """
    folder = CACHE / "+".join(requirements).replace("==", "-")
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        # behind its own packages: those that are asked for below come before this environment's
        (site / "torch_from.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        command = [python, "-m", "pip", "install", "--quiet", *requirements]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"pip install {' '.join(requirements)}: {done.stderr[-200:]}")
        (folder / "complete").touch()
    return python


def ask(python: str | Path, code: str, *arguments, **environment: str) -> dict:
    """Run code there, offline; the last JSON object that it prints on a line."""
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [str(python), "-c", code, *map(str, arguments)], capture_output=True, text=True,
        timeout=600, env=os.environ | offline | environment, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
