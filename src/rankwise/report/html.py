"""The HTML report: one self-contained page, built from the files of a sweep directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from rankwise.decide.decision import TestScore
from rankwise.decide.explain_needs import VERDICTS
from rankwise.decide.metrics import is_share, value_range
from rankwise.decide.summary import training_time_note, unseen_data_sentence
from rankwise.engine.config import FUSED_INITS
from rankwise.errors import reading
from rankwise.lora.alpha import rate_formula
from rankwise.report import figures
from rankwise.report.style import page_template
from rankwise.store.durable import write_whole
from rankwise.store.records import (
    SweepRecord,
    TrialRecord,
    read_evidence,
    read_finished_sweep,
    read_sweep,
    read_trials,
)


def write_report(directory: Path) -> Path:
    """Write ``report.html`` into a sweep directory and return its path.

    Raises:
        RequestError: the directory holds no finished sweep.
        RankwiseError: the report cannot be written.
    """
    _, decision = read_finished_sweep(directory)
    with reading(f"the report of {str(directory)!r} cannot be made from its files"):
        page = report_page(directory, decision)
    path = directory / "report.html"
    write_whole(path, page.encode())
    return path


def report_page(directory: Path, decision: dict[str, Any]) -> str:
    """Return the page on a sweep directory's trials and a decision on them.

    Args:
        directory: the sweep directory.
        decision: content of ``decision.json``.
    """
    sweep = read_sweep(directory)
    assert sweep is not None  # a decision is on trials of a sweep
    template = page_template(
        "report", ("plain_bytes", "seconds", "signed", "interval", "share", "sure", "how_sure")
    )
    task, table, test = sweep.task, decision["table"], decision.get("test")
    trials = read_trials(directory)
    trials.sort(key=lambda trial: (trial.rank, trial.learning_rate, trial.seed))
    return template.render(
        sweep=sweep,
        decision=decision,
        trials=trials,
        plots=figures.report_plots(decision, read_evidence(directory), task.loss, task.score),
        plotly=get_plotlyjs(),
        verdicts=VERDICTS,
        compared_title=figures.COMPARED_TITLE,
        rates_title=figures.RATES_TITLE,
        percent=is_share(task.score),
        possible_losses=value_range("loss", [row["loss_mean"] for row in table]),
        possible_scores=value_range(task.score, [row["score_mean"] for row in table]),
        unseen_data=unseen_data_sentence(TestScore(**test), task.score) if test else None,
        training_time=training_time_note(table),
        rate_formula=_rate_formula(sweep, decision, trials),
    )


def _rate_formula(
    sweep: SweepRecord, decision: Mapping[str, Any], trials: Sequence[TrialRecord]
) -> str | None:
    """Return the learning rate of any rank, from that of the recommended rank.

    None if no rank is recommended, or if A does not start from random values.
    """
    if sweep.training.init not in FUSED_INITS:
        return None
    for row in decision["table"]:
        if row["rank"] == decision["recommended"]:
            for one in trials:
                if (one.rank, one.learning_rate) == (row["rank"], row["learning_rate"]):
                    return rate_formula(one.learning_rate, one.rank, one.lora_alpha, one.use_rslora)
    return None
