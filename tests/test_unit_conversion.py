"""Units against what other tables say of them, exactly."""

import json
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.unit_conversion import ANY_CASE, EXACT, UNITS, convert_units, converted

# What a unit of this many is, worked out elsewhere: (value, unit, value, unit)
EQUAL = [
    (1, "mile", 1760, "yard"), (1, "yard", 3, "feet"), (1, "foot", 12, "inches"),
    (1, "inch", 25.4, "mm"), (1, "nautical mile", 1.852, "公里"), (1, "里", 500, "米"),
    (1, "里", 150, "丈"), (1, "丈", 10, "尺"), (1, "尺", 10, "寸"), (1, "m", 3, "尺"),
    (1, "μm", 1000, "nm"), (5, "dm", 50, "厘米"), (1, "千米", 10000, "分米"),
    (1, "pound", 16, "oz"), (1, "stone", 14, "lb"), (1, "short ton", 2000, "lb"),
    (1, "long ton", 2240, "磅"), (1, "lb", 453.59237, "g"), (1, "吨", 2000, "斤"),
    (1, "斤", 10, "两"), (1, "kg", 10**9, "µg"), (3, "mg", 3000, "mcg"),
    (0, "°C", 273.15, "K"), (100, "摄氏度", 212, "华氏度"), (-40, "C", -40, "F"),
    (32, "℉", 0, "℃"), (0, "K", -459.67, "fahrenheit"), (98.6, "F", 37, "celsius"),
    (1, "week", 168, "小时"), (1, "天", 86400, "秒"), (1, "h", 60, "分钟"), (1, "ms", 1000, "us"),
    (1, "us", 1000, "ns"), (2, "周", 14, "days"),
    (1, "公顷", 15, "亩"), (1, "square mile", 640, "acres"), (1, "acre", 4840, "sq yd"),
    (1, "sq yd", 9, "sq ft"), (1, "ft²", 144, "in^2"), (1, "km2", 100, "hectares"),
    (1, "m²", 10000, "cm²"), (1, "cm2", 100, "mm2"), (1, "平方公里", 10**6, "平方米"),
    (1, "gallon", 231, "cubic inches"), (1, "gallon", 4, "quarts"), (1, "quart", 2, "pints"),
    (1, "pint", 2, "cups"), (1, "cup", 8, "fl oz"), (1, "fluid ounce", 2, "tbsp"),
    (1, "tbsp", 3, "tsp"), (1, "barrel", 42, "gallons"), (1, "imperial gallon", 8, "imperial pint"),
    (1, "imperial gallon", 4.54609, "L"), (1, "立方米", 1000, "升"), (1, "升", 1000, "cm³"),
    (1, "cubic foot", 1728, "cubic inch"), (1, "litre", 100, "cl"), (1, "毫升", 1, "cc"),
    (36, "km/h", 10, "m/s"), (1, "mph", 1.609344, "公里/小时"), (1, "knot", 1.852, "km/h"),
    (15, "mph", 22, "ft/s"),
    (1, "byte", 8, "bits"), (1, "MB", 8, "Mb"), (1, "kB", 8, "kb"), (1, "Gbit", 125, "MB"),
    (1, "GiB", 1024**3, "bytes"), (1, "TiB", 1024, "GiB"), (1, "MiB", 1024, "kib"),
    (1, "PiB", 1024, "TiB"), (1, "PB", 1000, "TB"), (1, "TB", 1000, "GB"), (1, "字节", 8, "比特"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "unit", "other_value", "other_unit"), EQUAL)
def test_units_are_what_the_tables_say(value, unit, other_value, other_unit):
    """Exactly, in both directions."""
    other, unit_value = Fraction(str(other_value)), Fraction(str(value))
    assert converted(value, unit, other_unit)[0] == other
    assert converted(other_value, other_unit, unit)[0] == unit_value


def test_every_unit_is_in_a_table():
    """No unit's factor goes unchecked by the test above."""
    named = {name for row in EQUAL for name in (row[1], row[3])}
    used = {(EXACT.get(name) or ANY_CASE[name.casefold()])[0] for name in named}
    assert used == {(quantity, unit) for quantity, units in UNITS.items() for unit in units}


def test_factors_are_scipys():
    """scipy.constants has its own."""
    constants = pytest.importorskip("scipy.constants")
    for name, unit, factor in [
        ("mile", "mile", 1), ("yard", "yard", 1), ("inch", "inch", 1), ("pound", "lb", 1),
        ("oz", "oz", 1), ("stone", "stone", 1), ("long_ton", "long ton", 1), ("acre", "acre", 1),
        ("gallon", "gallon", 1000), ("gallon_imp", "imperial gallon", 1000), ("bbl", "bbl", 1000),
        ("fluid_ounce", "fl oz", 1000), ("mph", "mph", 1), ("kmh", "km/h", 1), ("knot", "knot", 1),
        ("nautical_mile", "nmi", 1), ("week", "week", 1), ("short_ton", "short ton", 1),
    ]:  # fmt: skip
        quantity, own = EXACT[unit][0]
        base = float(Fraction(UNITS[quantity][own][0]))
        assert math.isclose(base, getattr(constants, name) * factor, rel_tol=1e-12), name


def test_every_name_is_one_unit_s_and_is_found():
    """No name is two units' as it is written; in another case only those of data can be."""
    several = {name for name, found in ANY_CASE.items() if len(found) > 1}
    assert several == {"b", "kb", "mb", "gb"}
    seen = set()
    for units in UNITS.values():
        for unit, (factor, names) in units.items():
            assert Fraction(factor) > 0
            for name in (unit, *names.split()):
                name = name.replace("_", " ")
                assert name not in seen, name
                seen.add(name)
                assert EXACT[name][0][1] == unit


units_of_one = st.sampled_from(list(UNITS)).flatmap(
    lambda quantity: st.tuples(*[st.sampled_from(list(UNITS[quantity]))] * 2)
)


@given(units_of_one, st.floats(0, 1e80))
def test_there_and_back_is_the_same(pair, value):
    """Exactly: nothing is rounded before the result is written."""
    there, unit = converted(value, *pair)
    assert unit == pair[1]
    assert converted(there, pair[1], pair[0])[0] == Fraction(str(value))


def test_units_that_do_not_fit_are_refused():
    """With the reason, and what is near."""
    for value, source, target, reason in [
        (1, "km", "kg", "the same quantity, got km (length) and kg (mass)"),
        (1, "mb", "GB", "MB and Mbit"), (1, "kilometer", "milles", "miles"),
        (1, "ton", "kg", "tonne"), (1, "year", "day", "unknown unit 'year'"),
        (1, "", "m", "unknown unit ''"), (1, "m" * 10**6, "m", "unknown unit"),
        (1, "\ud800\x00", "m", "unknown unit"), (-274, "C", "K", "absolute zero"),
        (-1, "K", "F", "absolute zero"), (math.nan, "m", "km", "-1e100 to 1e100"),
        (math.inf, "m", "km", "-1e100"), (10**101, "m", "km", "-1e100"),
    ]:  # fmt: skip
        with pytest.raises(ValueError) as caught:
            convert_units(value, source, target)
        assert reason in str(caught.value) and len(str(caught.value)) < 200
    assert json.loads(convert_units(5, "KM", "miles")) == {"result": 3.10685596118667, "unit": "mi"}
    assert convert_units(0.1, "km", "米") == '{"result": 100, "unit": "m"}'
    assert json.loads(convert_units(1e-300, "nm", "mi"))["result"] < 1e-310
