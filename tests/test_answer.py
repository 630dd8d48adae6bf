"""Answers while they are generated: whatever the ids and their pieces, joined they are the answer.

The references are `dataset.chat.parse_answer`, which sees all ids at once, and stop strings looked
for one character at a time.
"""

import copy
import itertools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataset import chat
from dataset.chat import parse_answer, stop_ids
from dataset.messages import normal_content
from dataset.tokenizer import load_tokenizer
from serving.answer import AnswerStream, TextStream, message_of

OURS = load_tokenizer(chat.TEMPLATES)
OURS.chat_template = chat.THINKING
THINK, END_THINK, CALL, END_CALL, END, START, EOS = (
    OURS.control_id(name)
    for name in ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>",
                 "<|im_start|>", "<|endoftext|>")
)  # fmt: skip
ADD = '\n{"name": "add", "arguments": {"a": 1, "b": "二"}}\n'
ODD_CALLS = ["{", '{"name": 3, "arguments": {}}', '{"name": "f"}', '"name"', "[" * 3000, "NaN"]

words = st.sampled_from(
    ["a", " b", "\n", "\n\n", "\r\n", " ", "\t", "。", "小猫", "😀", "STOP", "ST", "OP", "OPS",
     "\u2028", "<think>", "</tool_call>", "\x00", ADD, *ODD_CALLS]
)  # fmt: skip
controls = st.sampled_from([THINK, END_THINK, CALL, END_CALL, END, START, EOS])
BYTES = [OURS.encode_text(character)[0] for character in "😀é\n"]  # the first bytes of some, too
tokens = st.one_of(
    words.map(OURS.encode_text),
    controls.map(lambda id: [id]),
    st.sampled_from(BYTES).map(lambda id: [id]),
    st.integers(0, OURS.vocab_size - 1).map(lambda id: [id]),
    st.just([CALL, *OURS.encode_text(ADD), END_CALL]),
)
bodies = st.lists(tokens, max_size=12).map(lambda parts: [id for part in parts for id in part])
thoughts = bodies.map(lambda ids: [THINK, *ids, END_THINK])
answers = st.one_of(bodies, st.tuples(thoughts, bodies).map(lambda both: both[0] + both[1]))
stops = st.lists(
    st.sampled_from(
        ["STOP", "TO", "S", "\n\n", "\n", " b", "猫", "OPST", "\ufffd", "<tool_call>", " "]
    ), max_size=4,
)  # fmt: skip


def cuts_of(data, ids: list[int]) -> list[list[int]]:
    """The ids in pieces, some of them empty."""
    places = data.draw(st.lists(st.integers(0, len(ids)), max_size=8))
    edges = [0, *sorted(places), len(ids)]
    return [ids[begin:end] for begin, end in itertools.pairwise(edges)]


def streamed(stream, pieces: list[list[int]]) -> list:
    deltas = [delta for piece in pieces for delta in stream.feed(piece)]
    return deltas + stream.finish()


def without(*names: str):
    """A tokenizer for which these are names like any text."""
    tokenizer = copy.copy(OURS)
    kept = {name: id for name, id in OURS.control_tokens.items() if name not in names}
    tokenizer.control_tokens = kept
    return tokenizer


def before_stop(text: str, stop: list[str]) -> tuple[str, bool]:
    """The text up to the stop string that is complete first, and whether there is one."""
    longest = max(map(len, stop), default=0)
    for end in range(len(text) + 1):
        for begin in range(max(0, end - longest), end):
            if text[begin:end] in stop:
                return text[:begin], True
    return text, False


def is_unclosed(ids: list[int]) -> bool:
    while ids and ids[-1] in stop_ids(OURS):
        ids = ids[:-1]
    return ids[:1] == [THINK] and END_THINK not in ids


