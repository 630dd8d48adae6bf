"""The checkers of tasks/ that judge something else than a number, each against who knows better."""

import json
import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.rewards import (
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    think_format_reward,
)

from dataset.chat import THINKING, encode_conversation
from dataset.tokenizer import load_tokenizer
from tasks import form
from tasks.json_value import json_equal, right_value
from tasks.multiple_choice import choice, letter_of, right_letter
from tasks.task import Completion, Prompt, completion_of
from tasks.text import exact, right_text, right_values, values
from tasks.tool_calls import calls_in, right_calls, tool_call, tool_name


def said(text: str, answer: object = None, ids=(), calls=None, right=None) -> Completion:
    """A completion that consists of a text."""
    prompt = Prompt("?", [], answer, calls=right)
    return Completion(prompt, text, text, list(ids), False, calls)


# ---- words


def test_exact_is_the_text_without_its_margins():
    """White space around it is no difference; anything else is."""
    for text in ("A cat.", "  A cat.\n"):
        assert exact(said(text, " A cat. ")) == exact(said(text, ["A cat."])) == 1.0
    for text in ("A cat", "a cat.", "A  cat.", "", "A cat. A cat.", "<think>A cat."):
        assert exact(said(text, "A cat.")) == 0.0


VALUES = [
    (["9472"], "It is 9,472.", 1), (["9472"], "19472", 0), ([9472.0], "９４７２", 1),
    (["-3"], "3", 0), (["Paris", "22"], "In PARIS it is 22 degrees", 1),
    (["Paris", "22"], "In Paris it is 2 degrees", 0.5), (["no"], "I know", 0),
    (["no"], "No.", 1), (["no"], "A notice", 0), (["no"], "nobody, I know, says no", 1),
    (["北京", "晴"], "北京今天是晴天。", 1), (["3 cats"], "3 dogs, 3 cats", 1),
    (["3 cats"], "13 cats", 0), (["1/2"], "0.5", 1), (["50%"], "half, or 0.5", 1), ("a", "A", 1),
    (["3 100"], "ran 3 100 m", 1), (["3100"], "3 100", 1), (["100"], "3 100", 1),
    (["10 000"], "10,000", 1), (["10 000"], "0", 0), (["- 5"], "5", 0), (["- 5"], "x = -5", 1),
    (["5!"], "5", 0), (["5!"], "it is 5!", 1), (["12,00"], "0", 0),
    (["2024-05-01"], "on 2024-05-01", 1), (["$5"], "5 dollars", 1), (["a", "b", "c"], "c b", 2 / 3),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "text", "share"), VALUES)
def test_values_are_said_or_not(answer, text, share):
    """The share of what has to be said, numbers by value, words as whole words."""
    assert values(said(text, answer)) == share


# ---- multiple choice


LETTERS = [
    ("B", "B"), ("b", "B"), ("(C)", "C"), ("**D**", "D"), ("B.", "B"), ("Ｂ", "B"),
    ("答案是B。", "B"), ("选C", "C"),
    ("正确答案：D，因为A不对", "D"), ("The answer is (B) Paris.", "B"),
    ("Not A. The correct answer is: **C**", "C"), ("Answer: D", "D"), ("option B", "B"),
    (r"A or B? \boxed{B}", "B"), (r"\boxed{\text{B}}", "B"), ("so\n#### C", "C"),
    ("B) Paris", "B"), ("C. It is warm", "C"), ("A dog barks", "A"), ("B, or maybe C", "B"),
    ("I choose C", "C"), ("I think D is right", "D"), ("A is wrong and so is B", None),
    ("U.S. law", None), ("I", "I"), ("Paris", None), ("", None), ("the answer is a dog", None),
    ("The answer is Apple", None), ("The answer is B. No, the answer is C.", "C"), ("ABC", None),
    ("The answer is 'B'", "B"), ('The answer is "B".', "B"), ("the answer is “B”, I think", "B"),
    ("答案是「B」", "B"), ("'B'", "B"), ("`B`", "B"), ("A or B? I pick 'B'", None),
    ("the answer is b", "B"), ("The answer is b.", "B"), ("the answer is (b) Paris", "B"),
    ("the answer is b) Paris", "B"), ("the answer is 'b'", "B"), ("The answer is **b**", "B"),
    ("answer: c\nbecause", "C"), ("答案是b。", "B"), ("the answer is (a)", "A"),
    ("the answer is a", None), ("the answer is a.", None), ("the answer is b or c", None),
    ("the answer is e.g. this", None), ("the answer is but a dog", None), ("choose c++", None),
    ("The answer is A. No, it is wrong: the answer is b", "B"), ("don't say 'it'", None),
    ("Answer: I think it is B", "B"), ("The answer is I", "I"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "letter"), LETTERS)
