"""Typed settings: one declaration serves the command line, YAML files and Python calls.

A setting is a dataclass field whose annotation holds the type, its check and an `Option`::

    seeds: Annotated[Count, Option("Trials per rank, each with its own seed.", "search")] = 2

pydantic parses and checks the value when the object is made, so that text from a command line
(``"4,8"``) and Python values (``[4, 8]``) mean the same. `rankwise.cli.options` makes a
command-line option of the same field.
"""

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    BeforeValidator,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    WrapValidator,
)
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from rankwise.checks import (
    check_flag,
    check_number,
    check_path,
    check_text,
    check_whole,
    parse_bytes,
)
from rankwise.errors import RequestError, nearest, not_allowed, shown, some

Config = TypeVar("Config", bound="Settings")

Group = Literal[
    "model and data",
    "columns",
    "search",
    "trainer",
    "training",
    "adapter",
    "decision",
    "machine",
    "output",
]
GROUPS: tuple[Group, ...] = get_args(Group)
"""Headings of ``--help``, in the order of the page."""

MOST_RANKS = 64

NAME = "<name>"
"""Stands for the setting in a refusal until the setting is known."""


@dataclass(frozen=True)
class Option:
    """Description of a setting for people.

    Attributes:
        help: one sentence, with the unit.
        group: heading in ``--help``.
        metavar: placeholder for the value; None for one that follows from the type.
        unset: meaning of no value, shown as the default.
        positional: whether the command line takes the value by its place.
        negative: for a flag, the option that sets it to false.
        aliases: other names of the setting.
    """

    help: str
    group: Group = "model and data"
    metavar: str | None = None
    unset: str | None = None
    positional: bool = False
    negative: str | None = None
    aliases: tuple[str, ...] = ()


def column(content: str) -> Option:
    """Describe a setting that names a column of a table."""
    return Option(f"Column of the {content}.", "columns", "COLUMN", "found by name")


def checked(check: Callable[..., object], **bounds: Any) -> PlainValidator:
    """Return the validator that calls ``check(name of the setting, value, **bounds)``."""
    return PlainValidator(partial(check, NAME, **bounds))


def any_case(*names: str) -> BeforeValidator:
    """Return a validator that accepts names in upper and lower case."""
    spellings = {name.lower(): name for name in names}

    def parse(value: Any) -> Any:
        return spellings.get(value.strip().lower(), value) if isinstance(value, str) else value

    return BeforeValidator(parse)


def items(value: object) -> list[object]:
    """Split ``"4,8"``, or list the values of a collection; a single value is a list of one."""
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


def ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    """Return different values in ascending order.

    Raises:
        RequestError: there are none, or one is given twice.
    """
    if not values:
        raise RequestError("ranks: none given; allowed is a list such as 4,8,16,32")
    if len(values) > MOST_RANKS:
        raise RequestError(f"ranks: {len(values)} given; allowed are {MOST_RANKS} at most")
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise RequestError(f"rank: {some(twice)} given more than once; name each once")
    return tuple(sorted(values))


Count = Annotated[int, checked(check_whole, at_least=1)]
Seeds = Annotated[int, checked(check_whole, at_least=1, at_most=1000)]
Positive = Annotated[float, checked(check_number, above=0)]
Share = Annotated[float, checked(check_number, above=0, below=1)]
Text = Annotated[str, checked(check_text)]
FilePath = Annotated[Path, checked(check_path)]
Flag = Annotated[bool, checked(check_flag)]
Bytes = Annotated[int, checked(parse_bytes)]
Later: Any = None
"""Default of a setting of any type whose value follows from the others, once they are known."""
OrLater = WrapValidator(lambda value, check: None if value is None else check(value))
"""Lets a setting have the value `Later`."""
Several = BeforeValidator(items)
"""Lets a tuple of values be given as text with commas, or as any collection."""
Ranks = Annotated[tuple[Count, ...], Several, AfterValidator(ascending)]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base class of requests: a frozen dataclass whose values are checked when it is made.

    Raises:
        RequestError: a value is not allowed; the message names it and what is allowed.
    """

    def __post_init__(self) -> None:
        try:
            validator = _validator(type(self))  # type: ignore[arg-type]
            values = validator.validate_python(vars(self))
        except ValidationError as error:
            raise _refusal(type(self), error) from None
        for name, value in values.items():
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
    annotations = hints(kind)
    return {
        item.name: part
        for item in fields(kind)
        for part in getattr(annotations[item.name], "__metadata__", ())
        if isinstance(part, Option)
    }


def choices(annotation: Any) -> tuple[str, ...]:
    """Return the values that a ``Literal`` in an annotation allows, if there is one."""
    if get_origin(annotation) is Annotated:
        return choices(annotation.__origin__)
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((found for inner in get_args(annotation) if (found := choices(inner))), ())


def plain_type(annotation: Any) -> type[Any]:
    """Return the type of a value without its metadata, and without None: ``int``, ``tuple``, ..."""
    if get_origin(annotation) is Annotated:
        return plain_type(annotation.__origin__)
    if get_origin(annotation) in (Union, UnionType):
        return plain_type(get_args(annotation)[0])
    return get_origin(annotation) or annotation


@cache
def _validator(kind: type[Settings]) -> TypeAdapter[Any]:
    """Return pydantic's validator of the fields of a request."""
    make: Any = TypedDict  # a class made of data, which type checkers cannot follow
    annotations = hints(kind)
    for name, hint in annotations.items():
        if choices(hint):
            annotations[name] = Annotated[hint, any_case(*choices(hint))]
    return TypeAdapter(make(kind.__name__, annotations))


def _refusal(kind: type[Settings], error: ValidationError) -> RequestError:
    """Say in one line what pydantic refused first."""
    first = error.errors(include_url=False)[0]
    name, value = str(first["loc"][0]), first["input"]
    inside = len(first["loc"]) > 1  # one of several, as in ranks
    label = name.removesuffix("s") if inside else name
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):
        return RequestError(str(cause).replace(NAME, label, 1), setting=name)
    names = choices(hints(kind)[name])
    hint = nearest(value, names) if isinstance(value, str) else ""
    allowed = f"allowed are {', '.join(names[:-1])} and {names[-1]}"
    return RequestError(f"{label} {shown(value)}: {allowed}{hint}", setting=name)


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
            both = f"{written[name]!r} and {key!r}"
            raise RequestError(f"{both} are the same setting; give one of them")
        if name not in known:
            hint = f"{nearest(name, known)}; known: {', '.join(known)}"
            raise RequestError(f"{key!r} is not a setting of {what}{hint}", setting=str(key))
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
        hint = "give settings by name, as in model='path', ranks=[4, 8], or as **settings"
        raise not_allowed("config", config, f"a {kind.__name__}; {hint}")
    return config
