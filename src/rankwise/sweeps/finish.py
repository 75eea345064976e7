"""The end of a sweep: decide, score the chosen adapter on the test part, write everything down."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rankwise.decide import Decision
from rankwise.decide.decision import TestScore
from rankwise.decide.evidence import RankResults, read_rank_results
from rankwise.decide.explain import wording_of
from rankwise.decide.metrics import default_margin
from rankwise.decide.select import decide
from rankwise.decide.variance import NOTHING_KNOWN, mean_interval
from rankwise.store.costs import rank_costs
from rankwise.store.records import select_trials

if TYPE_CHECKING:
    from rankwise.sweeps.run import Run


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep.

    Attributes:
        decision: what the evidence supports.
        evidence: a row per trial and held-out example: ``rank``, ``seed``, ``learning_rate``, ``example_id``,
            ``loss`` (nats), ``score``, ``diverged``.
        directory: where everything is kept.
        score: what the task score is: accuracy, token accuracy or negative absolute error.
    """

    decision: Decision
    evidence: pd.DataFrame
    directory: Path
    score: str

    @property
    def report(self) -> Path:
        """The report's path."""
        return self.directory / "report.html"

    @property
    def best(self) -> Path | None:
        """The chosen adapter's directory, None if the decision is "undetermined"."""
        return self.directory / "best" if self.decision.rank is not None else None

    @property
    def export(self) -> Path | None:
        """The directory of configs for other tools, None if the decision is "undetermined"."""
        return self.directory / "export" if self.decision.rank is not None else None


def finish(run: "Run", left_out: str | None) -> SweepResult:
    """Decide, score the chosen adapter on the test part, and write decision, report, ``best/`` and ``export/``."""
    from rankwise.exports import write_exports
    from rankwise.report.html import write_report
    from rankwise.sweeps.rank_pattern import try_rank_pattern

    evidence, trials = run.store.evidence(), run.store.trials()
    objective = run.task.objective
    trained_at = run.config.ranks[-1] if run.config.strategy == "once" else None
    runs = read_rank_results(evidence, trained_at=trained_at)
    decision = decide(  # a strategy that was stopped early may have come to one rank only
        runs,
        run.config.margin,
        run.config.confidence,
        histories=run.store.train_losses(),
        chance_loss=run.chance_loss,
        # A share's margin is a point; of errors in the labels' own units it is a share of their size.
        score_margin=default_margin(objective.score, _scores(runs))[0],
        wording=wording_of(objective.unit, objective.chance),
        trained_at=trained_at,
    )
    decision = decision.with_costs(
        {row.rank: rank_costs(trials, row.rank, row.learning_rate) for row in decision.table}
    )
    if left_out is not None:  # which comes before any further seed
        decision = replace(decision, next=None, warnings=(left_out, *decision.warnings))
    judged_on = max(
        one.examples.size for one in runs
    )  # texts that max_length leaves nothing of are not among them
    if decision.next is not None and decision.next.held_out_examples == judged_on:
        advice = f"{decision.next.advice} Run the same command with --seeds {decision.next.seeds} --extend."
        decision = replace(decision, next=replace(decision.next, advice=advice))
    chosen, rank_pattern = None, None
    if decision.rank is not None:
        row = decision.row(decision.rank)
        at_rank = select_trials(trials, rank=row.rank, learning_rate=row.learning_rate)
        at_rank.sort(key=lambda trial: trial.eval_loss)
        chosen = at_rank[0].name
        if decision.trained_at not in (None, decision.rank):
            cut, rank_pattern = try_rank_pattern(decision, runs, at_rank, run.store, run.engine)
            decision = replace(decision, rank_pattern=cut)
    if chosen is not None:
        decision = replace(decision, test=_test_score(run, chosen))
    run.store.write_best(chosen)
    run.store.write_rank_pattern(rank_pattern)
    run.store.write_json("decision.json", decision.as_dict())
    write_exports(run.store.directory, chosen, decision)
    write_report(run.store.directory)
    return SweepResult(decision, evidence, run.store.directory, run.task.objective.score)


def _scores(runs: Sequence[RankResults]) -> np.ndarray:
    """Return the scores that ranks are judged by: of a rate that was tried and left an error says nothing."""
    return np.concatenate(
        [run.score.ravel() for run in runs if run.score is not None] or [np.empty(0)]
    )


def _test_score(run: "Run", chosen: str) -> TestScore | None:
    """Score the chosen adapter on the test part, once: a score that is there already is kept.

    None where there are not two examples to score: one would say nothing, and its interval be nothing.
    """
    known = (run.store.read_json("decision.json") or {}).get("test")
    if known and known["trial"] == chosen:
        return TestScore(
            **{**known, "loss_ci": tuple(known["loss_ci"]), "score_ci": tuple(known["score_ci"])}
        )
    if len(run.task.test) < 2 or len(examples := run.encode("test")) < 2:
        return None
    from rankwise.engine.reference import score_adapter

    results = score_adapter(run.base, run.store.adapter_directory(chosen), examples)
    loss, score = (results[name].to_numpy()[None] for name in ("loss", "score"))  # (1, N)
    return TestScore(
        trial=chosen,
        examples=loss.size,
        loss=float(loss.mean()),
        loss_ci=mean_interval(loss, NOTHING_KNOWN, run.config.confidence),
        score=float(score.mean()),
        score_ci=mean_interval(score, NOTHING_KNOWN, run.config.confidence),
    )


def as_json(result: SweepResult) -> str:
    """Return a sweep's decision and where its files are, as one JSON document."""
    paths = {
        "directory": str(result.directory),
        "report": str(result.report),
        "best": str(result.best) if result.best else None,
        "export": str(result.export) if result.export else None,
    }
    return json.dumps({**result.decision.as_dict(), **paths}, indent=2, allow_nan=False)
