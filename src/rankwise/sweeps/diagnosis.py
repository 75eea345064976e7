"""One more trial after the decision, which tells rank and steps apart: ``--diagnose``.

The trial has twice the steps of the sweep, at the recommended rank and its learning rate. Only
where the sweep trained no adapter of its largest rank, and does not rule out that more rank gains,
it is one of the largest rank, at the learning rate that the law gives it (`carried_rate`). It lies
in ``diagnosis/``, apart from the trials that are compared.

It has the last seed trained at that rate. A seed that chose the rate has a loss that is a little
too low, so the further trial seems to gain a little less than it does. Only the first two seeds
choose rates, so the third and later ones are free of this. With fewer the last seed may have
chosen: with two it has in `once`, and at the rank of the search where both were asked.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.decide.evidence import read_rank_results
from rankwise.decide.findings import Findings
from rankwise.decide.needs import FurtherTrial
from rankwise.engine.trial import Trial
from rankwise.lora.alpha import carried_rate, parse_alpha_policy
from rankwise.store.directory import DIAGNOSIS_DIRECTORY
from rankwise.store.records import TrialRecord
from rankwise.store.trial_files import read_trial_evidence

if TYPE_CHECKING:
    from rankwise.sweeps.run_context import Run

MORE_STEPS = 2.0  # times the steps of the sweep


def diagnose(run: "Run", findings: Findings, trials: Sequence[TrialRecord]) -> Findings:
    """Return the findings with the further trial, trained if it is missing and was asked for.

    Args:
        run: the sweep, with its trials complete.
        findings: the comparison of all ranks.
        trials: the sweep's trials.
    """
    planned = plan_further_trial(findings, trials, run.config.ranks[-1], run.config.lora_alpha)
    if planned is None:
        if run.config.diagnose:
            run.progress.note("no further trial is trained: nothing would show what it gains")
        return findings
    trial, base = planned
    directory = run.store.diagnosis(trial.name)
    if directory is None and run.config.diagnose and not _budget_is_spent(run):
        _train(run, trial)
        directory = run.store.diagnosis(trial.name)
    if directory is None:
        return findings
    (results,) = read_rank_results(read_trial_evidence(directory, run.store.request))
    steps = round(base.step * (trial.share_of_steps or 1))
    return replace(findings, further=FurtherTrial(results, steps, base.step))


def diagnosed(directory: Path) -> bool:
    """Return whether a sweep directory holds a complete further trial."""
    return any((directory / DIAGNOSIS_DIRECTORY).glob("[!.]*"))


def plan_further_trial(
    findings: Findings, trials: Sequence[TrialRecord], largest: int, lora_alpha: str
) -> tuple[Trial, TrialRecord] | None:
    """Return the further trial, and the trial of the sweep that it differs from.

    Args:
        findings: the comparison of all ranks.
        trials: the sweep's trials.
        largest: the largest rank that the sweep may train.
        lora_alpha: the alpha policy.

    Returns:
        None where nothing was learnt, or nothing shows how much results vary; or if no trained
        adapter of the recommended rank exists.
    """
    if findings.recommended is None or not findings.needs:
        return None
    rank = findings.rule.trained_at or findings.recommended
    rate = next(one.learning_rate for one in findings.results if one.rank == rank)
    trained = [one for one in trials if one.truncated_from is None and one.starts_from is None]
    at_rank = [one for one in trained if (one.rank, one.learning_rate) == (rank, rate)]
    if not at_rank:
        return None
    base = max(at_rank, key=lambda one: one.seed)  # the likeliest not to have chosen the rate
    policy = parse_alpha_policy(lora_alpha)
    rank_is_open = findings.needs[0].state in ("open", "not known")
    if rank_is_open and largest > rank and all(one.rank != largest for one in trained):
        carried = carried_rate(base.learning_rate, rank, largest, policy)
        trial = Trial(
            rank=largest,
            seed=base.seed,
            learning_rate=float(f"{carried:.3g}"),
            lora_alpha=policy.alpha(largest),
            use_rslora=policy.use_rslora,
        )
        return trial, base
    trial = Trial(
        rank=rank,
        seed=base.seed,
        learning_rate=base.learning_rate,
        lora_alpha=base.lora_alpha,
        use_rslora=base.use_rslora,
        share_of_steps=MORE_STEPS,
    )
    return trial, base


def _budget_is_spent(run: "Run") -> bool:
    """Whether no time is left for the trial; a note says so."""
    budget = run.config.budget
    if budget is None or run.store.seconds_spent() < 60 * budget:
        return False
    run.progress.note(
        f"the further trial is left out: the budget of {budget:g} min is spent; the same command "
        "with a larger --budget trains it"
    )
    return True


def _train(run: "Run", trial: Trial) -> None:
    share = trial.share_of_steps
    steps = "" if share is None else f" with {share:g} times the steps"
    run.progress.note(f"one more trial, to tell rank and steps apart: rank {trial.rank}{steps}")
    complete = len(run.store.trial_names())
    run.progress.plan(complete, complete + 1)
    for finished in run.engine.train([trial]):
        run.store.add(finished, run.trial_settings, DIAGNOSIS_DIRECTORY)
        run.progress.trial(finished)
    run.store.checkpoints.clear()
