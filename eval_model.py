"""Talk to a model, continue a prompt, or measure held-out loss.

    python eval_model.py --model out/pretrain --prompt "Once upon a time"    # one answer
    python eval_model.py --model out/full_sft                                # chat
    python eval_model.py --model out/full_sft --lora out/lora                # with an adapter
    python eval_model.py --model out/full_sft --quantize int8                # weights in 8 bits
    python eval_model.py --model out/pretrain --eval_data held_out.jsonl     # nats, perplexity, bpb

--model is a run's folder (its newest complete checkpoint is taken), one checkpoint, or any dense
Qwen3 folder. A folder with a chat template holds a chat-tuned model and answers in chat format;
one without holds a base model and continues the text. Measuring prints a JSON line last.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from dataset.chat import can_think, encode_conversation, parse_answer, stop_ids
from dataset.packing import whole_stream
from dataset.pretrain import PretrainDataset
from dataset.token_cache import cached_tokens
from dataset.tokenizer import Tokenizer, load_tokenizer
from model import lora
from model.decoding_layers import for_decoding
from model.generation import PromptCache, generate
from model.hf_format import load_model, read_json, weights_sha256
from model.model import MiniMindLM
from training import cli
from training.checkpoint import adapter_folder, model_folder
from training.distributed import init_distributed
from training.evaluation import held_out_loss
from training.terminal import as_text

HELP = """/reset          forget the conversation
/lora NAME      answer with this adapter from now on; /lora off: with none
/system TEXT    start anew with this system prompt
/retry          answer the last message again
/help           this list
/exit           leave (also Ctrl-D)"""


def parse_args():
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, default=Path("out/pretrain"), help="run, checkpoint or Qwen3 folder")
    text = "runs or folders of adapters; the first is on, /lora switches in the chat"
    add("--lora", type=Path, nargs="+", default=[], help=text)
    add("--prompt", default=None, help="answer this and leave")
    add("--eval_data", default=None, help="data file to measure the loss on")
    add("--text_field", default="text", help="field that holds the text, for --eval_data")
    add("--system", default=None, help="system prompt of the chat")
    add("--thinking", **cli.BOOL, default=False, help="let a chat model think before it answers")
    text = "0 takes the likeliest token"
    add("--temperature", type=cli.in_range(1e-3, 100, or_zero=True), default=0.7, help=text)
    add("--top_p", type=cli.in_range(1e-6, 1), default=0.9, help="nucleus, as a probability")
    add("--top_k", type=cli.at_least(0), default=0, help="likeliest tokens to draw from; 0: all")
    text = "divides the logits of tokens already there; 1: none"
    add("--repetition_penalty", type=cli.in_range(0.1, 10), default=1.0, help=text)
    text = "longest answer, in tokens; None: 256, or half of a shorter context"
    add("--max_new_tokens", type=cli.at_least(1), default=None, help=text)
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
    return parser.parse_args()


def answer(
    model: MiniMindLM, tokenizer: Tokenizer, ids: list[int], ends: set[int], args, known=None
) -> list[int]:
    """Print the model's answer to `ids` while it is made, and return its ids.

    known: a PromptCache with the conversation so far.
    """
    decoder, said = tokenizer.stream_decoder(), []
    tokens = generate(
        model, ids, args.max_new_tokens, ends, args.seed, known, args.compile,
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
        repetition_penalty=args.repetition_penalty,
    )  # fmt: skip
    for token in tokens:
        said.append(token)
        piece = decoder.flush() if token in ends else decoder.decode([token])
        print(piece, end="", flush=True)
    print(decoder.flush())
    return said


def base_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a base model's prompt: as it stands, or, without any, what begins a text."""
    return tokenizer.encode_text(prompt) or [tokenizer.eos_id]


def chat_ids(model: MiniMindLM, tokenizer: Tokenizer, messages: list[dict], args) -> list[int]:
    """The conversation as token ids; the oldest turns go when it outgrows the context."""
    room = model.config.max_position_embeddings - args.max_new_tokens
    while True:
        ids, _ = encode_conversation(
            tokenizer, messages, add_generation_prompt=True, enable_thinking=args.thinking
        )
        first = 1 if messages[0]["role"] == "system" else 0
        if len(ids) <= room or len(messages) <= first + 1:
            return ids
        print("(the oldest turn no longer fits the context and is left out)", file=sys.stderr)
        del messages[first : first + 2]


def switch_adapter(model: MiniMindLM, adapter: Path | None, args):
    """Put one adapter beside the base's weights, or none."""
    if adapter is None:
        lora.detach(model)
    else:
        lora.load_adapter(model, adapter, weights_sha256(model_folder(args.model, "--model")))


