"""The token cache holds exactly the tokens of the data, is used again, and is never trusted."""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dataset import cache_folder, content_hash, token_cache
from dataset.records import DataError
from dataset.token_cache import cached_tokens
from tests.conftest import ROOT, SENTENCES

TEXTS = [f"{sentence} {i}" for i, sentence in enumerate(SENTENCES * 40)] + ["<|endoftext", "x"]


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path):
    return write_jsonl(tmp_path / "data.jsonl", TEXTS)


def no_reading(*args, **kwargs):
    raise AssertionError("the data was tokenised again")


@pytest.mark.parametrize("batch_characters", [1, 500, 10**9])
def test_the_cache_is_the_documents_joined(
    data, tmp_path, tiny_tokenizer, monkeypatch, batch_characters
):
    """tokens = every text's ids and an eos; ends, hashes and counts agree, whatever the batches."""
    monkeypatch.setattr(token_cache, "BATCH_CHARACTERS", batch_characters)
    file = cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    expected, ends = [], []
    for text in TEXTS:
        expected += [*tiny_tokenizer.encode_text(text), tiny_tokenizer.eos_id]
        ends.append(len(expected))
    assert file.tokens.dtype == np.uint16 and file.tokens.tolist() == expected
    assert file.document_ends.dtype == np.int64 and file.document_ends.tolist() == ends
    assert file.document_hashes.dtype == np.uint64
    assert len(set(file.document_hashes.tolist())) == len(set(TEXTS)) == file.num_documents
    assert file.num_tokens == len(expected) and file.eos_id == 0
    assert file.num_bytes == sum(len(text.encode()) for text in TEXTS)
    assert file.meta["num_characters"] == sum(map(len, TEXTS)) and file.skipped_records == 0


def test_equal_texts_have_equal_hashes(tmp_path, tiny_tokenizer):
    """The hash depends on the text alone, not on the file or the place in it."""
    one = write_jsonl(tmp_path / "one.jsonl", ["a b", "c", "a b"])
    two = write_jsonl(tmp_path / "two.jsonl", ["d", "a b"])
    first = cached_tokens(one, tiny_tokenizer, tmp_path / "cache").document_hashes
    second = cached_tokens(two, tiny_tokenizer, tmp_path / "cache").document_hashes
    assert first[0] == first[2] == second[1] and len({first[0], first[1], second[0]}) == 3


def test_a_large_vocabulary_gets_wider_tokens(data, tmp_path, tiny_tokenizer, monkeypatch):
    """Ids that do not fit into 16 bits are stored in 32."""
    small = cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    monkeypatch.setattr(tiny_tokenizer, "vocab_size", 65537)
    monkeypatch.setattr(
        tiny_tokenizer, "encode_texts", lambda texts: [[65536, len(text)] for text in texts]
    )
    large = cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    assert large.folder != small.folder and large.tokens.dtype == np.uint32
    assert large.tokens[:3].tolist() == [65536, len(TEXTS[0]), 0]


def test_a_second_run_reads_neither_data_nor_text(data, tmp_path, tiny_tokenizer, monkeypatch):
    """A warm start hashes nothing (once the file is 2 s old) and tokenises nothing."""
    os.utime(data, (1, 1))
    monkeypatch.setattr(time, "time_ns", lambda: 10**19)
    first = cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    monkeypatch.setattr(token_cache, "read_texts", no_reading)
    monkeypatch.setattr(content_hash, "sha256_of", no_reading)
    second = cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    assert second == first and second.tokens.tolist() == first.tokens.tolist()


def test_a_copy_of_the_data_shares_the_cache(data, tmp_path, tiny_tokenizer, monkeypatch):
    """The key is the content: another name or place makes no difference."""
    first = cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    copy = tmp_path / "other name.jsonl"
    copy.write_bytes(data.read_bytes())
    monkeypatch.setattr(token_cache, "read_texts", no_reading)
    assert cached_tokens(copy, tiny_tokenizer, tmp_path / "cache").folder == first.folder


def test_changed_data_is_noticed_even_under_an_old_time(data, tmp_path, tiny_tokenizer):
    """Other content of the same size and modification time is tokenised anew."""
    os.utime(data, (1, 1))
    time.sleep(2.1)  # so that the first content's hash is remembered
    first = cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    assert json.loads((tmp_path / "cache" / "content_hashes.json").read_text())
    write_jsonl(data, [TEXTS[0].upper(), *TEXTS[1:]])
    os.utime(data, (1, 1))
    second = cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    assert second.data_sha256 != first.data_sha256
    assert second.tokens[: len(first.tokens)].tolist() != first.tokens.tolist()


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


