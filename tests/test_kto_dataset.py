"""Judged answers in rows, each beside another record's answer to its prompt."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.chat import encode_conversation
from dataset.encoded import HELD_OUT, Part
from dataset.judged import read_judged
from dataset.kto import KTODataset, mismatched
from tests.encode import encode


def say(role, content):
    return {"role": role, "content": content}


def judged_file(folder, count=12):
    """Good and bad answers of uneven lengths; neighbours share a prompt, or an answer."""
    path = folder / "judged.jsonl"
    lines = []
    for i in range(count):
        prompt = [say("user", "What is it? " * (1 + i // 2 % 3))]
        if i % 4 == 3:
            prompt = [say("user", "Hello."), say("assistant", "Hello, cat."), *prompt]
        answer = "It is a cat. " * (1 + i % 4) if i % 3 else f"Number {i // 6}"
        lines.append({"messages": [*prompt, say("assistant", answer)], "label": i % 2 == 0})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def encoded(tmp_path, tiny_tokenizer):
    return encode("judged", judged_file(tmp_path), tiny_tokenizer)


def parts(dataset, i):
    """The ids of a record's prompt and of its answer."""
    ids, mask = dataset.sequence(i)
    start = int(mask.argmax())
    return ids[:start].tolist(), ids[start:].tolist()


def test_rows_hold_two_documents_a_record(encoded):
    """Every record once: its own ids and mask, then its prompt with the other one's answer."""
    dataset = KTODataset(encoded, 256)
    assert dataset.pairs_per_row > 1 and len(dataset) > 1
    seen = []
    for X, Y, loss_mask, document_ids, records in dataset:
        for k, record in enumerate(records[records >= 0].tolist()):
            seen.append(record)
            prompt, answer = parts(dataset, record)
            other_prompt, other = parts(dataset, dataset.others[record])
            assert prompt != other_prompt and answer != other
            for side, end in enumerate((answer, other)):
                inside = document_ids == 2 * k + 1 + side
                ids = [*X[inside].tolist(), int(Y[inside][-1])]
                assert ids == prompt + end and Y[inside].tolist() == ids[1:]
                learned = Y[inside][loss_mask[inside] == 1].tolist()
                assert learned == end[: len(learned)] and len(learned) in (len(end), len(end) - 1)
        assert not loss_mask[document_ids == 0].any()
        assert len(document_ids.unique()) <= dataset.documents_per_row
    assert sorted(seen) == list(range(encoded.num_records))
    counts = dataset.num_records(np.arange(len(dataset)))
    assert counts.tolist() == [int((row[4] >= 0).sum()) for row in dataset]
    X, _, loss_mask, _, records = dataset[-1]
    assert dataset.num_records(np.array([-1])) == 0 and not loss_mask.any() and (records < 0).all()


def test_the_answer_alone_is_masked_in(encoded, tiny_tokenizer, tmp_path):
    """The ids before it are those that a model is given to answer; it ends its turn itself."""
    records = list(read_judged(judged_file(tmp_path)))
    dataset = KTODataset(encoded, 256)
    assert len(records) == dataset.total
    for i, record in enumerate(records):
        prompt, _ = encode_conversation(tiny_tokenizer, record.prompt, add_generation_prompt=True)
        ids, mask = dataset.sequence(i)
        assert ids[: len(prompt)].tolist() == prompt and dataset.prompts[i] == len(prompt)
        said = tiny_tokenizer.decode(ids[mask == 1].tolist())
        assert said == record.answer[0]["content"] + "<|im_end|>"
        assert dataset.labels[i] == record.label == (i % 2 == 0)
        assert dataset.source(i) == (record.path, record.line)


