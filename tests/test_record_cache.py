"""Conversations, pairs and judged answers, encoded once and mapped afterwards."""

import copy
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from dataset import cache_folder, content_hash, record_cache, sft
from dataset.chat import NO_THINKING, THINKING, encode_conversation
from dataset.chat_turns import MAY_END, TRAINED
from dataset.dpo import DPODataset
from dataset.encoded import ALL, HELD_OUT, Part
from dataset.kto import KTODataset
from dataset.packing import held_out_items
from dataset.record_cache import encoded_records, with_template
from dataset.records import DataError, Problems
from dataset.sft import SFTDataset
from tests.conftest import ROOT

LETTERS = "the cat sat on a mat, and 那只猫 ran. "


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def turns(i, count):
    """A conversation of `count` questions and answers of uneven lengths."""
    return [
        say(role, f"{role} {i}.{turn} " + LETTERS * ((i * 7 + turn * 3) % 4))
        for turn in range(count)
        for role in ("user", "assistant")
    ]


CHATS = [{"messages": turns(i, i % 3 + 1)} for i in range(60)]
PAIRS = [
    {"prompt": f"question {i // 2}", "chosen": LETTERS * (i % 3 + 1), "rejected": f"no {i}"}
    for i in range(40)
]
JUDGED = [
    {"prompt": f"question {i // 2}", "completion": f"{i} " + LETTERS * (i % 3), "label": i % 3 > 0}
    for i in range(40)
]
RECORDS = {"conversations": CHATS, "pairs": PAIRS, "judged": JUDGED}
DATASETS = {"conversations": SFTDataset, "pairs": DPODataset, "judged": KTODataset}


def write(path: Path, records) -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture
def tokenizer(tiny_tokenizer):
    tokenizer = copy.copy(tiny_tokenizer)
    tokenizer.chat_template = NO_THINKING
    return tokenizer


@pytest.fixture(params=RECORDS)
def kind(request):
    return request.param


def no_reading(*args, **more):
    raise AssertionError("something is read or made again")


def as_items(dataset):
    return [[tensor.tolist() for tensor in item] for item in dataset]


def kept_by_hand(tokenizer, messages, limit):
    """Ids of a conversation up to the last answer that fits, each prefix encoded alone."""
    prefixes = [messages[:n] for n in range(2, len(messages) + 1, 2)]
    encoded = [encode_conversation(tokenizer, prefix) for prefix in prefixes]
    fitting = [(list(ids), list(mask)) for ids, mask in encoded if len(ids) <= limit]
    return fitting[-1] if fitting else None


@pytest.mark.parametrize("limit", [20, 33, 60, 61, 62, 63, 64, 90, 400])
def test_every_row_length_cuts_what_is_cached_at_an_answer(tmp_path, tokenizer, limit):
    """Of whatever length the rows are: the conversations up to the last answer that fits."""
    path = write(tmp_path / "chats.jsonl", CHATS)
    encoded = encoded_records("conversations", [path], tokenizer, tmp_path / "cache")
    expected = [kept_by_hand(tokenizer, chat["messages"], limit + 1) for chat in CHATS]
    cut_lengths = encoded.cut_lengths(limit + 1)
    for i, kept in enumerate(expected):
        ids, mask = (part[: cut_lengths[i]].tolist() for part in encoded.sequence(i))
        assert (ids, [bit & TRAINED for bit in mask]) == (kept or ([], []))
        assert not mask or mask[-1] & MAY_END
    if any(expected):
        dataset = SFTDataset(encoded, limit)
        got = [(ids.tolist(), mask.tolist()) for ids, mask in dataset.first_sequences(1000)]
        assert got == [kept for kept in expected if kept]
        assert dataset.facts["num_too_long"] == sum(kept is None for kept in expected)
    else:
        with pytest.raises(ValueError, match=f"--max_seq_len {limit}"):
            SFTDataset(encoded, limit)