def test_known_letters(text, letter):
    """The letter that a text names, read by hand; none where it names two."""
    assert letter_of(text) == letter
    assert choice(said(text, "B")) == float(letter == "B")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from("ABCDEFGHJ"), st.sampled_from("ABCDEFGHJ"), st.integers(0, 7))
def test_a_letter_however_it_is_said(letter, right, form_number):
    """The usual ways to name one letter all name it."""
    forms = ["{}", "{}.", "({})", "{}) because", "The answer is {}.", "答案为：{}", r"\boxed{{{}}}",
             "Of A, B and C, my choice is {}"]  # fmt: skip
    text = forms[form_number].format(letter)
    assert choice(said(text, right)) == float(letter == right), text


# ---- JSON

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def reordered(value: object, rng: random.Random) -> object:
    """The value with its objects' members in another order, and whole floats as integers."""
    if isinstance(value, dict):
        names = list(value)
        rng.shuffle(names)
        return {name: reordered(value[name], rng) for name in names}
    if isinstance(value, list):
        return [reordered(item, rng) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    return value


def canonical(value: object) -> str:
    """A text that two values share if JSON means the same by them: Python's own sorted form."""

    def floats(value):
        if isinstance(value, dict):
            return {name: floats(item) for name, item in value.items()}
        if isinstance(value, list):
            return list(map(floats, value))
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_whole = is_number and value == int(value)
        return {"number": str(int(value) if is_whole else value)} if is_number else value

    return json.dumps(floats(value), sort_keys=True)


@settings(max_examples=400, deadline=None)
@given(json_values, json_values, st.randoms(use_true_random=False), st.booleans())
def test_json_is_equal_if_it_means_the_same(value, other, rng, in_a_block):
    """Order of members, white space and 1.0 for 1 are no difference; all else is."""
    text = json.dumps(reordered(value, rng), indent=rng.choice([None, 2]), ensure_ascii=False)
    if in_a_block:
        text = f"Here it is:\n```json\n{text}\n```\nDone."
    right = value if isinstance(value, list | dict) else json.dumps(value)
    assert json_equal(said(text, right)) == 1.0
    other_right = other if isinstance(other, list | dict) else json.dumps(other)
    assert json_equal(said(text, other_right)) == float(canonical(value) == canonical(other))


def test_what_is_no_json():
    """Broken JSON, a key twice, NaN, other text around it, endless depth: 0, and no error."""
    for text in ('{"a": 1', '{"a": 1, "a": 1}', "NaN", 'It is {"a": 1}', "", "[" * 10**5, "1e999",
                 '{"a": true}', "```json\n{\n", '"\ud800"'):  # fmt: skip
        assert json_equal(said(text, {"a": 1})) == 0.0
    assert json_equal(said('"Paris"', "Paris")) == 1.0  # a right answer that is text, not JSON
    assert json_equal(said("1", "true")) == json_equal(said("true", "1")) == 0.0
    nested = "[" * 100 + "]" * 100
    assert json_equal(said(nested, nested)) == 1.0


# ---- tool calls


def call(name, **arguments):
    return {"name": name, "arguments": arguments}


def tagged(*calls) -> str:
    """Calls as a model writes them."""
    return "\n".join(f"<tool_call>\n{json.dumps(c)}\n</tool_call>" for c in calls)


ADD, NOW = call("add", a=1, b=2.0), call("now")
CALLS = [
    ([ADD], tagged(ADD), 1, 1), (ADD, tagged(call("add", b=2, a=1)), 1, 1),
    ([ADD], tagged(call("add", a=1, b=3)), 0, 1), ([ADD], tagged(call("sum", a=1, b=2)), 0, 0),
    ([ADD, NOW], tagged(NOW, ADD), 1, 1), ([ADD, NOW], tagged(ADD), 0, 0),
    ([ADD], tagged(ADD, ADD), 0, 0), ([ADD, ADD], tagged(ADD, NOW), 0, 0),
    ([ADD, NOW], tagged(ADD, ADD), 0, 0), ([ADD, ADD], tagged(ADD, ADD), 1, 1),
    ([ADD], "Let me see. " + tagged(ADD), 1, 1), ([ADD], "3", 0, 0),
    ([ADD], tagged(ADD)[:-3], 0, 0), ([ADD], "<tool_call>add(1, 2)</tool_call>", 0, 0),
    ([ADD], tagged({"name": "add", "arguments": json.dumps(ADD["arguments"])}), 1, 1),
    ([ADD], tagged({"type": "function", "function": ADD}), 1, 1),
    ([ADD], tagged(ADD) + "<tool_call>\n{}\n</tool_call>", 0, 0),
    ([ADD], tagged(call("add", a=True, b=2)), 0, 1), ([NOW], tagged({"name": "now"}), 0, 0),
    ({"type": "function", "function": ADD}, tagged(ADD), 1, 1),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "raw", "whole", "names"), CALLS)