def chat(model: MiniMindLM, tokenizer: Tokenizer, ends: set[int], adapters: dict, args):
    """Talk in the terminal until /exit. A base model continues each line by itself."""
    is_chat = tokenizer.chat_template is not None
    kind = "a chat model" if is_chat else "a base model: it continues what you write"
    print(f"{model.num_parameters() / 1e6:.1f}M parameters, {kind}. /help lists the commands.")
    if adapters:
        print(f"Adapters: {', '.join(adapters)} (on: {next(iter(adapters))}).")
    opening = [{"role": "system", "content": args.system}] if args.system else []
    messages = list(opening)
    fast, known = for_decoding(model, args.quantize == "int8"), PromptCache()
    while True:
        try:
            line = as_text(input("> "), "this line", sys.stdin.encoding).strip()
        except EOFError:
            return print()
        except ValueError as error:  # nothing is sent: what was meant is not known
            print(f"({error})")
            continue
        if not sys.stdin.isatty():  # lines from a pipe: show them as if they were typed
            print(line)
        command, _, rest = line.partition(" ")
        if command in ("/exit", "/quit"):
            return None
        if command == "/help":
            print(HELP)
            continue
        if command in ("/reset", "/system"):
            opening = [{"role": "system", "content": rest}] if command == "/system" else opening
            messages = list(opening)
            print("(a new conversation)")
            continue
        if command == "/lora" and rest in ("off", *adapters):
            switch_adapter(model, adapters.get(rest), args)
            fast, known = for_decoding(model, args.quantize == "int8"), PromptCache()
            print(f"(adapter: {rest})")
            continue
        if command == "/lora":
            print(f"(adapters: {', '.join(adapters) or 'none; --lora FOLDER brings them'})")
            continue
        if command == "/retry" and messages and messages[-1]["role"] == "assistant":
            messages.pop()
        elif line.startswith("/"):
            print(f"{command}: no such command here; /help lists them")
            continue
        elif line:
            messages.append({"role": "user", "content": line})
        else:
            continue
        try:
            if is_chat:
                ids = chat_ids(model, tokenizer, messages, args)
            else:
                ids = base_ids(tokenizer, messages[-1]["content"])
            said = answer(fast, tokenizer, ids, ends, args, known)
            messages.append(parse_answer(tokenizer, said))
        except KeyboardInterrupt:  # Ctrl-C ends the answer, not the chat
            print("\n(stopped)")
            messages.pop()
        except ValueError as error:  # the line alone is longer than the context
            print(f"({error})")
            messages.pop()


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


def main():
    args = parse_args()
    for name in ("prompt", "system"):
        if getattr(args, name) is not None:
            setattr(args, name, as_text(getattr(args, name), f"--{name}"))
    folder = model_folder(args.model, "--model")
    names = [path.name for path in args.lora]  # the whole path where two have one name
    is_clear = {name: names.count(name) == 1 and name != "off" for name in names}
    adapters = {
        path.name if is_clear[path.name] else str(path): adapter_folder(path, "--lora")
        for path in args.lora
    }
    # an adapter made from a base model may be what taught it to chat: its folder says so
    tokenizer_folders = [f for f in adapters.values() if (f / "tokenizer.json").is_file()]
    tokenizer = load_tokenizer((*tokenizer_folders, folder)[0])
    ranks = init_distributed(args.device)
    if args.dtype == "auto":
        half = ranks.device.type == "cuda" or args.quantize == "int8"
        args.dtype = "bfloat16" if half else "float32"
    model = load_model(folder, ranks.device, getattr(torch, args.dtype))
    if args.yarn_factor is not None:
        original = model.config.max_position_embeddings
        config = model.config.with_changes(
            yarn_factor=args.yarn_factor, yarn_original_length=original,
            max_position_embeddings=int(original * args.yarn_factor),
        )  # fmt: skip
        model = load_model(folder, ranks.device, getattr(torch, args.dtype), config)
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

    if adapters:
        switch_adapter(model, next(iter(adapters.values())), args)

    if args.eval_data is not None:
        if args.quantize == "int8":
            model = for_decoding(model, int8=True)
        return measure(model, tokenizer, ranks, args)

    ends = set(stop_ids(tokenizer))
    generation = folder / "generation_config.json"
    if generation.is_file():
        named = read_json(generation).get("eos_token_id", [])
        ends |= set(named if isinstance(named, list) else [named])
    if args.thinking and not can_think(tokenizer):
        raise ValueError(f"--thinking: {folder} was not taught to think (its chat template says)")
    if args.prompt is None:
        return chat(model, tokenizer, ends, adapters, args)
    if tokenizer.chat_template is None:  # a base model: raw continuation, the prompt shown first
        ids = base_ids(tokenizer, args.prompt)
        print(args.prompt, end="", flush=True)
    else:
        messages = [{"role": "user", "content": args.prompt}]
        if args.system:
            messages.insert(0, {"role": "system", "content": args.system})
        ids = chat_ids(model, tokenizer, messages, args)
    model = for_decoding(model, args.quantize == "int8")
    answer(model, tokenizer, ids, ends, args)


if __name__ == "__main__":
    cli.run(main)
