"""tasks/number.py: the value of a number however it is written, and which number is the answer."""

import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.number import all_numbers, number, number_of, right_number
from tasks.task import Completion, Prompt

WIDE = str.maketrans("0123456789.,-+$%", "０１２３４５６７８９．，－＋＄％")


def judge(said: str, answer: object) -> float:
    """What the checker gives for a text."""
    return number(Completion(Prompt("?", [], answer), said, said, [], False))


KNOWN = [
    ("3 + 4 = 7.", 7), ("3 + 4 = 7。", 7), ("1,200", 1200), ("$1,200", 1200), ("1200.0", 1200),
    ("１，２００", 1200), ("￥１，２００元", 1200), ("一共3，4个", 4), ("-5", -5), ("−5", -5),
    ("10-5", 5), ("10 - 5", 5), ("x = -$5.50", "-5.5"), ("$-5.50.", "-5.5"), ("(-3)", -3),
    ("3,4,5", 5), ("1,2345", 2345), ("12,345,678.90 in all", "12345678.9"), ("3/4", "3/4"),
    ("-3/4", "-3/4"), ("1 1/2", "3/2"), ("48/2", 24), ("3 / 4 cups", "3/4"), (".5", ".5"),
    ("1.5e3", 1500), ("2E-3", ".002"), ("5km", 5), ("the 3rd", 3), ("42,", 42), ("7/0", None),
    (r"\frac{3}{4}", "3/4"), (r"-\dfrac{3}{4}", "-3/4"), (r"\frac12", "1/2"),
    (r"1\frac{1}{2}", "3/2"), (r"1{,}000", 1000), (r"1,\!000", 1000), (r"\$18\%", 18),
    ("first 5, then 6\n#### 72", 72), ("#### -1,080\nand 3 more", -1080), ("#### $5", 5),
    ("#### Step 2\nIt is 9", 9), ("12\n####\n13", 13),
    (r"It is \boxed{42}, not 43", 42), (r"\boxed{1} or \boxed{2}", 2),
    (r"\boxed{x = 5 \text{ km}}", 5), (r"\boxed{\$1,200}", 1200), (r"\boxed{\text{3 cats}: 4}", 4),
    (r"\boxed{5\sqrt{2}} 5", None), (r"\boxed{(3, 4)}", None), (r"\boxed{10^{3}}", None),
    (r"\boxed{} 7", None), (r"\boxed{7", 7), (r"\boxed{45^\circ}", 45), ("10^3", None),
    ("CO2", None), ("(3)-2", 2), ("5%-3", 3), ("1e999", None), ("#### 1\n#### 2", 2),
    (r"\boxed{5x}", None), (r"\boxed{5!}", None), (r"\boxed{5i}", None), (r"\boxed{n/5}", None),
    (r"\boxed{5xy}", None), (r"\boxed{5 x}", None), (r"\boxed{5π}", None), (r"\boxed{f(5)}", None),
    (r"\boxed{x < 5}", None), (r"\boxed{|-5|}", None), (r"\boxed{0.33...}", None), ("5!", 5),
    (r"\boxed{-(5)}", None), (r"\boxed{log 5}", None), (r"\boxed{(x, 5)}", None),
    (r"\boxed{3万}", None), (r"\boxed{5\text{ million}}", None), (r"\boxed{\text{72}^2}", None),
    (r"\boxed{5 km}", 5), (r"\boxed{5m}", 5), (r"\boxed{5 apples}", 5), (r"\boxed{约5千米}", 5),
    (r"\boxed{\text{72}}", 72), (r"\boxed{\text{-72 km}}", -72), (r"\boxed{\mathbf{72}}", 72),
    (r"\boxed{5\text{ cm}^2}", 5), (r"\boxed{f(x) = 5}", 5), (r"\boxed{5 = x}", 5),
    (r"\boxed{5th}", 5),
    (r"\boxed{- 5}", -5), (r"\boxed{x = - 5}", -5), ("x = - 5", -5), ("x =- 5", -5),
    (r"\boxed{- \frac{3}{4}}", "-3/4"), (r"\boxed{-\ \$5}", -5), (r"\boxed{10 - 5}", None),
    ("#### - 5", -5), ("- 5", -5), ("a list:\n- 5", 5), ("x - 5", 5), ("- 4\n- 5", 5),
    ("–3", -3), ("It is –3.", -3), ("(–3)", -3), ("3–5", 5), ("3 – 5", 5), ("Mon–3", 3),
    (r"\boxed{–3}", -3), ("#### – 3", -3), ("＝–3", -3), (r"–\frac{1}{2}", "-1/2"),
    ("#### 10 000", 10000), (r"\boxed{10 000}", 10000), (r"\boxed{-1\ 200\ 000.5}", "-1200000.5"),
    ("10 000", 10000), ("It costs 10 000 dollars", 10000), ("ran 3 100 m", 100),
    ("#### 10 0000", 10), ("#### 5 10 000", 5), (r"\boxed{1 300/400}", "7/4"),
    ("10\u202f000 in all", 10000), ("10\u2009000 in all", 10000), ("#### 10\u00a0000", 10000),
    ("1,20,000", 120000), ("1,23,45,678.5", "12345678.5"), ("1,2,000", None), ("12,00", None),
    ("5, then 12,00", None), ("1'000", 1000), ("1’000", 1000), ("1_000", 1000),
    ("1.000.000", 1000000), ("x_1", None), ("none", None), ("", None),
    ("seven", None), ("三", None), ("1e999999999", None),
    ("9" * 1001, None), ("1.2.3", 3), ("٣", 3), ("½", None), ("3²", 3), ("#### ", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), KNOWN)
