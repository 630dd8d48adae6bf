"""The promises that hold for the tree as a whole."""

import ast
import hashlib
import re
import shlex
from pathlib import Path

import pytest

import eval_model
import serve_model
import train_distillation
import train_dpo
import train_full_sft
import train_grpo
import train_kto
import train_lora
import train_ppo
import train_pretrain
import train_reward
import train_tokenizer
from benchmarks import (
    bench_checkpoint,
    bench_curve,
    bench_data,
    bench_first_tokens,
    bench_generate,
    bench_grpo,
    bench_kernels,
    bench_lookup,
    bench_rollouts,
    bench_scripts,
    bench_serve,
    bench_time_to_loss,
    bench_train,
    gpu_tables,
)
from scripts import demo_table, export_gguf, merge_lora, show_data, validate_data

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [p for p in ROOT.rglob("*.py") if not {".venv", "tests", "out"} & set(p.parts)]
PARSERS = {
    "train_pretrain.py": train_pretrain.parse_args,
    "train_full_sft.py": train_full_sft.parse_args,
    "train_lora.py": train_lora.parse_args,
    "train_distillation.py": train_distillation.parse_args,
    "train_dpo.py": train_dpo.parse_args,
    "train_kto.py": train_kto.parse_args,
    "train_reward.py": train_reward.parse_args,
    "train_ppo.py": train_ppo.parse_args,
    "train_grpo.py": train_grpo.parse_args,
    "eval_model.py": eval_model.parse_args,
    "serve_model.py": serve_model.parse_args,
    "scripts/demo_table.py": demo_table.parse_args,
    "scripts/export_gguf.py": export_gguf.parse_args,
    "scripts/merge_lora.py": merge_lora.parse_args,
    "scripts/show_data.py": show_data.parse_args,
    "scripts/validate_data.py": validate_data.parse_args,
    "benchmarks/bench_checkpoint.py": bench_checkpoint.parse_args,
    "benchmarks/bench_curve.py": bench_curve.parse_args,
    "benchmarks/bench_data.py": bench_data.parse_args,
    "benchmarks/bench_first_tokens.py": bench_first_tokens.parse_args,
    "benchmarks/bench_generate.py": bench_generate.parse_args,
    "benchmarks/bench_grpo.py": bench_grpo.parse_args,
    "benchmarks/bench_kernels.py": bench_kernels.parse_args,
    "benchmarks/bench_lookup.py": bench_lookup.parse_args,
    "benchmarks/bench_rollouts.py": bench_rollouts.parse_args,
    "benchmarks/bench_scripts.py": bench_scripts.parse_args,
    "benchmarks/bench_serve.py": bench_serve.parse_args,
    "benchmarks/bench_time_to_loss.py": bench_time_to_loss.parse_args,
    "benchmarks/bench_train.py": bench_train.parse_args,
    "benchmarks/gpu_tables.py": gpu_tables.parse_args,
    "train_tokenizer.py": lambda: train_tokenizer.parse_args(None),
}
FORBIDDEN = (
    r"torch\.load\(|\bpickle\b|(?<![\w.])(eval|exec)\(|shell=True|trust_remote_code *= *True"
)


def test_no_pickle_no_shell_no_remote_code():
    """Nothing in the tree reads or writes pickles, evaluates text or runs a shell."""
    assert SOURCES
    for path in SOURCES:
        found = re.findall(FORBIDDEN, path.read_text(encoding="utf-8"))
        assert not found, f"{path}: {found}"


def test_the_licence_is_apache_2():
    """LICENSE is https://www.apache.org/licenses/LICENSE-2.0.txt to the byte, and is named."""
    found = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert found == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Every command line of this project's scripts in the README and in docs/."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        if page.name == "extending.md":
            continue  # commands of an edited copy, which test_extending.py runs
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if re.search(r"\b(train_|eval_|serve_|scripts/|benchmarks/)\w+\.py", line):
                    found.append(line.split(" #")[0].strip())
    return found


@pytest.mark.parametrize("command", commands())
def test_documented_commands_parse(monkeypatch, command):
    """Every command in the README and docs names a script that is there and flags that it has."""
    words = shlex.split(command)
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    assert (ROOT / words[at]).is_file()
    monkeypatch.setattr("sys.argv", words[at:])
    PARSERS[words[at]]()


def test_make_demo_names_the_commands_to_go_on_with(monkeypatch):
    """Its last lines say how to talk to the model, in the terminal and in a browser."""
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\n\ninstall:")[0]
    told = re.findall(r"^\t@echo .*\$\(RUN\) (\S+\.py.*)\"$", recipe, re.M)
    assert [command.split()[0] for command in told] == ["eval_model.py", "serve_model.py"]
    for command in told:
        script, *flags = command.split()
        monkeypatch.setattr("sys.argv", [script, *flags])
        assert str(PARSERS[script]().model) == "out/dpo"


