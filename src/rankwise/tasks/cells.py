"""Lists and mappings in the cells of a table: as objects, as JSON text, or in Python's spelling."""

import ast
import json
import re
from typing import Any

# A quoted text, which stays as it is, or the gap between two mappings.
NUMPY_GAP = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|\}\s+(?=\{)""")
SAVE_AS_JSON = "; to save lists in CSV, write each cell with json.dumps"


def is_empty(cell: object) -> bool:
    """Whether a cell is missing, blank, or a collection without items."""
    if isinstance(cell, str):
        return not cell.strip() or cell.strip() in ("[]", "{}", "null")
    value = plain(cell)
    if isinstance(value, (list, dict)):
        return not value
    return value is None or value != value  # NaN alone differs from itself


def plain(value: Any) -> Any:
    """Return lists, mappings and single values without arrays, and mappings without nulls.

    Arrow gives every mapping of a column the keys of all others, with null for those it lacks.
    """
    if hasattr(value, "tolist"):  # an array, or one of its values
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def parse_cell(cell: object) -> Any:
    """Return the list or the mapping in a cell; None if it holds neither.

    Text is parsed as JSON or else as Python writes a list, which is how pandas saves it to CSV.
    """
    if not isinstance(cell, str):
        value = plain(cell)
        return value if isinstance(value, (list, dict)) else None
    text = cell.strip()
    if not text.startswith(("[", "{")):
        return None
    for read in (json.loads, _python_literal):
        try:
            value = plain(read(text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        return value if isinstance(value, (list, dict)) else None
    return None


def _python_literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except SyntaxError:  # NumPy writes no comma between the mappings of an array
        return ast.literal_eval(NUMPY_GAP.sub(lambda found: found[1] or "}, ", text))