def edit_meta(**changes):
    def edit(folder):
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**meta, **changes}))

    return edit


def replace_by_link(path, target):
    path.unlink()
    path.symlink_to(target)


DAMAGE = {
    "no tokens": lambda folder: (folder / "tokens.bin").unlink(),
    "cut off": lambda folder: os.truncate(folder / "tokens.bin", 1000),
    "cut to nothing": lambda folder: os.truncate(folder / "hashes.bin", 0),
    "longer": lambda folder: (folder / "documents.bin").open("ab").write(bytes(8)),
    "first byte": lambda folder: flip(folder / "tokens.bin", 0),
    "last byte": lambda folder: flip(folder / "documents.bin", -1),
    "a hash": lambda folder: flip(folder / "hashes.bin", 8),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "broken meta": lambda folder: (folder / "meta.json").write_text("{"),
    "another meta": lambda folder: (folder / "meta.json").write_text("[]"),
    "empty meta": lambda folder: (folder / "meta.json").write_text("{}"),
    "other data": edit_meta(data_sha256="0"),
    "other tokenizer": edit_meta(tokenizer_fingerprint="0"),
    "other count": edit_meta(num_tokens=3),
    "count of another type": edit_meta(num_tokens="many"),
    "other type": edit_meta(dtype="<f4"),
    "impossible type": edit_meta(dtype="nonsense"),
    "type of Python objects": edit_meta(dtype="|O"),
    "endless meta": lambda folder: replace_by_link(folder / "meta.json", "/dev/zero"),
    "a key twice": lambda folder: (folder / "meta.json").write_text('{"eos_id": 0, "eos_id": 0}'),
    "no checksums": edit_meta(files=None),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_cache_is_reported_and_made_anew(data, tmp_path, tiny_tokenizer, name, capsys):
    """Whatever is wrong with a cache is said on stderr, and the tokens are right again."""
    good = cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    expected = good.tokens.tolist()
    capsys.readouterr()
    DAMAGE[name](good.folder)
    again = cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    message = capsys.readouterr().err
    assert str(good.folder) in message and "damaged" in message and message.count("\n") == 1
    assert again.folder == good.folder and again.tokens.tolist() == expected
    cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    assert capsys.readouterr().err == ""
    assert sorted(path.name for path in (tmp_path / "cache").glob("[.]*")) == []


def test_ids_outside_the_vocabulary_are_noticed(data, tmp_path, tiny_tokenizer, capsys):
    """A cache whose checksums are right but whose ids cannot be is not used."""
    good = cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    tokens = np.array(good.tokens)
    tokens[:] = 512
    tokens.tofile(good.folder / "tokens.bin")
    files = good.meta["files"]
    files["tokens.bin"]["sample_crc32"] = cache_folder.sample_crc32(good.folder / "tokens.bin")
    edit_meta(files=files)(good.folder)
    again = cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    assert "expected ids below 512, got 512" in capsys.readouterr().err
    assert again.tokens.max() < 512


def test_checked_blocks_reach_from_the_first_byte_to_the_last(tmp_path):
    """Every byte of a small file and both ends of a large one are part of the checksum."""
    for size, positions in ((5000, range(0, 5000, 99)), (10_000_000, (0, 4095, -4096, -1))):
        path = tmp_path / "x.bin"
        path.write_bytes(bytes(size))
        before = cache_folder.sample_crc32(path)
        for position in positions:
            flip(path, position)
            assert cache_folder.sample_crc32(path) != before
            flip(path, position)
        assert cache_folder.sample_crc32(path) == before


def leftovers(cache):
    return [path.name for path in cache.iterdir() if path.name != "content_hashes.json"]


def test_bad_records_leave_no_cache(data, tmp_path, tiny_tokenizer, capsys):
    """Stop: a DataError with all bad records and no cache. Skip: counted, reported, cached."""
    with data.open("a") as file:
        file.write('{"text": 1}\nx\n{"text": "the end"}\n')
    with pytest.raises(DataError, match="2 bad records") as error:
        cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    assert f"{data}:{len(TEXTS) + 1}: expected" in str(error.value)
    assert leftovers(tmp_path / "cache") == []
    file = cached_tokens(data, tiny_tokenizer, tmp_path / "cache", on_bad_record="skip")
    assert file.num_documents == len(TEXTS) + 1 and file.skipped_records == 2
    assert "skipped 2 bad records" in capsys.readouterr().err
    cached_tokens(data, tiny_tokenizer, tmp_path / "cache", on_bad_record="skip")
    assert "skipped 2 bad records" in capsys.readouterr().err  # also when nothing is read again
    with pytest.raises(DataError):
        cached_tokens(data, tiny_tokenizer, tmp_path / "cache")


@pytest.mark.parametrize("on_bad_record", ["stop", "skip"])
@pytest.mark.parametrize("content", ["", '{"text": ""}\n', "x\n"])
def test_data_without_text_is_an_error(tmp_path, tiny_tokenizer, content, on_bad_record):
    """Nothing to train on is a ValueError that names the file, in either mode."""
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"empty\.jsonl"):
        cached_tokens(path, tiny_tokenizer, tmp_path / "cache", on_bad_record)
    assert leftovers(tmp_path / "cache") == []


