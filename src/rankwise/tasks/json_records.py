"""Records of JSON texts: one in each line, an array of them, under a key, or column by column.

Python's own json reads them. The JSON builder of datasets (5.2) is not used here, because it turns
texts that look like dates into dates, and the text "01" beside numbers into 1.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.errors import RequestError, nearest, some

MESSAGE_ROLES = {"role", "from"}  # a list of objects with one of these keys is one conversation
NEXT_VALUE = re.compile(r"[\s\ufeff]*[^\s\ufeff]")  # also after the mark of a file put in between
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape of half a character, such as an emoji
PANDAS_SPLIT = {"columns", "data"}  # keys that DataFrame.to_json(orient="split") writes


def read_json_text(text: str, path: Path, key: str | None) -> tuple[pd.DataFrame, list[str]]:
    """Return the records as rows, and notes on what was read and what was not.

    Args:
        text: the whole JSON text.
        path: the file, for messages.
        key: key or split that the user named; None to find the records.

    Raises:
        RequestError: the text is no JSON (the message names the line), or holds no records.
    """
    place = f"data {str(path)!r}"
    try:
        content = _parse(text.rstrip())  # so that a text that was cut ends in its last line
    except json.JSONDecodeError as error:
        raise RequestError(f"{place}: line {error.lineno} is no JSON: {error.msg}") from None
    except RecursionError:
        raise RequestError(f"{place}: its JSON is nested too deeply to be read") from None
    if SURROGATE.search(text):
        _refuse_halves(content if isinstance(content, list) else [content], place)
    notes: list[str] = []
    if isinstance(content, dict):
        content, notes = _find_records(content, path, key)
    elif key is not None:
        raise RequestError(f"{place}: it holds one list of records, and no key {key!r}")
    if isinstance(content, pd.DataFrame):
        return content, notes
    if not isinstance(content, list):
        raise RequestError(f"{place}: no records in it, only {type(content).__name__}")
    return pd.DataFrame([_record(value, row, place) for row, value in enumerate(content, 1)]), notes


def _refuse_halves(records: list[Any], place: str) -> None:
    """Refuse a record with half of a character, which json reads and no tokenizer takes."""
    for row, record in enumerate(records, 1):
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])[1:-1]
            problem = f"has half of a character, {half}, without its other half; remove it"
            raise RequestError(f"{place}: record {row} {problem}") from None


def _parse(text: str) -> Any:
    """Return the only value of a JSON text, or the list of all.

    Raises:
        json.JSONDecodeError: a value is malformed; of JSON lines, the error names its own line.
    """
    decoder, values, position = json.JSONDecoder(), [], 0
    try:
        while start := NEXT_VALUE.match(text, position):
            value, position = decoder.raw_decode(text, start.end() - 1)
            values.append(value)
    except json.JSONDecodeError:
        lines = text.split("\n")
        if not any(map(_is_object, lines[:2])):
            raise
        for number, line in enumerate(lines):
            if line.strip():
                _parse_line(line, number)
        raise
    return values[0] if len(values) == 1 else values


def _parse_line(line: str, number: int) -> None:
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        raise json.JSONDecodeError(error.msg, "\n" * number + line, number) from None


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _record(value: Any, row: int, place: str) -> Mapping[str, Any]:
    """Return a record as columns; a bare text or conversation gets a column of its own."""
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        return {"messages": value}
    kind = type(value).__name__
    raise RequestError(f"{place}: record {row} is a {kind}; allowed are objects with named columns")


def _find_records(
    content: dict[str, Any], path: Path, key: str | None
) -> tuple[list[Any] | pd.DataFrame, list[str]]:
    """Return the records in a JSON object, and notes on the key they are under."""
    place = f"data {str(path)!r}"
    lists = {name: value for name, value in content.items() if _is_record_list(value)}
    if key is not None and key not in lists:
        holds = some(lists) or "none"
        raise RequestError(f"{place}: no records under {key!r}{nearest(key, lists)}; keys: {holds}")
    if lists:
        chosen = key or ("train" if "train" in lists else next(iter(lists)))
        if key is None and len(lists) > 1 and "train" not in lists:
            raise RequestError(
                f"{place}: records under several keys: {some(lists)}; "
                f"name one after a colon, as in '{path}:{chosen}'"
            )
        rest = [name for name in content if name != chosen]
        unread = f"; not read: {some(rest)}" if rest else ""
        return lists[chosen], [f"records under the key {chosen!r}{unread}"]
    values = list(content.values())
    if content.keys() >= PANDAS_SPLIT and all(isinstance(row, list) for row in content["data"]):
        return pd.DataFrame(content["data"], columns=content["columns"]), []
    if values and all(isinstance(value, list) for value in values):
        if len(set(map(len, values))) == 1 and not _is_conversation(values[0]):
            return pd.DataFrame(content), []
    elif values and all(isinstance(value, dict) and value for value in values):
        by_row = all(name.isdigit() for name in values[0])  # what DataFrame.to_json() writes
        return (pd.DataFrame(content).reset_index(drop=True) if by_row else values), []
    return [content], []


def _is_record_list(value: Any) -> bool:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        return False
    return bool(value) and not _is_conversation(value)


def _is_conversation(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], dict) and bool(MESSAGE_ROLES & value[0].keys())
