"""The end of a sweep: decide, score the adapter to use on the test part, write all results."""

import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rankwise.decide.decision import Capacity, Decision, TestScore
from rankwise.decide.evidence import RankResults, read_rank_results
from rankwise.decide.explain import explain
from rankwise.decide.findings import Findings, Rule
from rankwise.decide.healed import judged_adapters
from rankwise.decide.metrics import default_margin
from rankwise.decide.needs import capacity
from rankwise.decide.variance import NOTHING_KNOWN, mean_interval
from rankwise.decide.wording import Context, FailedTrial, LeftOut, Wording
from rankwise.store.conclusion import (
    DECISION,
    RANK_PATTERN_DIRECTORY,
    copy_adapter,
    new_conclusion,
)
from rankwise.store.costs import rank_costs
from rankwise.store.digests import sealed_bytes
from rankwise.store.durable import write_synced
from rankwise.store.records import TrialRecord, read_train_losses, select_trials
from rankwise.store.trial_files import adapter_digest
from rankwise.strategies import strategies
from rankwise.sweeps.user_trainer import requested_trainer

if TYPE_CHECKING:
    from rankwise.sweeps.run_context import Run

REPORT_MODULES = (
    "scipy.interpolate", "scipy.optimize", "scipy.stats", "rankwise.exports", "rankwise.report.html"
)  # fmt: skip
"""Modules that take about a second to import and that only the end of a sweep needs."""


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep.

    Attributes:
        decision: what the evidence supports.
        evidence: one row per trial and held-out example: ``rank``, ``seed``, ``learning_rate``,
            ``example_id``, ``loss`` (nats), ``score``, ``diverged``.
        directory: the sweep directory.
        score: name of the task score: accuracy, token accuracy or negative absolute error.
        trial: name of the trial whose adapter is in ``best/``; None if none was written.
    """

    decision: Decision
    evidence: pd.DataFrame
    directory: Path
    score: str
    trial: str | None = None

    @property
    def report(self) -> Path:
        """Path of the report."""
        return self.directory / "report.html"

    @property
    def best(self) -> Path | None:
        """Directory of the recommended rank's adapter; None if none was written."""
        return None if self.trial is None else self.directory / "best"

    @property
    def export(self) -> Path | None:
        """Directory of configs for other tools; None if none were written."""
        path = self.directory / "export"
        return path if path.is_dir() else None


def import_report() -> threading.Thread:
    """Import what `finish` will need on a thread, while the last pack trains."""

    def load() -> None:
        with suppress(ImportError):  # `finish` raises it again
            for name in REPORT_MODULES:
                import_module(name)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    return thread


def finish(run: "Run", left_out: LeftOut | None) -> SweepResult:
    """Decide, score the recommended rank's adapter on the test part, and write all results.

    Writes ``decision.json``, ``report.html``, ``best/``, ``export/`` and, if there is a better
    truncated adapter with a rank for each layer, ``best-rank-pattern/``.

    Args:
        run: the sweep, with its trials complete.
        left_out: trials that the budget left out, if any.
    """
    from rankwise.exports import write_exports
    from rankwise.lora.files import write_adapter
    from rankwise.report.html import report_page
    from rankwise.sweeps.diagnosis import diagnose
    from rankwise.sweeps.rank_pattern import try_rank_pattern
    from rankwise.trainers.exports import write_trainer_exports

    store, objective = run.store, run.task.objective
    evidence, trials = store.evidence(), store.trials()
    findings = diagnose(run, _findings(run, evidence, trials), trials)
    rank = findings.rank if run.config.require_confidence else findings.recommended
    chosen, pattern, adapter, test = None, None, None, None
    if rank is not None:
        rate = next(one.learning_rate for one in findings.results if one.rank == rank)
        candidates = select_trials(trials, rank=rank, learning_rate=rate)
        candidates = sorted(candidates, key=lambda trial: trial.eval_loss)
        chosen = candidates[0].name
        if candidates[0].truncated_from is not None:
            pattern, adapter = try_rank_pattern(findings, rank, candidates, store, run.engine)
        test = _test_score(run, chosen)
    context = Context(
        wording=Wording(objective.unit, objective.chance),
        is_sweep=True,
        can_diagnose=run.config.trainer is None,
        failed=[
            FailedTrial(trial.name, trial.rank, trial.learning_rate, trial.failed)
            for trial in trials
            if trial.failed
        ],
        left_out=left_out,
        rank_pattern=pattern,
        test=test,
        capacity=_capacity(run, findings, evidence),
    )
    decision = explain(findings, context)
    has_adapter = chosen is not None and (store.trials_directory / chosen / "adapter").is_dir()
    kept, content = chosen if has_adapter else None, decision.as_dict()
    with new_conclusion(store.directory) as place:
        if kept is not None:
            copy_adapter(store.trials_directory / kept, place / "best")
        if adapter is not None:
            write_adapter(adapter, place / RANK_PATTERN_DIRECTORY)
        if run.config.trainer is None:
            write_exports(store.directory, chosen, decision, place)
        else:
            command, data = requested_trainer(run.config), run.config.data
            write_trainer_exports(store, command, chosen, decision, data, place)
        write_synced(place / "report.html", report_page(store.directory, content).encode())
        write_synced(place / DECISION, sealed_bytes(content))
    return SweepResult(decision, evidence, store.directory, objective.score, kept)


