"""A tokenizer folder in llama.cpp's terms: the name of its pre-tokenisation, tokens, merges, ids.

llama.cpp does not read regular expressions from a file: it has those of known models under names.
A folder whose splitting has no such name there is refused, because llama.cpp would give its texts
other tokens without a word.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import gguf

from dataset.tokenizer import CONFIG_FILE, LARGEST_FILE, load_tokenizer
from model.json_file import read_json, shown

# llama.cpp's name -> (the expression as tokenizer.json writes it, ignore_merges)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "qwen2": (_CONTRACTIONS + _WORDS + r"|\p{N}" + _REST, False),
    "llama-bpe": (_CONTRACTIONS + _WORDS + r"|\p{N}{1,3}" + _REST, True),
    "smaug-bpe": (_CONTRACTIONS + _WORDS + r"|\p{N}{1,3}" + _REST, False),
}


@dataclass(frozen=True)
class GGUFVocabulary:
    """What `tokenizer.ggml.*` says of a tokenizer.

    pre          the name of its pre-tokenisation
    tokens       token texts by id, as tokenizer.json writes them
    types        gguf.TokenType of each
    merges       "left right", best first
    bos_id       what stands before every text if `add_bos`, else what ends a document
    eos_ids      what ends an answer, the model's own end of text among them
    pad_id       what fills rows
    template     the chat template, or None
    is_nfc       text is brought into Unicode's composed form (NFC) first, which llama.cpp omits
    """

    pre: str
    tokens: list[str]
    types: list[gguf.TokenType]
    merges: list[str]
    bos_id: int
    add_bos: bool
    eos_ids: list[int]
    pad_id: int | None
    template: str | None
    is_nfc: bool


def read_vocabulary(folder: Path, vocab_size: int, eos_ids: list[int]) -> GGUFVocabulary:
    """The vocabulary of a model folder, filled up to the `vocab_size` of its embedding.

    eos_ids: what ends an answer as generation_config.json or config.json says. Raises ValueError
    for what llama.cpp cannot do.
    """
    tokenizer = load_tokenizer(folder)  # byte-level BPE with sane ids, or an error that says so
    path = folder / "tokenizer.json"
    spec = read_json(path, LARGEST_FILE)
    try:
        pre = _pre_tokenizer_name(spec)
        first = _text_start(spec)
        _check_added_tokens(spec)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{path}: {tokenizer.vocab_size} entries, but the model's embedding has {vocab_size}"
        )
    for id in eos_ids:
        if id >= vocab_size:
            raise ValueError(f"{folder}: eos_token_id {id}: the embedding has {vocab_size} entries")
    tokens = [f"[PAD{id}]" for id in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    for token, id in spec["model"]["vocab"].items():
        tokens[id], types[id] = token, gguf.TokenType.NORMAL
    for token in spec["added_tokens"]:
        kind = gguf.TokenType.CONTROL if token.get("special") else gguf.TokenType.USER_DEFINED
        tokens[token["id"]], types[token["id"]] = token["content"], kind
    merges = spec["model"]["merges"]
    config = read_json(folder / CONFIG_FILE)
    pad = config.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    return GGUFVocabulary(
        pre=pre,
        tokens=tokens,
        types=types,
        merges=[m if isinstance(m, str) else " ".join(m) for m in merges],
        bos_id=tokenizer.eos_id if first is None else first,  # left out, llama.cpp takes token 11
        add_bos=first is not None,
        eos_ids=eos_ids or [tokenizer.eos_id],
        pad_id=tokenizer.control_tokens.get(pad),
        template=tokenizer.chat_template,
        is_nfc=spec.get("normalizer") is not None,
    )


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: GGUFVocabulary):
    """Write the keys. llama.cpp stops at the eos, eot and eom token alike."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    stops = list(dict.fromkeys(vocabulary.eos_ids))
    if len(stops) > 3:
        raise ValueError(f"{len(stops)} tokens that end an answer: GGUF has places for three")
    for add, id in zip((writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id),
                       stops, strict=False):  # fmt: skip
        add(id)
    writer.add_bos_token_id(vocabulary.bos_id)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
    if vocabulary.pad_id is not None:
        writer.add_pad_token_id(vocabulary.pad_id)
    if vocabulary.template is not None:
        writer.add_chat_template(vocabulary.template)


def _pre_tokenizer_name(spec: dict) -> str:
    """llama.cpp's name for how a tokenizer.json cuts text before merging; ValueError if none."""
    model, normalizer = spec["model"], spec.get("normalizer")
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise ValueError(f"llama.cpp knows no normalizer {_short(normalizer)}")
    for key, usual in (("continuing_subword_prefix", ""), ("end_of_word_suffix", ""),
                       ("byte_fallback", False)):  # fmt: skip
        if (model.get(key) or usual) != usual:
            raise ValueError(f"llama.cpp's byte-level BPE has no {key} ({model[key]!r})")
    ignores = bool(model.get("ignore_merges"))
    pre = spec["pre_tokenizer"]
    steps = pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre]
    byte_level = steps[-1]
    plain = byte_level.get("type") == "ByteLevel" and not byte_level.get("add_prefix_space", True)
    if plain and len(steps) == 1 and byte_level.get("use_regex", True) and not ignores:
        return "gpt-2"  # the expression inside the library's ByteLevel is GPT-2's
    if plain and len(steps) == 2 and not byte_level.get("use_regex", True):
        split = steps[0]
        isolates = split.get("behavior") == "Isolated" and not split.get("invert")
        pattern = split.get("pattern", {}).get("Regex") if split.get("type") == "Split" else None
        for name, (expression, needs_ignore) in SPLITS.items():
            if isolates and pattern == expression and ignores == needs_ignore:
                return name
    raise ValueError(
        f"llama.cpp has no name for this pre-tokenisation (known: {', '.join(SPLITS)}, gpt-2): "
        f"{_short(pre)}{', ignore_merges' if ignores else ''}"
    )


def _text_start(spec: dict) -> int | None:
    """The id that the post-processor puts before every text, or None; ValueError for all else."""
    processor = spec.get("post_processor")
    steps = [processor] if processor else []
    if processor and processor.get("type") == "Sequence":
        steps = processor["processors"]
    bos_id = None
    for step in steps:
        if step.get("type") == "ByteLevel":
            continue  # offsets alone
        single = step.get("single") if step.get("type") == "TemplateProcessing" else None
        names = [next(iter(part.items())) for part in single or []]
        kinds = [kind for kind, _ in names]
        if kinds == ["Sequence"]:
            continue
        if kinds != ["SpecialToken", "Sequence"] or bos_id is not None:
            raise ValueError(
                "llama.cpp can put one token before a text; the post_processor does more: "
                f"{_short(step)}"
            )
        ids = step["special_tokens"][names[0][1]["id"]]["ids"]
        if len(ids) != 1:
            raise ValueError(f"llama.cpp can put one token before a text, not {len(ids)}")
        bos_id = ids[0]
    return bos_id


def _check_added_tokens(spec: dict):
    for token in spec["added_tokens"]:
        for key in ("lstrip", "rstrip", "single_word"):
            if token.get(key):
                raise ValueError(f"{token['content']!r} has {key}, which llama.cpp does not do")


def _short(part: object) -> str:
    return shown(json.dumps(part, ensure_ascii=False), 300)
