"""Settings: dataclass fields that the command line, YAML files and Python calls share."""

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, fields
from typing import Any

from rankwise.checks import check_whole
from rankwise.errors import RequestError, nearest, shown, some


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A group of settings, each parsed and checked when the object is made."""

    def __post_init__(self) -> None:
        for item in fields(self):
            if "parse" in item.metadata:
                value = item.metadata["parse"](getattr(self, item.name))
                object.__setattr__(self, item.name, value)


def items(value: object) -> list[object]:
    """Split ``"4,8"``, or take several values or a single one as they are: a list, a set, an array."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        return [value]
    if isinstance(value, Set):  # in an order that the next process has too
        return sorted(value, key=str)
    try:
        return list(value)
    except TypeError:  # an array of no dimension
        return [value]


def whole_items(name: str, value: object, *, at_least: int) -> tuple[int, ...]:
    """Return several different whole numbers, ascending."""
    numbers = [check_whole(name, item, at_least=at_least) for item in items(value)]
    if not numbers:
        raise RequestError(f"{name}: none given; allowed is a list such as 4,8,16,32")
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if twice:
        raise RequestError(f"{name}: {some(twice)} given more than once; name each once")
    return tuple(sorted(numbers))


def choice(name: str, allowed: tuple[str, ...]) -> Callable[[Any], str]:
    """Return a parser of names from a list, in any case."""

    def parse(value: object) -> str:
        matches = {option.lower(): option for option in allowed}
        text = value.strip().lower() if isinstance(value, str) else ""
        if text not in matches:
            raise RequestError(
                f"{name} {shown(value)}: allowed are {', '.join(allowed)}{nearest(text, matches)}"
            )
        return matches[text]

    return parse


def one_of(name: str, allowed: tuple[str, ...], value: object) -> str:
    """Return one of the allowed names."""
    if not isinstance(value, str) or value not in allowed:
        near = nearest(value, allowed) if isinstance(value, str) else ""
        raise RequestError(
            f"{name} {shown(value)}: allowed are {', '.join(allowed[:-1])} and {allowed[-1]}{near}"
        )
    return value


def optional(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a parser that lets None pass."""
    return lambda value: None if value is None else parse(value)


def option(default: object, help: str, parse: Callable[[Any], Any]) -> Any:
    """Declare a field that is a setting."""
    return field(default=default, metadata={"help": help, "parse": parse})
