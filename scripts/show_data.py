"""Look at conversations or preference pairs as the model will see them.

    python scripts/show_data.py                                     # the demo corpus
    python scripts/show_data.py --data_path chats.jsonl --max_seq_len 768 --line 40
    python scripts/show_data.py --data_path pairs.jsonl --num 10 --color always | less -R

What is trained on is green (between ⟦ and ⟧ without colour), a rejected answer red, control tokens
dim. Then, per file: lengths, what does not fit a row, how well rows are filled, and what is wrong
with it, by file and line.
"""

import sys
from itertools import groupby, islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset.chat import choose_template
from dataset.conversations import read_conversations
from dataset.demo import write_demo
from dataset.dpo import DPODataset, EncodedPairs
from dataset.pairs import read_pairs
from dataset.records import Problems
from dataset.sft import EncodedConversations, SFTDataset
from dataset.tokenizer import Tokenizer, load_tokenizer
from scripts.validate_data import kind_of_file
from training import cli

GREEN, RED, DIM, BOLD, OFF = "\033[32m", "\033[31m", "\033[2m", "\033[1m", "\033[0m"
BARS = "▁▂▃▄▅▆▇█"
NO_LIMIT = 1 << 17


def parse_args():
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--data_path", nargs="+", default=None, help="files to look at; None: the demo corpus")
    add("--tokenizer", type=Path, default=cli.TOKENIZER, help="tokenizer or model folder")
    text = "tokens per row; None: the training scripts' own, 1024, and 4096 for pairs"
    add("--max_seq_len", type=cli.at_least(1), default=None, help=text)
    add("--num", type=cli.at_least(0), default=3, help="how many to print of each file")
    add("--line", type=cli.at_least(1), default=1, help="line of the first one to print")
    text = "auto: on a terminal"
    add("--color", choices=["auto", "always", "never"], default="auto", help=text)
    return parser.parse_args()


def painted(text: str, style: str, color: bool) -> str:
    return f"{style}{text}{OFF}" if color and style and text else text


def token_text(tokenizer: Tokenizer, ids, mask, color: bool, style: str = GREEN) -> str:
    """The text of `ids`: in `style` (or between ⟦ and ⟧) where `mask` is 1, control tokens dim."""
    controls = set(tokenizer.control_tokens.values())
    tokens = list(zip(ids.tolist(), mask.tolist(), strict=True))
    parts = []
    for supervised, run in groupby(tokens, key=lambda token: token[1]):
        text = ""
        for is_control, piece in groupby(run, key=lambda token: token[0] in controls):
            decoded = tokenizer.decode([token for token, _ in piece])
            text += painted(decoded, style * supervised + DIM * is_control, color)
        parts.append(f"⟦{text}⟧" if supervised and not color else text)
    return "".join(parts).rstrip("\n")


def heading(source: tuple[str, int], facts: str, color: bool) -> str:
    return "\n" + painted(f"── {source[0]}:{source[1]} · {facts}", BOLD, color)


