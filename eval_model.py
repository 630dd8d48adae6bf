"""Talk to a model, continue a prompt, or measure held-out loss.

    python eval_model.py --model out/pretrain --prompt "Once upon a time"    # one answer
    python eval_model.py --model out/full_sft                                # chat
    python eval_model.py --model out/full_sft --lora out/lora                # with an adapter
    python eval_model.py --model out/full_sft --quantize int8                # weights in 8 bits
    python eval_model.py --server http://127.0.0.1:8000                      # a model served there
    python eval_model.py --model out/pretrain --eval_data held_out.jsonl     # nats, perplexity, bpb

--model is a run's folder (its newest complete checkpoint is taken), one checkpoint, or any dense
Qwen3 folder. A folder with a chat template holds a chat-tuned model and answers in chat format;
one without holds a base model and continues the text. In the chat, /help lists the commands.
--server is any server with OpenAI's API, ours (serve_model.py) or another's. Measuring prints a
JSON line last.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from dataset.chat import can_think, end_ids
from dataset.packing import whole_stream
from dataset.pretrain import PretrainDataset
from dataset.token_cache import cached_tokens
from dataset.tokenizer import Tokenizer, load_tokenizer
from model.decoding_layers import for_decoding
from model.hf_format import load_model
from model.model import MiniMindLM
from terminal.answers import End
from terminal.chat import Chat, opening
from terminal.local import LocalModel, base_ids, switch_adapter
from terminal.remote import ServerModel
from terminal.screen import Screen
from training import cli
from training.checkpoint import adapter_folder, model_folder
from training.distributed import init_distributed
from training.evaluation import held_out_loss
from training.terminal import as_text

# flags about a model in this process, which a server has loaded in its own way
LOCAL = (
    "lora", "eval_data", "text_field", "yarn_factor", "device", "dtype", "quantize", "compile",
    "batch_size", "max_seq_len", "cache_dir",
)  # fmt: skip


def parse_args():
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    text = "run, checkpoint or Qwen3 folder, None: out/pretrain; with --server the model's name "
    text += "there, None: the first one"
    add("--model", default=None, help=text)
    text = "talk to this OpenAI-compatible server, such as http://127.0.0.1:8000 (serve_model.py)"
    add("--server", default=None, metavar="URL", help=text)
    add(
        "--api_key",
        default=None,
        help="key for --server (also from the environment: OPENAI_API_KEY)",
    )
    text = "runs or folders of adapters; the first is on, /lora switches in the chat"
    add("--lora", type=Path, nargs="+", default=[], help=text)
    add("--prompt", default=None, help="answer this and leave")
    add("--eval_data", default=None, help="data file to measure the loss on")
    add("--text_field", default="text", help="field that holds the text, for --eval_data")
    add("--system", default=None, help="system prompt of the chat")
    text = "let a chat model think before it answers; None: no, or as --server does"
    add("--thinking", **cli.BOOL, default=None, help=text)
    text = "0 takes the likeliest token"
    add("--temperature", type=cli.in_range(1e-3, 100, or_zero=True), default=0.7, help=text)
    add("--top_p", type=cli.in_range(1e-6, 1), default=0.9, help="nucleus, as a probability")
    add("--top_k", type=cli.at_least(0), default=0, help="likeliest tokens to draw from; 0: all")
    text = "divides the logits of tokens already there; 1: none"
    add("--repetition_penalty", type=cli.in_range(0.1, 10), default=1.0, help=text)
    text = "longest answer, in tokens; None: 256, or half of a shorter context, or as --server does"
    add("--max_new_tokens", type=cli.at_least(1), default=None, help=text)
    text = "tell tokens and tokens/s after every answer; None: in a chat on a terminal"
    add("--show_speed", **cli.BOOL, default=None, help=text)
    add("--yarn_factor", type=cli.in_range(1, 1024), default=None, help="stretch the context")
    text = "makes the draws repeatable"
    add("--seed", type=cli.at_least(0, cli.LARGEST_SEED), default=None, help=text)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    text = "precision of the weights (auto: bfloat16 on a GPU or with int8, else float32)"
    add("--dtype", choices=["auto", "bfloat16", "float16", "float32"], default="auto", help=text)
    text = "int8: weights of the linear layers in 8 bits; on CUDA for their memory, not for speed: "
    text += "there they are unpacked at every call (not measured)"
    add("--quantize", choices=["none", "int8"], default="none", help=text)
    text = "compile the step of one token: up to a minute at the start, faster afterwards"
    add("--compile", **cli.BOOL, default=False, help=text)
    add("--batch_size", type=cli.at_least(1), default=16, help="rows at a time, for --eval_data")
    text = "tokens per row, for --eval_data"
    add("--max_seq_len", type=cli.at_least(1), default=256, help=text)
    add("--cache_dir", type=Path, default=Path("out/cache"), help="folder of tokenised data")
    args = parser.parse_args()
    if args.server is not None:
        for name in LOCAL:
            if getattr(args, name) != parser.get_default(name):
                raise ValueError(f"--{name} is about a model in this process, not one of --server")
    elif args.api_key is not None:
        raise ValueError("--api_key is for --server, which is not given")
    return args


def measure(model: MiniMindLM, tokenizer: Tokenizer, ranks, args):
    """Print loss (nats per token), perplexity and bits per byte of --eval_data."""
    context = model.config.max_position_embeddings
    if args.max_seq_len > context:
        raise ValueError(
            f"--max_seq_len {args.max_seq_len}: the model's context is {context} tokens "
            "(--yarn_factor stretches it)"
        )
    data = cached_tokens(
        args.eval_data, tokenizer, args.cache_dir, flag="--eval_data", text_field=args.text_field
    )
    rows = PretrainDataset(whole_stream([data]), args.max_seq_len)
    autocast = torch.autocast(ranks.device.type, enabled=False)
    # on a terminal a bar, in a log a line now and then
    progress = partial(tqdm, unit="batch", mininterval=0.1 if sys.stderr.isatty() else 10)
    result = held_out_loss(
        model, rows, args.batch_size, tokenizer.token_bytes, ranks, autocast, progress=progress
    )
    print(
        f"{args.eval_data}: {result['tokens']:,} tokens, loss {result['loss']:.4f} nats per token, "
        f"perplexity {result['perplexity']:.2f}, {result['bits_per_byte']:.4f} bits per byte"
    )
    print(json.dumps({"eval_data": args.eval_data, **result}))


def open_model(args, device) -> tuple[MiniMindLM, Tokenizer, Path, dict[str, Path]]:
    """The model of --model, the tokenizer, the model's folder, and folders of adapters by name."""
    folder = model_folder(Path(args.model or "out/pretrain"), "--model")
    names = [path.name for path in args.lora]  # the whole path where two have one name
    is_clear = {name: names.count(name) == 1 and name != "off" for name in names}
    adapters = {
        path.name if is_clear[path.name] else str(path): adapter_folder(path, "--lora")
        for path in args.lora
    }
    # an adapter made from a base model may be what taught it to chat: its folder says so
    tokenizer_folders = [f for f in adapters.values() if (f / "tokenizer.json").is_file()]
    tokenizer = load_tokenizer((*tokenizer_folders, folder)[0])
    if args.dtype == "auto":
        half = device.type == "cuda" or args.quantize == "int8"
        args.dtype = "bfloat16" if half else "float32"
    model = load_model(folder, device, getattr(torch, args.dtype))
    if args.yarn_factor is not None:
        original = model.config.max_position_embeddings
        config = model.config.with_changes(
            yarn_factor=args.yarn_factor, yarn_original_length=original,
            max_position_embeddings=int(original * args.yarn_factor),
        )  # fmt: skip
        model = load_model(folder, device, getattr(torch, args.dtype), config)
    context = model.config.max_position_embeddings
    if args.max_new_tokens is None:
        args.max_new_tokens = min(256, context // 2)
    if args.max_new_tokens >= context:
        raise ValueError(
            f"--max_new_tokens {args.max_new_tokens}: the model's context is {context} tokens, "
            "the prompt included"
        )
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"--model {folder}: its tokenizer has {tokenizer.vocab_size} entries, "
            f"the model {model.config.vocab_size}"
        )
    return model, tokenizer, folder, adapters


