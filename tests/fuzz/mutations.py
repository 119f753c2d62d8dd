"""Damages files: structured ones by their structure, all of them byte by byte."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from typing import Any

HOSTILE = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**32 - 1, 2**63, 2**64, 10**400, -(10**400)),
    *(0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan"), "", "x", "1", "a" * 5000, "\0"),
    *("\ud800", "../x", "/etc/passwd", "https://127.0.0.1:9/x", "\x1b]0;x\x07", "bfloat16", "auto"),
    *(
        "é" * 300,
        [],
        {},
        [None],
        [[]],
        [0] * 1000,
        {"a": 1},
        {"": None},
        [1, "x", None],
        ["a", "a"],
    ),
)
NUMBERS = (0, 1, 2, 7, 0x7F, 0xFF, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)


def mutated(form: str, content: bytes, draw: random.Random) -> bytes:
    """A file of a form with one to four damages."""
    if draw.random() < 0.15 and form != "safetensors":
        return damaged_bytes(content, draw)
    return FORMS[form](content, draw)


def damaged_bytes(content: bytes, draw: random.Random) -> bytes:
    """Flip, overwrite, cut, double or insert, most often near the beginning, where headers are."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        size = len(data)
        reach = size if draw.random() < 0.4 else min(size, draw.choice((16, 64, 512, 4096)))
        at = draw.randrange(max(1, reach))
        match draw.randrange(7):
            case 0 if size:
                data[at % size] ^= 1 << draw.randrange(8)
            case 1:
                width = draw.choice(("<B", "<H", "<I", "<Q"))
                at -= at % draw.choice((1, struct.calcsize(width)))
                number = draw.choice(NUMBERS) % (1 << 8 * struct.calcsize(width))
                data[at : at + struct.calcsize(width)] = struct.pack(width, number)
            case 2:
                del data[at : draw.choice((size, at + 1, at + 4, at + 8, at + 100))]
            case 3:
                data[at:at] = data[at : at + draw.choice((1, 8, 40, 400))]
            case 4:
                data[at:at] = draw.randbytes(draw.choice((1, 4, 8)))
            case 5:
                other = draw.randrange(max(1, reach))
                width = draw.choice((1, 4, 8, 32))
                data[at : at + width] = data[other : other + width]
            case _:
                width = draw.choice((4, 8))
                data[at : at + width] = bytes([draw.choice((0, 0xFF))]) * width
    return bytes(data)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    found, waiting = [], [value]
    while waiting:
        each = waiting.pop()
        keys = each.keys() if isinstance(each, dict) else range(len(each))
        for key in keys:
            found.append((each, key))
            if isinstance(each[key], dict | list):
                waiting.append(each[key])
    return found


def hostile(draw: random.Random) -> Any:
    if draw.random() < 0.05:
        value: Any = 1
        for _ in range(draw.choice((50, 101, 150))):
            value = [value] if draw.random() < 0.5 else {"a": value}
        return value
    return copy.deepcopy(draw.choice(HOSTILE))  # it may be damaged in its turn


def damaged_document(document: Any, draw: random.Random) -> Any:
    """Replace, remove, rename, double and move values."""
    holder = [document]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        container, key = draw.choice(places(holder))
        other, source = draw.choice(places(holder))
        match draw.randrange(10):
            case 0 if container is not holder:
                del container[key]
            case 1 if isinstance(container, dict):
                container[draw.choice(("x", "", str(key) + "x", "__class__"))] = container.pop(key)
            case 2 if isinstance(container, list) and container is not holder:
                container.insert(draw.randrange(len(container) + 1), hostile(draw))
            case 3:
                container[key] = json.loads(json.dumps(other[source]))
            case 4 if isinstance(container[key], int | float) and abs(container[key]) < 1e18:
                container[key] = draw.choice((-1, 1, 2, 1000)) * container[key] + draw.choice(
                    (0, 1)
                )
            case 5 if isinstance(container[key], str):
                container[key] = container[key][: draw.randrange(9)] + draw.choice(("", "x", "\0"))
            case _:
                container[key] = hostile(draw)
    return holder[0]


