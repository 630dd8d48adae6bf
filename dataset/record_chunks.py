"""Work on the records of one data file in several processes; the results come in the file's order.

The results do not depend on the number of processes: the file is cut into the same chunks, and what
is worth telling about its records is the same, word for word, as when one process reads them one
after the other (dataset/readers.py). Of a jsonl file the parent cuts only the bytes at line ends;
parsing is the workers' work. Of any other format it reads the records and sends them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import itertools
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dataset.line_readers import cut_at_lines, read_jsonl
from dataset.readers import Tally, check_path, layout_of, opened, records_of
from dataset.records import Problems, Progress, Record, all_problems

CHUNK_BYTES = 1 << 20
SMALL = 4  # chunks; a file of fewer is not worth the start of processes
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
CHUNKS_AHEAD = 3  # per process, that are being worked on or wait to be fetched

Result = TypeVar("Result")
Job = Callable[[Iterator[Record], Problems], Result]


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of a file.

    content     lines of jsonl; or records, with Problems in the place of those that could not be
                read
    first_line  of the lines
    position    in the file on the disk, in bytes, up to where it had been read for this chunk
    """

    content: bytes | list[Record | Problems]
    first_line: int
    position: int


def work_through(
    path: str | Path,
    job: Job,
    problems: Problems,
    progress: Progress | None = None,
    flag: str = "--data_path",
    wanted: Collection[str] | None = None,
    processes: int | None = None,
    on_bad_record: str = "stop",
) -> Iterator[Result]:
    """Yield job(records, problems) of consecutive chunks of one file's records, in their order.

    There is no result of a chunk without any record that can be read.

    job        takes all records of an iterator and adds what is wrong with them to the problems it
               is given; it and its results have to travel between processes
    problems   gets all of them, those of a chunk before its result is yielded
    progress   called with the number of bytes of the file that have been worked on since last time
    wanted     the fields that will be looked at, as for `read_records`
    processes  None: as many as this process may use cores. 1, and small files: in this process

    With `on_bad_record="stop"` bad records are only collected: whoever has read all files raises
    (`Problems.raise_if_any`). Raises, when the file is read so far, what `read_records` raises and
    what the job raises; ValueError if a worker dies.
    """
    if on_bad_record not in ("stop", "skip"):
        raise ValueError(f"--on_bad_record: expected 'stop' or 'skip', got {on_bad_record!r}")
    path = check_path(path, flag)
    processes = processes or num_cores()
    return _worked_through(path, job, problems, progress, flag, wanted, processes, on_bad_record)


def num_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _worked_through(path, job, problems, progress, flag, wanted, processes, on_bad_record):
    tally, count_before, reported = Tally(), problems.count, 0
    chunks = _or_error(_chunks(path, wanted))
    first = list(itertools.islice(chunks, SMALL))
    chunks = itertools.chain(first, chunks)
    if processes == 1 or len(first) < SMALL:
        worked = ((chunk, _work(path, job, chunk)) for chunk in chunks)
    else:
        worked = _in_processes(path, job, chunks, processes, flag)
    with contextlib.closing(worked):
        for chunk, (result, found, part) in worked:
            problems.merge(found)
            tally.add(part)
            if progress is not None:
                progress(chunk.position - reported)
                reported = chunk.position
            if part.num_records:
                yield result
    tally.check(path, problems.count - count_before, on_bad_record, flag)


def _work(path: Path, job: Job, chunk: Chunk | Exception):
    """(result, problems, tally) of one chunk; an exception in a chunk's place is raised here."""
    if isinstance(chunk, Exception):
        raise chunk
    problems, tally = all_problems(), Tally()
    records = tally.counted(_records(path, chunk, problems), problems)
    return job(records, problems), problems, tally


def _records(path: Path, chunk: Chunk, problems: Problems) -> Iterator[Record]:
    """The records of a chunk; those that cannot be read are problems."""
    if isinstance(chunk.content, bytes):
        yield from read_jsonl(path, io.BytesIO(chunk.content), problems, chunk.first_line)
        return
    for item in chunk.content:
        if isinstance(item, Problems):
            problems.merge(item)
        else:
            yield item


# ---- cutting


def _or_error(chunks: Iterator[Chunk]) -> Iterator[Chunk | Exception]:
    """The chunks, and last the exception that reading them ended with, if it did.

    Chunks are read ahead: what went before is worked on before the exception is raised.
    """
    try:
        yield from chunks
    except Exception as error:
        yield error


def _chunks(path: Path, wanted: Collection[str] | None) -> Iterator[Chunk]:
    if layout_of(path) == ".jsonl":
        with opened(path) as (stream, raw):
            for lines, number in cut_at_lines(stream, CHUNK_BYTES):
                yield Chunk(lines, number, raw.tell())
            yield Chunk(b"", 0, path.stat().st_size)
    else:
        yield from _chunks_of_records(path, wanted)


def _chunks_of_records(path: Path, wanted: Collection[str] | None) -> Iterator[Chunk]:
    items: list[Record | Problems] = []
    size = position = 0

    def move(num_bytes: int) -> None:
        nonlocal position
        position += num_bytes

    unread = all_problems()
    for record in records_of(path, unread, move, wanted):
        if unread.count:
            items.append(unread.taken())
        items.append(record)
        size += _size(record.fields)
        if size >= CHUNK_BYTES:
            yield Chunk(items, 0, position)
            items, size = [], 0
    yield Chunk([*items, unread], 0, position)


def _size(value: object) -> int:
    """About the bytes of a value's text."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return len(value) + sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8


# ---- processes


def _in_processes(
    path: Path, job: Job, chunks: Iterable[Chunk | Exception], processes: int, flag: str
) -> Iterator[tuple]:
    """(chunk, result of `_work`) in order; a few chunks are on their way at any time."""
    executor = ProcessPoolExecutor(
        processes,
        multiprocessing.get_context(START_METHOD),
        initializer=_begin,
        initargs=(path, job, os.getpid()),
    )
    waiting: deque[tuple[Chunk | Exception, Future | None]] = deque()
    chunks = iter(chunks)
    try:
        with _quiet_tokenizers():
            executor.submit(os.getpid)  # starts all processes where they are forked
        while True:
            for chunk in itertools.islice(chunks, processes * CHUNKS_AHEAD - len(waiting)):
                is_error = isinstance(chunk, Exception)
                waiting.append((chunk, None if is_error else executor.submit(_go, chunk)))
            if not waiting:
                return
            chunk, future = waiting.popleft()
            if future is None:
                raise chunk
            yield chunk, future.result()
    except BrokenProcessPool:
        raise ValueError(
            f"{flag}: a process that worked on {path} was killed, most likely because memory ran "
            "out"
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


_path: Path
_job: Job


def _begin(path: Path, job: Job, parent: int) -> None:
    """What a worker does first: it gets its job, and it ends when its parent does."""
    global _path, _job
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has died already
            os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the work
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the handler that a fork inherits
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    gc.freeze()  # what a fork inherits need not be searched for garbage
    _path, _job = path, job


def _go(chunk: Chunk):
    return _work(_path, _job, chunk)


@contextlib.contextmanager
def _quiet_tokenizers() -> Iterator[None]:
    """No advice on stderr about a fork after the tokenizer has used threads: workers use none."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
