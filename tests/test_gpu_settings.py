"""Settings that only a GPU, or several processes, feel."""

import subprocess
import sys

from tests.small_runs import REPOSITORY, run

DETERMINISTIC = """
import threading
from training.distributed import init_distributed
init_distributed("cpu", deterministic=True)
import torch, torch._inductor.config as config
print(torch.are_deterministic_algorithms_enabled(), config.deterministic)
thread = threading.Thread(target=lambda: print(config.deterministic))
thread.start(), thread.join()
"""
IN_TWO = """
import gc, torch
from model.config import LMConfig
from model.model import MiniMindLM
from training.distributed import data_parallel, init_distributed, shutdown
ranks = init_distributed("cpu")
torch.manual_seed(0)
model = MiniMindLM(LMConfig(
    vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, use_moe=True, num_experts=4, initializer_range=0.3))
X = torch.randint(97, (2, 3, 50))
loads, expected = [], []
for rank in range(2):  # what each rank's rows come to, on a model that nobody shares
    logits, aux_loss = model(X[rank])
    (logits.square().mean() + aux_loss).backward()
    loads.append(model.expert_load.clone())
expected = {name: p.grad / 2 for name, p in model.named_parameters()}
model.zero_grad()
parallel = data_parallel(model, ranks)
for _ in range(2):
    model.zero_grad()
    logits, aux_loss = parallel(X[ranks.rank])
    (logits.square().mean() + aux_loss).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-6)
assert not torch.equal(*loads) and torch.equal(model.expert_load, loads[ranks.rank])
assert not parallel.will_sync_module_buffers()
assert all(p.grad._is_view() for p in model.parameters())
del parallel
shutdown()
print("as expected")
"""


def test_deterministic_reaches_every_thread():
    """The compiler measures nothing on the device, whoever compiles."""
    done = subprocess.run(
        [sys.executable, "-c", DETERMINISTIC], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True"] * 3, done.stderr


def test_ranks_share_gradients_and_nothing_else(tmp_path):
    """Their mean, in the memory it was sent from; buffers, as experts' loads, stay their own."""
    path = tmp_path / "two.py"
    path.write_text(IN_TWO)
    assert run(path, tmp_path, processes=2).count("as expected") == 2