@settings(max_examples=400, deadline=None)
@given(answers, st.data())
@example([CALL, *OURS.encode_text(ADD), END_CALL, END, END], None)
def test_the_deltas_joined_are_the_parsed_answer(ids, data):
    """For any ids in any pieces; a think block that is never closed is reasoning instead."""
    pieces = cuts_of(data, ids) if data else [ids]
    message = message_of(streamed(AnswerStream(OURS, [], tools=True, thinks=True), pieces))
    if is_unclosed(ids):
        while ids[-1] in stop_ids(OURS):
            ids = ids[:-1]
        reasoning = normal_content(OURS.decode(ids[1:]))
        wanted = {"role": "assistant", "content": ""}
        assert message == wanted | ({"reasoning_content": reasoning} if reasoning else {})
    else:
        assert message == parse_answer(OURS, ids)


@settings(deadline=None)
@given(answers, st.data())
def test_what_is_not_asked_for_stays_content(ids, data):
    """Without tools, calls are text with their marks; without thinking, think blocks are."""
    pieces = cuts_of(data, ids)
    if not is_unclosed(ids):
        message = message_of(streamed(AnswerStream(OURS, [], tools=False, thinks=True), pieces))
        assert message == parse_answer(without("<tool_call>"), ids)
    message = message_of(streamed(AnswerStream(OURS, [], tools=True, thinks=False), pieces))
    assert message == parse_answer(without("<think>"), ids)


@settings(max_examples=400, deadline=None)
@given(answers, stops, st.data())
def test_content_ends_before_the_first_stop_string(ids, stop, data):
    """Behind blank lines at its beginning; reasoning and well-formed tool calls before it stay."""
    stream = AnswerStream(OURS, stop, tools=True, thinks=True)
    message = message_of(streamed(stream, cuts_of(data, ids)))
    if is_unclosed(ids):
        assert not stream.stopped
        return
    whole = parse_answer(OURS, ids)
    while ids and ids[-1] in stop_ids(OURS):
        ids = ids[:-1]
    rest = ids[ids.index(END_THINK) + 1 :] if ids[:1] == [THINK] else ids
    if "tool_calls" in whole:
        rest = rest[: rest.index(CALL)]
    text = OURS.decode(rest)
    front = text[: len(text) - len(text.lstrip())] if text.strip() else text
    begin = text[max(front.rfind("\n"), front.rfind("\r")) + 1 :] if text.strip() else ""
    said, stopped = before_stop(begin, stop)
    assert stream.stopped == stopped
    assert message["content"] == normal_content(said)
    assert message.get("reasoning_content") == whole.get("reasoning_content")
    assert message.get("tool_calls") == (None if stopped else whole.get("tool_calls"))


@settings(max_examples=300, deadline=None)
@given(bodies, stops, st.data())
def test_text_is_shown_whole_and_up_to_a_stop_string(ids, stop, data):
    """A text stream shows what all ids decode to, up to the first stop string, in any pieces."""
    stream = TextStream(OURS, stop)
    pieces = [stream.feed(piece) for piece in cuts_of(data, ids)] + [stream.finish()]
    text, stopped = before_stop(OURS.decode(ids), stop)
    assert "".join(piece.text for piece in pieces) == text and stream.stopped == stopped
    starts = [start for piece in pieces for start in piece.starts]
    assert starts == sorted(starts)
    if not stopped:
        assert len(starts) == len(ids)
        decoder, place = OURS.stream_decoder(), 0
        for id, start in zip(ids, starts):
            assert start == place
            place += len(decoder.decode([id]))
    end = 0
    for piece in [] if stopped else pieces[:-1]:  # a token is told with its first character
        assert all(end <= start < end + len(piece.text) for start in piece.starts)
        end += len(piece.text)


