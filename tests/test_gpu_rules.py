"""Which kernel runs on which GPU: rules that a machine without one can check.

The properties of a card are pretended, and so is that a tensor lies on it; kernels are the CPU's.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from model.attention import (
    attention,
    cuda_backends,
    flash_is_built,
    flex_attention_serves,
    packed_rows,
)
from model.config import LMConfig
from model.generation import generate
from model.model import MiniMindLM
from model.moe import MoEFeedForward, _product_by_product, grouped_mm_waits
from training.distributed import Ranks
from training.run_log import RunLog
from training.state import RunState

CARDS = {
    "Titan V": (7, 0), "T4": (7, 5), "A100": (8, 0), "3090": (8, 6), "4090": (8, 9),
    "H100": (9, 0), "B200": (10, 0), "B300": (10, 3), "5090": (12, 0),
}  # fmt: skip
CUDNN, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
EFFICIENT, MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH


class OnCuda(torch.Tensor):
    """A tensor that says it lies on a GPU, and computes on the CPU."""

    is_cuda = True


class WithDevice(OnCuda):
    """The same, and names the GPU: nothing can be made where it lies."""

    device = torch.device("cuda", 0)


def pretend(monkeypatch, card: str, cudnn: int | None = 91900):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: CARDS[card])
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)


@pytest.fixture
def calls(monkeypatch) -> list[dict]:
    """What scaled_dot_product_attention is called with, and what is allowed at that time."""
    found, real = [], F.scaled_dot_product_attention

    def spy(q, k, v, mask=None, **more):
        flags = torch.backends.cuda
        allowed = {
            CUDNN: flags.cudnn_sdp_enabled(), FLASH: flags.flash_sdp_enabled(),
            EFFICIENT: flags.mem_efficient_sdp_enabled(), MATH: flags.math_sdp_enabled(),
        }  # fmt: skip
        found.append({
            "allowed": [backend for backend, is_on in allowed.items() if is_on],
            "order": torch._C._get_sdp_priority_order(),
            "heads": (q.shape[1], k.shape[1]),
            "masked": mask is not None,
        })  # fmt: skip
        return real(q, k, v, mask, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return found


def rows(T: int = 8, dtype=torch.bfloat16, trained: bool = True) -> list[torch.Tensor]:
    """q [2, 4, T, 16], k and v [2, 2, T, 16], said to be on a GPU."""
    torch.manual_seed(0)
    tensors = [torch.randn(2, heads, T, 16, dtype=dtype) for heads in (4, 2, 2)]
    return [t.as_subclass(OnCuda).requires_grad_(trained) for t in tensors]


# ---- cuDNN's attention


@pytest.mark.parametrize("card", CARDS)
def test_cudnn_attention_is_for_hopper_and_blackwell_of_data_centres(monkeypatch, card):
    """Capability 9 and 10, cuDNN above 9.15.0, as in torch; flash, efficient, math elsewhere."""
    others = [FLASH, EFFICIENT, MATH]
    for cudnn in (91900, 91501, 91500, 8907, None):
        pretend(monkeypatch, card, cudnn)
        wanted = card in ("H100", "B200", "B300") and cudnn in (91900, 91501)
        found = cuda_backends(CARDS[card], masked=False, fixed_shapes=True, exact=False)
        assert found == [CUDNN] * wanted + others
    pretend(monkeypatch, card)
    for masked, fixed_shapes in ((True, True), (False, False), (True, False)):
        assert cuda_backends(CARDS[card], masked, fixed_shapes, exact=False) == others
    assert cuda_backends(CARDS[card], False, True, exact=True) == [MATH]


def test_torch_knows_no_more_and_no_fewer_kernels():
    """A kernel that a new torch adds for CUDA has to be put into the rule, or left out of it."""
    known = {CUDNN, FLASH, EFFICIENT, MATH}
    assert {b for b in SDPBackend.__members__.values() if int(b) >= 0} - known <= {
        SDPBackend.OVERRIDEABLE  # other makers' devices
    }


@pytest.mark.parametrize(
    ("case", "on_h100", "on_3090"),
    [
        ("training", [CUDNN, FLASH, EFFICIENT, MATH], [FLASH, EFFICIENT, MATH]),
        ("decoding a prompt", [FLASH, EFFICIENT, MATH], [FLASH, EFFICIENT, MATH]),
        ("one token", [FLASH, EFFICIENT, MATH], [FLASH, EFFICIENT, MATH]),
        ("masked", [FLASH, EFFICIENT, MATH], [FLASH, EFFICIENT, MATH]),
        ("deterministic", [MATH], [MATH]),
    ],
)
def test_every_call_is_by_the_rule_and_leaves_no_trace(monkeypatch, calls, case, on_h100, on_3090):
    """Training alone gets cuDNN; the numbers are the CPU's; flags and order are as before."""
    T = 1 if case == "one token" else 8
    q, k, v = rows(T, trained=case in ("training", "masked", "deterministic"))
    mask = torch.ones(T, T, dtype=torch.bool).tril()[None, None] if case == "masked" else None
    plain = [t.detach().as_subclass(torch.Tensor) for t in (q, k, v)]
    expected = attention(*plain, mask)
    calls.clear()
    before = torch._C._get_sdp_priority_order()
    if case == "deterministic":
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    for card, allowed in (("H100", on_h100), ("3090", on_3090)):
        pretend(monkeypatch, card)
        found = attention(q, k, v, mask)
        assert calls.pop()["allowed"] == allowed and not calls
        assert (found - expected).abs().max() <= 1e-2
    assert torch._C._get_sdp_priority_order() == before
    assert torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()


