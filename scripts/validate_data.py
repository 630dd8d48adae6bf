"""Read data files as training would and report every problem, before any time is spent on training.

    python scripts/validate_data.py --data_path a.jsonl b.parquet    # the kind is recognised
    python scripts/validate_data.py --data_path pairs.jsonl --kind pairs --show 50

Bad records are named with file, line and what was expected. Exact duplicates and texts that contain
control strings such as <|im_end|> are counted: both are legal (control strings in text never become
control tokens), but seldom meant. Files are streamed: memory grows by 8 bytes per record. The exit
status is 1 if there is a bad record.
"""

import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset.conversations import BadConversation, to_conversation
from dataset.dpo import to_pair
from dataset.readers import Problems, check_path, kind_of, read_records
from dataset.tokenizer import load_tokenizer
from training import cli


def parse_args():
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--data_path", nargs="+", required=True, help="one or several data files")
    text = "what the records are; auto: told by the fields of each file's first record"
    add("--kind", choices=["auto", "text", "chat", "pairs"], default="auto", help=text)
    text = "tokenizer folder, whose control strings are searched for"
    add("--tokenizer", type=Path, default=Path("model/tokenizer"), help=text)
    add("--show", type=cli.at_least(0), default=10, help="bad records shown per file")
    return parser.parse_args()


def kind_of_fields(fields: dict) -> str:
    """text, chat or pairs, from a record's fields."""
    if {"chosen", "rejected"} & fields.keys():
        return "pairs"
    return "text" if "text" in fields else "chat"


def check_record(fields: dict, kind: str):
    """Raises BadConversation for a record that training on `kind` would refuse."""
    if kind == "pairs":
        to_pair(fields)
    elif kind == "chat":
        to_conversation(fields)
    else:
        text = fields.get("text")
        if not isinstance(text, str):
            raise BadConversation('a string in the field "text"', kind_of(text))
        if not text or text.isspace():
            raise BadConversation('text in the field "text"', "an empty string")


def validate(path: str, kind: str, show: int, control_strings: list[str]) -> int:
    """Print the report of one file; the number of its bad records."""
    problems = Problems(most_shown=show)
    seen: set[int] = set()  # 64 bits of each record's hash
    good = duplicates = with_control = 0
    for record in read_records(path, "skip", problems):
        kind = kind_of_fields(record.fields) if kind == "auto" else kind
        try:
            check_record(record.fields, kind)
        except BadConversation as bad:
            problems.add(record.path, record.line, bad.expected, bad.got)
            continue
        good += 1
        text = json.dumps(record.fields, sort_keys=True, ensure_ascii=False)
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
        number = int.from_bytes(digest, "little")
        duplicates += number in seen
        seen.add(number)
        with_control += any(control in text for control in control_strings)
    print(
        f"{path} ({kind}): {good:,} good records, {problems.count:,} bad, {duplicates:,} exact "
        f"duplicates, {with_control:,} with control strings in their text"
    )
    for problem in problems.first:
        print(f"    {problem}")
    if problems.count > len(problems.first):
        print(f"    … and {problems.count - len(problems.first):,} more (--show)")
    return problems.count


def main():
    args = parse_args()
    for path in args.data_path:
        check_path(path)
    control_strings = list(load_tokenizer(args.tokenizer).control_tokens)
    if any([validate(path, args.kind, args.show, control_strings) for path in args.data_path]):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
