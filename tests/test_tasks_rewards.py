"""tasks/rewards.py: rewards by name and weight, and what happens when one of them fails."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.rewards import (
    CHECKERS,
    CheckedReward,
    check_prompts,
    judged,
    make_rewards,
    paths_in,
)
from tasks.task import Completion, Prompt

FILE = '''
"""A user's own rewards."""
from dataclasses import dataclass

@dataclass
class Settings:
    word: str = "please"

def score(completions):
    return [float(Settings().word in c.text) for c in completions]

def fails(completions):
    raise KeyError("gone")

def odd(completions):
    return [1.0]

def std(completions):
    return [1.0 for _ in completions]

SETTING = 3
'''


def completion(text: str, answer: object = "7", num_ids: int = 5) -> Completion:
    return Completion(Prompt("What is it?", [1], answer), text, text, list(range(num_ids)), False)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my.py"
    path.write_text(FILE)
    return path


def test_names_weights_and_settings(file):
    """Every kind of spec gives its name, its weight and the number it stands for."""
    specs = ["number", "exact=0.5", "length:10:20=0.1", "overlong:2:4=-1", "repetition",
             f"{file}:score=2e-1"]  # fmt: skip
    rewards = make_rewards(specs)
    assert [(name, weight) for name, weight, _ in rewards] == [
        ("number", 1.0), ("exact", 0.5), ("length", 0.1), ("overlong", -1.0), ("repetition", 1.0),
        ("score", 0.2),
    ]  # fmt: skip
    both = [completion("7"), completion("It is 7, please.")]
    sums, parts = judged(rewards, both)
    assert parts == {"number": [1, 1], "exact": [1, 0], "length": [0.5, 0.5], "overlong": [-1, -1],
                     "repetition": [0, 0], "score": [0, 1]}  # fmt: skip
    assert sums == pytest.approx([1 + 0.5 + 0.05 + 1, 1 + 0.05 + 1 + 0.2], abs=1e-12)
    assert judged(rewards, [])[0] == []
    assert {"exact", "values", "number", "choice", "json", "tool_call", "tool_name",
            "think_format", "length", "overlong", "repetition"} == set(CHECKERS)  # fmt: skip


def test_a_reward_model_is_named_by_its_folder():
    """model=FOLDER and model=FOLDER=WEIGHT; a folder may have "=" in its name."""
    seen = []

    def model_reward(folder):
        seen.append(str(folder))
        return lambda completions: [0.25] * len(completions)

    for spec, folder, weight in (
        ("model=out/reward", "out/reward", 1.0), ("model=out/reward=0.5", "out/reward", 0.5),
        ("model=out/a=b", "out/a=b", 1.0), ("model=out/a=b=2", "out/a=b", 2.0),
    ):  # fmt: skip
        ((name, given, reward),) = make_rewards([spec], model_reward=model_reward)
        assert (name, given, seen[-1]) == ("model", weight, folder)
        assert reward([completion("a")]) == [0.25]


BAD = [
    ([], "--reward: expected at least one reward, got none"),
    (["nubmer"], "--reward nubmer: expected one of exact, values, number"),
    (["nubmer=1"], "did you mean 'number'?"), ([""], "expected one of"),
    (["=1"], "expected one of"), (["model=folder"], "no reward model in this script"),
    (["number=one"], "expected a number up to 1,000,000 as the weight, got 'one'"),
    (["number="], "as the weight, got ''"), (["number=nan"], "as the weight, got 'nan'"),
    (["number=1e7"], "as the weight"), (["number", "number=2"], "of the name number already"),
    (["length"], "expected whole numbers from 1 on as LOW:HIGH behind the name, got 0"),
    (["length:5"], "behind the name, got 1"), (["length:a:b"], "behind the name, got 'a:b'"),
    (["length:0:5"], "got '0:5'"), (["length:20:10"], "expected LOW of at most HIGH"),
    (["number:3"], "expected no numbers behind the name, got 1"), (["repetition:0"], "got '0'"),
    (["repetition:" + "9" * 5000], "behind the name"),
    (["none.py:score"], "no such file: none.py"), (["FILE:scroe"], "did you mean 'score'?"),
    (["FILE:SETTING"], "no function 'SETTING'"), (["FILE:Settings"], "no function 'Settings'"),
    (["FILE:"], "no function ''"), (["BROKEN:f"], "ZeroDivisionError: division by zero"),
    (["SYNTAX:f"], "SyntaxError"), (["EXIT:f"], "exit.py: SystemExit: 3"),
    (["PARSES:f"], "parses.py: SystemExit: 2"), (["FILE:std"], "reward_std is another figure"),
]  # fmt: skip


@pytest.mark.parametrize(("specs", "words"), BAD)
def test_a_wrong_spec_is_one_line_with_the_flag(file, tmp_path, specs, words):
    """What is wrong with it, and what there is; nothing of a traceback."""
    contents = {
        "broken": "1 / 0\n", "syntax": "def f(:\n", "exit": "import sys\nsys.exit(3)\n",
        "parses": "import argparse\nargparse.ArgumentParser().parse_args(['--unknown'])\n",
    }  # fmt: skip
    files = {"FILE": file} | {name.upper(): tmp_path / f"{name}.py" for name in contents}
    for name, text in contents.items():
        files[name.upper()].write_text(text)
    for name, path in files.items():
        specs = [spec.replace(name, str(path)) for spec in specs]
    with pytest.raises(ValueError) as raised:
        make_rewards(specs)
    message = str(raised.value)
    assert message.startswith("--reward") and words in message and "\n" not in message


def test_an_error_costs_one_completion_and_is_told_once():
    """A prompt without a right answer gives 0, its neighbours what they deserve."""
    told = []
    ((_, _, reward),) = make_rewards(["number"], report=told.append)
    completions = [completion("7"), completion("7", None), completion("7", "blue"), completion("7")]
    assert reward(completions) == [1, 0, 0, 1] and reward(completions) == [1, 0, 0, 1]
    assert reward.num_failed == 4
    assert told == ["reward number: what it cannot judge counts as 0; first ValueError: expected a "
                    "number as the right answer, got none"]  # fmt: skip


def test_a_users_function_may_do_anything(file, capsys):
    """An exception or a wrong count costs all it was given; the first message goes to stderr."""
    rewards = make_rewards([f"{file}:fails", f"{file}:odd"])
    sums, parts = judged(rewards, [completion("a"), completion("b")])
    assert sums == [0, 0] and parts == {"fails": [0, 0], "odd": [0, 0]}
    judged(rewards, [completion("a"), completion("b"), completion("c")])
    assert [reward.num_failed for _, _, reward in rewards] == [5, 5]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "reward fails: what it cannot judge counts as 0; first KeyError: 'gone'",
        "reward odd: what it cannot judge counts as 0; first ValueError: expected 2 numbers, got 1",
    ]

    def leaves(completions):
        sys.exit()

    def spoils(completions):
        for one in completions:
            one.ids.clear()
        return [completions.pop() and 0.5 for _ in range(len(completions))]

    two = [completion("a", num_ids=2), completion("b", num_ids=1)]
    assert CheckedReward("x", leaves, print)(two) == [0, 0]
    assert CheckedReward("x", spoils, print)(two) == [0.5, 0.5]
    assert [one.ids for one in two] == [[0, 1], [0]]  # what is trained on is not its to change
    with pytest.raises(KeyboardInterrupt):  # a user's Ctrl-C is no mistake of a checker

        def interrupted(completions):
            raise KeyboardInterrupt

        CheckedReward("x", interrupted, print)([completion("a")])


anything = st.one_of(
    st.floats(), st.integers(), st.booleans(), st.none(), st.text(max_size=3),
    st.sampled_from([torch.tensor(0.5), np.float32(2), torch.ones(2), [1], 1j, object(), 10**400]),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(anything, max_size=6), st.integers(0, 6), st.booleans())
def test_whatever_comes_back_is_one_finite_number_each(given_values, count, as_generator):
    """Numbers pass; nan, infinity, text, None, several numbers and wrong counts are 0 and told."""
    told = []

    def reward(completions):
        return iter(given_values) if as_generator else given_values

    checked = CheckedReward("x", reward, told.append)
    scores = checked([completion("a")] * count)
    assert len(scores) == count and all(type(x) is float and math.isfinite(x) for x in scores)
    assert bool(told) == bool(checked.num_failed) and len(told) <= 1
    if len(given_values) == count:
        for value, score in zip(given_values, scores):
            if isinstance(value, int | float) and abs(value) <= 1e6:
                assert score == value
            elif value is None or isinstance(value, int | float | str | list | complex):
                assert score == 0.0


def test_tensors_are_numbers_too():
    """A reward may give a tensor or an array with a number for each."""
    for values in (torch.tensor([0.5, 2.0]), np.array([0.5, 2.0]), (0.5, True + 1)):
        assert CheckedReward("x", lambda _, v=values: v, print)([completion("a")] * 2) == [0.5, 2.0]


def test_what_rewards_name_on_disk(file, tmp_path, monkeypatch):
    """Own files and models' folders that are there; a folder named like a checker is nobody's."""
    (tmp_path / "repetition").mkdir()
    (tmp_path / "judge=2").mkdir()
    monkeypatch.chdir(tmp_path)
    specs = ["number=1", "repetition:3=0.1", "length:1:5", "my.py:score=2", "none.py:score",
             "model=judge=2=0.5", "model=nowhere", "number=much"]  # fmt: skip
    assert [str(path) for path in paths_in(specs)] == ["my.py", "judge=2"]


def test_prompts_that_cannot_be_judged_are_told_before_training():
    """Some: a line. All of them: an error. Rewards that need no answer have nothing to say."""
    prompts = [Prompt("One?", [], "1"), Prompt("What colour?", [], "blue"), Prompt("?", [], None)]
    assert check_prompts(["length:1:2", "think_format=0.1", "my.py:f"], prompts) == []
    assert check_prompts(["number=0.5", "exact"], prompts) == [
        "warning: --reward number: 2 of 3 prompts cannot be judged and count as 0; the first is "
        "'What colour?': expected a number as the right answer, got 'blue'",
        "warning: --reward exact: 1 of 3 prompts cannot be judged and count as 0; the first is "
        "'?': expected a text as the right answer, got none",
    ]
    with pytest.raises(ValueError, match=r"^--reward tool_call: 3 of 3 prompts cannot be judged"):
        check_prompts(["tool_call"], prompts)