def test_no_call_changes_the_kernel_of_another(monkeypatch, calls):
    """Plain calls before, between and behind ours: all see torch's own order and all kernels."""
    pretend(monkeypatch, "H100")
    q, k, v = rows()
    one = rows(T=1, trained=False)
    everything = [CUDNN, FLASH, EFFICIENT, MATH]
    order = torch._C._get_sdp_priority_order()
    attention(q, k, v, None)
    F.scaled_dot_product_attention(q, q, q)
    attention(*one, None)
    F.scaled_dot_product_attention(q, q, q)
    attention(q, k, v, None)
    allowed = [call["allowed"] for call in calls]
    assert allowed == [everything, everything, everything[1:], everything, everything]
    assert all(call["order"] == order for call in calls)


@pytest.mark.parametrize(
    ("card", "dtype", "masked", "shared"),
    [
        ("H100", torch.bfloat16, False, True), ("3090", torch.float16, False, True),
        ("H100", torch.bfloat16, True, False), ("3090", torch.bfloat16, True, False),
        ("A100", torch.float32, False, False), ("T4", torch.float16, False, False),
    ],
)  # fmt: skip
def test_key_heads_are_shared_where_a_kernel_can(monkeypatch, calls, card, dtype, masked, shared):
    """A mask, float32 or an old card leave the efficient kernel, which needs a key head each.

    So does a torch that was built without FlashAttention.
    """
    pretend(monkeypatch, card)
    q, k, v = rows(dtype=dtype)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril() if masked else None
    attention(q, k, v, mask)
    assert calls == [calls[0]] and calls[0]["heads"] == (4, 2 if shared else 4)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    attention(q, k, v, mask)
    assert calls[1]["heads"] == (4, 4)


def test_the_rule_is_traced_as_a_constant(monkeypatch):
    """In a compiled graph the rule leaves no break, and takes what it would take outside."""
    taken = []

    def backend(graph, _example):
        names = [node.args[0] for node in graph.graph.nodes if "from_string" in str(node.target)]
        taken.append(names)
        return graph.forward

    def by_rule(q):
        capability = torch.cuda.get_device_capability(0)
        fixed_shapes = torch.compiler.is_compiling() or q.requires_grad
        assert flash_is_built()
        with sdpa_kernel(cuda_backends(capability, False, fixed_shapes, False)):
            return F.scaled_dot_product_attention(q, q, q, is_causal=True)

    q = torch.randn(1, 2, 8, 16)
    for card, first in (("H100", "CUDNN_ATTENTION"), ("3090", "FLASH_ATTENTION")):
        pretend(monkeypatch, card)
        torch._dynamo.reset()
        torch.compile(by_rule, fullgraph=True, backend=backend)(q)
        assert taken[-1][0] == first


