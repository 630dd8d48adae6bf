"""model/qwen3_check.py: an edited model is noticed, written under another name, and goes on."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from oracle_models import EOS, our_model, random_numbers, save_here
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from model import model as model_file
from model import qwen3_check
from model.config import LMConfig
from model.hf_format import from_disk, load_config, load_model, save_model, to_disk
from model.model import MiniMindLM
from model.moe import MoEFeedForward
from tests.small_runs import REPOSITORY, make_inputs

KINDS = [
    {"use_moe": moe, "norm_topk_prob": norm, "tie_word_embeddings": tied, "yarn_factor": yarn}
    for moe, norm, tied, yarn in itertools.product((False, True), (False, True), (False, True),
                                                   (1.0, 2.0))
    if moe or not norm
]  # fmt: skip


def config_of(kind: dict) -> LMConfig:
    return LMConfig.preset("demo", **kind | {"num_experts_per_tok": 2, "moe_intermediate_size": 64})


def numbers_there(kind: dict) -> dict:
    """The small model's numbers in transformers' words, by hand."""
    rope = {"rope_type": "default", "rope_theta": 50.0}
    if kind["yarn_factor"] > 1:
        rope |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    numbers = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 12, "intermediate_size": 48, "rms_norm_eps": 0.01,
        "max_position_embeddings": 4096, "rope_parameters": rope,
        "tie_word_embeddings": kind["tie_word_embeddings"],
    }  # fmt: skip
    if kind["use_moe"]:
        numbers |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                    "norm_topk_prob": kind["norm_topk_prob"]}  # fmt: skip
    return numbers


def logits_there(kind: dict, folder) -> list[float]:
    """What transformers' own classes compute with the formula's weights under their own names."""
    numbers = numbers_there(kind)
    config = (Qwen3MoeConfig if kind["use_moe"] else Qwen3Config)(**numbers)
    plain = {"attn_implementation": "eager"}
    plain |= {"experts_implementation": "eager"} if kind["use_moe"] else {}
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    file = folder / "model.safetensors"
    shapes = {name: tuple(t.shape) for name, t in load_file(file).items()}
    small = qwen3_check.small(config_of(kind))
    assert shapes == qwen3_check.shapes(small)
    weights = {name: qwen3_check.formula(name, shape) for name, shape in shapes.items()}
    save_file(weights, file, {"format": "pt"})
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **plain).eval()
    with torch.no_grad():
        return qwen3_check.chosen(theirs(qwen3_check.tokens(small)).logits)


def name_of(kind: dict) -> str:
    return qwen3_check.kind(config_of(kind))


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_the_record_is_what_transformers_computes(kind, tmp_path):
    """Names, shapes and logits of Qwen3ForCausalLM; logits of a size that a change would move."""
    there = logits_there(kind, tmp_path)
    assert qwen3_check.RECORD[name_of(kind)] == pytest.approx(there, abs=1e-4)
    assert max(map(abs, there)) > 1.5


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_the_model_as_it_is_is_qwen3(kind, tmp_path):
    """Every kind passes, takes no random numbers, and its folder says so."""
    model = MiniMindLM(config_of(kind))
    state = torch.get_rng_state()
    qwen3_check.verdict.cache_clear()
    save_model(model, tmp_path, EOS)
    assert torch.equal(torch.get_rng_state(), state)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"].startswith("qwen3")


# ---- edits, as somebody who tries an idea makes them


class ReluSquared(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.relu(self.gate_proj(x)).square() * self.up_proj(x))


def no_norm_on_queries(patch):
    initialise = model_file.Attention.__init__

    def without(self, config):
        initialise(self, config)
        self.q_norm = self.k_norm = nn.Identity()

    patch.setattr(model_file.Attention, "__init__", without)


def biases(patch):
    initialise = model_file.Attention.__init__

    def with_biases(self, config):
        initialise(self, config)
        self.q_proj.bias = nn.Parameter(torch.zeros(self.q_proj.out_features))

    patch.setattr(model_file.Attention, "__init__", with_biases)


def post_norm(patch):
    def forward(self, x, cos, sin, mask, cache=None):
        x = self.input_layernorm(x + self.self_attn(x, cos, sin, mask, cache))
        y = self.mlp(x)
        y, router_logits = y if isinstance(y, tuple) else (y, None)
        return self.post_attention_layernorm(x + y), router_logits

    patch.setattr(model_file.Block, "forward", forward)


def capped_logits(patch):
    forward = MiniMindLM.forward

    def capped(self, *args, **kwargs):
        logits, aux_loss = forward(self, *args, **kwargs)
        return 30 * torch.tanh(logits / 30), aux_loss

    patch.setattr(MiniMindLM, "forward", capped)


def pairs_side_by_side(patch):
    def rotate(x, cos, sin):
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
        return x * cos + turned * sin

    patch.setattr(model_file, "rotate", rotate)


def a_window(patch):
    attention = model_file.attention

    def windowed(q, k, v, mask):
        index = torch.arange(k.shape[2])
        return attention(q, k, v, (index[:, None] - index < 1000) & (index[:, None] >= index))

    patch.setattr(model_file, "attention", windowed)


def scaled_embeddings(patch):
    forward = nn.Embedding.forward
    patch.setattr(nn.Embedding, "forward", lambda self, x: forward(self, x) * 1.01)


def fails_when_small(patch):
    forward = MiniMindLM.forward

    def checked(self, *args, **kwargs):
        assert self.config.hidden_size > 32
        return forward(self, *args, **kwargs)

    patch.setattr(MiniMindLM, "forward", checked)


EDITS = [no_norm_on_queries, biases, post_norm, capped_logits, pairs_side_by_side, a_window]
EDITS += [scaled_embeddings, fails_when_small]


@pytest.fixture
def patch(monkeypatch):
    """monkeypatch; what was found out about the classes is forgotten before and after."""
    qwen3_check.verdict.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    qwen3_check.verdict.cache_clear()


def saved(folder, moe: bool, **numbers) -> dict:
    numbers = random_numbers(1, moe=moe, num_hidden_layers=2, **numbers)
    save_here(our_model(numbers), folder)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "experts"])
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edit_is_noticed(edit, moe, tmp_path, patch, capfd):
    """The folder has another model_type; transformers refuses it by name, ours opens it."""
    edit(patch)
    config = saved(tmp_path / "edited", moe)
    assert config["model_type"] == "minimind" and config["architectures"] == ["MiniMindLM"]
    assert capfd.readouterr().err.count("does not compute what Qwen3 computes") <= 1
    with pytest.raises(ValueError, match="minimind"):
        AutoConfig.from_pretrained(tmp_path / "edited")
    assert load_model(tmp_path / "edited").config == load_config(tmp_path / "edited")
    patch.undo()
    qwen3_check.verdict.cache_clear()
    if edit is fails_when_small:  # nothing to compare with was written
        return
    with pytest.raises(ValueError, match="written by an edited model") as error:
        load_model(tmp_path / "edited")
    assert "\n" not in str(error.value) and str(tmp_path / "edited") in str(error.value)


def test_other_activations_are_noticed(tmp_path, patch):
    """ReLU² in place of SiLU, with the same names and shapes: in the class, or in one model."""
    patch.setattr(model_file, "FeedForward", ReluSquared)
    assert saved(tmp_path / "class", moe=False)["model_type"] == "minimind"
    patch.undo()
    qwen3_check.verdict.cache_clear()
    model = our_model(random_numbers(1))
    for layer in model.model.layers:
        layer.mlp = ReluSquared(model.config)
    save_here(model, tmp_path / "instance")
    config = json.loads((tmp_path / "instance" / "config.json").read_text())
    assert config["model_type"] == "minimind"


def test_experts_with_another_activation_are_noticed(tmp_path, patch):
    """The stacked experts are looked at as well."""
    silu = F.silu
    patch.setattr("model.moe.F.silu", lambda x: F.relu(x).square())
    assert saved(tmp_path / "experts", moe=True)["model_type"] == "minimind"
    assert silu is not F.silu and MoEFeedForward.__module__ == "model.moe"


def test_a_qwen3_folder_opened_by_edited_code_is_told(tmp_path, patch, capfd):
    """One may begin from Qwen3's weights; that the numbers are others is said, once."""
    assert saved(tmp_path / "plain", moe=False)["model_type"] == "qwen3"
    load_model(tmp_path / "plain")
    assert not capfd.readouterr().err
    qwen3_check.verdict.cache_clear()
    capped_logits(patch)
    load_model(tmp_path / "plain")
    load_model(tmp_path / "plain")
    assert capfd.readouterr().err.count("warning: ") == 1


