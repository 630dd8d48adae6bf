"""Many records encoded at once are what the chat format gives for each of them alone."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset import chat_template, chat_turns, record_chunks
from dataset.chat import NO_THINKING, THINKING, encode_conversation, training_sequences
from dataset.chat_turns import MAY_END, TRAINED
from dataset.conversations import Conversation, read_conversations
from dataset.encoding import CheckJob, ConversationJob, JudgedJob, PairJob, ReasoningFound
from dataset.judged import read_judged
from dataset.messages import BadConversation, check_messages, normal_content
from dataset.oddities import text_hash
from dataset.pairs import read_pairs, to_pair
from dataset.record_chunks import work_through
from dataset.records import Problems, Record, Remarks
from dataset.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
THEIRS = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = {
    "thinking": THINKING,
    "no_thinking": NO_THINKING,
    "qwen3": (THEIRS / "qwen3.jinja").read_text(encoding="utf-8"),  # foreign ones
    "qwen3_instruct": (THEIRS / "qwen3_instruct_2507.jinja").read_text(encoding="utf-8"),
}
THINK = ("thinking", "qwen3")  # the templates that have a place for thoughts


@pytest.fixture(scope="module")
def shipped():
    return load_tokenizer(ROOT / "model" / "tokenizer")


def with_template(tokenizer, name: str):
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


texts = st.lists(
    st.sampled_from(
        ["Hello", "你好", " ", "\n", "  x = 1", "é", "🙂", "<|im_end|>", "<think>", "</tool_call>",
         "\ufdd0", "<|endoftext|>\n", "aaaa", "1 + 1"]
    ),
    max_size=5,
).map("".join)  # fmt: skip
contents = texts.map(normal_content)
something = contents.filter(str.strip)
calls = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["add", "天气"]), "arguments": st.dictionaries(texts, texts)}
    ),
    min_size=1,
    max_size=2,
)
tool_lists = st.sampled_from(
    [None, [{"name": "add"}], [{"name": "天气", "description": "<think>"}, {"name": "add"}]]
)


@st.composite
def answers(draw, thinks: bool, weights: bool = True) -> list[dict]:
    """What follows a question: an answer, or calls, what the tools say, and an answer."""
    made = []
    for step in range(draw(st.integers(1, 2)), 0, -1):
        answer = {"role": "assistant", "content": draw(something)}
        if thinks and draw(st.booleans()):
            answer["reasoning_content"] = draw(something)
        if weights and draw(st.integers(0, 3)) == 0:
            answer["weight"] = 0
        if step > 1:
            answer |= {"content": draw(contents), "tool_calls": draw(calls)}
        made.append(answer)
        if step > 1:
            count = draw(st.integers(1, 2))
            made += [{"role": "tool", "content": draw(contents)} for _ in range(count)]
    return made


@st.composite
def talks(draw, thinks: bool) -> list[dict]:
    """Checked messages of one to three questions, at least one answer of them trained on."""
    messages = [{"role": "system", "content": draw(something)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [{"role": "user", "content": draw(something)}, *draw(answers(thinks))]
    messages[-1].pop("weight", None)
    return messages


def as_records(fields: list[dict]) -> list[Record]:
    return [Record(f, "f.jsonl", 10 * i) for i, f in enumerate(fields, start=1)]


def sequences_of(chunk) -> list[list[tuple[list[int], list[int]]]]:
    """[[(ids, mask) of each sequence] of each record]."""
    ends = np.cumsum(chunk.lengths.astype(np.int64))
    assert ends[-1] == len(chunk.ids) == len(chunk.masks)
    made = [
        (chunk.ids[end - n : end].tolist(), chunk.masks[end - n : end].tolist())
        for end, n in zip(ends, chunk.lengths.astype(np.int64))
    ]
    ends = np.cumsum(chunk.counts.astype(np.int64)).tolist()
    assert ends[-1] == len(made)
    return [made[begin:end] for begin, end in zip([0, *ends], ends)]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_conversations_are_encoded_as_each_alone(shipped, name, data):
    """Ids, masks, lines, hashes and counts, with tools, thoughts, weights and control strings."""
    tokenizer = with_template(shipped, name)
    talk = st.tuples(talks(name in THINK), tool_lists)
    made = data.draw(st.lists(talk, min_size=1, max_size=5))
    records = as_records([{"messages": m, "tools": t, "n": 1} for m, t in made])
    problems = Problems()
    chunk = ConversationJob(tokenizer)(iter(records), problems)
    whole = [Conversation(m, t or None, r.path, r.line) for (m, t), r in zip(made, records)]
    expected = [training_sequences(tokenizer, c.messages, c.tools) for c in whole]
    assert sequences_of(chunk) == expected
    assert chunk.lines.tolist() == [r.line for r in records] and not chunk.labels.any()
    said = [c.as_text() for c in whole]
    assert chunk.hashes.tolist() == [text_hash(text.encode()) for text in said]
    names = [*tokenizer.control_tokens]
    assert chunk.num_with_control_strings == sum(any(n in text for n in names) for text in said)
    assert not problems.count and problems.remarks_of("f.jsonl").not_used == {"n": len(made)}
    dtypes = [part.dtype for part in chunk[:7]]
    assert dtypes == [np.uint16, np.uint8, *[np.uint32] * 3, np.uint64, np.uint8]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_sequences_may_be_cut_behind_every_trained_answer(shipped, name, data):
    """What is left is the conversation that ends there, ids and mask: each trained answer once."""
    tokenizer = with_template(shipped, name)
    messages, tools = data.draw(talks(name in THINK)), data.draw(tool_lists)
    found = []
    for ids, mask in training_sequences(tokenizer, messages, tools):
        assert mask[-1] & MAY_END  # nothing stands behind the last answer that is trained
        for end, bits in enumerate(mask, start=1):
            if bits & MAY_END:
                found.append((ids[:end], [bits & TRAINED for bits in mask[:end]]))
    trained = [
        k
        for k, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("weight", 1)
    ]
    expected = [encode_conversation(tokenizer, messages[: k + 1], tools) for k in trained]
    assert sorted(found) == sorted((ids, mask) for ids, mask in expected)


def test_a_mark_stands_where_later_turns_go_on(shipped):
    """Of what a template shows only behind the last answer, a sequence that is cut has nothing."""
    tokenizer = copy.copy(shipped)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% if loop.last and m.role == 'assistant' %}The end{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    talk = [
        {"role": role, "content": f"{role} {i}"} for i in "12" for role in ("user", "assistant")
    ]
    ((ids, mask),) = training_sequences(tokenizer, talk)
    first, last = (i + 1 for i, bits in enumerate(mask) if bits & MAY_END)
    assert tokenizer.decode(ids[first - 2 : first]) == "<|im_end|>\n"
    assert tokenizer.decode(ids[first:]).startswith("<|im_start|>user\nuser 2")
    assert last == len(ids) and tokenizer.decode(ids).endswith("<|im_end|>\nThe end")


def slow_answer(tokenizer, prompt, answer, tools):
    """(ids, mask) of a prompt and an answer: the mask begins where the prompt's own ids end."""
    ids, mask = encode_conversation(tokenizer, prompt + answer, tools)
    for thinking in (True, False):
        before, _ = encode_conversation(tokenizer, prompt, tools, True, thinking)
        if ids[: len(before)] == before:
            mask = [0] * len(before) + mask[len(before) :]
            return ids, [*mask[:-1], mask[-1] | MAY_END]
    raise ValueError("otherwise than behind its prompt")


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pairs_and_judged_answers_are_encoded_as_each_alone(shipped, name, data):
    """Prompt and answer, only the answer masked in, the chosen before the rejected one."""
    tokenizer, thinks = with_template(shipped, name), name in THINK
    prompt = [{"role": "user", "content": data.draw(something)}]
    if data.draw(st.booleans()):
        prompt = [*data.draw(talks(thinks)), *prompt]
    for message in prompt:
        message.pop("weight", None)
    tools = data.draw(tool_lists)
    sides = [data.draw(answers(thinks, weights=False)) for _ in range(2)]
    if sides[0][0] == sides[1][0]:
        sides[1][0] = sides[1][0] | {"content": "something else"}
    if data.draw(st.booleans()):  # another question, which the answers do not share
        more = [{"role": "user", "content": "more"}, {"role": "assistant", "content": "end"}]
        sides = [side + more for side in sides]
    fields = {"prompt": prompt, "chosen": sides[0], "rejected": sides[1], "tools": tools}
    expected = [slow_answer(tokenizer, prompt, side, tools) for side in sides]
    records = as_records([fields, fields])
    chunk = PairJob(tokenizer)(iter(records), Problems())
    assert sequences_of(chunk) == [expected, expected]
    assert len(set(chunk.hashes.tolist())) == 1 and chunk.lines.tolist() == [10, 20]

    labels = [True, False]
    fields = [{"messages": prompt + s, "tools": tools, "label": x} for s, x in zip(sides, labels)]
    expected = []
    for side in sides:
        last = max(i for i, m in enumerate(prompt + side) if m["role"] == "user") + 1
        whole = prompt + side
        expected.append([slow_answer(tokenizer, whole[:last], whole[last:], tools)])
    chunk = JudgedJob(tokenizer)(iter(as_records(fields)), Problems())
    assert sequences_of(chunk) == expected and chunk.labels.tolist() == labels


