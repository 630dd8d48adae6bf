"""--compile with two processes, torchrun's default on GPUs: DistributedDataParallel and FSDP.

Here with gloo on a CPU. The quick test stops where a back end would begin (aot_eager).
"""

import pytest

from tests.small_runs import figures, make_inputs, run

BY_HAND = """
import gc
from types import SimpleNamespace
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from model.config import LMConfig
from model.model import MiniMindLM
from training.distributed import (
    data_parallel, gradient_sync, init_distributed, shard, shutdown, whole)
from training.losses import masked_cross_entropy

ranks = init_distributed("cpu")
generator = torch.Generator().manual_seed(0)
X = torch.randint(97, (2, 2, 64), generator=generator)
documents = (torch.arange(64) >= 30).long().expand(2, 2, 64).contiguous()

def loss_of(model, rank):
    logits, aux_loss = model(X[rank], documents[rank])
    return masked_cross_entropy(logits, X[rank], torch.ones(2, 64)) + aux_loss

def computes(graph, name):
    parts = [part for part in graph.modules() if hasattr(part, "graph")]
    return any(name in str(node.target) for part in parts for node in part.graph.nodes)

experts = {"use_moe": True, "num_experts": 4, "num_experts_per_tok": 2}
for fsdp in (False, True):
    for checkpointing, changes in ((True, {}), (False, experts)):
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        model = MiniMindLM(LMConfig(
            vocab_size=1000, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, intermediate_size=1024, initializer_range=0.1,
            **changes))
        for rank in range(2):
            loss_of(model, rank).backward()
        expected = {name: p.grad / 2 for name, p in model.named_parameters()}
        model.zero_grad(set_to_none=True)

        flags = SimpleNamespace(dtype="float32")
        model = shard(model, ranks, flags) if fsdp else model
        model.activation_checkpointing = checkpointing
        backend = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(model, dynamic=False, backend=backend)
        parallel = compiled if fsdp else data_parallel(compiled, ranks)
        for micro_step in (1, 2):
            with gradient_sync(parallel, at_boundary=micro_step == 2):
                loss_of(parallel, ranks.rank).backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(whole(p.grad) / 2, expected[name], rtol=1e-3, atol=1e-5)

        blocks = sum(computes(graph, "silu") for graph in backend.graphs)
        if fsdp:
            assert blocks == 1, blocks  # one graph, for all blocks alike
        else:  # the whole model, cut where there is 1 MB to send
            assert blocks and len(backend.graphs) == 2 and not counters["graph_break"]
        del parallel, compiled, model
        gc.collect()
shutdown()
print("as expected")
"""


@pytest.fixture
def flags(tmp_path, tiny_tokenizer_dir):
    return make_inputs(tmp_path, tiny_tokenizer_dir)


def test_gradients_of_two_compiled_processes(tmp_path):
    """Those of one that is not compiled; every block is compiled, once, also if checkpointed."""
    path = tmp_path / "two.py"
    path.write_text(BY_HAND)
    assert run(path, tmp_path, processes=2).count("as expected") == 2


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [[], ["--fsdp"]], ids=["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("script", "more"),
    [
        ("pretrain", ["--use_moe", "--num_experts", 4]),
        ("full_sft", ["--activation_checkpointing", "--optimizer", "muon"]),
        ("dpo", []),
    ],
)
def test_scripts_in_two_compiled_processes(tmp_path, flags, script, more, parallel):
    """Compiled to machine code, every logged number is that of one process without the compiler.

    But for the experts' load, which is the first rank's, and shares of pairs ranked right: at the
    start all are ties, which rounding decides.
    """
    more = [*flags[script], "--dropout", 0, "--eval_interval", 6, *more]
    run(script, tmp_path / "one", *more, "--batch_size", 2)
    run(script, tmp_path / "two", *more, "--batch_size", 1, "--compile", *parallel, processes=2)
    found, expected = figures(tmp_path / "two"), figures(tmp_path / "one")
    assert len(found) == len(expected)
    others = {"max_expert_load", "accuracy", "val_accuracy"}
    for a, b in zip(found, expected):
        assert a.keys() == b.keys()
        for name in a.keys() - others:
            assert a[name] == pytest.approx(b[name], rel=2e-3, abs=1e-4), name
