"""Checkpoints: a folder `step-00001000` is complete as soon as it has that name.

Everything is written to a temporary sibling, synced, described by manifest.json (sizes and SHA-256)
and renamed. A checkpoint is a model folder that other tools open, with a subfolder `resume` for
what only resuming needs: the optimizer's state, the counts, and the weights where the model's own
file holds fewer of their bits.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from model.hf_format import (
    DTYPES,
    EXACT_WEIGHTS_FILE,
    RESUME_FOLDER,
    is_reward_model,
    read_header,
    some_names,
    write_tensors,
)
from model.json_file import read_json, shown
from training.distributed import like

_STEP = re.compile(r"step-(\d{8,})")
_README_MARK = "<!-- written by training: kept up to date as long as this line stands here -->"


def write_checkpoint(
    out_dir: Path, optimizer_state: dict, state: dict, write_model: Callable[[Path], None]
) -> Path:
    """Write `out_dir/step-<state["step"]>` and return its path. Call on one rank only.

    optimizer_state  name -> Tensor on the CPU, of `optimizer_tensors`
    state            JSON values that resuming needs, "step" (optimizer steps done) among them
    write_model      writes what other tools open, weights and tokenizer, into an existing folder
    """
    folder = Path(out_dir) / f"step-{state['step']:08d}"
    temporary = Path(out_dir) / f".tmp-{folder.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_model(temporary)
        inside = temporary / RESUME_FOLDER
        inside.mkdir(exist_ok=True)
        write_tensors(inside / "optimizer.tensors", optimizer_state)
        # JSON knows no NaN: a best loss that is no number is as good as none
        state = {k: None if _is_no_number(v) else v for k, v in state.items()}
        (inside / "trainer_state.json").write_text(json.dumps(state, indent=2) + "\n")
        files = {name: _describe(temporary / name) for name in _files_in(temporary)}
        (temporary / "manifest.json").write_text(json.dumps({"files": files}, indent=2) + "\n")
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
        if folder.exists():  # the same step again, after a resume from before it
            shutil.rmtree(folder)
        temporary.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _write_readme(folder)
    return folder


def _files_in(folder: Path) -> list[str]:
    """The paths of all files in a folder and its subfolders, from there: "resume/…" for some."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def resume_files(folder: Path) -> tuple[Path, Path]:
    """Where a checkpoint has the optimizer's state and the counts; old ones: beside the weights."""
    inside = folder / RESUME_FOLDER
    if inside.is_dir():
        return inside / "optimizer.tensors", inside / "trainer_state.json"
    return folder / "optimizer.safetensors", folder / "trainer_state.json"


def exact_weights(folder: Path | None) -> Path | None:
    """The file with the very weights of a checkpoint, if its model.safetensors has them rounded."""
    file = folder and folder / RESUME_FOLDER / EXACT_WEIGHTS_FILE
    return file if file and file.is_file() else None


def _write_readme(newest: Path):
    """Say in the run's folder which of its folders other tools open; a failure only warns."""
    readme = newest.parent / "README.md"
    peft = (newest / "adapter_config.json").is_file()
    library, name = ("peft", "AutoPeftModel") if peft else ("transformers", "AutoModel")
    scores = (newest / "config.json").is_file() and is_reward_model(newest)
    name += "ForSequenceClassification" if scores else "ForCausalLM"
    text = f"""# This is the folder of a training run, not of a model
{_README_MARK}

Every `step-…` in here is {"an adapter" if peft else "a model"} folder that other tools open.
The newest:

```python
from {library} import {name}

model = {name}.from_pretrained({json.dumps(str(newest), ensure_ascii=False)})
```

The scripts of this project take either folder and find the newest step themselves. A step's
subfolder `resume` is needed to go on training and for nothing else: leave it out where you publish
a model.
"""
    try:
        if not readme.exists() or _README_MARK in readme.read_text("utf-8", "replace"):
            readme.write_text(text, encoding="utf-8")
    except OSError as error:
        print(f"warning: could not write {readme}: {error}", file=sys.stderr)


def find_checkpoint(out_dir: Path, resume: str, overwrite: bool) -> Path | None:
    """The checkpoint that --resume means, or None to start anew. Deletes nothing.

    Raises ValueError where starting anew would run over an earlier run's checkpoints.
    """
    if resume == "auto":
        newest = newest_checkpoint(out_dir)
        if newest is None and step_folders(out_dir):
            raise ValueError(
                f"--out_dir {out_dir}: every checkpoint there is damaged; choose another "
                "--out_dir, or --resume never --overwrite"
            )
        return newest
    if resume == "never":
        if step_folders(out_dir) and not overwrite:
            raise ValueError(
                f"--resume never: {out_dir} holds checkpoints of an earlier run; "
                "choose another --out_dir or add --overwrite"
            )
        return None
    folder = Path(resume)
    if not (folder / "manifest.json").is_file():
        folder = newest_checkpoint(folder)
    if folder is None:
        raise ValueError(f"--resume {resume}: no complete checkpoint there")
    if problem := damage(folder):
        raise ValueError(f"--resume {folder}: {problem}")
    return folder


