"""Does a rank underfit? Training and held-out gaps to the next rank up."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import stats

from rankwise.decide.decision import Diagnosis, Interval, Verdict
from rankwise.decide.evidence import RankResults
from rankwise.decide.pairwise import Comparison

BLOCKS = 5  # in each third of the steps


@dataclass(frozen=True)
class TrainGap:
    """How much lower a larger rank's training loss is: over the last third of the steps, and over each third."""

    late: float
    interval: Interval
    by_third: tuple[float, float, float]


def diagnose(
    runs: Sequence[RankResults],
    costs: Comparison,
    histories: pd.DataFrame | None,
    margin: float,
    confidence: float,
) -> list[Diagnosis]:
    """Hold every rank against the next larger one.

    Args:
        runs: those that did not diverge, ranks ascending.
        costs: what decides.
        histories: ``rank``, ``seed``, ``learning_rate``, ``step``, ``train_loss`` (nats), a row per step; or None.
        margin: gain that counts as none.
        confidence: of the intervals, each for itself.
    """
    pairs = pairwise(runs) if costs.noise_is_known else ()
    return [
        _diagnosis(
            one, other, costs, train_gap(one, other, histories, confidence), margin, confidence
        )
        for one, other in pairs
    ]


def train_gap(
    one: RankResults, other: RankResults, histories: pd.DataFrame | None, confidence: float
) -> TrainGap | None:
    """Compare two ranks' training losses, paired by seed and step: they saw the same batches.

    The interval is that of the mean over blocks of steps in the last third, `BLOCKS` for each seed. Losses of
    neighbouring steps go together; those of blocks are taken to be independent.

    Returns:
        None where the histories hold too few steps in common.
    """
    if histories is None or histories.empty:
        return None
    first, second = (
        histories[
            (histories["rank"] == run.rank) & (histories["learning_rate"] == run.learning_rate)
        ]
        for run in (one, other)
    )
    both = first.merge(second, on=["seed", "step"], suffixes=("", "_larger"))
    both = both[np.isfinite(both["train_loss"]) & np.isfinite(both["train_loss_larger"])]
    if both["step"].nunique() < 3 * BLOCKS:
        return None
    gap = both["train_loss"] - both["train_loss_larger"]
    position = both["step"].rank(method="dense").astype(int) - 1  # from 0
    block = position * 3 * BLOCKS // both["step"].nunique()  # 0 to 3 BLOCKS - 1
    by_third = gap.groupby(block // BLOCKS).mean()
    late = (
        gap[block >= 2 * BLOCKS].groupby([both["seed"], block]).mean().to_numpy()
    )  # (seeds x BLOCKS,)
    half = float(stats.t.ppf((1 + confidence) / 2, len(late) - 1) * stats.sem(late))
    mean = float(late.mean())
    return TrainGap(
        mean,
        (mean - half, mean + half),
        (float(by_third[0]), float(by_third[1]), float(by_third[2])),
    )


def _diagnosis(
    one: RankResults,
    other: RankResults,
    costs: Comparison,
    train: TrainGap | None,
    margin: float,
    confidence: float,
) -> Diagnosis:
    pair = costs.difference(one.rank, other.rank)  # positive: the larger rank is better
    low, high = pair.interval(confidence)
    gains = f"From rank {one.rank} to {other.rank} the held-out gain is {pair.mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    if train is not None:
        gains += f" and the gain in training {train.late:+.4f} [{train.interval[0]:+.4f}, {train.interval[1]:+.4f}]"
    verdict: Verdict
    if high < 0 and train is None:
        verdict, what = (
            "open",
            "training losses would tell overfitting from a matter of the learning rate",
        )
    elif high < 0 and train is not None and train.interval[0] > 0:
        verdict, what = "overfitting", "regularise: fewer steps, more data, dropout or weight decay"
    elif 0 <= high <= margin:
        verdict, what = "rank suffices", f"rank {one.rank} gives up less than {margin:g}"
    elif low > 0 and (train is None or train.interval[0] > 0):
        verdict, what = "raise the rank", f"rank {one.rank} underfits"
    elif low > 0 or high < 0:
        verdict, what = "not a rank problem", "look at learning rate, target modules and steps"
    else:
        verdict, what = "open", "the evidence does not tell"
    return Diagnosis(
        rank=one.rank,
        next_rank=other.rank,
        verdict=verdict,
        held_out_gap=pair.mean,
        held_out_ci=(low, high),
        train_gap=None if train is None else train.late,
        train_ci=None if train is None else train.interval,
        train_gap_by_third=None if train is None else train.by_third,
        reason=f"{gains}: {what}.",
    )
