"""Summaries of trials: the costs of a rank, the rank that was trained, means over tokens."""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import pandas as pd

from rankwise.errors import RequestError, some
from rankwise.store.records import TrialRecord, select_trials


def rank_costs(
    trials: Sequence[TrialRecord], rank: int, learning_rate: float | None
) -> dict[str, Any]:
    """Return the measured costs of a rank at one learning rate.

    Returns:
        The cost fields of `rankwise.decide.decision.RankRow`; none for a rank without trials, and
        neither seconds nor memory for a rank with truncated adapters only.
    """
    at_rank = select_trials(trials, rank=rank, learning_rate=learning_rate)
    if not at_rank:
        return {}
    costs: dict[str, Any] = {
        "trainable_params": max(trial.trainable_params for trial in at_rank),
        "adapter_bytes": max(trial.adapter_bytes for trial in at_rank),
    }
    if any(trial.truncated_from is None for trial in at_rank):
        costs["train_seconds"] = median(trial.train_seconds for trial in at_rank)
        costs["pack_seconds"] = median(trial.pack_seconds for trial in at_rank)
        costs["pack_size"] = max(trial.pack_size for trial in at_rank)
        costs["peak_memory_bytes"] = max(trial.peak_memory_bytes for trial in at_rank)
    return costs


def trained_at(trials: Sequence[TrialRecord]) -> int | None:
    """Return the only trained rank if the others were truncated from it, else None.

    Training that starts from a truncated adapter does not count.

    Raises:
        RequestError: there are truncated adapters, and adapters trained at several ranks.
    """
    if all(trial.truncated_from is None for trial in trials):
        return None
    drawn = [trial for trial in trials if trial.truncated_from is None is trial.starts_from]
    ranks = sorted({trial.rank for trial in drawn})
    if len(ranks) > 1:
        raise RequestError(
            f"results mix truncated adapters with adapters trained at ranks {some(ranks)}; "
            "give the results of one strategy at a time"
        )
    return ranks[0]


def token_means(evidence: pd.DataFrame) -> dict[str, float]:
    """Return a trial's means over all held-out tokens, so that long examples weigh more.

    Without a column ``tokens`` there are no means. The exact match is that of greedy decoding,
    without decoding: every token of a completion is the model's first choice.
    """
    if "tokens" not in evidence or evidence.empty:
        return {}
    share = evidence["tokens"] / evidence["tokens"].sum()  # (N,)
    loss = float((share * evidence["loss"]).sum())
    return {
        "eval_token_loss": loss,
        "eval_perplexity": math.exp(min(loss, 700.0)),
        "eval_token_accuracy": float((share * evidence["score"]).sum()),
        "eval_exact_match": float((evidence["score"] == 1.0).mean()),
    }
