"""`make demo` from beginning to end: every stage improves what it is there for."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_every_stage_of_the_demo_improves_what_it_should(tmp_path):
    """SFT answers 80% of the held-out questions where the base answers under 20%; LoRA learns the
    toy shop; DPO raises preference accuracy by 20 points and costs at most 5 of exact match.
    """
    tree = tmp_path / "minimind"
    shutil.copytree(REPOSITORY, tree, ignore=shutil.ignore_patterns(".*", "out", "__pycache__"))
    command = ["make", "demo", f"RUN={sys.executable}", "--old-file", ".venv/.installed"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=3600)
    print(done.stdout)
    assert done.returncode == 0, done.stderr

    table = done.stdout[done.stdout.index("stage     held out") :]
    rows = re.findall(r"^(?:\w+)? +(\S.*?) +([\d.]+)% +([\d.]+)%", table, re.M)
    (_, base, sft), (_, no_shop, shop), (_, before, after), (_, kept, exact) = (
        (what, float(was), float(now)) for what, was, now in rows
    )
    assert base < 20 and sft >= 80
    assert no_shop < 20 and shop >= 60
    assert after >= before + 20
    assert kept == sft and exact >= sft - 5

    talk = table[table.index("> Who are you?") :]
    assert "MiniMind" in talk and "made from fruit" in talk and "巴黎" in talk
