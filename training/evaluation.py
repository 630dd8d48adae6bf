"""What a model can do: held-out loss over whole datasets, continuations, answers to questions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.chat import said_aloud, stop_ids
from dataset.sft import SFTDataset
from model.engine import Engine
from model.request import Request
from model.sampling import Sampling
from tasks.prompts import read_prompts
from tasks.task import Prompt
from tasks.text import is_exact, right_text
from training.distributed import Ranks, sum_over_ranks
from training.loading import make_loader, on_device
from training.losses import token_cross_entropy


@torch.no_grad()
def held_out_loss(
    model, dataset: Dataset, batch_size: int, token_bytes: np.ndarray, ranks: Ranks, autocast,
    stop=None, progress=iter, divergence: Callable | None = None,
) -> dict[str, float]:  # fmt: skip
    """Loss over every target of `dataset`, the rows shared among the ranks.

    dataset      items (X, Y, loss_mask) or (X, Y, loss_mask, document_ids)
    token_bytes  int32 [vocab], UTF-8 bytes each token stands for (0 for control tokens)
    autocast     a context manager for the forward pass
    stop         a Stopping: when all ranks agree to stop, what was measured so far comes back
    progress     a function that takes the batches and gives them back, tqdm say
    divergence   a function of logits, X, document_ids: another number of every target, [B, T]

    Returns loss (nats per target), bits_per_byte (all nats / ln 2 / the bytes of all targets),
    perplexity, tokens and, if asked for, the mean divergence; the same on every rank. The model's
    train/eval mode is restored.
    """
    was_training = model.training
    model.eval()
    bytes_of = torch.from_numpy(token_bytes.astype(np.float64)).to(ranks.device)
    # nats, targets, bytes, divergence: float64, since a float32 sum of millions loses whole tokens
    totals = torch.zeros(4, dtype=torch.float64, device=ranks.device)
    rows = shared_batches(len(dataset), batch_size, ranks)
    batches = on_device(progress(make_loader(dataset, rows, ranks.device)), ranks.device)
    for X, Y, loss_mask, *document_ids in batches:
        if stop is not None and stop.agree():
            break
        with autocast:
            logits, _ = model(X, *document_ids)
        nats = token_cross_entropy(logits, Y).flatten()
        mask = loss_mask.flatten().double()
        apart = divergence(logits, X, *document_ids).flatten() if divergence else 0 * mask
        totals += torch.stack(
            (
                (nats * mask).sum(), mask.sum(), (bytes_of[Y.flatten()] * mask).sum(),
                (apart * mask).sum(),
            )
        )  # fmt: skip
    model.train(was_training)
    nats, targets, num_bytes, apart = sum_over_ranks(totals).tolist()
    loss = nats / max(targets, 1)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "bits_per_byte": nats / math.log(2) / max(num_bytes, 1),
        "tokens": int(targets),
    } | ({"divergence": apart / max(targets, 1)} if divergence else {})


def shared_batches(num_rows: int, batch_size: int, ranks: Ranks) -> list[list[int]]:
    """This rank's part of all rows, as batches of one shape, equally many on every rank.

    They are filled up with row -1, which datasets keep empty: a new shape would make the compiler
    start again, and sharded models need every rank in every forward pass.
    """
    count = -(-num_rows // (batch_size * ranks.world_size))  # batches per rank
    rows = np.full(count * batch_size * ranks.world_size, -1)
    rows[:num_rows] = np.arange(num_rows)
    mine = rows.reshape(-1, ranks.world_size)[:, ranks.rank]
    return mine.reshape(count, batch_size).tolist()


def continue_text(model, tokenizer, prompt: list[int], max_new_tokens: int, seed: int) -> str:
    """The prompt and what the model makes of it (temperature 0.8, top_p 0.9), as one line."""
    was_training = model.training
    model.eval()
    sampling = Sampling(temperature=0.8, top_p=0.9)
    request = Request(prompt, max_new_tokens, {tokenizer.eos_id}, sampling, seed)
    ids = [drawn.token for drawn in Engine(model, max_running=1, kept=0).stream(request)]
    model.train(was_training)
    text = f"{tokenizer.decode(prompt, skip_control=True)} ⟶ {tokenizer.decode(ids, True)}"
    return " ".join(text.split())


def read_questions(path: str | Path, tokenizer, chat: bool = True) -> list[Prompt]:
    """The questions of a file, of any form that `tasks.prompts` reads, with a text as the answer.

    chat: what is asked are a user's messages; else, for a base model, lines of text to go on from.
    Raises what `readers.read_records` raises, and DataError for a record without such an answer.
    """
    return read_prompts(path, tokenizer, "--questions", chat=chat, right=right_text)


def first_questions(dataset: SFTDataset, tokenizer, count: int) -> list[Prompt]:
    """The openings of the first conversations: everything before the first answer, and it."""
    questions = []
    for ids, mask in dataset.first_sequences(count):
        start = int(mask.argmax())
        end = start + int((mask[start:] == 0).argmax())  # the turn's closing newline has mask 0
        text = " ".join(tokenizer.decode(ids[:start].tolist(), True).split())
        answer = said_aloud(tokenizer, ids[start : end - 1].tolist())
        questions.append(Prompt(text, ids[:start].tolist(), answer))
    return questions


def greedy_answers(
    model, prompts: list[list[int]], max_new_tokens: int, stop_ids: set[int],
    is_over: Callable[[], bool] | None = None, max_running: int = 32,
) -> list[list[int]]:  # fmt: skip
    """The most probable continuation of every prompt, without its stop id.

    Up to `max_running` are decoded at a time. A prompt that fills the model's context has an empty
    continuation. is_over: asked before every step; once it says so, those that are not finished
    stay empty.
    """
    engine = Engine(model, max_running, kept=0, prompt_tokens=512)  # nobody waits for one of them
    greedy = Sampling(temperature=0)
    requests = [Request(prompt, max_new_tokens, stop_ids, greedy) for prompt in prompts]
    for request in requests:
        if len(request.prompt) < engine.max_tokens:
            engine.add(request)
    while engine.has_work and not (is_over is not None and is_over()):
        engine.step()
    answers = [request.tokens if request.ending else [] for request in requests]
    return [ids[:-1] if ids and ids[-1] in stop_ids else ids for ids in answers]


def ask(
    model, tokenizer, questions: list[Prompt], max_new_tokens: int = 64, stop=None
) -> list[str]:
    """The model's greedy answer to each question, asked alone.

    stop: a Stopping: once this process is asked to stop, the remaining answers stay empty.
    """
    was_training = model.training
    model.eval()
    prompts = [question.ids for question in questions]
    is_over = None if stop is None else lambda: stop.signal != 0
    answers = greedy_answers(model, prompts, max_new_tokens, set(stop_ids(tokenizer)), is_over)
    model.train(was_training)
    return [said_aloud(tokenizer, ids) for ids in answers]


def loss_and_answers(
    run, val_dataset: Dataset, tokenizer, questions: list[Prompt],
    divergence: Callable | None = None,
) -> tuple[dict, list[str]]:  # fmt: skip
    """For `Run.begin`, of a model that chats: held-out loss, exact answers, a few of them in words.

    run: the Run. The share of exact answers is measured where --questions gave the right ones.
    divergence: as in `held_out_loss`.
    """
    args = run.args
    held_out = held_out_loss(
        run.compiled, val_dataset, args.batch_size, tokenizer.token_bytes, run.ranks, run.autocast,
        run.stop, divergence=divergence,
    )  # fmt: skip
    figures, answers = {"val_loss": held_out["loss"]}, []
    if divergence:
        figures["val_divergence"] = held_out["divergence"]
    if run.generates:
        answers = ask(run.model, tokenizer, questions, stop=run.asked_to_stop)
    if args.questions and run.ranks.is_main:
        figures["exact_match"] = exact_match(questions, answers)
    shown = list(zip(questions, answers))[:3]
    return figures, [f"{q.text} ⟶ {' '.join(answer.split())}" for q, answer in shown]


def exact_match(questions: list[Prompt], answers: list[str]) -> float:
    """Share of the answers that are the expected text, outer white space aside."""
    right = sum(is_exact(q, a) for q, a in zip(questions, answers, strict=True))
    return right / max(1, len(questions))
