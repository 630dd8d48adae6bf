"""What the data flags of a script mean: files read, encoded, and split into training and held out.

`texts`, `conversations`, `pairs` and `judged` return a training part and a held-out part. One
process of each machine reads the files and fills the caches; all map them. Where no file is named
it is the demo corpus, and for fine-tuning its questions.
"""

from __future__ import annotations

import argparse
from functools import partial

from dataset.demo import write_demo
from dataset.dpo import DPODataset
from dataset.encoded import HELD_OUT, Encoded, NoRecords, Part
from dataset.kto import KTODataset
from dataset.packing import TokenStream, split_documents, whole_stream
from dataset.pretrain import PretrainDataset
from dataset.record_cache import encoded_records, with_template
from dataset.records import Problems
from dataset.sft import SFTDataset
from dataset.token_cache import cached_tokens
from dataset.tokenizer import Tokenizer
from tasks.task import Prompt
from training.distributed import local_main_first
from training.evaluation import first_questions, read_questions
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


def text_rows(
    args: argparse.Namespace, tokenizer: Tokenizer, run: Run
) -> tuple[PretrainDataset, PretrainDataset | None]:
    """Rows of the `texts`, as train_pretrain.py has them."""
    stream, val_stream = texts(args, tokenizer, run)
    rows = partial(PretrainDataset, max_seq_len=args.max_seq_len)
    dataset = rows(stream, documents_first=True, going_on_from=run.data_before)
    return dataset, rows(val_stream) if val_stream else None


def conversations(
    args: argparse.Namespace, tokenizer: Tokenizer, run: Run, demo: str = "sft.jsonl"
) -> tuple[SFTDataset, SFTDataset | None]:
    """The conversations of --data_path; the tokenizer gets the chat template that they need.

    demo: the file of the demo corpus.
    """

    rows = partial(SFTDataset, max_seq_len=args.max_seq_len, cache_dir=args.cache_dir)
    train_rows = partial(rows, packing=args.packing, weights=args.data_weights)
    return _datasets("conversations", _paths(args, demo), args, tokenizer, run, train_rows, rows)


def pairs(
    args: argparse.Namespace, tokenizer: Tokenizer, run: Run, scored: bool = False
) -> tuple[DPODataset, DPODataset | None]:
    """The pairs of --data_path; the tokenizer gets the chat template that they need.

    scored: as rows of a reward model (DPODataset).
    """
    rows = partial(
        DPODataset, max_seq_len=args.max_seq_len, cache_dir=args.cache_dir, scored=scored
    )
    return _datasets("pairs", _paths(args, "dpo.jsonl"), args, tokenizer, run, rows, rows)


def judged(
    args: argparse.Namespace, tokenizer: Tokenizer, run: Run
) -> tuple[KTODataset, KTODataset | None]:
    """The judged answers of --data_path; the tokenizer gets the chat template that they need."""
    rows = partial(KTODataset, max_seq_len=args.max_seq_len, cache_dir=args.cache_dir)
    return _datasets("judged", _paths(args, "kto.jsonl"), args, tokenizer, run, rows, rows)


def _datasets(kind: str, paths: list, args, tokenizer: Tokenizer, run: Run, train_rows, val_rows):
    """(training, held out or None), encoded and packed by one process of each machine.

    train_rows, val_rows: make a dataset of encoded records, or of a part of them.
    """

    def encode() -> tuple[Encoded, Encoded | None, Problems]:
        problems = Problems()
        parts = [
            encoded_records(
                kind, files, tokenizer, args.cache_dir, args.on_bad_record, problems, flag
            )
            for files, flag in ((paths, "--data_path"), (args.val_data_path, "--val_data_path"))
            if files
        ]
        if args.on_bad_record == "stop":
            problems.raise_if_any()
        return parts[0], parts[1] if args.val_data_path else None, problems

    with local_main_first(run.ranks):
        encoded, val_encoded, problems = with_template(tokenizer, encode)
        for line in problems.lines():
            run.say(line)
        if val_encoded is not None:
            dataset = train_rows(encoded)
            try:
                return dataset, val_rows(val_encoded)
            except NoRecords as error:
                raise ValueError(f"--val_data_path: {error}") from None
        dataset, val_dataset = train_rows(encoded, part=Part("train", args.val_fraction)), None
        if args.val_fraction > 0:
            val_dataset = val_rows(encoded, part=Part(HELD_OUT, args.val_fraction))
        return dataset, val_dataset


def questions(
    args: argparse.Namespace, tokenizer: Tokenizer, val_dataset: SFTDataset | None = None
) -> list[Prompt]:
    """Those of --questions; without, the first questions of the held-out conversations."""
    if args.questions:
        return read_questions(args.questions, tokenizer)
    return first_questions(val_dataset, tokenizer, 3) if val_dataset is not None else []


def _paths(args: argparse.Namespace, demo: str) -> list:
    """--data_path, or a file of the demo corpus; then --questions are those that belong to it."""
    if args.data_path is not None:
        return args.data_path
    files = write_demo(DEMO_DATA)
    asked = "lora_questions.jsonl" if demo == "lora.jsonl" else "questions.jsonl"
    if hasattr(args, "questions"):  # a reward model answers none
        args.questions = args.questions or files[asked]
    return [files[demo]]