def recorded(folder: Path | None, name: str) -> object:
    """What a checkpoint's trainer_state.json says under a name; None without a checkpoint."""
    return folder and read_json(resume_files(folder)[1]).get(name)


def clear_run(out_dir: Path):
    """Delete an earlier run's checkpoints and metrics (--resume never --overwrite)."""
    for folder in step_folders(out_dir):
        shutil.rmtree(folder)
    for name in ("metrics.jsonl", "loss.png", "wandb_id.txt"):
        (Path(out_dir) / name).unlink(missing_ok=True)
    for events in (Path(out_dir) / "tensorboard").glob("events.*"):
        events.unlink()


def resume(folder: Path, model: nn.Module, optimizer, scaler) -> dict:
    """Put optimizer and scaler back as they were and return trainer_state.json.

    The model is loaded apart. Raises ValueError with the path for a checkpoint that does not fit.
    """
    state = load_training_state(folder, model, optimizer)
    try:
        scaler.load_state_dict(state["scaler"])
    except (RuntimeError, KeyError, TypeError, ValueError):
        raise ValueError(
            f"--resume: {folder} has no state of a gradient scaler; give the --dtype it was "
            "trained with, or another --out_dir"
        ) from None
    return state


def load_training_state(folder: Path, model: nn.Module, optimizer) -> dict:
    """Put the optimizer's tensors back and return trainer_state.json.

    Names, shapes and dtypes are compared with the model's before memory is taken, and values that
    no optimizer computes are refused. Raises ValueError with the path.
    """
    file, state_file = resume_files(folder)
    state = read_state(state_file)
    stored = read_header(file)
    keys = _state_keys(optimizer)
    expected = {f"{name}.{key}" for name, p in trained(model) for key in keys[p]}
    if set(stored) != expected:
        names = some_names(set(stored) ^ expected)
        raise ValueError(f"{file}: optimizer state does not fit the model: {names}")
    for name, parameter in trained(model):
        for key in keys[parameter]:
            tensor = stored[f"{name}.{key}"]
            shape = () if key == "step" else tuple(parameter.shape)
            if tensor.shape != shape or DTYPES[tensor.dtype] != parameter.dtype:
                raise ValueError(
                    f"{file}: {name}.{key} is {tensor.shape} {tensor.dtype}, "
                    f"the model needs {shape} {parameter.dtype}"
                )
    with safe_open(file, framework="pt") as f:
        for name, parameter in trained(model):
            tensors = {key: f.get_tensor(f"{name}.{key}") for key in keys[parameter]}
            for key, tensor in tensors.items():
                never_negative = key in ("step", "exp_avg_sq")
                if not tensor.isfinite().all() or (never_negative and tensor.min() < 0):
                    raise ValueError(f"{file}: {name}.{key} holds what no optimizer computes")
            # `step` lives where a fresh fused AdamW keeps it: beside the parameter
            optimizer.state[parameter] = {
                key: like(tensor.clone(), parameter) for key, tensor in tensors.items()
            }
    return state


_COUNTS = ("step", "tokens", "pairs", "metrics_lines", "best_step", "bad_steps", "bad_in_a_row")


def read_state(path: Path) -> dict:
    """trainer_state.json; ValueError unless what training counts with is what it should be."""
    state = read_json(path)

    def require(ok: bool, name: str, expected: str):
        if not ok:
            got = shown(repr(state.get(name)), 60)
            raise ValueError(f"{path}: expected {expected} as {name!r}, got {got}")

    for name in _COUNTS:
        value = state.get(name, 0)
        optional = value is None and name == "best_step"
        require(optional or (type(value) is int and 0 <= value < 2**63), name, "a count")
    require("step" in state, "step", "a count")
    require(isinstance(state.get("scaler"), dict), "scaler", "an object")
    require(isinstance(state.get("eval_due", False), bool), "eval_due", "true or false")
    require(_is_loss(state.get("best_val_loss", 0)), "best_val_loss", "a number or null")
    since_log = state.get("since_log", [])
    fits = isinstance(since_log, list) and len(since_log) < 100 and all(map(_is_loss, since_log))
    require(fits and None not in since_log, "since_log", "a list of numbers")
    usual = state.get("usual_loss", [0, 0, 0])
    fits = isinstance(usual, list) and len(usual) == 3 and all(map(_is_loss, usual))
    require(fits and None not in usual, "usual_loss", "three numbers")
    return state


