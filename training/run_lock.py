"""One run at a time in an --out_dir: a lock that the system releases however its holder ends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path

NAME = "run.lock"
WRITER = "checkpoint writer"  # the name of threads that write into the folder
_BYTE = 1 << 30  # which one is locked: far behind the text, which others may always read
WAIT_SECONDS = 2.0  # for a holder that is about to end
# what systems without such locks answer (some network file systems)
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)

# the open files of this process by folder. A lock is the process's: it may take one again
_held: dict[Path, object] = {}
_made: set[Path] = set()  # folders that this process has made for it


def take(out_dir: Path):
    """Make the folder if need be and lock it, until `release` or the end of this process.

    Raises ValueError where it cannot be written, or with host and process of the run that has it.
    """
    folder = Path(out_dir).resolve()
    if folder in _held:
        return
    until = time.monotonic() + WAIT_SECONDS
    try:
        while (file := _try(folder)) is None:
            if time.monotonic() > until:
                raise ValueError(
                    f"--out_dir {out_dir}: another run is writing there ({_holder(folder)}); wait "
                    "for its end, or choose another --out_dir"
                )
            time.sleep(0.1)
    except OSError as error:
        release()
        raise ValueError(f"--out_dir {out_dir}: cannot be written ({error.strerror})") from None
    _held[folder] = file


def release():
    """Give back what this process holds; folders made for it go again if nothing came into them."""
    for thread in threading.enumerate():
        if thread.name == WRITER:  # of a run that has failed: what it has begun is finished first
            thread.join()
    for folder, file in _held.items():
        if os.name == "nt":  # no open file can be deleted there
            file.close()
        with contextlib.suppress(OSError):
            (folder / NAME).unlink()
        file.close()
    for folder in sorted(_made, reverse=True):  # the innermost first
        with contextlib.suppress(OSError):
            folder.rmdir()
    _held.clear()
    _made.clear()


def is_held(out_dir: Path) -> bool:
    """Whether a run of another process has the folder. Asks only: nothing is locked or written.

    Where a system cannot be asked (Windows, some network file systems), the file's being there has
    to do, which a killed run leaves behind, too.
    """
    try:
        with open(Path(out_dir) / NAME, "rb") as file:
            return _is_locked(file)
    except OSError:  # not there: `release` deletes it
        return False


def _is_locked(file) -> bool:
    """Whether another process has locked `_BYTE` of an open file."""
    if os.name == "nt":
        return True
    import fcntl

    # struct flock of Linux, and of the BSDs and macOS, which ends with the kind and the origin
    is_linux = sys.platform.startswith("linux")
    layout, kind = ("hhqqi", 0) if is_linux else ("qqihh", 3)
    question = [_BYTE, 1, 0]  # start, length, process
    whole = [fcntl.F_WRLCK, os.SEEK_SET]
    fields = [*whole, *question] if is_linux else [*question, *whole]
    try:
        answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(layout, *fields))
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return True
        raise
    return struct.unpack(layout, answer)[kind] != fcntl.F_UNLCK


def _try(folder: Path):
    """The locked file, or None if another process has it."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    _made.update(missing)
    file = open(folder / NAME, "a+", encoding="utf-8")  # noqa: SIM115 (open while it is locked)
    try:
        _lock(file)
        # a holder that has just ended may have deleted what was opened here
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(folder / NAME)):
            raise BlockingIOError
    except OSError as error:
        if error.errno in _NO_LOCKS:
            print(f"warning: {folder}: no locks there; start one run at a time", file=sys.stderr)
            return file
        file.close()
        if isinstance(error, BlockingIOError | PermissionError | FileNotFoundError):
            return None
        raise
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.ctime()}\n")
    file.flush()
    return file


def _lock(file):
    """Lock one byte without waiting; OSError if another process has it.

    POSIX locks are the process's own: loader processes forked from it do not keep them.
    """
    if os.name == "nt":
        import msvcrt

        file.seek(_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _BYTE)


def _holder(folder: Path) -> str:
    try:
        return (folder / NAME).read_text(encoding="utf-8").strip() or "a process just starting"
    except (OSError, UnicodeDecodeError):
        return "which one is not readable"