def damaged_json(content: bytes, draw: random.Random) -> bytes:
    text = json.dumps(damaged_document(json.loads(content), draw))
    if draw.random() < 0.03:
        text = re.sub(r'("[a-z_]+": [0-9a-z".]+),', r"\1, \1,", text, count=1)
    return text.encode()


def damaged_lines(content: bytes, draw: random.Random) -> bytes:
    lines = content.split(b"\n")
    at = draw.randrange(len(lines))
    damage = damaged_json if draw.random() < 0.7 and lines[at].strip() else damaged_bytes
    lines[at] = damage(lines[at], draw)
    return b"\n".join(lines)


def toml(value: Any) -> str:
    """A value in TOML's spelling, right or nearly so."""
    match value:
        case bool():
            return str(value).lower()
        case None:
            return "null"
        case dict():
            return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case _:
            return json.dumps(value).replace("Infinity", "inf").replace("NaN", "nan")


def damaged_toml(content: bytes, draw: random.Random) -> bytes:
    lines = content.decode().split("\n")
    for _ in range(draw.choice((1, 1, 2))):
        at = draw.randrange(len(lines))
        key = lines[at].partition("=")[0].strip()
        match draw.randrange(7):
            case 0:
                del lines[at]
                lines.append("")
            case 1:
                lines.insert(at, draw.choice(lines))
            case 2:
                lines.insert(at, draw.choice(("[x]", "[[x]]", "[a.b.c]", "a.b = 1", "[override]")))
            case 3:
                lines.insert(at, f"[{'.'.join('a' * draw.choice((3, 200, 2000)))}]")
            case _ if key and "=" in lines[at]:
                lines[at] = f"{key} = {toml(hostile(draw))}"
            case _:
                lines[at] = damaged_bytes(lines[at].encode(), draw).decode(errors="replace")
    return "\n".join(lines).encode(errors="replace")


def damaged_safetensors(content: bytes, draw: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    if draw.random() < 0.3:
        return damaged_bytes(content, draw)
    header = damaged_json(content[8 : 8 + length], draw)
    claimed = len(header) if draw.random() < 0.95 else draw.choice(NUMBERS)
    return claimed.to_bytes(8, "little") + header + content[8 + length :]


TOKENS = (
    *(
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "-",
        "(",
        ")",
        "[",
        "]",
        "'",
        '"',
        "|",
        ".",
        "~",
        "*",
        "**",
    ),
    *("for", "endfor", "if", "elif", "endif", "set", "endset", "macro", "endmacro", "call", "in"),
    *("messages", "message", "loop", "loop.index0", "range(10**9)", "namespace()", "recursive"),
    *("|join", "|center(9**9)", "|tojson(indent=9**9)", "|sort", "|map(attribute='__class__')"),
    *("'a'*10**10", "('%9999999999d'|format(1))", "__class__", "__mro__", "cycler", "lipsum(9**5)"),
    *("raise_exception('x')", "strftime_now('%Y')", "1/0", "[][9]", "9**9**9", "{{ f() }}", "self"),
    *("{% break %}", "{% generation %}", "{% endgeneration %}", "caller()", "|slice(9**9)"),
    *("{% macro f() %}{{ f() }}{% endmacro %}", "'a'.encode()", ".format(x)", ".zfill(9**9)"),
    *("|batch(3)", "|urlize", "|indent(9**9)"),
)


def damaged_template(content: bytes, draw: random.Random) -> bytes:
    parts = re.split(r"(\W+)", content.decode())
    for _ in range(draw.choice((1, 2, 3, 5))):
        at = draw.randrange(len(parts))
        match draw.randrange(4):
            case 0:
                del parts[at]
                parts.append("")
            case 1:
                parts[at:at] = parts[at : at + draw.choice((1, 5, 20))]
            case 2:
                parts[at] = draw.choice(TOKENS)
            case _:
                parts.insert(at, draw.choice(TOKENS))
    return "".join(parts).encode(errors="replace")


FORMS = {
    "bytes": damaged_bytes,
    "json": damaged_json,
    "lines": damaged_lines,
    "toml": damaged_toml,
    "safetensors": damaged_safetensors,
    "template": damaged_template,
}
