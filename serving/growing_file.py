"""The lines of a file that another process is writing, each read once."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

BLOCK = 1 << 18  # bytes read at a time: parsing one keeps other threads waiting for milliseconds
LONGEST_LINE = 1 << 20  # bytes; what is longer is left out
_REMEMBERED = 256  # last bytes read, by which the file is known again
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


def open_regular(path: Path) -> int:
    """A descriptor of a file; OSError for a link, a pipe or a device: nothing here follows one."""
    descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(f"{path}: not a file")


class GrowingFile:
    """Where reading a file of lines stands.

    path   of the file, which need not be there yet
    tail   begin so many bytes before the end, with the next whole line; None: at the start

    times_begun  counts how often it was begun with: another file has taken the place (training does
                 that on a resume), or the bytes before `offset` are not what they were
    offset       bytes read, all of them whole lines
    bytes_read   in all, for those who want to know what a look costs
    """

    def __init__(self, path: Path, tail: int | None = None):
        self.path, self.tail = Path(path), tail
        self.times_begun, self.offset, self.bytes_read = 0, 0, 0
        self.modified = 0.0  # when, in seconds since 1970
        self._file, self._seen, self._last = None, None, b""
        self._is_skipping = False  # in the middle of a line that is too long, or was cut at `tail`

    def blocks(self) -> Iterator[list[bytes]]:
        """What is new, as lists of whole lines; stop at any time and go on with another call.

        Check `times_begun` before using a list: it may be the first of another file. Raises OSError
        for a file that is not there or not readable.
        """
        descriptor = open_regular(self.path)
        try:
            status = os.fstat(descriptor)
            seen = status.st_size, status.st_mtime_ns
            self.modified = status.st_mtime
            file = status.st_dev, status.st_ino
            if file != self._file or status.st_size < self.offset or not self._is_same(descriptor):
                self._begin(file, status.st_size)
            if seen == self._seen:
                return
            yield from self._new_lines(descriptor)
            self._seen = seen
        finally:
            os.close(descriptor)

    def _is_same(self, descriptor: int) -> bool:
        count = len(self._last)
        return _read_at(descriptor, count, self.offset - count) == self._last

    def _begin(self, file: tuple[int, int], size: int):
        self.times_begun += 1
        self._file, self._seen, self._last = file, None, b""
        self.offset = 0 if self.tail is None else max(0, size - self.tail)
        self._is_skipping = self.offset > 0

    def _new_lines(self, descriptor: int) -> Iterator[list[bytes]]:
        size = BLOCK
        while block := _read_at(descriptor, size, self.offset):
            self.bytes_read += len(block)
            end = block.rfind(b"\n") + 1
            if end == 0 and len(block) < min(size, LONGEST_LINE):
                return  # a line that is being written
            if end == 0 and size < LONGEST_LINE:
                size = LONGEST_LINE  # a long one: look at more of it
                continue
            if end == 0:
                self._pass(block)
                self._is_skipping = True
                continue
            lines = block[: end - 1].split(b"\n")
            if self._is_skipping:
                del lines[0]
                self._is_skipping = False
            self._pass(block[:end])
            size = BLOCK
            yield lines

    def _pass(self, part: bytes):
        self.offset += len(part)
        self._last = (self._last + part[-_REMEMBERED:])[-_REMEMBERED:]


def _read_at(descriptor: int, count: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, count)


def parse(lines: list[bytes]) -> list[dict]:
    """The JSON objects among some lines; a line that is none is left out."""
    if not lines:
        return []
    try:
        records = json.loads(b"[" + b",".join(lines) + b"]")  # in one go: a third faster
        if len(records) != len(lines):
            raise ValueError("a line that holds several values, or none")
    except (ValueError, RecursionError):
        records = [_record(line) for line in lines]
    return [record for record in records if isinstance(record, dict)]


def _record(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
