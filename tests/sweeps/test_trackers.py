"""What trackers hold, read back with their own readers from their local files."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rankwise import RequestError, SweepConfig
from rankwise.store.records import read_sealed
from rankwise.sweeps import trackers as tracking
from rankwise.sweeps.config import TRACKERS
from rankwise.sweeps.run import open_run
from rankwise.sweeps.trackers import END_METRICS, REPORTED, REPORTERS, report_trials
from tests.factories import Notes

TRIALS = ("r2-lr0.005-seed0", "r8-lr0.01-seed0")


@pytest.fixture
def sweep(swept: Path, tmp_path: Path) -> Path:
    """A sweep directory with two complete trials, nothing reported."""
    for name in TRIALS:
        shutil.copytree(swept / "trials" / name, tmp_path / "my-sweep" / "trials" / name)
    return tmp_path / "my-sweep"


def no_note(text: str) -> None:
    raise AssertionError(text)


def lines_of(
    sweep: Path, trial: str
) -> tuple[dict[str, float], list[dict[str, float]], dict[str, float]]:
    """Return a trial's config, its steps and its result, as they are on disk."""
    directory = sweep / "trials" / trial
    *steps, last = [
        json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()
    ]
    return json.loads((directory / "config.json").read_text()), steps, last


def check(sweep: Path, trial: str, read: Callable[[str], list[tuple[int, float]]]) -> None:
    """Hold what ``read`` returns for a metric, pairs of step and value, to the trial's own files."""
    _, steps, last = lines_of(sweep, trial)
    assert len(steps) > 10
    for key, name in (("train_loss", "train/loss"), ("learning_rate", "train/learning_rate")):
        got = read(name)
        assert [step for step, _ in got] == [row["step"] for row in steps]
        assert [value for _, value in got] == pytest.approx([row[key] for row in steps], rel=1e-6)
    ends = {key: name for key, name in END_METRICS.items() if key in last}
    assert set(END_METRICS) - set(ends) == {
        "eval_perplexity",
        "eval_exact_match",
    }  # of causal language models alone
    for key, name in ends.items():
        ((step, value),) = read(name)
        assert (step, value) == (steps[-1]["step"], pytest.approx(last[key], rel=1e-6))


