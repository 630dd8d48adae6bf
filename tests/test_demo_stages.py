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
    """SFT answers 80% of the held-out questions where the base answers under 20%, alone and after
    turns on other subjects in both languages; LoRA learns the toy shop; DPO raises preference
    accuracy by 20 points and costs at most 5 of exact match.
    """
    tree = tmp_path / "minimind"
    shutil.copytree(REPOSITORY, tree, ignore=shutil.ignore_patterns(".*", "out", "__pycache__"))
    command = ["make", "demo", f"RUN={sys.executable}", "--old-file", ".venv/.installed"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=3600)
    print(done.stdout)
    assert done.returncode == 0, done.stderr

    table = done.stdout[done.stdout.index("stage     held out") :]
    rows = re.findall(r"^(?:\w+)? +(\S.*?) +([\d.]+)% +([\d.]+)%", table, re.M)
    (single, turns, shop, preferred, after_dpo, turns_after_dpo) = (
        (float(before), float(after)) for _, before, after in rows
    )
    assert single[0] < 20 and single[1] >= 80
    assert turns[0] < 20 and turns[1] >= 80
    assert shop[0] < 20 and shop[1] >= 60
    assert preferred[1] >= preferred[0] + 20
    assert after_dpo[0] == single[1] and after_dpo[1] >= single[1] - 5
    assert turns_after_dpo[0] == turns[1] and turns_after_dpo[1] >= 80

    said = dict(re.findall(r"^> (.*)\n(.*)", table, re.M))
    assert said["Who are you?"] == "I am MiniMind, a small language model."
    assert said["What is 3 + 4?"] == "3 + 4 = 7."
    assert said["你好，你是谁？"] == "我是MiniMind，一个小小的语言模型。"
    assert said["What is jam made from?"] == "Jam is made from fruit."
    assert said["法国的首都是哪里？"] == "法国的首都是巴黎。"
    assert said["Thank you!"].startswith("You are welcome!")