def test_a_second_start_reads_nothing_and_packs_nothing(tmp_path, tokenizer, kind, monkeypatch):
    """Neither records nor the data's hash nor the rows are worked on again; all is the same."""
    path, cache = write(tmp_path / "data.jsonl", RECORDS[kind]), tmp_path / "cache"
    monkeypatch.setattr(time, "time_ns", lambda: 10**19)  # old enough for its hash to be kept

    def start(part):
        encoded = encoded_records(kind, [path], tokenizer, cache)
        return DATASETS[kind](encoded, 160, part=part, cache_dir=cache)

    parts = (ALL, Part("train", 0.2), Part(HELD_OUT, 0.2))
    first = [start(part) for part in parts]
    monkeypatch.setattr(record_cache, "work_through", no_reading)
    monkeypatch.setattr(content_hash, "sha256_of", no_reading)
    for module in (sft, sys.modules[DATASETS[kind].__module__]):
        monkeypatch.setattr(module, "best_fit", no_reading)
    second = [start(part) for part in parts]
    for one, other in zip(first, second):
        assert as_items(one) == as_items(other) and one.fingerprint == other.fingerprint
        assert one.summary() == other.summary()
        assert [one.place(i) for i in range(len(one))] == [other.place(i) for i in range(len(one))]
    whole, train, held_out = (sum(x[2].sum() for x in dataset) for dataset in first)
    assert whole == train + held_out or kind == "judged"  # each is beside another record's answer


def test_rows_in_memory_are_those_of_the_cache(tmp_path, tokenizer, kind):
    """A cache_dir changes where rows are kept, and nothing else."""
    path, cache = write(tmp_path / "data.jsonl", RECORDS[kind]), tmp_path / "cache"
    encoded = encoded_records(kind, [path], tokenizer, cache)
    mapped, made = (DATASETS[kind](encoded, 160, cache_dir=folder) for folder in (cache, None))
    assert as_items(mapped) == as_items(made) and mapped.fingerprint == made.fingerprint


def flip(file: Path):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def edit(file: Path):
    meta = json.loads(file.read_text())
    meta["shapes"]["ends"][1] -= 1
    file.write_text(json.dumps(meta))


DAMAGE = {
    "ids.bin": flip, "masks.bin": flip, "ends.bin": flip, "lines.bin": lambda f: f.unlink(),
    "labels.bin": lambda f: f.write_bytes(b""), "record_ends.bin": lambda f: f.write_bytes(b"x"),
    "meta.json": edit,
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_cache_is_made_anew(tmp_path, tokenizer, name, capsys):
    """It is said once, on one line, and what comes out is right."""
    path, cache = write(tmp_path / "data.jsonl", CHATS), tmp_path / "cache"
    good = encoded_records("conversations", [path], tokenizer, cache)
    expected = as_items(SFTDataset(good, 160))
    DAMAGE[name](cache / good.files[0].key / name)
    again = encoded_records("conversations", [path], tokenizer, cache)
    message = capsys.readouterr().err
    assert "damaged" in message and good.files[0].key in message and message.count("\n") == 1
    assert as_items(SFTDataset(again, 160)) == expected
    encoded_records("conversations", [path], tokenizer, cache)
    assert capsys.readouterr().err == "" and not list(cache.glob("[.]*"))


def test_damaged_rows_are_made_anew(tmp_path, tokenizer, capsys):
    """As the encoded records are."""
    path, cache = write(tmp_path / "data.jsonl", CHATS), tmp_path / "cache"
    encoded = encoded_records("conversations", [path], tokenizer, cache)
    expected = as_items(SFTDataset(encoded, 160, cache_dir=cache))
    flip(next(cache.glob("*/row_ends.bin")))
    assert as_items(SFTDataset(encoded, 160, cache_dir=cache)) == expected
    assert "cache of rows" in capsys.readouterr().err


def test_what_a_cache_is_made_from(tmp_path, tokenizer, tiny_tokenizer):
    """Other content, another template or another kind is another cache; another name is not."""
    cache = tmp_path / "cache"
    path = write(tmp_path / "data.jsonl", CHATS)

    def key(path=path, tokenizer=tokenizer, kind="conversations"):
        return encoded_records(kind, [path], tokenizer, cache).files[0].key

    first = key()
    assert key(write(tmp_path / "copy.jsonl", CHATS)) == first
    assert key(write(tmp_path / "other.jsonl", CHATS[1:])) != first
    thinking = copy.copy(tokenizer)
    thinking.chat_template = THINKING
    assert key(tokenizer=thinking) != first
    records = [{"messages": turns(i, 1), "label": True} for i in range(3)]
    both = write(tmp_path / "both.jsonl", records)
    assert key(both) != key(both, kind="judged")


def test_rows_depend_on_all_their_options(tmp_path, tokenizer):
    """Rows of other files, lengths, parts or weights are never mistaken for each other."""
    cache = tmp_path / "cache"
    paths = [write(tmp_path / f"{i}.jsonl", CHATS[30 * i :][:30]) for i in range(2)]
    both, reverse, one = (
        encoded_records("conversations", files, tokenizer, cache)
        for files in (paths, paths[::-1], paths[:1])
    )
    options = [
        (both, 160, True), (reverse, 160, True), (one, 160, True), (both, 161, True),
        (both, 160, False), (both, 160, True, Part("train", 0.2)),
        (both, 160, True, Part(HELD_OUT, 0.2)), (both, 160, True, Part("train", 0.3)),
        (both, 160, True, ALL, [1.0, 2.0]), (both, 160, True, ALL, [2.0, 1.0]),
    ]  # fmt: skip
    for _ in range(2):
        made = [as_items(SFTDataset(*option, cache_dir=cache)) for option in options]
        expected = [as_items(SFTDataset(*option)) for option in options]
        assert made == expected
    assert len({json.dumps(items) for items in made}) == len(options)


def test_bad_records(tmp_path, tokenizer, capsys):
    """Stop: the caller knows them all, of all files. Skip: the others, and nothing read again."""
    cache = tmp_path / "cache"
    bad = write(tmp_path / "bad.jsonl", [*CHATS[:3], "nonsense", {"messages": []}, CHATS[3]])
    worse = write(tmp_path / "worse.jsonl", [{"label": 1}, *CHATS[:1]])
    problems = Problems()
    encoded_records("conversations", [bad, worse], tokenizer, cache, "stop", problems)
    with pytest.raises(DataError, match="3 bad records") as error:
        problems.raise_if_any()
    for place in (f"{bad}:4: ", f"{bad}:5: ", f"{worse}:1: "):
        assert place in str(error.value)
    skipped = Problems()
    encoded = encoded_records("conversations", [bad, worse], tokenizer, cache, "skip", skipped)
    assert skipped.lines() == problems.lines() and skipped.count == 3
    assert [encoded.source(i) for i in range(5)] == [
        (str(bad), 1), (str(bad), 2), (str(bad), 3), (str(bad), 6), (str(worse), 2)
    ]  # fmt: skip
    moved = bad.rename(tmp_path / "moved.jsonl")
    problems = Problems()
    encoded_records("conversations", [moved], tokenizer, cache, "skip", problems)
    assert any(line.startswith(f"{moved}:4: ") for line in problems.lines())


@pytest.mark.parametrize("on_bad_record", ["stop", "skip"])
def test_data_without_a_good_record(tmp_path, tokenizer, on_bad_record):
    """Empty files are errors in either mode; one of bad records alone is one as well."""
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match=r"--data_path: .*empty file .*a\.jsonl"):
        path = write(tmp_path / "a.jsonl", [])
        encoded_records("conversations", [path], tokenizer, cache, on_bad_record)
    problems = Problems()
    with pytest.raises(ValueError, match=r"bad\.jsonl"):
        path = write(tmp_path / "bad.jsonl", ["x", "y"])
        encoded_records("conversations", [path], tokenizer, cache, on_bad_record, problems)
        problems.raise_if_any()