TRAINING = [
    "train_pretrain.py",
    "train_full_sft.py",
    "train_lora.py",
    "train_dpo.py",
    "train_kto.py",
    "train_reward.py",
    "train_ppo.py",
    "train_distillation.py",
    "train_grpo.py",
]


@pytest.mark.parametrize("script", TRAINING)
def test_step_sequence_is_in_order(script):
    """Each training script names the 19 steps of the training sequence, in order."""
    lines = (ROOT / script).read_text().splitlines()
    comments = " ".join(line.partition("#")[2] for line in lines)
    numbers = [int(n) for n in re.findall(r"\((\d+)\)", comments)]
    assert numbers == list(range(1, 20))


def test_every_flag_is_read(monkeypatch):
    """No script accepts a flag that no line of code reads."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    for name, parse in PARSERS.items():
        required = {
            "train_tokenizer.py": ["--data_path", "x", "--out_dir", "y"],
            "scripts/validate_data.py": ["--data_path", "x"],
        }.get(name, [])
        monkeypatch.setattr("sys.argv", [name, *required])
        for flag in vars(parse()):
            assert re.search(rf"\bargs\.{flag}\b|\barguments\.{flag}\b", code), f"{name} --{flag}"


def region(script: str, first: str, last: str) -> str:
    """The lines of a script from the one that contains `first` up to the one with `last`."""
    text = (ROOT / script).read_text(encoding="utf-8")
    assert text.count(first) == 1 and text.count(last) == 1, (script, first, last)
    return text[text.index(first) : text.index(last)]


@pytest.mark.parametrize("script", TRAINING[1:])
@pytest.mark.parametrize(
    ("first", "last"),
    [
        ("# (3) under torchrun", "run = Run(args"),
        ("# (6) the loader", "    loader = run.loader("),
        ("# (7) the optimizer", "# (9) compile"),
        ("# (11) set the learning rate", "# (12) forward"),
        ("# (17) unscale", "if __name__"),
    ],
)
def test_scripts_say_the_same_thing_in_the_same_words(script, first, last):
    """What the training scripts share is written out in each; no copy drifts from the others."""
    assert region(script, first, last) == region("train_pretrain.py", first, last)


def size_of(script: str) -> dict[str, int]:
    """Lines of a training script: in all, of imports, of main(), of its loop, as a reader sees."""
    text = (ROOT / script).read_text(encoding="utf-8")
    tree = ast.parse(text)
    (main,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main")
    (loop,) = (n for n in main.body if isinstance(n, ast.For))
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]

    def lines(*nodes) -> int:
        return sum(node.end_lineno - node.lineno + 1 for node in nodes)

    return {"file": len(text.splitlines()), "imports": lines(*imports), "main": lines(main),
            "loop": lines(loop)}  # fmt: skip


@pytest.mark.parametrize("script", TRAINING)
def test_a_training_script_can_be_held_in_the_head(script):
    """It has so many lines at most, and they call no plumbing but `run`'s."""
    most = {"file": 180 if script == "train_pretrain.py" else 210}
    most |= {"imports": 22, "main": 110, "loop": 45}
    assert {name: n for name, n in size_of(script).items() if n > most[name]} == {}


def test_run_has_no_hooks_and_is_no_base_class():
    """A script calls the run, never the other way round; it stays small enough to be one thing."""
    path = ROOT / "training" / "run.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    for source in SOURCES:
        assert not re.search(r"class \w+\((\w+\.)?Run\b", source.read_text(encoding="utf-8")), (
            source
        )


def test_every_row_of_the_compatibility_table_has_its_test():
    """docs/compatibility.md names a test in each row, which is there and slow or not."""
    rows = [line for line in (ROOT / "docs/compatibility.md").read_text().splitlines()
            if line.startswith("| ")][1:]  # fmt: skip
    assert len(rows) >= 9
    for row in rows:
        ((file, name),) = re.findall(r"`(tests/\w+\.py)::(\w+)`", row)
        text = (ROOT / file).read_text()
        assert f"def {name}(" in text, row
        above = text[: text.index(f"def {name}(")].split("\n\n\n")[-1]  # its decorators
        all_slow = "pytestmark = pytest.mark.slow" in text
        is_slow = all_slow or "@pytest.mark.slow" in above
        assert row.endswith("| slow |" if is_slow else "| quick |"), row


def test_every_test_that_reliability_names_is_there():
    """docs/reliability.md names files of tests/, none of which is gone."""
    named = set(re.findall(r"`(test_\w+\.py)`", (ROOT / "docs/reliability.md").read_text()))
    assert len(named) >= 20
    assert {name for name in named if not (ROOT / "tests" / name).is_file()} == set()
