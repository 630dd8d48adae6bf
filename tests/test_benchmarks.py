"""benchmarks/: what they count by themselves, on cases worked out by hand."""

import pytest

from benchmarks.bench_lookup import guess, steps_taken
from benchmarks.bench_time_to_loss import tokens_to
from benchmarks.where_time_goes import OTHER, kind_of


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
