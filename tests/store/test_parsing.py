"""Records from JSON objects: whole, or refused by the name of an entry."""

from dataclasses import dataclass

import pytest

from rankwise.store.parsing import parse


@dataclass(frozen=True, kw_only=True)
class Inner:
    count: int


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner
    share: float = 0.5


def test_a_record_has_its_entries_and_no_others() -> None:
    content = {"name": "a", "inner": {"count": 3, "more": 1}, "unknown": None}
    assert parse(Outer, content) == Outer(name="a", inner=Inner(count=3))


def test_what_is_missing_or_of_another_type_is_named() -> None:
    with pytest.raises(KeyError, match=r"name, inner\.count"):
        parse(Outer, {"inner": {}})
    with pytest.raises(ValueError, match=r"its inner\.count is 'many'"):
        parse(Outer, {"name": "a", "inner": {"count": "many"}})