def test_decoding_on_a_cpu_asks_no_gpu(monkeypatch):
    """Without a GPU neither the card nor cuDNN is looked at."""

    def never(*args):
        raise AssertionError("a GPU was asked for")

    monkeypatch.setattr(torch.cuda, "get_device_capability", never)
    monkeypatch.setattr(torch.backends.cudnn, "version", never)
    model = MiniMindLM(LMConfig(vocab_size=32, hidden_size=32, num_hidden_layers=1)).eval()
    assert len(list(generate(model, [1, 2, 3], 3, set(), temperature=0))) == 3


# ---- flex_attention


@pytest.mark.parametrize(
    ("dtype", "head_dim", "cards"),
    [  # which of T4, A100, 3090, 4090, H100, B200, 5090 have the memory
        (torch.bfloat16, 64, "1111111"),
        (torch.bfloat16, 96, "0111111"),
        (torch.float16, 128, "0111111"),
        (torch.bfloat16, 192, "0100110"),
        (torch.float32, 64, "0111111"),
        (torch.float32, 96, "0100110"),
        (torch.float32, 128, "0100110"),
    ],
)
def test_flex_attention_is_left_where_its_blocks_do_not_fit(monkeypatch, dtype, head_dim, cards):
    """float32 with head_dim above 64 on a 3090 and 4090; in half precision all presets fit there.

    torch issues 180278 and 198224 have the same limits for head_dim 192 in half precision.
    """
    found = ""
    for card in ("T4", "A100", "3090", "4090", "H100", "B200", "5090"):
        pretend(monkeypatch, card)
        found += str(int(flex_attention_serves(torch.device("cuda", 0), dtype, head_dim)))
    assert found == cards
    assert not flex_attention_serves(torch.device("cpu"), dtype, head_dim)


@pytest.mark.parametrize(("card", "fits"), [("3090", False), ("4090", False), ("A100", True)])
def test_a_model_in_float32_takes_the_mask_where_flex_attention_does_not_fit(
    monkeypatch, calls, card, fits
):
    """Preset base (head_dim 96), packed, compiled: no blocks, and torch's kernel with the mask."""
    pretend(monkeypatch, card)
    rows_made = []

    def spy(document_ids, *args, **more):
        rows_made.append(packed_rows(document_ids.as_subclass(OnCuda), *args, **more))
        raise InterruptedError

    ids = torch.zeros(1, 12, dtype=torch.int64).as_subclass(WithDevice)
    model = MiniMindLM(LMConfig.preset("base", num_hidden_layers=1))
    monkeypatch.setattr("model.model.packed_rows", spy)
    monkeypatch.setattr("model.attention.document_blocks", lambda *_: "the blocks")
    with monkeypatch.context() as compiling, pytest.raises(InterruptedError):
        compiling.setattr(torch.compiler, "is_compiling", lambda: True)
        model(ids, torch.tensor([[0] * 5 + [1] * 7]))
    assert rows_made[0].blocks == ("the blocks" if fits else None)
    if not fits:
        q, k, v = rows(T=12, dtype=torch.float32)
        one_row = [t[:1] for t in (q, k, v)]
        found = attention(*one_row, rows_made[0])
        alone = [attention(*(t[:, :, part] for t in one_row), None)
                 for part in (slice(0, 5), slice(5, 12))]  # fmt: skip
        assert calls[0]["masked"] and calls[0]["allowed"] == [FLASH, EFFICIENT, MATH]
        assert (found - torch.cat(alone, dim=2)).abs().max() <= 1e-5


