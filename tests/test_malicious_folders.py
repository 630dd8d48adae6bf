"""Folders made to do harm: whatever opens one takes no memory, runs no code, leaves no folder.

What test_hf_format.py, test_lora.py and test_tokenizer.py damage by accident is not repeated here.
"""

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracle_models import our_model, random_numbers, save_here
from safetensors.torch import load_file, save_file

from dataset.tokenizer import load_tokenizer
from model import lora
from model.config import LMConfig
from model.hf_format import load_model
from model.json_file import LARGEST_JSON, read_json
from tests.conftest import ROOT
from training import checkpoint
from training.optimizers import build_optimizer


def refused(function, path, *words):
    """function() raises ValueError with one short printable line: the path and every word."""
    with pytest.raises(ValueError) as error:
        function()
    message = str(error.value)
    assert message.isprintable() and len(message) < 600, message
    for word in (str(path), *words):
        assert word in message, message


def make_pipe(path: Path):
    path.unlink()
    os.mkfifo(path)


def make_endless(path: Path):
    path.unlink()
    path.symlink_to("/dev/zero")


def make_huge(path: Path):
    with open(path, "wb") as file:
        file.truncate(2**40)  # one terabyte that takes no room


NO_FILES = {"a pipe": make_pipe, "a device": make_endless}


# ---- JSON


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ('{"a": 1, "a": 2}', "'a' twice"),
        ('{"a": {"b": [{"c": 1, "c": 1}]}}', "'c' twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a": 1e999}', "1e999"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ('{"a": ' + "[" * 200_000, "JSON"),
        ('{"a": ' * 200_000, "JSON"),
        ('["\\u001b[2J"]', "expected a JSON object"),
        ('{"\\u001b[2J\\n": 1, "\\u001b[2J\\n": 1}', "twice"),
    ],
)
def test_strange_json_is_refused(tmp_path, content, word):
    """Keys given twice, numbers that are none, endless nesting: one line with the path."""
    path = tmp_path / "config.json"
    path.write_text(content)
    refused(lambda: read_json(path), path, word)


def test_large_json_is_refused_unread(tmp_path):
    """A file over the bound is never parsed, however large it claims to be."""
    path = tmp_path / "config.json"
    path.write_text('{"a": "' + "x" * (LARGEST_JSON - 9) + '"}')
    assert len(read_json(path)["a"]) == LARGEST_JSON - 9
    path.write_text('{"a": "' + "x" * (LARGEST_JSON - 8) + '"}')
    refused(lambda: read_json(path), path, "larger than")
    make_huge(path)
    refused(lambda: read_json(path), path, "larger than")


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_not_read(tmp_path, kind):
    """A pipe that nobody writes to and a device without end do not hold us up."""
    path = tmp_path / "config.json"
    path.write_text("{}")
    NO_FILES[kind](path)
    refused(lambda: read_json(path), path, "expected a file")


# ---- model folders


@pytest.fixture
def model_folder(tmp_path):
    return save_here(our_model(random_numbers(1, num_hidden_layers=2)), tmp_path / "model")


def write_header(file: Path, header: dict | bytes, data: bytes = b"", length: int | None = None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(header) if length is None else length
    file.write_bytes(struct.pack("<Q", length) + header + data)


def tensor(shape: list, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


@pytest.mark.parametrize("length", [3, 10**6, 10**12, 2**64 - 1])
def test_a_header_longer_than_its_file_is_refused(model_folder, length):
    """The length in the first eight bytes is not believed."""
    file = model_folder / "model.safetensors"
    write_header(file, b"{}", length=length)
    refused(lambda: load_model(model_folder), file, "not a readable safetensors file")


@pytest.mark.parametrize(
    "header",
    [
        {"a": tensor([2**62, 4], 4)},
        {"a": tensor([2**40], 4)},
        {"a": tensor([-1], 4)},
        {"a": tensor([1], 2**63)},
        {"a": tensor([1], 4, "F128")},
        {"a": tensor([1], 4, "C64")},
        b"[" * 100_000,
        b'{"__metadata__": ' + b'{"a": ' * 50_000,
    ],
)
def test_a_header_that_promises_too_much_is_refused(model_folder, header):
    """Sizes that the file does not hold, or that overflow, end at the header."""
    file = model_folder / "model.safetensors"
    write_header(file, header, bytes(4))
    refused(lambda: load_model(model_folder), file)


def test_names_cannot_write_on_the_terminal(model_folder):
    """A tensor's name with escape sequences and line ends is shown without them."""
    file = model_folder / "model.safetensors"
    save_file(load_file(file) | {"\x1b[2J\nerror: all is well": torch.zeros(1)}, file)
    refused(lambda: load_model(model_folder), model_folder, "not expected", "all is well")
    save_file({"\x1b[2J\n" * 10**5: torch.zeros(1, dtype=torch.int8)}, file)
    refused(lambda: load_model(model_folder), file, "I8")


@pytest.mark.parametrize("kind", NO_FILES)
def test_weights_that_are_no_file_are_refused(model_folder, kind):
    """A pipe or device in the place of the weights is not opened."""
    file = model_folder / "model.safetensors"
    NO_FILES[kind](file)
    refused(lambda: load_model(model_folder), model_folder, "model.safetensors")
    (model_folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"model.norm.weight": "shard.safetensors"}}'
    )
    file.rename(model_folder / "shard.safetensors")
    refused(lambda: load_model(model_folder), model_folder / "shard.safetensors")


