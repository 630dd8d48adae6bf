"""model/lora.py against peft: logits, gradients, merged weights and folders, both directions."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from model import lora
from model.decoding_layers import for_decoding
from model.hf_format import load_model, save_model, weights_sha256
from tests.oracle_models import (
    open_there,
    our_model,
    random_ids,
    random_numbers,
    save_here,
    save_there,
    their_model,
)
from training.checkpoint import model_folder

KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "rsdora": {"use_rslora": True, "use_dora": True},
}


@torch.no_grad()
def shake_adapters(parameters):
    """Fresh adapters add nothing: give B and the magnitudes values that show."""
    generator = torch.Generator().manual_seed(1)
    for name, p in sorted(parameters):
        if "lora_B" in name:
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        if "magnitude" in name:
            p.mul_(0.5 + torch.rand(p.shape, generator=generator))


@pytest.fixture
def base(tmp_path):
    numbers = random_numbers(1)
    return numbers, save_here(our_model(numbers), tmp_path / "base")


def peft_model(folder, kind, **more):
    config = LoraConfig(
        r=3, lora_alpha=7, target_modules=list(lora.ATTENTION + lora.FEED_FORWARD),
        task_type="CAUSAL_LM", **KINDS[kind], **more,
    )  # fmt: skip
    model = get_peft_model(open_there(folder), config)
    shake_adapters(model.named_parameters())
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_peft_computes_the_same_here(base, tmp_path, kind):
    """peft's folder opens here: same logits, same gradients of every adapter tensor, same merge."""
    numbers, folder = base
    theirs = peft_model(folder, kind)
    theirs.save_pretrained(tmp_path / "adapter")
    model = load_model(folder)
    lora.load_adapter(model, tmp_path / "adapter", weights_sha256(folder))

    ids = random_ids(numbers)
    expected = theirs(ids).logits
    logits, _ = model(ids)
    assert (logits - expected).abs().max() <= 1e-4
    with torch.no_grad():
        assert (load_model(folder)(ids)[0] - expected).abs().max() > 0.1  # the adapter matters

    logits.logsumexp(-1).mean().backward()
    expected.logsumexp(-1).mean().backward()
    grads = {
        name.removeprefix("base_model.model.").replace(".default", ""): p.grad
        for name, p in theirs.named_parameters()
        if p.requires_grad
    }
    ours = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    grads = {k.replace("magnitude_vector.weight", "magnitude_vector"): v for k, v in grads.items()}
    assert ours.keys() == grads.keys()
    for name, grad in ours.items():
        torch.testing.assert_close(grad, grads[name], rtol=1e-3, atol=1e-6, msg=name)

    lora.merge(model)
    merged = theirs.merge_and_unload().state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, merged[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_our_adapter_opens_in_peft(base, tmp_path, kind):
    """A folder written here opens with PeftModel.from_pretrained and computes the same."""
    numbers, folder = base
    model = load_model(folder)
    config = lora.LoRAConfig(4, 6.0, lora_targets=("q_proj", "down_proj"), **KINDS[kind])
    lora.attach(model, config)
    shake_adapters(lora._tensors(model).items())
    (tmp_path / "adapter").mkdir()
    lora.save_adapter(model, config, tmp_path / "adapter", folder, weights_sha256(folder))
    theirs = PeftModel.from_pretrained(open_there(folder), tmp_path / "adapter").eval()
    ids = random_ids(numbers)
    with torch.no_grad():
        assert (model(ids)[0] - theirs(ids).logits).abs().max() <= 1e-4
    again = load_model(folder)
    assert lora.load_adapter(again, tmp_path / "adapter", weights_sha256(folder)) == (
        lora.LoRAConfig(4, 6.0, lora_targets=("down_proj", "q_proj"), **KINDS[kind])
    )
    with torch.no_grad():
        assert torch.equal(again(ids)[0], model(ids)[0])


def test_fresh_adapters_change_nothing_and_detach_leaves_no_trace(base):
    """B starts at zero; after detach the state dict has the base's names and bits."""
    numbers, folder = base
    model, plain = load_model(folder), load_model(folder)
    ids = random_ids(numbers)
    for kind in KINDS.values():
        lora.attach(model, lora.LoRAConfig(**kind))
        torch.testing.assert_close(model(ids)[0], plain(ids)[0], rtol=0, atol=1e-5)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        assert trained and all(".lora_" in name for name in trained)
        lora.detach(model)
    state = plain.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_dropout_only_in_training(base):
    """lora_dropout changes training passes and no other."""
    numbers, folder = base
    ids = random_ids(numbers)
    for kind in KINDS.values():
        model = load_model(folder)
        lora.attach(model, lora.LoRAConfig(lora_dropout=0.5, **kind))
        shake_adapters(lora._tensors(model).items())
        assert torch.equal(model(ids)[0], model(ids)[0])
        model.train()
        assert not torch.equal(model(ids)[0], model(ids)[0])


def test_adapters_of_other_bases_and_broken_ones_are_refused(base, tmp_path):
    """One clear line with the path; the model keeps computing what its base computes."""
    numbers, folder = base
    model = load_model(folder)
    lora.attach(model, lora.LoRAConfig())
    good = tmp_path / "adapter"
    good.mkdir()
    lora.save_adapter(model, lora.LoRAConfig(), good, folder, weights_sha256(folder))

    other = save_here(our_model(numbers, seed=5), tmp_path / "other")
    with pytest.raises(ValueError, match="adapter was trained on other weights"):
        lora.load_adapter(load_model(other), good, weights_sha256(other))
    wide = save_there(their_model(random_numbers(1, hidden_size=48)), tmp_path / "wide")
    foreign = tmp_path / "foreign"
    peft_model(folder, "lora").save_pretrained(foreign)  # carries no fingerprint
    with pytest.raises(ValueError, match="this model needs"):
        lora.load_adapter(load_model(wide), foreign, weights_sha256(wide))

    def broken(change, message):
        place = tmp_path / "broken"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(good, place)
        change(place)
        plain = load_model(folder)
        before = plain(random_ids(numbers))[0]
        with pytest.raises(ValueError, match=message):
            lora.load_adapter(plain, place, weights_sha256(folder))
        assert torch.equal(plain(random_ids(numbers))[0], before)

    def edit(**changes):
        def change(place):
            path = place / lora.CONFIG_FILE
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))

        return change

    def drop_a_tensor(place):
        tensors = load_file(place / lora.WEIGHTS_FILE)
        tensors.pop(next(iter(tensors)))
        save_file(tensors, place / lora.WEIGHTS_FILE)

    broken(drop_a_tensor, "missing from the adapter")
    broken(lambda p: (p / lora.WEIGHTS_FILE).write_bytes(b"no"), "not a readable safetensors")
    broken(lambda p: (p / lora.WEIGHTS_FILE).unlink(), "not a readable safetensors")
    broken(lambda p: (p / lora.CONFIG_FILE).unlink(), "adapter_config.json")
    broken(edit(peft_type="VERA"), "peft_type")
    broken(edit(r=10**9), "no matrix is wider")
    broken(edit(r="8"), "r: expected a number")
    broken(edit(target_modules=["nothing"]), "nothing")
    broken(edit(rank_pattern={"q_proj": 2}), "rank_pattern")
    broken(edit(r=5), "this model needs")