def _is_loss(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (is_number and abs(value) < 1e300)


def _is_no_number(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def step_folders(out_dir: str | Path) -> list[Path]:
    """All `step-…` folders of a run, oldest first."""
    found = []
    if Path(out_dir).is_dir():
        found = [p for p in Path(out_dir).iterdir() if _STEP.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=lambda p: int(_STEP.fullmatch(p.name)[1]))


def newest_checkpoint(out_dir: str | Path) -> Path | None:
    """The newest checkpoint whose every byte is as written; damaged ones are reported, skipped."""
    for folder in reversed(step_folders(out_dir)):
        problem = damage(folder)
        if problem is None:
            return folder
        print(f"warning: skipping damaged checkpoint {folder}: {problem}", file=sys.stderr)
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None if sizes and SHA-256 are as recorded."""
    try:
        files = read_json(folder / "manifest.json").get("files")
        read = [*resume_files(folder), exact_weights(folder)]
        needed = {file.relative_to(folder).as_posix() for file in read if file}
        if not isinstance(files, dict) or not files.keys() >= needed:
            return f"manifest.json does not name {', '.join(sorted(needed))}"
        for name, recorded in files.items():
            if name not in (Path(name).name, f"{RESUME_FOLDER}/{Path(name).name}"):
                return f"manifest.json names a file outside the folder: {shown(name)!r}"
            file = folder / name
            # the size first: what was cut off, or is a pipe or a device, need not be read
            if not file.is_file() or not isinstance(recorded, dict):
                return f"{shown(name)} is missing"
            if file.stat().st_size != recorded.get("size") or _describe(file) != recorded:
                return f"{shown(name)} is not what was written"
    except (OSError, ValueError) as error:
        return shown(error)
    return None


def model_folder(path: str | Path, flag: str) -> Path:
    """A folder that holds a model: `path` itself, or the newest complete step of a run."""
    path = Path(path)
    if (path / "config.json").is_file():
        return path
    if step_folders(path):
        newest = newest_checkpoint(path)
        if newest is not None and (newest / "config.json").is_file():
            return newest
        path = newest or path
    if (path / "adapter_config.json").is_file():
        raise ValueError(
            f"{flag} {path}: an adapter, not a model: put it together with its base "
            "(scripts/merge_lora.py), or name the base there (eval_model.py and serve_model.py "
            "take the adapter by --lora)"
        )
    raise ValueError(f"{flag} {path}: neither a model folder nor a run with a complete checkpoint")


def adapter_folder(path: str | Path, flag: str) -> Path:
    """A folder that holds an adapter: `path` itself, or the newest complete step of a run."""
    path = Path(path)
    folder = path if (path / "adapter_config.json").is_file() else newest_checkpoint(path)
    if folder is None or not (folder / "adapter_config.json").is_file():
        raise ValueError(f"{flag} {path}: neither an adapter's folder nor a run of train_lora.py")
    return folder


def remove_old_checkpoints(out_dir: str | Path, keep: int, best_step: int | None):
    """Delete all but the newest `keep` checkpoints and the best one; a failure only warns."""
    for folder in step_folders(out_dir)[: -max(keep, 1)]:
        if best_step is None or int(_STEP.fullmatch(folder.name)[1]) != best_step:
            try:
                shutil.rmtree(folder)
            except OSError as error:
                print(f"warning: could not delete {folder}: {error}", file=sys.stderr)
    remove_leftovers(out_dir)


def remove_leftovers(out_dir: str | Path):
    """Delete what saves of processes that were killed have left unfinished."""
    for leftover in Path(out_dir).glob(".tmp-step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _state_keys(optimizer) -> dict[nn.Parameter, tuple[str, ...]]:
    """The names of what the optimizer remembers of every parameter: AdamW's, or Muon's."""
    adamw, muon = ("exp_avg", "exp_avg_sq", "step"), ("momentum_buffer",)
    return {
        p: muon if group.get("muon") else adamw
        for group in optimizer.param_groups
        for p in group["params"]
    }


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that are trained and saved, with their names; a tied head is one of them."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def optimizer_tensors(model: nn.Module, optimizer) -> dict[str, torch.Tensor]:
    """What the optimizer remembers of every trained parameter: "<parameter>.<key>" -> Tensor."""
    tensors = {}
    keys = _state_keys(optimizer)
    for name, parameter in trained(model):
        state = optimizer.state.get(parameter, {})
        for key in keys[parameter]:
            # nothing yet: a GradScaler has skipped every update so far
            empty = torch.tensor(0.0) if key == "step" else torch.zeros_like(parameter)
            tensors[f"{name}.{key}"] = state.get(key, empty)
    return tensors


def _describe(file: Path) -> dict:
    digest = hashlib.sha256()
    with open(file, "rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return {"size": file.stat().st_size, "sha256": digest.hexdigest()}


def _sync(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
