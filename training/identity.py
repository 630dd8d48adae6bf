"""What makes a run the same run: what a checkpoint must agree on to be continued.

Told in the words of the command line, so that the answer is a flag. What is not part of the
identity may change (learning rate, steps, weights of losses) and is named.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from dataset.content_hash import sha256_of
from model.config import LMConfig
from model.hf_format import load_config, weights_sha256
from model.json_file import read_json, shown
from training.checkpoint import model_folder, resume_files
from training.cli import CHANGEABLE

NO_BASE = "none"  # base_sha256 of a run from random weights
# flags that say nothing of what is learned or how; not compared
_OF_A_START = {
    "out_dir", "resume", "resume_on_changed_data", "allow_changes", "overwrite", "cache_dir",
    "use_tensorboard", "use_wandb", "wandb_project", "wandb_run_name",
}  # fmt: skip
# what runs did that began before there was the flag
_BEFORE_THE_FLAG = {"lr_schedule": "cosine"}
# what the tensors of a checkpoint depend on: not even --allow_changes can change it
_FIXED = {
    "optimizer", "lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "use_rslora",
    "use_dora",
}  # fmt: skip
DATA_FLAGS = (  # what data_fingerprint depends on, and the files' contents
    "data_path", "data_weights", "val_data_path", "val_fraction", "max_seq_len", "packing",
    "tokenizer", "init_from", "data", "text_field", "enable_thinking",
)  # fmt: skip


def run_identity(args, ranks, adapter=None, **more) -> dict:
    """All of it but the data: JSON values by the name of their flag, where there is one flag.

    adapter: the LoRAConfig, if there is one. more: what else a script's loss is made of.
    """
    return {
        "rows_per_update": args.batch_size * args.accumulation_steps * ranks.world_size,
        "optimizer": args.optimizer,
        "seed": args.seed,
        "base_sha256": weights_sha256(args.init_from) if args.init_from else NO_BASE,
        **more,
        **(adapter.to_dict() if adapter else {}),
    }


def files_sha256(paths: list[Path]) -> dict[str, str]:
    """By path what a run depends on beside its data: of files the bytes, of models the weights."""

    def sha256(path: Path) -> str:
        if path.is_dir():
            return weights_sha256(model_folder(path, "--reward: the folder"))
        return sha256_of(path)

    return {str(path): sha256(path) for path in paths}


def check_identity(folder: Path, identity: dict, args, ranks, config: LMConfig | None) -> list[str]:
    """Compare a checkpoint with the run that would go on from it.

    identity  what is to be compared; what the checkpoint does not know (older ones lack some) is
              not
    config    the model's architecture, compared as well; None: that of the base, which is the same

    Returns a line for every difference that --allow_changes has allowed. Raises ValueError with all
    differences, each with the flag that mends it.
    """
    state = read_json(resume_files(folder)[1])
    differences = {
        name: _difference(name, state[name], value, folder, args, ranks)
        for name, value in identity.items()
        if name in state and state[name] != value
    }
    if "base_sha256" in identity and "base_sha256" not in state:  # of an earlier version
        before = earlier_flags(folder).get("init_from")
        if before and not _same_base(before, identity["base_sha256"], args.init_from):
            differences["base_sha256"] = (
                f"it began from {shown(before)}, this run begins from {args.init_from}: give the "
                "--init_from it had"
            )
    if config is not None and "base_sha256" not in differences:  # another base says it all
        saved = load_config(folder)
        for name, value in config.to_dict().items():
            if (have := getattr(saved, name)) != value:
                differences[name] = _flag(name, have, value)
    if not differences:
        return []
    is_adapter = "lora_rank" in identity
    fixed = [
        name
        for name in differences
        if name in _FIXED
        or (name == "base_sha256" and is_adapter)
        or (name in {f.name for f in fields(LMConfig)} and name not in CHANGEABLE)
    ]
    only_data = args.resume_on_changed_data and differences.keys() <= {"data_fingerprint"}
    if not fixed and (args.allow_changes or only_data):
        return [f"going on although {text.partition(': ')[0]}" for text in differences.values()]
    anyway = "" if fixed else ", or --allow_changes to go on all the same"
    if differences.keys() == {"data_fingerprint"}:
        anyway = ", or --resume_on_changed_data to go on all the same"
    raise ValueError(
        f"--resume: {folder} belongs to another run: {'; '.join(differences.values())}. Or choose "
        f"another --out_dir{anyway}"
    )


def _same_base(before: str, sha256: str, now: Path | None) -> bool:
    """Whether a folder has the weights with this hash; by its path if it has gone."""
    try:
        return weights_sha256(before) == sha256
    except ValueError:
        return str(before) == str(now)


def _difference(name: str, had: object, value: object, folder: Path, args, ranks) -> str:
    if name == "rows_per_update":
        return _rows(had, args, ranks)
    if name == "base_sha256":
        before = earlier_flags(folder).get("init_from")
        return (
            f"it began from {_base(had, before)}, this run begins from "
            f"{_base(value, args.init_from)}: give the --init_from it had"
        )
    if name == "teacher_sha256":
        return (
            f"its teacher was {_base(had, earlier_flags(folder).get('teacher'))}, is "
            f"{_base(value, args.teacher)}: give the --teacher it had"
        )
    if name == "judged_by":  # other names are told by their flag
        had = had if isinstance(had, dict) else {}
        changed = [path for path, sha256 in value.items() if had.get(path, sha256) != sha256]
        return f"what it learns by has changed: {', '.join(changed) or 'other files'}: put it back"
    if name == "data_fingerprint":
        changed = [
            _flag(flag, have, value)
            for flag, (have, value) in changed_flags(folder, args, None).items()
            if flag in DATA_FLAGS
        ]
        what = "the data is not what it was trained on"
        otherwise = "the files have changed, or how they are read"
        is_old = resume_files(folder)[1].parent == folder
        if is_old and (folder / "chat_template.jinja").is_file():
            otherwise += " (the chat format was another one when it began: begin anew)"
        return f"{what}: " + ("; ".join(changed) or otherwise)
    return _flag(name, had, value)


def _rows(had: object, args, ranks) -> str:
    """Rows of an update: which flags make them what they were."""
    factors = args.batch_size, args.accumulation_steps, ranks.world_size
    batch_size, accumulation_steps, processes = factors
    text = (
        f"batch_size × accumulation_steps × processes was {had}, is "
        f"{batch_size * accumulation_steps * processes}"
    )
    if type(had) is not int or had < 1 or had % processes:
        return f"{text}: start a number of processes that divides {had}"
    rows = had // processes  # of a process
    if rows % batch_size == 0:
        return f"{text}: add --accumulation_steps {rows // batch_size}"
    if rows % accumulation_steps == 0:
        return f"{text}: add --batch_size {rows // accumulation_steps}"
    return f"{text}: add --batch_size {rows} --accumulation_steps 1"


def _base(sha256: object, folder: object) -> str:
    if sha256 == NO_BASE:
        return "random weights"
    return f"{shown(folder or 'other weights')} (SHA-256 {shown(sha256, 12)})"


def _flag(name: str, had: object, value: object) -> str:
    way = f"give --{name} {_words(had)}"
    if isinstance(had, bool):
        way = f"give --{name}" if had else f"go without --{name}"
    return f"--{name} was {_words(had)}, is {_words(value)}: {way}"


def _words(value: object) -> str:
    return shown(" ".join(map(str, value)) if isinstance(value, list) else value, 80)


def earlier_flags(folder: Path) -> dict:
    """args.json of the run that a checkpoint belongs to; empty if it is not there."""
    try:
        return read_json(Path(folder).parent / "args.json")
    except ValueError:
        return {}


def changed_flags(folder: Path, args, config: LMConfig | None) -> dict[str, tuple]:
    """The flags that are not what a checkpoint's run had: name -> (before, now), JSON values.

    config: the architecture, compared whether its flags were given or not; None: not compared.
    """
    before = earlier_flags(folder)
    before = before and _BEFORE_THE_FLAG | before
    now = json.loads(json.dumps(vars(args), default=str))
    skipped = _OF_A_START | _FIXED | {f.name for f in fields(LMConfig)}
    if args.data_path is None:  # then the demo's questions may have been filled in
        skipped = skipped | {"questions"}
    if args.auto_batch:
        skipped = skipped | {"batch_size", "accumulation_steps"}
    compared = {name: value for name, value in now.items() if name not in skipped}
    known = before
    if config is not None and isinstance(before.get("config"), dict):
        numbers = json.loads(json.dumps(config.to_dict()))
        if not config.use_moe:  # what experts would be like is no one's business
            of_experts = ("expert", "moe_", "norm_topk", "router_")
            numbers = {n: v for n, v in numbers.items() if not any(x in n for x in of_experts)}
        compared |= numbers
        known = before | before["config"]
    return {
        name: (known[name], value)
        for name, value in compared.items()
        if name in known and known[name] != value
    }


def in_words(changes: dict[str, tuple]) -> str:
    """The changes of `changed_flags` as one line."""
    return ", ".join(f"--{n} {_words(had)} → {_words(now)}" for n, (had, now) in changes.items())