def test_merge_lora_gives_a_plain_folder(base, tmp_path, monkeypatch, tiny_tokenizer):
    """scripts/merge_lora.py writes a model folder that transformers opens: peft's logits."""
    from scripts import merge_lora

    numbers = random_numbers(1, vocab_size=512)
    folder = save_here(our_model(numbers), tmp_path / "chat")
    tiny_tokenizer.save(folder, chat_template=True)
    theirs = peft_model(folder, "dora")
    theirs.save_pretrained(tmp_path / "adapter")
    argv = ["merge_lora.py", "--model", str(folder), "--lora", str(tmp_path / "adapter"),
            "--out_dir", str(tmp_path / "merged")]  # fmt: skip
    monkeypatch.setattr("sys.argv", argv)
    merge_lora.main()
    ids = random_ids(numbers)
    with torch.no_grad():
        merged = open_there(tmp_path / "merged")(ids).logits
        assert (merged - theirs(ids).logits).abs().max() <= 1e-4
    with pytest.raises(ValueError, match="--out_dir"):  # never over something that is there
        merge_lora.main()
    save_model(load_model(tmp_path / "merged"), tmp_path, 2)


def test_an_adapter_is_no_model(base, tmp_path):
    """Given where a model is asked for, a run or folder of an adapter is named as what it is."""
    model = load_model(base[1])
    lora.attach(model, lora.LoRAConfig())
    lora.save_adapter(model, lora.LoRAConfig(), tmp_path, base[1], "0" * 64)
    with pytest.raises(ValueError, match=r"--model .*an adapter, not a model.*merge_lora"):
        model_folder(tmp_path, "--model")


def test_the_same_adapter_has_the_same_bytes(base, tmp_path):
    """Twenty saves give one file (safetensors alone orders its metadata at random)."""
    model = load_model(base[1])
    lora.attach(model, lora.LoRAConfig())
    contents = set()
    for i in range(20):
        folder = tmp_path / str(i)
        folder.mkdir()
        lora.save_adapter(model, lora.LoRAConfig(), folder, base[1], "0" * 64)
        contents.add((folder / lora.WEIGHTS_FILE).read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_a_tied_head_survives_the_merge(tmp_path, kind):
    """Beside a tied head an adapter changes the head alone, as in peft; merged, it is untied.

    The merged folder computes the same here and in transformers, and the base keeps its head.
    """
    numbers = random_numbers(1) | {"tie_word_embeddings": True}
    folder = save_here(our_model(numbers), tmp_path / "base")
    model = load_model(folder)
    config = lora.LoRAConfig(4, 6.0, lora_targets=("lm_head", "q_proj"), **KINDS[kind])
    lora.attach(model, config)
    shake_adapters(lora._tensors(model).items())
    (tmp_path / "adapter").mkdir()
    lora.save_adapter(model, config, tmp_path / "adapter", folder, weights_sha256(folder))
    ids = random_ids(numbers)
    theirs = PeftModel.from_pretrained(open_there(folder), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = theirs(ids).logits
        assert (model(ids)[0] - expected).abs().max() <= 1e-4
        assert (load_model(folder)(ids)[0] - expected).abs().max() > 0.1

        fast = for_decoding(model)  # merges a copy
        assert (fast(ids)[0] - expected).abs().max() <= 1e-4
        assert model.config.tie_word_embeddings

        lora.merge(model)
        (tmp_path / "merged").mkdir()
        save_model(model, tmp_path / "merged", 0)
        merged = load_model(tmp_path / "merged")
        assert not merged.config.tie_word_embeddings
        assert (merged(ids)[0] - expected).abs().max() <= 1e-4
        assert (open_there(tmp_path / "merged")(ids).logits - expected).abs().max() <= 1e-4
        before = load_model(folder).model.embed_tokens.weight
        assert torch.equal(merged.model.embed_tokens.weight, before)
