"""What the data flags of a script mean: files read, encoded, and split into training and held out.

Each function returns a training part and a held-out part, for the datasets of the script. Where no
file is named it is the demo corpus, and for fine-tuning its questions.
"""

from __future__ import annotations

import argparse

import numpy as np

from dataset.chat import choose_template
from dataset.conversations import read_conversations
from dataset.demo import write_demo
from dataset.dpo import EncodedPairs
from dataset.judged import read_judged
from dataset.kto import EncodedJudged
from dataset.packing import TokenStream, split_documents, whole_stream
from dataset.pairs import read_pairs
from dataset.records import Problems
from dataset.sft import EncodedConversations, repeats_by_weight
from dataset.token_cache import cached_tokens
from dataset.tokenizer import Tokenizer
from training import cli
from training.distributed import local_main_first
from training.evaluation import Question, first_questions, read_questions
from training.run import Run
from training.start import DEMO_DATA


def texts(
    args: argparse.Namespace, tokenizer: Tokenizer, run: Run
) -> tuple[TokenStream, TokenStream | None]:
    """The documents of --data_path, tokenised once into a cache by one process of each machine."""

    def cached(path, flag="--data_path"):
        return cached_tokens(
            path, tokenizer, args.cache_dir, args.on_bad_record, flag=flag,
            text_field=args.text_field,
        )  # fmt: skip

    with local_main_first(run.ranks):
        paths = args.data_path or [write_demo(DEMO_DATA)["pretrain.jsonl"]]
        files = [cached(path) for path in paths]
        val_files = [cached(path, "--val_data_path") for path in args.val_data_path or []]
    if val_files:
        return whole_stream(files), whole_stream(val_files)
    return split_documents(files, args.val_fraction)


def conversations(
    args: argparse.Namespace, tokenizer: Tokenizer, run: Run, demo: str = "sft.jsonl"
) -> tuple[EncodedConversations, EncodedConversations, np.ndarray | None]:
    """The conversations of --data_path, encoded; and how often each is taken (--data_weights).

    The tokenizer gets the chat template that they need. demo: the file of the demo corpus.
    """
    paths = _paths(args, demo)
    all_paths = [*paths, *(args.val_data_path or [])]
    choose_template(tokenizer, read_conversations(all_paths, args.on_bad_record))
    problems, max_seq_len = Problems(), args.max_seq_len
    read = read_conversations(paths, args.on_bad_record, problems)
    encoded = EncodedConversations(read, tokenizer, max_seq_len)
    if args.val_data_path:
        read = read_conversations(
            args.val_data_path, args.on_bad_record, problems, flag="--val_data_path"
        )
        parts = encoded, EncodedConversations(read, tokenizer, max_seq_len)
    else:
        parts = encoded.split(args.val_fraction)
    repeats = None
    if args.data_weights:
        repeats = repeats_by_weight(parts[0], cli.paired(paths, args.data_weights))
    _tell(problems, run)
    return *parts, repeats


def pairs(
    args: argparse.Namespace, tokenizer: Tokenizer, run: Run
) -> tuple[EncodedPairs, EncodedPairs]:
    """The pairs of --data_path, encoded; the tokenizer gets the chat template that they need."""
    paths = _paths(args, "dpo.jsonl")
    all_paths = [*paths, *(args.val_data_path or [])]
    choose_template(tokenizer, read_pairs(all_paths, args.on_bad_record))
    problems = Problems()
    read = read_pairs(paths, args.on_bad_record, problems=problems)
    parts = EncodedPairs(read, tokenizer, args.max_seq_len)
    if args.val_data_path:
        read = read_pairs(args.val_data_path, args.on_bad_record, "--val_data_path", problems)
        parts = parts, EncodedPairs(read, tokenizer, args.max_seq_len)
    else:
        parts = parts.split(args.val_fraction)
    _tell(problems, run)
    return parts


def judged(
    args: argparse.Namespace, tokenizer: Tokenizer, run: Run
) -> tuple[EncodedJudged, EncodedJudged]:
    """The judged answers of --data_path, encoded; as `pairs`."""
    paths = _paths(args, "kto.jsonl")
    all_paths = [*paths, *(args.val_data_path or [])]
    choose_template(tokenizer, read_judged(all_paths, args.on_bad_record))
    problems = Problems()
    read = read_judged(paths, args.on_bad_record, problems=problems)
    parts = EncodedJudged(read, tokenizer, args.max_seq_len)
    if args.val_data_path:
        read = read_judged(args.val_data_path, args.on_bad_record, "--val_data_path", problems)
        parts = parts, EncodedJudged(read, tokenizer, args.max_seq_len)
    else:
        parts = parts.split(args.val_fraction)
    _tell(problems, run)
    return parts


def questions(
    args: argparse.Namespace, tokenizer: Tokenizer, val_encoded: EncodedConversations | None = None
) -> list[Question]:
    """Those of --questions; without, the first questions of the held-out conversations."""
    if args.questions:
        return read_questions(args.questions, tokenizer)
    return first_questions(val_encoded, tokenizer, 3) if val_encoded is not None else []


def _paths(args: argparse.Namespace, demo: str) -> list:
    """--data_path, or a file of the demo corpus; then --questions are those that belong to it."""
    if args.data_path is not None:
        return args.data_path
    files = write_demo(DEMO_DATA)
    asked = "lora_questions.jsonl" if demo == "lora.jsonl" else "questions.jsonl"
    args.questions = args.questions or files[asked]
    return [files[demo]]


def _tell(problems: Problems, run: Run):
    for line in problems.lines():
        run.say(line)
