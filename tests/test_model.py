"""model/model.py computes what transformers' Qwen3ForCausalLM computes."""

import pytest
import torch
import torch.nn.functional as F
from oracle_models import (
    open_there,
    our_model,
    ours,
    pair,
    random_ids,
    random_numbers,
    save_here,
    save_there,
    their_model,
)
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from model.config import PRESETS, LMConfig
from model.generation import KVCache
from model.hf_format import load_model
from model.model import MiniMindLM, RMSNorm, document_positions
from training.losses import masked_cross_entropy

SEEDS = range(12)


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape and a.isfinite().all()
    return (a - b).abs().max().item()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_folder_written_here_gives_the_same_logits_in_transformers(seed, tmp_path):
    """Every dense configuration we save computes the same in Qwen3ForCausalLM."""
    numbers = random_numbers(seed)
    model = our_model(numbers, seed)
    theirs = open_there(save_here(model, tmp_path / "ours"))
    ids = random_ids(numbers)
    with torch.no_grad():
        logits, expected = model(ids)[0], theirs(ids).logits
    assert expected.std() > 0.1
    assert largest_difference(logits, expected) <= 1e-4


@pytest.mark.parametrize("seed", SEEDS)
def test_a_folder_of_transformers_gives_the_same_logits_here(seed, tmp_path):
    """Every dense folder that transformers saves computes the same here, config included."""
    numbers = random_numbers(seed)
    theirs = their_model(numbers, seed)
    model = load_model(save_there(theirs, tmp_path / "theirs"))
    assert model.config == ours(numbers)
    ids = random_ids(numbers)
    with torch.no_grad():
        assert largest_difference(model(ids)[0], theirs(ids).logits) <= 1e-4


def test_the_random_configurations_cover_what_they_should():
    """The seeds meet each head ratio, tied and untied heads, plain and YaRN positions together."""
    drawn = [random_numbers(seed) for seed in SEEDS]
    ratios = {(n["num_attention_heads"] // n["num_key_value_heads"]) for n in drawn}
    assert ratios == {1, 2, 4}
    kinds = {(n["tie_word_embeddings"], n["rope_parameters"]["rope_type"]) for n in drawn}
    assert len(kinds) == 4
    assert all(n["head_dim"] * n["num_attention_heads"] != n["hidden_size"] for n in drawn)
    yarn = [n["rope_parameters"] for n in drawn if n["rope_parameters"]["rope_type"] == "yarn"]
    for key in ("beta_fast", "beta_slow", "attention_factor"):
        assert 0 < sum(key in rope for rope in yarn) < len(yarn)


def test_yarn_changes_the_logits(tmp_path):
    """The YaRN numbers matter on the lengths tested: without them the logits are others."""
    numbers = random_numbers(2)
    assert numbers["rope_parameters"]["rope_type"] == "yarn"
    folder = save_here(our_model(numbers), tmp_path / "yarn")
    plain = load_model(folder, config=ours(numbers).with_changes(yarn_factor=1.0))
    ids = random_ids(numbers)
    with torch.no_grad():
        assert largest_difference(load_model(folder)(ids)[0], plain(ids)[0]) > 0.01


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_has_the_bits_of_qwen3_in_bfloat16(weight_dtype):
    """Statistics in float32, rounded, multiplied: equal bits, unlike bfloat16 all along."""
    torch.manual_seed(0)
    x = (torch.randn(4, 7, 96) * 30 + 5).bfloat16()
    here, there = RMSNorm(96, 1e-6), Qwen3RMSNorm(96, 1e-6)
    weight = torch.rand(96) + 0.5
    for norm in (here, there):
        norm.weight.data = weight.to(weight_dtype)
    y, expected = here(x), there(x)
    assert y.dtype == expected.dtype
    assert torch.equal(y, expected)
    careless = here.weight * (x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt())
    assert not torch.equal(careless.to(y.dtype), y)


def test_bfloat16_logits_are_those_of_transformers_up_to_its_rounding(tmp_path):
    """In bfloat16 both sides stay equally close to the float32 logits."""
    numbers = random_numbers(4)
    folder = save_here(our_model(numbers), tmp_path / "m")
    ids = random_ids(numbers)
    with torch.no_grad():
        exact = load_model(folder)(ids)[0]
        here = load_model(folder, dtype=torch.bfloat16)(ids)[0]
        there = open_there(folder, dtype=torch.bfloat16)(ids).logits
    assert here.dtype == there.dtype == torch.bfloat16
    assert (here - exact).square().mean() < 1.5 * (there - exact).square().mean()


LENGTHS = ([5, 1, 9, 3], [10, 8])  # documents in the two rows


def packed_ids() -> torch.Tensor:
    rows = [
        torch.repeat_interleave(torch.tensor([4, 0, 7, 2][: len(n)]), torch.tensor(n))
        for n in LENGTHS
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("seed", [0, 3])
def test_packed_documents_are_separate_documents(seed):
    """A token of a packed row gets the logits that it gets when its document stands alone."""
    numbers = random_numbers(seed)
    model = our_model(numbers)
    ids = random_ids(numbers, 2, 18)
    with torch.no_grad():
        packed = model(ids, document_ids=packed_ids())[0]
        for row, lengths in enumerate(LENGTHS):
            parts = ids[row].split(lengths)
            alone = torch.cat([model(part[None])[0][0] for part in parts])
            assert largest_difference(packed[row], alone) <= 1e-5
        assert largest_difference(packed, model(ids)[0]) > 0.01


@pytest.mark.parametrize("seed", [0, 3])
def test_packed_documents_equal_transformers_with_restarted_positions(seed, tmp_path):
    """document_ids do what restarted position_ids do in transformers."""
    numbers = random_numbers(seed)
    model, theirs = pair(numbers, tmp_path / "m")
    ids = random_ids(numbers, 2, 18)
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])
    assert torch.equal(document_positions(packed_ids()), positions)
    with torch.no_grad():
        expected = theirs(ids, position_ids=positions, use_cache=False).logits
        assert largest_difference(model(ids, document_ids=packed_ids())[0], expected) <= 1e-4


def test_continuations_share_what_stands_before_them(tmp_path):
    """Two that continue one document get transformers' logits of it with each of them behind."""
    numbers = random_numbers(2)
    model, theirs = pair(numbers, tmp_path / "m")
    ids = random_ids(numbers, 1, 14)
    documents = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 0, 0]])
    prefixes = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1, 1, 4, 4, 4, 0, 0]])
    positions = [0, 1, 2, 3, 4, 5, 6, 4, 5, 0, 1, 2, 0, 1]
    assert document_positions(documents, prefixes).tolist() == [positions]
    with torch.no_grad():
        found = model(ids, document_ids=documents, prefixes=prefixes)[0][0]
        for prompt, answer in (((0, 4), (4, 7)), ((0, 4), (7, 9)), ((9, 11), (11, 12))):
            whole = torch.cat([ids[:, slice(*prompt)], ids[:, slice(*answer)]], dim=1)
            expected = theirs(whole, use_cache=False).logits[0]
            both = torch.cat([found[slice(*prompt)], found[slice(*answer)]])
            assert largest_difference(both, expected) <= 1e-4