def test_reasoning_in_the_last_record_chooses_the_template(tmp_path, tokenizer, monkeypatch):
    """Of the last file: all is encoded with its template, and a second start reads nothing."""
    monkeypatch.setattr(time, "time_ns", lambda: 10**19)
    thought = [say("user", "q"), say("assistant", "a", reasoning_content="Hm.")]
    paths = [
        write(tmp_path / "plain.jsonl", CHATS),
        write(tmp_path / "thinks.jsonl", [*CHATS[:5], {"messages": thought}]),
    ]

    def encode(tokenizer):
        return with_template(
            tokenizer,
            lambda: encoded_records("conversations", paths, tokenizer, tmp_path / "cache"),
        )

    for template in (None, NO_THINKING, THINKING):
        other = copy.copy(tokenizer)
        other.chat_template = template
        encoded = encode(other)
        assert other.chat_template == THINKING
        last = encoded.sequence(encoded.num_sequences - 1)
        ids, mask = encode_conversation(other, thought)
        assert (last[0].tolist(), (last[1] & TRAINED).tolist()) == (list(ids), list(mask))
        monkeypatch.setattr(record_cache, "work_through", no_reading)
    plain = copy.copy(tokenizer)
    encode_plain = paths.pop() and encode
    encode_plain(plain)
    assert plain.chat_template == NO_THINKING


