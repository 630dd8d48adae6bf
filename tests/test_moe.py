"""model/moe.py computes what transformers' Qwen3MoeForCausalLM computes."""

import json
from pathlib import Path

import pytest
import torch
from oracle_models import (
    open_there,
    our_model,
    ours,
    pair,
    random_ids,
    random_numbers,
    same_bits,
    save_here,
    save_there,
    shake,
    their_model,
)
from small_runs import TINY
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

import train_dpo
import train_full_sft
import train_lora
import train_pretrain
from model.config import LMConfig
from model.hf_format import load_model
from model.moe import BLOCK, MoEFeedForward, block_owners, load_balancing_loss, sort_by_expert
from training.losses import masked_cross_entropy

# seed, experts per token, renormalised
CASES = [(0, 1, False), (1, 1, False), (2, 2, False), (3, 2, False), (4, 2, True), (5, 2, True)]
CASES += [(6, 3, True), (7, 1, True)]


def case_numbers(seed: int, k: int, norm: bool) -> dict:
    return random_numbers(seed, moe=True, num_experts_per_tok=k, norm_topk_prob=norm)


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape and a.isfinite().all()
    return (a - b).abs().max().item()


@pytest.mark.parametrize(("seed", "k", "norm"), CASES)
def test_a_folder_written_here_gives_the_same_logits_in_transformers(seed, k, norm, tmp_path):
    """Every MoE configuration we save computes the same in Qwen3MoeForCausalLM."""
    numbers = case_numbers(seed, k, norm)
    model = our_model(numbers, seed)
    theirs = open_there(save_here(model, tmp_path / "ours"))
    ids = random_ids(numbers)
    with torch.no_grad():
        logits, expected = model(ids)[0], theirs(ids).logits
    assert expected.std() > 0.1
    assert largest_difference(logits, expected) <= 1e-4


@pytest.mark.parametrize(("seed", "k", "norm"), CASES)
def test_a_folder_of_transformers_gives_the_same_logits_here(seed, k, norm, tmp_path):
    """Every MoE folder that transformers saves computes the same here, config included."""
    numbers = case_numbers(seed, k, norm)
    theirs = their_model(numbers, seed)
    model = load_model(save_there(theirs, tmp_path / "theirs"))
    assert model.config == ours(numbers)
    ids = random_ids(numbers)
    with torch.no_grad():
        assert largest_difference(model(ids)[0], theirs(ids).logits) <= 1e-4


@pytest.mark.parametrize(("seed", "k", "norm"), CASES[::2])
def test_weights_survive_the_way_through_transformers_bit_by_bit(seed, k, norm, tmp_path):
    """Saved here, opened and saved by transformers, opened here: equal bits."""
    model = our_model(case_numbers(seed, k, norm), seed)
    theirs = open_there(save_here(model, tmp_path / "ours"))
    back = load_model(save_there(theirs, tmp_path / "theirs"))
    assert same_bits(model.state_dict(), back.state_dict())


def test_renormalising_changes_the_logits():
    """norm_topk_prob matters with two experts: the tests above can tell both settings apart."""
    numbers = case_numbers(2, 2, False)
    plain, normed = our_model(numbers), our_model(numbers | {"norm_topk_prob": True})
    ids = random_ids(numbers)
    with torch.no_grad():
        assert largest_difference(plain(ids)[0], normed(ids)[0]) > 0.01


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_the_auxiliary_loss_equals_that_of_transformers(k, masked):
    """load_balancing_loss pools over layers and tokens as transformers does, padding left out."""
    L, B, T, E = 3, 2, 11, 4
    generator = torch.Generator().manual_seed(k)
    router_logits = torch.randn(L, B * T, E, generator=generator) * torch.tensor(
        [3.0, 1.0, 1.0, 0.2]
    )
    router_logits[1] += torch.tensor([2.0, 0.0, 0.0, -2.0])  # layers differ: pooling shows
    mask = torch.ones(B, T, dtype=torch.long)
    mask[0, 6:] = mask[1, 9:] = 0
    mask = mask if masked else None
    expected = load_balancing_loss_func(tuple(router_logits), E, k, mask)
    loss = load_balancing_loss(router_logits, k, mask)
    assert loss.dtype == torch.float32
    assert abs(loss.item() - expected.item()) <= 1e-5
    by_layer = sum(load_balancing_loss_func((layer,), E, k, mask) for layer in router_logits) / L
    assert abs(loss.item() - by_layer.item()) > 1e-3  # a per-layer mean would be seen
    if masked:
        unmasked = load_balancing_loss_func(tuple(router_logits), E, k, None)
        assert abs(loss.item() - unmasked.item()) > 1e-3


