"""Converts amounts between units, by exact factors, with English and Chinese names.

A factor says how many of its quantity's first unit one of a unit is. They are the definitions of
the international agreements (an inch is 0.0254 m, a pound 0.45359237 kg, a US gallon 231 cubic
inches), so results are exact before they are written. Units that mean several things are not here:
a ton, a month, a year. Gallons, pints and cups are those of the US unless they say otherwise, a
barrel is one of oil, and a kilobyte is 1000 bytes.
"""

from __future__ import annotations

import difflib
import json
from fractions import Fraction

from model.json_file import shown
from tools.arithmetic import as_text

LARGEST = 10**100  # of a value, either way

# quantity: {unit: (factor, its other names)}; a name is found in any case if it is one unit's alone
UNITS: dict[str, dict[str, tuple[str, str]]] = {
    "length": {
        "m": ("1", "metre metres meter meters 米 公尺"),
        "km": ("1000", "kilometre kilometres kilometer kilometers 千米 公里"),
        "dm": ("0.1", "decimetre decimetres decimeter decimeters 分米"),
        "cm": ("0.01", "centimetre centimetres centimeter centimeters 厘米 公分"),
        "mm": ("0.001", "millimetre millimetres millimeter millimeters 毫米"),
        "um": ("1e-6", "µm μm micrometre micrometres micrometer micrometers micron microns 微米"),
        "nm": ("1e-9", "nanometre nanometres nanometer nanometers 纳米"),
        "in": ("0.0254", "inch inches 英寸"),
        "ft": ("0.3048", "foot feet 英尺"),
        "yd": ("0.9144", "yard yards 码"),
        "mi": ("1609.344", "mile miles 英里"),
        "nautical mile": ("1852", "nautical_miles nmi 海里"),
        "里": ("500", "市里 华里"),
        "丈": ("10/3", "市丈"),
        "尺": ("1/3", "市尺"),
        "寸": ("1/30", "市寸"),
    },
    "mass": {
        "kg": ("1", "kilogram kilograms kilo kilos 千克 公斤"),
        "g": ("0.001", "gram grams gramme grammes 克"),
        "mg": ("1e-6", "milligram milligrams 毫克"),
        "ug": ("1e-9", "µg μg mcg microgram micrograms 微克"),
        "t": ("1000", "tonne tonnes metric_ton metric_tons 吨 公吨"),
        "lb": ("0.45359237", "lbs pound pounds 磅"),
        "oz": ("0.028349523125", "ounce ounces 盎司"),
        "stone": ("6.35029318", "st stones 英石"),
        "short ton": ("907.18474", "short_tons us_ton us_tons 短吨"),
        "long ton": ("1016.0469088", "long_tons imperial_ton imperial_tons 长吨"),
        "斤": ("0.5", "市斤 jin catty"),
        "两": ("0.05", "市两 liang"),
    },
    "temperature": {  # kelvins; what is added before is in ZEROS
        "K": ("1", "kelvin kelvins 开尔文"),
        "C": ("1", "°C ℃ celsius centigrade degC degree_celsius degrees_celsius 摄氏度 摄氏"),
        "F": ("5/9", "°F ℉ fahrenheit degF degree_fahrenheit degrees_fahrenheit 华氏度 华氏"),
    },
    "time": {
        "s": ("1", "sec secs second seconds 秒 秒钟"),
        "ms": ("0.001", "millisecond milliseconds 毫秒"),
        "us": ("1e-6", "µs μs microsecond microseconds 微秒"),
        "ns": ("1e-9", "nanosecond nanoseconds 纳秒"),
        "min": ("60", "mins minute minutes 分钟"),
        "h": ("3600", "hr hrs hour hours 小时 钟头"),
        "day": ("86400", "d days 天 日"),
        "week": ("604800", "weeks wk wks 周 星期 礼拜"),
    },
    "area": {
        "m2": ("1", "m² m^2 sqm square_metre square_metres square_meter square_meters 平方米 平米"),
        "km2": ("1e6", "km² km^2 square_kilometre square_kilometres square_kilometer "
                "square_kilometers 平方千米 平方公里"),
        "cm2": ("1e-4", "cm² cm^2 square_centimetre square_centimetres square_centimeter "
                "square_centimeters 平方厘米"),
        "mm2": ("1e-6", "mm² mm^2 square_millimetre square_millimetres square_millimeter "
                "square_millimeters 平方毫米"),
        "ha": ("10000", "hectare hectares 公顷"),
        "acre": ("4046.8564224", "acres 英亩"),
        "sq in": ("0.00064516", "in2 in² in^2 square_inch square_inches 平方英寸"),
        "sq ft": ("0.09290304", "sqft ft2 ft² ft^2 square_foot square_feet 平方英尺"),
        "sq yd": ("0.83612736", "yd2 yd² yd^2 square_yard square_yards 平方码"),
        "sq mi": ("2589988.110336", "mi2 mi² mi^2 square_mile square_miles 平方英里"),
        "亩": ("2000/3", "市亩 mu"),
    },
    "volume": {  # litres
        "L": ("1", "litre litres liter liters 升 公升 dm3 dm³ dm^3 立方分米"),
        "mL": ("0.001", "millilitre millilitres milliliter milliliters 毫升 cc cm3 cm³ cm^3 "
               "cubic_centimetre cubic_centimetres cubic_centimeter cubic_centimeters 立方厘米"),
        "cL": ("0.01", "centilitre centilitres centiliter centiliters 厘升"),
        "m3": ("1000", "m³ m^3 cubic_metre cubic_metres cubic_meter cubic_meters 立方米"),
        "gallon": ("3.785411784", "gallons gal us_gallon us_gallons 加仑 美制加仑"),
        "quart": ("0.946352946", "quarts qt us_quart us_quarts 夸脱"),
        "pint": ("0.473176473", "pints pt us_pint us_pints 品脱"),
        "cup": ("0.2365882365", "cups us_cup us_cups"),
        "fl oz": ("0.0295735295625", "fluid_ounce fluid_ounces us_fluid_ounce 液盎司"),
        "tbsp": ("0.01478676478125", "tablespoon tablespoons 汤匙"),
        "tsp": ("0.00492892159375", "teaspoon teaspoons 茶匙"),
        "imperial gallon": ("4.54609", "imperial_gallons uk_gallon uk_gallons 英制加仑"),
        "imperial pint": ("0.56826125", "imperial_pints uk_pint uk_pints 英制品脱"),
        "cubic inch": ("0.016387064", "cubic_inches in3 in³ in^3 立方英寸"),
        "cubic foot": ("28.316846592", "cubic_feet ft3 ft³ ft^3 立方英尺"),
        "barrel": ("158.987294928", "barrels bbl 桶"),
    },
    "speed": {
        "m/s": ("1", "mps metres_per_second meters_per_second metre_per_second meter_per_second "
                "米/秒 米每秒"),
        "km/h": ("5/18", "kmh kph kmph kilometres_per_hour kilometers_per_hour kilometre_per_hour "
                 "kilometer_per_hour 公里/小时 千米/小时 公里每小时 千米每小时 公里/时 千米/时 "
                 "千米每时"),
        "mph": ("0.44704", "mi/h mile_per_hour miles_per_hour 英里/小时 英里每小时"),
        "ft/s": ("0.3048", "fps foot_per_second feet_per_second 英尺/秒 英尺每秒"),
        "knot": ("1852/3600", "knots kn kts 节"),
    },
    "data": {
        "byte": ("1", "bytes B 字节"),
        "bit": ("1/8", "bits b 比特 位"),
        "kB": ("1000", "kilobyte kilobytes 千字节"),
        "MB": ("1e6", "megabyte megabytes 兆字节"),
        "GB": ("1e9", "gigabyte gigabytes 吉字节"),
        "TB": ("1e12", "terabyte terabytes 太字节"),
        "PB": ("1e15", "petabyte petabytes 拍字节"),
        "KiB": ("1024", "kibibyte kibibytes"),
        "MiB": ("1048576", "mebibyte mebibytes"),
        "GiB": ("1073741824", "gibibyte gibibytes"),
        "TiB": ("1099511627776", "tebibyte tebibytes"),
        "PiB": ("1125899906842624", "pebibyte pebibytes"),
        "kbit": ("125", "kb kilobit kilobits 千比特"),
        "Mbit": ("125e3", "Mb megabit megabits 兆比特"),
        "Gbit": ("125e6", "Gb gigabit gigabits 吉比特"),
    },
}  # fmt: skip
# Added to a temperature before it is multiplied: 0 °C are 273.15 K, 0 °F are 459.67 * 5/9 K.
ZEROS = {"C": Fraction("273.15"), "F": Fraction("459.67")}


