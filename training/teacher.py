"""A model that only says what it thinks of a text: its folder checked, its weights at rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from torch import Tensor

from dataset.tokenizer import Tokenizer, load_tokenizer
from model.hf_format import inherited, load_config, load_model
from model.model import MiniMindLM
from training.distributed import shard
from training.losses import CHUNK, in_chunks
from training.run import Run


def teachers_tokenizer(args) -> Tokenizer:
    """The tokenizer of --teacher, which --init_from has to agree with.

    The teacher's is taken, chat template included, because it knows no other format. Raises
    ValueError, one line, if the student has other tokens, or ids for them.
    """
    theirs = load_tokenizer(args.teacher)
    if args.init_from is not None:
        ours = load_tokenizer(args.init_from)
        if difference := vocabulary_difference(ours, theirs):
            raise ValueError(
                f"--teacher {args.teacher}: its vocabulary is not that of --init_from "
                f"{args.init_from}: {difference}; a teacher needs the student's vocabulary"
            )
    return theirs


def vocabulary_difference(ours: Tokenizer, theirs: Tokenizer) -> str | None:
    """In what two vocabularies first differ, in words; None if all ids mean the same."""
    for id in range(max(ours.vocab_size, theirs.vocab_size)):
        meanings = [
            (tokenizer.bytes_of(id), id in tokenizer.control_tokens.values())
            for tokenizer in (ours, theirs)
        ]
        if meanings[0] != meanings[1]:
            here, there = (
                repr(content.decode("utf-8", "backslashreplace")) if content else "unused"
                for content, _ in meanings
            )
            if here == there:
                here, there = (
                    f"{here} as {'a control token' if is_control else 'text'}"
                    for _, is_control in meanings
                )
            return f"id {id} is {there} for the teacher, {here} for the student"
    return None


def load_teacher(run: Run, tokenizer: Tokenizer) -> MiniMindLM:
    """The model of --teacher, in the dtype that most of its weights have there, to be asked only.

    It is in evaluation mode and none of its weights asks for a gradient. With --fsdp every rank has
    its part of them. Raises ValueError if it has not seen as much as it is to be shown.
    """
    args = run.args
    config = load_config(args.teacher)
    if args.max_seq_len > config.max_position_embeddings:
        raise ValueError(
            f"--max_seq_len {args.max_seq_len}: the teacher's context is "
            f"{config.max_position_embeddings} tokens"
        )
    if config.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"--teacher {args.teacher}: its tokenizer has {tokenizer.vocab_size} entries, its "
            f"model {config.vocab_size}"
        )
    (dtype, _), *_ = Counter(inherited(args.teacher).dtypes.values()).most_common()
    teacher = load_model(args.teacher, run.home, dtype)
    teacher = shard(teacher, run.ranks, args) if args.fsdp else teacher.to(run.device)
    return teacher.requires_grad_(False).eval()


def at_every_token(divergence: Callable, student: Tensor, teacher: Tensor, args) -> Tensor:
    """divergence(student, teacher, args) of every place: [B, T] from logits [B, T, V].

    Not for all places at a time, see `in_chunks`. Where one of the vocabularies has been filled up
    to a rounder number than the other, the entries that both have are compared.
    """
    V = min(student.shape[-1], teacher.shape[-1])
    flat = (logits[..., :V].flatten(0, 1) for logits in (student, teacher))  # [B·T, V]
    of_chunk = partial(divergence, args=args)
    return in_chunks(of_chunk, *flat, size=CHUNK // 4).view(student.shape[:2])
