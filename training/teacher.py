"""A model that only says what it thinks of a text: its folder checked, its weights at rest.

Shapes: B rows, T tokens, N places, V vocab_size, k the likeliest tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dataset.tokenizer import Tokenizer, load_tokenizer
from model.hf_format import inherited, load_config, load_model
from model.model import MiniMindLM
from training.distributed import local_main_first, shard
from training.losses import CHUNK, in_chunks
from training.run import Run
from training.teacher_memory import Memory, of_the_likeliest, remembered


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


class Teacher:
    """What a student is compared with: the model of --teacher, or what is remembered of it.

    divergence  a function of q, p and the flags: how far apart two distributions are, [N] from
                log-probabilities [N, V] of the student's and of the teacher's

    The model has the dtype that most of its weights have in its folder. It is in evaluation mode
    and none of its weights asks for a gradient; with --fsdp every rank has its part of them. With
    --teacher_top_k it is loaded only if --cache_dir has no files of what it says, to make them.
    """

    def __init__(self, run: Run, tokenizer: Tokenizer, divergence: Callable):
        self.run, self.args = run, run.args
        self._check(tokenizer)
        self.V = min(run.config.vocab_size, load_config(run.args.teacher).vocab_size)
        self._divergence = partial(at_every_token, divergence, run.args, self.V)
        self.model = None if self.args.teacher_top_k else self._load(self.args.fsdp)

    def _check(self, tokenizer: Tokenizer):
        """ValueError if the model has not seen as much as it is to be shown."""
        args, config = self.args, load_config(self.args.teacher)
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
        if args.teacher_top_k >= tokenizer.vocab_size:
            raise ValueError(
                f"--teacher_top_k {args.teacher_top_k}: there are {tokenizer.vocab_size} tokens"
            )

    def _load(self, fsdp: bool = False) -> MiniMindLM:
        folder, run = self.args.teacher, self.run
        (dtype, _), *_ = Counter(inherited(folder).dtypes.values()).most_common()
        model = load_model(folder, run.home if fsdp else "cpu", dtype)
        model = shard(model, run.ranks, self.args) if fsdp else model.to(run.device)
        return model.requires_grad_(False).eval()

    def get_ready(self, *datasets):
        """Compile what --compile asks for; or find or make the files about these datasets' rows."""
        run, args = self.run, self.args
        self._gaps = run.compile(self._divergence)
        if self.model is not None:
            self.model.documents_per_row = run.model.documents_per_row
            self._ask = run.compile(self.model)
            return
        with local_main_first(run.ranks):
            top = [remembered(run, d, self.V, self._load) for d in datasets if d is not None]
        self._memory = Memory(top, args.teacher_top_k)

    def gaps(self, logits: Tensor, X: Tensor, *document_ids: Tensor) -> Tensor:
        """The divergence at every place of X: [B, T] from the student's logits [B, T, V]."""
        if self.model is None:
            return self._gaps(logits, *self._memory.of(X))
        with torch.no_grad(), self.run.autocast:
            teachers, _ = self._ask(X, *document_ids)
        return self._gaps(logits, teachers)


def at_every_token(
    divergence: Callable, args, V: int, student: Tensor, teacher: Tensor, ids: Tensor | None = None
) -> Tensor:
    """divergence(q, p, args) at every place, float32 [B, T]; not for all at a time (in_chunks).

    student, teacher  logits [B, T, V or more]: entries beyond V, by which a vocabulary has been
                      filled up to a rounder number, are left out
    ids               [B, T, k]: of the teacher's k likeliest tokens. Then `teacher` is [B, T, k+1]:
                      their log-probabilities, softened, and that of all the other tokens together
    """
    T = args.temperature

    def of_logits(student: Tensor, teacher: Tensor) -> Tensor:
        q, p = ((logits.float() / T).log_softmax(-1) for logits in (student, teacher))
        return divergence(q, p, args)

    def of_top(student: Tensor, p: Tensor, ids: Tensor) -> Tensor:
        return divergence(of_the_likeliest((student.float() / T).log_softmax(-1), ids), p, args)

    if ids is None:
        function, tensors = of_logits, (student[..., :V], teacher[..., :V])
    else:
        function, tensors = of_top, (student[..., :V], teacher, ids)
    flat = (tensor.flatten(0, 1) for tensor in tensors)  # [B·T, ...]
    return in_chunks(function, *flat, size=CHUNK // 4).view(student.shape[:2])
