"""What a run leaves behind: folders that other tools open, and what only resuming needs."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from oracle_models import open_there
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from tests.small_runs import REPOSITORY, STEPS, make_inputs, metrics, result, run
from training import checkpoint

SAMPLING = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "do_sample": True, "pad_token_id": 7}
FOREIGN_END = 77


@pytest.fixture(scope="module")
def flags(tmp_path_factory, tiny_tokenizer_dir):
    """The flags of every script; the base is a bfloat16 folder with sampling settings, relative."""
    folder = tmp_path_factory.mktemp("inputs")
    flags = make_inputs(folder, tiny_tokenizer_dir)
    weights = load_file(folder / "base/model.safetensors")
    half = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(half, folder / "base/model.safetensors", {"format": "pt"})
    generation = SAMPLING | {"eos_token_id": [0, FOREIGN_END]}
    (folder / "base/generation_config.json").write_text(json.dumps(generation))
    config = json.loads((folder / "base/tokenizer_config.json").read_text())
    config.pop("model_input_names")  # as it is in many folders
    (folder / "base/tokenizer_config.json").write_text(json.dumps(config))
    relative = os.path.relpath(folder / "base", REPOSITORY)
    flags = {k: [relative if v == str(folder / "base") else v for v in f] for k, f in flags.items()}
    flags["pretrain_on"] = [*flags["pretrain"], "--init_from", relative]
    for flag in ("--hidden_size", "--num_hidden_layers", "--num_attention_heads",
                 "--num_key_value_heads", "--intermediate_size", "--tokenizer"):  # fmt: skip
        at = flags["pretrain_on"].index(flag)
        del flags["pretrain_on"][at : at + 2]
    return flags


@pytest.fixture(scope="module")
def sft(tmp_path_factory, flags):
    """A run of train_full_sft.py on the bfloat16 base that has kept all its checkpoints."""
    folder = tmp_path_factory.mktemp("sft") / "run"
    run("full_sft", folder, *flags["full_sft"], "--keep_checkpoints", 99)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, flags):
    folder = tmp_path_factory.mktemp("lora") / "run"
    run("lora", folder, *flags["lora"])
    return folder


def newest(folder: Path) -> Path:
    return folder / f"step-{STEPS:08d}"


def cut_to(source: Path, folder: Path, steps: int) -> Path:
    """A copy of a run as it was after so many steps."""
    shutil.copytree(source, folder)
    for step in checkpoint.step_folders(folder):
        if int(step.name[5:]) > steps:
            shutil.rmtree(step)
    return folder


def in_the_old_layout(step: Path):
    """Make a checkpoint of what was written before there was a subfolder `resume`."""
    (step / "resume/optimizer.tensors").rename(step / "optimizer.safetensors")
    (step / "resume/trainer_state.json").rename(step / "trainer_state.json")
    (step / "resume").rmdir()
    manifest = json.loads((step / "manifest.json").read_text())
    names = {"resume/optimizer.tensors": "optimizer.safetensors",
             "resume/trainer_state.json": "trainer_state.json"}  # fmt: skip
    files = {names.get(name, name): entry for name, entry in manifest["files"].items()}
    (step / "manifest.json").write_text(json.dumps({"files": files}))


# ---- nothing but weights looks like weights


def test_only_weights_look_like_weights(sft, adapter):
    """Readers that take every *.safetensors (*.bin, *.pt) of a folder, or below, find one file."""
    for folder, name in ((sft, "model.safetensors"), (adapter, "adapter_model.safetensors")):
        for step in checkpoint.step_folders(folder):
            suffixes = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz", ".msgpack", ".h5")
            found = [p for p in step.rglob("*") if p.suffix in suffixes]
            assert found == [step / name]
            assert len(list(step.glob("resume/*"))) >= 2


def test_the_manifest_covers_the_subfolder(sft, tmp_path):
    """Each file of `resume` is named with its hash: missing, changed, not vouched for is told."""
    step = newest(sft)
    files = json.loads((step / "manifest.json").read_text())["files"]
    inside = {"resume/optimizer.tensors", "resume/trainer_state.json", "resume/weights.tensors"}
    assert inside == {name for name in files if name.startswith("resume/")}
    for name in inside:
        copy = tmp_path / name.replace("/", " ") / step.name
        for damage in (Path.unlink, lambda file: file.write_bytes(b"{}")):
            shutil.copytree(step, copy)
            damage(copy / name)
            assert checkpoint.damage(copy) is not None
            shutil.rmtree(copy)
        shutil.copytree(step, copy)
        manifest = {"files": {k: v for k, v in files.items() if k != name}}
        (copy / "manifest.json").write_text(json.dumps(manifest))
        assert "resume/" in checkpoint.damage(copy)


@pytest.mark.parametrize("name", ["resume/../model.safetensors", "resume/a/b", "other/model", "/x"])
def test_a_manifest_names_no_other_subfolder(sft, tmp_path, name):
    """A path that leads elsewhere is damage, whatever lies there."""
    step = Path(shutil.copytree(newest(sft), tmp_path / "step-00000012"))
    manifest = json.loads((step / "manifest.json").read_text())
    manifest["files"][name] = manifest["files"]["model.safetensors"]
    (step / "manifest.json").write_text(json.dumps(manifest))
    assert "outside" in checkpoint.damage(step)


def test_a_checkpoint_of_the_old_layout_goes_on(tmp_path, flags):
    """optimizer.safetensors beside the weights: verified, resumed to the same bits, retired."""
    whole, old = tmp_path / "whole", tmp_path / "old"
    run("pretrain", whole, *flags["pretrain"], "--keep_checkpoints", 99)
    cut_to(whole, old, 6)
    for step in checkpoint.step_folders(old):
        in_the_old_layout(step)
        assert checkpoint.damage(step) is None
    flipped = shutil.copytree(checkpoint.step_folders(old)[-1], tmp_path / "flipped")
    content = bytearray((flipped / "optimizer.safetensors").read_bytes())
    content[-1] ^= 1
    (flipped / "optimizer.safetensors").write_bytes(content)
    assert "optimizer.safetensors" in checkpoint.damage(flipped)
    output = run("pretrain", old, *flags["pretrain"])
    assert "going on from" in output and "step-00000006" in output
    assert result(old) == result(whole)
    kept = [int(step.name[5:]) for step in checkpoint.step_folders(old)]
    best = min((m for m in metrics(old) if "val_loss" in m), key=lambda m: m["val_loss"])["step"]
    assert kept == sorted({best, 10, 12})


# ---- what the base's folder says


@pytest.mark.parametrize(
    "script",
    ["full_sft"] + [pytest.param(s, marks=pytest.mark.slow) for s in ("dpo", "pretrain_on")],
)
def test_a_bfloat16_base_stays_one_and_no_bit_is_lost(tmp_path, flags, sft, script):
    """Written as bfloat16 beside the exact weights: stopped and resumed = never stopped."""
    whole = sft
    if script != "full_sft":
        whole = tmp_path / "whole"
        name = script.removesuffix("_on")
        run(name, whole, *flags[script], "--keep_checkpoints", 99)
    step = newest(whole)
    stored = load_file(step / "model.safetensors")
    exact = load_file(step / "resume/weights.tensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    assert {t.dtype for t in exact.values()} == {torch.float32}
    assert all(torch.equal(stored[name], exact[name].bfloat16()) for name in exact)
    assert any(not torch.equal(stored[name].float(), exact[name]) for name in exact)
    assert open_there(step, dtype="auto").dtype == torch.bfloat16

    resumed = cut_to(whole, tmp_path / "resumed", 6)
    run(script.removesuffix("_on"), resumed, *flags[script], "--keep_checkpoints", 99)
    assert result(resumed) == result(whole)


def test_sampling_settings_of_the_base_survive(sft, adapter, flags, tmp_path):
    """generation_config.json keeps what the base said; its end tokens are ours and its own."""
    base = Path(flags["full_sft"][flags["full_sft"].index("--init_from") + 1])
    run(REPOSITORY / "scripts/merge_lora.py", tmp_path / "merged",
        "--model", base, "--lora", adapter)  # fmt: skip
    for folder in (newest(sft), tmp_path / "merged"):
        content = json.loads((folder / "generation_config.json").read_text())
        ends = content.pop("eos_token_id")
        assert content == SAMPLING
        assert ends[-1] == FOREIGN_END and len(ends) == len(set(ends)) == 3
        assert json.loads((folder / "config.json").read_text())["eos_token_id"] == ends
        assert GenerationConfig.from_pretrained(folder).top_k == 20
    merged = load_file(tmp_path / "merged/model.safetensors")
    assert {t.dtype for t in merged.values()} == {torch.bfloat16}
    assert not (tmp_path / "merged/resume").exists()


def test_a_tokenizer_without_input_names_gets_them(sft, adapter):
    """transformers 4 would make token_type_ids, which the model refuses."""
    for folder in (newest(sft), newest(adapter)):
        config = json.loads((folder / "tokenizer_config.json").read_text())
        assert config["model_input_names"] == ["input_ids", "attention_mask"]
    shipped = json.loads((REPOSITORY / "model/tokenizer/tokenizer_config.json").read_text())
    assert shipped["model_input_names"] == ["input_ids", "attention_mask"]


def test_all_files_have_one_mode(sft, adapter):
    """Whoever may read config.json may read the weights."""
    for step in (newest(sft), newest(adapter)):
        modes = {oct(p.stat().st_mode & 0o777) for p in step.rglob("*") if p.is_file()}
        assert len(modes) == 1


# ---- from anywhere


def test_the_readme_of_a_run_names_a_folder_that_opens(sft, adapter, tmp_path, monkeypatch):
    """transformers cannot open the run's folder; the line in its README can be copied."""
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        open_there_by_name(sft)
    monkeypatch.chdir(REPOSITORY)
    for folder, opener in ((sft, open_there_by_name), (adapter, peft_opens)):
        readme = (folder / "README.md").read_text()
        (named,) = re.findall(r'from_pretrained\("(.+)"\)', readme)
        assert Path(named).resolve() == newest(folder).resolve()
        assert opener(Path(named)) is not None


