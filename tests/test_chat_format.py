"""dataset/chat.py against the chat template that transformers renders."""

import shutil
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.chat import encode_conversation
from dataset.tokenizer import load_tokenizer

SHIPPED = Path(__file__).resolve().parent.parent / "model" / "tokenizer"
TOOLS = [{"name": "add", "description": "两数之和", "parameters": {"a": "number", "b": "number"}}]
CALL = {"name": "add", "arguments": {"a": 1, "b": "<二>"}}
CONVERSATIONS = {
    "one turn": [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello.\n"}],
    "system, several turns": [
        {"role": "system", "content": " You are kind. "},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "\n\n  再加一？"},
        {"role": "assistant", "content": "3。"},
    ],
    "thinking": [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4", "reasoning_content": "Two and two.\nFour!"},
    ],
    "tool call": [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"sum": 3}'},
        {"role": "assistant", "content": "It is 3."},
    ],
    "two calls after a remark": [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "Gladly.", "tool_calls": [CALL, {"function": CALL}]},
    ],
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Our tokenizer and transformers' own, both opened from the folder that is shipped."""
    folder = tmp_path_factory.mktemp("tokenizer")
    for file in SHIPPED.iterdir():
        shutil.copy(file, folder)
    return load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_ids_and_mask_are_the_templates(both, name, tools):
    """Same ids as apply_chat_template, same mask as return_assistant_tokens_mask."""
    ours, theirs = both
    ids, mask = encode_conversation(ours, CONVERSATIONS[name], tools)
    expected = theirs.apply_chat_template(
        CONVERSATIONS[name], tools=tools, return_dict=True, return_assistant_tokens_mask=True
    )
    assert ids == expected["input_ids"]
    assert mask == expected["assistant_masks"]


@pytest.mark.parametrize("thinking", [False, True])
def test_generation_prompt_is_the_templates(both, thinking):
    """The opening of the answer, with and without a think block, is the template's."""
    ours, theirs = both
    messages = CONVERSATIONS["one turn"][:1]
    ids, mask = encode_conversation(
        ours, messages, add_generation_prompt=True, enable_thinking=thinking
    )
    assert ids == theirs.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=thinking, return_dict=True
    )["input_ids"]  # fmt: skip
    assert not any(mask)


control_text = st.lists(
    st.one_of(st.text(max_size=5), st.sampled_from(
        ["<|im_end|>", "<|im_start|>", "<think>", "</think>", "<tool_call>", "<|endoftext|>"]
    ))
).map("".join)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(question=control_text, answer=control_text)
def test_contents_never_become_control_tokens(both, question, answer):
    """Whatever users and data write, a turn has its own control tokens and no others."""
    ours, _ = both
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    ids, mask = encode_conversation(ours, messages)
    start, end = ours.control_id("<|im_start|>"), ours.control_id("<|im_end|>")
    controls = set(ours.control_tokens.values())
    assert [i for i in ids if i in controls] == [start, end, start, end]
    said = [i for i, m in zip(ids, mask) if m]
    assert said[-1] == end and ours.decode(said[:-1]) == answer.strip()