def test_tensorboard_holds_every_trial(sweep: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report_trials(sweep, ["tensorboard"], no_note)
    assert {path.name for path in (sweep / "tensorboard").iterdir()} == set(TRIALS)
    for trial in TRIALS:
        events = EventAccumulator(str(sweep / "tensorboard" / trial))
        events.Reload()
        check(
            sweep,
            trial,
            lambda name, events=events: [(e.step, e.value) for e in events.Scalars(name)],
        )
        content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        started = HParamsPluginData.FromString(content).session_start_info.hparams
        config, _, _ = lines_of(sweep, trial)
        assert (started["rank"].number_value, started["learning_rate"].number_value) == (
            config["rank"],
            config["learning_rate"],
        )


def test_mlflow_holds_every_trial(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    report_trials(sweep, ["mlflow"], no_note)
    assert not mlflow.is_tracking_uri_set()  # the process's own setting is left alone
    client = mlflow.MlflowClient(f"sqlite:///{sweep / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("my-sweep")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == set(TRIALS)
    for trial, run in runs.items():
        config, _, _ = lines_of(sweep, trial)
        assert run.info.status == "FINISHED"
        assert run.data.params == {key: str(value) for key, value in config.items()}
        check(
            sweep,
            trial,
            lambda name, run=run: [
                (m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)
            ],
        )


def test_mlflow_uses_the_tracking_uri_of_the_user(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'own.db'}")
    report_trials(sweep, ["mlflow"], no_note)
    assert not (sweep / "mlflow.db").exists()
    assert mlflow.MlflowClient().get_experiment_by_name("my-sweep") is not None


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """Return the records of a LevelDB log, which an offline run is, behind its header of 7 bytes."""
    place, record = 7, b""
    while place < len(log):
        left = 32768 - place % 32768  # of the block; a head of 7 bytes is not split
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(log[place + 4 : place + 6], "little"), log[place + 6]
        record += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_offline_holds_every_trial(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    report_trials(sweep, ["wandb"], no_note)
    runs = {}
    for path in sweep.glob("wandb/offline-run-*/*.wandb"):
        name, history = "", []
        for data in leveldb_records(path.read_bytes()):
            record = Record.FromString(data)
            name = record.run.display_name or name
            if record.HasField("history"):
                items = record.history.item
                history.append(
                    {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in items}
                )
        runs[name] = history
    assert set(runs) == set(TRIALS)
    for trial, history in runs.items():
        check(
            sweep,
            trial,
            lambda name, rows=history: [(row["_step"], row[name]) for row in rows if name in row],
        )


def test_trackio_holds_every_trial(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read once, when it is imported
    report_trials(sweep, ["trackio"], no_note)
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    assert {run.name for run in trackio.Api().runs("my-sweep")} == set(TRIALS)
    for trial in TRIALS:
        rows = SQLiteStorage.get_logs("my-sweep", trial)
        check(
            sweep,
            trial,
            lambda name, rows=rows: [(row["step"], row[name]) for row in rows if name in row],
        )


def test_a_resumed_sweep_reports_only_what_is_new(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setitem(REPORTERS, "wandb", lambda trial, directory: seen.append(trial.name))
    later = sweep / "trials" / TRIALS[1]
    later.rename(sweep / "later")
    report_trials(sweep, ["wandb"], no_note)
    (sweep / "later").rename(later)
    report_trials(sweep, ["wandb"], no_note)
    report_trials(sweep, ["wandb"], no_note)
    assert seen == list(TRIALS)
    assert read_sealed(sweep / REPORTED) == {"wandb": list(TRIALS)}


def test_trials_are_reported_again_where_nothing_says_which_were(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setitem(REPORTERS, "wandb", lambda trial, directory: seen.append(trial.name))
    report_trials(sweep, ["wandb"], no_note)
    path, heard = sweep / REPORTED, Notes()
    path.write_text(path.read_text().replace(TRIALS[0], TRIALS[0].replace("r2", "r3")))
    report_trials(sweep, [], no_note)
    report_trials(sweep, ["wandb"], heard.note)
    assert heard.notes == ["reported.json is damaged: all trials are reported again"]
    assert seen == [*TRIALS, *TRIALS]
    report_trials(sweep, ["wandb"], no_note)


def test_what_an_earlier_version_reported_is_not_reported_again(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setitem(REPORTERS, "wandb", lambda trial, directory: seen.append(trial.name))
    (sweep / REPORTED).write_text(json.dumps({"wandb": [TRIALS[0]]}))
    report_trials(sweep, ["wandb"], no_note)
    assert seen == [TRIALS[1]]
    assert read_sealed(sweep / REPORTED) == {"wandb": list(TRIALS)}


def test_a_tracker_that_fails_does_not_stop_the_sweep_and_gets_the_trial_later(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(trial: tracking.TrackedTrial, directory: Path) -> None:
        raise ConnectionError("no answer\nfrom the server")

    said: list[str] = []
    monkeypatch.setitem(REPORTERS, "wandb", away)
    report_trials(sweep, ["wandb"], said.append)
    assert said == [f"report_to wandb: {TRIALS[0]} not reported: no answer from the server"]
    seen: list[str] = []
    monkeypatch.setitem(REPORTERS, "wandb", lambda trial, directory: seen.append(trial.name))
    report_trials(sweep, ["wandb"], no_note)
    assert seen == list(TRIALS)


def test_the_config_allows_exactly_the_trackers_that_exist() -> None:
    assert tuple(REPORTERS) == TRACKERS
    assert SweepConfig(report_to="MLflow, tensorboard,mlflow").report_to == (
        "mlflow",
        "tensorboard",
    )
    with pytest.raises(
        RequestError, match=r"report_to 'tensorbord': allowed are .*did you mean 'tensorboard'"
    ):
        SweepConfig(report_to="tensorbord")


def test_a_tracker_that_is_not_installed_is_refused_before_anything_else(
    tiny_model: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if not installed
    config = SweepConfig(model=tiny_model, data=reviews, report_to="wandb", out=tmp_path / "out")
    with pytest.raises(
        RequestError, match=r"report_to 'wandb' needs the package 'wandb'.*rankwise\[wandb\]"
    ):
        open_run(config, Notes())
    assert not (tmp_path / "out").exists()


def test_a_sweep_reports_each_trial(
    tiny_model: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rankwise

    seen: list[str] = []
    monkeypatch.setitem(REPORTERS, "tensorboard", lambda trial, directory: seen.append(trial.name))
    settings = {
        "model": str(tiny_model),
        "data": reviews,
        "ranks": (2, 4),
        "learning_rate": 5e-3,
        "seeds": 1,
    }
    rankwise.sweep(**settings, margin=0.5, out=tmp_path / "out", report_to="tensorboard")
    assert seen == ["r2-lr0.005-seed0", "r4-lr0.005-seed0"]
    # Whom trials are reported to defines no sweep: the same directory, another tracker.
    monkeypatch.setitem(
        REPORTERS, "mlflow", lambda trial, directory: seen.append(f"mlflow {trial.name}")
    )
    rankwise.sweep(**settings, margin=0.5, out=tmp_path / "out", report_to="mlflow")
    assert seen[2:] == ["mlflow r2-lr0.005-seed0", "mlflow r4-lr0.005-seed0"]
