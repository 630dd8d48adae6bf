"""Read data files as training would and report every problem, before any time is spent on training.

    python scripts/validate_data.py --data_path a.jsonl b.parquet    # the kind is recognised
    python scripts/validate_data.py --data_path pairs.jsonl --kind pairs --show 50

Bad records are named with file, line and what was expected, equal ones together; fields that
nothing reads are listed with how often they say something. Exact duplicates and records whose text
holds control strings such as <|im_end|> are counted: both are legal (control strings in text never
become control tokens), but seldom meant. Training counts the same when it starts, file by file.
Files are streamed: memory grows by 8 bytes a record. The exit status is 1 if there is a bad
record, 2 if a file cannot be read at all.
"""

import sys
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset.conversations import MESSAGES
from dataset.encoding import WANTED, CheckJob
from dataset.judged import LABEL
from dataset.oddities import count_repeats, described
from dataset.pairs import SIDES
from dataset.readers import check_path, read_records
from dataset.record_chunks import work_through
from dataset.records import Problems, Record
from dataset.tokenizer import load_tokenizer
from training import cli


def parse_args():
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--data_path", nargs="+", required=True, help="one or several data files")
    text = "what the records are; auto: told by the fields of each file's first record"
    kinds = ["auto", "text", "chat", "pairs", "judged"]
    add("--kind", choices=kinds, default="auto", help=text)
    text = "tokenizer folder, whose control strings are searched for"
    add("--tokenizer", type=Path, default=cli.TOKENIZER, help=text)
    add("--text_field", default=None, help="field of texts; None: text")
    add("--show", type=cli.at_least(0), default=10, help="kinds of bad records shown per file")
    return parser.parse_args()


def kind_of_record(record: Record) -> str:
    """text, chat, pairs or judged, by a record's fields. A label of words judges no answer."""
    names = set(record.names)
    if set(SIDES) & names:
        return "pairs"
    if "text" in names and not set(MESSAGES) & names:
        return "text"
    return "judged" if record.fields.get(LABEL) in (True, False, "true", "false") else "chat"


def kind_of_file(path: str) -> str:
    """The kind of a file, from its first record that can be read; text without any."""
    try:
        return kind_of_record(next(read_records(path, "skip", wanted=(LABEL,))))
    except (StopIteration, ValueError):
        return "text"


def validate(
    path: str, kind: str, show: int, control_tokens: Iterable[str], text_field: str | None = None
) -> int:
    """Print the report of one file; the number of its bad records."""
    if kind == "auto":
        kind = "text" if text_field else kind_of_file(path)
    text_field = text_field or "text"
    problems, hashes, num_with_control_strings = Problems(most_shown=show), array("Q"), 0
    job = CheckJob(kind, tuple(control_tokens), text_field)
    wanted = WANTED.get(kind, (text_field,))
    for of_some, num_of_some in work_through(path, job, problems, wanted=wanted):
        hashes.frombytes(of_some.tobytes())
        num_with_control_strings += num_of_some
    oddities = described(count_repeats(np.frombuffer(hashes, np.uint64)), num_with_control_strings)
    for remarks in problems.remarks.values():
        for line in remarks.lines():
            print(f"{path}: {line}")
    print(f"{path} ({kind}): {len(hashes):,} good records, {problems.count:,} bad, {oddities}")
    for problem in problems.first:
        print(f"    {problem}")
    if problems.num_not_shown:
        print(f"    … and {problems.num_not_shown:,} more (--show)")
    return problems.count


def main():
    args = parse_args()
    for path in args.data_path:
        check_path(path)
    control_tokens = load_tokenizer(args.tokenizer).control_tokens
    num_bad, refused = 0, []
    for path in args.data_path:
        try:
            num_bad += validate(path, args.kind, args.show, control_tokens, args.text_field)
        except ValueError as error:  # a file that cannot be read; the others can
            refused.append(str(error))
    if refused:
        raise ValueError("\n".join(refused))
    if num_bad:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