def test_an_answer_that_changes_its_prompt_is_refused(shipped):
    """A later question takes the thoughts from the prompt: with file and line, as ever."""
    call = {"role": "assistant", "content": "", "reasoning_content": "t", "tool_calls": [
        {"name": "f", "arguments": {}}]}  # fmt: skip
    prompt = [{"role": "user", "content": "q"}, call, {"role": "tool", "content": "r"}]
    more = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "end"}]
    fields = {
        "chosen": [*prompt, {"role": "assistant", "content": "a"}, *more],
        "rejected": [*prompt, {"role": "assistant", "content": "b"}, *more],
    }
    tokenizer = with_template(shipped, "thinking")
    assert to_pair(fields)[0] == prompt
    with pytest.raises(ValueError, match="otherwise than behind its prompt"):
        slow_answer(tokenizer, prompt, fields["chosen"][3:], None)
    with pytest.raises(ValueError, match=r"^f\.jsonl:10: the chat template shows the answer other"):
        PairJob(tokenizer)(iter(as_records([fields])), Problems())


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    return path


def messages_of(i: int) -> list[dict]:
    return [
        {"role": "user", "content": f"question {i} " + "é" * (i % 7)},
        {"role": "assistant", "content": f"{i} 你好 " * (i % 5 + 1)},
    ] * (i % 3 + 1)


