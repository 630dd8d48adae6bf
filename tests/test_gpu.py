"""What only a GPU can show: the training scripts run there, resume to the bit, and never wait.

Skipped where there is none; `benchmarks/gpu.sh` runs them.
"""

import pytest
import torch
import torch.nn.functional as F

from model.attention import attention, document_bounds, flash_attn_serves, packed_rows
from model.config import LMConfig
from model.engine import Engine
from model.generation import generate
from model.model import MiniMindLM
from model.moe import MoEFeedForward, grouped_mm_waits
from model.request import Request
from model.sampling import Sampling
from tests.small_runs import figures, make_inputs, metrics, result, run
from training.losses import masked_cross_entropy
from training.optimizers import build_optimizer, skip_unless_finite

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
CAPABILITY = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
needs_bfloat16 = pytest.mark.skipif(CAPABILITY < (8, 0), reason="bfloat16 needs capability 8")
BFLOAT16 = pytest.param(torch.bfloat16, marks=needs_bfloat16)


@pytest.fixture
def flags(tmp_path, tiny_tokenizer_dir):
    return make_inputs(tmp_path, tiny_tokenizer_dir)


@pytest.mark.parametrize("script", ["pretrain", "full_sft", "lora", "dpo"])
@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=needs_bfloat16), "float16"])
def test_scripts_learn_on_a_gpu(tmp_path, flags, script, dtype):
    """Compiled and in half precision, the loss ends near that of the CPU in float32."""
    more = ["--dropout", 0, "--max_steps", 12]
    run(script, tmp_path / "cpu", *flags[script], *more)
    more += ["--device", "cuda", "--dtype", dtype, "--compile"]
    run(script, tmp_path / "gpu", *flags[script], *more)
    cpu, gpu = (figures(tmp_path / name)[-1] for name in ("cpu", "gpu"))
    assert gpu["val_loss"] == pytest.approx(cpu["val_loss"], rel=0.03)


@needs_bfloat16
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, flags, optimizer):
    """Started again from step 10 of 12, compiled and in bfloat16: equal bits and metrics."""
    flags = [*flags["pretrain"], "--device", "cuda", "--deterministic", "--optimizer", optimizer]
    flags += ["--dtype", "bfloat16", "--compile", "--max_seq_len", 256]
    run("pretrain", tmp_path / "whole", *flags)
    step = tmp_path / "whole" / "step-00000010"
    run("pretrain", tmp_path / "again", *flags, "--resume", step)
    again = metrics(tmp_path / "again")
    assert again == metrics(tmp_path / "whole")[-len(again) :]
    assert result(tmp_path / "again")["files"] == result(tmp_path / "whole")["files"]


@needs_bfloat16
@pytest.mark.parametrize("script", ["pretrain", "full_sft", "dpo"])
def test_cuda_graphs_learn_the_same(tmp_path, flags, monkeypatch, script):
    """Every update's loss and gradient norm, with evaluations and saves in between."""
    more = ["--device", "cuda", "--compile", "--dtype", "bfloat16", "--dropout", 0]
    run(script, tmp_path / "plain", *flags[script], *more)
    monkeypatch.setenv("TORCHINDUCTOR_CUDAGRAPH_OR_ERROR", "1")  # else it only says "skipping"
    run(script, tmp_path / "graphs", *flags[script], *more, "--cuda_graphs")
    plain, graphs = (figures(tmp_path / name) for name in ("plain", "graphs"))
    assert len(plain) == len(graphs)
    for one, other in zip(plain, graphs):
        for name in ("loss", "grad_norm", "val_loss"):
            assert other.get(name) == pytest.approx(one.get(name), rel=0.01)