def test_rules_of_packed_rows_are_traced_as_constants(monkeypatch):
    """Asked inside a compiled graph, as the model asks, with no break."""
    pretend(monkeypatch, "3090")

    def ask(x, dtype):
        return x + flex_attention_serves(torch.device("cuda", 0), dtype, 96)

    for dtype, fits in ((torch.float32, 0), (torch.bfloat16, 1)):
        compiled = torch.compile(ask, fullgraph=True, backend="eager")
        assert compiled(torch.zeros(()), dtype).item() == fits


# ---- experts


@pytest.mark.parametrize("card", CARDS)
def test_grouped_products_wait_but_in_bfloat16_on_hopper(monkeypatch, card):
    """As `_grouped_mm_cuda` chooses in torch: bfloat16 on capability 9 and 10 reads no offsets."""
    pretend(monkeypatch, card)
    cuda, fast = torch.device("cuda", 0), card in ("H100", "B200", "B300")
    assert grouped_mm_waits(cuda, torch.bfloat16) is not fast
    assert grouped_mm_waits(cuda, torch.float16) and grouped_mm_waits(cuda, torch.float32)
    assert not grouped_mm_waits(torch.device("cpu"), torch.float32)


def experts(dtype=torch.float32) -> MoEFeedForward:
    """8 experts of which each token uses two."""
    torch.manual_seed(1)
    layer = MoEFeedForward(LMConfig(hidden_size=32, moe_intermediate_size=48, use_moe=True))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer.to(dtype)


def output_and_gradients(layer, x, upstream) -> list[torch.Tensor]:
    layer.zero_grad()
    leaf = x.clone().requires_grad_()
    y, _ = layer(leaf)
    y.backward(upstream)
    return [y.detach(), leaf.grad, *(p.grad.clone() for p in layer.parameters())]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
)
@pytest.mark.parametrize(
    ("tokens", "kind"), [(1, "blocks"), (30, "blocks"), (30, "one by one"), (500, "one by one")]
)
def test_other_products_are_the_grouped_ones(monkeypatch, dtype, tolerance, tokens, kind):
    """Output and gradients of an expert layer, in all dtypes, within the dtype's rounding."""
    layer = experts(dtype)
    x, upstream = torch.randn(2, 1, tokens, 32).to(dtype)
    grouped = output_and_gradients(layer, x, upstream)
    monkeypatch.setattr("model.moe.grouped_mm_waits", lambda device, dtype: True)
    monkeypatch.setattr(F, "grouped_mm", None)  # nothing comes by it
    if kind == "one by one":
        monkeypatch.setattr("model.moe.BLOCK", 0)
        monkeypatch.setattr("model.moe._product", _product_by_product)
    for found, expected in zip(output_and_gradients(layer, x, upstream), grouped):
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_filling_rows_overflow_nowhere(monkeypatch):
    """float16: a token that is too large for an expert it does not use leaves no NaN."""
    layer = experts()
    with torch.no_grad():
        layer.gate.weight.zero_()
        layer.gate.weight[:, :8] = torch.eye(8) * 10
        x = torch.zeros(1, 40, 32)
        x[0, :, 1] = x[0, :, 2] = 1.0
        x[0, 0, 1], x[0, 0, 2] = 100.0, 99.0  # the token that filling rows are copies of
        x[0, 1, 1], x[0, 1, 3] = 0.5, 1.0  # so that expert 3 is used, too
        layer.gate_proj[3] = 400.0  # times that token infinite in float16
        layer.up_proj[3] = 0.01
    layer.half()
    monkeypatch.setattr("model.moe.grouped_mm_waits", lambda device, dtype: True)
    results = output_and_gradients(layer, x.half(), torch.ones(1, 40, 32).half())
    assert all(t.isfinite().all() for t in results)


