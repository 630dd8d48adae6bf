"""SHA-256 of data files, remembered beside the token caches so that a warm start reads no data."""

import contextlib
import hashlib
import json
import os
import secrets
import time
from pathlib import Path

from dataset.readers import files_of
from model.json_file import read_json


def hash_of_data(path: Path, cache_dir: Path, what: str) -> str:
    """`content_hash`, the folder made if need be; ValueError if it, or the data, is of no use.

    what: the cache is, for the message.
    """
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        return content_hash(path, cache_dir)
    except OSError as error:
        raise ValueError(f"cannot use the {what} {cache_dir} for {path}: {error}") from None


def content_hash(path: Path, cache_dir: Path) -> str:
    """SHA-256 of a data file, or of the hashes of a folder's files in their order."""
    if not path.is_dir():
        return _file_hash(path, cache_dir)
    hashes = [_file_hash(file, cache_dir) for file in files_of(path)]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _file_hash(path: Path, cache_dir: Path) -> str:
    """SHA-256 of a file, remembered in cache_dir while the file's size and times stay.

    So a warm start does not read a large file again just to know that it is the same.
    """
    memory = cache_dir / "content_hashes.json"
    known = _known_hashes(memory)
    name, stat = str(path.resolve()), path.stat()
    # The change time too: unpacking or `cp -p` can put other content under an old mtime.
    identity = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    entry = known.get(name)
    if isinstance(entry, dict) and entry.get("identity") == identity and entry.get("sha256"):
        return entry["sha256"]
    sha256 = sha256_of(path)
    after = path.stat()
    unchanged = [after.st_size, after.st_mtime_ns, after.st_ctime_ns] == identity
    # A file written within the clock's resolution could change again without a new time.
    if unchanged and time.time_ns() - max(identity[1:]) > 2_000_000_000:
        known[name] = {"identity": identity, "sha256": sha256}
        # Two processes at once may lose one entry: it costs one more reading, nothing else.
        temporary = new_name(cache_dir, ".content_hashes")
        with contextlib.suppress(OSError):  # a cache that can only be read is as good
            write_synced(temporary, json.dumps(known, indent=1))
            temporary.replace(memory)
            _parsed_hashes[memory] = (_signature(memory), known)
    return sha256


_parsed_hashes: dict[Path, tuple[tuple, dict]] = {}  # with 10,000 data files, parsing takes long


def _known_hashes(memory: Path) -> dict:
    """The remembered content hashes, parsed once as long as their file stays what it is."""
    try:
        signature = _signature(memory)
        if memory not in _parsed_hashes or _parsed_hashes[memory][0] != signature:
            _parsed_hashes[memory] = (signature, read_json(memory))
        return _parsed_hashes[memory][1]
    except (ValueError, OSError):
        return {}


def _signature(file: Path) -> tuple:
    stat = file.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def sha256_of(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def new_name(folder: Path, prefix: str) -> Path:
    """A path nobody uses. Not tempfile's: what that makes only its owner may read for ever."""
    return folder / f"{prefix}-{os.getpid()}-{secrets.token_hex(4)}"


def write_synced(file: Path, text: str) -> None:
    with open(file, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
