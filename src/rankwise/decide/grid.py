"""Rows of evidence as arrays by seed and example, without a copy where their order allows it."""

import numpy as np
import pandas as pd

TRIAL_KEY = ("rank", "learning_rate", "seed")


def rows_where(evidence: pd.DataFrame, wanted: pd.Series) -> pd.DataFrame:
    """Return the rows that are wanted; those that lie together are not copied."""
    places = np.flatnonzero(wanted.to_numpy())
    if len(places) and places[-1] - places[0] + 1 == len(places):
        return evidence.iloc[places[0] : places[-1] + 1]
    return evidence[wanted]


def ids_ascend(evidence: pd.DataFrame) -> bool:
    """Whether each trial's rows lie together with ascending ids, so that no row repeats another."""
    ids = evidence["example_id"].to_numpy()
    if not len(ids) or ids.dtype.kind != "i":
        return False
    starts = np.zeros(len(ids), dtype=bool)
    starts[0] = True
    for name in TRIAL_KEY:
        values = evidence[name].to_numpy()
        starts[1:] |= values[1:] != values[:-1]
    is_repeated = evidence.loc[starts, list(TRIAL_KEY)].duplicated().any()
    return bool(not is_repeated and (starts[1:] | (ids[1:] > ids[:-1])).all())


class Grid:
    """The trials of one rank at one rate, by seed and example.

    Attributes:
        seeds: ascending, (S,).
        examples: ids, sorted, (N,).
    """

    def __init__(self, trials: pd.DataFrame) -> None:
        self._trials = trials
        seeds, ids = trials["seed"].to_numpy(), trials["example_id"].to_numpy()
        row, levels = pd.factorize(seeds, sort=True)
        self.seeds = tuple(int(seed) for seed in levels)
        self._row, self._column = row, np.empty(0, dtype=int)
        count = len(ids) // max(1, len(levels))
        # Most evidence lists the same examples, ascending, for one seed after the other.
        blocks = ids[: count * len(levels)].reshape(-1, max(1, count))
        expected = np.repeat(np.arange(len(levels)), count)
        self._is_ordered = (
            ids.dtype.kind == "i"
            and len(ids) == count * len(levels)
            and np.array_equal(row, expected)
            and bool((blocks == blocks[:1]).all())
            and bool((np.diff(blocks[0]) > 0).all())
        )
        if self._is_ordered:
            self.examples = blocks[0].copy()
        else:
            self._column, found = pd.factorize(ids, sort=True)
            self.examples = np.asarray(found)

    def array(self, name: str) -> np.ndarray:
        """Return a column by seed and example, (S, N); NaN where a seed lacks an example."""
        shape = (len(self.seeds), len(self.examples))
        if self._is_ordered:
            return self._trials[name].to_numpy(dtype=float).reshape(shape)
        values = np.full(shape, np.nan)
        values[self._row, self._column] = self._trials[name]
        return values