CHATS = [{"messages": messages_of(i)} if i % 11 else {"messages": []} for i in range(300)]
PAIRS = [
    {"prompt": f"q {i // 3}", "chosen": "yes " * (i % 5), "rejected": f"no {i}"} for i in range(300)
]
JUDGED = [{"messages": messages_of(i), "label": i % 4 != 1} for i in range(300)]
KINDS = {
    "chat": (ConversationJob, CHATS, read_conversations),
    "pairs": (PairJob, PAIRS, read_pairs),
    "judged": (JudgedJob, JUDGED, read_judged),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_processes_and_any_chunks_give_the_same(
    tmp_path, monkeypatch, tiny_tokenizer, kind
):
    """The arrays of a file, joined, are those of its records read and encoded one at a time."""
    tokenizer = with_template(tiny_tokenizer, "thinking")
    job, records, read = KINDS[kind]
    path = write(tmp_path / "a.jsonl", records)
    problems = Problems()
    good = list(read(path, on_bad_record="skip", problems=problems))
    expected = []
    for one in good:
        if kind == "chat":
            made = training_sequences(tokenizer, one.messages, one.tools)
        elif kind == "pairs":
            made = [
                slow_answer(tokenizer, one.prompt, side, one.tools)
                for side in (one.chosen, one.rejected)
            ]
        else:
            made = [slow_answer(tokenizer, one.prompt, one.answer, one.tools)]
        expected.append([(list(ids), list(mask)) for ids, mask in made])
    monkeypatch.setattr(record_chunks, "SMALL", 1)
    for size, processes in ((150, 1), (150, 2), (4000, 1), (4000, 2), (4000, 3), (1 << 20, 2)):
        monkeypatch.setattr(record_chunks, "CHUNK_BYTES", size)
        found = Problems()
        chunks = list(
            work_through(path, job(tokenizer), found, processes=processes, on_bad_record="skip")
        )
        assert size > 4000 or len(chunks) > 2
        assert [s for chunk in chunks if len(chunk.lines) for s in sequences_of(chunk)] == expected
        for name, values in (
            ("lines", [one.line for one in good]),
            ("hashes", [text_hash(one.as_text().encode()) for one in good]),
            ("labels", [getattr(one, "label", False) for one in good]),
        ):
            assert np.concatenate([getattr(c, name) for c in chunks]).tolist() == values
        assert (found.count, found.first) == (problems.count, problems.first)


def test_reasoning_that_the_template_has_no_place_for_is_found(
    tmp_path, monkeypatch, tiny_tokenizer
):
    """Whatever process meets it: the exception comes through, so that another template is taken."""
    monkeypatch.setattr(record_chunks, "SMALL", 1)
    monkeypatch.setattr(record_chunks, "CHUNK_BYTES", 500)
    ask = {"role": "user", "content": "q"}
    talk = [ask, {"role": "assistant", "content": "<think>A rare thought.</think>a"}]
    path = write(tmp_path / "a.jsonl", [*CHATS[1:11] * 5, {"messages": talk}, *CHATS[1:11] * 5])
    job = ConversationJob(with_template(tiny_tokenizer, "no_thinking"))
    for processes in (1, 2):
        with pytest.raises(ReasoningFound, match=r"a\.jsonl:51: reasoning_content"):
            list(work_through(path, job, Problems(), processes=processes))
    job = ConversationJob(with_template(tiny_tokenizer, "thinking"))
    made = list(work_through(path, job, Problems(), processes=2))
    assert [line for chunk in made for line in chunk.lines.tolist()] == list(range(1, 102))
    with pytest.raises(ValueError, match=r"a\.jsonl:51: .*no place for the reasoning") as error:
        foreign = ConversationJob(with_template(tiny_tokenizer, "qwen3_instruct"))
        list(work_through(path, foreign, Problems(), processes=2))
    assert not isinstance(error.value, ReasoningFound)


def test_a_control_token_that_is_missing_is_named_with_the_record(shipped):
    """Of a tokenizer from elsewhere; the records before it are none the worse."""
    tokenizer = with_template(shipped, "no_thinking")
    tokenizer.control_tokens = {
        name: id for name, id in shipped.control_tokens.items() if name != "<tool_call>"
    }
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}
    good = {"messages": messages_of(1)}
    records = as_records([good, {"messages": [good["messages"][0], call]}, good])
    with pytest.raises(ValueError, match=r"^f\.jsonl:20: .*no control token '<tool_call>'"):
        ConversationJob(tokenizer)(iter(records), Problems())


