"""A decision from results that others produced: the Python call behind ``rankwise analyze``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.analysis import ImportedResults, read_results
from rankwise.checks import check_number, check_path, check_text
from rankwise.decide import Decision, select
from rankwise.decide.metrics import SHARE_MARGIN, higher_is_better, whole_share
from rankwise.errors import some
from rankwise.store.costs import rank_costs, trained_at


@dataclass(frozen=True)
class Analysis:
    """What others' results support.

    Attributes:
        decision: a rank, or "undetermined".
        evidence: the results as they were understood, a row per trial, and per example where they are.
        score: name of the metric in the decision's ``score`` columns; None if there is none.
        notes: what was guessed or left out.
    """

    decision: Decision
    evidence: pd.DataFrame
    score: str | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return decision, score's name and notes as JSON values."""
        return {**self.decision.as_dict(), "score": self.score, "notes": list(self.notes)}


def analyze(
    *paths: Path | str,
    metric: str | None = None,
    margin: float | None = None,
    confidence: float = 0.95,
    noise: float | None = None,
    higher_is_better: bool | None = None,
    score_margin: float | None = None,
    rank_column: str | None = None,
    seed_column: str | None = None,
    learning_rate_column: str | None = None,
    example_column: str | None = None,
) -> Analysis:
    """Decide from results on disk: tables, directories of runs, sweep directories, PEFT's method comparison.

    Args:
        *paths: files and directories, see `rankwise.analysis.read_results`.
        metric: what to compare by; by default the held-out loss, or else the first metric found.
        margin: see `rankwise.select`; so too ``confidence``, ``noise``, ``higher_is_better`` and ``score_margin``.
        confidence: of the decision.
        noise: standard deviation over seeds of one trial's mean, where you know it.
        higher_is_better: of the metric, where its name does not tell.
        score_margin: what the chosen rank may be worse in a second metric, as a share; by default 0.01, a point of
            percent.
        rank_column: a table's column of ranks; by default found by its name, and so for the others.
        seed_column: its column of seeds.
        learning_rate_column: its column of learning rates.
        example_column: its column of held-out examples' ids.

    Raises:
        RequestError: the results cannot be read or cannot serve.

    Example:
        >>> import rankwise
        >>> rankwise.analyze("runs/", metric="loss").decision.rank  # doctest: +SKIP
        16
    """
    names = {
        "metric": metric,
        "rank_column": rank_column,
        "seed_column": seed_column,
        "learning_rate_column": learning_rate_column,
        "example_column": example_column,
    }
    for name, value in names.items():
        if value is not None:
            check_text(name, value)
    imported = read_results([check_path("results", path) for path in paths], **names)
    metric = imported.metrics[0]  # the one asked for, by its name in the evidence
    evidence, score, whole, said = _with_score(imported, metric)
    share = (
        SHARE_MARGIN
        if score_margin is None
        else check_number("score_margin", score_margin, above=0)
    )
    if score_margin is not None and (metric != "loss" or score is None):
        said.append(
            f"score_margin is not used: no second metric is asked whether it agrees with {metric}"
        )
    decision = select(
        evidence,
        metric=metric,
        margin=margin,
        confidence=confidence,
        higher_is_better=higher_is_better,
        noise=noise,
        score_margin=share * whole,
        histories=imported.train_loss,
        chance_loss=imported.chance_loss,
        wording=imported.wording,
        trained_at=trained_at(imported.trials),
    )
    if imported.trials:
        costs = {
            row.rank: rank_costs(imported.trials, row.rank, row.learning_rate)
            for row in decision.table
        }
        decision = decision.with_costs(costs)
    return Analysis(decision, imported.evidence, score, (*imported.notes, *said))


def _with_score(
    imported: ImportedResults, metric: str
) -> tuple[pd.DataFrame, str | None, float, list[str]]:
    """Put a second metric, of which more is better, where `select` looks for the one that should agree.

    Returns:
        The evidence; the metric's name; what 1 is in its units; what a reader should know.
    """
    if metric != "loss":
        return imported.evidence, metric, 1, []
    usable = imported.evidence[~imported.evidence["diverged"]]
    others = [
        name
        for name in imported.metrics
        if name != metric and higher_is_better(name) and len(usable)
    ]
    wholes = {name: whole_share(name, usable[name].to_numpy()) for name in others}
    score = next((name for name in others if wholes[name] is not None), None)
    notes = []
    left_out = [name for name in others if name != score]
    if left_out:
        reason = (
            f"{score} is asked"
            if score
            else "no shares, percent or correlations; metric compares by one of them"
        )
        notes.append(f"not asked whether it agrees with the loss: {some(left_out)}; {reason}")
    if score is None:
        return imported.evidence, None, 1, notes
    whole = wholes[score] or 1
    if whole != 1:
        notes.append(f"{score} is in percent; so is its margin, {whole:g} times score_margin")
    return imported.evidence.assign(score=imported.evidence[score]), score, whole, notes
