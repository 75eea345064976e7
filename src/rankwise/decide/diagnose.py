"""Diagnosis of underfitting: training and held-out gaps from each rank to the next larger one."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import scipy

from rankwise.decide.decision import Diagnosis, Interval, Verdict
from rankwise.decide.evidence import RankResults
from rankwise.decide.pairwise import Comparison

BLOCKS = 5  # blocks of steps in each third of the training

Thirds = tuple[float, float, float]


def diagnose(
    results: Sequence[RankResults],
    comparison: Comparison,
    histories: pd.DataFrame | None,
    margin: float,
    confidence: float,
) -> list[Diagnosis]:
    """Compare every rank with the next larger one.

    Args:
        results: ranks with usable trials, ascending.
        comparison: the ranks compared in the metric that decides.
        histories: training losses, one row per step: ``rank``, ``seed``, ``learning_rate``,
            ``step``, ``train_loss`` (nats); or None.
        margin: a gain within the margin counts as none.
        confidence: confidence of each interval, for itself.

    Returns:
        One diagnosis per pair of neighbours; none if the noise is not known.
    """
    diagnoses: list[Diagnosis] = []
    for smaller, larger in pairwise(results) if comparison.noise_is_known else ():
        pair = comparison.difference(smaller.rank, larger.rank)  # positive: the larger is better
        interval = pair.interval(confidence)
        late, train_ci, thirds = _train_gap(smaller, larger, histories, confidence)
        diagnoses.append(
            Diagnosis(
                rank=smaller.rank,
                next_rank=larger.rank,
                verdict=_verdict(interval, train_ci, margin),
                held_out_gap=pair.mean,
                held_out_ci=interval,
                train_gap=late,
                train_ci=train_ci,
                train_gap_by_third=thirds,
            )
        )
    return diagnoses


def _train_gap(
    smaller: RankResults, larger: RankResults, histories: pd.DataFrame | None, confidence: float
) -> tuple[float, Interval, Thirds] | tuple[None, None, None]:
    """Compare two ranks' training losses, paired by seed and step: both saw the same batches.

    The interval is that of the mean over blocks of steps in the last third, `BLOCKS` for each seed.
    Losses of neighbouring steps are correlated; those of blocks are taken to be independent.

    Returns:
        How much lower the larger rank's loss is in the last third, its interval, and the mean over
        each third (nats); all None if the histories have too few steps in common.
    """
    if histories is None or histories.empty:
        return None, None, None
    first, second = (
        histories[
            (histories["rank"] == one.rank) & (histories["learning_rate"] == one.learning_rate)
        ]
        for one in (smaller, larger)
    )
    both = first.merge(second, on=["seed", "step"], suffixes=("", "_larger"))
    both = both[np.isfinite(both["train_loss"]) & np.isfinite(both["train_loss_larger"])]
    steps = both["step"].nunique()
    if steps < 3 * BLOCKS:
        return None, None, None
    gap = both["train_loss"] - both["train_loss_larger"]
    position = both["step"].rank(method="dense").astype(int) - 1  # from 0
    block = position * 3 * BLOCKS // steps  # 0 to 3 * BLOCKS - 1
    by_third = gap.groupby(block // BLOCKS).mean()
    last_third = block >= 2 * BLOCKS
    late = gap[last_third].groupby([both["seed"], block]).mean().to_numpy()  # (seeds * BLOCKS,)
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, len(late) - 1) * scipy.stats.sem(late))
    mean = float(late.mean())
    thirds = (float(by_third[0]), float(by_third[1]), float(by_third[2]))
    return mean, (mean - half, mean + half), thirds


def _verdict(held_out: Interval, train: Interval | None, margin: float) -> Verdict:
    low, high = held_out
    fits_better = train is not None and train[0] > 0
    if high < 0 and train is None:
        return "open"
    if high < 0 and fits_better:
        return "overfitting"
    if 0 <= high <= margin:
        return "rank suffices"
    if low > 0 and (train is None or fits_better):
        return "raise the rank"
    return "not a rank problem" if low > 0 or high < 0 else "open"
