"""`make demo` from beginning to end, and then the README's commands, one after the other."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pandas as pd
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """A copy of the repository in which `make demo` has run, and what that printed."""
    tree = tmp_path_factory.mktemp("demo") / "minimind"
    shutil.copytree(REPOSITORY, tree, ignore=shutil.ignore_patterns(".*", "out", "__pycache__"))
    command = ["make", "demo", f"RUN={sys.executable}", "--old-file", ".venv/.installed"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=3600)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    return tree, done.stdout


@pytest.mark.slow
def test_every_stage_of_the_demo_improves_what_it_should(demo):
    """SFT answers 80% of the held-out questions where the base answers under 20%, alone and after
    turns on other subjects in both languages; LoRA learns the toy shop; DPO raises preference
    accuracy by 20 points and costs at most 5 of exact match.
    """
    _, printed = demo
    table = printed[printed.index("stage     held out") :]
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


@pytest.mark.slow
def test_every_stage_of_the_rl_demo_improves_what_it_should(demo):
    """`make demo-rl` behind it: GRPO answers 80% of sums in new words, with the calculator 95%;
    PPO raises the mean score of thanks by a standard deviation and costs at most 5 points of exact
    match; the student that was taught has a lower loss than the one that was not.
    """
    tree, _ = demo
    command = ["make", "demo-rl", f"RUN={sys.executable}", "--old-file", ".venv/.installed"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=3600)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.index("stage         held out") :]
    rows = re.findall(r"^(?:\S+(?: \S+)?)?  +(\S.*?)  +(-?[\d.]+)%? +(-?[\d.]+)%?", table, re.M)
    sums, calculated, ranked, score, kind, exactly, student = (
        (float(before), float(after)) for _, before, after in rows
    )
    assert sums[0] < 75 and sums[1] >= 80
    assert calculated[1] >= 95 and calculated[1] > calculated[0]
    assert ranked[1] >= 90
    deviation = float(re.search(r"deviation ([\d.]+)", table)[1])
    assert score[1] >= score[0] + deviation and kind[1] > kind[0]
    assert exactly[1] >= exactly[0] - 5
    assert student[1] < student[0]


def readme_commands() -> list[str]:
    """The command lines of the README, in order, but for those of make."""
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "README.md").read_text("utf-8"), re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    lines = [line.split(" #")[0].strip() for line in lines if not line.startswith("#")]
    return [line for line in lines if line and not line.startswith("make ")]


def test_readme_commands_keep_to_themselves():
    """Every training command has a folder of its own, which `make demo` does not use."""
    folders = [
        re.search(r"--out_dir (\S+)", command)[1]
        for command in readme_commands() if re.search(r"train_\w+\.py", command)
    ]  # fmt: skip
    used = {*re.findall(r"--out_dir (\S+)", (REPOSITORY / "Makefile").read_text("utf-8"))}
    assert len(folders) >= 8 and len({*folders, *used}) == len(folders) + len(used)


def write_data_of_the_readme(tree: Path):
    """The files that the README's commands name, from the demo corpus."""
    demo_data = tree / "out" / "demo_data"
    lines = {
        name: (demo_data / f"{name}.jsonl").read_text("utf-8").splitlines()
        for name in ("pretrain", "sft", "lora", "dpo", "kto")
    }
    files = {
        "a": lines["pretrain"][:400], "more": lines["pretrain"][400:600],
        "held_out": lines["pretrain"][600:700], "skill": lines["lora"][:300],
        "chats": [line for line in lines["sft"] if '"tools"' not in line][:300],
        "tools": [line for line in lines["sft"] if '"tools"' in line], "pairs": lines["dpo"][:200],
        "judged": lines["kto"][:200],
    }  # fmt: skip
    for name, content in files.items():
        (tree / f"{name}.jsonl").write_text("\n".join(content) + "\n", encoding="utf-8")
    pd.DataFrame(map(json.loads, lines["pretrain"][700:900])).to_parquet(tree / "b.parquet")


@contextlib.contextmanager
def served(words: list[str], tree: Path) -> Iterator[str]:
    """The address of a server of the README, at a free port. It has to end with status 0."""
    process = subprocess.Popen(
        [*words, "--port", "0"], cwd=tree, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        port = re.search(r"http://\S+:(\d+)", process.stdout.readline())[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        _, status = process.communicate(timeout=60), process.returncode
    assert status == 0, words


def run_command(words: list[str], tree: Path):
    """Run a command of the README to its end. A server, and what asks one, by the way."""
    with contextlib.ExitStack() as servers:
        if "serve_model.py" in words:
            address = servers.enter_context(served(words, tree))
            assert httpx.get(f"{address}/health").json() == {"status": "ok"}
            return
        if "--server" in words:
            server = [sys.executable, "serve_model.py", "--model", "out/dpo"]
            address = servers.enter_context(served(server, tree))
            words[words.index("--server") + 1] = address
        done = subprocess.run(
            words, cwd=tree, input="Hello!\n", capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_readme_commands_work_after_the_demo(demo):
    """All of them, in order, with status 0; training only two steps, the largest model smaller."""
    tree, _ = demo
    write_data_of_the_readme(tree)
    for command in readme_commands():
        words = shlex.split(command)
        if words[0] == "torchrun":
            words[:1] = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            words[words.index("--nproc_per_node") + 1] = "2"
        else:
            words[0] = sys.executable
        if any(re.fullmatch(r"train_(?!tokenizer)\w+\.py", word) for word in words):
            words += ["--max_steps", "2"]
        if "base" in words:
            words += ["--preset", "demo", "--batch_size", "2"]
        run_command(words, tree)