@pytest.mark.parametrize("values", [[1.0], [0.0] * 6, ["x"] * 6, [True] * 6, "x", [None] * 6])
def test_what_a_folder_says_of_itself_is_checked(tmp_path, patch, values):
    """Other logits, or none, in config.json: not opened."""
    capped_logits(patch)
    config = saved(tmp_path / "edited", moe=False)
    load_model(tmp_path / "edited")
    (tmp_path / "edited/config.json").write_text(json.dumps(config | {"minimind_values": values}))
    with pytest.raises(ValueError, match="minimind_values"):
        load_model(tmp_path / "edited")
    config.pop("minimind_values")
    (tmp_path / "edited/config.json").write_text(json.dumps(config))
    load_model(tmp_path / "edited")


def test_it_costs_little(patch):
    """Well under a second once; nothing worth mention afterwards."""
    model, times = MiniMindLM(LMConfig.preset("demo", num_hidden_layers=8)), []
    for _ in range(2):
        begin = time.perf_counter()
        assert qwen3_check.verdict_on(model, to_disk(model.state_dict(), model.config), from_disk)
        times.append(time.perf_counter() - begin)
    assert times[0] < 1 and times[1] < 0.05, times


# ---- a whole project, edited


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """A copy of the project in which one line of model/model.py is another."""
    copy = tmp_path_factory.mktemp("edited") / "project"
    copy.mkdir()
    for name in ("model", "dataset", "training", "serving", "terminal", "tools", "scripts"):
        shutil.copytree(REPOSITORY / name, copy / name)
    for script in REPOSITORY.glob("*.py"):
        shutil.copy(script, copy)
    path = copy / "model/model.py"
    text = path.read_text()
    assert text.count("F.silu(self.gate_proj(x))") == 1
    text = text.replace("F.silu(self.gate_proj(x))", "F.relu(self.gate_proj(x)).square()")
    path.write_text(text)
    return copy


