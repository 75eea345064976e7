"""Trials for experiment trackers: TensorBoard, MLflow, Weights & Biases, Trackio; each imported if asked for."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rankwise.errors import RequestError
from rankwise.store.directory import write_whole
from rankwise.store.records import (
    read_json,
    read_steps,
    read_summary,
    read_trial_config,
    trial_directories,
)

REPORTED = "reported.json"
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
    """A complete trial, as a tracker takes it.

    Attributes:
        name: of the trial.
        config: rank, seed, learning rate and the like.
        steps: metrics by step: ``(step, {name: value})``.
        result: metrics at the end: held-out loss and score, parameters, seconds, bytes; none that was not measured.
    """

    name: str
    config: dict[str, Any]
    steps: list[tuple[int, dict[str, float]]]
    result: dict[str, float]

    @property
    def last_step(self) -> int:
        """The step that the result stands at."""
        return self.steps[-1][0] if self.steps else 0


def read_trial(directory: Path) -> TrackedTrial:
    """Read a trial's directory."""
    return TrackedTrial(
        name=directory.name,
        config=read_trial_config(directory),
        steps=[(row["step"], _named(row, STEP_METRICS)) for row in read_steps(directory)],
        result=_named(read_summary(directory), END_METRICS),
    )


def _named(row: dict[str, Any], names: dict[str, str]) -> dict[str, float]:
    return {name: float(row[key]) for key, name in names.items() if row.get(key) is not None}


def to_tensorboard(trial: TrackedTrial, directory: Path) -> None:
    """Write ``tensorboard/TRIAL/``: a run with its scalars, and its config for the view that compares runs."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    place = directory / "tensorboard" / trial.name
    shutil.rmtree(place, ignore_errors=True)  # what an interruption left
    config = {
        name: value
        for name, value in trial.config.items()
        if isinstance(value, (bool, int, float, str))
    }
    with SummaryWriter(str(place)) as writer:
        for summary in hparams(config, trial.result):
            writer._get_file_writer().add_summary(summary)
        for step, metrics in [*trial.steps, (trial.last_step, trial.result)]:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)


def to_mlflow(trial: TrackedTrial, directory: Path) -> None:
    """Log a run of the experiment named like the sweep: where MLflow is set to, else ``mlflow.db`` in the sweep."""
    import mlflow
    from mlflow.entities import Metric, Param

    # MLflow's setting is one for the whole process, and another's: a client of its own leaves it alone.
    uri = None if mlflow.is_tracking_uri_set() else f"sqlite:///{directory.resolve() / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(directory.resolve().name)
    number = (
        experiment.experiment_id
        if experiment
        else client.create_experiment(directory.resolve().name)
    )
    run = client.create_run(number, run_name=trial.name).info.run_id
    rows = [*trial.steps, (trial.last_step, trial.result)]
    metrics = [
        Metric(name, value, 0, step) for step, values in rows for name, value in values.items()
    ]
    client.log_batch(run, params=[Param(name, str(value)) for name, value in trial.config.items()])
    for start in range(0, len(metrics), 1000):  # the most that a batch may hold
        client.log_batch(run, metrics=metrics[start : start + 1000])
    client.set_terminated(run)


def to_wandb(trial: TrackedTrial, directory: Path) -> None:
    """Log a run of the group named like the sweep, in the project "rankwise"; ``WANDB_MODE=offline`` keeps it here."""
    import wandb

    run = wandb.init(
        project="rankwise",
        group=directory.resolve().name,
        name=trial.name,
        config=trial.config,
        dir=str(directory),
        reinit="create_new",
    )
    for step, metrics in trial.steps:
        run.log(metrics, step=step)
    run.log(trial.result, step=trial.last_step)
    run.finish()


def to_trackio(trial: TrackedTrial, directory: Path) -> None:
    """Log a run of the project named like the sweep, into Trackio's own local database."""
    import trackio

    trackio.init(
        project=directory.resolve().name, name=trial.name, config=trial.config, embed=False
    )
    for step, metrics in trial.steps:
        trackio.log(metrics, step=step)
    trackio.log(trial.result, step=trial.last_step)
    trackio.finish()


REPORTERS: dict[str, Callable[[TrackedTrial, Path], None]] = {
    "tensorboard": to_tensorboard,
    "mlflow": to_mlflow,
    "wandb": to_wandb,
    "trackio": to_trackio,
}


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed.

    Raises:
        RequestError: naming the package and how to get it.
    """
    for name in names:
        if find_spec(name) is None:
            raise RequestError(
                f"report_to {name!r} needs the package {name!r}, which is not installed: pip install 'rankwise[{name}]'"
            )


def report_trials(directory: Path, names: Sequence[str], note: Callable[[str], None]) -> None:
    """Report the complete trials of a sweep that a tracker has not got yet, each once.

    What a tracker has is kept in ``reported.json``, so a resumed sweep reports only what is new. A tracker that fails
    costs no training: that is said, and the same command reports the trial later.

    Args:
        directory: the sweep directory.
        names: of the trackers.
        note: is told of failures.
    """
    reported: dict[str, list[str]] = read_json(directory / REPORTED) or {}
    for name in names:
        known = reported.setdefault(name, [])
        for path in trial_directories(directory):
            if path.name in known:
                continue
            try:
                REPORTERS[name](read_trial(path), directory)
            except (
                Exception
            ) as error:  # a server may be away; whatever it raises, the sweep goes on
                note(
                    f"report_to {name}: {path.name} not reported: {' '.join(str(error).split())[:200]}"
                )
                break
            known.append(path.name)
            write_whole(directory / REPORTED, (json.dumps(reported, indent=2) + "\n").encode())