def _findings(run: "Run", evidence: pd.DataFrame, trials: list[TrialRecord]) -> Findings:
    config = run.config
    trained_at = config.ranks[-1] if config.strategy == "once" else None
    looks = strategies()[config.strategy].looks(config)
    level = 1 - (1 - config.confidence) / looks
    evidence = judged_adapters(evidence, trained_at, config.margin, level)
    # A strategy that was stopped early may have trained a single rank.
    results = read_rank_results(evidence, trained_at=trained_at)
    rule = Rule(
        margin=config.margin,
        confidence=config.confidence,
        score_margin=default_margin(run.task.objective.score, _scores(results)),
        chance_loss=run.chance_loss,
        trained_at=trained_at,
        no_prior=config.no_prior,
        looks=looks,
    )
    costs = {one.rank: rank_costs(trials, one.rank, one.learning_rate or None) for one in results}
    return Findings(results, rule, read_train_losses(run.store.directory), costs)


def _capacity(run: "Run", findings: Findings, evidence: pd.DataFrame) -> Capacity | None:
    """Return the bound by the recommended adapter's size; None where the data's bits are unknown.

    A language model's data have about as many tokens to learn as the held-out examples suggest.
    """
    rank, chance = findings.recommended, run.chance_loss
    if rank is None or chance is None or not run.task.objective.unit.startswith("nats"):
        return None
    units = float(len(run.task.train))
    if "tokens" in evidence:
        units *= float(evidence["tokens"].mean())
    entries = findings.measured[rank]["trainable_params"]
    return capacity(rank, entries, units, float(np.mean(chance)))


def _scores(results: Sequence[RankResults]) -> np.ndarray:
    """Return the scores at each rank's own learning rate, (cells,); other rates do not count."""
    scores = [one.score.ravel() for one in results if one.score is not None]
    return np.concatenate(scores or [np.empty(0)])


def _test_score(run: "Run", chosen: str) -> TestScore | None:
    """Score the adapter to use on the test part once; None if fewer than two examples are there."""
    digest = adapter_digest(run.store.trials_directory / chosen)
    known = _known_test_score(run.store.read_json(DECISION) or {}, chosen, digest)
    if known is not None:
        return known
    if len(run.task.test) < 2 or len(examples := run.encode("test")) < 2:
        return None
    from rankwise.lora.files import read_adapter

    adapter = read_adapter(run.store.adapter_directory(chosen))
    (scored,) = run.engine.score([adapter], examples)
    loss, score = scored["loss"].to_numpy()[None], scored["score"].to_numpy()[None]  # (1, N)
    confidence = run.config.confidence
    return TestScore(
        trial=chosen,
        examples=loss.size,
        loss=float(loss.mean()),
        loss_ci=mean_interval(loss, NOTHING_KNOWN, confidence),
        score=float(score.mean()),
        score_ci=mean_interval(score, NOTHING_KNOWN, confidence),
        adapter=digest,
    )


def _known_test_score(
    content: Mapping[str, Any], trial: str, adapter: str | None
) -> TestScore | None:
    """Return an adapter's score in an earlier decision of the sweep; None if it has another."""
    known = content.get("test") or {}
    try:
        intervals = {name: tuple(known[name]) for name in ("loss_ci", "score_ci")}
        score = TestScore(**{**known, **intervals})
    except (KeyError, TypeError):  # of another version
        return None
    return score if (score.trial, score.adapter) == (trial, adapter) else None


def as_json(result: SweepResult) -> str:
    """Return a sweep's decision and the paths of its files as one JSON document."""
    content = result.decision.as_dict()
    for name in ("directory", "report", "best", "export"):
        path = getattr(result, name)
        content[name] = None if path is None else str(path)
    return json.dumps(content, indent=2, allow_nan=False)
