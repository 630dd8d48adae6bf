"""Folders → models with a name, ready to decode: runs, checkpoints, Qwen3 folders, adapters."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dataset.chat import can_think, end_ids
from dataset.tokenizer import load_tokenizer
from model import lora
from model.decoding_layers import for_decoding
from model.engine import Engine
from model.hf_format import load_model, weights_sha256
from model.inside import as_numbers, look_inside
from model.model import MiniMindLM
from serving.decoding import OpenModel
from serving.grammar import Grammars
from serving.worker import ServedModel
from training.checkpoint import adapter_folder, model_folder
from training.compute import DTYPES
from training.distributed import init_distributed

MOST_CACHE = 4 << 30  # bytes of keys and values that all rows of one model may take


def own_name(path: Path) -> str:
    """A run's name, also where one of its checkpoints was given."""
    path = path.resolve()
    return path.parent.name if path.name.startswith("step-") else path.name


def adapters_by_name(given: list[str]) -> dict[str, Path]:
    """--lora NAME=FOLDER, or FOLDER alone, which is its own name. ValueError for a name twice."""
    adapters: dict[str, Path] = {}
    for word in given:
        name, is_named, folder = word.partition("=")
        path = Path(folder if is_named else word)
        name = name if is_named else own_name(path)
        if not name or name in adapters:
            raise ValueError(f"--lora {word}: expected a name of its own, as in NAME=FOLDER")
        adapters[name] = adapter_folder(path, "--lora")
    return adapters


def open_models(
    path: Path, adapters: dict[str, Path], device: str, dtype: str, int8: bool, compiled: bool,
    rows: int, max_tokens: int | None,
) -> dict[str, OpenModel]:  # fmt: skip
    """The model, and the model with each adapter merged into weights of its own, by name.

    device, dtype  as in the flags: "auto", "cpu", …; "auto", "bfloat16", …
    rows           sequences decoded at a time; the cache keeps as many more
    max_tokens     longest sequence; None: the context, or what MOST_CACHE has room for

    Raises ValueError, naming the flag, for what cannot be opened.
    """
    folder = model_folder(path, "--model")
    own = own_name(path)
    if own in adapters:
        raise ValueError(f"--lora {own}=…: the model has this name, too")
    on = init_distributed(device).device
    if dtype == "auto":
        dtype = "bfloat16" if on.type == "cuda" or int8 else "float32"
    models = {}
    for name, adapter in {own: None, **adapters}.items():
        model = load_model(folder, on, DTYPES[dtype])
        has_tokenizer = adapter is not None and (adapter / "tokenizer.json").is_file()
        tokenizer = load_tokenizer(adapter if has_tokenizer else folder)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"--model {folder}: its tokenizer has {tokenizer.vocab_size} entries, "
                f"the model {model.config.vocab_size}"
            )
        if adapter is not None:
            lora.load_adapter(model, adapter, weights_sha256(folder))
        tokens = max_tokens or longest_sequence(model, 2 * rows)
        fast = for_decoding(model, int8)
        ends = frozenset(end_ids(tokenizer, folder))
        grammars = Grammars(tokenizer, ends, model.config.vocab_size)
        engine = Engine(fast, rows, rows, tokens, compiled=compiled, make_matcher=grammars.matcher)
        engine.warm_up()
        grammars.make_ready()
        described = ServedModel(
            name, tokenizer, engine.max_tokens, model.config.vocab_size, ends,
            "base" if tokenizer.chat_template is None else "chat", can_think(tokenizer),
            adapter is not None, int((folder / "config.json").stat().st_mtime),
        )  # fmt: skip
        models[name] = OpenModel(described, engine, partial(look, fast))
    return models


def look(
    model: MiniMindLM, ids: list[int], layer: int | None, head: int | None, lens: bool
) -> dict:
    """What the page /lab shows of a text."""
    return as_numbers(model, look_inside(model, ids, layer, head, lens))


def longest_sequence(model: MiniMindLM, rows: int) -> int:
    """Tokens of a sequence: the model's context, or what MOST_CACHE has room for."""
    config = model.config
    channels = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    bytes_a_token = 2 * channels * model.model.norm.weight.element_size()
    return max(1, min(config.max_position_embeddings, MOST_CACHE // (rows * bytes_a_token)))
