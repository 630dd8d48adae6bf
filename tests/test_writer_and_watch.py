"""CheckpointWriter, LossWatch and how a script ends, each alone."""

import json
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import LMConfig
from model.model import MiniMindLM
from tests.small_runs import make_inputs, metrics, run
from training import checkpoint, cli
from training.loss_watch import LossWatch
from training.optimizers import build_optimizer, skip_unless_finite
from training.run_log import RunLog, read_metrics
from training.state import RunState
from training.writer import CheckpointWriter


def small_model():
    """A linear layer after one AdamW step, and its optimizer."""
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer("adamw", model, 0.1, 0.0, torch.float32)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def state_of(step: int) -> dict:
    return {"step": step, "best_step": None}


def test_a_save_holds_what_was_there_when_it_began(tmp_path):
    """Training goes on while a save is written; weights, moments and state are those before."""
    model, optimizer = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    may_write, state = threading.Event(), state_of(1)

    def write_model(folder, weights):
        assert may_write.wait(10)
        save_file(weights, folder / "model.safetensors")

    writer = CheckpointWriter(tmp_path, 2, is_main=True)
    writer.save(model, optimizer, state, write_model)
    optimizer.step()  # the thread has not written anything yet
    state["step"] = 99
    assert not checkpoint.step_folders(tmp_path)
    may_write.set()
    writer.close()
    saved = load_file(tmp_path / "step-00000001" / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(saved[name], before[name])
        assert not torch.equal(saved[name], parameter)
    moments = load_file(tmp_path / "step-00000001" / "resume/optimizer.tensors")
    assert moments["weight.step"] == 1


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_next_step_waits_for_the_copy(tmp_path, monkeypatch, name):
    """However slow the copy is, it is of the step that was saved: the optimizer waits for it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    optimizer = build_optimizer(name, model, 0.1, 0.0, torch.float32)
    may_copy, steps = threading.Event(), []

    def update():
        model(torch.ones(1, 8)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append({n: p.detach().clone() for n, p in model.named_parameters()})

    class SlowWriter(CheckpointWriter):
        def _copy(self, name, tensor):
            assert may_copy.wait(10)
            super()._copy(name, tensor)

    update()
    before = checkpoint.optimizer_tensors(model, optimizer)
    before = {name: tensor.clone() for name, tensor in before.items()}
    writer = SlowWriter(tmp_path, 2, is_main=True)
    writer.save(model, optimizer, state_of(1), lambda f, w: save_file(w, f / "model.safetensors"))
    training = threading.Thread(target=update)
    training.start()
    training.join(0.3)
    assert training.is_alive() and len(steps) == 1, "backward is done, the step is not"
    may_copy.set()
    training.join(10)
    writer.close()
    assert len(steps) == 2
    folder = tmp_path / "step-00000001"
    saved = load_file(folder / "model.safetensors") | load_file(folder / "resume/optimizer.tensors")
    for key, tensor in (steps[0] | before).items():
        assert torch.equal(saved[key], tensor), key
    assert not torch.equal(saved["0.weight"], steps[1]["0.weight"])


def test_a_copy_that_fails_keeps_nobody_waiting(tmp_path, capsys):
    """Out of host memory is a failed save: the next step goes on, and `close` tells."""

    class PoorWriter(CheckpointWriter):
        def _copy(self, name, tensor):
            raise RuntimeError("not enough memory")

    model, optimizer = small_model()
    writer = PoorWriter(tmp_path, 2, is_main=True)
    writer.save(model, optimizer, state_of(1), lambda folder, weights: None)
    optimizer.step()
    with pytest.raises(ValueError, match="step 1 was not saved: not enough memory"):
        writer.close()
    assert not checkpoint.step_folders(tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_copied_from_beside_training(tmp_path):
    """Steps that follow at once, and the kernels before, do not get into the copy."""
    model = torch.nn.Linear(4096, 4096, device="cuda")
    optimizer = build_optimizer("adamw", model, 0.1, 0.0, torch.float32)
    writer, expected = CheckpointWriter(tmp_path, 9, is_main=True), []
    for step in range(1, 6):
        for _ in range(10):  # a queue of kernels that the save comes behind
            model(torch.ones(4096, 4096, device="cuda")).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(model.weight.detach().clone())
        writer.save(
            model, optimizer, state_of(step), lambda f, w: save_file(w, f / "model.safetensors")
        )
    writer.close()
    for step, weight in enumerate(expected, start=1):
        saved = load_file(tmp_path / f"step-{step:08d}" / "model.safetensors")
        assert torch.equal(saved["weight"], weight.cpu())


def test_one_copy_serves_all_saves(tmp_path):
    """The host memory of the first save is that of the next ones: no more is ever taken."""
    model, optimizer = small_model()
    places = []

    def write_model(folder, weights):
        places.append({name: t.data_ptr() for name, t in weights.items()})
        save_file(weights, folder / "model.safetensors")

    writer = CheckpointWriter(tmp_path, 2, is_main=True)
    for step in (1, 2, 3):
        writer.save(model, optimizer, state_of(step), write_model)
    writer.close()
    assert places[0] == places[1] == places[2]
    assert [f.name for f in checkpoint.step_folders(tmp_path)] == ["step-00000002", "step-00000003"]


def test_a_failed_save_is_told_and_the_next_makes_good(tmp_path, capsys):
    """A warning at once; close() raises only if the last save failed."""
    model, optimizer = small_model()

    def fails(folder, weights):
        raise OSError(28, "No space left on device")

    writer = CheckpointWriter(tmp_path, 2, is_main=True)
    writer.save(model, optimizer, state_of(1), fails)
    writer.wait()
    assert "step 1 was not saved: [Errno 28] No space left" in capsys.readouterr().err
    writer.save(model, optimizer, state_of(2), lambda folder, weights: None)
    writer.close()
    writer.save(model, optimizer, state_of(3), fails)
    with pytest.raises(ValueError, match="step 3 was not saved"):
        writer.close()
    assert [folder.name for folder in checkpoint.step_folders(tmp_path)] == ["step-00000002"]


def test_leftovers_go_even_if_nothing_is_saved(tmp_path):
    """A run that finds itself finished still removes what a killed save has left."""
    (tmp_path / ".tmp-step-00000012-809").mkdir()
    CheckpointWriter(tmp_path, 2, is_main=False).close()
    assert list(tmp_path.iterdir()), "the other ranks touch nothing"
    CheckpointWriter(tmp_path, 2, is_main=True).close()
    assert not list(tmp_path.iterdir())


def test_metrics_go_on_where_the_checkpoint_was(tmp_path):
    """Later lines are dropped; a checkpoint of another folder brings no lines with it."""
    state = RunState(step=2, metrics_lines=2)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "val')
    log = RunLog(tmp_path, 10, state, is_main=True)
    log.event(3, "spike")
    assert log.lines == 3
    steps = [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == [1, 2, 3]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert RunLog(elsewhere, 10, state, is_main=True).lines == 0


class Told:
    """Stands in for RunLog, sampler and dataset."""

    updates_per_epoch = 100

    def __init__(self):
        self.events = []

    def event(self, step, event, **values):
        self.events.append((step, event, values["rows"]))

    def say(self, text):
        pass

    def rows_in_update(self, update):
        return [update]

    def tokens_in_update(self, update):
        return update + 1

    def place(self, row):
        return f"row {row}"


def judge(watch, step: int, loss: float, grad_norm: float = 1.0, scaled: bool = False) -> bool:
    watch.note(step, torch.tensor(loss), torch.tensor(grad_norm), scaled)
    return watch.settle()


def test_a_spike_is_told_once_with_its_rows():
    """A loss far above what was usual is an event; noise and a steep start are not."""
    told, state = Told(), RunState()
    watch = LossWatch(5, state, told, told, told)
    noise = torch.Generator().manual_seed(0)
    for step in range(150):
        falling = 9 * 0.9**step + 3 + 0.05 * torch.randn((), generator=noise).item()
        assert judge(watch, step, 5.0 if step == 140 else falling)
    assert told.events == [(141, "spike", ["row 40"])]


def test_bad_numbers_never_enter_the_running_mean():
    """NaN and infinity are counted and skipped, and what was usual stays as it was."""
    told, state = Told(), RunState()
    watch = LossWatch(2, state, told, told, told)
    for step in range(60):
        judge(watch, step, 3.0)
    usual = list(state.usual_loss)
    assert not judge(watch, 60, float("nan"))
    assert not judge(watch, 61, 3.0, float("inf"))
    assert state.usual_loss == usual and state.bad_steps == 2
    assert judge(watch, 62, 3.0, float("inf"), scaled=True), "the scaler's own business"
    assert state.bad_in_a_row == 0


def test_an_update_is_judged_when_the_next_is_on_its_way():
    """note() reads the update before; settle() reads the last one, once."""
    told, state = Told(), RunState()
    watch = LossWatch(2, state, told, told, told)
    watch.note(0, torch.tensor(float("nan")), torch.tensor(1.0), False)
    assert state.bad_steps == 0
    watch.note(1, torch.tensor(3.0), torch.tensor(1.0), False)
    assert state.bad_steps == 1 and told.events == [(1, "skipped", ["row 0"])]
    assert watch.settle() and watch.settle() and state.usual_loss[2] == 1


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_bad_update_changes_no_bit(name, bad):
    """Weights, moments and step counts stay; the next good update is made."""
    torch.manual_seed(0)
    model = MiniMindLM(LMConfig.preset("demo", num_hidden_layers=1))
    optimizer = build_optimizer(name, model, 1e-2, 0.1, torch.float32)
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def update(loss: float, gradient: float) -> list:
        for p in model.parameters():
            p.grad = torch.randn_like(p) * gradient
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        skip_unless_finite(optimizer, scaler, torch.tensor(loss), norm)
        scaler.step(optimizer)
        optimizer.zero_grad()
        states = [optimizer.state[p] for p in model.parameters()]
        tensors = [*model.parameters(), *(t for state in states for t in state.values())]
        return [t.detach().clone() for t in tensors]

    update(3.0, 1.0)
    before = update(3.0, 1.0)
    nan = float("nan")
    after = update(nan, 1.0) if bad == "loss" else update(3.0, nan)
    assert all(map(torch.equal, before, after))
    assert not any(map(torch.equal, after, update(3.0, 1.0)))


def test_out_of_memory_says_what_to_change(capsys):
    """One line with the flags, exit status 2."""

    def main():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(SystemExit) as stopped:
        cli.run(main)
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and "halve --batch_size and double --accumulation_steps" in line


def test_rows_of_a_bad_update_are_those_of_its_epoch(tmp_path, tiny_tokenizer_dir):
    """The last update of an epoch is judged when the next one has begun: its own rows are named."""
    flags = make_inputs(tmp_path, tiny_tokenizer_dir)["pretrain"]
    script = tmp_path / "nan.py"
    script.write_text(
        "import json, train_pretrain as script\n"
        "from training import cli\n"
        "from training.loss_watch import LossWatch\n"
        "note, expected = LossWatch.note, []\n"
        "def noted(self, step, *rest):\n"
        "    n = self.sampler.updates_per_epoch\n"
        "    if step == n - 1:\n"
        "        expected.extend(map(self.dataset.place, self.sampler.rows_in_update(step % n)))\n"
        "        rest = (rest[0] * float('nan'), *rest[1:])\n"
        "    note(self, step, *rest)\n"
        "LossWatch.note = noted\n"
        "cli.run(script.main)\n"
        "print('EXPECTED', json.dumps(expected))\n"
    )
    rarely = ["--log_interval", 1000, "--eval_interval", 1000, "--save_interval", 1000]
    output = run(script, tmp_path / "run", *flags, "--batch_size", 16, *rarely)
    expected = json.loads(output.split("EXPECTED ")[1])
    (event,) = [line for line in metrics(tmp_path / "run") if "rows" in line]
    assert expected and event["rows"] == expected
