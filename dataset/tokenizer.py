"""Text to token ids and back, for our tokenizer and any byte-level BPE one from Hugging Face.

A vocabulary holds two kinds of tokens. *Ordinary* tokens stand for bytes of text. *Control* tokens
(`<|im_start|>`, `<think>`, ...: every added token of `tokenizer.json`) give a conversation its
shape. Text never becomes a control token here, whatever it contains: encoding uses a copy of the
tokenizer that does not know them, and a control token is asked for by name, with `control_id`.
"""

import codecs
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from model.json_file import parse_json, read_bytes, shown

END_OF_TEXT = "<|endoftext|>"

# What a tokenizer folder may consist of; the first two must be there.
CONFIG_FILE = "tokenizer_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = (
    "tokenizer.json",
    CONFIG_FILE,
    CHAT_TEMPLATE_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
MODEL_INPUTS = ["input_ids", "attention_mask"]  # what a tokenizer's call makes for the model
LARGEST_FILE = 64 << 20  # bytes; the largest tokenizer.json in use have 35 MB
LARGEST_ID = (1 << 20) - 1  # the largest vocabularies in use have 262,144 entries


def _bytes_of_characters() -> dict[str, int]:
    """The byte that each of the 256 characters of a byte-level vocabulary stands for.

    GPT-2's table: printable Latin-1 characters stand for themselves, the other bytes, in order,
    for the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    assert set(table) == set(ByteLevel.alphabet())
    return table


class Tokenizer:
    """The tokenizer of one folder; `load_tokenizer` makes it.

    folder         where it was loaded from
    vocab_size     the largest id + 1
    eos_id         the id that ends a document: `<|endoftext|>`, or else the folder's eos_token
    control_tokens dict from the name of every control token to its id
    token_bytes    int32 [vocab_size]: bytes of text an ordinary token stands for, 0 for all others
    fingerprint    SHA-256 of tokenizer.json, hexadecimal
    chat_template  the Jinja source of the chat template, or None; training may set another
    special_tokens dict from "eos_token", "bos_token", ... to their names, for chat templates
    swallows_space dict from control tokens to (left, right): whether it takes white space along
    """

    def __init__(self, folder: Path, files: dict[str, bytes]) -> None:
        spec, config = (_json_object(name, files[name]) for name in TOKENIZER_FILES[:2])
        if "auto_map" in config:
            raise ValueError(
                "tokenizer_config.json: auto_map asks to run code from the folder; such folders "
                "are refused"
            )
        self.folder = folder
        self._files = files  # for `save`: the folder may change or go while training runs
        self.fingerprint = hashlib.sha256(files["tokenizer.json"]).hexdigest()
        self.control_tokens = {token["content"]: token["id"] for token in spec["added_tokens"]}
        self._control_ids = frozenset(self.control_tokens.values())
        self._tokenizer = _without_control_tokens(spec, set(self.control_tokens))
        vocabulary = self._tokenizer.get_vocab()
        _check_ids(vocabulary, self.control_tokens)

        byte_of = _bytes_of_characters()
        # Some tokenizers keep entries no text can reach; they stand for no bytes.
        ordinary = {
            id: bytes(byte_of[character] for character in token)
            for token, id in vocabulary.items()
            if all(character in byte_of for character in token)
        }
        if len({piece for piece in ordinary.values() if len(piece) == 1}) < 256:
            raise ValueError("its vocabulary does not have an ordinary token for each of 256 bytes")
        control = {id: token.encode("utf-8") for token, id in self.control_tokens.items()}
        self._bytes_of_id = {**ordinary, **control}
        self.vocab_size = max(self._bytes_of_id) + 1
        self.token_bytes = np.zeros(self.vocab_size, dtype=np.int32)
        self.token_bytes[list(ordinary)] = [len(piece) for piece in ordinary.values()]

        eos = config.get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        # A chat model's eos_token ends a turn (Qwen3: <|im_end|>); this one ends a document.
        eos = END_OF_TEXT if END_OF_TEXT in self.control_tokens else eos
        if eos not in self.control_tokens:
            raise ValueError(f"it has no control token {END_OF_TEXT} and no eos_token")
        self.eos_id = self.control_tokens[eos]
        self.chat_template = _chat_template(files, config)
        named = {key: config.get(key) for key in SPECIAL_TOKENS}
        named = {k: v.get("content") if isinstance(v, dict) else v for k, v in named.items()}
        self.special_tokens = {k: v for k, v in named.items() if isinstance(v, str)}
        self.swallows_space = {
            token["content"]: (bool(token.get("lstrip")), bool(token.get("rstrip")))
            for token in spec["added_tokens"]
        }

    @property
    def dtype(self) -> np.dtype:
        """Of arrays of ids."""
        return dtype_of(self.vocab_size)

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text, none of them a control token's.

        Raises ValueError for a text with lone surrogates, which no UTF-8 file can hold.
        """
        return self.encode_texts([text])[0]

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        """`encode_text` for each text, on all cores; one call with many texts is the fast way."""
        try:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            raise ValueError(
                "expected texts as strings that UTF-8 can write, got something else or a lone "
                "surrogate (\\ud800 to \\udfff)"
            ) from None
        return [encoding.ids for encoding in encodings]

    def control_id(self, token: str) -> int:
        """The id of a control token, by its exact name; ValueError if the tokenizer has none."""
        if token not in self.control_tokens:
            raise ValueError(f"{self.folder}: the tokenizer has no control token {token!r}")
        return self.control_tokens[token]

    def bytes_of(self, id: int) -> bytes:
        """The bytes of text that an id stands for, or a control token's name; b"" if it is unused.

        Maybe a part of a character only: the bytes of several ids together are UTF-8.
        """
        return self._bytes_of_id.get(id, b"")

    def decode(self, ids: Iterable[int], skip_control: bool = False) -> str:
        """The text of some ids. Bytes that are not UTF-8 become U+FFFD; unused ids become nothing.

        skip_control: leave all control tokens out.
        """
        return self.stream_decoder(skip_control).decode(ids, final=True)

    def stream_decoder(self, skip_control: bool = False) -> "StreamDecoder":
        """A decoder to be fed ids as they are generated."""
        return StreamDecoder(self._bytes_of_id, self._control_ids if skip_control else frozenset())

    def save(self, folder: Path, chat_template: bool = True) -> None:
        """Copy the tokenizer's files into a model folder.

        chat_template: whether to write `chat_template`, too. A folder is chat-tuned when it has
        one; a base model has none.
        """
        for name, content in self._files.items():
            if name != CHAT_TEMPLATE_FILE:
                (folder / name).write_bytes(content)
        # without model_input_names, transformers 4 gives the model token_type_ids, which it refuses
        config = _json_object(CONFIG_FILE, self._files[CONFIG_FILE])
        config["model_input_names"] = config.get("model_input_names") or MODEL_INPUTS
        config.pop("chat_template", None)
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / CONFIG_FILE).write_text(text, "utf-8")
        if chat_template and self.chat_template is not None:
            (folder / CHAT_TEMPLATE_FILE).write_text(self.chat_template, "utf-8")


