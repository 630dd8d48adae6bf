"""docs/gpus.md: its computed numbers are those of its formulas, and what it counted is still so."""

import re
from pathlib import Path

import pytest
import torch

from model.attention import flex_attention_serves, shared_memory
from model.config import PRESETS, LMConfig
from model.model import MiniMindLM
from training.losses import masked_cross_entropy
from training.speed import flops_per_token

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "gpus.md").read_text(encoding="utf-8")
RATES = {"3090": 71e12, "4090": 165e12, "A100": 312e12, "H100": 989e12}  # FLOP/s
BANDWIDTHS = {"3090": 936e9, "4090": 1008e9, "A100": 2039e9, "H100": 3350e9}  # bytes/s


def rows_of(title: str) -> dict[str, list[str]]:
    """The table below the line that begins with `title`: cells by the first one."""
    table = PAGE[PAGE.index(f"\n{title}") :].split("\n\n")[1].splitlines()
    cells = [line.strip("| ").split(" | ") for line in table[2:]]
    return {name: row for names, *row in cells for name in re.findall(r"`(\w+)`", names)}


@pytest.fixture(scope="module")
def models() -> dict[str, MiniMindLM]:
    with torch.device("meta"):
        return {name: MiniMindLM(LMConfig.preset(name)) for name in PRESETS}


def kilobytes() -> dict[str, float]:
    """What a token keeps, compiled, as the page says."""
    return {name: float(row[2].removesuffix(" KB")) for name, row in
            rows_of("bfloat16, attention by torch's kernel").items()}  # fmt: skip


def test_memory_is_what_the_formula_gives(models):
    """P, 18 P, and the rows that fit 24, 40 and 80 GB."""
    table = rows_of("bfloat16, attention by torch's kernel")
    assert set(table) == set(PRESETS)
    for name, row in table.items():
        P = models[name].num_parameters()
        assert row[:2] == [f"{P / 1e6:.1f}M", f"{18 * P / 1e9:.1f} GB"]
    fitting = rows_of("Rows of 512 tokens that 90%")
    assert set(fitting) == {"small", "base", "large", "moe"}
    for name, row in fitting.items():
        P, a = models[name].num_parameters(), kilobytes()[name] * 1e3
        expected = [int((0.9 * GB * 1e9 - 18 * P) / (a * 512)) for GB in (24, 40, 80)]
        assert [int(cell) for cell in row] == pytest.approx(expected, rel=0.005)


def test_time_is_what_the_formula_gives(models):
    """Hours for 10⁹ tokens at a share of 40%, and the most that decoding can do."""
    table = rows_of("Hours for 10⁹ tokens")
    for name, row in table.items():
        flops = flops_per_token(models[name], 256)
        expected = [1e9 * flops / (0.4 * rate) / 3600 for rate in RATES.values()]
        assert [float(cell) for cell in row] == pytest.approx(expected, abs=0.006)
    N = models["base"].num_parameters()
    assert models["base"].config.tie_word_embeddings  # all weights but norms are products' ones
    text = PAGE[PAGE.index("bandwidth / (2 bytes") :].split("\n\n")[0]
    found = [int(n.replace(",", "")) for n in re.findall(r"\d+,\d00(?= |\n)", text)]
    expected = [bandwidth / (2 * N) for bandwidth in BANDWIDTHS.values()]
    assert found == pytest.approx(expected, rel=0.01)


def test_what_the_page_says_of_shared_memory(monkeypatch):
    """99 KB: float32 above head_dim 64 and half precision above 128 do not fit."""
    assert {LMConfig.preset(name).head_dim for name in PRESETS} == {64, 96}
    for capability in ((8, 6), (8, 9), (12, 0)):
        assert shared_memory(capability) == 99 * 1024
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d, c=capability: c)
        for dtype, most in ((torch.float32, 64), (torch.bfloat16, 128), (torch.float16, 128)):
            fits = [flex_attention_serves(torch.device("cuda"), dtype, most + i) for i in (0, 2)]
            assert fits == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "small"])
def test_what_a_token_keeps_is_what_the_page_says(monkeypatch, name):
    """Counted again: bytes that autograd saves, compiled as far as torch decides what to keep."""
    monkeypatch.setattr("model.attention.LONGEST_BLOCKWISE", 0)  # torch's kernel, as on a GPU
    model = MiniMindLM(LMConfig.preset(name))
    own, kept = {p.data_ptr() for p in model.parameters()}, []
    run, loss_of = (
        torch.compile(f, backend="aot_eager_decomp_partition", dynamic=False)
        for f in (model, masked_cross_entropy)
    )

    def count(T: int) -> int:
        kept.clear()
        ids = torch.randint(6400, (1, T))
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            loss_of(run(ids)[0], ids, torch.ones(1, T))
        storages = {t.data_ptr(): t.untyped_storage().nbytes() for t in kept}
        return sum(size for pointer, size in storages.items() if pointer not in own)

    per_token = (count(256) - count(128)) / 128
    assert per_token / 1e3 == pytest.approx(kilobytes()[name], rel=0.02)
