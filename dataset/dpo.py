"""`DPODataset`: pairs of answers to one prompt, both packed whole into the same row.

    {"chosen": [messages], "rejected": [messages]}                 two conversations
    {"prompt": text or messages, "chosen": …, "rejected": …}       answers: text or messages

T  tokens in a row        P  most pairs in a row

The k-th pair of a row (from 0) is two documents: 2k + 1 is the chosen one, 2k + 2 the rejected one.
Both begin with the prompt's ids, exactly the same; only the answer is masked in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.chat import encode_conversation
from dataset.conversations import BadConversation, check_messages
from dataset.left_out import left_out_warning
from dataset.oddities import Oddities
from dataset.packing import best_fit, held_out_items
from dataset.readers import Paths, Problems, Record, kind_of, read_records
from dataset.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pair:
    """A prompt, two different answers to it (each a list of messages), and where they came from."""

    prompt: list[dict]
    chosen: list[dict]
    rejected: list[dict]
    tools: list | None
    path: str
    line: int

    def as_text(self) -> str:
        """All it says, as JSON: equal for pairs that are the same, however written."""
        parts = [self.prompt, self.chosen, self.rejected, self.tools]
        return json.dumps(parts, ensure_ascii=False, sort_keys=True)


def read_pairs(
    paths: Paths, on_bad_record: str = "stop", flag: str = "--data_path",
    problems: Problems | None = None,
) -> Iterator[Pair]:  # fmt: skip
    """Yield the pairs of one or several files; raises what `readers.read_records` raises.

    A bad record is one without both answers, with two prompts, or whose answers are equal or empty.
    """
    problems = Problems() if problems is None else problems
    return _pairs_of(read_records(paths, on_bad_record, problems, flag=flag), problems)


def _pairs_of(records: Iterator[Record], problems: Problems) -> Iterator[Pair]:
    for record in records:
        try:
            pair = to_pair(record.fields)
        except BadConversation as bad:
            problems.add(record.path, record.line, bad.expected, bad.got)
        else:
            yield Pair(*pair, record.path, record.line)


def to_pair(fields: dict) -> tuple[list[dict], list[dict], list[dict], list | None]:
    """(prompt, chosen, rejected, tools) of one record; BadConversation if it is no pair."""
    sides = []
    for name in ("chosen", "rejected"):
        if name not in fields:
            have = ", ".join(map(repr, list(fields)[:5])) or "none"
            raise BadConversation('the fields "chosen" and "rejected"', f"the fields {have}")
        try:
            messages, tools = check_messages(_side(fields, name))
        except BadConversation as bad:
            raise BadConversation(f"in {name}: {bad.expected}", bad.got) from None
        if messages[-1]["role"] != "assistant":
            raise BadConversation(f"an answer at the end of {name}", repr(messages[-1]["role"]))
        sides.append(messages)
    chosen, rejected = sides
    if chosen == rejected:
        raise BadConversation("two answers that differ", "the same answer twice")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if shared == len(messages):
            raise BadConversation(f"an answer of its own in {name}", "the other's beginning")
        if messages[shared]["role"] != "assistant":
            got = f"message {shared + 1} ({messages[shared]['role']}) differs"
            raise BadConversation("the same prompt in chosen and rejected", got)
    return chosen[:shared], chosen[shared:], rejected[shared:], tools


def _side(fields: dict, name: str) -> object:
    """One side as a whole conversation: the prompt in front where it is given apart."""
    answer, prompt = fields[name], fields.get("prompt")
    if isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if prompt is None or not isinstance(answer, list):
        return answer
    if not isinstance(prompt, list):
        raise BadConversation("text or messages as the prompt", kind_of(prompt))
    first = answer[0] if answer else None
    is_whole = isinstance(first, dict) and first.get("role") in ("system", "user")
    return answer if is_whole else prompt + answer


class EncodedPairs:
    """Token ids and masks of many pairs: sequences 2i and 2i + 1 are chosen and rejected of pair i.

    A pair whose two conversations do not fit a row together is left out and counts in
    `num_too_long`: an answer cut short would not be the one that was judged. `oddities`, `lengths`
    and `num_too_long` are those of all pairs that came, also in both parts after `split`.
    """

    def __init__(self, pairs: Iterable[Pair], tokenizer: Tokenizer, max_seq_len: int) -> None:
        self.eos_id = tokenizer.eos_id
        self.tokenizer_fingerprint = tokenizer.fingerprint
        self.num_too_long = 0
        self.oddities = Oddities(tokenizer.control_tokens)
        self.lengths: list[int] = []  # positions of every pair that came, those left out too
        self.sequences: list[tuple[np.ndarray, np.ndarray]] = []
        self.sources: list[tuple[str, int]] = []  # file and line of every pair kept
        for pair in pairs:
            self.oddities.add(pair.as_text())
            prompt, _ = encode_conversation(
                tokenizer, pair.prompt, pair.tools, add_generation_prompt=True
            )
            sides = []
            for answer in (pair.chosen, pair.rejected):
                ids, mask = encode_conversation(tokenizer, pair.prompt + answer, pair.tools)
                assert ids[: len(prompt)] == prompt
                ids, mask = np.array(ids, np.int32), np.array(mask, np.uint8)
                mask[: len(prompt)] = 0  # earlier answers are part of the prompt
                sides.append((ids, mask))
            self.lengths.append(sum(len(ids) - 1 for ids, _ in sides))
            if self.lengths[-1] > max_seq_len:
                self.num_too_long += 1
                continue
            self.sequences += sides
            self.sources.append((pair.path, pair.line))

    def __len__(self) -> int:
        return len(self.sequences) // 2

    def split(self, val_fraction: float) -> tuple[EncodedPairs, EncodedPairs]:
        """(training, held out): out go the pairs with the smallest hashes of their prompts' ids."""
        prompts = [ids[: int(mask.argmax())].tobytes() for ids, mask in self.sequences[::2]]
        is_val = held_out_items(prompts, val_fraction)
        return self._subset(np.flatnonzero(~is_val)), self._subset(np.flatnonzero(is_val))

    def _subset(self, indices: np.ndarray) -> EncodedPairs:
        part = object.__new__(EncodedPairs)
        part.__dict__ |= self.__dict__
        part.sequences = [self.sequences[j] for i in indices for j in (2 * i, 2 * i + 1)]
        part.sources = [self.sources[i] for i in indices]
        return part


