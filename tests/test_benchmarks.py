"""benchmarks/: what they count by themselves, on cases worked out by hand."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import bench_rollouts
from benchmarks.bench_lookup import guess, steps_taken
from benchmarks.bench_scripts import as_dict, ratios, step_seconds
from benchmarks.bench_time_to_loss import tokens_to
from benchmarks.own_process import ROOT, measure, row
from benchmarks.where_time_goes import OTHER, kind_of, shares_of
from dataset.tokenizer import load_tokenizer
from tests.oracle_models import our_model, random_numbers, save_here
from tests.small_runs import TINY
from train_grpo import group_advantages, policy_loss, token_weights
from training.rollouts import Rollouts, token_log_probs


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 4, 5, 9, 1, 2, 3], [4, 5, 9, 1]),  # three tokens stood there before
        ([7, 2, 3, 4, 9, 1, 2, 3], [4, 9, 1, 2]),  # only two did
        ([2, 3, 4, 2, 3, 5, 2, 3], [5, 2, 3]),  # the last place counts, and the text ends
        ([1, 2, 3, 4], []),
    ],
)
def test_a_guess_is_what_followed_before(tokens, expected):
    assert guess(tokens, most=4) == expected


def test_steps_of_a_looked_up_answer():
    """Right guesses come with the token of their step; wrong ones cost nothing but the look."""
    prompt = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    assert steps_taken(prompt, [4, 5, 6, 1, 8], most=4) == (1, 1)  # four right, 8 is the step's own
    assert steps_taken(prompt, [4, 8, 9, 10], most=4) == (3, 1)  # 4 and 8; nothing known of 9 or 10
    assert steps_taken([1], [5, 6, 7], most=4) == (3, 0)


def test_tokens_to_a_loss_lie_on_the_line_between_two_evaluations():
    curve = [(100, 4.0), (200, 3.0), (300, 2.0)]
    assert tokens_to(2.5, curve) == 250
    assert tokens_to(4.5, curve) == 100
    assert tokens_to(1.0, curve) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("graph_0_cpp_fused_mm_softmax_3", "compiled loops"),
        ("void cutlass::flash_fwd_kernel", "attention kernels"),
        ("aten::copy_", "memory copied"),
        ("## Call CompiledFxGraph fymmcopy_flex", OTHER),
        ("aten::argmax", OTHER),
    ],
)
def test_kernels_are_told_apart_by_name(name, kind):
    assert kind_of(name) == kind


def test_seconds_of_a_step_follow_from_tokens_and_their_rate(tmp_path):
    """Lines without a rate are no steps, and the first steps do not count."""
    lines = [{"step": 0, "val_loss": 9.0}]
    seconds, tokens = [7.0, 1.0, 2.0, 4.0], 0
    for step, took in enumerate(seconds, start=1):
        tokens += 100 * step
        lines.append({"step": step, "tokens": tokens, "tokens_per_s": 100 * step / took})
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert step_seconds(metrics, skip=1) == pytest.approx([1.0, 2.0, 4.0])
    with pytest.raises(ValueError, match="4 steps; more than --skip 4"):
        step_seconds(metrics, skip=4)


def test_steady_drift_cancels_out_of_a_ratio():
    """Runs in the order old, new, new, old, each a tenth slower than the one before."""
    assert ratios(old=[1.0, 1.3], new=[1.1, 1.2]) == [pytest.approx(1)]
    assert ratios([1.0, 1.0, 2.0, 2.0], [2.0, 2.0, 1.0, 1.0]) == [2, 0.5]


def test_flags_for_the_scripts_are_read():
    assert as_dict(["--a", "1", "--b", "--c", "x"]) == {"a": "1", "b": True, "c": "x"}
    with pytest.raises(ValueError, match="expected --name value, got 2"):
        as_dict(["--a", "1", "2"])


def test_a_step_is_measured_in_a_process_of_its_own(tmp_path):
    """Its figures, and those of the process: memory that it touched, a child's CPU seconds."""
    script = tmp_path / "step.py"
    script.write_text(
        f"import subprocess, sys, time\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from benchmarks.own_process import print_figures\n"
        "def step():\n"
        "    busy = 'import time\\nwhile time.process_time() < 0.3: pass'\n"
        "    subprocess.run([sys.executable, '-c', busy], check=True)\n"
        "    print('not a figure')\n"
        "    kept = b'x' * (150 << 20)\n"
        "    time.sleep(0.2)\n"
        "    return {'tokens': 7, 'given': sys.argv[1:]}\n"
        "print_figures(step)\n"
    )
    figures = measure(str(script), {"a": 1, "b": True})
    assert figures["given"] == ["--a", "1", "--b"]
    assert figures["cpu_seconds"] >= 0.3 and figures["seconds"] > 0
    if sys.platform == "linux":
        assert 150 << 20 < figures["own_bytes"] < figures["peak_bytes"] < 250 << 20
    line = row("a step", {"tokens": 10, "seconds": 2.0, "cpu_seconds": 5.0, "note": "noted"})
    assert line.split()[:6] == ["a", "step", "2.00", "5.00", "5", "2"] and "noted" in line