@needs_bfloat16
@pytest.mark.parametrize("experts", [False, True])
def test_a_step_never_waits_for_the_gpu(experts):
    """Forward, loss, backward, clipping and update with synchronisation made an error."""
    if experts and grouped_mm_waits(torch.device("cuda"), torch.bfloat16):
        pytest.skip(f"torch's grouped product waits on capability {CAPABILITY}, as a run says")
    config = LMConfig.preset("demo", use_moe=experts, moe_intermediate_size=256)
    model = MiniMindLM(config).cuda()
    optimizer = build_optimizer("adamw", model, 1e-3, 0.1, torch.bfloat16)
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    ids = torch.randint(config.vocab_size, (4, 128), device="cuda")
    mask = torch.ones(4, 128, device="cuda")

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            logits, aux_loss = model(ids)
            loss = masked_cross_entropy(logits, ids, mask) + aux_loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        skip_unless_finite(optimizer, scaler, loss.detach(), norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # what is made once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("experts", [False, True])
def test_greedy_tokens_are_those_of_the_cpu(experts):
    """In float32, plain and with the compiled step, a CUDA graph."""
    torch.manual_seed(0)
    config = LMConfig.preset("demo", use_moe=experts, moe_intermediate_size=256)
    model = MiniMindLM(config).eval()
    prompt = list(range(10, 30))
    expected = list(generate(model, prompt, 30, set(), temperature=0))
    model.cuda()
    for compiled in (False, True):
        request = Request(prompt, 30, sampling=Sampling(temperature=0))
        engine = Engine(model, 1, 0, compiled=compiled)
        assert [drawn.token for drawn in engine.stream(request)] == expected


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 1e-2), (BFLOAT16, 5e-2)]
)
@pytest.mark.parametrize("tokens", [30, 500])
@pytest.mark.parametrize("compiled", [False, True])
def test_experts_compute_what_they_do_on_a_cpu(dtype, tolerance, tokens, compiled):
    """Output and gradients, by whichever products this card takes for few and for many tokens."""
    torch.manual_seed(0)
    layer = MoEFeedForward(LMConfig(hidden_size=64, moe_intermediate_size=96, use_moe=True))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, upstream = torch.randn(2, 1, tokens, 64)
    layer.gate.weight.data.zero_()[:, :8] = torch.eye(8) / 2  # rounding sends no token elsewhere
    x[..., :8] = torch.randn(1, tokens, 8).sign() * torch.arange(1, 9)

    def run(layer, x):
        leaf = x.clone().requires_grad_()
        y, _ = layer(leaf)
        y.backward(upstream.to(y))
        found = [y, leaf.grad, *(p.grad for p in layer.parameters())]
        layer.zero_grad()
        return [t.detach().float().cpu() for t in found]

    expected = run(layer, x)
    layer.cuda().to(dtype)
    found = run(torch.compile(layer, dynamic=False) if compiled else layer, x.cuda().to(dtype))
    for one, other in zip(found, expected):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


def test_document_bounds_compiled_for_a_gpu():
    """The same bounds as eager code on a CPU."""
    runs = torch.tensor([[1, 1, 2, 2, 2], [1, 2, 3, 3, 3]])
    compiled = torch.compile(document_bounds, dynamic=False, fullgraph=True)
    assert torch.equal(compiled(runs.cuda(), 4).cpu(), document_bounds(runs, 4))


@needs_bfloat16
@pytest.mark.parametrize("kernel", ["flex_attention", "flash-attn"])
@pytest.mark.parametrize("D", [64, 128])
def test_kernels_for_packed_rows_equal_masked_attention(kernel, D):
    """Output and gradients in bfloat16 are those of the stock kernel in float32 with a mask."""
    device, (B, A, K, T) = torch.device("cuda"), (3, 8, 4, 500)
    documents_per_row = 6 if kernel == "flash-attn" else None
    if documents_per_row and not flash_attn_serves(device, torch.bfloat16, D):
        pytest.skip("flash-attn is not installed, or not for this GPU")
    torch.manual_seed(0)
    leaves = [torch.randn(B, heads, T, D, device=device) for heads in (A, K, K)]
    upstream = torch.randn(B, A, T, D, device=device)
    documents = torch.arange(T, device=device) // torch.tensor([[100], [170], [499]], device=device)

    def run(attend, dtype):
        q, k, v = (leaf.to(dtype).requires_grad_() for leaf in leaves)
        y = attend(q, k, v)
        y.backward(upstream.to(dtype))
        return [t.float() for t in (y, q.grad, k.grad, v.grad)]

    def stock(q, k, v):
        k, v = (t.repeat_interleave(A // K, dim=1) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v, packed_rows(documents).mask)

    @torch.compile(dynamic=False)
    def fast(q, k, v):
        return attention(q, k, v, packed_rows(documents, documents_per_row))

    for found, expected in zip(run(fast, torch.bfloat16), run(stock, torch.float32)):
        assert (found - expected).abs().max() <= 0.03 * expected.abs().max()