def test_a_tensor_in_two_shards_is_refused(model_folder):
    """Which of two would be meant cannot be told."""
    whole = load_file(model_folder / "model.safetensors")
    (model_folder / "model.safetensors").unlink()
    save_file(whole, model_folder / "a.safetensors")
    save_file({"model.norm.weight": whole["model.norm.weight"]}, model_folder / "b.safetensors")
    names = dict.fromkeys(whole, "a.safetensors") | {"model.norm.weight": "b.safetensors"}
    index = model_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    refused(lambda: load_model(model_folder), model_folder, "model.norm.weight", "another file")


def test_a_cache_of_links_opens(model_folder, tmp_path, tiny_tokenizer_dir):
    """Links, as in a Hugging Face cache, are followed: snapshots/<id>/ leads to blobs/."""
    shutil.copytree(tiny_tokenizer_dir, model_folder, dirs_exist_ok=True)
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "0", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in model_folder.iterdir():
        file.rename(blobs / f"blob of {file.name}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"blob of {file.name}")
    load_model(snapshot)
    assert load_tokenizer(snapshot).vocab_size == 512


def test_a_config_cannot_ask_for_millions_of_modules():
    """The number of layers and experts is bounded before any is made."""
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
    for name in ("num_hidden_layers", "num_experts"):
        with pytest.raises(ValueError, match=f"{name} is 4097; expected at most 4096"):
            LMConfig(**sizes, **{name: 4097})


# ---- adapters


@pytest.fixture
def adapter(model_folder, tmp_path):
    """(base model, folder of an adapter of rank 2 for it)."""
    model, folder = load_model(model_folder), tmp_path / "adapter"
    config = lora.LoRAConfig(lora_rank=2)
    lora.attach(model, config)
    folder.mkdir()
    lora.save_adapter(model, config, folder, model_folder, "0" * 64)
    lora.detach(model)
    return model, folder


@pytest.mark.parametrize(
    ("key", "text"),
    [("r", "1e999"), ("r", "1e29"), ("r", "9" * 400), ("r", "NaN"), ("r", "0"), ("r", "-1"),
     ("r", "true"), ("lora_alpha", "Infinity"), ("lora_alpha", "9" * 400), ("lora_dropout", "1e9"),
     ("lora_dropout", "NaN"), ("target_modules", '["\\u001b[2J\\n"]'), ("target_modules", "[[]]"),
     ("target_modules", "[]"), ("target_modules", '"' + "x" * 10**6 + '"')],
)  # fmt: skip
def test_an_adapters_numbers_are_checked(adapter, key, text):
    """Ranks and scales that cannot be are refused, and the model stays as it was."""
    model, folder = adapter
    content = json.loads((folder / lora.CONFIG_FILE).read_text())
    content.pop(key)
    (folder / lora.CONFIG_FILE).write_text(json.dumps(content)[:-1] + f', "{key}": {text}}}')
    refused(lambda: lora.load_adapter(model, folder, "0" * 64), folder)
    assert not list(lora.adapters(model))


def test_an_adapters_tensors_are_numbers(adapter):
    """Whole numbers are no adapter; a pipe is not waited for."""
    model, folder = adapter
    file = folder / lora.WEIGHTS_FILE
    tensors = {name: t.to(torch.int64) for name, t in load_file(file).items()}
    save_file(tensors, file)
    refused(lambda: lora.load_adapter(model, folder, "0" * 64), file, "I64")
    make_pipe(file)
    refused(lambda: lora.load_adapter(model, folder, "0" * 64), file)


# ---- checkpoints


@pytest.fixture
def run(tmp_path):
    """(model, optimizer, folder of their checkpoint)."""
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer("adamw", model, 0.1, 0.0, torch.float32)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"step": 1, "tokens": 7, "metrics_lines": 1, "eval_due": False, "scaler": {}}
    state |= {"best_val_loss": float("nan"), "best_step": 1, "usual_loss": [0.0, 0.0, 0]}
    moments = checkpoint.optimizer_tensors(model, optimizer)
    folder = checkpoint.write_checkpoint(
        tmp_path / "run", moments, state, lambda f: save_file(model.state_dict(), f / "m.bin")
    )
    return model, optimizer, folder


