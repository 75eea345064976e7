"""Healed adapters: truncated, then trained on briefly. Do they take the place of their cut?

A cut, and the adapter that was trained on from it, are two candidates of one rank, so the better
one alone would look better than it is. A healed adapter therefore counts only where it is shown to
be within the margin of the full adapter, seed by seed; otherwise the cut stays.
"""

import numpy as np
import pandas as pd

from rankwise.decide.evidence import best_learning_rate, is_healed
from rankwise.decide.sequential import judge

LOOKS = 2  # at the cuts, and at the healed adapters; each has half of the error


def holds(adapters: pd.DataFrame, full: pd.DataFrame, margin: float, confidence: float) -> bool:
    """Whether adapters are shown to be within the margin of the full ones, seed by seed.

    Args:
        adapters: evidence of one rank, one adapter a seed.
        full: evidence of the trained rank, with these seeds at least.
        margin: largest difference in loss that counts as not worse.
        confidence: of each seed's statement; an error needs all of them to err.
    """
    if adapters.empty or adapters["diverged"].any():
        return False
    for seed, rows in adapters.groupby("seed"):
        own = rows.set_index("example_id")["loss"]
        other = full[full["seed"] == seed].set_index("example_id")["loss"]
        differences = (own - other.reindex(own.index)).to_numpy(dtype=float)
        if judge(differences, (len(differences),), margin, confidence).outcome != "within":
            return False
    return True


def judged_adapters(
    evidence: pd.DataFrame, trained_at: int | None, margin: float, confidence: float
) -> pd.DataFrame:
    """Return the evidence with one kind of adapter at each rank: healed where that holds, or cut.

    Args:
        evidence: evidence of trained, truncated and healed adapters.
        trained_at: the trained rank; None if the ranks were trained, so that nothing is healed.
        margin: see `holds`.
        confidence: see `holds`.
    """
    healed = is_healed(evidence)
    if trained_at is None or not healed.any():
        return evidence
    rate = best_learning_rate(evidence[(evidence["rank"] == trained_at) & ~healed])
    full = evidence[(evidence["rank"] == trained_at) & (evidence["learning_rate"] == rate)]
    seeds = set(full["seed"])
    left_out = np.zeros(len(evidence), dtype=bool)
    for (rank, own_rate), rows in evidence[healed].groupby(["rank", "learning_rate"]):
        is_taken = set(rows["seed"]) == seeds and holds(rows, full, margin, confidence)
        at_rank = evidence["rank"] == rank
        loser = ~healed if is_taken else healed & (evidence["learning_rate"] == own_rate)
        left_out |= (at_rank & loser).to_numpy()
    return evidence[~left_out]
