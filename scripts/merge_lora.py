"""Put an adapter into the weights of its base: a plain model folder that computes the same.

python scripts/merge_lora.py --model out/full_sft --lora out/lora --out_dir out/merged
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset.chat import stop_ids
from dataset.tokenizer import load_tokenizer
from model import lora
from model.hf_format import inherited, load_model, save_model, weights_sha256
from training import cli
from training.checkpoint import adapter_folder, model_folder


def parse_args():
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, default=Path("out/full_sft"), help="run or folder of the base")
    add("--lora", type=Path, default=Path("out/lora"), help="run or folder of the adapter")
    add("--out_dir", type=Path, default=Path("out/merged"), help="new folder for the merged model")
    return parser.parse_args()


def main():
    args = parse_args()
    base, adapter = model_folder(args.model, "--model"), adapter_folder(args.lora, "--lora")
    if args.out_dir.exists():
        raise ValueError(f"--out_dir {args.out_dir}: is there already; choose a new folder")
    # an adapter that was made from a base model has taught it to chat: its folder says how
    tokenizer = load_tokenizer(adapter if (adapter / "tokenizer.json").is_file() else base)
    model = load_model(base)
    lora.load_adapter(model, adapter, weights_sha256(base))
    was_tied = model.config.tie_word_embeddings
    lora.merge(model)
    if was_tied and not model.config.tie_word_embeddings:
        print("the adapter changes lm_head alone: it is no longer tied to the embedding")
    args.out_dir.mkdir(parents=True)
    save_model(model, args.out_dir, stop_ids(tokenizer), base=inherited(base))
    tokenizer.save(args.out_dir, chat_template=True)
    print(f"{args.out_dir}: {base} with {adapter} merged into it")


if __name__ == "__main__":
    cli.run(main)
