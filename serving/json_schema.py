"""A client's JSON schema → one that says the same in fewer forms, all of them bounded.

What a model writes by a schema has to be true of it for every other program that knows JSON Schema.
So a schema is written anew here, from the keywords listed below and no others: what is left has
nothing in it that libraries disagree about, that has no end, or that takes long to compile. What
cannot be kept is refused by its name; what a schema leaves open is closed where that makes an
answer shorter or safer. So an answer is always one that the client's schema allows, but some that
it allows are never written:

    numbers           integers and whole parts of at most 15 digits, no exponents
    objects           properties in the order of the schema, and no others than those it names,
                      unless it has additionalProperties, or no properties at all
    any values        nest at most 8 levels
    strings           only the escapes that JSON cannot do without; no control characters besides
                      tab, line ends, backspace and form feed
"""

from __future__ import annotations

import itertools
import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

from serving.schema_values import (
    BadSchema,
    as_list,
    check_values,
    is_of,
    is_same,
    number_schema,
    short,
    string_schema,
    whole,
)

LARGEST_SCHEMA = 1 << 16  # characters of JSON
DEEPEST = 32  # levels of schemas in schemas
# of all definitions together: the library goes down from one to the next, on a stack of 8 MiB that
# 2000 of them fill
MOST_LEVELS = 400
MOST_PARTS = 1000  # schemas, properties, values of enums, items that arrays must have or may have
PARTS_OF_A_PATTERN = 40  # what it costs to compile one
MOST_ITEMS = 1000
LEVELS_OF_ANYTHING = 8

ANNOTATIONS = {
    "$comment", "$schema", "title", "description", "default", "examples", "deprecated", "readOnly",
    "writeOnly", "$defs", "definitions",
}  # fmt: skip
KEYWORDS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"},
    "object": {"properties", "required", "additionalProperties"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "boolean": set(),
    "null": set(),
}
ALONE = ("$ref", "anyOf", "oneOf")  # beside them only annotations
KNOWN = {"type", "enum", "const", *ALONE}.union(*KEYWORDS.values())


@dataclass
class Size:
    """How large the schemas of one request are together. BadSchema where that is too much."""

    parts: int = 0
    levels: int = 0

    def add(self, where: str, parts: int = 0, levels: int = 0):
        self.parts += parts
        self.levels += levels
        if self.parts > MOST_PARTS:
            raise BadSchema(
                f"{where}: this is too large here; schemas, properties, values of enums and "
                f"numbers of items together may be {MOST_PARTS}, a pattern counts as "
                f"{PARTS_OF_A_PATTERN}"
            )
        if self.levels > MOST_LEVELS:
            raise BadSchema(f"expected at most {MOST_LEVELS} levels in all definitions together")


def plain_schema(schema: object, size: Size, prefix: str = "") -> dict:
    """A schema of few forms that allows nothing the given one does not. Raises BadSchema.

    Forms: {"$ref": "#/$defs/…"}, {"anyOf": [...]}, {"enum": [...]}, and one "type" with
    all bounds that it can have. Definitions stand at the top; prefix: what their names begin with.
    size: of the request's other schemas; this one's is added
    """
    _check_size(schema)
    reader = _Reader(schema, size, prefix)
    start = reader.reference("")
    while reader.waiting:
        name, found, where = reader.waiting.popleft()
        reader.deepest = 0
        reader.definitions[name] = reader.read(found, where, 0)
        size.add(where, levels=reader.deepest + 1)
    if endless := reader.definitions.keys() - _ending(reader.definitions):
        raise BadSchema(f"{reader.places[min(endless)]}: no value that ends could be its instance")
    return start | {"$defs": reader.definitions}


