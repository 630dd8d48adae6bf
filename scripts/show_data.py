"""Look at conversations, pairs or judged answers as the model will see them.

    python scripts/show_data.py                                     # the demo corpus
    python scripts/show_data.py --data_path chats.jsonl --max_seq_len 768 --line 40
    python scripts/show_data.py --data_path pairs.jsonl --num 10 --color always | less -R

What is trained on is green (between ⟦ and ⟧ without colour), a bad answer red, control tokens
dim. Then, per file: lengths, what does not fit a row, how well rows are filled, and what is wrong
with it, by file and line.
"""

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset.chat_turns import MAY_END, TRAINED
from dataset.demo import write_demo
from dataset.dpo import DPODataset
from dataset.encoded import Encoded, NoRecords
from dataset.kto import KTODataset
from dataset.record_cache import encoded_records, with_template
from dataset.records import Problems
from dataset.sft import SFTDataset
from dataset.tokenizer import Tokenizer, load_tokenizer
from scripts.validate_data import kind_of_file
from training import cli

GREEN, RED, DIM, BOLD, OFF = "\033[32m", "\033[31m", "\033[2m", "\033[1m", "\033[0m"
BARS = "▁▂▃▄▅▆▇█"


def parse_args():
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--data_path", nargs="+", default=None, help="files to look at; None: the demo corpus")
    add("--tokenizer", type=Path, default=cli.TOKENIZER, help="tokenizer or model folder")
    text = "tokens per row; None: training's own: 1024; 4096 for pairs and judged answers"
    add("--max_seq_len", type=cli.at_least(1), default=None, help=text)
    add("--num", type=cli.at_least(0), default=3, help="how many to print of each file")
    add("--line", type=cli.at_least(1), default=1, help="line of the first one to print")
    add("--cache_dir", type=Path, default=Path("out/cache"), help="folder of encoded data")
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


def chosen_records(encoded: Encoded, args) -> list[int]:
    """The first --num records from --line on."""
    lines = encoded.files[0].arrays["lines"]
    return np.flatnonzero(lines >= args.line)[: args.num].tolist()


def show_conversations(encoded: Encoded, tokenizer: Tokenizer, args, color: bool) -> Iterator[str]:
    """Print some conversations of a file and yield its figures."""
    ends = encoded.ends_of_records()
    for record in chosen_records(encoded, args):
        first, end = (int(ends[record - 1]) if record else 0), int(ends[record])
        for i in range(first, end):
            ids, mask = encoded.sequence(i)
            cuts = np.flatnonzero(mask[: args.max_seq_len + 1] & MAY_END)
            kept = len(ids) if len(ids) <= args.max_seq_len + 1 else cuts.max(initial=-1) + 1
            mask = mask & TRAINED
            facts = f"{len(ids)} tokens, {mask.sum()} trained on"
            facts += f" · sequence {i - first + 1} of {end - first}" * (end - first > 1)
            print(heading(encoded.source(record), facts, color))
            print(token_text(tokenizer, ids[:kept], mask[:kept], color))
            if kept < len(ids):
                at = "cut here" if kept else "left out"
                print(painted(f"✂ {at}: longer than --max_seq_len {args.max_seq_len}", RED, color))
                rest = tokenizer.decode(ids[kept:].tolist()).rstrip("\n")
                print(painted(rest, DIM, color))
    yield f"{encoded.num_records:,} conversations"
    lengths = encoded.lengths()
    trained = encoded.num_trained(np.arange(len(lengths)), lengths).sum() / lengths.sum()
    yield f"{lengths.sum():,} tokens, {trained:.1%} of them trained on"
    yield lengths_line(lengths)
    yield encoded.oddities()
    try:
        packed, apart = (SFTDataset(encoded, args.max_seq_len, way) for way in (True, False))
    except NoRecords as error:
        yield str(error)
        return
    facts = packed.facts
    yield (
        f"at --max_seq_len {args.max_seq_len}: {facts['num_cut']:,} cut after an answer, "
        f"{facts['num_too_long']:,} left out"
    )
    yield (
        f"{len(packed):,} rows packed, {packed.efficiency:.1%} of the positions used; "
        f"{len(apart):,} unpacked, {apart.efficiency:.1%}"
    )