@settings(max_examples=300, deadline=None)
@given(answers, stops, st.data())
def test_every_token_is_covered_once(ids, stop, data):
    """The counts add up to the tokens of the answer; behind a stop string there are none."""
    stream = AnswerStream(OURS, stop, tools=True, thinks=True)
    deltas = streamed(stream, cuts_of(data, ids))
    while ids and ids[-1] in stop_ids(OURS):
        ids = ids[:-1]
    covered = sum(delta.num_tokens for delta in deltas)
    assert covered == len(ids) if not stream.stopped else covered <= len(ids)
    kinds = ["r" if d.reasoning is not None else "c" if d.content is not None else "t"
             for d in deltas]  # fmt: skip
    assert kinds == sorted(kinds, key="rct".index)
    thought = sum(delta.num_tokens for delta in deltas if delta.reasoning is not None)
    if ids[:1] == [THINK]:
        assert thought == (ids.index(END_THINK) + 1 if END_THINK in ids else len(ids))
    called = sum(delta.num_tokens for delta in deltas if delta.tool_calls)
    assert called == 0 or ids[len(ids) - called] == CALL
    said = OURS.decode(ids[thought : covered - called])  # its tokens are its text
    content = "".join(delta.content or "" for delta in deltas)
    assert content in said if stream.stopped else content == normal_content(said)


@settings(deadline=None)
@given(answers, st.lists(st.sampled_from(["STOP", "OPS", "\n\n"]), max_size=2))
def test_token_by_token_nothing_is_shown_that_must_be_taken_back(ids, stop):
    """After each token what was shown begins what the whole answer says: no half characters, no
    beginnings of stop strings, no line breaks at the end, no marks of tool calls."""
    stream = AnswerStream(OURS, stop, tools=True, thinks=True)
    deltas = []
    shown = [""]
    for id in ids:
        deltas += stream.feed([id])
        shown.append(message_of(deltas)["content"])
    whole = message_of(deltas + stream.finish())["content"]
    for content in shown:
        assert whole.startswith(content)
        assert not content.endswith(("\n", "\r"))
        assert not any(s in content for s in stop)


def test_text_comes_as_early_as_it_can():
    """A token whose text is certain is shown at once; only what may change is held back."""
    stream = AnswerStream(OURS, ["STOP"], tools=True, thinks=True)
    shown = []
    for text in ("<think>", "\n", "H", "\n", "</think>", "\n\n", "Y", "\n", "S", "T", "x", " S"):
        id = OURS.control_tokens.get(text)
        for delta in stream.feed([id] if id is not None else OURS.encode_text(text)):
            shown.append((delta.reasoning, delta.content, delta.num_tokens))
    assert shown == [
        ("", None, 1),
        ("H", None, 2),
        ("", None, 2),
        (None, "Y", 2),
        (None, "\nSTx", 4),
        (None, " ", 1),  # and the token's other character may begin a stop string
    ]
    (last,) = stream.finish()
    assert last.content == "S" and last.num_tokens == 0


def test_a_character_cut_between_tokens_is_shown_once_it_is_whole():
    """An emoji of several tokens comes with the last of them, which covers all."""
    single = {OURS.decode([id]): id for id in range(OURS.vocab_size)}
    ids = OURS.encode_text("\U0001f9ff")  # rare: one token for each byte, or nearly
    assert len(ids) > 1 and "\U0001f9ff" not in single
    stream = AnswerStream(OURS, [], tools=True, thinks=True)
    for id in ids[:-1]:
        assert stream.feed([id]) == []
    (delta,) = stream.feed(ids[-1:])
    assert delta.content == "\U0001f9ff" and delta.num_tokens == len(ids)


