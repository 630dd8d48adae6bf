"""Conversations that ask the calculator: what `train_grpo.py --tools calculator` begins with.

Of `sft.jsonl` few conversations call a tool, and none the calculator as `tools/` describes it. What
a model never does, no reward can make likelier; after these it calls and copies often enough. The
words are those of the training files, the held-out ones are in none. Numbers go up to 20 with every
operator, so that an expression can only be copied: of the demo's own sums the numbers tell, or
nearly, which operator stands between them.
"""

import random

from dataset.demo_text import arithmetic
from dataset.demo_text.arithmetic import Sum
from dataset.demo_text.changing import LANGUAGES
from dataset.demo_text.choosing import below, make_rng, pick
from tools.calls import TOOLS, call

COUNT = 300
LARGEST = 20
NAME = "calculator"


def _equation(rng: random.Random) -> Sum:
    a, b = 1 + below(rng, LARGEST), 1 + below(rng, LARGEST)
    operator = pick(rng, "+-×")
    if operator == "-":
        a, b = max(a, b), min(a, b)
    return Sum(a, operator, b, {"+": a + b, "-": a - b, "×": a * b}[operator])


def calculator_conversations(seed: int) -> list[dict]:
    """Return the records of `calculator.jsonl`: a question, a call, its result, the answer."""
    rng = make_rng(seed, "calculator")
    records = []
    for _ in range(COUNT):
        lang, equation = pick(rng, LANGUAGES), _equation(rng)
        arguments = {"expression": equation.left}
        messages = [
            {"role": "user", "content": pick(rng, arithmetic.training_questions(equation, lang))},
            {"role": "assistant", "content": "",
             "tool_calls": [{"name": NAME, "arguments": arguments}]},
            {"role": "tool", "content": call(NAME, arguments)},
            {"role": "assistant", "content": arithmetic.answer(equation, lang)},
        ]  # fmt: skip
        records.append({"conversations": messages, "tools": [TOOLS[NAME].description]})
    return records
