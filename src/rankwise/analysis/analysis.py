"""A decision on results that others produced: the Python call behind ``rankwise analyze``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.analysis.read import ImportedResults, read_results
from rankwise.checks import check_number, check_path
from rankwise.decide import Decision
from rankwise.decide.findings import Rule
from rankwise.decide.healed import LOOKS, judged_adapters
from rankwise.decide.metrics import LOSS_MARGIN, SHARE_MARGIN, higher_is_better, whole_share
from rankwise.decide.selection import decide, read_ranks
from rankwise.errors import some
from rankwise.store.costs import rank_costs, trained_at


@dataclass(frozen=True)
class Analysis:
    """The decision that results of others support.

    Attributes:
        decision: a rank, or "undetermined".
        evidence: the results as they were read: one row per trial, or per trial and example.
        score: name of the metric in the decision's ``score`` columns; None if there is none.
        notes: guesses and omissions that the user should know of.
    """

    decision: Decision
    evidence: pd.DataFrame
    score: str | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the decision, the score's name and the notes as JSON values."""
        return {**self.decision.as_dict(), "score": self.score, "notes": list(self.notes)}


def analyze(
    *paths: Path | str,
    metric: str | None = None,
    margin: float | None = None,
    confidence: float = 0.95,
    noise: float | None = None,
    no_prior: bool = False,
    higher_is_better: bool | None = None,
    score_margin: float | None = None,
    rank_column: str | None = None,
    seed_column: str | None = None,
    learning_rate_column: str | None = None,
    example_column: str | None = None,
    rank_pattern: str | None = None,
    evaluation: str | None = None,
    spread: str | None = None,
    seeds_per_mean: int | None = None,
) -> Analysis:
    r"""Decide on results on disk: tables, training runs, sweeps, or PEFT's method comparison.

    Args:
        *paths: files and directories, see `rankwise.analysis.read_results`.
        metric: metric to compare ranks by; by default the held-out loss, or else the first metric.
        margin: how much worse than the best rank a smaller one may be, in units of the metric.
        confidence: confidence of the decision, between 0 and 1.
        noise: standard deviation of a trial's mean over seeds, if known from elsewhere.
        no_prior: judge the noise of seeds by these results alone; see `rankwise.select`.
        higher_is_better: whether more of the metric is better, if its name does not tell.
        score_margin: how much worse the chosen rank may be in a second metric, as a share; by
            default 0.01, one percentage point.
        rank_column: column of ranks in tables; by default the one with a conventional name.
        seed_column: column of seeds in tables, found like the ranks.
        learning_rate_column: column of learning rates in tables, found like the ranks.
        example_column: column of the held-out examples' ids in tables, found like the ranks.
        rank_pattern: regular expression that finds the rank in a run's name or path, such as
            ``r"r(\d+)"``; groups named ``rank`` and ``seed`` give both.
        evaluation: evaluation of each run that counts, "best" or "last"; by default the best where
            a run kept that checkpoint, and else the last.
        spread: source of the spread in "54.0 ± 0.4" and in columns such as ``std``: "seeds", which
            makes it evidence, or "examples", which leaves it out.
        seeds_per_mean: number of seeds behind each row of a table of means with a spread.

    Raises:
        RequestError: the results cannot be read or cannot be compared.

    Example:
        >>> import rankwise
        >>> rankwise.analyze("runs/", metric="loss").decision.rank  # doctest: +SKIP
        16
    """
    share = SHARE_MARGIN
    if score_margin is not None:
        share = check_number("score_margin", score_margin, above=0)
    results = read_results(
        [check_path("results", path) for path in paths],
        metric=metric,
        rank_column=rank_column,
        seed_column=seed_column,
        learning_rate_column=learning_rate_column,
        example_column=example_column,
        rank_pattern=rank_pattern,
        evaluation=evaluation,
        spread=spread,
        seeds_per_mean=seeds_per_mean,
        higher_is_better=higher_is_better,
        noise_is_stated=noise is not None,
    )
    compared, evidence = results.metrics[0], results.evidence
    second, unit, notes = _second_metric(results) if compared == "loss" else (None, 1.0, [])
    if second is not None:
        evidence = evidence.assign(score=evidence[second])
    elif score_margin is not None:
        notes.append(f"score_margin is not used: no second metric confirms {compared}")
    trained = trained_at(results.trials)
    rule = Rule(
        metric=compared,
        margin=margin,
        confidence=confidence,
        higher_is_better=results.higher_is_better if higher_is_better is None else higher_is_better,
        noise=results.noise if noise is None else noise,
        no_prior=no_prior,
        score_margin=share * unit,
        chance_loss=results.chance_loss,
        trained_at=trained,
        looks=1 if trained is None else LOOKS,
    )
    if compared == "loss":
        limit = LOSS_MARGIN if rule.margin is None else rule.margin
        evidence = judged_adapters(evidence, trained, limit, rule.confidence_of_a_look)
    ranks = read_ranks(evidence, rule)
    costs = {
        one.rank: rank_costs(results.trials, one.rank, one.learning_rate or None) for one in ranks
    }
    decision = decide(ranks, rule, results.train_loss, costs, results.wording)
    score = second if compared == "loss" else compared
    return Analysis(decision, results.evidence, score, (*results.notes, *notes))


def _second_metric(results: ImportedResults) -> tuple[str | None, float, list[str]]:
    """Find a metric that can confirm a choice by the loss, because more of it is better.

    Returns:
        Its name, if there is one; its value that stands for a whole, 1, or 100 for percent; and
        notes on its unit and on metrics that are not used.
    """
    usable = results.evidence[~results.evidence["diverged"]]
    names = [name for name in results.metrics if name != "loss" and higher_is_better(name)]
    if usable.empty:
        names = []
    units = {name: whole_share(name, usable[name].to_numpy()) for name in names}
    second = next((name for name in names if units[name] is not None), None)
    notes = []
    unused = [name for name in names if name != second]
    if unused:
        reason = f"{second} is used"
        if second is None:
            reason = "they are not shares, percentages or correlations; choose one with metric"
        notes.append(f"metrics not used to confirm the choice: {some(unused)}; {reason}")
    unit = 1.0 if second is None else units[second] or 1.0
    if unit != 1:
        notes.append(f"{second} is in percent; so is its margin, {unit:g} times score_margin")
    return second, unit, notes