def test_a_best_loss_that_is_no_number_is_saved_as_none(run):
    """The file stays JSON, and the run that wrote it can go on from it."""
    model, optimizer, folder = run
    assert "NaN" not in (folder / "resume/trainer_state.json").read_text()
    state = checkpoint.load_training_state(folder, model, optimizer)
    assert state["best_val_loss"] is None and state["tokens"] == 7


@pytest.mark.parametrize(
    "name", ["../run/step-00000001/m.bin", "/etc/passwd", "..", ".", "", "a/b"]
)
def test_a_manifest_leads_nowhere_else(run, name):
    """Names in a manifest are names of files in the folder: anything else is damage."""
    folder = run[2]
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = manifest["files"]["m.bin"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoint.damage(folder) is not None
    assert checkpoint.newest_checkpoint(folder.parent) is None


@pytest.mark.parametrize(
    "content",
    ["{}", '{"files": {}}', '{"files": []}', '{"files": null}', "[]", "", '{"files": {"m.bin": 1}}',
     '{"files": {"resume/trainer_state.json": {}, "resume/optimizer.tensors": []}}'],
)  # fmt: skip
def test_an_empty_manifest_vouches_for_nothing(run, content):
    """A manifest that leaves out what resuming reads is damage."""
    folder = run[2]
    (folder / "manifest.json").write_text(content)
    assert checkpoint.damage(folder) is not None
    with pytest.raises(ValueError, match="--resume"):
        checkpoint.find_checkpoint(folder.parent, str(folder), overwrite=False)


@pytest.mark.parametrize("change", [make_pipe, make_endless, make_huge, Path.unlink])
def test_a_checkpoint_of_pipes_and_devices_is_damaged(run, change):
    """What is no file or has another size is noticed without reading it."""
    folder = run[2]
    for name in ("m.bin", "resume/trainer_state.json", "manifest.json"):
        copy = folder.parent / name / folder.name
        shutil.copytree(folder, copy)
        change(copy / name)
        assert checkpoint.damage(copy) is not None


OPTIMIZER_DAMAGE = {
    "a wrong shape": {"weight.exp_avg": torch.zeros(3, 2)},
    "a huge shape": {"weight.exp_avg": torch.zeros(1).expand(2000, 3000).contiguous()},
    "a scalar": {"weight.exp_avg": torch.zeros(())},
    "a long step": {"weight.step": torch.ones(1)},
    "half precision": {"weight.exp_avg_sq": torch.zeros(2, 3, dtype=torch.float16)},
    "whole numbers": {"weight.exp_avg_sq": torch.zeros(2, 3, dtype=torch.int64)},
    "NaN": {"weight.exp_avg": torch.full((2, 3), float("nan"))},
    "infinity": {"bias.exp_avg": torch.full((2,), float("inf"))},
    "a negative square": {"weight.exp_avg_sq": torch.full((2, 3), -1.0)},
    "a negative step": {"weight.step": torch.tensor(-1.0)},
    "one too many": {"other.exp_avg": torch.zeros(2)},
}


@pytest.mark.parametrize("kind", OPTIMIZER_DAMAGE)
def test_optimizer_state_is_checked_before_use(run, kind):
    """Shapes, dtypes and values of moments and steps; the optimizer keeps what it had."""
    model, optimizer, folder = run
    before = {name: t.clone() for name, t in checkpoint.optimizer_tensors(model, optimizer).items()}
    file = folder / "resume/optimizer.tensors"
    save_file(load_file(file) | OPTIMIZER_DAMAGE[kind], file)
    refused(lambda: checkpoint.load_training_state(folder, model, optimizer), file)
    after = checkpoint.optimizer_tensors(model, optimizer)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("key", "text"),
    [("step", "NaN"), ("step", "-1"), ("step", "1.0"), ("step", "true"), ("step", '"1"'),
     ("step", "1e400"), ("step", "9" * 30), ("tokens", "Infinity"), ("tokens", "[]"),
     ("metrics_lines", "null"), ("eval_due", "1"), ("best_val_loss", "NaN"),
     ("best_val_loss", '"low"'), ("best_step", "-3"), ("scaler", "null"), ("scaler", "[]"),
     ("usual_loss", "[0, 0]"), ("usual_loss", "[0, 0, null]"), ("usual_loss", "[1e308, 0, 0]"),
     ("bad_steps", "{}"), ("since_log", "{}"), ("since_log", "[1, null]")],
)  # fmt: skip
def test_trainer_state_is_checked_before_use(run, key, text):
    """Counts are whole numbers, losses are finite, and there is no NaN."""
    model, optimizer, folder = run
    path = folder / "resume/trainer_state.json"
    state = json.loads(path.read_text())
    state.pop(key, None)
    path.write_text(json.dumps(state)[:-1] + f', "{key}": {text}}}')
    refused(lambda: checkpoint.load_training_state(folder, model, optimizer), path)


