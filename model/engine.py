"""Many sequences decoded together: they join and leave between any two tokens.

Evaluation, the chat in the terminal and the server decode with this. It knows token ids, no text,
and has no threads: `add` a request, call `step` again and again.

One forward pass a step. In it are one token of every sequence that is being answered, and up to
`prompt_tokens` tokens of prompts that are not read to their end yet, so that a long prompt does not
hold up the answers beside it. The products see all these tokens as one row; only attention looks at
them sequence by sequence (`StepCache`).

Keys and values of a sequence lie in a row of one cache. When it has finished they stay there, until
the row is needed: a request whose prompt begins with the same tokens takes them (prefix cache).
The rows being answered are always the first ones, so that attention reads them where they lie.

Shapes in this file:
    L  layers     R  rows of the cache      K  key/value heads    S  tokens of a row    D  head_dim
    n  rows being answered                  V  vocab_size
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from model.compiled_step import compiled_next_logits, fix_shapes
from model.generation import KVCache, device_and_dtype, room_after
from model.log_probs import log_probs_of, look_at_prompt, told_of, wanted_places
from model.model import MiniMindLM
from model.request import Drawn, Request
from model.sampling import Draws, Matcher, Sampler
from model.step_cache import Piece, StepCache

GROWTH = 256  # tokens; rows grow by multiples of it
WORTH_WAITING = 16  # tokens of a prompt that another one, being read, will soon have in common


class Row:
    """A row of the cache: whose it is, and what it holds."""

    def __init__(self):
        self.request: Request | None = None  # None: kept for its tokens alone
        self.draws: Draws | None = None
        self.length = 0  # tokens whose keys and values it holds
        self.used = 0  # the step in which it was last used


class Engine:
    """Answers requests with one model, up to `max_running` at a time; the others wait in order.

    max_running    sequences answered at a time
    kept           rows for sequences that have finished, whose keys and values may be of use again
    max_tokens     longest sequence, prompt and answer; None: the model's context
    prompt_tokens  tokens of prompts in one step
    compiled       compile the steps that read no prompt; for a model from `for_decoding`
    make_matcher   from the grammar of a request to its Matcher; ValueError where it cannot be made
    """

    def __init__(
        self, model: MiniMindLM, max_running: int = 16, kept: int = 16,
        max_tokens: int | None = None, prompt_tokens: int = 128, compiled: bool = False,
        make_matcher: Callable[[str], Matcher] | None = None,
    ):  # fmt: skip
        self.model, self.config = model, model.config
        self.max_running, self.prompt_tokens = max_running, prompt_tokens
        self.compiled, self.make_matcher = compiled, make_matcher
        self.views: dict[int, tuple[Tensor, KVCache]] = {}  # of the cache, for compiled steps
        context = self.config.max_position_embeddings
        self.max_tokens = min(max_tokens or context, context)
        self.device, self.dtype = device_and_dtype(model)
        self.rows = [Row() for _ in range(max_running + kept)]
        self.ids = np.zeros((len(self.rows), 0), dtype=np.int64)  # [R, S], ids of every row
        self.cache = self._new_cache(0)  # [L, 2, R, K, S, D]: keys, values
        self.answering = 0  # n: rows 0 … n-1 draw a token in every step
        self.reading: deque[Row] = deque()  # rows whose prompts are not read yet, in order
        self.waiting: deque[Request] = deque()
        self.failed: list[Request] = []  # that the next step tells of
        self.steps = 0
        self.sampler: Sampler | None = None  # of the rows being answered; None: they have changed

    @property
    def running(self) -> int:
        """Requests that have a row."""
        return self.answering + len(self.reading)

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, request: Request, as_next: bool = False):
        """Put a request at the end of the queue; as_next: at its beginning.

        Raises ValueError for a prompt that is empty or too long. A grammar that its matcher cannot
        be made of is told by a step: the request has failed.
        """
        if request.grammar is not None and self.make_matcher is None:
            raise ValueError("this engine was not told how to make matchers of grammars")
        room = min(room_after(self.model, request.prompt), self.max_tokens - len(request.prompt))
        if room < 1:
            raise ValueError(
                f"the prompt has {len(request.prompt)} tokens, and a sequence may have "
                f"{self.max_tokens} here, answer included"
            )
        request.max_new_tokens = min(request.max_new_tokens, room)
        (self.waiting.appendleft if as_next else self.waiting.append)(request)

    def cancel(self, request: Request):
        """End a request now, wherever it is; no step tells of it any more."""
        if request.ending:
            return
        request.ending = "cancelled"
        if request in self.waiting:
            self.waiting.remove(request)
        for row in [row for row in self.rows if row.request is request]:
            self._release(row)

    def fail(self) -> list[Request]:
        """After a step that raised: drop everything, and say which requests are lost."""
        lost = [row.request for row in self.rows if row.request] + [*self.waiting, *self.failed]
        lost = list(dict.fromkeys(lost))
        for request in lost:
            request.ending = "cancelled"
        self.rows = [Row() for _ in self.rows]
        self.answering, self.sampler = 0, None
        self.reading.clear()
        self.waiting.clear()
        self.failed.clear()
        return lost

    def forget(self):
        """Keep nothing of finished sequences: to be called when the weights have changed."""
        for row in self.rows:
            if row.request is None:
                row.length = 0

    def stream(self, request: Request) -> Iterator[Drawn]:
        """The tokens of one request, as they come; leaving early cancels it."""
        self.add(request)
        try:
            while not request.ending:
                yield from (drawn for drawn in self.step() if drawn.request is request)
        finally:
            self.cancel(request)

    def warm_up(self):
        """Compile what the steps will need, where they are compiled: a minute or two."""
        count = 1
        while self.compiled:
            for _ in range(min(count, self.max_running)):
                self.add(Request([0], 3))
            while self.has_work:
                self.step()
            if count >= self.max_running:
                break
            count *= 2
        self.forget()

    @torch.inference_mode()
    def step(self) -> list[Drawn]:
        """One more token of every request that can have one."""
        self._admit()
        return self._step() + self._tell_failures()

    def _tell_failures(self) -> list[Drawn]:
        failed, self.failed = self.failed, []
        return [Drawn(request, None, None, True) for request in failed]

    def _step(self) -> list[Drawn]:
        pieces, n = self._next_pieces(), self.answering
        if n == 0 and not pieces:
            return []
        self.steps += 1
        if self.compiled and not pieces:
            logits = self._compiled_logits()
        else:
            logits = self._logits(pieces)  # of every answer, and of what is wanted of the prompts
        for row in self.rows[:n]:
            row.length += 1
        at, last, finished = n, list(range(n)), []
        for piece in pieces:
            row = self.rows[piece.row]
            row.length = piece.end
            is_last = piece.end == len(row.request.prompt)
            count = len(wanted_places(row.request, piece))
            if row.request.prompt_logprobs:
                look_at_prompt(row.request, piece, logits[at : at + count])
            at += count
            if is_last:
                last.append(at - 1)
                finished.append(row)
        for row in finished:
            self._begin_answer(row)
        if not last:
            return []
        return self._draw(logits if len(last) == len(logits) else logits[last])

    def _logits(self, pieces: list[Piece]) -> Tensor:
        """Logits [n + wanted places of the pieces, V] after one token of every answer, and them."""
        n = self.answering
        lengths = np.array([row.length for row in self.rows[:n]], dtype=np.int64)  # [n]
        tokens, wanted, place = [self.ids[np.arange(n), lengths]], list(range(n)), n
        for piece in pieces:
            tokens.append(self.ids[piece.row, piece.start : piece.end])
            places = wanted_places(self.rows[piece.row].request, piece)
            wanted += [place + at for at in places]
            place += piece.end - piece.start
        self._grow(int(max([*lengths, *(piece.end - 1 for piece in pieces)])) + 1)
        cache = StepCache(self.cache, lengths, pieces, self.device)
        input_ids = torch.from_numpy(np.concatenate(tokens))[None].to(self.device)  # [1, N]
        if len(wanted) == place:
            return self.model(input_ids, cache=cache)[0][0]
        places = torch.tensor(wanted, dtype=torch.int64, device=self.device)
        return self.model(input_ids, cache=cache, last_only=places)[0][:, 0]

    def _compiled_logits(self) -> Tensor:
        """The same without pieces, by a step that is compiled once for 1, 2, 4, … rows.

        Rows behind those being answered fill the number up; what is written behind their ends is
        overwritten by what comes.
        """
        n = self.answering
        count = min(1 << (n - 1).bit_length(), len(self.rows))
        lengths = np.array([row.length for row in self.rows[:count]], dtype=np.int64)
        self._grow(int(lengths.max()) + 1)
        tokens = torch.from_numpy(self.ids[np.arange(count), lengths])[:, None].to(self.device)
        ends = torch.from_numpy(lengths).to(self.device)
        memory, view = self.views.get(count, (None, None))
        if memory is not self.cache:  # new, or the cache has grown
            view = KVCache.over(self.cache[:, :, :count])
            fix_shapes(view, ends)
            self.views[count] = self.cache, view
        elif self.device.type != "cuda":
            view.slots = torch.arange(int(lengths.max()) + 1)
        view.lengths = ends
        return compiled_next_logits(self.model)(self.model, tokens, view)[:n]

    def _draw(self, logits: Tensor) -> list[Drawn]:
        """The next token of every row being answered. logits [n, V], in the rows' order."""
        rows = self.rows[: self.answering]
        if self.sampler is None:
            self.sampler = Sampler([row.draws for row in rows], self.device)
        for row in rows:
            self._trying(row.request, row.draws.look_ahead)
        requests, logits = [row.request for row in rows], logits.float()
        told = told_of(requests, self.sampler, logits)
        drawn = []
        tokens = self.sampler.next(logits)
        logprobs = log_probs_of(requests, told, tokens)
        for i, (row, token) in enumerate(zip(rows, tokens)):
            request = row.request
            if row.draws.matcher is not None and not request.ending:
                self._trying(request, row.draws.matcher.accept, token)
            if request.ending:  # its matcher raised: the draw means nothing
                continue
            if len(request.tokens) == request.max_new_tokens:  # 0: only the prompt was asked for
                request.ending = "length"
                drawn.append(Drawn(request, None, None, True))
                continue
            logprob = logprobs.get(i)
            request.tokens.append(token)
            if token in request.stop_ids:
                request.ending = "stop"
            elif len(request.tokens) == request.max_new_tokens:
                request.ending = "length"
            else:
                self.ids[i, row.length] = token
            drawn.append(Drawn(request, token, logprob, request.ending != ""))
        for row in [row for row in rows if row.request.ending]:
            self._release(row)
        return drawn

    def _trying(self, request: Request, ask: Callable, *arguments):
        """ask(*arguments), of a matcher or its maker; where that raises, the request has failed.

        The others know nothing of it.
        """
        try:
            return ask(*arguments)
        except Exception as error:
            request.ending, request.failure = "failed", str(error) or type(error).__name__
            self.failed.append(request)

    def _next_pieces(self) -> list[Piece]:
        """What is read of prompts in this step, first come, first served."""
        pieces, left = [], self.prompt_tokens
        for row in self.reading:
            take = min(left, len(row.request.prompt) - row.length)
            if take == 0:
                break
            pieces.append(Piece(self.rows.index(row), row.length, row.length + take))
            left -= take
        return pieces

    def _admit(self):
        """Give rows to waiting requests, with what is known of their prompts."""
        while self.waiting and self.running < self.max_running:
            request = self.waiting[0]
            prompt = np.array(request.prompt, dtype=np.int64)
            self._grow(len(prompt))
            origin, known, soon = self._longest_prefix(prompt)
            if request.prompt_logprobs:  # every place has to be computed
                known = soon = 0
            if soon - known > WORTH_WAITING:
                return
            self.waiting.popleft()
            matcher = None
            if request.grammar is not None:
                matcher = self._trying(request, self.make_matcher, request.grammar)
            if request.ending:
                continue
            source = self.rows[origin]
            if known and source.request is None and known == source.length:
                row = source  # nothing of it is lost
            else:
                free = [row for row in self.rows if row.request is None]
                row = min(free, key=lambda row: (row.length > 0, row.used))
            at = self.rows.index(row)
            if known and row is not source:
                self.cache[:, :, at, :, :known] = self.cache[:, :, origin, :, :known]
            self.ids[at, : len(prompt)] = prompt
            row.request, row.length, row.used = request, known, self.steps
            source.used = self.steps
            request.cached = known
            row.draws = Draws(
                request.sampling, request.prompt, request.seed, request.number,
                self.config.vocab_size, self.device, matcher,
            )  # fmt: skip
            self.reading.append(row)
            if 0 < known == len(prompt) - 1:  # the one token left is read as an answer's are
                self._begin_answer(row)

    def _longest_prefix(self, prompt: np.ndarray) -> tuple[int, int, int]:
        """The row that begins with the most tokens of the prompt, how many, and how many soon.

        Soon: once the prompts that are being read have been. The prompt's last token is never among
        them: the model is asked what comes after it.
        """
        width = len(prompt) - 1
        rows = self.rows
        held = np.array([row.length for row in rows])  # [R]
        coming = np.zeros_like(held)
        for row in self.reading:
            coming[rows.index(row)] = len(row.request.prompt)
        differs = self.ids[:, :width] != prompt[:width]  # [R, width]
        same = np.where(differs.any(1), differs.argmax(1), width) if width else 0 * held
        known = np.minimum(same, held)
        best = int(known.argmax())
        return best, int(known[best]), int(np.minimum(same, coming).max())

    def _begin_answer(self, row: Row):
        """A prompt is read, but for one token at most: its row becomes the last being answered."""
        self.reading.remove(row)
        self._swap(self.rows.index(row), self.answering)
        self.answering += 1
        self.sampler = None

    def _release(self, row: Row):
        """A request has ended: its row is kept for what it holds."""
        if row in self.reading:
            self.reading.remove(row)
        else:
            self.answering -= 1
            self._swap(self.rows.index(row), self.answering)
            self.sampler = None
        row.request, row.draws, row.used = None, None, self.steps

    @torch.inference_mode()  # requests are cancelled between steps, too
    def _swap(self, a: int, b: int):
        """Exchange two rows of the cache."""
        if a == b:
            return
        rows = self.rows
        rows[a], rows[b] = rows[b], rows[a]
        self.ids[[a, b]] = self.ids[[b, a]]
        end = max(rows[a].length, rows[b].length)
        kept = self.cache[:, :, a, :, :end].clone()
        self.cache[:, :, a, :, :end] = self.cache[:, :, b, :, :end]
        self.cache[:, :, b, :, :end] = kept

    def _grow(self, tokens: int):
        """See that every row has room for so many tokens, and one drawn behind them."""
        have = self.cache.shape[4]
        if tokens + 1 <= have:
            return
        wanted = max(tokens + 1, have * 3 // 2)
        wanted = min(-(-wanted // GROWTH) * GROWTH, max(self.max_tokens, tokens + 1))
        cache = self._new_cache(wanted)
        cache[..., :have, :] = self.cache
        self.cache = cache
        ids = np.zeros((len(self.rows), wanted), dtype=np.int64)
        ids[:, :have] = self.ids
        self.ids = ids

    def _new_cache(self, tokens: int) -> Tensor:
        config = self.config
        shape = (config.num_hidden_layers, 2, len(self.rows), config.num_key_value_heads, tokens,
                 config.head_dim)  # fmt: skip
        # zeros: a hidden place's weight is 0, but 0 times what memory happens to hold may be NaN
        return torch.zeros(shape, device=self.device, dtype=self.dtype)
