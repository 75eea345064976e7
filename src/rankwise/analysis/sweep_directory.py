"""Results of a rankwise sweep, from its directory."""

from pathlib import Path

from rankwise.analysis.source import ResultsSource
from rankwise.decide.metrics import snake
from rankwise.decide.wording import Wording
from rankwise.errors import ExhaustedError, RankwiseError, RequestError, some
from rankwise.store import records
from rankwise.store.directory import DIAGNOSIS_DIRECTORY

NOT_COMPARED = "decision.json says what it shows of rank, rate and steps"


def read_sweep(directory: Path) -> ResultsSource:
    """Read a sweep's evidence and trials.

    Raises:
        RequestError: the sweep cannot be read, or has no complete trial.
    """
    try:
        rows, trials = records.read_evidence(directory), records.read_trials(directory)
        train_loss = records.read_train_losses(directory)
    except ExhaustedError:
        raise
    except RankwiseError as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"sweep {str(directory)!r} cannot be read: {reason}") from None
    missing = [name for name in records.EVIDENCE_COLUMNS if name not in rows.columns]
    if missing:
        lacks = f"its evidence lacks the column {some(missing)}"
        raise RequestError(f"sweep {str(directory)!r}: {lacks}")
    if rows.empty:
        raise RequestError(f"sweep {str(directory)!r} has no complete trial yet; run it first")
    sweep = records.read_sweep(directory)
    assert sweep is not None  # a directory without sweep.json is not read as a sweep
    score = snake(sweep.task.score)
    further = sorted(path.name for path in (directory / DIAGNOSIS_DIRECTORY).glob("[!.]*"))
    notes = [f"{name} in {DIAGNOSIS_DIRECTORY}/ is left out: {NOT_COMPARED}" for name in further]
    return ResultsSource(
        origin=str(directory),
        rows=rows.rename(columns={"score": score}).set_axis(range(1, len(rows) + 1)),
        metrics={"loss": "loss", "score": score},
        notes=tuple(notes),
        train_loss=None if train_loss.empty else train_loss,
        trials=tuple(trials),
        chance_loss=records.read_chance_loss(directory),
        wording=Wording(sweep.task.loss, sweep.task.chance),
    )
