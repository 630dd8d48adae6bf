"""What only a GPU can show: the training scripts run there, resume to the bit, and never wait.

Skipped where there is none; `benchmarks/gpu.sh` runs them.
"""

import pytest
import torch
import torch.nn.functional as F

from model.attention import attention, document_bounds, flash_attn_serves, packed_rows
from model.config import LMConfig
from model.generation import generate
from model.model import MiniMindLM
from tests.small_runs import make_inputs, metrics, result, run
from training.losses import masked_cross_entropy
from training.optimizers import build_optimizer, skip_unless_finite

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def flags(tmp_path, tiny_tokenizer_dir):
    return make_inputs(tmp_path, tiny_tokenizer_dir)


@pytest.mark.parametrize("script", ["pretrain", "full_sft", "lora", "dpo"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_scripts_learn_on_a_gpu(tmp_path, flags, script, dtype):
    """Compiled and in half precision, the loss ends near that of the CPU in float32."""
    more = ["--dropout", 0, "--max_steps", 12]
    run(script, tmp_path / "cpu", *flags[script], *more)
    more += ["--device", "cuda", "--dtype", dtype, "--compile"]
    run(script, tmp_path / "gpu", *flags[script], *more)
    cpu, gpu = (metrics(tmp_path / name)[-1] for name in ("cpu", "gpu"))
    assert gpu["val_loss"] == pytest.approx(cpu["val_loss"], rel=0.03)


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


@pytest.mark.parametrize("script", ["pretrain", "full_sft", "dpo"])
def test_cuda_graphs_learn_the_same(tmp_path, flags, monkeypatch, script):
    """Every update's loss and gradient norm, with evaluations and saves in between."""
    more = ["--device", "cuda", "--compile", "--dtype", "bfloat16", "--dropout", 0]
    run(script, tmp_path / "plain", *flags[script], *more)
    monkeypatch.setenv("TORCHINDUCTOR_CUDAGRAPH_OR_ERROR", "1")  # else it only says "skipping"
    run(script, tmp_path / "graphs", *flags[script], *more, "--cuda_graphs")
    plain, graphs = (metrics(tmp_path / name) for name in ("plain", "graphs"))
    assert len(plain) == len(graphs)
    for one, other in zip(plain, graphs):
        for name in ("loss", "grad_norm", "val_loss"):
            assert other.get(name) == pytest.approx(one.get(name), rel=0.01)


@pytest.mark.parametrize("experts", [False, True])
def test_a_step_never_waits_for_the_gpu(experts):
    """Forward, loss, backward, clipping and update with synchronisation made an error."""
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


def test_greedy_tokens_are_those_of_the_cpu():
    """In float32, plain and with the compiled step."""
    torch.manual_seed(0)
    model = MiniMindLM(LMConfig.preset("demo")).eval()
    prompt = list(range(10, 30))
    expected = list(generate(model, prompt, 30, set(), temperature=0))
    model.cuda()
    for compiled in (False, True):
        found = list(generate(model, prompt, 30, set(), compiled=compiled, temperature=0))
        assert found == expected


def test_document_bounds_compiled_for_a_gpu():
    """The same bounds as eager code on a CPU."""
    runs = torch.tensor([[1, 1, 2, 2, 2], [1, 2, 3, 3, 3]])
    compiled = torch.compile(document_bounds, dynamic=False, fullgraph=True)
    assert torch.equal(compiled(runs.cuda(), 4).cpu(), document_bounds(runs, 4))


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