def test_known_numbers(text, value):
    """The answer's number in a text, written down by hand; None where there is none."""
    found = number_of(text)
    assert (found and found.value) == (None if value is None else Fraction(value))


decimals = st.decimals(-(10**12), 10**12, places=3) | st.integers(-(10**15), 10**15).map(Decimal)
around = st.sampled_from(
    ["{}", "It is {}.", "3 apples and 4 pears: {}", "答案是{}。", "a\n#### {}\nb 5", "**{}**",
     r"so \boxed{{{}}}, as 7 said", "= {}", "（{}）", "{} km", "{}.", "({})"]
)  # fmt: skip


def written(value: Decimal, style: int) -> str:
    """A number as people write it, in one of 16 ways."""
    text = f"{abs(value):,}" if style & 1 else f"{abs(value):f}"
    if style & 2:
        text += "" if "." in text else ".0"
    sign = "-" if value.is_signed() and value else ""
    text = f"{sign}${text}" if style & 4 else sign + text
    return text.translate(WIDE) if style & 8 else text


@settings(max_examples=600, deadline=None)
@given(decimals, st.integers(0, 15), around, st.integers(0, 15))
def test_a_number_is_its_decimal_value_however_it_is_written(value, style, form, other_style):
    """Thousands, full width, currency and zeros change nothing; the next number is another one."""
    said = form.format(written(value, style))
    assert number_of(said).value == Fraction(value)
    assert judge(said, written(value, other_style)) == 1.0
    assert judge(said, written(value + Decimal("0.001"), other_style)) == 0.0
    assert judge(said, written(-value, other_style)) == float(value == 0)


@settings(max_examples=300, deadline=None)
@given(st.fractions(-1000, 1000, max_denominator=999), around)
def test_fractions_are_exact(value, form):
    """a/b, \\frac{a}{b} and mixed numbers have the value of Python's Fraction."""
    top, bottom = abs(value.numerator), value.denominator
    sign = "-" if value < 0 else ""
    forms = [f"{sign}{top}/{bottom}", rf"{sign}\frac{{{top}}}{{{bottom}}}"]
    whole, rest = divmod(top, bottom)
    if whole and rest:
        forms += [f"{sign}{whole} {rest}/{bottom}", rf"{sign}{whole}\tfrac{{{rest}}}{{{bottom}}}"]
    for text in forms:
        assert number_of(form.format(text)).value == value, form.format(text)
        assert judge(form.format(text), str(value)) == 1.0