def test_an_id_that_comes_back_is_another_document():
    """Documents are runs of equal ids: of [7 7 7, 9 9, 7 7] the last does not see the first."""
    numbers = random_numbers(1)
    model = our_model(numbers)
    ids = random_ids(numbers, 1, 9)
    again = torch.tensor([[7, 7, 7, 9, 9, 7, 7, 7, 7]])
    fresh = torch.tensor([[1, 1, 1, 2, 2, 3, 3, 3, 3]])
    with torch.no_grad():
        assert torch.equal(model(ids, document_ids=again)[0], model(ids, document_ids=fresh)[0])


def test_packed_rows_are_not_decoded():
    """document_ids together with a cache is refused."""
    numbers = random_numbers(0)
    model = our_model(numbers)
    cache = KVCache(model.config, 1, 4, "cpu", torch.float32)
    with pytest.raises(ValueError, match="document_ids and cache"):
        model(random_ids(numbers, 1, 4), document_ids=torch.zeros(1, 4), cache=cache)


PRESET_SIZES = {"demo": "5.0", "small": "30.0", "base": "63.9", "large": "108.2", "moe": "198.4"}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_sizes_they_claim(name):
    """Each preset has the stated millions of parameters, as transformers counts them."""
    config = LMConfig.preset(name)
    kind = Qwen3MoeConfig if config.use_moe else Qwen3Config
    with torch.device("meta"):
        model = MiniMindLM(config)
        theirs = AutoModelForCausalLM.from_config(kind.from_dict(config.to_hf_dict()))
    assert model.num_parameters() == theirs.num_parameters()
    assert f"{model.num_parameters() / 1e6:.1f}" == PRESET_SIZES[name]


def test_fresh_weights_have_the_standard_deviation_of_the_config():
    """Matrices start at Normal(0, initializer_range), norms at 1, experts included."""
    model = MiniMindLM(
        LMConfig(
            vocab_size=999,
            hidden_size=64,
            num_hidden_layers=2,
            use_moe=True,
            initializer_range=0.05,
        )
    )
    for name, p in model.named_parameters():
        if p.ndim == 1:
            assert (p == 1).all(), name
        else:
            assert abs(p.std().item() / 0.05 - 1) < 0.25, name
            assert abs(p.mean().item()) < 0.01, name