def convert_units(value: float, from_unit: str, to_unit: str) -> str:
    """Convert an amount to another unit.

    value: the amount
    from_unit: its unit, such as km, pound, 摄氏度
    to_unit: a unit of the same quantity
    """
    result, unit = converted(value, from_unit, to_unit)
    return f'{{"result": {as_text(result)}, "unit": {json.dumps(unit, ensure_ascii=False)}}}'


def converted(value: int | float | Fraction, from_unit: str, to_unit: str) -> tuple[Fraction, str]:
    """(the amount, the unit's own name). A float stands for the decimals it is written with.

    Raises ValueError for units that are unknown or of two quantities, temperatures below absolute
    zero, and values that are no number or beyond LARGEST.
    """
    if value != value or abs(value) > LARGEST:
        raise ValueError("expected a value from -1e100 to 1e100")
    amount = Fraction(str(value)) if isinstance(value, float) else Fraction(value)
    (quantity, source), (other, target) = find_unit(from_unit), find_unit(to_unit)
    if quantity != other:
        raise ValueError(f"expected two units of the same quantity, got {source} ({quantity}) and "
                         f"{target} ({other})")  # fmt: skip
    units = UNITS[quantity]
    amount = (amount + ZEROS.get(source, 0)) * Fraction(units[source][0])
    if quantity == "temperature" and amount < 0:
        raise ValueError("there is no temperature below absolute zero, -273.15 °C")
    return amount / Fraction(units[target][0]) - ZEROS.get(target, 0), target