class NothingRead(TorchDispatchMode):
    """Fails where values on a device would be read: each such call waits for a GPU."""

    def __init__(self):
        super().__init__()
        self.copied = []  # shapes of what is copied to the host, for which it waits

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "is_nonzero")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).split(".")[1]
        if name == "on_host":
            self.copied.append(args[0].shape)
        indices = args[1] if name == "index" else ()
        is_bool = any(i is not None and i.dtype == torch.bool for i in indices)
        if name.strip("_") in {read.strip("_") for read in self.READS} or is_bool:
            raise AssertionError(f"{function} waits for the GPU")
        return function(*args, **(kwargs or {}))


def test_few_tokens_read_nothing_and_many_once(monkeypatch):
    """Up to 16 copies an expert no value is asked for; with more, where slices end, and no more."""
    monkeypatch.setattr("model.moe.grouped_mm_waits", lambda device, dtype: True)
    layer = experts()
    with NothingRead() as mode:
        for tokens in (1, 64):
            x, upstream = torch.randn(2, 1, tokens, 32)
            output_and_gradients(layer, x, upstream)
        assert mode.copied == []
        with pytest.raises(AssertionError, match="waits"):  # the mode sees what is planted
            bool(x.sum() > 0)
        with pytest.raises(AssertionError, match="waits"):
            x[x > 0]
        x, upstream = torch.randn(2, 1, 65, 32)
        output_and_gradients(layer, x, upstream)
    assert mode.copied == [(8,)]


def test_compiled_the_backward_pass_does_not_read_again(monkeypatch):
    """Torch keeps what was read: one copy to the host in a step, and no product twice."""
    monkeypatch.setattr("model.moe.grouped_mm_waits", lambda device, dtype: True)
    monkeypatch.setattr("model.moe._product", _product_by_product)
    copy, product, done = torch.Tensor.to, torch.mm, []
    layer = experts()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager_decomp_partition")
    x, upstream = torch.randn(2, 1, 100, 32)
    compiled(x.requires_grad_())[0].backward(upstream)  # this one compiles

    def to(tensor, *args, **more):
        done.append("copy") if args == ("cpu",) else None
        return copy(tensor, *args, **more)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch, "mm", lambda *a, **more: done.append("mm") or product(*a, **more))
    y, _ = compiled(x)
    assert (done.count("copy"), done.count("mm")) == (1, 3 * 8)
    y.backward(upstream)
    assert (done.count("copy"), done.count("mm")) == (1, 9 * 8)


def test_a_run_with_experts_says_that_it_waits(monkeypatch, tmp_path, capsys):
    """One line at the start, on a card and in a dtype where torch's grouped product waits."""
    config = LMConfig.preset("demo", use_moe=True, num_hidden_layers=1, moe_intermediate_size=32)
    ranks = Ranks(0, 0, 1, torch.device("cuda", 0))
    said = {}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    bfloat16, float16 = torch.bfloat16, torch.float16
    for card, dtype in (("3090", bfloat16), ("H100", bfloat16), ("H100", float16)):
        pretend(monkeypatch, card)
        log = RunLog(tmp_path, 1, RunState(), True, ranks=ranks, dtype=dtype)
        for model in (MiniMindLM(config), MiniMindLM(config.with_changes(use_moe=False))):
            log.say_what(model, "1 × 8 tokens", "none")
            said[card, dtype, model.config.use_moe] = capsys.readouterr().out
        log.file.close()
    lines = {key: text for key, text in said.items() if "waits for this GPU" in text}
    assert set(lines) == {("3090", bfloat16, True), ("H100", float16, True)}
    assert "in bfloat16 torch's grouped product" in lines["3090", bfloat16, True]


def test_nobody_sets_the_order_of_kernels():
    """No file of this project does, benchmarks included: there it would slow down others."""
    root = Path(__file__).resolve().parent.parent
    sources = [p for p in root.rglob("*.py") if not {".venv", "tests", "out"} & set(p.parts)]
    assert len(sources) > 50
    for path in sources:
        assert "set_priority=" not in path.read_text(encoding="utf-8"), path
