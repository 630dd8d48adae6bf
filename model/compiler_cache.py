"""torch's compiler keeps what it made on disk: without what a killed run left unfinished there.

A library that is there counts as finished, but the C++ compiler writes it in its place. What a
killed process or a full disk left of one would end every later run: it is removed before compiling.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

BUILD = "_CxxBuild"  # ends the name of a folder that is there while a file is being built
SOURCES = (".cpp", ".h")  # written beside it and renamed: whole


def cache_folders() -> list[Path]:
    """Where libraries are kept, and precompiled headers: TORCHINDUCTOR_CACHE_DIR is not asked."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir  # 1 s

    return [Path(folder) for folder in dict.fromkeys((cache_dir(), default_cache_dir()))]


@cache
def remove_unfinished() -> int:
    """How many were removed; looks once in a process. What another process builds now is left."""
    removed = 0
    for root in cache_folders():
        for folder in root.iterdir() if root.is_dir() else ():
            if folder.name == "locks" or not folder.is_dir():
                continue
            with contextlib.suppress(OSError):  # another process removes it, too, or it is not ours
                for name in {*filter(None, map(_unfinished, os.scandir(folder)))}:
                    removed += _remove(root, folder, name)
    return removed


def _unfinished(entry: os.DirEntry) -> str | None:
    """The name, without its suffix, of a file that is not finished; None if this one is."""
    if entry.name.endswith(BUILD):
        return entry.name.removesuffix(BUILD)
    if entry.name.endswith(".so") and not _is_whole(Path(entry.path)):
        return entry.name.removesuffix(".so")
    return None


def _is_whole(path: Path) -> bool:
    """Whether a library has the table that ends an ELF file; of another format it has to begin."""
    with open(path, "rb") as file:
        head, size = file.read(64), os.fstat(file.fileno()).st_size
    if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":  # 64 bits, low byte first
        return len(head) == 64
    begin, entry_size, entries = struct.unpack("<40xQ10xHH2x", head)
    return begin + entry_size * entries <= size


def _remove(root: Path, folder: Path, name: str) -> bool:
    """Remove what there is of a file, under the lock that its builder would hold."""
    locks = folder / "locks" if (folder / "locks").is_dir() else root / "locks"
    locks.mkdir(exist_ok=True)
    with contextlib.suppress(Timeout), FileLock(locks / f"{name.split('.')[0]}.lock", timeout=0):
        if name not in map(_unfinished, os.scandir(folder)):  # finished meanwhile
            return False
        for path in folder.glob(f"{name}.*"):
            if path.suffix not in SOURCES:
                path.unlink(missing_ok=True)
        shutil.rmtree(folder / f"{name}{BUILD}", ignore_errors=True)
        return True
    return False