def find_unit(name: str) -> tuple[str, str]:
    """(quantity, unit) of a unit's name, in its own case or in any; ValueError if it is none."""
    name = " ".join(name[:60].replace("_", " ").split())
    found = EXACT.get(name) or ANY_CASE.get(name.casefold())
    if found is None:
        near = difflib.get_close_matches(name.casefold(), ANY_CASE, 4, 0.6)
        near = near or [next(iter(units)) for units in UNITS.values()]
        raise ValueError(f"unknown unit {shown(name, 40)!r}; there are {', '.join(near)} and so on")
    if len(found) > 1:
        units = " and ".join(unit for _, unit in found)
        raise ValueError(f"the unit {shown(name, 40)!r} could be {units}: write one of them")
    return found[0]


def _names() -> tuple[dict[str, list], dict[str, list]]:
    """The (quantity, unit) of every name as it is written here, and those of it in any case."""
    exact: dict[str, list] = {}
    any_case: dict[str, list] = {}
    for quantity, units in UNITS.items():
        for unit, (_, others) in units.items():
            for name in (unit, *(other.replace("_", " ") for other in others.split())):
                exact.setdefault(name, [(quantity, unit)])
                if (quantity, unit) not in any_case.setdefault(name.casefold(), []):
                    any_case[name.casefold()].append((quantity, unit))
    return exact, any_case


EXACT, ANY_CASE = _names()