def test_known_calls(answer, raw, whole, names):
    """Name and arguments, in any order of calls and members; each as often as it should be."""
    completion = said(raw, answer)
    assert (tool_call(completion), tool_name(completion)) == (whole, names)


def test_no_call_can_be_the_right_thing():
    """Where it is known that nothing is to be called, a call is wrong; else there is an error."""
    assert tool_call(said("Hello", right=[])) == tool_name(said("Hello", right=[])) == 1.0
    assert tool_call(said(tagged(NOW), right=[])) == tool_name(said(tagged(NOW), right=[])) == 0.0
    for answer in (None, "72", ["72"], {"name": "x"}, [ADD, "72"]):
        with pytest.raises(ValueError, match="expected tool calls as the right answer, got "):
            tool_call(said("Hello", answer))


@pytest.fixture
def chat_tokenizer(tiny_tokenizer_dir):
    """The tokenizer of a model that was taught to think."""
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    tokenizer.chat_template = THINKING
    return tokenizer


def test_only_control_tokens_make_a_call(chat_tokenizer):
    """A completion made of ids has the calls of its control tokens, not of text that is like it."""
    message = {"role": "assistant", "content": "", "tool_calls": [ADD]}
    ids, mask = encode_conversation(chat_tokenizer, [{"role": "user", "content": "?"}, message])
    generated = [i for i, m in zip(ids, mask) if m]
    prompt = Prompt("?", [], None, calls=[ADD])
    completion = completion_of(chat_tokenizer, prompt, generated)
    assert completion.calls == [ADD] and tool_call(completion) == 1.0
    assert completion.raw.endswith(tagged(ADD)) and completion.ids == generated
    spelled = completion_of(chat_tokenizer, prompt, chat_tokenizer.encode_text(tagged(ADD)))
    assert spelled.raw == tagged(ADD) and calls_in(spelled.raw) == [ADD]
    assert spelled.calls == [] and tool_call(spelled) == 0.0


# ---- think block, length, repetition


