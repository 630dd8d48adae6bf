"""Memory: a micro-batch that does not fit is refused before training, or made smaller."""

import gc
import json

import pytest
import torch

from model.config import LMConfig
from model.model import MiniMindLM
from tests.small_runs import figures, make_inputs, run
from training import memory
from training.losses import masked_cross_entropy

LITTLE = """
import SCRIPT as script
from training import cli, memory
# as if a row took 10 MB and 65 MB were free
memory._status = lambda name: 0
memory.peak_bytes = lambda function: (function(), sizes.pop(0) if len(sizes) > 1 else sizes[0])[1]
sizes = [10_000_000, 20_000_000, 40_000_000]
memory.free_bytes = lambda: 65_000_000
cli.run(script.main)
"""


@pytest.fixture
def flags(tmp_path, tiny_tokenizer_dir):
    return make_inputs(tmp_path, tiny_tokenizer_dir)


@pytest.mark.parametrize("script", ["pretrain", "dpo"])
def test_a_micro_batch_that_does_not_fit_is_refused(tmp_path, flags, script):
    """One line with the flags that fit and make the same update, status 2, nothing written."""
    path = tmp_path / "little.py"
    path.write_text(LITTLE.replace("SCRIPT", f"train_{script}"))
    output = run(path, tmp_path / "run", *flags[script], "--batch_size", 8, expect=2)
    assert "error: --batch_size 8" in output and "Traceback" not in output
    assert "use --batch_size 4 --accumulation_steps 2" in output
    assert not list(tmp_path.glob("run/step-*"))


def test_auto_batch_keeps_the_update(tmp_path, flags):
    """The largest divisor of the update's rows that fits; the curve of the whole micro-batch."""
    path = tmp_path / "little.py"
    path.write_text(LITTLE.replace("SCRIPT", "train_pretrain"))
    flags = [*flags["pretrain"], "--dropout", 0]
    run("pretrain", tmp_path / "whole", *flags, "--batch_size", 12)
    more = ["--batch_size", 2, "--accumulation_steps", 6, "--auto_batch"]
    output = run(path, tmp_path / "run", *flags, *more)
    assert "--auto_batch: --batch_size 4 --accumulation_steps 3" in output
    args = json.loads((tmp_path / "run" / "args.json").read_text())
    assert (args["batch_size"], args["accumulation_steps"]) == (4, 3)
    for a, b in zip(figures(tmp_path / "whole"), figures(tmp_path / "run"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_not_even_one_row(tmp_path, flags):
    """The line names the flag that makes rows shorter."""
    path = tmp_path / "little.py"
    path.write_text(LITTLE.replace("SCRIPT", "train_pretrain").replace("65_000_000", "5_000_000"))
    output = run(path, tmp_path / "run", *flags["pretrain"], expect=2)
    assert "error: --max_seq_len 32: not even one row" in output


def test_the_peak_is_that_of_the_allocation():
    """A tensor of 200 MB shows as 200 MB, also when it was freed again."""
    before = memory.resident_bytes()
    grown = memory.peak_bytes(lambda: torch.ones(50_000_000).sum()) - before
    if before == 0:
        pytest.skip("this system does not tell")
    assert 190e6 < grown < 260e6


def test_the_projection_is_near_the_truth():
    """What 16 rows are said to need lies within 30% of what they take."""
    if memory.peak_bytes(lambda: None) == 0:
        pytest.skip("this system does not tell")
    torch.manual_seed(0)
    model = MiniMindLM(LMConfig.preset("demo"))

    def one_pass(rows: int):
        ids = torch.zeros(rows, 128, dtype=torch.int64)
        logits, _ = model(ids)
        masked_cross_entropy(logits, ids, torch.ones(rows, 128)).backward()
        model.zero_grad()

    gc.collect()  # what other tests have left would be freed in between
    before = memory.resident_bytes()
    two, four, real = (
        memory.peak_bytes(lambda rows=rows: one_pass(rows)) - before for rows in (2, 4, 16)
    )
    assert two + 14 * (four - two) / 2 == pytest.approx(real, rel=0.3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_is_too_small(tmp_path, flags):
    """--auto_batch on a GPU of which all but three gigabytes are taken."""
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(free - (3 << 30), dtype=torch.uint8, device="cuda")
    flags = [*flags["pretrain"], "--device", "cuda", "--max_seq_len", 1024, "--preset", "base"]
    output = run("pretrain", tmp_path / "run", *flags, "--batch_size", 4096, "--auto_batch")
    assert "--auto_batch: --batch_size" in output
    assert "--auto_batch: --batch_size 4096 " not in output
    del taken