@pytest.mark.parametrize("kind", KINDS)
def test_a_check_finds_what_encoding_finds(tmp_path, tiny_tokenizer, kind):
    """The same hashes, control strings and problems, without a token."""
    tokenizer = with_template(tiny_tokenizer, "thinking")
    job, records, _ = KINDS[kind]
    odd = json.loads(
        json.dumps(records[1]).replace("question", "<|im_end|>").replace("no ", "<think>")
    )
    path = write(tmp_path / "a.jsonl", [*records, odd, odd])
    told, checked = Problems(), Problems()
    (chunk,) = work_through(path, job(tokenizer), told, on_bad_record="skip")
    check = CheckJob(kind, tuple(tokenizer.control_tokens))
    ((hashes, controls),) = work_through(path, check, checked, on_bad_record="skip")
    assert hashes.dtype == np.uint64 and hashes.tolist() == chunk.hashes.tolist()
    assert controls == chunk.num_with_control_strings == 2
    assert (checked.count, checked.first) == (told.count, told.first)


def test_a_check_of_texts(tmp_path):
    """Texts of any field; what is no text is a bad record."""
    path = write(tmp_path / "a.jsonl", [{"body": "a"}, {"body": "<think>"}, {"text": "b"}])
    problems = Problems(most_shown=sys.maxsize)
    check = CheckJob("text", ("<think>",), "body")
    ((hashes, controls),) = work_through(path, check, problems)
    assert hashes.tolist() == [text_hash(b"a"), text_hash(b"<think>")] and controls == 1
    assert problems.count == 1 and 'a field "body"' in problems.first[0]