def test_dropout_acts_in_training_only(tmp_path):
    """dropout zeroes its share of the embedding and of both block outputs, and nothing in eval."""
    numbers = random_numbers(5, num_hidden_layers=2)
    folder = save_here(our_model(numbers), tmp_path / "m")
    reference = load_model(folder)
    model = load_model(folder, config=reference.config.with_changes(dropout=0.25))
    ids = random_ids(numbers, 4)
    shares = []

    def record(_module, _input, output):
        shares.append((output == 0).float().mean().item())

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(record)
    with torch.no_grad():
        assert torch.equal(model(ids)[0], reference(ids)[0])
        shares.clear()
        torch.manual_seed(0)
        model.train()
        assert largest_difference(model(ids)[0], model(ids)[0]) > 0.01
        assert torch.equal(reference.train()(ids)[0], reference.eval()(ids)[0])
    assert len(shares) == 2 * (1 + 2 * 2)
    assert all(abs(share - 0.25) < 0.03 for share in shares)


@pytest.mark.parametrize("seed", [0, 2, 5])
def test_gradients_equal_those_of_transformers(seed, tmp_path):
    """The same weights and the same loss give the same gradient of every parameter."""
    numbers = random_numbers(seed)
    model, theirs = pair(numbers, tmp_path / "m")
    ids = random_ids(numbers, 3, 20)
    mask = (torch.rand(3, 19, generator=torch.Generator().manual_seed(1)) < 0.6).long()
    labels = ids.clone()
    labels[:, 1:][mask == 0] = -100
    loss = masked_cross_entropy(model(ids[:, :-1])[0], ids[:, 1:], mask)
    expected = theirs(ids, labels=labels).loss
    assert abs(loss.item() - expected.item()) <= 1e-5
    loss.backward()
    expected.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    assert gradients.keys() == {name for name, _ in model.named_parameters()}
    for name, p in model.named_parameters():
        assert gradients[name].abs().max() > 0
        assert largest_difference(p.grad, gradients[name]) <= 1e-5, name


def test_masked_cross_entropy_equals_the_loss_of_transformers():
    """With uneven masks the loss is the sum over counted tokens divided by their number."""
    torch.manual_seed(0)
    B, T, V = 4, 9, 31
    logits, Y = torch.randn(B, T, V) * 3, torch.randint(V, (B, T))
    mask = torch.zeros(B, T)
    mask[0, :9] = mask[1, 2:4] = mask[2, 5] = 1  # 9, 2, 1 and 0 tokens
    labels = Y.masked_fill(mask == 0, -100)
    expected = ForCausalLMLoss(logits, None, V, mask.sum(), shift_labels=labels)
    assert abs(masked_cross_entropy(logits, Y, mask).item() - expected.item()) <= 1e-6
    mean_of_rows = torch.stack(
        [
            ForCausalLMLoss(logits[i], None, V, mask[i].sum(), shift_labels=labels[i])
            for i in range(3)
        ]
    ).mean()
    assert abs(mean_of_rows.item() - expected.item()) > 0.01  # the mask is uneven enough to tell


def test_an_all_masked_batch_gives_zero_and_no_nan():
    """Loss 0 and gradients 0, through the whole model, where no token counts."""
    numbers = random_numbers(3)
    model = our_model(numbers)
    ids = random_ids(numbers)
    loss = masked_cross_entropy(model(ids)[0], ids, torch.zeros_like(ids))
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in model.parameters())


def test_last_only_is_the_last_row_of_all_logits():
    """last_only gives [B, 1, V], the logits of the last position."""
    numbers = random_numbers(1)
    model = our_model(numbers)
    ids = random_ids(numbers)
    with torch.no_grad():
        last = model(ids, last_only=True)[0]
        assert last.shape == (2, 1, numbers["vocab_size"])
        assert largest_difference(last[:, 0], model(ids)[0][:, -1]) <= 1e-5


def test_a_dense_model_has_no_auxiliary_loss():
    """aux_loss is a float32 scalar 0 without experts, so that scripts may add it blindly."""
    numbers = random_numbers(1)
    aux_loss = our_model(numbers)(random_ids(numbers))[1]
    assert aux_loss.shape == () and aux_loss.dtype == torch.float32 and aux_loss == 0


def test_autocast_runs_in_bfloat16_and_stays_near_float32():
    """Under bfloat16 autocast, packed or not, logits are bfloat16 and the same up to rounding."""
    numbers = random_numbers(0)
    model = our_model(numbers)
    ids = random_ids(numbers, 2, 18)
    for documents in (None, packed_ids()):
        with torch.no_grad():
            exact = model(ids, document_ids=documents)[0]
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(ids, document_ids=documents)[0]
        assert logits.dtype == torch.bfloat16
        assert F.cosine_similarity(logits.float().flatten(), exact.flatten(), dim=0) > 0.99