@pytest.mark.parametrize(("k", "norm"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_model_returns_the_auxiliary_loss_times_its_coefficient(k, norm, masked, tmp_path):
    """Our second output is router_aux_loss_coef · the aux_loss of transformers, gradient too."""
    numbers = case_numbers(1, k, norm)
    model, theirs = pair(numbers, tmp_path / "m")
    ids = random_ids(numbers, 2, 20)
    mask = torch.ones_like(ids)
    mask[0, 12:] = 0  # on the right, so that causal attention never sees the padding
    mask = mask if masked else None
    aux_loss = model(ids, token_mask=mask)[1]
    expected = theirs(ids, attention_mask=mask, output_router_logits=True).aux_loss
    coefficient = numbers["router_aux_loss_coef"]
    assert abs(aux_loss.item() - coefficient * expected.item()) <= 1e-5 * coefficient * 10
    aux_loss.backward()
    (coefficient * expected).backward()
    gradients = dict(theirs.named_parameters())
    for name, p in model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            assert p.grad.abs().max() > 0
            assert largest_difference(p.grad, gradients[name].grad) <= 1e-5


def test_the_auxiliary_loss_of_padding_alone_is_zero():
    """A batch that is all padding adds 0, not NaN; perfect balance gives k."""
    assert load_balancing_loss(torch.randn(2, 6, 4), 2, torch.zeros(2, 3)).item() == 0
    balanced = torch.eye(4).repeat(1, 3, 1) * 50  # every token is sure, experts equally often
    assert abs(load_balancing_loss(balanced, 1).item() - 1) < 1e-5


@pytest.mark.parametrize(("k", "norm"), [(1, False), (2, False), (2, True)])
def test_gradients_of_the_language_model_loss_equal_those_of_transformers(k, norm, tmp_path):
    """Every parameter, the router above all, gets transformers' gradient from the LM loss alone."""
    numbers = case_numbers(2, k, norm)
    model, theirs = pair(numbers, tmp_path / "m")
    ids = random_ids(numbers, 2, 20)
    loss = masked_cross_entropy(model(ids[:, :-1])[0], ids[:, 1:], torch.ones(2, 19))
    expected = theirs(ids, labels=ids).loss
    assert abs(loss.item() - expected.item()) <= 1e-5
    loss.backward()
    expected.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    mine = {name: p.grad for name, p in model.named_parameters()}
    for name in [name for name in mine if name.endswith("mlp.gate_proj")]:
        up = mine.pop(name.replace("gate_proj", "up_proj"))
        prefix = name.removesuffix("gate_proj")
        mine[prefix + "experts.gate_up_proj"] = torch.cat([mine.pop(name), up], dim=1)
        mine[prefix + "experts.down_proj"] = mine.pop(prefix + "down_proj")
    assert mine.keys() == gradients.keys()
    for name, gradient in mine.items():
        if name.endswith("gate.weight"):
            assert gradient.abs().max() > 1e-5, name
        assert largest_difference(gradient, gradients[name]) <= 1e-5, name


def test_the_preset_routes_as_all_tools_do():
    """Several renormalised experts per token, together as wide as a dense feed-forward."""
    dense = LMConfig.preset("base")
    for config in (LMConfig.preset("moe"), LMConfig.preset("base", use_moe=True)):
        assert config.norm_topk_prob and config.router_learns
        assert 1 < config.num_experts_per_tok < config.num_experts
        active = config.num_experts_per_tok * config.moe_intermediate_size
        assert active == dense.intermediate_size


@pytest.fixture
def one_renormalised_expert(tmp_path, tiny_tokenizer) -> Path:
    """A folder as others write them: one expert per token, renormalised: its weight is 1."""
    folder = tmp_path / "top_1"
    theirs = their_model(case_numbers(1, 1, True) | {"vocab_size": 512})
    save_there(theirs, folder)
    tiny_tokenizer.save(folder, chat_template=True)
    return folder


def flags_of(script: str, base: Path, folder: Path, more=()) -> list[str]:
    data, lines = folder / "data.jsonl", []
    for i in range(8):
        user, good, bad = ({"role": r, "content": f"{c} {i}"} for r, c in (
            ("user", "What is"), ("assistant", "It is"), ("assistant", "No,")))  # fmt: skip
        record = {"text": f"A text, number {i}. " * 40} if script == "train_pretrain" else (
            {"chosen": [user, good], "rejected": [user, bad]} if script == "train_dpo"
            else {"messages": [user, good]})  # fmt: skip
        lines.append(json.dumps(record) + "\n")
    data.write_text("".join(lines))
    return [script, "--init_from", str(base), "--data_path", str(data), "--max_seq_len", "64",
            "--val_fraction", "0.2", "--max_steps", "1", "--device", "cpu", "--dtype", "float32",
            "--no-compile", "--cache_dir", str(folder / "cache"), "--out_dir", str(folder / "out"),
            *more]  # fmt: skip


@pytest.mark.parametrize("script", [train_pretrain, train_full_sft, train_dpo])
def test_a_router_that_would_learn_nothing_is_not_trained(
    monkeypatch, tmp_path, one_renormalised_expert, script
):
    """Training all weights of such a folder is refused by name, before the data is read."""
    flags = flags_of(script.__name__, one_renormalised_expert, tmp_path)
    monkeypatch.setattr("sys.argv", flags)
    with pytest.raises(ValueError, match=r"--init_from .*top_1: .*weight is always 1.*adapters"):
        script.main()
    assert not (tmp_path / "out").exists()
    if script is train_pretrain:
        flags = [*flags[:1], *flags[3:], "--use_moe", "--num_experts_per_tok", "1"]
        monkeypatch.setattr("sys.argv", flags)
        with pytest.raises(ValueError, match=r"--num_experts_per_tok 1: .*--no-norm_topk_prob"):
            script.main()


@pytest.mark.parametrize("script", [train_lora, train_dpo])
def test_adapters_on_other_layers_are_trained(
    monkeypatch, tmp_path, one_renormalised_expert, script
):
    """Such a folder takes adapters on its attention, and none on its router."""
    flags = flags_of(script.__name__, one_renormalised_expert, tmp_path, ["--lora_rank", "2"])
    monkeypatch.setattr("sys.argv", [*flags, "--lora_targets", "q_proj", "gate"])
    with pytest.raises(ValueError, match=r"--lora_targets gate: .*weight is always 1"):
        script.main()
    monkeypatch.setattr("sys.argv", flags)
    script.main()
    assert (tmp_path / "out/step-00000001/adapter_model.safetensors").is_file()


def test_a_run_of_the_earlier_preset_goes_on_with_its_own_numbers(monkeypatch, tmp_path):
    """One expert of four, not renormalised: opens, resumes with these flags, not with others."""
    flags = flags_of("train_pretrain", tmp_path, tmp_path)
    flags = [*flags[:1], *flags[3:], *TINY, "--use_moe"]
    earlier = ["--num_experts", "4", "--num_experts_per_tok", "1", "--no-norm_topk_prob"]
    monkeypatch.setattr("sys.argv", [*flags, *earlier])
    train_pretrain.main()
    config = load_model(tmp_path / "out/step-00000001").config
    assert (config.num_experts, config.num_experts_per_tok) == (4, 1)
    assert not config.norm_topk_prob and config.moe_intermediate_size == config.intermediate_size
    flags[flags.index("--max_steps") + 1] = "2"
    monkeypatch.setattr("sys.argv", flags)
    with pytest.raises(ValueError, match=r"--resume.*num_experts.*4.*8"):
        train_pretrain.main()
    monkeypatch.setattr("sys.argv", [*flags, *earlier])
    train_pretrain.main()
    assert (tmp_path / "out/step-00000002").is_dir()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 2, 7, 64])