@pytest.mark.parametrize("scaler", [{}, {"scale": "x"}, {"scale": 1.0}])
def test_a_scaler_that_cannot_be_restored_is_told(run, scaler):
    """Going on in float16 from a checkpoint without a scaler's state names --dtype."""
    model, optimizer, folder = run
    path = folder / "resume/trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaler": scaler}))

    enabled = torch.amp.GradScaler("cpu")
    refused(lambda: checkpoint.resume(folder, model, optimizer, enabled), folder, "--dtype")
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    checkpoint.resume(folder, model, optimizer, disabled)


# ---- tokenizer folders


@pytest.fixture
def tokenizer_folder(tiny_tokenizer_dir, tmp_path):
    return Path(shutil.copytree(tiny_tokenizer_dir, tmp_path / "tokenizer"))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.json"])
def test_a_link_out_of_a_tokenizer_folder_is_refused(tokenizer_folder, tmp_path, name):
    """Its files are copied into every model: a link must not give away what it leads to."""
    secret = tmp_path / "secret.json"
    (tokenizer_folder / name).touch()
    (tokenizer_folder / name).rename(secret)
    (tokenizer_folder / name).symlink_to(secret)
    refused(lambda: load_tokenizer(tokenizer_folder), tokenizer_folder, name, "link")
    secret.rename(tokenizer_folder / "real.json")
    (tokenizer_folder / name).unlink()
    (tokenizer_folder / name).symlink_to("real.json")
    load_tokenizer(tokenizer_folder)


def test_code_in_a_folder_is_never_run(tokenizer_folder, tmp_path, monkeypatch):
    """A tokenizer that wants to bring its own class is refused, and not imported."""
    marker = tmp_path / "it ran"
    (tokenizer_folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    path = tokenizer_folder / "tokenizer_config.json"
    auto_map = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | auto_map))
    monkeypatch.chdir(tokenizer_folder)
    refused(lambda: load_tokenizer(tokenizer_folder), tokenizer_folder, "auto_map")
    assert not marker.exists() and "evil" not in sys.modules


def test_a_tokenizer_is_saved_as_it_was_loaded(tokenizer_folder, tmp_path):
    """Checkpoints get the files that were opened, though the folder changes or goes meanwhile."""
    tokenizer = load_tokenizer(tokenizer_folder)
    before = (tokenizer_folder / "tokenizer.json").read_bytes()
    shutil.rmtree(tokenizer_folder)
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").read_bytes() == before
    assert load_tokenizer(tmp_path / "saved").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("change", [make_pipe, make_endless, make_huge])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "merges.txt"])
def test_a_tokenizer_of_pipes_and_devices_is_refused(tokenizer_folder, name, change):
    """Nothing without end is read."""
    (tokenizer_folder / name).touch()
    change(tokenizer_folder / name)
    refused(lambda: load_tokenizer(tokenizer_folder), tokenizer_folder, "--tokenizer")


def edited(folder: Path, edit):
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    edit(spec)
    path.write_text(json.dumps(spec))


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda spec: spec["model"]["vocab"].update(zz=4 * 10**9), "ids up to"),
        (lambda spec: spec["added_tokens"][3].update(id=10**12), "ids up to"),
        (lambda spec: spec["added_tokens"][3].update(id=-1), "-1"),
        (lambda spec: spec["added_tokens"][3].update(id=1.5), "1.5"),
        (lambda spec: spec["added_tokens"][3].update(id=True), "True"),
        (lambda spec: spec["added_tokens"][3].update(id=300), "one id"),
        (lambda spec: spec["added_tokens"][3].update(id=2), "one id"),
        (lambda spec: spec["model"]["vocab"].update(zz=300), "one id"),
    ],
)
def test_ids_are_checked(tokenizer_folder, edit, word):
    """No id is beyond a sane size, and no text can have the id of a control token."""
    edited(tokenizer_folder, edit)
    refused(lambda: load_tokenizer(tokenizer_folder), tokenizer_folder, word)


