"""benchmarks/: what they count by themselves, on cases worked out by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.bench_lookup import guess, steps_taken
from benchmarks.bench_time_to_loss import tokens_to
from benchmarks.where_time_goes import OTHER, kind_of, shares_of


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