class DPODataset(Dataset):
    """Rows of pairs: X, Y int64 [T], loss_mask float32 [T], document_ids int64 [T], pairs [P].

    `pairs` holds the numbers of the row's pairs, -1 where there are fewer than P. Item -1 is a
    filler. Raises ValueError if there is no pair at all.

    answer_lengths     float32 [pairs, 2]: tokens of the chosen and of the rejected answer
    documents_per_row  no row has more, the filled up end counted
    """

    def __init__(self, encoded: EncodedPairs, max_seq_len: int) -> None:
        if len(encoded) == 0:
            longest = max(encoded.lengths, default=0)
            raise ValueError(
                f"no pair fits --max_seq_len {max_seq_len} ({encoded.num_too_long} are too long; "
                f"the longest takes {longest})"
            )
        self.encoded, self.max_seq_len = encoded, max_seq_len
        lengths = np.array([len(ids) - 1 for ids, _ in encoded.sequences]).reshape(-1, 2).sum(1)
        self.rows = best_fit(lengths, max_seq_len)
        self.pairs_per_row = max(map(len, self.rows))
        self.documents_per_row = 2 * self.pairs_per_row + 1
        answers = [int(mask.sum()) for _, mask in encoded.sequences]
        self.answer_lengths = torch.tensor(answers, dtype=torch.float32).view(-1, 2)
        self._row_pairs = np.array([*map(len, self.rows), 0], np.int64)  # the last one is row -1's
        self.num_tokens = int(lengths.sum())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        T = self.max_seq_len
        X = np.full(T, self.encoded.eos_id, np.int64)
        Y = np.full(T, self.encoded.eos_id, np.int64)
        loss_mask = np.zeros(T, np.float32)
        document_ids = np.zeros(T, np.int64)
        pairs = np.full(self.pairs_per_row, -1, np.int64)
        position = 0
        for k, pair in enumerate(self.rows[i] if i >= 0 else ()):
            pairs[k] = pair
            for side in (0, 1):
                ids, mask = self.encoded.sequences[2 * pair + side]
                end = position + len(ids) - 1
                X[position:end], Y[position:end] = ids[:-1], ids[1:]
                loss_mask[position:end] = mask[1:]
                document_ids[position:end] = 2 * k + 1 + side
                position = end
        return tuple(map(torch.from_numpy, (X, Y, loss_mask, document_ids, pairs)))

    def num_pairs(self, rows: np.ndarray) -> np.ndarray:
        """int64 [len(rows)]: the number of pairs in each row, 0 for row -1."""
        return self._row_pairs[np.asarray(rows, np.int64)]

    def place(self, row: int) -> str:
        """Where a row comes from: "a.jsonl:17 …", the file and line of its first pair."""
        path, line = self.encoded.sources[self.rows[row][0]]
        return f"{path}:{line}" + (" …" if len(self.rows[row]) > 1 else "")

    def summary(self) -> str:
        """For a person: how many, how well packed, what was left out (a line more if much)."""
        lengths, T = np.array(self.encoded.lengths), self.max_seq_len
        warning = left_out_warning("pairs", lengths, np.where(lengths > T, 0, lengths), T)
        used = self.num_tokens / (len(self) * self.max_seq_len)
        return (
            f"{len(self.encoded):,} pairs in {len(self):,} rows, {used:.1%} of the positions used; "
            f"{self.encoded.num_too_long:,} left out as too long; {self.encoded.oddities}"
            + (f"\n{warning}" if warning else "")
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything the rows are made from."""
        digest = hashlib.sha256(self.encoded.tokenizer_fingerprint.encode())
        digest.update(f"{self.max_seq_len}".encode())
        for ids, mask in self.encoded.sequences:
            digest.update(len(ids).to_bytes(8, "little") + ids.tobytes() + mask.tobytes())
        return digest.hexdigest()