class _Reader:
    """Reads schemas of one document, and remembers what they refer to."""

    def __init__(self, root: object, size: Size, prefix: str):
        self.root, self.size, self.prefix = root, size, prefix
        self.deepest = 0  # level of the schema that is being read
        self.definitions: dict[str, dict] = {}
        self.places: dict[str, str] = {}  # from names in `definitions` to what a client calls it
        self.waiting: deque[tuple[str, object, str]] = deque()  # referred to, not read yet
        self._names: dict[str, str] = {}  # by JSON pointer

    def reference(self, pointer: str) -> dict:
        """What refers to the schema at a JSON pointer, which will be read in its turn."""
        if pointer not in self._names:
            name = self._names[pointer] = f"{self.prefix}d{len(self._names)}"
            where = self.places[name] = json.dumps("#" + pointer)[1:-1][:200]
            self.waiting.append((name, self._found(pointer), where))
        return {"$ref": f"#/$defs/{self._names[pointer]}"}

    def anything(self, levels: int = LEVELS_OF_ANYTHING) -> dict:
        """The schema of all values that nest so deep."""
        name = f"{self.prefix}any{levels}"
        if name not in self.definitions:
            kinds = [
                {"type": "null"},
                {"type": "boolean"},
                {"type": "string"},
                number_schema({}, False),
            ]
            self.definitions[name] = {"anyOf": kinds}
            self.places[name] = "anything"
            if levels:
                inner = self.anything(levels - 1)
                kinds.append({"type": "array", "items": inner})
                kinds.append({"type": "object", "additionalProperties": inner})
        return {"$ref": f"#/$defs/{name}"}

    def read(self, schema: object, where: str, depth: int) -> dict:
        self.size.add(where, 1)
        self.deepest = max(self.deepest, depth)
        if schema is True:
            return self.anything()
        if not isinstance(schema, dict):
            raise BadSchema(
                f"{where}: expected a schema that something satisfies, got {short(schema)}"
            )
        if depth > DEEPEST:
            raise BadSchema(f"{where}: expected at most {DEEPEST} levels of schemas")
        given = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
        if depth == 0 and where == "#":
            given.pop("$id", None)
        for key in given:
            if key not in KNOWN:
                raise BadSchema(f"{where}: {short(key)} is not supported here")
        for key in ALONE:
            if key in given:
                if len(given) > 1:
                    raise BadSchema(f"{where}: {key} is supported alone, not beside other keywords")
                return self._applied(key, given[key], where, depth)
        if "enum" in given or "const" in given:
            return self._values(given, where)
        if not given:
            return self.anything()
        kinds = [self._of_kind(kind, given, where, depth) for kind in _kinds(given, where)]
        return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}

    def _applied(self, key: str, value: object, where: str, depth: int) -> dict:
        if key == "$ref":
            if not isinstance(value, str) or not re.match(r"#(/|$)", value):
                raise BadSchema(f"{where}: $ref is supported to places in the schema, as "
                                f'"#/$defs/name", got {short(value)}')  # fmt: skip
            return self.reference(unquote(value[1:]))
        options = as_list(value, where, key)
        if not options:
            raise BadSchema(f"{where}: expected at least one schema in {key}")
        found = [self.read(one, f"{where}/{key}/{i}", depth + 1) for i, one in enumerate(options)]
        # what is read allows less than what was given: only of that it can be said that never two
        # of the options are satisfied
        if key == "oneOf":
            given = [self._resolved(one) for one in options]
            if not all(_are_apart(a, b) for a, b in itertools.combinations(given, 2)):
                raise BadSchema(
                    f"{where}: oneOf is supported where types, constants or a required property "
                    "that is a constant tell which of them it is; anyOf needs none of these"
                )
        return {"anyOf": found}

    def _resolved(self, schema: object) -> object:
        """What a schema refers to, or itself."""
        for _ in range(DEEPEST):
            if not isinstance(schema, dict) or "$ref" not in schema:
                break
            schema = self._found(unquote(schema["$ref"][1:]))
        return schema

    def _values(self, given: dict, where: str) -> dict:
        values = as_list(given["enum"], where, "enum") if "enum" in given else [given["const"]]
        if "const" in given:
            values = [value for value in values if is_same(value, given["const"])]
        if beside := given.keys() - {"enum", "const", "type"}:
            raise BadSchema(f"{where}: {min(beside)} is not supported beside enum or const")
        if "type" in given:
            kinds = _kinds(given, where)
            values = [value for value in values if is_of(value, kinds)]
        if not values:
            raise BadSchema(f"{where}: none of the values in enum can be")
        self.size.add(where, len(values))
        check_values(values, where)
        return {"enum": values}

    def _of_kind(self, kind: str, given: dict, where: str, depth: int) -> dict:
        if kind == "string":
            if "pattern" in given or "format" in given:
                self.size.add(where, PARTS_OF_A_PATTERN)
            return string_schema(given, where)
        if kind in ("number", "integer"):
            return number_schema(given, kind == "integer", where)
        if kind == "array":
            return self._array(given, where, depth)
        if kind == "object":
            return self._object(given, where, depth)
        return {"type": kind}

    def _array(self, given: dict, where: str, depth: int) -> dict:
        if given.get("uniqueItems"):
            raise BadSchema(f"{where}: uniqueItems is not supported here")
        first = [
            self.read(item, f"{where}/prefixItems/{i}", depth + 1)
            for i, item in enumerate(as_list(given.get("prefixItems", []), where, "prefixItems"))
        ]
        least = whole(given, "minItems", where) or 0
        most = whole(given, "maxItems", where)
        items = given.get("items", not first or least > len(first))
        if items is False:
            most = min(most, len(first)) if most is not None else len(first)
        most = most if most is None else min(most, MOST_ITEMS)
        if least > (MOST_ITEMS if most is None else most):
            raise BadSchema(f"{where}: expected minItems up to {MOST_ITEMS}, and up to maxItems")
        self.size.add(where, max(least, most or 0))
        found = {"type": "array", "minItems": least}
        if first:
            found["prefixItems"] = first
        if most is not None:
            found["maxItems"] = most
        found["items"] = False
        if items is not False:
            found["items"] = self.read(items, f"{where}/items", depth + 1)
        return found

    def _object(self, given: dict, where: str, depth: int) -> dict:
        properties = given.get("properties", {})
        if not isinstance(properties, dict):
            raise BadSchema(f"{where}: expected an object as properties, got {short(properties)}")
        self.size.add(where, len(properties))
        required = as_list(given.get("required", []), where, "required")
        if not all(isinstance(name, str) for name in required):
            raise BadSchema(f"{where}: expected names in required")
        required = list(dict.fromkeys(required))
        more = given.get("additionalProperties", "properties" not in given)
        others = False
        if more is not False:
            others = self.read(more, f"{where}/additionalProperties", depth + 1)
        found = {}
        for name, schema in properties.items():
            place = f"{where}/properties/{json.dumps(name)[1:-1]}"[:200]
            found[name] = self.read(schema, place, depth + 1)
        if missing := [name for name in required if name not in found]:
            if given.get("additionalProperties") is False:
                raise BadSchema(f"{where}: {short(missing[0])} is required, but not in properties")
            found |= dict.fromkeys(missing, others or self.anything())
        check_values(list(found), where)
        return {"type": "object", "properties": found, "required": required,
                "additionalProperties": others}  # fmt: skip

    def _found(self, pointer: str) -> object:
        found = self.root
        for part in pointer.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, dict) and part in found:
                found = found[part]
            else:
                raise BadSchema(f"$ref: the schema has no place {short('#' + pointer)}")
        return found


