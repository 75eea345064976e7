"""Reports of trials to experiment trackers: TensorBoard, MLflow, Weights & Biases, Trackio.

A tracker is imported only if the request names it.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rankwise.errors import RequestError
from rankwise.store import records, trial_files
from rankwise.store.digests import sealed_bytes
from rankwise.store.durable import write_whole

REPORTED = "reported.json"
MLFLOW_BATCH = 1000  # the most metrics that MLflow takes in one call
STEP_METRICS = {
    "train_loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
}
END_METRICS = {
    "eval_loss": "eval/loss",
    "eval_score": "eval/score",
    "eval_perplexity": "eval/perplexity",
    "eval_exact_match": "eval/exact_match",
    "trainable_params": "cost/trainable_params",
    "adapter_bytes": "cost/adapter_bytes",
    "train_seconds": "cost/train_seconds",
    "eval_seconds": "cost/eval_seconds",
    "peak_memory_bytes": "cost/peak_memory_bytes",
}


@dataclass(frozen=True)
class TrackedTrial:
    """A complete trial in the form that trackers take.

    Attributes:
        config: content of the trial's ``config.json``.
        steps: metrics of each optimizer step: ``(step, {name: value})``.
        result: metrics of the whole trial, as in `END_METRICS`.
    """

    name: str
    config: dict[str, Any]
    steps: list[tuple[int, dict[str, float]]]
    result: dict[str, float]

    @property
    def rows(self) -> list[tuple[int, dict[str, float]]]:
        """The metrics of all steps, and the result at the last step."""
        last_step = self.steps[-1][0] if self.steps else 0
        return [*self.steps, (last_step, self.result)]


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed.

    Raises:
        RequestError: a tracker's package is missing; the message says how to install it.
    """
    for name in names:
        if find_spec(name) is None:
            remedy = f"pip install 'rankwise[{name}]'"
            raise RequestError(f"report_to {name!r} needs the package {name!r}; {remedy}")


def report_trials(directory: Path, names: Sequence[str], note: Callable[[str], None]) -> None:
    """Report the complete trials of a sweep to trackers, each trial once.

    ``reported.json`` lists the trials that each tracker has received, so a resumed sweep reports
    only new ones. The failure of a tracker does not stop a sweep: ``note`` receives a sentence, and
    the same command reports the trial later.
    """
    reported: dict[str, list[str]] = {}
    if not names:
        return
    try:
        reported = _read_reported(directory / REPORTED)
    except RequestError:
        note(f"{REPORTED} is damaged: all trials are reported again")
    for name in names:
        received = reported.setdefault(name, [])
        for path in records.trial_directories(directory):
            if path.name in received:
                continue
            try:
                REPORTERS[name](read_tracked_trial(path), directory)
            # A server may be unreachable; whatever its client raises, the sweep continues.
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                note(f"report_to {name}: {path.name} not reported: {reason}")
                break
            received.append(path.name)
            write_whole(directory / REPORTED, sealed_bytes(reported))


def _read_reported(path: Path) -> dict[str, list[str]]:
    """Read which trials each tracker has received; earlier versions did not seal the file."""
    content = records.read_json(path) or {}
    if all(isinstance(received, list) for received in content.values()):  # a seal is a string
        return content
    return records.read_sealed(path) or {}


def read_tracked_trial(directory: Path) -> TrackedTrial:
    """Read a trial's directory."""
    return TrackedTrial(
        name=directory.name,
        config=trial_files.read_trial_config(directory),
        steps=[
            (row["step"], _named(row, STEP_METRICS)) for row in trial_files.read_steps(directory)
        ],
        result=_named(trial_files.read_summary(directory), END_METRICS),
    )


def _named(row: dict[str, Any], names: dict[str, str]) -> dict[str, float]:
    """Return the metrics that were measured, under the names of trackers."""
    return {name: float(row[key]) for key, name in names.items() if row.get(key) is not None}


def to_tensorboard(trial: TrackedTrial, directory: Path) -> None:
    """Write the run ``tensorboard/TRIAL/`` of the sweep, with its config in the HParams view."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    place = directory / "tensorboard" / trial.name
    shutil.rmtree(place, ignore_errors=True)  # left by an interruption
    kinds = (bool, int, float, str)
    config = {name: value for name, value in trial.config.items() if isinstance(value, kinds)}
    with SummaryWriter(str(place)) as writer:
        for summary in hparams(config, trial.result):
            writer.file_writer.add_summary(summary)
        for step, metrics in trial.rows:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)


def to_mlflow(trial: TrackedTrial, directory: Path) -> None:
    """Log a run of the MLflow experiment that is named like the sweep.

    If the user has set no tracking URI, the run goes to ``mlflow.db`` in the sweep directory.
    """
    import mlflow
    from mlflow.entities import Metric, Param

    # A separate client leaves the tracking URI of the user's process unchanged.
    uri = None if mlflow.is_tracking_uri_set() else f"sqlite:///{directory.resolve() / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri)
    name = directory.resolve().name
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else client.create_experiment(name)
    run = client.create_run(number, run_name=trial.name).info.run_id
    metrics = []
    for step, values in trial.rows:
        metrics += [Metric(key, value, 0, step) for key, value in values.items()]
    client.log_batch(run, params=[Param(key, str(value)) for key, value in trial.config.items()])
    for start in range(0, len(metrics), MLFLOW_BATCH):
        client.log_batch(run, metrics=metrics[start : start + MLFLOW_BATCH])
    client.set_terminated(run)


def to_wandb(trial: TrackedTrial, directory: Path) -> None:
    """Log a run of the project "rankwise" in the group that is named like the sweep.

    ``WANDB_MODE=offline`` keeps it on this machine.
    """
    import wandb

    run = wandb.init(
        project="rankwise",
        group=directory.resolve().name,
        name=trial.name,
        config=trial.config,
        dir=str(directory),
        reinit="create_new",
    )
    for step, metrics in trial.rows:
        run.log(metrics, step=step)
    run.finish()


def to_trackio(trial: TrackedTrial, directory: Path) -> None:
    """Log a run of the project that is named like the sweep, in Trackio's local database."""
    import trackio

    project = directory.resolve().name
    trackio.init(project=project, name=trial.name, config=trial.config, embed=False)
    for step, metrics in trial.rows:
        trackio.log(metrics, step=step)
    trackio.finish()


REPORTERS: dict[str, Callable[[TrackedTrial, Path], None]] = {
    "tensorboard": to_tensorboard,
    "mlflow": to_mlflow,
    "wandb": to_wandb,
    "trackio": to_trackio,
}