def answer_local(local: LocalModel, args):
    """Print the answer to --prompt as it is generated, control tokens as their names."""
    if local.is_chat:
        messages = [*opening(args.system), {"role": "user", "content": args.prompt}]
        ids = local.chat_ids(messages, None, bool(args.thinking))
    else:  # raw continuation, the prompt shown first
        ids = base_ids(local.tokenizer, args.prompt)
        print(args.prompt, end="", flush=True)
    for text in local.text(ids):
        print(text, end="", flush=True)
    print()
    if args.show_speed:
        print(f"({local.end})")


def answer_remote(server: ServerModel, args):
    """Print a server's answer to --prompt as it comes."""
    messages = [*opening(args.system), {"role": "user", "content": args.prompt}]
    screen = Screen(bool(args.show_speed))
    for part in server.answer(messages, None, args.thinking, 0):
        if isinstance(part, End):
            screen.end_answer(is_complete=True)
            screen.show_speed(part)
        else:
            screen.show(part)


def main():
    args = parse_args()
    for name in ("prompt", "system"):
        if getattr(args, name) is not None:
            setattr(args, name, as_text(getattr(args, name), f"--{name}"))
    if args.server is not None:
        answerer = ServerModel(args.server, args.model, args.api_key, args)
    else:
        ranks = init_distributed(args.device)
        model, tokenizer, folder, adapters = open_model(args, ranks.device)
        if args.eval_data is not None:
            switch_adapter(model, next(iter(adapters.values()), None), folder)
            if args.quantize == "int8":
                model = for_decoding(model, int8=True)
            return measure(model, tokenizer, ranks, args)
        if args.thinking and not can_think(tokenizer):
            text = "was not taught to think (its chat template says)"
            raise ValueError(f"--thinking: {folder} {text}")
        answerer = LocalModel(model, folder, tokenizer, end_ids(tokenizer, folder), adapters, args)
    if args.prompt is None:
        return Chat(answerer, Screen(args.show_speed), args.system, args.thinking).run()
    return answer_local(answerer, args) if args.server is None else answer_remote(answerer, args)


if __name__ == "__main__":
    cli.run(main)
