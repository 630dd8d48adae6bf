"""What speculative decoding by prompt look-up would gain, and what checking the guesses would cost.

    make demo && python benchmarks/bench_lookup.py          # the demo's two models
    python benchmarks/bench_lookup.py --model out/pretrain --temperature 0

Prompt look-up (Saxena 2023) guesses that what followed the last few tokens when they stood there
before follows again, and checks all guesses in one step: a guess counts if it is the token that
would have been drawn. So the text stays the same, and how many steps it would have taken can be
counted afterwards. The cost of checking is measured: a step of 1 + --guesses tokens against one of
a single token, eager. It pays where tokens a step are more than that. Last comes a JSON line.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.bench_generate import in_turns
from dataset.chat import encode_conversation, stop_ids
from dataset.conversations import read_conversations
from dataset.readers import read_texts
from dataset.tokenizer import load_tokenizer
from model.decoding_layers import for_decoding
from model.generation import KVCache, generate, next_logits
from model.hf_format import load_model
from training import cli
from training.checkpoint import model_folder


def parse_args():
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    runs = [Path("out/pretrain"), Path("out/full_sft")]
    add("--model", type=Path, nargs="+", default=runs, help="runs or folders")
    add("--texts", default="out/demo_data/pretrain.jsonl", help="whose openings a base model gets")
    add("--chats", default="out/demo_data/sft.jsonl", help="whose questions a chat model gets")
    add("--prompts", type=cli.at_least(1), default=60, help="number of prompts")
    add("--temperature", type=float, nargs="+", default=[0.0, 0.7], help="of the draws")
    add("--max_new_tokens", type=cli.at_least(2), default=128, help="longest answer, in tokens")
    add("--guesses", type=cli.at_least(1), default=4, help="most tokens guessed at once")
    return parser.parse_args()


def guess(tokens: list[int], most: int) -> list[int]:
    """What followed the last three tokens, else the last two, when they last stood there before."""
    for n in (3, 2):
        end = tokens[-n:]
        for at in range(len(tokens) - n - 1, -1, -1):
            if tokens[at : at + n] == end:
                return tokens[at + n : at + n + most]
    return []


def steps_taken(prompt: list[int], answer: list[int], most: int) -> tuple[int, int]:
    """Steps that `answer` would have taken, and how many of them had something to guess."""
    done = steps = guessed = 0
    while done < len(answer):
        found = guess(prompt + answer[:done], most)
        right = 0
        while right < len(found) and answer[done + right : done + right + 1] == [found[right]]:
            right += 1
        done += right + 1  # the step itself gives the token after the right guesses
        steps += 1
        guessed += bool(found)
    return steps, guessed


def prompts_for(tokenizer, args) -> list[list[int]]:
    """Openings of texts for a base model, questions for a chat model, spread over the file."""
    if tokenizer.chat_template is None:
        texts = [text for text, _ in read_texts(args.texts)]
        chosen = texts[:: max(1, len(texts) // args.prompts)][: args.prompts]
        return [tokenizer.encode_text(text)[:16] for text in chosen]
    chats = list(read_conversations([args.chats], "skip"))
    chosen = chats[:: max(1, len(chats) // args.prompts)][: args.prompts]
    first = [[m for m in chat.messages[:2] if m["role"] != "assistant"] for chat in chosen]
    return [encode_conversation(tokenizer, m, add_generation_prompt=True)[0] for m in first]


def cost_of_checking(model, context: list[int], args) -> float:
    """Time of a step of 1 + guesses tokens over that of one token."""
    cache = KVCache(model.config, 1, len(context) + args.guesses + 1, "cpu", torch.float32)
    ids = torch.tensor([context])

    def step(T: int):
        cache.length = len(context)
        next_logits(model, ids[:, :T], cache)

    with torch.inference_mode():
        next_logits(model, ids, cache)
        runs = {T: lambda T=T: step(T) for T in (1, 1 + args.guesses)}
        in_turns(runs, 5, "cpu")
        times = in_turns(runs, 101, "cpu")
    return times[1 + args.guesses] / times[1]


def main():
    args = parse_args()
    result = {"benchmark": "lookup", "guesses": args.guesses, "runs": []}
    print("| model | temperature | tokens | tokens a step | steps with a guess | checking costs |")
    print("|---|---|---|---|---|---|")
    for path in args.model:
        folder = model_folder(path, "--model")
        tokenizer = load_tokenizer(folder)
        model = for_decoding(load_model(folder, "cpu", torch.float32))
        prompts = prompts_for(tokenizer, args)
        stops = set(stop_ids(tokenizer))
        cost = cost_of_checking(model, prompts[0] * 4, args)
        for temperature in args.temperature:
            tokens = steps = guessed = 0
            for prompt in prompts:
                limit = args.max_new_tokens
                answer = list(generate(model, prompt, limit, stops, 1, temperature=temperature))
                taken, with_guess = steps_taken(prompt, answer, args.guesses)
                tokens, steps, guessed = tokens + len(answer), steps + taken, guessed + with_guess
            row = {"model": str(path), "temperature": temperature, "tokens": tokens}
            row |= {"tokens_a_step": tokens / steps, "guessed": guessed / steps, "cost": cost}
            result["runs"].append(row)
            print(
                f"| {path} | {temperature:g} | {tokens:,} | {tokens / steps:.3f} "
                f"| {guessed / steps:.1%} | {cost:.2f} |",
                flush=True,
            )
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