def lengths_line(lengths: np.ndarray) -> str:
    """Four percentiles and a histogram of token counts on a scale of powers of two."""
    low, high = (int(np.log2(x)) for x in (lengths.min(), lengths.max()))
    counts = np.bincount(np.log2(lengths).astype(int) - low, minlength=high - low + 1)
    bars = "".join(BARS[-(-7 * count // counts.max())] for count in counts.tolist())
    middle, most = np.percentile(lengths, (50, 95)).astype(int)
    return (
        f"shortest {lengths.min():,} · median {middle:,} · 95% ≤ {most:,} · longest "
        f"{lengths.max():,} tokens   {2**low} {bars} {2 ** (high + 1)}"
    )


def show_conversations(path: str, tokenizer: Tokenizer, args, color: bool, problems: Problems):
    """Print some conversations of a file and yield its figures."""
    conversations = list(read_conversations(path, "skip", problems))
    choose_template(tokenizer, conversations)
    chosen = (c for c in conversations if c.line >= args.line)
    for conversation in islice(chosen, args.num):
        whole = EncodedConversations([conversation], tokenizer, NO_LIMIT)
        kept = EncodedConversations([conversation], tokenizer, args.max_seq_len)
        kept = [ids.tolist() for ids, _ in (kept[i] for i in range(len(kept)))]
        for i in range(len(whole)):
            ids, mask = whole[i]
            end = max((len(k) for k in kept if ids[: len(k)].tolist() == k), default=0)
            facts = f"{len(ids)} tokens, {mask.sum()} trained on"
            facts += f" · sequence {i + 1} of {len(whole)}" * (len(whole) > 1)
            print(heading(whole.sources[i], facts, color))
            print(token_text(tokenizer, ids[:end], mask[:end], color))
            if end < len(ids):
                at = "cut here" if end else "left out"
                print(painted(f"✂ {at}: longer than --max_seq_len {args.max_seq_len}", RED, color))
                print(painted(tokenizer.decode(ids[end:].tolist()).rstrip("\n"), DIM, color))
    yield f"{len(conversations):,} conversations"
    whole = EncodedConversations(conversations, tokenizer, NO_LIMIT)
    if not len(whole):
        return
    yield f"{len(whole.ids):,} tokens, {whole.masks.mean():.1%} of them trained on"
    yield lengths_line(whole.lengths)
    yield str(whole.oddities)
    kept = EncodedConversations(conversations, tokenizer, args.max_seq_len)
    yield (
        f"at --max_seq_len {args.max_seq_len}: {kept.num_cut:,} cut after an answer, "
        f"{kept.num_too_long:,} left out"
    )
    if len(kept):
        packed, apart = (SFTDataset(kept, args.max_seq_len, packing) for packing in (True, False))
        yield (
            f"{len(packed):,} rows packed, {packed.efficiency:.1%} of the positions used; "
            f"{len(apart):,} unpacked, {apart.efficiency:.1%}"
        )


def show_pairs(path: str, tokenizer: Tokenizer, args, color: bool, problems: Problems):
    """Print some pairs of a file and yield its figures."""
    pairs = list(read_pairs(path, "skip", problems=problems))
    choose_template(tokenizer, pairs)
    chosen = (pair for pair in pairs if pair.line >= args.line)
    for pair in islice(chosen, args.num):
        encoded = EncodedPairs([pair], tokenizer, NO_LIMIT)
        (ids, mask), (_, other_mask) = encoded.sequences
        start = int(mask.argmax())
        facts = f"prompt {start}, chosen {mask.sum()}, rejected {other_mask.sum()} tokens"
        print(heading(encoded.sources[0], facts, color))
        print(token_text(tokenizer, ids[:start], mask[:start], color))
        for name, style, (ids, mask) in zip(("chosen", "rejected"), (GREEN, RED),
                                            encoded.sequences, strict=True):  # fmt: skip
            text = token_text(tokenizer, ids[start:], mask[start:], color, style)
            print(f"{painted(name + ':', BOLD, color)} {text}")
    yield f"{len(pairs):,} pairs"
    whole = EncodedPairs(pairs, tokenizer, NO_LIMIT)
    if not len(whole):
        return
    yield lengths_line(np.array([len(ids) for ids, _ in whole.sequences]))
    answers = np.array([mask.sum() for _, mask in whole.sequences]).reshape(-1, 2)
    longer = (answers[:, 0] > answers[:, 1]).mean()
    chosen_mean, rejected_mean = answers.mean(0)
    yield (
        f"answers: {chosen_mean:.1f} tokens chosen, {rejected_mean:.1f} rejected on average; "
        f"the chosen one is longer in {longer:.1%}"
    )
    yield str(whole.oddities)
    kept = EncodedPairs(pairs, tokenizer, args.max_seq_len)
    yield f"at --max_seq_len {args.max_seq_len}: {kept.num_too_long:,} left out"
    if len(kept):
        yield DPODataset(kept, args.max_seq_len).summary().split(";")[0]


def main():
    args = parse_args()
    asked = args.max_seq_len
    tokenizer = load_tokenizer(args.tokenizer)
    if not (args.tokenizer / "config.json").is_file():  # no model yet: its data will choose
        tokenizer.chat_template = None
    color = args.color == "always" or (args.color == "auto" and sys.stdout.isatty())
    demo = write_demo("out/demo_data") if args.data_path is None else {}
    for path in args.data_path or [demo["sft.jsonl"], demo["dpo.jsonl"]]:
        of_pairs = kind_of_file(path) == "pairs"
        show, usual = (show_pairs, 4096) if of_pairs else (show_conversations, 1024)
        args.max_seq_len = asked or usual
        problems = Problems()
        figures = list(show(path, tokenizer, args, color, problems))
        print("\n" + painted(str(path), BOLD, color))
        for line in figures:
            print(f"  {line}")
        for line in (line for remarks in problems.remarks.values() for line in remarks.lines()):
            print(f"  {line}")
        print(painted(f"  {problems.count:,} bad records", RED if problems.count else "", color))
        for problem in problems.first:
            print(f"    {problem}")


if __name__ == "__main__":
    cli.run(main)
