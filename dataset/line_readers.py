"""jsonl, json and txt files: bytes in, records out, one at a time.

Memory follows the longest record, which is bounded. Only a `.json` list is loaded whole.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path

from dataset.records import Problems, Record, is_utf8, kind_of, names_in

TEXT_DOCUMENT_BYTES = 16 * 1024  # a txt file is cut into documents of about this size
LONGEST_TEXT_LINE = 1024 * 1024  # a longer line of a txt file is cut, so that memory stays flat
LONGEST_RECORD = 64 * 1024 * 1024  # bytes of a jsonl line or a csv cell; a longer one is bad


class RepeatedKey(ValueError):
    """An object has one key twice: what the first one says would be lost."""


class _HasRepeatedKey(dict):
    """An object with a key that came twice, `key`; it stands for the record that it is in."""

    key = ""


def _object(pairs: list[tuple[str, object]]) -> dict:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise RepeatedKey(f"the key {_repeated(pairs)[:40]!r} twice in an object")
    return fields


def _marked_object(pairs: list[tuple[str, object]]) -> dict:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        fields = _HasRepeatedKey(fields)
        fields.key = _repeated(pairs)
    return fields


def _repeated(pairs: list[tuple[str, object]]) -> str:
    seen = set()
    return next(key for key, _ in pairs if key in seen or seen.add(key))


# json.loads would make a decoder at every call. The hook costs nothing for texts, 15% of the
# parsing for conversations.
decode_json = json.JSONDecoder(object_pairs_hook=_object).decode
_decode_marked = json.JSONDecoder(object_pairs_hook=_marked_object).decode


def read_jsonl(
    path: Path, stream: io.BufferedIOBase, problems: Problems, first_line: int = 1
) -> Iterator[Record]:
    """One JSON object on every line; blank lines are passed over.

    first_line  the number of the line that the stream stands at
    """
    name = str(path)
    number = first_line - 1
    while line := stream.readline(LONGEST_RECORD + 1):
        number += 1
        if len(line) > LONGEST_RECORD:
            got = f"more than {LONGEST_RECORD:,} bytes without a line end"
            problems.add(name, number, "one JSON object on the line", got)
            while line and not line.endswith(b"\n"):
                line = stream.readline(LONGEST_RECORD)
            continue
        if line.isspace():
            continue
        try:
            fields = decode_json(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            problems.add(name, number, "UTF-8", f"the byte 0x{line[error.start]:02x}")
        except json.JSONDecodeError as error:
            got = f"broken JSON ({error.msg} at column {error.colno})"
            problems.add(name, number, "one JSON object on the line", got)
        except RecursionError:
            problems.add(name, number, "one JSON object on the line", "JSON nested too deeply")
        except RepeatedKey as error:
            problems.add(name, number, "every key once", str(error))
        except ValueError as error:  # an integer with more digits than Python converts
            problems.add(name, number, "one JSON object on the line", f"JSON with {error}")
        else:
            # Only an escape such as \ud800 can make a lone surrogate here; few lines have one.
            suspicious = b"\\ud" in line or b"\\uD" in line
            if _is_good_object(fields, suspicious, name, number, problems):
                yield Record(fields, name, number)


def cut_at_lines(stream: io.BufferedReader, size: int) -> Iterator[tuple[bytes, int]]:
    """(lines, the number of the first one): a stream of lines in parts of about `size` bytes.

    What is joined again is the stream, but for the rest of lines longer than LONGEST_RECORD: of
    them there is as much as `read_jsonl` needs to see that they are.
    """
    parts: list[bytes] = []  # of the part that is growing; it has no line end but the last one's
    length, number = 0, 1
    while block := stream.read(size):
        end = block.rfind(b"\n") + 1
        parts.append(block[:end] if end else block)
        length += len(block)
        if end:
            lines = b"".join(parts)
            parts, length = [block[end:]], len(block) - end
            yield lines, number
            number += lines.count(b"\n")
        elif length > LONGEST_RECORD:
            yield b"".join(parts)[: LONGEST_RECORD + 1], number
            parts, length, number = [], 0, number + 1
            while (more := stream.readline(size)) and not more.endswith(b"\n"):
                pass
    if length:
        yield b"".join(parts), number


def holds_json_lines(stream: io.BufferedReader) -> bool:
    """Whether the first two lines that are not blank look like an object each: not a list."""
    found = 0
    while line := stream.readline(LONGEST_RECORD + 1):
        if line := line.strip():
            found += 1
            if not line.startswith(b"{") or (found == 1 and not line.endswith(b"}")):
                return False
            if found == 2:
                return True
    return False


def read_json_list(path: Path, stream: io.BufferedReader, problems: Problems) -> Iterator[Record]:
    """A JSON list of objects. One mistake makes all of it unreadable: ValueError."""
    data = stream.read()
    if not data.strip():
        return
    items = _json_list(path, data)
    suspicious = b"\\ud" in data or b"\\uD" in data
    for number, fields in enumerate(items, start=1):
        if key := _repeated_key_in(fields):
            got = f"the key {key[:40]!r} twice in an object"
            problems.add(str(path), number, "every key once", got)
        elif _is_good_object(fields, suspicious, str(path), number, problems):
            yield Record(fields, str(path), number)


def _json_list(path: Path, data: bytes) -> list:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"{path}:{data.count(10, 0, error.start) + 1}"
        raise ValueError(f"{place}: expected UTF-8, got {data[error.start]:#04x}") from None
    hint = "name the file .jsonl if it has one object per line"
    try:
        try:
            items = decode_json(text)
        except RepeatedKey:  # seldom: parsed once more, to know where
            items = _decode_marked(text)
    except json.JSONDecodeError as error:
        got = f"broken JSON ({error.msg} at column {error.colno})"
        raise ValueError(
            f"{path}:{error.lineno}: expected a JSON list, got {got}; {hint}"
        ) from None
    except (RecursionError, ValueError) as error:  # too deep, or an integer of too many digits
        raise ValueError(f"{path}: expected a JSON list that can be read, got: {error}") from None
    if not isinstance(items, list):
        got = kind_of(items) + (f" with {names_in(items)}" if isinstance(items, dict) else "")
        raise ValueError(f"{path}: expected a JSON list, got {got}; {hint}")
    return items


def _repeated_key_in(value: object) -> str:
    """A key that came twice somewhere in a value of `_decode_marked`; "" without one."""
    if isinstance(value, _HasRepeatedKey):
        return value.key or "(empty)"
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((key for part in parts if (key := _repeated_key_in(part))), "")


def read_txt(path: Path, stream: io.BufferedReader, problems: Problems) -> Iterator[Record]:
    """Cut one long text at line ends; the documents joined are the file, byte for byte.

    A document ends at the last blank line of its second half, or, without one, at the first line
    end after TEXT_DOCUMENT_BYTES. Only a blank tail of the file is left out.
    """
    name = str(path)
    lines: list[str] = []  # of the document that is growing
    size, first_line = 0, 1  # its bytes, and the line of the file it starts on
    cut, cut_size = 0, 0  # the place after its last blank line: number of lines, bytes
    number, rest = 1, b""
    while line := rest + stream.readline(LONGEST_TEXT_LINE - len(rest)):
        rest = b""
        if not line.endswith(b"\n") and len(line) >= LONGEST_TEXT_LINE:
            line, rest = _split_at_character(line)
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            problems.add(name, number, "UTF-8", f"the byte 0x{line[error.start]:02x}")
            text = ""
        lines.append(text)
        size += len(line)
        number += line.endswith(b"\n")
        if line.isspace() and size >= TEXT_DOCUMENT_BYTES // 2:
            cut, cut_size = len(lines), size
        if size >= TEXT_DOCUMENT_BYTES:
            if cut == 0:
                cut, cut_size = len(lines), size
            document = "".join(lines[:cut])
            if document and not document.isspace():
                yield Record({"text": document}, name, first_line)
                lines, size = lines[cut:], size - cut_size
                first_line = number - sum(text.endswith("\n") for text in lines)
            cut, cut_size = 0, 0
    document = "".join(lines)
    if document and not document.isspace():
        yield Record({"text": document}, name, first_line)


def _split_at_character(line: bytes) -> tuple[bytes, bytes]:
    """Split off the last, perhaps incomplete, UTF-8 character of a line that was cut anywhere."""
    for length in range(1, 5):
        if line[-length] & 0xC0 != 0x80:  # not a continuation byte: a character starts here
            return line[:-length], line[-length:]
    return line, b""


def _is_good_object(fields, suspicious: bool, name: str, number: int, problems: Problems) -> bool:
    if not isinstance(fields, dict):
        problems.add(name, number, "a JSON object", kind_of(fields))
        return False
    if suspicious and not is_utf8(json.dumps(fields, ensure_ascii=False)):
        got = "a lone surrogate (\\ud800 to \\udfff)"
        problems.add(name, number, "text that UTF-8 can write", got)
        return False
    return True
