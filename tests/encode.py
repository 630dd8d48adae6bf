"""Records as encoded from a file by the code that training uses, but held in memory."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dataset.conversations import Conversation
from dataset.encoded import ARRAYS, Encoded, EncodedFile
from dataset.record_cache import encoded_records


def encode(kind: str, data: Path | Iterable[Conversation], tokenizer) -> Encoded:
    """`encoded_records` of a file, or of conversations."""
    with tempfile.TemporaryDirectory() as folder:
        if not isinstance(data, Path):
            lines = [json.dumps({"messages": c.messages, "tools": c.tools}) for c in data]
            data = Path(folder) / "data.jsonl"
            data.write_text("\n".join(lines), "utf-8")
        encoded = encoded_records(kind, [data], tokenizer, Path(folder) / "cache")
        (file,) = encoded.files
        arrays = {name: np.array(file.arrays[name]) for name in ARRAYS}
    name = data.name if str(data).startswith(folder) else str(data)
    files = [EncodedFile(arrays, name, file.key)]
    return Encoded(files, encoded.eos_id, encoded.tokenizer_fingerprint)
