"""Which columns of a table hold the rank, the seed, the learning rate and the examples."""

import re

import numpy as np
import pandas as pd

from rankwise.analysis.cells import read_numbers
from rankwise.analysis.config import Reading
from rankwise.analysis.name_patterns import (
    SEED_WORDS,
    check_rank_pattern,
    number_in_name,
    pattern_advice,
    rank_in_name,
)
from rankwise.analysis.names import (
    EXAMPLE_NAMES,
    RUN_NAMES,
    SETTING_NAMES,
    bare_name,
    columns_named,
    is_rank_of_lora,
    setting_columns,
)
from rankwise.analysis.rows import BASELINES, is_baseline
from rankwise.errors import RequestError, nearest, shown, some

FEWEST_POSITIONS = 5  # ranks 1, 2, 3, 4 may be LoRA ranks; 1, 2, 3, 4, 5 look like positions
FEWEST_PROCESSES = 4


def pick_columns(
    table: pd.DataFrame, origin: str, reading: Reading
) -> tuple[dict[str, str], list[str]]:
    """Return the column of each role that the table has, and notes; the rank's may be missing.

    Raises:
        RequestError: a column that the user named is missing, or one column has two roles.
    """
    columns: dict[str, str] = {}
    notes: list[str] = []
    for role, asked in reading.columns.items():
        if asked is None:
            continue
        column = named_column(table, asked, f"{role}_column", origin)
        for other, taken in columns.items():
            if column == taken:
                both = f"{other}_column and {role}_column"
                raise RequestError(f"{both} are both {column!r}; name two columns")
        columns[role] = column
    free = [name for name in table.columns if name not in columns.values()]
    if "rank" not in columns and reading.rank_pattern is None:
        columns |= _rank_column(table[free], origin, notes)
    for role in SETTING_NAMES:
        found = setting_columns(free, role)
        if role not in columns and found:
            columns[role] = found[0]
    examples = [name for name in columns_named(free, EXAMPLE_NAMES) if name not in columns.values()]
    if "example" in columns or not examples:
        return columns, notes
    if table[examples[0]].astype(str).is_unique:
        # The same held-out examples occur at every rank, so ids that never repeat number rows.
        reason = "its values never repeat, so they are not example ids"
        notes.append(f"{origin}: {examples[0]!r} is left out: {reason}")
        return columns, notes
    return {**columns, "example": examples[0]}, notes


def named_column(table: pd.DataFrame, asked: str, option: str, origin: str) -> str:
    """Return the column that the user named, with or without its prefix.

    Raises:
        RequestError: there is none, or several.
    """
    if asked in table.columns:
        return asked
    bare = [name for name in table.columns if asked == bare_name(name).rest]
    if len(bare) != 1:
        hint = f" ({' and '.join(map(repr, bare))} are)" if bare else nearest(asked, table.columns)
        columns = some(table.columns, 12)
        raise RequestError(f"{option} {asked!r} is not in {origin!r}{hint}; columns: {columns}")
    return bare[0]


def find_ranks(
    table: pd.DataFrame, columns: dict[str, str], origin: str, reading: Reading
) -> tuple[pd.Series, dict[str, pd.Series]]:
    """Return each row's rank, and settings that are in the names of runs, where these are read.

    A rank that is no number stays as it was written.

    Raises:
        RequestError: no column holds ranks, or a pattern finds none.
    """
    if reading.rank_pattern is not None:
        return _from_names(table, columns, origin, reading.rank_pattern)
    if "rank" not in columns:
        advice = _pattern_advice(table)
        advice = f", or, {advice}" if advice else ""
        raise RequestError(
            f"{origin!r} has no column that is plainly the rank; name it with rank_column"
            f"{advice}; columns: {some(table.columns, 12)}"
        )
    cells = table[columns["rank"]]
    if pd.api.types.is_numeric_dtype(cells):
        return cells, {}
    values = read_numbers(cells).values
    texts = [str(cell) for cell in cells[~np.isfinite(values)] if not is_baseline(cell)]
    if advice := pattern_advice(texts):
        raise RequestError(
            f"column {columns['rank']!r} of {origin!r} holds texts, such as {texts[0]!r}; {advice}"
        )
    return cells.astype(object).where(~np.isfinite(values), values), {}


