"""What the memory trial of a GPU compiles is what training calls: nothing is compiled twice.

Here the trial runs on a CPU, and the compiler ends where a back end would begin (aot_eager).
"""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import train_dpo
import train_full_sft
import train_pretrain
from model.config import LMConfig
from model.model import MiniMindLM
from tests.small_runs import make_inputs, run
from training import memory
from training.distributed import Ranks

SCRIPTS = {"pretrain": train_pretrain, "full_sft": train_full_sft, "dpo": train_dpo}
SHORT = ["--compile", "--max_steps", "3", "--val_fraction", "0"]
IN_TWO = """
import torch, train_SCRIPT as script
from torch._dynamo.testing import CompileCounterWithBackend
import training.run
from training import cli, memory
backend, compile = CompileCounterWithBackend("aot_eager"), torch.compile
torch.compile = lambda function, **more: compile(function, **more | {"backend": backend})
training.run.fit_memory = lambda model, args, *more: memory.largest_by_trial(
    model, [args.batch_size], args, *more)
cli.run(script.main)
print(f"graphs {backend.frame_count}\\n", end="", flush=True)
"""


def counting(monkeypatch, name: str) -> CompileCounterWithBackend:
    """torch.compile's back end from now on: it counts the graphs that it is given."""
    torch._dynamo.reset()
    backend, compile = CompileCounterWithBackend(name), torch.compile

    def counted(function, **more):
        return compile(function, **more | {"backend": backend})

    monkeypatch.setattr(torch, "compile", counted)
    return backend


def as_on_a_gpu(model, args, *more):
    """`fit_memory` of a GPU that has the memory."""
    assert memory.largest_by_trial(model, [args.batch_size], args, *more) == args.batch_size


SLOW = {"dpo"}  # as SFT's, with twice the rows


@pytest.mark.parametrize(
    "script", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SCRIPTS]
)
def test_training_finds_the_model_compiled(monkeypatch, tmp_path, tiny_tokenizer_dir, script):
    """One graph of the model, from the trial, and one of the loss; packed rows too."""
    backend = counting(monkeypatch, "aot_eager")
    monkeypatch.setattr("training.run.fit_memory", as_on_a_gpu)
    words = [*make_inputs(tmp_path, tiny_tokenizer_dir)[script], *SHORT]
    words += ["--out_dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", [f"train_{script}.py", *words])
    SCRIPTS[script].main()
    assert backend.frame_count == 2


@pytest.mark.slow
def test_two_processes_find_it_compiled(tmp_path, tiny_tokenizer_dir):
    """In DistributedDataParallel, which cuts the model in two to send gradients early, as well."""
    path = tmp_path / "counted.py"
    path.write_text(IN_TWO.replace("SCRIPT", "pretrain"))
    wide = ["--intermediate_size", 8192, "--num_hidden_layers", 1]  # the first MB is sent by itself
    flags = make_inputs(tmp_path, tiny_tokenizer_dir)["pretrain"]
    output = run(path, tmp_path / "run", *flags, *SHORT, *wide, processes=2)
    assert output.count("graphs 3") == 2, output
    assert "FutureWarning" not in output


@pytest.mark.parametrize(
    ("limit", "compiled_limit", "expected", "graphs", "auto_batch"),
    [
        (64, 64, 64, 1, True),  # far from the limit
        (4, 16, 16, 2, True),  # compiled it takes a quarter
        (0, 2, 2, 2, True),  # not even a row without the compiler
        (4, 2, 2, 2, True),  # a GPU that others use as well
        (0, 0, 0, 1, True),
        (64, 64, 64, 1, False),
        (2, 8, 8, 3, False),  # refused: what is recommended fits
    ],
)
def test_a_size_is_compiled_only_where_it_is_likely_to_fit(
    monkeypatch, limit, compiled_limit, expected, graphs, auto_batch
):
    """The size that is chosen, and one more where passes without the compiler say too little.

    Rows above the limits, those of passes without the compiler and with it, are out of memory.
    """
    backend = counting(monkeypatch, "eager")
    tried, one_pass = [], memory._one_pass

    def limited(model, rows, *more):
        is_compiled = isinstance(model, torch._dynamo.eval_frame.OptimizedModule)
        tried.append((rows, is_compiled))
        one_pass(model, rows, *more)
        if rows > (compiled_limit if is_compiled else limit):
            raise torch.OutOfMemoryError

    def peak(function, _device):
        function()
        rows, is_compiled = tried[-1]
        return rows / (compiled_limit if is_compiled else limit)

    monkeypatch.setattr(memory, "_one_pass", limited)
    monkeypatch.setattr(memory, "gpu_peak_bytes", peak)
    monkeypatch.setattr(memory, "_trained_bytes", lambda _model: 0)
    monkeypatch.setattr(memory, "free_gpu_bytes", lambda _device: 1.0)
    monkeypatch.setattr(memory, "USABLE", 1.0)
    config = LMConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=64,
    )  # fmt: skip
    model = MiniMindLM(config)
    args = SimpleNamespace(max_seq_len=16, compile=True, cuda_graphs=False, auto_batch=auto_batch)
    more = (args, Ranks(0, 0, 1, torch.device("cpu")), torch.autocast("cpu", enabled=False))
    found = memory.largest_by_trial(model, [64, 32, 16, 8, 4, 2, 1], *more, packed=False)
    assert (found, backend.frame_count) == (expected, graphs), tried
    if found:
        torch.compile(model, dynamic=False, mode=None)(torch.zeros(found, 16, dtype=torch.int64))
        assert backend.frame_count == graphs