def test_tool_calls_come_whole_at_the_end():
    """Content before them is shown as it comes; calls cut off or broken are content after all."""
    call = [CALL, *OURS.encode_text(ADD), END_CALL]
    before = [*OURS.encode_text("I add."), *OURS.encode_text("\n")]
    stream = AnswerStream(OURS, ["二"], tools=True, thinks=True)  # not looked for in calls
    assert message_of(stream.feed(before + call)) == {"role": "assistant", "content": "I add."}
    first, second = stream.finish()
    assert first.content == "" and first.num_tokens == 1
    assert second.tool_calls == [{"name": "add", "arguments": {"a": 1, "b": "二"}}]
    assert second.num_tokens == len(call)
    cut = AnswerStream(OURS, ["二"], tools=True, thinks=True)
    message = message_of(streamed(cut, [before + call[:-1]]))
    assert cut.stopped and "tool_calls" not in message
    assert message["content"] == "I add.\n<tool_call>" + ADD[: ADD.index("二")]


def test_json_of_any_depth_is_held_and_refused():
    """A call of 100,000 brackets is text, not an error."""
    ids = [CALL, *OURS.encode_text("[" * 100_000), END_CALL]
    message = message_of(streamed(AnswerStream(OURS, [], tools=True, thinks=True), [ids]))
    assert message["content"].startswith("<tool_call>[[") and json.dumps(message)


def test_calls_that_cannot_be_written_are_text():
    """A lone surrogate, escaped, is in no UTF-8: no client could be sent the call."""
    ids = [CALL, *OURS.encode_text('{"name": "f", "arguments": {"a": "\\ud800"}}'), END_CALL]
    message = message_of(streamed(AnswerStream(OURS, [], tools=True, thinks=True), [ids]))
    assert "tool_calls" not in message and message["content"].startswith("<tool_call>{")
    message["content"].encode("utf-8")


def test_after_a_stop_string_nothing_more_is_said():
    """What is fed behind it, to the end, changes nothing."""
    stream = AnswerStream(OURS, ["b"], tools=True, thinks=True)
    deltas = stream.feed(OURS.encode_text("aabaa"))
    assert stream.stopped and message_of(deltas)["content"] == "aa"
    call = [CALL, *OURS.encode_text(ADD), END_CALL]
    assert stream.feed(call) == [] == stream.finish()
    stream = AnswerStream(OURS, ["\ufffd"], tools=True, thinks=True)  # half a character becomes it
    assert stream.feed([*OURS.encode_text("a"), BYTES[0], *call])[0].content == "a"
    assert message_of(stream.finish()) == {"role": "assistant", "content": ""} and stream.stopped


def test_the_tokens_of_a_stop_string_are_not_covered():
    """One that begins before it is, though a part of its text is not shown."""
    a, sto, p = (OURS.encode_text(text) for text in ("a", "STO", "P"))
    for stop, count in (("STOP", 1), ("TOP", 2)):
        stream = TextStream(OURS, [stop])
        pieces = [stream.feed([id]) for id in a + sto + p]
        assert stream.stopped and "".join(text for text, _ in pieces) == "aSTOP".split(stop)[0]
        assert [start for piece in pieces for start in piece.starts] == list(range(count))


def test_the_stop_string_that_is_complete_first_ends_the_text():
    """In whatever pieces it comes, and though another one began before it."""
    ids = OURS.encode_text("a long STOP")
    for pieces in ([ids], [[id] for id in ids]):
        stream = TextStream(OURS, ["STOP", "TO"])
        assert "".join(stream.feed(piece).text for piece in pieces) == "a long S"


def test_empty_stop_strings_are_refused():
    """They would stop every answer before it begins."""
    with pytest.raises(ValueError, match="not empty"):
        TextStream(OURS, ["a", ""])


def test_base_models_end_at_the_end_of_text(tiny_tokenizer):
    """Without a chat template <|im_end|> is text, and <|endoftext|> ends the answer."""
    ids = [*tiny_tokenizer.encode_text("moon"), tiny_tokenizer.control_id("<|im_end|>")]
    stream = AnswerStream(tiny_tokenizer, [], tools=True, thinks=True)
    assert message_of(streamed(stream, [ids + [tiny_tokenizer.eos_id]]))["content"] == (
        "moon<|im_end|>"
    )
