"""Numbers in cells of text: percent signs, decimal commas and means with their spread."""

import re
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from rankwise.decide.evidence import as_measures

NUMBER = r"[-+]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][-+]?\d+)?"
SIGN = r"(?:±|\+/-|\+-|\\pm|pm)"
# 54.1, 54.1%, 54.0 ± 0.4, 54.0% ± 0.4%, 54.0 (0.4), 54.0 (±0.4), $54.0_{\pm 0.4}$, 54.0±0.4*
CELL = re.compile(
    rf"[\s$*]*(?P<mean>{NUMBER})\s*(?P<percent>\\?%)?"
    rf"(?:[\s_{{(]*(?:{SIGN}|\()\s*{SIGN}?\s*(?P<spread>{NUMBER})\s*(?P<after>\\?%)?[)}}\s]*)?"
    r"\s*(?P<last>\\?%)?[\s$*†‡]*"
)
THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+")


@dataclass(frozen=True)
class Numbers:
    """A column as numbers.

    Attributes:
        values: the numbers, or the means, (rows,); NaN where a cell holds none.
        spreads: the numbers after "±", (rows,); NaN where there is none.
        is_percent: whether percents became shares.
    """

    values: np.ndarray
    spreads: np.ndarray
    is_percent: bool = False

    @property
    def has_spread(self) -> bool:
        """Whether a cell holds a mean with its spread."""
        return bool(np.isfinite(self.spreads).any())

    def take(self, rows: np.ndarray) -> "Numbers":
        """Return some of the rows, by their places."""
        return replace(self, values=self.values[rows], spreads=self.spreads[rows])


def read_numbers(column: pd.Series) -> Numbers:
    """Return a column as numbers; texts are read where all of them are written alike.

    Numbers under a name such as ``accuracy (%)`` become shares, unless they are shares already. A
    comma is a decimal sign unless every cell may hold thousands, as "1,234" does. Cells with and
    without a percent sign are not mixed: those without are then no numbers.
    """
    numbers = _read(column)
    known = numbers.values[np.isfinite(numbers.values)]
    if "%" not in str(column.name) or numbers.is_percent or not (np.abs(known) > 1).any():
        return numbers
    return Numbers(numbers.values / 100, numbers.spreads / 100, is_percent=True)


def _read(column: pd.Series) -> Numbers:
    nothing = np.full(len(column), np.nan)
    if pd.api.types.is_numeric_dtype(column):
        return Numbers(as_measures(column), nothing)
    is_text = column.map(lambda cell: isinstance(cell, str)).to_numpy(dtype=bool)
    texts = column[is_text].astype(str)
    matches = [CELL.fullmatch(text) for text in texts]
    if not any(match and _needs_reading(match) for match in matches):
        return Numbers(as_measures(column), nothing)
    commas = [text.strip() for text in texts if "," in text]
    if commas and all(THOUSANDS.fullmatch(text) for text in commas):
        return Numbers(as_measures(column), nothing)
    percent = any(match and _is_percent(match) for match in matches)
    values = as_measures(column.astype(object).where(~is_text, None)).copy()
    spreads = nothing.copy()
    if percent:
        values[:] = np.nan
    places = np.flatnonzero(is_text)
    for place, match in zip(places, matches, strict=True):
        if match and _is_percent(match) == percent:
            unit = 100 if percent else 1
            values[place] = _number(match["mean"]) / unit
            if match["spread"]:
                spreads[place] = _number(match["spread"]) / unit
    return Numbers(values, spreads, percent)


def _needs_reading(match: re.Match[str]) -> bool:
    marked = any(sign in match[0] for sign in ",*$†‡")
    return marked or bool(match["spread"]) or _is_percent(match)


def _is_percent(match: re.Match[str]) -> bool:
    return bool(match["percent"] or match["after"] or match["last"])


def _number(text: str) -> float:
    return float(text.replace(",", "."))
