"""Change an input where it hurts: values, keys, lengths and nesting of JSON, and bytes of everything."""

from __future__ import annotations

import copy
import json
import struct
from random import Random
from typing import Any

from fuzz.kind import Form

MOST_BYTES = 1 << 20
_NUMBERS: list[Any] = [
    0, -1, 1, 2, 7, 255, 65_536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, -(2**63) - 1, 10**40, 10**400, 0.5,
    -0.5,
    -0.0, 5e-324, 1e-9, 1e308, 60_000, 1e9, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
_TEXTS: list[Any] = [
    "", " ", "\0", "a\nb\r\nc", "\x1b[31m", "\u2028", "\ud800", "\U0001f600", "é" * 300, "x" * 5000,
    "../../x", "/dev/zero",
    "nan", "1e9", "-1", "{expression}", "{0}", "%s", "<image>", "[SEG]", "a.b.c", "..", ".", "~", "a/b",
    "C:\\x",
]  # fmt: skip
_VALUES: list[Any] = [
    None, True, False, [], {}, [[]], [None], [0], [{}], {"": None}, {"a": {"a": {}}}, [1, 2, 3], ["a",
    "a"], [0.5] * 6,
    [""] * 50, list(range(3000)), *_NUMBERS, *_TEXTS,
]  # fmt: skip
_PIECES = [
    b"\0", b"\xff" * 4, b"\x80", b"\x7f\xff\xff\xff", b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\0" * 9,
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xff\xfe", b"1e999",
    b"NaN", b"-", b"\\ud800", b"PK\x03\x04",
]  # fmt: skip


def mutated(data: bytes, form: Form, random: Random) -> bytes:
    """Return `data` with one to a few changes, of at most MOST_BYTES."""
    if random.random() < 0.75:
        if form == "json":
            data = _json(data, random)
        elif form == "lines":
            data = _lines(data, random)
        elif form == "tensors":
            data = _tensors(data, random)
        else:
            data = _torn(data, random)
    else:
        data = _torn(data, random)
    return data[:MOST_BYTES]


def _json(data: bytes, random: Random) -> bytes:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return _torn(data, random)
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        content = _changed(content, random)
    try:
        text = json.dumps(content, ensure_ascii=random.random() < 0.5)
    except (ValueError, RecursionError):
        return _torn(data, random)
    for _ in range(random.choice([0, 0, 0, 1])):
        text = _odd_text(text, random)
    encoding = random.choice(["utf-8"] * 12 + ["utf-8-sig", "utf-16", "utf-32"])
    return text.encode(encoding, "surrogatepass")


def _changed(content: Any, random: Random) -> Any:
    """Put another value, key or number of entries in some place."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any, depth: int) -> None:
        for key in list(node) if isinstance(node, dict) else range(min(len(node), 40)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)) and depth < 20:
                visit(node[key], depth + 1)

    if isinstance(content, (dict, list)):
        visit(content, 0)
    if not places:
        return copy.deepcopy(random.choice(_VALUES))
    node, key = random.choice(places)
    value = node[key]
    how = random.choice(["value", "value", "near", "near", "drop", "more", "key", "move"])
    if how == "drop":
        del node[key]
    elif how == "near":
        node[key] = _near(value, random)
    elif how == "more" and isinstance(value, list):
        node[key] = value * random.choice([0, 2, 3, 50])
    elif how == "more" and isinstance(node, list):
        node.insert(random.randrange(len(node) + 1), value)
    elif how == "key" and isinstance(node, dict):
        node[random.choice([t for t in _TEXTS if isinstance(t, str)])] = node.pop(key)
    elif how == "move":
        other, place = random.choice(places)
        if isinstance(other, dict) or (isinstance(place, int) and place < len(other)):
            node[key] = json.loads(json.dumps(other.get(place) if isinstance(other, dict) else other[place]))
    else:
        node[key] = copy.deepcopy(random.choice(_VALUES))  # it may be changed next
    return content


def _near(value: Any, random: Random) -> Any:
    """Return a value that is nearly right: of the same type, or of its neighbour."""
    if isinstance(value, bool) or value is None:
        return random.choice([True, False, None, 0, 1, "true"])
    if isinstance(value, (int, float)):
        near = [
            value + 1,
            value - 1,
            -value,
            value * 2,
            float(value) if abs(value) < 1e300 else 0,
            str(value)[:20],
        ]
        return random.choice([*near, *_NUMBERS])
    if isinstance(value, str):
        at = random.randrange(len(value) + 1)
        return random.choice(
            [value[:at], value * 2, value[at:] + value[:at], value.upper(), [value], *_TEXTS]
        )
    if isinstance(value, list):
        return random.choice([value[:1], value[:-1], [value], dict.fromkeys(map(str, value)), value[::-1]])
    return random.choice([{}, list(value), [value], {**value, "": 1}])


def _odd_text(text: str, random: Random) -> str:
    """JSON that no program writes: a key twice, deep nesting, a number of many digits, text behind it."""
    how = random.randrange(5)
    if how == 0 and text.startswith("{") and len(text) > 2:
        key = text[1:].partition(":")[0]
        return f"{text[:-1]},{key}:{json.dumps(random.choice(_VALUES))}}}"
    if how == 1:
        depth = random.choice([50, 900, 3000, 100_000])
        one, end = random.choice([("[", "]"), ('{"a":', "}")])
        nested = one * depth + "1" + end * depth
        at = text.find(":") + 1
        return text[:at] + nested + text[text.find(",", at) :] if at and "," in text[at:] else nested
    if how == 2:
        digits = "9" * random.choice([400, 4000, 5000, 100_000])
        at = text.rfind(":") + 1
        return text[:at] + digits + "}" * (text.count("{") - text.count("}", 0, at)) if at else digits
    if how == 3:
        return text + random.choice(["x", "\n" + text, "\0", " " * 1000])
    return random.choice(["", "\ufeff"]) + " " * random.randrange(100) + text


def _lines(data: bytes, random: Random) -> bytes:
    lines = data.split(b"\n")
    for _ in range(random.choice([1, 1, 2])):
        at = random.randrange(len(lines))
        how = random.randrange(4)
        if how == 0 and len(lines) > 1:
            lines.insert(at, lines[random.randrange(len(lines))])
        else:
            lines[at] = _json(lines[at], random) if lines[at] else random.choice(_PIECES)
    return random.choice([b"\n", b"\n", b"\n", b"\r\n"]).join(lines)


def _tensors(data: bytes, random: Random) -> bytes:
    """safetensors: change the header, and keep its length right or not."""
    if len(data) < 8:
        return _torn(data, random)
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + length], data[8 + length :]
    header = _json(header, random)
    if random.random() < 0.1:
        length = random.choice([0, 1, 2**31, 2**63, 2**64 - 1, 100_000_001])
    else:
        length = len(header)
    return struct.pack("<Q", length) + header + rest


def _torn(data: bytes, random: Random) -> bytes:
    for _ in range(random.choice([1, 1, 2, 4, 16])):
        at = random.randrange(len(data) + 1)
        how = random.randrange(7)
        if how == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
        elif how == 1 and at < len(data):
            data = data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
        elif how == 2:
            data = data[:at]
        elif how == 3:
            data = data[:at] + data[at + random.choice([1, 2, 4, 8, 100, 1000]) :]
        elif how == 4:
            piece = random.choice(_PIECES)
            data = data[:at] + piece + data[at + (len(piece) if random.random() < 0.7 else 0) :]
        elif how == 5:
            size = random.choice([1, 4, 16, 256])
            data = data[:at] + data[at : at + size] * random.choice([2, 3, 100]) + data[at + size :]
        else:
            number = random.choice([0, 1, 2**7, 2**15, 2**31 - 1, 2**32 - 1, 2**24])
            packed = struct.pack(random.choice(["<I", ">I"]), number)
            data = data[:at] + packed + data[at + 4 :]
    return data