def test_the_split_is_that_of_whole_contents(tmp_path, tokenizer):
    """Held out are the conversations with the smallest hashes of their ids, cut as they are."""
    path = write(tmp_path / "chats.jsonl", CHATS)
    encoded = encoded_records("conversations", [path], tokenizer, tmp_path / "cache")
    kept = [kept_by_hand(tokenizer, chat["messages"], 101) for chat in CHATS]
    kept = [ids for ids, _ in filter(None, kept)]
    contents = [np.array(ids, np.int32).tobytes() for ids in kept]
    is_val = held_out_items(contents, 0.25)
    for side, mine in (("train", ~is_val), (HELD_OUT, is_val)):
        dataset = SFTDataset(encoded, 100, part=Part(side, 0.25))
        got = [ids.tolist() for ids, _ in dataset.first_sequences(1000)]
        assert got == [ids for ids, chosen in zip(kept, mine) if chosen]


@pytest.mark.parametrize("weight", [0.3, 0.5, 1.0, 1.5, 2.0])
def test_weights_repeat_conversations(tmp_path, tokenizer, weight):
    """Each conversation floor or ceiling of the weight times; together weight times as many."""
    paths = [write(tmp_path / f"{i}.jsonl", CHATS[i::2]) for i in range(2)]
    encoded = encoded_records("conversations", paths, tokenizer, tmp_path / "cache")
    items = SFTDataset(encoded, 400, weights=[1.0, weight]).items["record"]
    counts = np.bincount(items, minlength=60)
    assert (counts[:30] == 1).all()
    assert counts[30:].sum() == np.floor(30 * weight)
    assert set(counts[30:].tolist()) <= {int(np.floor(weight)), int(np.ceil(weight))}


def test_a_dataset_is_cheap_to_send(tmp_path, tokenizer, kind):
    """To a loader's worker goes where the data lies, not the data; rows come back the same."""
    cache = tmp_path / "cache"
    path = write(tmp_path / "data.jsonl", RECORDS[kind] * 20)
    encoded = encoded_records(kind, [path], tokenizer, cache)
    dataset = DATASETS[kind](encoded, 160, cache_dir=cache)
    as_items(dataset)  # all is mapped now
    of_tensors = 8 * 40 * 20 if kind != "conversations" else 0  # answer lengths, labels
    assert len(pickle.dumps(dataset)) < 10_000 + of_tensors
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert as_items(loader) == as_items(dataset)


def test_data_that_changes_meanwhile_is_an_error(tmp_path, tokenizer, monkeypatch):
    """A file that is written to while it is encoded is not cached."""
    path, work_through = write(tmp_path / "data.jsonl", CHATS), record_cache.work_through

    def changing(*args, **more):
        yield from work_through(*args, **more)
        write(path, CHATS[1:])

    monkeypatch.setattr(record_cache, "work_through", changing)
    with pytest.raises(ValueError, match=r"data\.jsonl was changed while it was read"):
        encoded_records("conversations", [path], tokenizer, tmp_path / "cache")
    names = [p.name for p in (tmp_path / "cache").iterdir()]
    assert [name for name in names if name != "content_hashes.json"] == []


def test_an_unusable_cache_folder_is_one_line(tmp_path, tokenizer, monkeypatch):
    """A cache_dir that is a file, or a disk that is full, is a ValueError naming the folder."""
    path = write(tmp_path / "data.jsonl", CHATS)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot use the cache"):
        encoded_records("conversations", [path], tokenizer, tmp_path / "file")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_folder.os, "fsync", full)
    with pytest.raises(ValueError, match=r"cannot make the cache of conversations .*No space left"):
        encoded_records("conversations", [path], tokenizer, tmp_path / "cache")


def test_processes_at_once_do_no_harm(tmp_path, tiny_tokenizer_dir, tokenizer):
    """Three processes that make the same cache at once all get the right rows."""
    path, cache = write(tmp_path / "data.jsonl", CHATS), tmp_path / "cache"
    code = (
        "import sys; from dataset.record_cache import encoded_records, with_template\n"
        "from dataset.sft import SFTDataset; from dataset.tokenizer import load_tokenizer\n"
        "tokenizer = load_tokenizer(sys.argv[1])\n"
        "encoded = with_template(tokenizer, lambda: encoded_records(\n"
        "    'conversations', [sys.argv[2]], tokenizer, sys.argv[3]))\n"
        "print(SFTDataset(encoded, 160, cache_dir=sys.argv[3]).fingerprint)"
    )
    command = [sys.executable, "-c", code, tiny_tokenizer_dir, path, cache]
    processes = [
        subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = {process.communicate()[0].strip() for process in processes}
    encoded = encoded_records("conversations", [path], tokenizer, tmp_path / "other cache")
    assert outputs == {SFTDataset(encoded, 160).fingerprint}
    assert all(process.returncode == 0 for process in processes)