def test_an_interruption_leaves_nothing(data, tmp_path, tiny_tokenizer, monkeypatch):
    """Ctrl-C in the middle of tokenising leaves no folder behind, and the next run works."""
    monkeypatch.setattr(token_cache, "BATCH_CHARACTERS", 500)
    calls = []

    def interrupted(texts):
        calls.append(texts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return type(tiny_tokenizer).encode_texts(tiny_tokenizer, texts)

    with monkeypatch.context() as patch:
        patch.setattr(tiny_tokenizer, "encode_texts", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []
    assert cached_tokens(data, tiny_tokenizer, tmp_path / "cache").num_documents == len(TEXTS)


def test_data_that_changes_meanwhile_is_an_error(data, tmp_path, tiny_tokenizer, monkeypatch):
    """A file that is written to while it is tokenised is not cached."""

    def changing(texts):
        data.write_text(data.read_text() + '{"text": "more"}\n')
        return type(tiny_tokenizer).encode_texts(tiny_tokenizer, texts)

    monkeypatch.setattr(tiny_tokenizer, "encode_texts", changing)
    with pytest.raises(ValueError, match=r"data\.jsonl was changed while it was read"):
        cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_an_unusable_cache_folder_is_one_line(data, tmp_path, tiny_tokenizer, monkeypatch):
    """A cache_dir that is a file, or a disk that is full, is a ValueError naming the folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot use the token cache"):
        cached_tokens(data, tiny_tokenizer, tmp_path / "file")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"cannot make the token cache .*No space left"):
        cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_a_cache_that_can_only_be_read_is_used(data, tmp_path, tiny_tokenizer, monkeypatch):
    """Where nothing can be written, a complete cache still serves."""
    first = cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    monkeypatch.setattr(time, "time_ns", lambda: 10**19)  # the hash would be remembered

    def denied(file, text):
        raise PermissionError(f"cannot write {file}")

    for module in (cache_folder, content_hash):
        monkeypatch.setattr(module, "write_synced", denied)
    assert cached_tokens(data, tiny_tokenizer, tmp_path / "cache").folder == first.folder


def test_old_leftovers_are_deleted_and_fresh_ones_are_not(data, tmp_path, tiny_tokenizer):
    """What a killed process left is removed after a day; a running one is left alone."""
    for name in ("old", "new"):
        (tmp_path / "cache" / f".making-{name}").mkdir(parents=True)
    day_ago = time.time() - 25 * 3600
    os.utime(tmp_path / "cache" / ".making-old", (day_ago, day_ago))
    cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").glob(".making*")] == [".making-new"]


def test_processes_at_once_do_no_harm(data, tmp_path, tiny_tokenizer, tiny_tokenizer_dir):
    """Four processes that make (and repair) the same cache at once all get the right tokens."""
    code = (
        "import sys; from dataset.tokenizer import load_tokenizer\n"
        "from dataset.token_cache import cached_tokens\n"
        "file = cached_tokens(sys.argv[1], load_tokenizer(sys.argv[2]), sys.argv[3])\n"
        "print(file.num_tokens, int(file.tokens.sum()))"
    )
    command = [sys.executable, "-c", code, str(data), str(tiny_tokenizer_dir)]
    command.append(str(tmp_path / "cache"))
    answers = []
    for damaged in (False, True):
        if damaged:
            file = cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
            (file.folder / "meta.json").unlink()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(4)]
        for process in processes:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            answers.append(out)
    tokens = cached_tokens(data, tiny_tokenizer, tmp_path / "cache").tokens
    assert set(answers) == {f"{len(tokens)} {int(tokens.sum())}\n"}
    assert list((tmp_path / "cache").glob("[.]*")) == []


def test_a_token_file_is_sent_to_a_process_without_its_data(data, tmp_path, tiny_tokenizer):
    """Pickling a TokenFile copies no tokens, also after they were used."""
    file = cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    total = int(file.tokens.sum())
    sent = pickle.dumps(file)
    assert len(sent) < 3000 and int(pickle.loads(sent).tokens.sum()) == total


def test_the_progress_bar_shows_only_when_asked(data, tmp_path, tiny_tokenizer, capsys):
    """No bar where stderr is no terminal, unless show_progress says so."""
    cached_tokens(data, tiny_tokenizer, tmp_path / "one")
    assert capsys.readouterr().err == ""
    cached_tokens(data, tiny_tokenizer, tmp_path / "two", show_progress=True)
    assert "tokenising data.jsonl: 100%" in capsys.readouterr().err


def test_what_nothing_reads_is_said_at_every_start(data, tmp_path, tiny_tokenizer, capsys):
    """The fields beside the text, when the cache is made and when it is found."""
    data.write_text('{"text": "one", "meta": {"k": 1}, "id": 1}\n{"text": "two", "id": 2}\n')
    for _ in range(2):
        cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
        assert capsys.readouterr().err == f"{data}: not used: id (2), meta (1)\n"


def test_the_text_field_is_part_of_the_identity(data, tmp_path, tiny_tokenizer):
    """Another field of the same file has a cache of its own and another fingerprint."""
    from dataset.packing import whole_stream
    from dataset.pretrain import PretrainDataset

    data.write_text('{"text": "one cat", "content": "two cat"}\n' * 3)
    files = [
        cached_tokens(data, tiny_tokenizer, tmp_path / "cache", text_field=name)
        for name in ("text", "content")
    ]
    assert files[0].folder != files[1].folder
    for file, text in zip(files, ("one cat", "two cat")):
        end = int(file.document_ends[0]) - 1
        assert tiny_tokenizer.decode(file.tokens[:end].tolist()) == text
    prints = {PretrainDataset(whole_stream([file]), 8).fingerprint for file in files}
    assert len(prints) == 2


def test_caches_hold_no_file_handles(tmp_path, tiny_tokenizer):
    """Any number of files can be open at once: none of them keeps a handle."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("needs Linux")
    files = []
    for number in range(25):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps({"text": f"text {number}"}) + "\n")
        if number == 5:
            before = len(list(descriptors.iterdir()))
        files.append(cached_tokens(path, tiny_tokenizer, tmp_path / "cache"))
        assert len(files[-1].tokens) and len(files[-1].document_ends) == 1
        assert len(files[-1].document_hashes) == 1
    assert len(list(descriptors.iterdir())) == before
    with pytest.raises(ValueError, match="read-only"):
        files[0].tokens[0] = 1


def test_a_saved_folder_is_one_file(tmp_path, tiny_tokenizer):
    """A folder of Arrow files has one cache, made again when one of the files changes."""
    from datasets import Dataset

    folder = tmp_path / "saved"
    texts = [f"text {i}" for i in range(9)]
    Dataset.from_list([{"text": text} for text in texts]).save_to_disk(folder, num_shards=3)
    file = cached_tokens(folder, tiny_tokenizer, tmp_path / "cache", show_progress=True)
    assert file.num_documents == 9
    assert cached_tokens(folder, tiny_tokenizer, tmp_path / "cache").folder == file.folder
    other = tmp_path / "other"
    Dataset.from_list([{"text": text} for text in texts[:-1]]).save_to_disk(other, num_shards=3)
    os.replace(other / "data-00002-of-00003.arrow", folder / "data-00002-of-00003.arrow")
    again = cached_tokens(folder, tiny_tokenizer, tmp_path / "cache")
    assert again.folder != file.folder and again.num_documents < 9