def open_there_by_name(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


def peft_opens(folder: Path):
    return AutoPeftModelForCausalLM.from_pretrained(folder, local_files_only=True)


def test_an_adapter_finds_its_base_from_anywhere(adapter, flags, tmp_path, monkeypatch):
    """--init_from was relative; the adapter opens in a process that is in another folder."""
    assert not Path(flags["lora"][flags["lora"].index("--init_from") + 1]).is_absolute()
    monkeypatch.chdir(tmp_path)
    assert peft_opens(newest(adapter)) is not None


def test_a_users_readme_is_left_alone(tmp_path):
    """Only what training wrote is written again."""
    (tmp_path / "README.md").write_text("my notes")
    checkpoint.write_checkpoint(tmp_path, {}, {"step": 1}, lambda folder: None)
    assert (tmp_path / "README.md").read_text() == "my notes"
    (tmp_path / "README.md").unlink()
    for step in (2, 3):
        checkpoint.write_checkpoint(tmp_path, {}, {"step": step}, lambda folder: None)
        assert f"step-{step:08d}" in (tmp_path / "README.md").read_text()


def test_a_readme_that_cannot_be_written_only_warns(tmp_path, capsys):
    """A checkpoint is worth more than the note about it."""
    (tmp_path / "README.md").mkdir()
    folder = checkpoint.write_checkpoint(tmp_path, {}, {"step": 1}, lambda folder: None)
    assert checkpoint.damage(folder) is None
    assert "warning: could not write" in capsys.readouterr().err