def show_pairs(encoded: Encoded, tokenizer: Tokenizer, args, color: bool) -> Iterator[str]:
    """Print some pairs of a file and yield its figures."""
    for record in chosen_records(encoded, args):
        sides = [encoded.sequence(i) for i in (2 * record, 2 * record + 1)]
        sides = [(ids, mask & TRAINED) for ids, mask in sides]
        (ids, mask), (_, other_mask) = sides
        start = int(mask.argmax())
        facts = f"prompt {start}, chosen {mask.sum()}, rejected {other_mask.sum()} tokens"
        print(heading(encoded.source(record), facts, color))
        print(token_text(tokenizer, ids[:start], mask[:start], color))
        for name, style, (ids, mask) in zip(("chosen", "rejected"), (GREEN, RED), sides):
            text = token_text(tokenizer, ids[start:], mask[start:], color, style)
            print(f"{painted(name + ':', BOLD, color)} {text}")
    yield f"{encoded.num_records:,} pairs"
    lengths = encoded.lengths()
    yield lengths_line(lengths)
    answers = encoded.num_trained(np.arange(len(lengths)), lengths).reshape(-1, 2)
    longer = (answers[:, 0] > answers[:, 1]).mean()
    chosen_mean, rejected_mean = answers.mean(0)
    yield (
        f"answers: {chosen_mean:.1f} tokens chosen, {rejected_mean:.1f} rejected on average; "
        f"the chosen one is longer in {longer:.1%}"
    )
    yield encoded.oddities()
    try:
        dataset = DPODataset(encoded, args.max_seq_len)
    except NoRecords as error:
        yield str(error)
        return
    yield f"at --max_seq_len {args.max_seq_len}: {dataset.facts['num_too_long']:,} left out"
    yield dataset.summary().split(";")[0]


def show_judged(encoded: Encoded, tokenizer: Tokenizer, args, color: bool) -> Iterator[str]:
    """Print some judged answers of a file and yield its figures."""
    labels = encoded.labels()
    for record in chosen_records(encoded, args):
        ids, mask = encoded.sequence(record)
        mask = mask & TRAINED
        start, word = int(mask.argmax()), "desirable" if labels[record] else "undesirable"
        facts = f"prompt {start}, answer {mask.sum()} tokens"
        print(heading(encoded.source(record), facts, color))
        print(token_text(tokenizer, ids[:start], mask[:start], color))
        style = GREEN if labels[record] else RED
        text = token_text(tokenizer, ids[start:], mask[start:], color, style)
        print(f"{painted(word + ':', BOLD, color)} {text}")
    yield f"{labels.sum():,} desirable answers, {(~labels).sum():,} undesirable"
    yield lengths_line(encoded.lengths())
    yield encoded.oddities()
    try:
        dataset = KTODataset(encoded, args.max_seq_len)
    except ValueError as error:  # too long, or no two prompts
        yield str(error)
        return
    yield f"at --max_seq_len {args.max_seq_len}: {dataset.facts['num_too_long']:,} left out"
    yield dataset.summary().split(";")[0]


def main():
    args = parse_args()
    asked = args.max_seq_len
    tokenizer = load_tokenizer(args.tokenizer)
    if not (args.tokenizer / "config.json").is_file():  # no model yet: its data will choose
        tokenizer.chat_template = None
    color = args.color == "always" or (args.color == "auto" and sys.stdout.isatty())
    demo = write_demo("out/demo_data") if args.data_path is None else {}
    for path in args.data_path or [demo["sft.jsonl"], demo["dpo.jsonl"]]:
        kind, show, usual = {
            "pairs": ("pairs", show_pairs, 4096),
            "judged": ("judged", show_judged, 4096),
        }.get(kind_of_file(path), ("conversations", show_conversations, 1024))
        args.max_seq_len = asked or usual
        encoded, problems = encoded_file(kind, path, tokenizer, args.cache_dir)
        figures = list(show(encoded, tokenizer, args, color)) if encoded.num_records else []
        print("\n" + painted(str(path), BOLD, color))
        for line in figures:
            print(f"  {line}")
        for line in (line for remarks in problems.remarks.values() for line in remarks.lines()):
            print(f"  {line}")
        print(painted(f"  {problems.count:,} bad records", RED if problems.count else "", color))
        for problem in problems.first:
            print(f"    {problem}")


def encoded_file(
    kind: str, path: str, tokenizer: Tokenizer, cache_dir: Path
) -> tuple[Encoded, Problems]:
    """The good records of a file, from training's own cache, and what is to be said of the rest."""

    def encode() -> tuple[Encoded, Problems]:
        problems = Problems()
        return encoded_records(kind, [path], tokenizer, cache_dir, problems=problems), problems

    return with_template(tokenizer, encode)


if __name__ == "__main__":
    cli.run(main)
