"""The speed line: what an update's arithmetic is counted as, and what is written down."""

import json
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model import lora
from model.config import LMConfig
from model.model import MiniMindLM
from training.distributed import Ranks
from training.run_log import SPEEDS, RunLog
from training.speed import flops_per_token, matmul_rate
from training.state import RunState


@pytest.mark.parametrize("kind", ["dense", "untied", "lora"])
def test_flops_are_those_that_torch_counts(kind):
    """FlopCounterMode over forward and backward, in rows so short that attention hardly counts."""
    model = MiniMindLM(LMConfig.preset("demo", tie_word_embeddings=kind != "untied"))
    if kind == "lora":
        lora.attach(model, lora.LoRAConfig(lora_rank=1))
    X = torch.zeros(4, 16, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        logits, _ = model(X)
        logits.sum().backward()
    ours = flops_per_token(model, 8) * X.numel()
    # adapters' own products, and the first layer's frozen inputs, are left out
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_attention_grows_with_the_context():
    """12 L A D more for every token looked at: four products forward, eight backward."""
    model = MiniMindLM(LMConfig.preset("demo"))
    config = model.config
    more = flops_per_token(model, 300) - flops_per_token(model, 200)
    per_token = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    assert more == 100 * per_token


def test_only_the_experts_a_token_goes_through_count():
    """A mixture of experts with k of them costs what k feed-forward blocks and the router cost."""
    sizes = {"moe_intermediate_size": 128, "use_moe": True, "num_experts": 4}
    one, two = (
        flops_per_token(
            MiniMindLM(
                LMConfig.preset("demo", num_experts_per_tok=k, norm_topk_prob=k > 1, **sizes)
            ),
            8,
        )
        for k in (1, 2)
    )
    config = LMConfig.preset("demo")
    assert two - one == 6 * config.num_hidden_layers * 3 * config.hidden_size * 128


def test_the_rate_is_a_rate():
    """A longer measurement gives no lower rate than a product timed by hand."""
    rate = matmul_rate(torch.device("cpu"), torch.float32, seconds=0.3)
    a = torch.randn(1024, 1024)
    a @ a
    begin = time.perf_counter()
    a @ a
    by_hand = 2 * 1024**3 / (time.perf_counter() - begin)
    assert 0.3 * by_hand < rate < 1e14


def test_the_peak_on_a_gpu_is_that_of_training(tmp_path, monkeypatch):
    """What was tried and measured before the log is opened does not count."""
    peak = {"bytes": 50e9}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: peak["bytes"])
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda _device: peak.update(bytes=1e9)
    )
    ranks = Ranks(0, 0, 1, torch.device("cuda"))
    log = RunLog(tmp_path, 10, RunState(), True, None, 0.0, ranks, torch.float32)
    peak["bytes"] = max(peak["bytes"], 2e9)
    log.metrics(1, speed="tokens")
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["memory_gb"] == 2


OF_OTHER_RUNS = {"pairs_per_s", "examples_per_s", "prompts_per_s", "sampling_s", "updating_s"}


def test_the_speed_line(tmp_path, capsys):
    """Every field is written, adds up, and starts again after a pause."""
    state = RunState()
    ranks = Ranks(0, 0, 1, torch.device("cpu"))
    log = RunLog(tmp_path, 10, state, True, None, 1e6, ranks, torch.float32)
    for batch in log.waiting([1, 2]):
        time.sleep(0.02 * batch)
        log.step(100)
    log.metrics(2, speed="tokens", loss=1.5)
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert set(record) == {"step", "loss", *SPEEDS} - OF_OTHER_RUNS
    assert 0 < record["tokens_per_s"] < 200 / 0.06
    assert 0 < record["mfu"] < 1 and 0 <= record["data_wait"] < 0.5
    # 8 of 10 steps are left, at 200 tokens in 2 steps
    assert record["minutes_left"] == pytest.approx(8 * 100 / record["tokens_per_s"] / 60)
    shown = capsys.readouterr().out
    assert "step  2/10  loss 1.5000" in shown and "tokens/s  MFU" in shown
    assert "data wait 0%" in shown and "min left" in shown
