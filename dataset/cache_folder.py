"""Folders of a cache: made once from some data, checked whenever they are used again.

A folder `cache_dir/<key>/` holds files of plain arrays (`ids.bin`, say) and `meta.json`: what it
was made from, counts, and sizes and checksums of the files. The key is made of what it was made
from, so that it can never serve anything else. It is written under another name, synced and
renamed, so a folder with a valid name is complete.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from dataset.content_hash import new_name, sha256_of, write_synced
from model.json_file import read_json

META_FILE = "meta.json"
SAMPLED_BLOCKS = 64  # of each file are checked when a cache is reused,
BLOCK_BYTES = 4096  # evenly spread, the first and the last among them


class MappedArrays:
    """Arrays of a cache folder, memory-mapped when they are asked for: arrays["ids"] is ids.bin.

    Cheap to send to a loader process, since it carries no arrays: a memory map would be sent as a
    copy of all its data.

    shapes  name -> (dtype, number of items)
    """

    def __init__(self, folder: Path, shapes: dict[str, tuple[str, int]]) -> None:
        self.folder, self.shapes = folder, shapes
        self._mapped: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_mapped": {}}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._mapped:
            self._mapped[name] = mapped(self.folder / f"{name}.bin", *self.shapes[name])
        return self._mapped[name]


def mapped(file: Path, dtype: str, count: int) -> np.ndarray:
    """The [count] items of a file, memory-mapped; nobody may write to them.

    torch maps it, not numpy: numpy's maps keep a file handle each, and a system gives a process
    about a thousand.
    """
    import torch  # only here: making a cache needs no model

    dtype = np.dtype(dtype)
    if count == 0:  # which cannot be mapped
        return np.zeros(0, dtype)
    size = count * dtype.itemsize
    items = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8).numpy()
    items.flags.writeable = False
    return items.view(dtype)


def key_of(made_from: dict) -> str:
    """The name of the folder that holds what is made from this (JSON values)."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]


def open_or_make(
    cache_dir: Path,
    made_from: dict,
    make: Callable[[Path], dict],
    check: Callable[[Path, dict], None],
    what: str,
) -> tuple[Path, dict]:
    """(folder, its meta.json) of what is made from `made_from`, found in the cache or made now.

    make   writes the files of the cache into a folder and returns what else is to be in meta.json;
           `files` there names them all, with their `checksums`
    check  raises, ValueError most likely, for files that do not fit their meta.json
    what   it is, for messages: "token cache"

    A folder that is damaged is reported on stderr and made anew. Several processes may call this at
    once. Raises what `make` raises, and ValueError when the folder cannot be written.
    """
    key = key_of(made_from)
    folder = cache_dir / key
    if folder.exists():
        try:
            return folder, _checked(folder, made_from, check)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError) as error:
            print(f"the {what} {folder} is damaged ({error}); making it anew", file=sys.stderr)

    _remove_old_leftovers(cache_dir)
    temporary = new_name(cache_dir, f".making-{key}")
    try:
        temporary.mkdir()
        meta = made_from | make(temporary)
        write_synced(temporary / META_FILE, json.dumps(meta, indent=2))
        _sync_folder(temporary)
        _put_in_place(temporary, folder, made_from, check, what)
    except OSError as error:  # most likely a full disk, or no permission to write
        raise ValueError(f"cannot make the {what} {folder}: {error}") from None
    finally:  # also after Ctrl-C; nothing is left of it when the renaming succeeded
        shutil.rmtree(temporary, ignore_errors=True)
    return folder, _checked(folder, made_from, check)


def _checked(folder: Path, made_from: dict, check: Callable[[Path, dict], None]) -> dict:
    """meta.json of a folder; raises, saying what is wrong, if the folder is damaged.

    Compares what it was made from, the sizes, and a checksum of sampled blocks: a few milliseconds,
    however large the files are.
    """
    meta = read_json(folder / META_FILE)
    for name, value in made_from.items():
        if meta[name] != value:
            raise ValueError(f"meta.json: expected {name} {value}, got {meta[name]}")
    for name, known in meta["files"].items():
        size = (folder / name).stat().st_size
        if size != known["size"]:
            raise ValueError(f"{name}: expected {known['size']} bytes, got {size}")
        if sample_crc32(folder / name) != known["sample_crc32"]:
            raise ValueError(f"{name}: its content is not what was written")
    check(folder, meta)
    return meta


