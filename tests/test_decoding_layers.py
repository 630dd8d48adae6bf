"""model/decoding_layers.py: the same model with its weights laid out for decoding, or in 8 bits."""

import pytest
import torch
from conftest import SENTENCES
from oracle_models import our_model, random_ids, random_numbers

from model.config import LMConfig
from model.decoding_layers import DEQUANTISE_ABOVE, Int8Linear, for_decoding
from model.generation import generate
from model.lora import LoRAConfig, attach
from model.model import MiniMindLM

MODELS = {
    "dense": random_numbers(1, num_hidden_layers=2),
    "tied": random_numbers(2),
    "moe": random_numbers(4, moe=True),
    "moe_normalised": random_numbers(5, moe=True, norm_topk_prob=True),
}


@pytest.mark.parametrize("kind", MODELS)
def test_another_layout_changes_no_result(kind):
    """Logits within 1e-4 of the model's, the same greedy tokens; the model itself is untouched."""
    numbers = MODELS[kind]
    model = our_model(numbers)
    before = {name: p.clone() for name, p in model.named_parameters()}
    ids = random_ids(numbers)
    fast = for_decoding(model)
    with torch.no_grad():
        assert (fast(ids)[0] - model(ids)[0]).abs().max() <= 1e-4
    prompt = ids[0, :9].tolist()
    tokens = [list(generate(m, prompt, 24, set(), temperature=0)) for m in (model, fast)]
    assert tokens[0] == tokens[1]
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) and p.requires_grad
    assert fast.model.embed_tokens.weight is model.model.embed_tokens.weight  # no second copy


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_every_dtype_decodes(kind, dtype, int8):
    """float32, bfloat16 and float16 weights, in their own or in 8 bits, for prompts of any size."""
    fast = for_decoding(our_model(MODELS[kind]).to(dtype), int8)
    for n in (1, 3, DEQUANTISE_ABOVE + 8):
        prompt = random_ids(MODELS[kind], 1, n)[0].tolist()
        assert len(list(generate(fast, prompt, 5, set(), temperature=0))) == 5


@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_are_merged(use_dora):
    """A model with an adapter gives a plain one that computes the same; the adapter stays."""
    model = our_model(MODELS["dense"])
    attach(model, LoRAConfig(lora_rank=2, use_dora=use_dora))
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    ids = random_ids(MODELS["dense"])
    with torch.no_grad():
        expected = model(ids)[0]
        assert (for_decoding(model)(ids)[0] - expected).abs().max() <= 1e-3
        assert torch.equal(model(ids)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bit_weights_are_the_nearest(dtype):
    """No weight is off by more than half a step of its row (the largest: three quarters)."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 64, generator=generator) * torch.logspace(-4, 2, 40)[:, None]
    weight[3] = 0
    layer = Int8Linear(weight.to(dtype))
    step = layer.scale.double()[:, None]
    error = (layer.weight.double() * step - weight.to(dtype).double()).abs()
    largest = layer.weight.abs() == 127
    assert (error <= torch.where(largest, 0.751, 0.501) * step).all()
    assert layer.weight.dtype == torch.int8 and layer.weight.abs().amax(1)[0] >= 126


def test_the_products_of_eight_bits_agree():
    """Few tokens, many tokens, float32 and bfloat16 take different kernels to the same result."""
    generator = torch.Generator().manual_seed(0)
    layer = Int8Linear(torch.randn(48, 64, generator=generator).bfloat16())
    weight = layer.weight.double() * layer.scale.double()[:, None]
    for tokens in (1, 2, DEQUANTISE_ABOVE, DEQUANTISE_ABOVE + 1):
        x = torch.randn(1, tokens, 64, generator=generator).bfloat16()
        expected = x.double() @ weight.T
        for y in (layer(x), layer(x.float())):
            assert y.shape == (1, tokens, 48)
            assert (y.double() - expected).abs().max() <= 2e-2 * expected.abs().max()


def test_eight_bits_cost_a_trained_model_little(tiny_tokenizer):
    """A small model that has learnt its text loses under 0.01 nats per token to 8-bit weights."""
    ids = [tiny_tokenizer.eos_id]
    for sentence in SENTENCES:
        ids += [*tiny_tokenizer.encode_text(sentence), tiny_tokenizer.eos_id]
    X, Y = torch.tensor([ids[:-1]]), torch.tensor(ids[1:])
    torch.manual_seed(0)
    config = LMConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, intermediate_size=128,
    )  # fmt: skip
    model = MiniMindLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss(m):
        return torch.nn.functional.cross_entropy(m(X)[0][0].float(), Y)

    for _ in range(60):
        loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        exact = loss(model.eval()).item()
        assert exact < 3  # it has learnt something: ln 512 is 6.2
        assert loss(for_decoding(model, int8=True)).item() == pytest.approx(exact, abs=0.01)