def test_what_does_not_fit(tmp_path, tiny_tokenizer):
    """A judged answer is never cut; the other one is, so that both fit a row."""
    encoded = encode("judged", judged_file(tmp_path), tiny_tokenizer)
    whole = KTODataset(encoded, 256)
    needed = encoded.lengths() - 1 + whole.prompts
    T = int(np.sort(needed)[-4])
    dataset = short = KTODataset(encoded, T)
    too_long = short.facts["num_too_long"]
    assert whole.total - short.total == too_long == int((needed > T).sum()) > 0
    lengths = [[len(ids) for ids, _ in dataset.documents(i)] for i in range(short.total)]
    of_others = [len(parts(short, dataset.others[i])[1]) for i in range(short.total)]
    is_cut = [n[1] < p + other for n, p, other in zip(lengths, short.prompts, of_others)]
    assert 0 < sum(is_cut) < short.total
    for i, (own, other) in enumerate(lengths):
        assert (
            own == len(short.sequence(i)[0])
            and own - 1 + other - 1 <= T
            and other > short.prompts[i]
        )
        assert is_cut[i] == (own - 1 + other - 1 == T) or not is_cut[i]
        assert dataset.documents(i)[1][1].sum() >= 1  # something is left to measure
    with pytest.raises(ValueError, match="--max_seq_len 8"):
        KTODataset(encoded, 8)


def test_a_prompt_is_on_one_side_of_the_split(encoded):
    """Records of one prompt are trained on or held out together; each keeps its label."""
    whole = KTODataset(encoded, 256)
    both = [KTODataset(encoded, 256, Part(side, 0.3)) for side in ("train", HELD_OUT)]
    assert sum(part.total for part in both) == whole.total and both[1].total > 1
    prompts = [{tuple(parts(p, i)[0]) for i in range(p.total)} for p in both]
    assert not prompts[0] & prompts[1]
    labels = {whole.source(i): whole.labels[i] for i in range(whole.total)}
    for part in both:
        assert [labels[part.source(i)] for i in range(part.total)] == part.labels.tolist()


def test_the_fingerprint_knows_labels_and_contents(tmp_path, tiny_tokenizer):
    """It changes with a label and with a word, not with a field that nothing reads."""
    path = judged_file(tmp_path)
    text = path.read_text()

    def fingerprint(text):
        path.write_text(text)
        return KTODataset(encode("judged", path, tiny_tokenizer), 160).fingerprint

    first = fingerprint(text)
    assert fingerprint(text.replace('"label"', '"rater": 1, "label"')) == first
    assert fingerprint(text.replace("true", "false", 1)) != first
    assert fingerprint(text.replace("Number 1", "Number 2", 1)) != first


def brute_force(prompts, answers):
    """The nearest earlier record with another prompt and another answer, looked for one by one."""
    n, found = len(prompts), []
    for i in range(n):
        others = [(i - d) % n for d in range(1, n)]
        fit = [j for j in others if prompts[j] != prompts[i] and answers[j] != answers[i]]
        found.append(fit[0] if fit else -1)
    return found


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=24))
def test_mismatched_is_the_nearest_one_before(pairs):
    """As looked for one by one, for any prompts and answers, however many are equal."""
    prompts, answers = np.array(pairs, np.uint64).T
    assert mismatched(prompts, answers).tolist() == brute_force(prompts, answers)


def test_long_runs_of_one_answer_take_no_time():
    """Of a million refusals in a row not each is compared with each."""
    n = 1_000_000
    prompts = np.arange(n, dtype=np.uint64)
    answers = np.where(np.arange(n) < n // 2, 0, np.arange(n)).astype(np.uint64)
    others = mismatched(prompts, answers)
    assert (others[1 : n // 2] == n - 1).all() and others[-1] == n - 2


def test_no_other_answer_is_an_error(tmp_path, tiny_tokenizer):
    """Where all prompts are equal there is nothing to estimate the KL term from."""
    path = tmp_path / "judged.jsonl"
    records = [{"prompt": "q", "completion": f"{i}", "label": True} for i in range(3)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(ValueError, match=r"judged\.jsonl:1: no other record"):
        KTODataset(encode("judged", path, tiny_tokenizer), 160)