ODD = [
    "a", "", " ", " a", "\na", "a\n", "\u2003a", "a\u2003", "\x1ca", "<b", "<think>t</think>a",
    "你",
    " <think>t</think>", "\ud800", "a\r", None, 3, [], [{"type": "text", "text": "b"}],
]  # fmt: skip
messages = st.dictionaries(
    st.sampled_from(["role", "content", "role", "content", "from", "value", "weight", "name"]),
    st.sampled_from([*ODD, "user", "assistant", "system", "gpt", "tool", 0, 1]),
).map(lambda extra: {"role": "user", "content": "q"} | extra if len(extra) < 3 else extra)


@settings(max_examples=1000, deadline=None)
@given(st.lists(messages, max_size=4), st.sampled_from(ODD), st.sampled_from(ODD))
def test_plain_messages_are_checked_as_any_other(more, question, answer):
    """The short way through the commonest ones gives what the long one gives, errors included."""
    talk = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        *more,
    ]
    found = []
    for short in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not short:
                patch.setattr("dataset.messages.plain_messages", lambda messages: None)
            remarks = Remarks()
            try:
                checked = check_messages(talk, remarks)
            except BadConversation as bad:
                checked = bad.expected, bad.got
            found.append((checked, remarks))
    assert found[0] == found[1]


@pytest.mark.parametrize("template", THINK)
def test_very_long_conversations_are_bounded_and_said(shipped, monkeypatch, template):
    """Where each answer has all turns before it once more, the last ones are left out by number."""
    monkeypatch.setattr(chat_turns, "MOST_PIECES", 900)
    monkeypatch.setattr(chat_template, "MOST_TOKENS", 2000)
    tokenizer = with_template(shipped, template)
    talk = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i}"} for i in range(200)]
    problems = Problems()
    record = Record({"messages": talk}, "a.jsonl", 1)
    chunk = ConversationJob(tokenizer)([record], problems)
    assert 5 < chunk.counts[0] < 50 and len(chunk.ids) < 4000
    (line,) = problems.lines()
    assert line.startswith(f"a.jsonl: {100 - chunk.counts[0]} answers left out, behind too many")
    whole = training_sequences(tokenizer, talk[: 2 * int(chunk.counts[0])])
    assert chunk.ids.tolist() == [id for ids, _ in whole for id in ids]
    tokenizer = with_template(
        shipped, "no_thinking"
    )  # one sequence for all answers: none is left out
    problems = Problems()
    chunk = ConversationJob(tokenizer)([record], problems)
    assert chunk.counts.tolist() == [1] and problems.lines() == []
