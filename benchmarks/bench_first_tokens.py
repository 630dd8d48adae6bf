"""How well a base model writes the first tokens of texts, behind <|endoftext|> and without it.

    python benchmarks/bench_first_tokens.py --model out/pretrain out/other

Other tools begin a prompt without it, pretraining rows have it between documents. Printed is the
loss of the 2nd to 16th token of held-out texts, by our code and by transformers from the same
folder; and in how many of the first texts both continue four tokens with the same sixteen,
greedily. Without --data_path the texts are those that `make demo` holds out. No times.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset.demo import write_demo
from dataset.packing import split_documents
from dataset.token_cache import cached_tokens
from dataset.tokenizer import load_tokenizer
from model.generation import generate
from model.hf_format import load_model
from training import cli
from training.checkpoint import model_folder
from training.start import DEMO_DATA

FIRST, PROMPT, CONTINUED = 16, 4, 16  # tokens


def parse_args():
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, nargs="+", default=[Path("out/pretrain")], help="runs or folders")
    add("--data_path", default=None, help="texts whose held-out part is taken; None: the demo's")
    text = "share of the texts that is held out, as in training"
    add("--val_fraction", type=cli.in_range(1e-6, 0.5), default=0.01, help=text)
    add("--texts", type=cli.at_least(1), default=400, help="most texts that are measured")
    add("--continued", type=cli.at_least(0), default=20, help="texts that both continue")
    add("--cache_dir", type=Path, default=Path("out/cache"), help="folder of tokenised data")
    return parser.parse_args()


def held_out_texts(args, tokenizer) -> list[list[int]]:
    """Ids of the held-out texts that have at least FIRST tokens."""
    path = args.data_path or write_demo(DEMO_DATA)["pretrain.jsonl"]
    file = cached_tokens(path, tokenizer, args.cache_dir)
    _, stream = split_documents([file], args.val_fraction)
    texts, text = [], []
    for token in stream.read(0, stream.num_tokens).tolist():
        if token == tokenizer.eos_id:
            texts.append(text)
            text = []
        else:
            text.append(token)
    return [text for text in texts if len(text) >= FIRST][: args.texts]


@torch.no_grad()
def first_token_loss(model, texts: list[list[int]], before: list[int]) -> float:
    """Nats per token of the 2nd to FIRST-th token of the texts, `before` in front of each."""
    ids = torch.tensor([before + text[:FIRST] for text in texts])
    logits = model(ids)[0]  # a tuple of ours; transformers' output begins with them, too
    log_probs = logits[:, len(before) : -1].float().log_softmax(-1)
    return -log_probs.gather(2, ids[:, len(before) + 1 :, None]).mean().item()


def main():
    args = parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = {"benchmark": "first_tokens", "runs": []}
    print("| model | texts | behind <|endoftext|> | as it stands | transformers | alike |")
    print("|---|---|---|---|---|---|")
    for path in args.model:
        folder = model_folder(path, "--model")
        tokenizer, model = load_tokenizer(folder), load_model(folder)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        their_tokenizer = AutoTokenizer.from_pretrained(folder)
        texts = held_out_texts(args, tokenizer)
        behind = first_token_loss(model, texts, [tokenizer.eos_id])
        alone = first_token_loss(model, texts, [])
        there = first_token_loss(theirs, texts, [])
        alike = 0
        for text in texts[: args.continued]:
            prompt = tokenizer.decode(text[:PROMPT])
            ours = list(
                generate(model, tokenizer.encode_text(prompt), CONTINUED, set(), temperature=0)
            )
            inputs = their_tokenizer(prompt, return_tensors="pt")
            made = theirs.generate(
                **inputs, max_new_tokens=CONTINUED, do_sample=False, eos_token_id=None
            )
            alike += made[0, inputs["input_ids"].shape[1] :].tolist() == ours
        count = min(args.continued, len(texts))
        print(
            f"| {path} | {len(texts)} | {behind:.3f} | {alone:.3f} | {there:.3f} | "
            f"{alike} of {count} |"
        )
        result["runs"].append(
            {"model": str(path), "texts": len(texts), "behind_end_of_text": behind,
             "as_it_stands": alone, "transformers": there, "alike": alike, "of": count}
        )  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