@settings(max_examples=200, deadline=None)
@given(st.decimals(0, 1000, places=2))
def test_a_percentage_is_its_number_and_its_hundredth(value):
    """20% is 20%, 20 and 0.2, and nothing else; without the sign 20 is not 0.2."""
    hundredth = Fraction(value) / 100
    for text in (f"{value}%", f"{value} %", rf"\boxed{{{value}\%}}", f"{value}％"):
        assert judge(text, f"{value}") == judge(text, str(hundredth)) == 1.0
        assert judge(f"{value}", text) == judge(str(hundredth), text) == 1.0
        assert judge(text, str(Fraction(value) * 100 + 1)) == 0.0
    if value:
        assert judge(f"{value}", str(hundredth)) == 0.0


def test_numbers_of_python_are_right_answers_too():
    """An answer may be a JSON number, or a list with one; another kind is refused in one line."""
    for answer in (1200, 1200.0, "1,200", [1200], ["$1,200"]):
        assert judge("1200", answer) == 1.0
    for answer in (None, "blue", ["1", "2"], {}, True, []):
        with pytest.raises(ValueError, match="expected a number as the right answer, got "):
            right_number(Prompt("?", [], answer))


PIECES = ["1", "23", ",", ".", "/", " ", "-", "e", "^", "%", "$", "{", "}", r"\frac", r"\boxed{",
          r"\text{", "####", "\n", "，", "５", "a", "_", "\\"]  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.text() | st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_any_text_is_judged(text):
    """Whatever is said: 0 or 1, and every number found is one that Python can add."""
    assert judge(text, "7") in (0.0, 1.0) and judge("7", "7") == 1.0
    assert all(isinstance(found.value + 1, Fraction) for found in all_numbers(text))


@pytest.mark.parametrize(
    "piece",
    [*PIECES, "1,", "1,234", "1/2", "1 1/2 ", "9.", "1e400 ", "1e9", r"\frac{1}{", r"\frac{1}{2}",
     r"\frac{" + "1" * 90, r"\text{a", r"\boxed{1}", "#### 1\n", "５，５５５", "- ", "=  ",
     "1 000 ", "1 234 ", "–", "1'000", "'000", "1.000.", "\u202f000", "1,20,", r"\text{5}^",
     "=5", "** "],
)  # fmt: skip
def test_long_texts_take_time_in_proportion(piece):
    """300,000 characters of whatever repeats are read in no more than two seconds of CPU."""
    text = piece * (300_000 // len(piece))
    begin = time.process_time()
    judge(text, "7")
    judge(text + r" \boxed{7}", "7")
    assert time.process_time() - begin < 2


def test_agrees_with_math_verify():
    """Where Hugging Face's checker reads a number in a box, ours gives the same verdict.

    trl's accuracy_reward calls it. Values that are not numbers are its business alone.
    """
    pytest.importorskip("math_verify")
    from math_verify import parse, verify

    forms = ["72", "-72", "72.0", "1,200", "1200", r"\frac{3}{4}", "0.75", "3/4", r"-\frac{3}{4}",
             r"20\%", "20", "0.2", r"\$1{,}200", "0.12", "12", r"1200\text{ dollars}", "+5", "5",
             r"1\frac{1}{2}", "1.5", r"\frac{3}{2}", r"5^{\circ}", r"50\text{ cm}", "x=5",
             r"\frac{10}{4}", "2.5", "-2.5", "1,000,000", "1000000", r"5\%", "0.05", ".5", "(5)",
             r"\frac12", "3/6", r"100\%", "1", r"2\sqrt{3}", r"\pi", "- 5", "x = - 5", "5x", "5!",
             "5i", "n/5", "5 km", "5m", "x < 5", "1'200"]  # fmt: skip
    texts = {form: rf"The answer is \boxed{{{form}}}." for form in forms}
    parsed = {form: parse(text) for form, text in texts.items()}
    for right in forms:
        gold = parse(rf"\boxed{{{right}}}")
        for said, text in texts.items():
            if number_of(text) and number_of(rf"\boxed{{{right}}}"):
                verdict = float(verify(gold, parsed[said]))
                assert judge(text, rf"\boxed{{{right}}}") == verdict, (right, said)
