"""The step of every script makes no tensor beside the device and never waits for it.

The scripts themselves run, on a CPU, with the whole body of their loop under tests/device_guard.py.
test_gpu.py asks a real GPU.
"""

import sys

import pytest
import torch

import train_dpo
import train_full_sft
import train_kto
import train_lora
import train_pretrain
from model.attention import packed_rows
from tests.device_guard import guarded
from tests.small_runs import make_inputs
from training.losses import masked_cross_entropy
from training.run import Run

SCRIPTS = {
    "pretrain": train_pretrain, "full_sft": train_full_sft, "lora": train_lora, "dpo": train_dpo,
    "kto": train_kto,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_tokenizer_dir):
    return make_inputs(tmp_path_factory.mktemp("inputs"), tiny_tokenizer_dir)


@pytest.fixture
def faults(monkeypatch, tmp_path, inputs):
    """A function: run a script and give back what the guard has found in its updates but the last.

    The last one logs, evaluates and saves, which may wait.
    """

    def run(script: str, *flags) -> set[str]:
        lines, batches, updates = [], Run.batches, []

        def guarded_batches(self, loader, epoch):
            for batch in batches(self, loader, epoch):
                if self.step == self.total_steps - 1:
                    yield batch
                else:
                    with guarded(lines):
                        yield batch
                    updates.append(self.step)

        monkeypatch.setattr(Run, "batches", guarded_batches)
        few = ["--max_steps=3", "--val_fraction=0"]
        few += [f"--{name}_interval=1000" for name in ("log", "eval", "save")]
        words = [*inputs[script], *few, *flags, "--out_dir", tmp_path / "run"]
        monkeypatch.setattr(sys, "argv", [f"train_{script}.py", *map(str, words)])
        SCRIPTS[script].main()
        assert set(updates) >= {1, 2}
        return set(lines)

    return run


MUON = ["--optimizer", "muon"]
EXPERTS = ["--use_moe", "--num_experts", 4, "--num_experts_per_tok", 2]
BFLOAT16 = ["--dtype", "bfloat16"]


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("pretrain", [*BFLOAT16]),
        ("pretrain", [*EXPERTS, *MUON]),
        ("pretrain", [*EXPERTS, *BFLOAT16, "--accumulation_steps", 2]),
        ("full_sft", [*MUON, *BFLOAT16, "--activation_checkpointing"]),
        ("lora", ["--use_dora"]),
        ("dpo", ["--sft_weight", 1]),
        ("dpo", ["--loss", "orpo", *MUON]),
        ("kto", ["--accumulation_steps", 2]),
    ],
)  # fmt: skip
def test_a_step_waits_for_nothing(faults, script, flags):
    """Forward, loss, backward, clip, update, what is counted: all on the device, nothing read."""
    assert faults(script, *flags) == set()


def flag(x):
    return x * 2 if x > 0 else x


def constant(x):
    return x * torch.ones(3).mean()


def mask(x):
    return x[None][x[None] > 0].sum()


def torch_reads(x):
    return torch.nn.utils.clip_grad_norm_([x], 1.0, error_if_nonfinite=True)


PLANTED = {
    constant: "ones without a device",
    flag: "_local_scalar_dense",
    mask: "index by a mask",
    lambda x: x * torch.tensor(2.0, device=x.device): "tensor",
    lambda x: x * x.tolist(): "tolist",
    lambda x: x.view(1).nonzero(): "nonzero",
    lambda x: torch.equal(x, x): "equal",
    lambda x: x.to(x.device): "to, waiting",
    torch_reads: "_local_scalar_dense in clip_grad.py _get_total_norm",
}


@pytest.mark.parametrize(("planted", "found"), PLANTED.items())
def test_what_is_planted_is_found(planted, found):
    """A line of ours that would fail or wait on a GPU is named, also if torch does the waiting."""
    x = torch.ones((), requires_grad=True)
    x.grad = torch.ones(())
    lines = []
    with guarded(lines), torch.no_grad():
        planted(x)
    assert lines == [f"tests/test_device_guard.py {planted.__name__}: {found}"]


@pytest.mark.parametrize("planted", [constant, flag])
def test_what_is_planted_in_a_script_is_found(faults, monkeypatch, planted):
    """The guard stands around the whole step of a script, its loss among it."""
    monkeypatch.setattr(
        train_pretrain, "masked_cross_entropy", lambda *args: planted(masked_cross_entropy(*args))
    )
    place = f"tests/test_device_guard.py {planted.__name__}: {PLANTED[planted]}"
    assert faults("pretrain") == {place}


@pytest.mark.parametrize(
    ("script", "measure", "read"),
    [
        ("pretrain", "held_out_loss", {"to, waiting", "tolist"}),
        ("dpo", "pair_log_probs", set()),
    ],
)
def test_held_out_figures_are_read_at_the_end(faults, monkeypatch, script, measure, read):
    """Every batch is copied and computed without waiting, whatever their number."""
    lines, measured = [], getattr(SCRIPTS[script], measure)

    def guarded_measure(*args):
        with guarded(lines):
            return measured(*args)

    monkeypatch.setattr(SCRIPTS[script], measure, guarded_measure)
    faults(script, "--val_fraction", 0.2, "--batch_size", 1)
    assert set(lines) == {f"training/evaluation.py {measure}: {what}" for what in read}
    assert len(lines) == 2 * len(read)  # before the first update and after the last one


def test_where_documents_begin_is_not_read():
    """What flash-attn is given, whose kernel no CPU has."""
    lines = []
    with guarded(lines):
        packed_rows(torch.tensor([[1, 1, 2], [1, 2, 3]], device="cpu"), documents_per_row=3)
    assert lines == ["tests/test_device_guard.py test_where_documents_begin_is_not_read: tensor"]
