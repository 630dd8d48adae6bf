"""Trains a byte-level BPE tokenizer on text files and saves it as a Hugging Face folder.

    python train_tokenizer.py --data_path data/pretrain.jsonl --out_dir out/tokenizer
    python train_tokenizer.py --data_path en.jsonl zh.jsonl chats.jsonl --vocab_size 12800 \\
        --max_bytes_per_file 8000000 --out_dir out/tokenizer

Reads what training reads: {"text": ...} records, conversations and preference pairs, as jsonl,
json, txt, csv or parquet, plain or gzipped. The same files and flags give the same tokenizer.
The order of the entries: 16 control tokens, the 256 bytes, then what merging adds.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from dataset import conversations, pairs
from dataset.readers import read_records
from dataset.tokenizer import END_OF_TEXT, LARGEST_ID, MODEL_INPUTS, load_tokenizer
from training.terminal import forgive_encodings

# Qwen2's pattern, which GGUF tools know by name: words with the space or sign before them, single
# digits, runs of punctuation, line ends, spaces. Merges never cross its pieces.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# "Special" tokens are hidden by decoders that skip special tokens. Thoughts and tool calls are not
# (as in Qwen3's tokenizer), because the programs that parse them need to see their tags.
SPECIAL = [END_OF_TEXT, "<|im_start|>", "<|im_end|>"]
TAGS = ["<think>", "</think>"]
TAGS += ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
RESERVED = [f"<|reserved_{i}|>" for i in range(16 - len(SPECIAL + TAGS))]
CONTROL_TOKENS = SPECIAL + TAGS + RESERVED
# Bytes of an entry: 5 Chinese characters or a long English word. Chinese has no spaces, so without
# a limit the sentences that a corpus repeats would become entries.
LONGEST_TOKEN = 16
LARGEST_VOCABULARY = LARGEST_ID + 1  # that the scripts load


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_path", nargs="+", required=True, help="one or several data files")
    add("--out_dir", required=True, help="folder to write the tokenizer to")
    add("--vocab_size", type=int, default=6400, help="entries, control tokens included")
    add("--min_frequency", type=int, default=2, help="occurrences a pair needs to be merged")
    add("--max_bytes_per_file", type=int, help="bytes of text used, spread evenly (default: all)")
    add("--text_field", default="text", help="field that holds the text of records for pretraining")
    add("--on_bad_record", choices=["stop", "skip"], default="stop", help="what to do about one")
    args = parser.parse_args(argv)
    smallest = len(CONTROL_TOKENS) + 256
    if args.vocab_size < smallest:
        parser.error(
            f"--vocab_size: expected at least {smallest} entries ({len(CONTROL_TOKENS)} control "
            f"tokens and 256 bytes), got {args.vocab_size}"
        )
    if args.vocab_size > LARGEST_VOCABULARY:
        parser.error(f"--vocab_size: expected at most {LARGEST_VOCABULARY}, got {args.vocab_size}")
    for flag in ("min_frequency", "max_bytes_per_file"):
        value = getattr(args, flag)
        if value is not None and not 1 <= value < 2**63:
            parser.error(f"--{flag}: expected 1 to {2**63 - 1}, got {value}")
    return args


def strings_in(value: object) -> Iterator[str]:
    """All strings inside a record's value; JSON inside a string stays one string."""
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings_in(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in ("role", "from"):  # who speaks is written by the chat template
                yield from strings_in(item)


def texts_of(path: str, on_bad_record: str, text_field: str = "text") -> Iterator[str]:
    """Every string of a data file that a model would be trained on."""
    fields = list(dict.fromkeys([text_field, "text", *conversations.FIELDS, *pairs.FIELDS]))
    for record in read_records(path, on_bad_record, wanted=fields):
        for name in fields:
            yield from strings_in(record.fields.get(name))


def sample(
    path: str, on_bad_record: str, max_bytes: int | None, text_field: str = "text"
) -> list[str]:
    """The texts of a file, or about max_bytes of them taken evenly from all of it."""
    if max_bytes is None:
        return list(texts_of(path, on_bad_record, text_field))
    total = sum(len(text.encode()) for text in texts_of(path, on_bad_record, text_field))
    share = min(1, max_bytes / max(1, total))
    kept, seen, kept_bytes = [], 0, 0
    for text in texts_of(path, on_bad_record, text_field):
        size = len(text.encode())
        seen += size
        if kept_bytes + size / 2 <= seen * share:  # behind its share: take this one
            kept.append(text)
            kept_bytes += size
    return kept


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    texts = {}
    for path in args.data_path:
        texts[path] = sample(path, args.on_bad_record, args.max_bytes_per_file, args.text_field)
        if not texts[path]:
            raise ValueError(f"--data_path: no text in {path}")

    tokenizer = Tokenizer(models.BPE())
    # No normalizer: decode(encode(text)) is the text, for every Unicode string.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=args.vocab_size,
        min_frequency=args.min_frequency,
        special_tokens=CONTROL_TOKENS,
        max_token_length=LONGEST_TOKEN,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator((text for part in texts.values() for text in part), trainer)
    if tokenizer.get_vocab_size() < args.vocab_size:
        print(
            f"the text gives only {tokenizer.get_vocab_size()} entries, not {args.vocab_size}; "
            f"use more text or a lower --min_frequency",
            file=sys.stderr,
        )

    out_dir = Path(args.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    spec = json.loads(tokenizer.to_str())
    for token in spec["added_tokens"]:  # the trainer makes all of them special
        token["special"] = token["content"] not in TAGS
    text = json.dumps(spec, indent=2, ensure_ascii=False)
    (out_dir / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    config = {
        # Loads tokenizer.json as it is; "Qwen2Tokenizer" would add a normalizer to it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": SPECIAL[1:],
        "model_input_names": MODEL_INPUTS,
        "model_max_length": 32768,
        "clean_up_tokenization_spaces": False,
    }
    (out_dir / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

    saved = load_tokenizer(out_dir)
    print(f"{saved.vocab_size} entries, saved in {out_dir}")
    for path, strings in texts.items():
        num_tokens = sum(map(len, saved.encode_texts(strings)))
        print(f"{sum(map(len, strings)) / num_tokens:.2f} characters per token: {path}")


if __name__ == "__main__":
    forgive_encodings()
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"train_tokenizer.py: error: {error}", file=sys.stderr)
        sys.exit(2)
