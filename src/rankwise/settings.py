"""Typed settings: one declaration serves the command line, YAML files and Python calls.

A setting is a dataclass field whose annotation holds the type, its bounds and an `Option`::

    seeds: Annotated[Count, Option("Train this many trials per rank.", SEARCH)] = 2

pydantic parses and checks the value when the object is made, so that text from a command line
(``"4,8"``) and Python values (``[4, 8]``) mean the same. `rankwise.cli.options` makes a
command-line option of the same field.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    AfterValidator,
    AllowInfNan,
    BeforeValidator,
    Strict,
    TypeAdapter,
    ValidationError,
)
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from rankwise.checks import LARGEST
from rankwise.errors import RequestError, nearest, shown, some

Config = TypeVar("Config", bound="Settings")

MODEL, SEARCH, TRAINING, ADAPTER = "model and data", "search", "training", "adapter"
DECISION, MACHINE, OUTPUT = "decision", "machine", "output"
GROUPS = (MODEL, SEARCH, TRAINING, ADAPTER, DECISION, MACHINE, OUTPUT)
"""Headings of ``--help``, in the order of the page."""


@dataclass(frozen=True)
class Option:
    """Description of a setting for people.

    Attributes:
        help: one sentence, with the unit.
        group: heading in ``--help``, one of `GROUPS`.
        metavar: placeholder for the value; None for one that follows from the type.
        unset: what no value means, shown as the default.
        positional: whether the command line takes the value by its place.
        negative: for a flag, the option that sets it to false.
        aliases: other names of the setting.
    """

    help: str
    group: str = MODEL
    metavar: str | None = None
    unset: str | None = None
    positional: bool = False
    negative: str | None = None
    aliases: tuple[str, ...] = ()


def column(content: str) -> Option:
    """Describe a setting that names a column of a table."""
    return Option(f"Column of the {content}.", MODEL, "COLUMN", "found by its name")


@dataclass(frozen=True)
class Rule:
    """Constraints on a value together with their wording in refusals.

    pydantic expands the rule into its constraints (``annotated_types.GroupedMetadata``).
    """

    allowed: str
    constraints: tuple[Any, ...]
    __is_annotated_types_grouped_metadata__: Literal[True] = True

    def __iter__(self) -> Iterator[Any]:
        return iter(self.constraints)


def whole(at_least: int) -> Rule:
    """Return the rule of whole numbers from ``at_least`` on."""
    allowed = f"a whole number, at least {at_least}"
    return Rule(allowed, (Ge(at_least), Le(LARGEST), BeforeValidator(_whole)))


def number(above: float, below: float | None = None) -> Rule:
    """Return the rule of finite numbers strictly between two bounds."""
    upper = "" if below is None else f" and below {below:g}"
    bounds = (Gt(above),) if below is None else (Gt(above), Lt(below))
    allowed = f"a number above {above:g}{upper}"
    return Rule(allowed, (AllowInfNan(False), *bounds, BeforeValidator(_real)))


def _whole(value: Any) -> Any:
    """Return a whole number as an int, and anything else as it is, for pydantic to refuse."""
    number = _real(value)
    try:
        parsed = float(number)
    except (TypeError, ValueError, OverflowError):
        return value
    return int(parsed) if parsed.is_integer() else value


def _real(value: Any) -> Any:
    """Refuse truth values, and return NumPy's numbers as Python's."""
    if isinstance(value, bool):
        raise ValueError("a truth value is not a number")
    if isinstance(value, (str, int, float)):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _not_blank(value: str) -> str:
    if isinstance(value, str) and not value.strip():
        raise ValueError("blank")
    return value


def _path(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return Path(value)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("not a path")
    return value


Count = Annotated[int, whole(1)]
Positive = Annotated[float, number(above=0)]
Share = Annotated[float, number(above=0, below=1)]
Text = Annotated[str, Rule("a text that is not blank", (Strict(), BeforeValidator(_not_blank)))]
FilePath = Annotated[
    Path, Rule("the path of a file or directory, as a text", (BeforeValidator(_path),))
]
Flag = Annotated[bool, Rule("true or false", (Strict(),))]


def any_case(*names: str) -> BeforeValidator:
    """Return a validator that accepts names in upper and lower case."""
    spellings = {name.lower(): name for name in names}

    def parse(value: Any) -> Any:
        return spellings.get(value.strip().lower(), value) if isinstance(value, str) else value

    return BeforeValidator(parse)


def items(value: object) -> list[object]:
    """Split ``"4,8"``, or list the values of a sequence, set or array; a single value is a list of one."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        return [value]
    if isinstance(value, Set):  # sorted, so that every process sees the same order
        return sorted(value, key=str)
    try:
        return list(value)
    except TypeError:  # an array of no dimension
        return [value]


Several = BeforeValidator(items)
"""Lets a tuple of values be given as text with commas, or as any collection."""


def ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    """Return different values in ascending order.

    Raises:
        RequestError: there are none, or one is given twice.
    """
    if not values:
        raise RequestError("ranks: none given; allowed is a list such as 4,8,16,32")
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise RequestError(f"rank: {some(twice)} given more than once; name each once")
    return tuple(sorted(values))


