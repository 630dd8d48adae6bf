"""The short way for messages with nothing to mend: it changes nothing but the time."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataset import conversations, messages
from dataset.conversations import to_conversation
from dataset.messages import BadConversation
from dataset.records import Remarks

TEXTS = st.one_of(
    st.sampled_from(["", " ", "a", " a", "a ", "a\n", "\n a", "\r\n\na", "<think>b</think>a", "无",
                     " 无", " <think>b</think> a", "\u3000a", "a\u2028", None, 3, ["a"]]),
    st.text(max_size=6),
)  # fmt: skip
ROLES = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", "developer", "x"])
MESSAGES = st.one_of(
    st.builds(lambda role, text: {"role": role, "content": text}, ROLES, TEXTS),
    st.builds(lambda role, text: {"from": role, "value": text}, ROLES, TEXTS),
    st.builds(lambda role, text: {"role": role, "content": text, "weight": 0}, ROLES, TEXTS),
    st.builds(lambda role, text: {"role": role, "value": text}, ROLES, TEXTS),
    st.sampled_from([{}, "a", {"human": "a", "assistant": "b"}, {"role": "user", "x": "a"}]),
)
IN_TURN = st.lists(TEXTS, max_size=5).map(
    lambda texts: [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
    ]
)
SYSTEM = st.lists(TEXTS.map(lambda text: {"role": "system", "content": text}), max_size=2)
RECORDS = st.builds(
    lambda name, system, rest, more: {name: system + rest} | more,
    st.sampled_from(["conversations", "messages", "conversation", "text"]),
    SYSTEM,
    st.one_of(IN_TURN, st.lists(MESSAGES, max_size=4)),
    st.sampled_from([{}, {}, {}, {"id": 3}, {"tools": []}]),
)


def outcome(record):
    """What becomes of a record: messages, tools and remarks, or the error."""
    remarks = Remarks()
    try:
        return to_conversation(record, remarks), remarks.lines()
    except BadConversation as bad:
        return bad.expected, bad.got


@settings(max_examples=600, deadline=None)
@given(RECORDS)
@example({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
@example({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": " b"}]})
def test_the_short_way_changes_nothing(record):
    """Messages, tools, remarks and errors are those of the long way, for any record."""
    short = outcome(record)
    plain = messages.plain_messages
    try:
        messages.plain_messages = conversations.plain_messages = lambda _: None
        assert short == outcome(record)
    finally:
        messages.plain_messages = conversations.plain_messages = plain


def test_most_records_take_the_short_way():
    """Both usual forms, with a system message or without."""
    for names, roles in ((("role", "content"), ("system", "user", "assistant")),
                         (("from", "value"), ("system", "human", "gpt"))):  # fmt: skip
        talk = [dict(zip(names, (role, "text"))) for role in roles]
        expected = [{"role": r, "content": "text"} for r in ("system", "user", "assistant")]
        assert messages.plain_messages(talk) == expected
        assert messages.plain_messages(talk[1:]) == expected[1:]


def test_what_cannot_be_a_name_is_refused():
    """A "from" that is a list or an object."""
    for odd in ([], {}, ["user"], 3):
        expected, got = outcome({"messages": [{"from": odd, "value": "a"}]})
        assert expected.startswith("a role of ") and repr(odd) in got
