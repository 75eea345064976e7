"""Records from the JSON of a sweep's files."""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from rankwise.errors import shown, some

Record = TypeVar("Record")


def parse(kind: type[Record], content: Mapping[str, Any]) -> Record:
    """Build a dataclass from a JSON object; other entries are left out.

    Raises:
        KeyError: entries are missing.
        ValueError: an entry is of another type.
    """
    try:
        record: Record = _parser(kind).validate_python(content)  # type: ignore[arg-type]
    except ValidationError as error:
        faults = error.errors(include_url=False)
        lacking = [fault["loc"] for fault in faults if fault["type"] == "missing"]
        if lacking:
            raise KeyError(some(".".join(map(str, names)) for names in lacking)) from None
        name = ".".join(map(str, faults[0]["loc"]))
        raise ValueError(f"its {name} is {shown(faults[0]['input'])}") from None
    return record


@cache
def _parser(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