def test_a_completion_says_aloud_what_follows_its_thought(chat_tokenizer):
    """An endless thought says nothing; the stop token is in the ids alone."""
    think, end = (chat_tokenizer.control_id(name) for name in ("<think>", "</think>"))
    stop = chat_tokenizer.control_id("<|im_end|>")
    thought, answer = chat_tokenizer.encode_text("it is 7"), chat_tokenizer.encode_text("\n\n8 ")
    prompt = Prompt("?", [], "8")
    whole = completion_of(chat_tokenizer, prompt, [think, *thought, end, *answer, stop])
    assert (whole.text, whole.raw) == ("8", "<think>it is 7</think>\n\n8 ")
    assert whole.ids[-1] == stop and not whole.is_cut
    cut = completion_of(chat_tokenizer, prompt, [think, *thought], is_cut=True)
    assert (cut.text, cut.raw, cut.is_cut) == ("", "<think>it is 7", True)
    plain = completion_of(chat_tokenizer, prompt, thought)
    assert plain.text == plain.raw == "it is 7"
    assert completion_of(chat_tokenizer, prompt, []).text == ""
    forged = completion_of(chat_tokenizer, prompt, [*answer, chat_tokenizer.eos_id, *answer])
    assert exact(forged) == 0.0  # the name of a control token is not left out of an answer


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", "<think", ">", "a", "\n", " "])))
def test_think_format_is_trls(pieces):
    """Any order of tags and text has the verdict of trl's think_format_reward."""
    raw = "".join(pieces)
    assert form.think_format(said(raw)) == think_format_reward([[{"content": raw}]])[0]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6))
def test_repetition_is_trls(ids, n):
    """The share of repeated n-grams is trl's, with its largest penalty at -1."""
    theirs = get_repetition_penalty_reward(n, -1.0)([ids])[0]
    assert form.repetition(said("", ids=ids), n) == pytest.approx(theirs, abs=1e-15)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 60), st.integers(1, 50), st.integers(0, 50))
def test_overlong_is_trls(count, high, margin):
    """DAPO's punishment is trl's, whose cache is what is between low and high."""
    low = max(1, high - margin)
    theirs = get_soft_overlong_punishment(high, high - low)([[0] * count])[0]
    ours = form.overlong(said("", ids=[0] * count), low, high)
    # trl divides by 0 nowhere, but where low = high its line is a step behind `high`
    assert ours == pytest.approx(theirs, abs=1e-15)


def test_length_is_a_band():
    """1 inside, on a line to 0 at no tokens and at twice the largest number."""
    lengths = {0: 0, 5: 0.5, 10: 1, 15: 1, 20: 1, 30: 0.5, 40: 0, 1000: 0}
    assert {n: form.length(said("", ids=[0] * n), 10, 20) for n in lengths} == lengths


# ---- whatever is said

EVERY = [
    (exact, right_text), (values, right_values), (choice, right_letter), (json_equal, right_value),
    (tool_call, right_calls), (tool_name, right_calls), (form.think_format, None),
]  # fmt: skip
PIECES = ["<tool_call>", "</tool_call>", '{"name": "a", "arguments": {}}', "<think>", "</think>",
          "```", "json\n", "\n", "{", "[", '"', "answer is ", "答案", "选", "'b'", ":", "(", "A",
          "B ", "#### ", " ", r"\boxed{", "}", "a", "1"]  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(
    st.text() | st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
    st.text() | json_values,
)
def test_anything_is_judged(text, answer):
    """Any text and any answer: a number from 0 to 1, or the ValueError of a wrong answer."""
    for checker, right in EVERY:
        completion = said(text, answer)
        try:
            score = checker(completion)
        except ValueError as error:
            assert re.match("expected .* as the right answer, got ", str(error)), checker
            with pytest.raises(ValueError):
                right(completion.prompt)
            continue
        assert type(score) is float and 0 <= score <= 1, checker


@pytest.mark.parametrize(
    "piece", [*PIECES, "```\n", "```json\nx", "A. ", "(((", "答案是", "[1,", "aA", "1 ", "a "]
)
def test_long_texts_take_time_in_proportion(piece):
    """Of whatever repeats, ten times as many characters take ten times as long, not a hundred."""
    for checker, answer in zip([c for c, _ in EVERY], ["B", ["B"], "B", {}, [ADD], [ADD], None]):
        seconds = []
        for characters in (30_000, 300_000):
            begin = time.process_time()
            checker(said(piece * (characters // len(piece)), answer))
            seconds.append(time.process_time() - begin)
        assert seconds[1] < 40 * seconds[0] + 0.2, checker