def test_grouped_experts_equal_a_loop_over_tokens(tokens, dtype):
    """Sorting tokens by expert and back gives each token the weighted sum of its own experts."""
    config = LMConfig(
        hidden_size=16,
        moe_intermediate_size=24,
        use_moe=True,
        num_experts=8,
        num_experts_per_tok=3,
        norm_topk_prob=True,
    )
    layer = MoEFeedForward(config)
    shake(layer, tokens)
    layer.to(dtype)
    x = torch.randn(1, tokens, 16, generator=torch.Generator().manual_seed(tokens)).to(dtype)
    with torch.no_grad():
        y, router_logits = layer(x)
        expected = torch.zeros(tokens, 16)
        gate, up, down = (w.float() for w in (layer.gate_proj, layer.up_proj, layer.down_proj))
        for n, token in enumerate(x[0].float()):
            probs = router_logits[n].float().softmax(-1)
            chosen = probs.argsort(descending=True)[:3]
            for e in chosen.tolist():
                hidden = torch.nn.functional.silu(gate[e] @ token) * (up[e] @ token)
                expected[n] += probs[e] / probs[chosen].sum() * (down[e] @ hidden)
    assert y.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05 * expected.abs().max().item()
    assert largest_difference(y[0].float(), expected) <= tolerance


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("copies", [1, 63, 64, 1000, 4096])
def test_slices_of_experts_hold_their_copies_and_have_few_lengths(copies, in_blocks):
    """Every copy has a row of its own in its expert's slice, in the old order; rest is filling."""
    experts = torch.randint(3, (copies,), generator=torch.Generator().manual_seed(copies))
    experts[experts == 1] = 3  # nobody goes to expert 1
    block = BLOCK if in_blocks else max(1, copies // 64)
    slot, source, is_filling, ends = sort_by_expert(experts, 4, block)
    starts = [0, *ends.tolist()]
    rows = len(source)
    assert starts[-1] <= rows <= (copies + 4 * BLOCK if in_blocks else copies * 17 / 16)
    owner = [next((e for e in range(4) if starts[e] <= row < starts[e + 1]), None) for row in slot]
    assert owner == experts.tolist()
    assert slot.unique().numel() == copies and (source[slot] == torch.arange(copies)).all()
    assert sorted(slot.tolist()) == (~is_filling).nonzero().flatten().tolist()
    for e in range(4):
        assert (slot[experts == e].diff() > 0).all()
    lengths = torch.tensor(starts).diff()
    assert (lengths % block == 0).all() and rows % block == 0
    if in_blocks:
        owners = block_owners(ends, rows).tolist()
        assert len(owners) == rows // BLOCK
        for number, e in enumerate(owners):
            first = number * BLOCK
            assert first >= starts[-1] or starts[e] <= first < first + BLOCK <= starts[e + 1]


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 2), (7, 8), (64, 15)])
def test_few_copies_take_few_blocks(tokens, blocks):
    """Two of eight experts: one token reads the weights of two, not of all."""
    _, source, _, ends = sort_by_expert(torch.arange(2 * tokens) % 8, 8, BLOCK)
    assert len(source) == blocks * BLOCK and ends[-1] <= len(source)


def test_packed_documents_are_separate_documents():
    """Routing is by token: a packed row gives each document the logits it has alone."""
    numbers = case_numbers(2, 2, False)
    model = our_model(numbers)
    ids = random_ids(numbers, 1, 12)
    with torch.no_grad():
        packed = model(ids, document_ids=torch.tensor([[0] * 5 + [1] * 7]))[0]
        alone = torch.cat([model(part)[0] for part in ids.split([5, 7], dim=1)], dim=1)
    assert largest_difference(packed, alone) <= 1e-5


def test_autocast_keeps_near_float32():
    """Under bfloat16 autocast the experts run in bfloat16, forward and backward."""
    numbers = case_numbers(4, 2, True)
    model = our_model(numbers)
    ids = random_ids(numbers)
    exact = model(ids)[0].detach()
    with torch.autocast("cpu", torch.bfloat16):
        logits, aux_loss = model(ids)
    assert logits.dtype == torch.bfloat16 and aux_loss.dtype == torch.float32
    near = torch.nn.functional.cosine_similarity(logits.float().flatten(), exact.flatten(), dim=0)
    assert near > 0.97
    (logits.float().square().mean() + aux_loss).backward()
    assert all(
        p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters()
    )