@pytest.mark.slow
def test_a_checkout_is_compared_with_itself():
    """Both scripts run in turns, and the table and the JSON line have what they took."""
    command = [sys.executable, "benchmarks/bench_scripts.py", "--old", ROOT, "--rounds", "1"]
    command += ["--steps", "4", "--skip", "1", "--flags", *TINY, "--dtype", "float32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    results = json.loads(done.stdout.splitlines()[-1])
    for script in ("pretrain", "full_sft"):
        assert f"train_{script}.py" in done.stdout
        figures = results[script]
        assert len(figures["old"]) == len(figures["new"]) == 2 and len(figures["ratios"]) == 1
        assert all(seconds > 0 for seconds in figures["old"] + figures["new"])
        assert figures["fastest_ratio"] > 0


def event(name: str, start: float, end: float, on_gpu: bool, annotation: bool = False):
    """What torch.profiler gives of a kernel or an annotation; microseconds."""
    time = 0 if on_gpu else end - start
    return SimpleNamespace(
        name=name, device_type=DeviceType.CUDA if on_gpu else DeviceType.CPU,
        is_user_annotation=annotation, self_device_time_total=end - start if on_gpu else 0,
        self_cpu_time_total=time, time_range=SimpleNamespace(start=start, end=end),
    )  # fmt: skip


def test_an_annotation_on_a_gpu_is_not_counted_beside_its_kernels():
    """30 µs of products, 10 of a loop, annotated as a whole, in 80: half of the time none runs."""
    events = [
        event("ampere_bf16_s16816gemm", 0, 30, True), event("triton_poi_fused_add", 50, 60, True),
        event("Optimizer.step#AdamW.step", 0, 60, True, annotation=True),
        event("aten::mm", 0, 20, False), event("Optimizer.step#AdamW.step", 0, 80, False, True),
    ]  # fmt: skip
    shares = shares_of(events, cuda=True, steps=2)
    assert shares["matrix products"] == pytest.approx(0.75)
    assert shares["compiled loops"] == pytest.approx(0.25)
    assert shares[OTHER] == 0 and shares["idle"] == pytest.approx(0.5)
    assert shares["seconds"] == pytest.approx(40e-6)


def test_on_a_cpu_an_annotation_counts_for_what_is_in_no_kernel():
    """The profiler's own events: all own times add up to the annotation around everything."""
    a = torch.randn(300, 300)
    with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function("the step"):
        for _ in range(20):
            a @ a
    events = profiler.events()
    around = max(e.cpu_time_total for e in events if e.name == "the step")
    total = sum(e.self_cpu_time_total for e in events)
    assert total == pytest.approx(around, rel=0.05)
    shares = shares_of(events, cuda=False, steps=1)
    assert shares["matrix products"] > 0.5 and sum(shares.values()) - shares["seconds"] == (
        pytest.approx(1)
    )


def test_padded_and_packed_rows_of_the_benchmark_learn_the_same(tiny_tokenizer_dir, monkeypatch):
    """One loss and one gradient, in as many micro-batches as there may be: only filling differs."""
    monkeypatch.setattr(bench_rollouts, "MIX", 3)
    model, tokenizer = (
        our_model(random_numbers(1, vocab_size=512)),
        load_tokenizer(tiny_tokenizer_dir),
    )
    args = SimpleNamespace(num_generations=3, micro_batch=2048, dtype="float32")
    groups = bench_rollouts.mixed_groups(tokenizer, args)
    samples = [s for group in groups for s in group]
    for one in samples:
        one.rewards = [0.0]
    run = bench_rollouts.run_of(model, args)
    advantages = group_advantages(torch.arange(9.0).view(3, 3) ** 2, run.args)
    lengths = torch.tensor([float(len(s.ids)) for s in samples])
    assert lengths.min() < 30 and lengths.max() > 60
    weights = token_weights(lengths, 9, lengths.sum(), run.args)
    told = []
    for batches in (
        Rollouts(run, tokenizer, [("given", 1.0, None)]).rows(
            groups, advantages, advantages, token_weights
        ),
        bench_rollouts.padded(samples, advantages.flatten(), weights, 4),
    ):
        model.zero_grad()
        loss = 0.0
        for rows in batches:
            log_probs, _ = token_log_probs(model(**rows.inputs)[0], rows.Y, 1.0)
            rows.old = log_probs.detach()
            losses, _ = policy_loss(log_probs, rows, run.args)
            part = (losses * rows.weights).sum()
            part.backward()
            loss += part.item()
        told.append((loss, [p.grad.clone() for p in model.parameters()]))
    assert len(batches) == 3 and told[0][0] == pytest.approx(told[1][0], abs=1e-6)
    torch.testing.assert_close(told[0][1], told[1][1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_benchmark_of_rollouts_runs(tiny_tokenizer_dir, tmp_path):
    """With a tiny model: a table, and in the JSON line every rate and ratio is there."""
    folder = save_here(our_model(random_numbers(1, vocab_size=512)), tmp_path / "m")
    for path in tiny_tokenizer_dir.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    command = [sys.executable, "benchmarks/bench_rollouts.py", "--model", folder, "--prompts", "2"]
    command += ["--num_generations", "2", "--prompt_tokens", "4", "--new_tokens", "4"]
    command += ["--repeats", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result["sampling"]) == {"plain loop", "engine", "no prompt shared", "groups"}
    assert result["least_ratio"] > 0 and set(result["updates"]) == {"the demo's sums", "mix"}