def in_project(project, script, *flags) -> subprocess.CompletedProcess:
    command = [sys.executable, project / script, *flags]
    return subprocess.run(
        list(map(str, command)), cwd=project, capture_output=True, text=True, timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_an_edited_project_trains_resumes_tunes_and_merges(edited, tmp_path, tiny_tokenizer_dir):
    """Its folders are "minimind" and open there; the project as it is refuses them in one line."""
    flags = make_inputs(tmp_path, tiny_tokenizer_dir)
    for steps in (4, 12):
        done = in_project(edited, "train_pretrain.py", *flags["pretrain"],
                          "--out_dir", tmp_path / "base2", "--max_steps", steps)  # fmt: skip
        assert done.returncode == 0, done.stderr
        notes = [line for line in done.stderr.splitlines() if "what Qwen3 computes" in line]
        assert len(notes) == 1 and "minimind" in notes[0]
    assert "going on from" in done.stdout
    base = tmp_path / "base2/step-00000012"
    tuning = [flag if flag != str(tmp_path / "base") else base for flag in flags["lora"]]
    done = in_project(edited, "train_lora.py", *tuning, "--out_dir", tmp_path / "lora")
    assert done.returncode == 0, done.stderr
    done = in_project(edited, "scripts/merge_lora.py", "--model", base, "--lora",
                      tmp_path / "lora", "--out_dir", tmp_path / "merged")  # fmt: skip
    assert done.returncode == 0, done.stderr
    prompt = ["--prompt", "The cat", "--temperature", 0, "--max_new_tokens", 4, "--model"]
    for folder in (base, tmp_path / "merged"):
        assert json.loads((folder / "config.json").read_text())["model_type"] == "minimind"
        done = in_project(edited, "eval_model.py", *prompt, folder)
        assert done.returncode == 0, done.stderr
        done = in_project(REPOSITORY, "eval_model.py", *prompt, folder)
        assert done.returncode == 2 and "written by an edited model" in done.stderr
        assert "Traceback" not in done.stderr


FIELD = """
import sys, torch
from dataclasses import dataclass, replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from model.hf_format import from_disk, to_disk, load_config, load_model, save_model
from model.model import MiniMindLM
from model.config import LMConfig
for scale, name in ((1.0, "plain"), (0.5, "scaled")):
    folder = Path(sys.argv[2]) / name
    folder.mkdir()
    config = LMConfig.preset("demo", num_hidden_layers=2, residual_scale=scale)
    save_model(MiniMindLM(config), folder, 2)
    assert load_config(folder) == config
    load_model(folder)
"""


def test_a_field_that_somebody_added_decides(edited, tmp_path):
    """With a value at which the model is Qwen3 it says so, with another it does not; it is kept."""
    project = shutil.copytree(REPOSITORY / "model", tmp_path / "project/model").parent
    for file, old, new in (
        ("config.py", '    use_moe: bool = _f(', '    residual_scale: float = _f(1.0, "an idea")\n'
         '    use_moe: bool = _f('),
        ("model.py", "self.dropout = nn.Dropout(config.dropout)\n\n    def forward(\n",
         "self.dropout = nn.Dropout(config.dropout)\n        self.scale = config.residual_scale\n"
         "\n    def forward(\n"),
        ("model.py", "return x + self.dropout(y), router", "return x + self.scale * y, router"),
    ):  # fmt: skip
        text = (project / "model" / file).read_text()
        assert text.count(old) == 1, old
        (project / "model" / file).write_text(text.replace(old, new))
    command = [sys.executable, "-c", FIELD, project, tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    kinds = [json.loads((tmp_path / n / "config.json").read_text()) for n in ("plain", "scaled")]
    assert [kind["model_type"] for kind in kinds] == ["qwen3", "minimind"]
    assert [kind["residual_scale"] for kind in kinds] == [1.0, 0.5]