def test_a_panic_of_the_library_is_a_refusal(tokenizer_folder):
    """What makes the tokenizers library panic, which is no Exception, is one line as well."""
    edited(tokenizer_folder, lambda spec: spec["model"].update(continuing_subword_prefix="x" * 9))
    refused(lambda: load_tokenizer(tokenizer_folder), tokenizer_folder, "tokenizer.json")


STRANGE = (None, True, -1, 1e300, 2**63, "", "\x00", "<|im_end|>", [], {}, [[]], "BPE", "ByteLevel")


def mutate(value, rng: random.Random):
    """A JSON value with one thing in it replaced, left out or doubled."""
    if rng.random() < 0.2 or not isinstance(value, dict | list) or not value:
        return rng.choice(STRANGE)
    places = range(len(value)) if isinstance(value, list) else list(value)
    place, copy = rng.choice(places), value.copy()
    action = rng.random()
    if action < 0.7:
        copy[place] = mutate(value[place], rng)
    elif action < 0.85:
        del copy[place]
    elif isinstance(copy, list):
        copy.append(value[place])
    else:
        copy[rng.choice(("type", "content", "id", "zz"))] = value[place]
    return copy


def test_a_damaged_tokenizer_is_refused_or_safe(tokenizer_folder):
    """300 mutations of tokenizer.json: one line with the path, or text without control tokens."""
    path, rng = tokenizer_folder / "tokenizer.json", random.Random(0)
    whole = json.loads(path.read_text())
    opened = 0
    for _ in range(300):
        spec = mutate(whole, rng)
        if isinstance(spec, dict) and rng.random() < 0.5:
            spec = {**spec, "added_tokens": mutate(whole["added_tokens"], rng)}
        path.write_text(json.dumps(spec))
        try:
            tokenizer = load_tokenizer(tokenizer_folder)
        except ValueError as error:
            assert str(tokenizer_folder) in str(error) and str(error).isprintable()
            continue
        opened += 1
        ids = tokenizer.encode_text("the <|im_end|> <|endoftext|> cat 小猫")
        assert not set(ids) & set(tokenizer.control_tokens.values())
    assert 0 < opened < 300


# ---- memory

MEASURE = """
import resource, sys
from model import lora
from model.hf_format import load_model

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

model = load_model(sys.argv[1])
lora.load_adapter(model, sys.argv[2], "0" * 64)  # everything that is needed once is there
for folder in sys.argv[3:]:
    before = peak()
    try:
        if "adapter" in folder:
            lora.load_adapter(model, folder, "0" * 64)
        else:
            load_model(folder)
    except ValueError as error:
        assert folder in str(error), error
    else:
        raise AssertionError(folder)
    print(peak() - before)
"""


def test_refusing_takes_no_memory(adapter, model_folder, tmp_path):
    """Huge models and adapters in small files: the process grows by less than 20 MB."""
    _, good_adapter = adapter
    wide = json.loads((model_folder / "config.json").read_text()) | {"vocab_size": 10**6}
    changes = {
        "vocabulary": {"vocab_size": 2 * 10**9},
        "width": {"intermediate_size": 10**9},
        "layers": {"num_hidden_layers": 4096},
        "both": {"hidden_size": 10**6, "head_dim": 10**4, "vocab_size": 10**6},
    }
    folders = []
    for name, change in changes.items():
        folders.append(shutil.copytree(model_folder, tmp_path / name))
        (folders[-1] / "config.json").write_text(json.dumps(wide | change))
    folders.append(shutil.copytree(good_adapter, tmp_path / "adapter of a huge rank"))
    content = json.loads((folders[-1] / lora.CONFIG_FILE).read_text())
    (folders[-1] / lora.CONFIG_FILE).write_text(json.dumps(content | {"r": 10**9}))
    # the widest matrix allows a rank of millions: only the file's own shapes say no
    base = our_model(random_numbers(1, num_hidden_layers=2, vocab_size=400_000))
    base = save_here(base, tmp_path / "base")
    folders.append(shutil.copytree(good_adapter, tmp_path / "adapter of a wide rank"))
    (folders[-1] / lora.CONFIG_FILE).write_text(json.dumps(content | {"r": 300_000}))
    command = [sys.executable, "-c", MEASURE, base, good_adapter, *folders]
    done = subprocess.run(map(str, command), cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    grown = list(map(int, done.stdout.split()))
    assert len(grown) == len(folders) and max(grown) < 20e6, grown
