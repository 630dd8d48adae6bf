"""Reads and writes a model folder: config.json + model.safetensors, as transformers does for Qwen3.

Dense weights have the same names in memory and on disk. A mixture of experts is stacked per layer
in memory (`mlp.gate_proj [E, I, C]`) and split per expert on disk
(`mlp.experts.3.gate_proj.weight [I, C]`).
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model import qwen3_check
from model.config import LMConfig
from model.json_file import read_json, shown
from model.model import MiniMindLM

_STACKED = re.compile(r"(model\.layers\.\d+\.mlp)\.(gate_proj|up_proj|down_proj)")
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}  # of weights
WEIGHTS_FILE, GENERATION_FILE = "model.safetensors", "generation_config.json"
# What only resuming needs lies in this subfolder, in files of the safetensors format whose names
# end otherwise: vLLM, SGLang and Ollama read every *.safetensors of a folder as weights, and other
# tools those of its subfolders, too.
_VALUES_KEY = "minimind_values"  # in an edited model's config.json: a small one's logits
RESUME_FOLDER, EXACT_WEIGHTS_FILE = "resume", "weights.tensors"


class Inherited(NamedTuple):
    """What the folder of a fine-tuned model has from the folder of the model it began as."""

    dtypes: dict[str, torch.dtype]  # of every tensor, by its name on disk
    generation_config: dict  # {} if there is none


def inherited(folder: str | Path) -> Inherited:
    """What `save_model` takes over from a base's folder. ValueError names a file that is unfit."""
    stored = _stored_tensors(Path(folder))
    dtypes = {name: DTYPES[tensor.dtype] for name, tensor in stored.items()}
    path = Path(folder) / GENERATION_FILE
    generation = read_json(path) if path.is_file() else {}
    ends = generation.get("eos_token_id")
    for id in ends if isinstance(ends, list) else [ends]:
        if id is not None and (type(id) is not int or id < 0):
            raise ValueError(f"{path}: eos_token_id: expected ids, got {shown(repr(id), 60)}")
    return Inherited(dtypes, generation)


def save_model(
    model: MiniMindLM,
    folder: str | Path,
    eos_token_id: int | list[int],
    weights: dict[str, Tensor] | None = None,
    base: Inherited | None = None,
):
    """Write model.safetensors, config.json and generation_config.json into an existing folder.

    eos_token_id: the token, or tokens, at which generation stops. weights: in place of the model's
    own, under its names (a copy, while the model is training on). base: of the folder that training
    began with. Its dtypes are kept, and `weights` that have more bits are written to
    resume/weights.tensors besides; its sampling settings and end tokens stay, too. Without a base
    weights keep their dtype.

    A model that does not compute what Qwen3 computes, because somebody has edited it, is written
    with the model_type "minimind", which other tools refuse, and that is said once.
    """
    folder = Path(folder)
    tensors = to_disk(model.state_dict() if weights is None else weights, model.config)
    dtypes, generation = base or Inherited({}, {})
    dtype = write_weights(folder, tensors, dtypes, weights is not None)
    ends = {"eos_token_id": _all_ends(eos_token_id, generation.get("eos_token_id"))}
    verdict = qwen3_check.verdict_on(model, tensors, from_disk)
    write_config(folder, model, verdict, {"dtype": dtype} | ends)
    _write_json(folder / GENERATION_FILE, generation | ends)


def write_weights(
    folder: Path, tensors: dict[str, Tensor], dtypes: dict[str, torch.dtype], keep_exact: bool
) -> str:
    """model.safetensors, its tensors in these dtypes, else in their own; the name of most's dtype.

    keep_exact: those that lose bits by it are written to resume/weights.tensors besides.
    """
    tensors = {name: t.contiguous() for name, t in tensors.items()}
    stored = {name: t.to(dtypes.get(name, t.dtype)) for name, t in tensors.items()}
    if keep_exact and any(stored[n].dtype != t.dtype for n, t in tensors.items()):
        (folder / RESUME_FOLDER).mkdir(exist_ok=True)
        write_tensors(folder / RESUME_FOLDER / EXACT_WEIGHTS_FILE, tensors)
    write_tensors(folder / WEIGHTS_FILE, stored, {"format": "pt"})
    (dtype, _), *_ = Counter(t.dtype for t in stored.values()).most_common()
    return str(dtype).removeprefix("torch.")


def write_config(folder: Path, model: MiniMindLM, verdict: qwen3_check.Verdict, more: dict):
    """config.json: the model's numbers, and `more`; not by Qwen3's name if the verdict says so."""
    config = model.config.to_hf_dict() | more
    if verdict.reason:
        _say_once(
            f"note: model/ does not compute what Qwen3 computes ({verdict.reason}), so models are "
            'saved with model_type "minimind": these scripts open them, other tools refuse them'
        )
        config |= {"architectures": [type(model).__name__], "model_type": "minimind"}
        config |= {"use_moe": model.config.use_moe, _VALUES_KEY: verdict.values}
    _write_json(folder / "config.json", config)


