"""Write a model as a GGUF file for llama.cpp and Ollama, with a Modelfile beside it.

    python scripts/export_gguf.py --model out/full_sft --out_dir out/gguf
    python scripts/export_gguf.py --model out/full_sft --dtype q8_0 --out_dir out/gguf_8_bit
    python scripts/export_gguf.py --model out/full_sft --lora out/lora --out_dir out/gguf_lora

--model is a run's folder (its newest complete checkpoint is taken), one checkpoint, or any dense
Qwen3 or Qwen3-MoE folder. With --lora the adapter's own file lies beside the model's. Then
`llama-server -m out/gguf/model-f16.gguf`, or `ollama create NAME -f out/gguf/Modelfile`.
"""

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    import gguf  # noqa: F401
except ModuleNotFoundError:
    print("error: this needs the gguf package: pip install gguf==0.19.0", file=sys.stderr)
    sys.exit(2)

import torch

from dataset.gguf_tokenizer import add_vocabulary, read_vocabulary
from dataset.ollama import modelfile
from dataset.tokenizer import load_tokenizer
from model import lora
from model.gguf_format import (
    FILE_TYPES,
    add_architecture,
    check_architecture,
    new_writer,
    write_adapter,
    write_model,
)
from model.hf_format import load_config, load_model, some_names, weights_sha256
from model.json_file import read_json
from training import cli
from training.checkpoint import adapter_folder, model_folder


def parse_args():
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, default=Path("out/full_sft"), help="run, checkpoint or Qwen3 folder")
    add("--lora", type=Path, default=None, help="run or folder of an adapter, to be exported too")
    text = "how matrices are stored; vectors stay f32"
    add("--dtype", choices=list(FILE_TYPES), default="f16", help=text)
    add("--out_dir", type=Path, default=Path("out/gguf"), help="new folder for the files")
    return parser.parse_args()


def stop_ids(folder: Path) -> list[int]:
    """The tokens that end an answer, as a model folder says; [] if it does not."""
    for name in ("generation_config.json", "config.json"):
        ids = read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        if ids is not None:
            ids = ids if isinstance(ids, list) else [ids]
            if not all(type(id) is int and id >= 0 for id in ids):
                raise ValueError(f"{folder / name}: eos_token_id: expected token ids, got {ids!r}")
            return ids
    return []


def main():
    args = parse_args()
    folder = model_folder(args.model, "--model")
    adapter = adapter_folder(args.lora, "--lora") if args.lora else None
    if args.out_dir.exists():
        raise ValueError(f"--out_dir {args.out_dir}: is there already; choose a new folder")
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in ("qwen3", "qwen3_moe"):
        raise ValueError(f"{folder}: model_type {kind!r}: llama.cpp computes no such model")
    config = load_config(folder)
    try:
        check_architecture(config)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    vocabulary = read_vocabulary(folder, config.vocab_size, stop_ids(folder))
    if vocabulary.is_nfc:
        print("llama.cpp does not compose characters (NFC): letters with separate accents may get "
              "other tokens there")  # fmt: skip
    template = vocabulary.template
    if adapter is not None and (adapter / "tokenizer.json").is_file():
        template = load_tokenizer(adapter).chat_template or template

    # complete as soon as it has its name
    temporary = args.out_dir.with_name(f".tmp-{args.out_dir.name}-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        file = temporary / f"model-{args.dtype}.gguf"
        writer = new_writer(file, config, "model", args.model.resolve().name)
        add_architecture(writer, config)
        add_vocabulary(writer, vocabulary)
        as_f16 = write_model(writer, folder, config, args.dtype)
        if as_f16:
            print(f"stored as f16, rows being no multiple of 32: {some_names(as_f16)}")
        adapter_name = None
        if adapter is not None:
            adapter_name = "adapter.gguf"
            model = load_model(folder, dtype=torch.bfloat16)  # the base's values are not needed
            lora_config = lora.load_adapter(model, adapter, weights_sha256(folder))
            writer = new_writer(temporary / adapter_name, config, "adapter", args.lora.name)
            write_adapter(writer, model, lora_config)
        stops = list(dict.fromkeys(vocabulary.tokens[id] for id in vocabulary.eos_ids))
        try:
            text = modelfile(file.name, adapter_name, template, stops)
            (temporary / "Modelfile").write_text(text, encoding="utf-8")
        except ValueError as error:
            print(f"no Modelfile for Ollama, {error}; llama.cpp needs none")
        temporary.rename(args.out_dir)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for path in sorted(args.out_dir.iterdir()):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    cli.run(main)