def _put_in_place(temporary: Path, folder: Path, made_from: dict, check, what: str) -> None:
    """Rename a finished cache to its valid name, where another process may have been faster."""
    for _ in range(10):
        try:
            temporary.rename(folder)
            _sync_folder(folder.parent)
            return
        except OSError:
            if not folder.exists():
                raise
        with contextlib.suppress(Exception):
            _checked(folder, made_from, check)
            return
        # What is there is damaged. It leaves its name in one step, then it is deleted.
        grave = new_name(folder.parent, ".damaged")
        with contextlib.suppress(FileNotFoundError):  # another process may have moved it
            folder.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)
    raise ValueError(f"cannot replace the damaged {what} {folder}; delete it")


def write_arrays(folder: Path, chunks: Iterable[dict[str, np.ndarray]]) -> dict[str, tuple]:
    """Write arrays that come in pieces, each to its file; their shapes, as MappedArrays wants them.

    chunks: name -> the next piece of that array, the same names in every one.
    """
    shapes: dict[str, tuple] = {}
    with contextlib.ExitStack() as stack:
        files = {}
        for chunk in chunks:
            for name, piece in chunk.items():
                if name not in files:
                    files[name] = stack.enter_context(open(folder / f"{name}.bin", "wb"))
                    shapes[name] = (piece.dtype.newbyteorder("<").str, 0)
                piece = np.ascontiguousarray(piece, shapes[name][0])
                files[name].write(piece.data)
                shapes[name] = (shapes[name][0], shapes[name][1] + len(piece))
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    return shapes


def check_shapes(folder: Path, meta: dict) -> None:
    """`check` of `open_or_make` for a folder of arrays whose meta.json holds their `shapes`."""
    for name, (dtype, count) in meta["shapes"].items():
        size, expected = meta["files"][f"{name}.bin"]["size"], count * np.dtype(dtype).itemsize
        if size != expected:
            raise ValueError(f"{name}.bin: expected {expected} bytes, got {size}")


def cached_arrays(
    cache_dir: Path, made_from: dict, make: Callable[[], tuple[dict[str, np.ndarray], dict]],
    what: str,
) -> tuple[MappedArrays, dict]:  # fmt: skip
    """(arrays, facts) that `make` gives, mapped from a cache: made now or found there.

    Raises what `open_or_make` raises.
    """

    def write(folder: Path) -> dict:
        arrays, facts = make()
        shapes = write_arrays(folder, [arrays])
        return {"facts": facts, "shapes": shapes, "files": checksums(folder)}

    folder, meta = open_or_make(cache_dir, made_from, write, check_shapes, what)
    return MappedArrays(folder, meta["shapes"]), meta["facts"]


def checksums(folder: Path) -> dict[str, dict]:
    """What meta.json says of every array's file: size, SHA-256, and the CRC-32 of a sample."""
    return {
        file.name: {
            "size": file.stat().st_size,
            "sha256": sha256_of(file),
            "sample_crc32": sample_crc32(file),
        }
        for file in sorted(folder.glob("*.bin"))
    }


def sample_crc32(file: Path) -> int:
    """CRC-32 of SAMPLED_BLOCKS blocks spread over the file (of all of it when it is small)."""
    size, crc = file.stat().st_size, 0
    last = max(0, size - BLOCK_BYTES)
    with open(file, "rb") as stream:
        for i in range(SAMPLED_BLOCKS):
            stream.seek(last * i // (SAMPLED_BLOCKS - 1))
            crc = zlib.crc32(stream.read(BLOCK_BYTES), crc)
    return crc


def _remove_old_leftovers(cache_dir: Path) -> None:
    """Delete what processes that were killed more than a day ago left unfinished."""
    for leftover in _leftovers(cache_dir):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > 24 * 3600:
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink()


def _leftovers(cache_dir: Path) -> Iterator[Path]:
    for pattern in (".making-*", ".damaged-*", ".content_hashes-*"):
        yield from cache_dir.glob(pattern)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files; not possible on Windows, nor needed."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