@cache
def _say_once(text: str):
    print(text, file=sys.stderr, flush=True)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict | None = None):
    """A safetensors file that whoever may read the files beside it may read as well."""
    path.touch()
    mode = path.stat().st_mode & 0o777
    save_file(tensors, path, metadata)  # the library makes it readable for its owner alone
    path.chmod(mode)


def load_config(folder: str | Path) -> LMConfig:
    """The LMConfig of a model folder. ValueError names the file if it is missing or unfit."""
    path = Path(folder) / "config.json"
    config = read_json(path)
    try:
        return LMConfig.from_hf_dict(config)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: {shown(error)}") from None


def load_model(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    config: LMConfig | None = None,
    weights_file: Path | None = None,
    model_class: type[MiniMindLM] = MiniMindLM,
) -> MiniMindLM:
    """Open a Qwen3 or Qwen3-MoE folder, ours or anyone's, single-file or sharded.

    config: in place of the folder's own, to change what the weights do not decide (dropout, YaRN).
    weights_file: in place of the folder's own, such as a checkpoint's resume/weights.tensors.
    model_class: reward_model.load_reward_model gives another. Names, shapes and dtypes are checked
    against the config before memory is taken. Raises ValueError with the path and what does not
    fit.
    """
    folder = Path(folder)
    _check_what_is_computed(folder)
    if model_class is MiniMindLM and is_reward_model(folder):
        raise ValueError(f"{folder}: a reward model, which scores conversations and writes none")
    config = config or load_config(folder)
    stored = checked_tensors(folder, config, weights_file, model_class)
    with torch.device("meta"):
        model = model_class(config)
    expected = to_disk(model.state_dict(), config).keys()

    tensors = {}
    for file in sorted({stored[name].file for name in expected}):
        with safe_open(file, framework="pt") as f:
            for name in expected:
                if stored[name].file == file:
                    tensor = f.get_tensor(name)  # a view of the file: copy before it changes
                    tensors[name] = tensor.to(device=device, dtype=dtype, copy=True)
    if config.tie_word_embeddings and "lm_head.weight" in stored:
        with safe_open(stored["lm_head.weight"].file, framework="pt") as f:
            head = f.get_tensor("lm_head.weight").to(device=device, dtype=dtype)
        if not torch.equal(head, tensors["model.embed_tokens.weight"]):
            raise ValueError(
                f"{folder}: config.json ties lm_head.weight to the embedding, but the weights hold "
                "another one; set tie_word_embeddings to false there"
            )
    state = from_disk(tensors, config)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    if config.tie_word_embeddings:  # assign made two parameters over one storage
        model.lm_head.weight = model.model.embed_tokens.weight
    model.make_buffers(device)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def checked_tensors(
    folder: Path, config: LMConfig, weights_file: Path | None = None,
    model_class: type[MiniMindLM] = MiniMindLM,
) -> dict[str, StoredTensor]:  # fmt: skip
    """The tensors of a model folder, or of a file in place of its weights, by name.

    ValueError unless they are those of `config`.
    """
    stored = read_header(weights_file) if weights_file else _stored_tensors(folder)
    for what, count in (("layers", config.num_hidden_layers), ("experts", config.num_experts)):
        if count > len(stored) and (what == "layers" or config.use_moe):
            raise ValueError(
                f"{folder}: config.json asks for {count} {what}, "
                f"the weights hold {len(stored)} tensors"
            )
    with torch.device("meta"):
        model = model_class(config)
    expected = {name: tuple(t.shape) for name, t in to_disk(model.state_dict(), config).items()}
    _check_tensors(folder, stored, expected, config.tie_word_embeddings)
    return stored


def _check_what_is_computed(folder: Path):
    """ValueError for a folder of an edited model whose code was another than that in model/.

    A Qwen3 folder may be opened with edited code, as one does to begin from it: that is said.
    """
    config = load_config(folder)
    values = read_json(folder / "config.json").get(_VALUES_KEY)
    here = qwen3_check.verdict(MiniMindLM, qwen3_check.small(config), from_disk)
    if values is not None and not (here.values and qwen3_check.same(here.values, values)):
        raise ValueError(
            f"{folder}: written by an edited model that computes something else than model/ does "
            f"here ({here.reason or 'Qwen3, not edited'}); use the code that it was written by, or "
            f"take {_VALUES_KEY} out of its config.json to open it all the same"
        )
    if here.reason and not is_altered(folder):
        _say_once(
            f"warning: {folder} is a Qwen3 model, and model/ computes something else "
            f"({here.reason})"
        )


def is_altered(folder: str | Path) -> bool:
    """Whether a folder says that its model does not compute what Qwen3 computes."""
    return read_json(Path(folder) / "config.json").get("model_type") == "minimind"