def _rank_column(table: pd.DataFrame, origin: str, notes: list[str]) -> dict[str, str]:
    """Return the column of LoRA ranks under the name of its role; {} if there is none."""
    candidates = setting_columns(table.columns, "rank")
    values = {name: read_numbers(table[name]).values for name in candidates}
    whole = [name for name in candidates if _all_whole(values[name])]  # r may be a correlation
    candidates = whole or candidates
    if not candidates:
        return {}
    first = candidates[0]
    for other in candidates[1:]:
        both = np.isfinite(values[first]) & np.isfinite(values[other])
        if (values[first][both] == values[other][both]).all():
            continue
        if is_rank_of_lora(other):
            raise RequestError(
                f"{origin!r}: {first!r} and {other!r} both look like the LoRA rank and differ; "
                "name one with rank_column"
            )
        notes.append(
            f"{origin}: the rank is taken from {first!r}; {other!r} beside it is a position or a "
            "process, and left out"
        )
    is_bare = bare_name(first).last == "rank" and not is_rank_of_lora(first)
    pattern = _pattern_advice(table) if is_bare else ""
    if len(candidates) == 1 and is_bare and _counts(values[first], bool(pattern)):
        least, most = int(values[first].min()), int(values[first].max())
        advice = f"if these are LoRA ranks, give --rank-column {first} (rank_column)"
        raise RequestError(
            f"{origin!r}: {first!r} counts {least} to {most}, as positions or processes do; "
            f"{advice}" + (f"; {pattern}" if pattern else "")
        )
    return {"rank": first}


def _pattern_advice(table: pd.DataFrame) -> str:
    """Return advice on a pattern that fits a column of names; "" if none does."""
    for name in _text_columns(table):
        if advice := pattern_advice(list(table[name].dropna().astype(str))):
            return advice
    return ""


def _all_whole(values: np.ndarray) -> bool:
    known = values[np.isfinite(values)]
    return bool((np.floor(known) == known).all())


def _counts(values: np.ndarray, names_have_ranks: bool) -> bool:
    """Whether ranks look like positions, 1 to n and each once, or like processes, 0 to n.

    If names of runs seem to hold other ranks, few are enough.
    """
    if not np.isfinite(values).all():
        return False
    distinct = np.unique(values)
    least = distinct[0]
    if not np.array_equal(distinct, least + np.arange(len(distinct))):
        return False
    if least == 1:
        fewest = 2 if names_have_ranks else FEWEST_POSITIONS
        return len(values) == len(distinct) >= fewest
    return bool(least == 0) and len(distinct) >= FEWEST_PROCESSES


def _text_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns of texts, those with names of runs first."""
    texts = [
        name
        for name in table.columns
        if table[name].map(lambda cell: isinstance(cell, str)).astype(bool).any()
    ]
    named = [name for name in columns_named(table.columns, RUN_NAMES) if name in texts]
    return list(dict.fromkeys([*named, *texts]))


def _from_names(
    table: pd.DataFrame, columns: dict[str, str], origin: str, pattern: str
) -> tuple[pd.Series, dict[str, pd.Series]]:
    """Find ranks, and seeds and learning rates that have no column, in the names of runs."""
    names = [columns["rank"]] if "rank" in columns else _text_columns(table)
    ranks = {}
    for name in names:
        cells = table[name].map(lambda cell: "" if pd.isna(cell) else str(cell))
        check_rank_pattern(pattern, cells)
        found = cells.map(lambda cell: rank_in_name(pattern, cell)[0])
        ranks[name] = pd.Series(found, dtype=object).where(found.notna(), cells)
        bare = [cell for cell, rank in zip(cells, found, strict=True) if pd.isna(rank)]
        if len(bare) < len(cells) and all(map(_names_no_rank, bare)):
            ranks[name] = ranks[name].where(found.notna(), 0)
            columns["rank"] = name
            return ranks[name], _settings_in_names(cells, pattern, columns)
    where = f"column {names[0]!r}" if len(names) == 1 else f"columns {some(map(repr, names))}"
    advice = pattern_advice([cell for name in names for cell in table[name].dropna().astype(str)])
    raise RequestError(
        f"rank_pattern {shown(pattern)} does not find a rank in every row of {where} of {origin!r}"
        + (f"; {advice}" if advice else "; name the column of runs with rank_column")
    )


def _settings_in_names(
    names: pd.Series, pattern: str, columns: dict[str, str]
) -> dict[str, pd.Series]:
    """Return seeds and learning rates that all names with a rank hold."""
    settings = {}
    named = names.map(lambda name: rank_in_name(pattern, name)[0] is not None).astype(bool)
    words = {**SETTING_NAMES, "seed": SEED_WORDS}
    for role in SETTING_NAMES:
        if role in columns:
            continue
        found = names.map(lambda name, role=role: number_in_name(name, words[role]))
        if role == "seed":
            by_group = names.map(lambda name: rank_in_name(pattern, name)[1])
            found = by_group.where(by_group.notna(), found)
        if found[named].notna().all():
            settings[role] = found.where(found.notna(), 0)
    return settings


def _names_no_rank(name: str) -> bool:
    """Whether a run's name is that of a baseline, such as ``llama-full-ft``."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    return bool(words & (BASELINES - {"", "0", "inf", "ft", "na"}))
