"""The fast training step computes what the slow one computes, and is compiled once.

Compiled code is compared with eager code, blocks with torch's own attention, grouped experts with a
loop, chunks with the whole.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from model.attention import (
    attention,
    blockwise_attention,
    document_blocks,
    document_bounds,
    document_starts,
    packed_rows,
)
from model.config import LMConfig
from model.model import MiniMindLM
from model.moe import MoEFeedForward, _product_by_product, grouped_mm_waits
from training import compute, losses
from training.distributed import Ranks
from training.losses import document_log_probs, masked_cross_entropy, token_cross_entropy

NUMBERS = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48,
}  # fmt: skip
MOE = {"use_moe": True, "num_experts": 4, "num_experts_per_tok": 2}


@pytest.fixture(autouse=True)
def fresh_compiler():
    """No graph of one test is found by another."""
    torch._dynamo.reset()
    counters.clear()


def small_model(seed: int = 0, **changes) -> MiniMindLM:
    torch.manual_seed(seed)
    return MiniMindLM(LMConfig(**NUMBERS | {"initializer_range": 0.3} | changes))


def batch(seed: int = 0, B: int = 2, T: int = 160) -> tuple[torch.Tensor, ...]:
    """X, Y, loss_mask and document_ids [B, T]; a row has documents of 40 and T - 40 tokens."""
    generator = torch.Generator().manual_seed(seed)
    X, Y = torch.randint(97, (2, B, T), generator=generator)
    loss_mask = (torch.rand(B, T, generator=generator) < 0.7).float()
    return X, Y, loss_mask, (torch.arange(T) >= 40).long().expand(B, T).contiguous()


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def largest_error(found: dict, expected: dict) -> float:
    """The largest difference of any tensor, in units of that tensor's largest value."""
    assert found.keys() == expected.keys()
    return max(
        ((found[n] - e).abs().max() / e.abs().max().clamp(min=1e-6)).item()
        for n, e in expected.items()
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("T", [96, 128, 300, 1040])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)], ids=["fp32", "bf16"]
)
def test_blockwise_attention_equals_that_of_torch(T, packed, dtype, tolerance):
    """Output and gradients are the stock float32 kernel's, rows of any length, packed or not."""
    torch.manual_seed(T)
    B, A, K, D = 2, 4, 2, 16
    leaves = [torch.randn(B, heads, T, D) * 2 for heads in (A, K, K)]
    upstream = torch.randn(B, A, T, D)
    lengths = torch.tensor([T // 3, T // 2 - T // 3, T - T // 2])
    documents = torch.repeat_interleave(torch.arange(3), lengths).expand(B, T)
    rows = packed_rows(documents)

    def run(attend, dtype):
        q, k, v = (leaf.to(dtype).requires_grad_() for leaf in leaves)
        y = attend(q, k, v)
        y.backward(upstream.to(dtype))
        return {"y": y.float(), "q": q.grad.float(), "k": k.grad.float(), "v": v.grad.float()}

    def stock(q, k, v):
        mask = rows.mask if packed else None
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=not packed, enable_gqa=True)

    found = run(lambda q, k, v: blockwise_attention(q, k, v, rows.runs if packed else None), dtype)
    assert largest_error(found, run(stock, torch.float32)) <= tolerance


def continuing_rows(B: int, T: int):
    """document_ids and prefixes [B, T] of prompts with three continuations each, of any length."""
    generator = torch.Generator().manual_seed(T)
    documents, prefixes = (torch.zeros(B, T, dtype=torch.int64) for _ in range(2))
    for row in range(B):
        at = document = 0
        while at < T:
            document += 1
            if document % 4 == 1:
                prompt = document
            end = at + int(torch.randint(1, T // 3, (), generator=generator))
            documents[row, at:end], prefixes[row, at:end] = document, prompt
            at = end
    return documents, prefixes


def seen(documents, prefixes):
    """bool [B, 1, T, T] of what may be looked at, pair by pair."""
    B, T = documents.shape
    mask = torch.zeros(B, 1, T, T, dtype=torch.bool)
    for b in range(B):
        ids, before = documents[b].tolist(), prefixes[b].tolist()
        for i in range(T):
            mask[b, 0, i, : i + 1] = torch.tensor([j in (ids[i], before[i]) for j in ids[: i + 1]])
    return mask


@pytest.mark.parametrize("T", [96, 300])
def test_every_kernel_knows_what_is_continued(T, monkeypatch):
    """The mask, attention by blocks and flex_attention's blocks look at a prefix, and no more."""
    B, A, K, D = 2, 4, 2, 16
    documents, prefixes = continuing_rows(B, T)
    mask = seen(documents, prefixes)
    rows = packed_rows(documents, prefixes=prefixes)
    assert torch.equal(rows.mask, mask)
    leaves = [torch.randn(B, heads, T, D) * 2 for heads in (A, K, K)]

    def run(attend):
        q, k, v = (leaf.clone().requires_grad_() for leaf in leaves)
        y = attend(q, k, v)
        (y * torch.arange(D)).sum().backward()
        return {"y": y.detach(), "q": q.grad, "k": k.grad, "v": v.grad}

    expected = run(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True))
    found = run(lambda q, k, v: blockwise_attention(q, k, v, rows.runs, rows.prefixes))
    assert largest_error(found, expected) <= 1e-5

    def by_blocks(q, k, v, documents, prefixes):
        rows = packed_rows(documents, prefixes=prefixes)
        return attention(q, k, v, rows._replace(blocks=document_blocks(rows.runs, prefixes)))

    compiled = torch.compile(by_blocks, dynamic=False, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr("model.attention.LONGEST_BLOCKWISE", 0)  # else chosen on a CPU
    with torch.no_grad():
        found = compiled(*leaves, documents, prefixes)
    assert (found - expected["y"]).abs().max() <= 1e-5


def test_document_starts_are_where_the_id_changes():
    """Equal ids that do not touch are two documents."""
    starts = document_starts(torch.tensor([[7, 7, 9, 9, 9, 7]]))
    assert starts.tolist() == [[True, False, True, False, False, True]]


def test_document_blocks_say_what_the_mask_says(monkeypatch):
    """flex_attention by blocks of packed documents computes what the stock kernel does, masked."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 300, 16) for heads in (4, 2, 2))
    documents = (torch.arange(300) // torch.tensor([[70], [130]])).contiguous()

    def by_blocks(q, k, v, documents):
        rows = packed_rows(documents)
        rows = rows._replace(blocks=document_blocks(rows.runs))
        return attention(q, k, v, rows)

    compiled = torch.compile(by_blocks, dynamic=False, fullgraph=True, backend="aot_eager")
    expected = attention(q, k, v, packed_rows(documents))
    monkeypatch.setattr("model.attention.LONGEST_BLOCKWISE", 0)  # else chosen on a CPU
    with torch.no_grad():
        found = compiled(q, k, v, documents)
    assert (found - expected).abs().max() <= 1e-5


def test_document_bounds_are_the_first_tokens_and_then_the_end():
    """Counted through all rows, one size whatever the documents; too small a one is an error."""
    runs = torch.tensor([[1, 1, 2, 2, 2], [1, 2, 3, 3, 3]])
    bounds = document_bounds(runs, documents_per_row=4)
    assert bounds.tolist() == [0, 2, 5, 6, 7, 10, 10, 10, 10]
    compiled = torch.compile(document_bounds, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(runs, documents_per_row=4), bounds)
    assert bounds.dtype == torch.int32
    assert document_bounds(runs[:1], 2).tolist() == [0, 2, 5]
    with pytest.raises(RuntimeError, match="more than documents_per_row"):
        document_bounds(runs, documents_per_row=2)


def looped_varlen(q, k, v, cu_q, cu_k, max_q, max_k, causal, deterministic):
    """What flash_attn_varlen_func's documentation says, one sequence after the other.

    q [tokens, A, D], k and v [tokens, K, D]; sequence i holds the tokens cu[i] to cu[i + 1] - 1.
    """
    assert cu_q.dtype == cu_k.dtype == torch.int32 and q.dtype in (torch.float16, torch.bfloat16)
    assert len(q) == len(k) == cu_q[-1] and causal and not deterministic
    pieces = []
    for start, end in zip(cu_q.tolist(), cu_q[1:].tolist()):
        assert end - start <= min(max_q, max_k)
        if end > start:
            rows = (t[start:end].transpose(0, 1)[None] for t in (q, k, v))
            y = F.scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=True)
            pieces.append(y[0].transpose(0, 1))
    return torch.cat(pieces)


def test_packed_rows_reach_flash_attn_as_sequences(monkeypatch):
    """The model's loss and gradients through flash-attn's interface are those through a mask.

    A loop stands in for the package: this shows what it is given. test_gpu.py runs the package.
    """
    model = small_model()
    X, Y, loss_mask, _ = batch(T=150)
    documents = (torch.arange(150) // torch.tensor([[40], [67]])).contiguous()
    calls = []

    def run():
        with torch.autocast("cpu", torch.bfloat16):
            loss = masked_cross_entropy(model(X, documents)[0], Y, loss_mask)
        loss.backward()
        return {"loss": loss.detach()} | gradients(model)

    def counted(*args, **kwargs):
        calls.append(len(args[3]))
        return looped_varlen(*args, **kwargs)

    expected = run()
    monkeypatch.setattr("model.attention.flash_attn_varlen_func", counted)
    monkeypatch.setattr("model.model.flash_attn_serves", lambda *args: True)
    assert largest_error(run(), expected) == 0  # documents_per_row is not known: the mask
    model.documents_per_row = 5
    found = run()
    assert calls == [2 * 5 + 1] * model.config.num_hidden_layers
    assert largest_error(found, expected) <= 6e-2


CASES = {  # changes, packed, dtype, largest error as a share of the largest value
    "dense_packed": ({}, True, torch.float32, 1e-4),
    "moe": (MOE, False, torch.float32, 1e-4),
    "bf16": ({"tie_word_embeddings": False}, False, torch.bfloat16, 6e-2),
}


@pytest.mark.parametrize(
    "case", ["dense_packed", *(pytest.param(c, marks=pytest.mark.slow) for c in ("moe", "bf16"))]
)
def test_compiled_equals_eager_without_breaks_or_recompilation(case):
    """Model and loss are one graph each, made once; loss and gradients are those of eager float32.

    In bfloat16 within its rounding, and dense: rounding would send tokens to other experts.
    """
    changes, packed, dtype, tolerance = CASES[case]
    model = small_model(num_hidden_layers=1, **changes)  # every layer is compiled alike
    compile = compute.compiler(True, torch.device("cpu"), total_steps=1)
    compiled, masked_loss = compile(model), compile(masked_cross_entropy)

    def step(run, loss_of, dtype, seed):
        X, Y, loss_mask, document_ids = batch(seed)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits, aux_loss = run(X, document_ids if packed else None)
            loss = loss_of(logits, Y, loss_mask) + aux_loss
        loss.backward()
        return loss.item(), gradients(model)

    for seed in range(3):
        expected_loss, expected = step(model, masked_cross_entropy, torch.float32, seed)
        loss, found = step(compiled, masked_loss, dtype, seed)
        assert loss == pytest.approx(expected_loss, rel=tolerance)
        assert largest_error(found, expected) <= tolerance
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2  # the model and the loss


@pytest.mark.parametrize("packed", [False, True])
def test_experts_in_bfloat16_are_one_graph(packed):
    """Grouped products are traced in bfloat16 too, backward pass included, with no break."""
    model = small_model(**MOE)
    X, Y, loss_mask, document_ids = batch()
    compiled = torch.compile(model, dynamic=False, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        logits, aux_loss = compiled(X, document_ids if packed else None)
        loss = masked_cross_entropy(logits, Y, loss_mask) + aux_loss
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())
    assert model.expert_load.sum(1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(("k", "norm"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("T", [31, 311])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("products", ["grouped", "one by one", "blocks"])
def test_grouped_experts_equal_a_loop_over_experts(monkeypatch, products, k, norm, compiled, T):
    """Output and all gradients are those of masked loops, for experts with no token as well.

    With 311 tokens a row, slices of experts are filled up; with 31 they are too short for it.
    The other products are those of GPUs on which grouped ones would wait, for many and few tokens.
    """
    monkeypatch.setattr("model.moe.grouped_mm_waits", lambda *args: products != "grouped")
    monkeypatch.setattr("model.moe.BLOCK", 256 if products == "blocks" else 0)
    if products == "one by one":
        monkeypatch.setattr("model.moe._product", _product_by_product)
    config = LMConfig(**NUMBERS | MOE | {
        "num_experts_per_tok": k, "num_experts": 6, "norm_topk_prob": norm,
        "moe_intermediate_size": NUMBERS["intermediate_size"],
    })  # fmt: skip
    torch.manual_seed(k)
    layer = MoEFeedForward(config)
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    layer.gate.weight.data[5] = 0  # and far behind: see the bias of x below
    x = torch.randn(2, T, 32) + layer.gate.weight[0].detach() * 3
    run = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    upstream = torch.randn(2, T, 32)

    def loop(x):
        tokens = x.view(-1, 32)
        probs = layer.gate(tokens).softmax(-1)
        chosen = probs.topk(k).indices
        if norm:
            probs = probs / probs.gather(1, chosen).sum(1, keepdim=True)
        total = torch.zeros_like(tokens)
        for e in range(6):
            gate, up, down = layer.gate_proj[e], layer.up_proj[e], layer.down_proj[e]
            y = (F.silu(tokens @ gate.T) * (tokens @ up.T)) @ down.T
            total = total + y * (probs[:, e] * (chosen == e).any(1))[:, None]
        assert len(chosen.unique()) < 6  # someone is idle
        return total.view_as(x)

    def measure(function):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        y.backward(upstream)
        return {"y": y.detach(), "x": leaf.grad} | gradients(layer)

    assert largest_error(measure(lambda x: run(x)[0]), measure(loop)) <= 1e-4


def test_expert_load_is_the_share_of_tokens_each_expert_got():
    """model.expert_load [layers, E] counts the router's choices of the last forward pass."""
    model = small_model(**MOE)
    X = batch()[0]
    choices = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(
            lambda _module, _input, output: choices.append(output[1].topk(2).indices.flatten())
        )
    model(X)
    for load, chosen in zip(model.expert_load, choices, strict=True):
        assert torch.allclose(load, chosen.bincount(minlength=4) / len(chosen))
    assert not any("expert_load" in name for name in model.state_dict())


@pytest.mark.parametrize("changes", [{}, MOE, {"dropout": 0.2}], ids=["dense", "moe", "dropout"])
def test_activation_checkpointing_changes_no_bit(changes):
    """Loss and gradients have the same bits; fewer tensors wait for the backward pass."""
    model = small_model(**changes)
    X, Y, loss_mask, document_ids = batch()
    results, kept = [], []

    def pack(tensor):
        kept[-1] += tensor.numel()
        return tensor

    for model.activation_checkpointing in (False, True):
        kept.append(0)
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits, aux_loss = model(X, document_ids)
        (masked_cross_entropy(logits, Y, loss_mask) + aux_loss).backward()
        results.append(gradients(model))
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_in_chunks_is_the_same_loss(monkeypatch, dtype):
    """Large logits are taken some rows at a time: same loss, same gradients, same log p."""
    _, Y, loss_mask, document_ids = batch()
    torch.manual_seed(0)
    logits = (torch.randn(*Y.shape, 97) * 3).to(dtype)
    results = []
    for chunk in (2**26, 97 * 50, 10):  # all at once, 50 tokens (the last fewer), one token
        monkeypatch.setattr(losses, "CHUNK", chunk)
        leaf = logits.clone().requires_grad_()
        loss = masked_cross_entropy(leaf, Y, loss_mask)
        loss.backward()
        log_probs = document_log_probs(logits, Y, loss_mask, document_ids + 1, 2)
        results.append((loss.detach(), leaf.grad, log_probs, token_cross_entropy(logits, Y)))
    for other in results[1:]:
        for found, expected in zip(other, results[0]):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("changes", [{}, MOE], ids=["dense", "moe"])
def test_the_compiled_step_on_a_gpu(changes, packed):
    """On CUDA in float32, loss and gradients are those of the CPU."""
    model = small_model(**changes)
    X, Y, loss_mask, document_ids = batch(T=300)
    document_ids = document_ids if packed else None
    logits, aux_loss = model(X, document_ids)
    expected_loss = masked_cross_entropy(logits, Y, loss_mask) + aux_loss
    expected_loss.backward()
    expected = gradients(model)

    model.cuda()
    X, Y, loss_mask = X.cuda(), Y.cuda(), loss_mask.cuda()
    document_ids = document_ids.cuda() if packed else None
    compile = compute.compiler(None, torch.device("cuda"), total_steps=1)
    compiled, masked_loss = compile(model), compile(masked_cross_entropy)
    logits, aux_loss = compiled(X, document_ids)
    loss = masked_loss(logits, Y, loss_mask) + aux_loss
    loss.backward()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-3)
    assert largest_error({n: p.grad.cpu() for n, p in model.named_parameters()}, expected) <= 1e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("changes", [{}, MOE], ids=["dense", "moe"])
def test_bfloat16_on_a_gpu(changes, packed):
    """In bfloat16 the loss is near float32's, gradients are finite, no step waits for the GPU."""
    if changes and grouped_mm_waits(torch.device("cuda"), torch.bfloat16):
        pytest.skip("torch's grouped product waits on this GPU, as a run says")
    model = small_model(**changes).cuda()
    X, Y, loss_mask, document_ids = (t.cuda() for t in batch(T=300))
    document_ids = document_ids if packed else None
    with torch.no_grad():
        expected = masked_cross_entropy(model(X, document_ids)[0], Y, loss_mask)
    compile = compute.compiler(None, torch.device("cuda"), total_steps=1)
    compiled, masked_loss = compile(model), compile(masked_cross_entropy)
    for sync in ("default", "error"):  # the first step compiles, and may wait
        model.zero_grad()
        torch.cuda.set_sync_debug_mode(sync)
        try:
            with torch.autocast("cuda", torch.bfloat16):
                logits, aux_loss = compiled(X, document_ids)
                loss = masked_loss(logits, Y, loss_mask)
            (loss + aux_loss).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert loss.item() == pytest.approx(expected.item(), rel=5e-2)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_when_compiling_is_the_default(monkeypatch):
    """None: on CUDA with Triton, and on a CPU in long runs; a given flag is obeyed."""
    monkeypatch.setattr("training.compute.find_spec", lambda name: name == "triton")
    cpu, cuda = torch.device("cpu"), torch.device("cuda")

    def compiles(flag, device, steps):
        return (
            compute.compiler(flag, device, steps)(masked_cross_entropy) is not masked_cross_entropy
        )

    assert compiles(None, cuda, 1) and compiles(True, cpu, 1)
    assert not compiles(False, cuda, 9999) and not compiles(None, cpu, 100)
    assert compiles(None, cpu, 5000)
    monkeypatch.setattr("training.compute.find_spec", lambda name: None)
    assert compiles(True, cuda, 1) and not compiles(None, cuda, 5000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cpu"}, "the device is cpu"),
        ({"compile": False}, "--no-compile"),
        ({"accumulation_steps": 2}, "--accumulation_steps above 1"),
        ({"auto_batch": True}, "--auto_batch"),
        ({"use_moe": True}, "experts"),
        ({"world_size": 2}, "for one process"),
    ],
)
def test_cuda_graphs_are_refused_where_they_would_be_wrong(changes, message):
    """One line that names the flag; without the flag, or the change, nothing is refused."""

    def check(cuda_graphs, device="cuda", world_size=1, use_moe=False, **flags):
        flags = {"compile": None, "accumulation_steps": 1, "auto_batch": False} | flags
        ranks = Ranks(0, 0, world_size, torch.device(device))
        config = LMConfig(**NUMBERS, use_moe=use_moe)
        compute.check_cuda_graphs(SimpleNamespace(cuda_graphs=cuda_graphs, **flags), ranks, config)

    with pytest.raises(ValueError, match=rf"--cuda_graphs: .*{message}"):
        check(True, **changes)
    check(False, **changes)
    check(True)