def is_reward_model(folder: str | Path) -> bool:
    """Whether a folder says that its model scores texts: a score head in place of the words'."""
    names = read_json(Path(folder) / "config.json").get("architectures")
    return isinstance(names, list) and any(
        isinstance(name, str) and name.endswith(("ForSequenceClassification", "RewardModel"))
        for name in names
    )


def weights_sha256(folder: str | Path) -> str:
    """A hash of a folder's weights: names, shapes, dtypes and bits, however split into files."""
    stored = _stored_tensors(Path(folder))
    digest = hashlib.sha256()
    for name in sorted(stored):
        with safe_open(stored[name].file, framework="pt") as f:
            tensor = f.get_tensor(name)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class StoredTensor(NamedTuple):
    """What the header of a safetensors file says of one tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # "F32", "BF16", "F16"


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name; none of them is read.

    ValueError names a file that is missing, unfit, or holds other numbers than weights are.
    """
    if not file.is_file():  # a pipe would be waited for
        raise ValueError(f"{file}: not a readable safetensors file (no such file)")
    try:
        with safe_open(file, framework="pt") as f:
            slices = {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118
            stored = {
                name: StoredTensor(file, tuple(part.get_shape()), str(part.get_dtype()))
                for name, part in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: not a readable safetensors file ({shown(error)})") from None
    for name, tensor in stored.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{file}: {shown(name, 80)} is {tensor.dtype}; expected {', '.join(DTYPES)}"
            )
    return stored


def some_names(names: Iterable[str]) -> str:
    """The first three names, for an error message."""
    names = sorted(names)
    more = ", ..." if len(names) > 3 else ""
    return ", ".join(shown(name, 80) for name in names[:3]) + more


def _all_ends(ours: int | list[int], theirs: int | list[int] | None) -> int | list[int]:
    """The tokens at which generation stops: ours first, then what else the base stopped at."""
    more = theirs if isinstance(theirs, list) else [] if theirs is None else [theirs]
    known = ours if isinstance(ours, list) else [ours]
    more = [id for id in dict.fromkeys(more) if id not in known]
    return [*known, *more] if more else ours


def _write_json(path: Path, content: dict):
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def to_disk(weights: dict[str, Tensor], config: LMConfig) -> dict[str, Tensor]:
    """Tensors under their names on disk: a tied head left out, experts split."""
    tensors = {}
    for name, tensor in weights.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if match := _STACKED.fullmatch(name):
            for e, expert in enumerate(tensor):
                tensors[f"{match[1]}.experts.{e}.{match[2]}.weight"] = expert
        else:
            tensors[name] = tensor
    return tensors


def from_disk(tensors: dict[str, Tensor], config: LMConfig) -> dict[str, Tensor]:
    """The inverse of to_disk: experts stacked again."""
    if not config.use_moe:
        return tensors
    state = {name: t for name, t in tensors.items() if ".mlp.experts." not in name}
    for layer in range(config.num_hidden_layers):
        for part in ("gate_proj", "up_proj", "down_proj"):
            prefix = f"model.layers.{layer}.mlp"
            experts = (f"{prefix}.experts.{e}.{part}.weight" for e in range(config.num_experts))
            state[f"{prefix}.{part}"] = torch.stack([tensors[name] for name in experts])
    return state


def _stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder by name, in one file or several."""
    index = folder / "model.safetensors.index.json"
    if (folder / WEIGHTS_FILE).is_file():
        files = {folder / WEIGHTS_FILE}
    elif index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index}: expected an object 'weight_map'")
        names = set(map(str, weight_map.values()))
        for name in names:  # a path out of the folder is never followed
            if name != Path(name).name or not name.endswith(".safetensors"):
                raise ValueError(
                    f"{index}: {shown(name)!r} is not the name of a .safetensors file here"
                )
        files = {folder / name for name in names}
    else:
        raise ValueError(f"{folder}: no model.safetensors; expected a model folder")
    stored: dict[str, StoredTensor] = {}
    for file in sorted(files):
        more = read_header(file)
        if twice := stored.keys() & more.keys():
            raise ValueError(f"{file}: {some_names(twice)}: in another file of the folder too")
        stored |= more
    return stored


def _check_tensors(folder: Path, stored: dict[str, StoredTensor], expected: dict, tied: bool):
    extra = set(stored) - set(expected) - ({"lm_head.weight"} if tied else set())
    missing = set(expected) - set(stored)
    for names, what in ((missing, "missing from"), (extra, "not expected in")):
        if names:
            raise ValueError(
                f"{folder}: {len(names)} tensors {what} the weights: {some_names(names)}"
            )
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise ValueError(
                f"{stored[name].file}: {name} is {stored[name].shape}, config.json makes it {shape}"
            )