def _are_apart(a: object, b: object) -> bool:
    """Whether two schemas, as a client gave them, certainly have no instance in common."""
    if not isinstance(a, dict) or not isinstance(b, dict):
        return False
    values, others = _constants(a), _constants(b)
    if values is not None and others is not None:
        return not any(value == other for value in values for other in others)
    if "type" not in a or "type" not in b:
        return False
    kinds, more = (
        {"number" if kind == "integer" else kind for kind in _kinds(one, "")} for one in (a, b)
    )
    if not kinds & more:
        return True
    if kinds | more != {"object"}:
        return False
    both = set(a.get("required", ())) & set(b.get("required", ()))
    inner = [[one.get("properties", {}).get(name) for one in (a, b)] for name in both]
    return any(
        isinstance(one, dict)
        and isinstance(other, dict)
        and None not in (_constants(one), _constants(other))
        and _are_apart(one, other)
        for one, other in inner
    )


def _constants(schema: dict) -> list | None:
    """The values of which an instance is one, or None."""
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _kinds(given: dict, where: str) -> list[str]:
    """The types that a schema names, or else those that its keywords are about."""
    if "type" not in given:
        kinds = [kind for kind, words in KEYWORDS.items() if given.keys() & words]
        return [kind for kind in kinds if kind != "integer"]
    types = given["type"]
    types = [types] if isinstance(types, str) else as_list(types, where, "type")
    for kind in types:
        if not isinstance(kind, str) or kind not in KEYWORDS:
            raise BadSchema(f"{where}: expected a type of JSON, got {short(kind)}")
    if not types:
        raise BadSchema(f"{where}: expected a type, got none")
    types = list(dict.fromkeys(types))
    return [kind for kind in types if kind != "integer" or "number" not in types]


def _check_size(schema: object):
    try:
        length = len(json.dumps(schema, ensure_ascii=False, allow_nan=False))
    except RecursionError:
        raise BadSchema(f"expected at most {DEEPEST} levels of schemas") from None
    except ValueError:
        raise BadSchema("expected numbers that are finite") from None
    if length > LARGEST_SCHEMA:
        raise BadSchema(f"the schema has {length} characters; at most {LARGEST_SCHEMA} are read")


def _ending(definitions: dict[str, dict]) -> set[str]:
    """The definitions of which some value can be written to its end."""

    def ends(schema: dict) -> bool:
        if "$ref" in schema:
            return schema["$ref"].removeprefix("#/$defs/") in known
        if options := schema.get("anyOf"):
            return any(map(ends, options))
        if schema.get("type") == "array":
            first = schema.get("prefixItems", [])
            needed = first[: schema.get("minItems", 0)]
            if schema.get("minItems", 0) > len(first):
                needed = [*first, schema["items"]]
            return all(map(ends, needed))
        if schema.get("type") == "object":
            return all(ends(schema["properties"][name]) for name in schema.get("required", []))
        return True

    users: dict[str, list[str]] = {name: [] for name in definitions}  # that refer to it
    for name, schema in definitions.items():
        for used in _references(schema):
            users[used].append(name)
    known: set[str] = set()
    waiting = deque(definitions)
    while waiting:
        name = waiting.popleft()
        if name not in known and ends(definitions[name]):
            known.add(name)
            waiting += users[name]
    return known


def _references(schema: object) -> Iterator[str]:
    """The names of the definitions that a plain schema refers to."""
    if isinstance(schema, dict) and "enum" not in schema:
        if "$ref" in schema:
            yield schema["$ref"].removeprefix("#/$defs/")
        for key in ("anyOf", "prefixItems"):
            for one in schema.get(key, ()):
                yield from _references(one)
        for key in ("items", "additionalProperties"):
            yield from _references(schema.get(key))
        for one in schema.get("properties", {}).values():
            yield from _references(one)