Ranks = Annotated[tuple[Count, ...], Several, AfterValidator(ascending)]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base class of requests: a frozen dataclass whose values are checked when it is made.

    Raises:
        RequestError: a value is not allowed; the message names it and what is allowed.
    """

    def __post_init__(self) -> None:
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        try:
            checked = _validator(type(self)).validate_python(given)
        except ValidationError as error:
            raise _refusal(type(self), error) from None
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def as_dict(self) -> dict[str, Any]:
        """Return the request as JSON values."""
        values: dict[str, Any] = {}
        for name in options(type(self)):
            value = getattr(self, name)
            if isinstance(value, Path):
                value = str(value)
            elif isinstance(value, tuple):
                value = list(value)
            values[name] = value
        return values


def hints(kind: type[Settings]) -> dict[str, Any]:
    """Return the annotations of all fields."""
    return get_type_hints(kind, include_extras=True)


def options(kind: type[Settings]) -> dict[str, Option]:
    """Return the settings by name; a field without an `Option` is not one."""
    found = {item.name: find(hints(kind)[item.name], Option) for item in fields(kind)}
    return {name: option for name, option in found.items() if option is not None}


def find(annotation: Any, kind: type[Any]) -> Any:
    """Return the first metadata of a kind anywhere in an annotation, or None."""
    for part in getattr(annotation, "__metadata__", ()):
        if isinstance(part, kind):
            return part
    if get_origin(annotation) is Annotated:
        return find(annotation.__origin__, kind)
    return next((part for inner in get_args(annotation) if (part := find(inner, kind))), None)


def choices(annotation: Any) -> tuple[str, ...]:
    """Return the values that a ``Literal`` in an annotation allows; none if there is no ``Literal``."""
    if get_origin(annotation) is Annotated:
        return choices(annotation.__origin__)
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((found for inner in get_args(annotation) if (found := choices(inner))), ())


def plain_type(annotation: Any) -> type[Any]:
    """Return the type of a value without its metadata, and without None: ``int``, ``tuple``, ..."""
    if get_origin(annotation) is Annotated:
        return plain_type(annotation.__origin__)
    inner = [part for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) in (Union, UnionType):
        return plain_type(inner[0])
    return get_origin(annotation) or annotation


_VALIDATORS: dict[type, TypeAdapter[Any]] = {}


def _validator(kind: type[Settings]) -> TypeAdapter[Any]:
    """Return pydantic's validator of the fields of a request, built when it is first needed."""
    if kind not in _VALIDATORS:
        make: Any = TypedDict  # a class made of data, which type checkers cannot follow
        _VALIDATORS[kind] = TypeAdapter(make(kind.__name__, hints(kind)))
    return _VALIDATORS[kind]


def _refusal(kind: type[Settings], error: ValidationError) -> RequestError:
    """Say in one line what pydantic refused first."""
    first = error.errors(include_url=False)[0]
    name, *inside = first["loc"]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):
        return RequestError(str(cause), setting=str(name))
    label, value, hint = str(name), first["input"], ""
    if inside and label.endswith("s"):  # one of several, as in ranks
        label = label[:-1]
    names, rule = choices(hints(kind)[str(name)]), find(hints(kind)[str(name)], Rule)
    if names:
        allowed = f"allowed are {', '.join(names[:-1])} and {names[-1]}"
        hint = nearest(value, names) if isinstance(value, str) else ""
    else:
        allowed = f"allowed is {rule.allowed}"
        if first["type"] == "less_than_equal":
            allowed += f" and at most {LARGEST}"
        if first["type"] == "string_type" and isinstance(value, int) and abs(value) <= LARGEST:
            hint = f"; write {value!r} in quotes"
    return RequestError(f"{label} {shown(value)}: {allowed}{hint}", setting=str(name))


def named(kind: type[Settings], values: Mapping[Any, object], what: str) -> dict[str, object]:
    """Return values by the names of settings: ``batch-size`` is ``batch_size``.

    Raises:
        RequestError: a name is not a setting (the nearest is named), or two are the same setting.
    """
    known = options(kind)
    aliases = {alias: name for name, option in known.items() for alias in option.aliases}
    written: dict[str, Any] = {}
    for key in values:
        name = str(key).replace("-", "_")
        name = aliases.get(name, name)
        if name in written:
            raise RequestError(
                f"{written[name]!r} and {key!r} are the same setting; give one of them"
            )
        if name not in known:
            raise RequestError(
                f"{key!r} is not a setting of {what}{nearest(name, known)}; "
                f"known: {', '.join(known)}",
                setting=str(key),
            )
        written[name] = key
    return {name: values[key] for name, key in written.items()}


def requested_config(
    kind: type[Config], config: Config | None, values: Mapping[str, object], what: str
) -> Config:
    """Return a request that is given as a whole or by its fields.

    Raises:
        RequestError: both are given, the config is of another kind, or a field is not allowed.
    """
    if config is None:
        return kind(**named(kind, values, what))
    if values:
        raise RequestError("give either a config or its fields, not both")
    if not isinstance(config, kind):
        raise RequestError(
            f"config {shown(config)}: allowed is a {kind.__name__}; give settings by their names, "
            "as in model='path/to/model', ranks=[4, 8], and a mapping as **settings"
        )
    return config
