"""Damage to files: bytes changed anywhere, and values changed inside JSON and JSON lines."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 0.5, 1e308, -1e-308, float("nan"), float("inf"), 2**31, 2**53, 2**64, 10**400,
    "", " ", "x", "0", "-1", "1e999", "nan", "null", "x" * 5000, "\u2028", "\x1b[31m", "\ud800", "{{", "a\nb", "../..",
    "(a+)+$", "é", [], {}, [[]], [None], [{}], [1, "a", None], {"": None}, {"a": {"a": [{}]}}, list(range(2000)),
]  # fmt: skip
NUMBERS = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\1\0\0\0",
    b"\0\0\1\0",
)
TEXTS = (
    b"\n",
    b"null\n",
    b'"',
    b"'",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"\t",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"- ",
    b": ",
    b"9" * 40,
)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return a damaged copy: of JSON half the time with another value in it, else with other bytes."""
    if chance.random() < 0.6:
        changed = _mutated_json(content, chance)
        if changed is not None:
            return changed
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        content = chance.choice(BYTES)(content, chance.randint(0, len(content)), chance)
    return content


def damage(directory: Path, names: list[str], chance: random.Random) -> None:
    """Damage a file or two of those that a reader reads."""
    for _ in range(chance.choice((1, 1, 1, 2))):
        path = directory / chance.choice(names)
        if not path.is_file():
            continue
        kind = chance.random()
        if kind < 0.02:
            path.unlink()
        elif kind < 0.03:
            path.unlink()
            path.mkdir()
        elif kind < 0.05:
            path.write_bytes(b"")
        else:
            path.write_bytes(mutated(path.read_bytes(), chance))


def mutated_value(value: Any, chance: random.Random) -> Any:
    """Return a JSON value with one value in it, or one key, changed."""
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    if not places or chance.random() < 0.02:
        return chance.choice(HOSTILE)
    holder, key = chance.choice(places)
    kind = chance.random()
    if kind < 0.6:
        holder[key] = chance.choice(HOSTILE)
    elif kind < 0.75:
        del holder[key]
    elif kind < 0.85:
        other, other_key = chance.choice(places)
        holder[key] = json.loads(json.dumps(other[other_key]))
    elif isinstance(holder, list):
        holder.insert(key, chance.choice(HOSTILE))
    else:
        name = chance.choice((key.upper(), key + "s", "", "x", "\u202e", key[:-1]))
        holder[name] = holder.pop(key) if chance.random() < 0.5 else chance.choice(HOSTILE)
    return value


def _mutated_json(content: bytes, chance: random.Random) -> bytes | None:
    """Return JSON, or a line of JSON lines, with a changed value; None if it is neither."""
    try:
        text = content.decode("utf-8-sig")
        try:
            return _dumped(mutated_value(json.loads(text), chance))
        except ValueError:
            lines = text.split("\n")
            row = chance.randrange(len(lines))
            lines[row] = _dumped(mutated_value(json.loads(lines[row]), chance)).decode()
            return "\n".join(lines).encode()
    except ValueError:
        return None


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def _places(value: Any) -> Any:
    """Yield every collection inside a value with each of its keys."""
    if isinstance(value, dict | list):
        for key in range(len(value)) if isinstance(value, list) else list(value):
            yield value, key
            yield from _places(value[key])


def _flip(content: bytes, at: int, chance: random.Random) -> bytes:
    byte = content[at : at + 1]
    return (
        content[:at] + bytes([byte[0] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
        if byte
        else content
    )


def _number(content: bytes, at: int, chance: random.Random) -> bytes:
    return content[:at] + chance.choice(NUMBERS) + content[at + 4 :]


def _cut(content: bytes, at: int, chance: random.Random) -> bytes:
    return content[:at]


def _leave_out(content: bytes, at: int, chance: random.Random) -> bytes:
    return content[:at] + content[at + chance.choice((1, 4, 8, 100)) :]


def _repeat(content: bytes, at: int, chance: random.Random) -> bytes:
    end = at + chance.choice((1, 4, 8, 100))
    return content[:end] + content[at:end] * chance.choice((1, 2, 50)) + content[end:]


def _insert(content: bytes, at: int, chance: random.Random) -> bytes:
    new = chance.choice((*TEXTS, chance.randbytes(8)))
    if chance.random() < 0.3:  # at the start of a line
        at = content.rfind(b"\n", 0, at) + 1
    return content[:at] + new + content[at:]


def _mix(content: bytes, at: int, chance: random.Random) -> bytes:
    other = chance.randint(0, len(content))
    return content[:at] + content[other : other + 64] + content[at + 64 :]


BYTES: tuple[Callable[[bytes, int, random.Random], bytes], ...] = (
    _flip, _flip, _number, _cut, _leave_out, _repeat, _insert, _insert, _mix,
)  # fmt: skip