def dtype_of(vocab_size: int) -> np.dtype:
    """What ids are kept as: uint16, or uint32 where there are more than 65,536."""
    return np.dtype("<u2" if vocab_size <= 65536 else "<u4")


class StreamDecoder:
    """Decodes ids piece by piece; the pieces joined are what `Tokenizer.decode` gives at once.

    Never emits half a character: bytes of an unfinished one are held back until the rest comes.
    """

    def __init__(self, bytes_of_id: dict[int, bytes], skipped_ids: frozenset[int]) -> None:
        self._bytes_of_id = bytes_of_id
        self._skipped_ids = skipped_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def decode(self, ids: Iterable[int], final: bool = False) -> str:
        """The text these ids complete; final=True also gives what was held back (as U+FFFD)."""
        kept = (int(i) for i in ids if int(i) not in self._skipped_ids)
        return self._utf8.decode(b"".join(self._bytes_of_id.get(i, b"") for i in kept), final)

    def flush(self) -> str:
        """What was held back when no more ids come: U+FFFD for an unfinished character, or ""."""
        return self.decode([], final=True)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load the tokenizer of a folder: `tokenizer.json`, `tokenizer_config.json` and, if there,
    `chat_template.jinja`.

    Raises ValueError, one line naming the path and `--tokenizer`, when the folder or one of the two
    files is missing or broken, or holds another kind of tokenizer than byte-level BPE.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"--tokenizer: no such folder: {folder}")
    for name in TOKENIZER_FILES[:2]:
        if not (folder / name).is_file():
            raise ValueError(f"--tokenizer: expected a file {name} in {folder}, got none")
    try:
        return Tokenizer(folder, _read_files(folder))
    except KeyError as error:
        raise ValueError(f"--tokenizer: cannot use {folder}: no field {shown(error)}") from None
    except (ValueError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ValueError(f"--tokenizer: cannot use {folder}: {shown(error)}") from None


def _read_files(folder: Path) -> dict[str, bytes]:
    """The content of the files in TOKENIZER_FILES that are there, by name.

    Every model that is trained with the tokenizer gets a copy of them. So a link may lead to a file
    of the folder, or to the blobs that a Hugging Face cache keeps beside it, but nowhere else: it
    could lead to what was never meant to be given away.
    """
    home = folder.resolve()
    blobs = home.parent.parent / "blobs"
    files = {}
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.exists():
            target = path.resolve()
            if not target.is_relative_to(home) and target.parent != blobs:
                raise ValueError(f"{name} is a link out of the folder; put the file itself there")
            try:
                files[name] = read_bytes(path, LARGEST_FILE)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    return files


def _json_object(name: str, data: bytes) -> dict:
    try:
        content = parse_json(data)
    except ValueError as error:
        raise ValueError(f"{name}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name} is not a JSON object")
    return content


def _check_ids(vocabulary: dict[str, int], control_tokens: dict[str, int]) -> None:
    """ValueError unless ids are whole numbers of a sane size and no id means two things.

    An ordinary token with a control token's id would let text become that control token.
    """
    for token, id in control_tokens.items():
        if not isinstance(token, str) or type(id) is not int or id < 0:
            raise ValueError(f"tokenizer.json: the control token {token!r} has the id {id!r}")
    token_of: dict[int, str] = {}
    for token, id in [*vocabulary.items(), *control_tokens.items()]:
        if id > LARGEST_ID:
            raise ValueError(f"tokenizer.json: expected ids up to {LARGEST_ID}, got {id}")
        if id in token_of:
            raise ValueError(f"tokenizer.json: {token_of[id]!r} and {token!r} have one id, {id}")
        token_of[id] = token


def _without_control_tokens(spec: dict, control_tokens: set[str]) -> tokenizers.Tokenizer:
    """A tokenizer that gives the same ids for ordinary text and cannot give a control token's.

    Three doors are closed: added tokens are searched for in the text, a post-processor adds some,
    and one that is also in the vocabulary could be reached by merges, or without any where the
    tokenizer takes a whole word it knows (`ignore_merges`).
    """
    model = spec["model"]
    if model.get("type") != "BPE" or '"ByteLevel"' not in json.dumps(spec.get("pre_tokenizer")):
        raise ValueError("expected a byte-level BPE tokenizer")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    model = {
        **model,
        "vocab": {token: id for token, id in model["vocab"].items() if token not in control_tokens},
        "merges": [
            [left, right]
            for left, right in pairs
            if not control_tokens & {left, right, left + right}
        ],
        "unk_token": None,  # every byte has a token, so nothing is unknown
        "dropout": None,  # training-time noise that would make ids random
    }
    plain = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps({**spec, **plain, "model": model}))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, or panics: not even that
        raise ValueError(f"tokenizer.json: {error}") from None


def _chat_template(files: dict[str, bytes], config: dict) -> str | None:
    """The template file if there is one, or else the one inside tokenizer_config.json."""
    if CHAT_TEMPLATE_FILE in files:
        return files[CHAT_TEMPLATE_FILE].decode("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
