"""A sweep by the user's own trainer: its engine, the data for it, and what to say about it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.errors import RequestError, shown
from rankwise.escaping import shell
from rankwise.store.directory import SweepStore
from rankwise.sweeps.config import SweepConfig
from rankwise.sweeps.extension import Extension
from rankwise.sweeps.progress import Progress
from rankwise.sweeps.request_record import request_record
from rankwise.tasks.base import Task
from rankwise.tasks.readers import read_table
from rankwise.trainers.config import TrainerConfig
from rankwise.trainers.function_name import FunctionName, trainer_name
from rankwise.trainers.tools import ToolCommand, Trainer, notes_on_file, parse_trainer

if TYPE_CHECKING:
    from rankwise.engine.trial import Trial
    from rankwise.sweeps.run_context import Run
    from rankwise.trainers.engine import Launch, TrainerEngine
    from rankwise.trainers.function import FunctionEngine, TrainFunction

TRAIN_DATA = "train_data.jsonl"


def check_function(
    train: "TrainFunction | None",
    train_in: str,
    config: SweepConfig | None,
    settings: Mapping[str, object],
) -> Mapping[str, object]:
    """Return the fields of a request with a function in the place of a trainer's command.

    Raises:
        RequestError: something goes without the function, or not with it.
    """
    if train_in not in ("process", "child"):
        raise RequestError(f"train_in {shown(train_in)}: allowed are 'process' and 'child'")
    if train is None:
        raise RequestError(f"train_in {train_in!r} goes with train, which is missing")
    if not callable(train):
        raise RequestError(f"train {shown(train)} is no function; a command goes to trainer")
    if config is not None or settings.get("trainer") is not None:
        raise RequestError("train: give settings by name beside it, and no trainer")
    if train_in == "child":
        from rankwise.trainers.function_child import check_child

        check_child(train)
    else:
        for name in ("trials_at_once", "trial_timeout"):
            default = getattr(TrainerConfig, name)
            if settings.get(name, default) != default:
                raise RequestError(
                    f"{name}: a function runs in this process, one trial at a time and to its "
                    "end; leave it out, or add train_in='child'",
                    setting=name,
                )
    return {**settings, "trainer": trainer_name(train)}


def trainer_engine(run: "Run") -> "TrainerEngine | FunctionEngine":
    """Return the engine that runs the user's trainer and scores the adapters that it leaves."""
    from rankwise.trainers.adapter_judge import AdapterJudge
    from rankwise.trainers.engine import Judge, TrainerEngine
    from rankwise.trainers.failures import Failures
    from rankwise.trainers.figures import FiguresJudge, goes_up
    from rankwise.trainers.function import FunctionEngine

    config, store = run.config, run.store
    launch = make_launch(config, store.directory)
    if launch.train_data is not None:
        write_train_data(config, run.task, launch.train_data)
    judge: Judge
    if run.base is None:
        up = config.metric is not None and goes_up(config.metric, config.direction)
        evidence = store.evidence()
        examples = evidence.loc[~evidence["diverged"].astype(bool), "example_id"]
        judge = FiguresJudge(config.metric, up, config.model, examples)
    else:
        truncates = config.strategy == "once"
        judge = AdapterJudge(run.base, run.encode("held_out"), config.engine, truncates)
    trials = [trial for trial in store.trials() if trial.truncated_from is None]
    seconds = [trial.train_seconds for trial in trials if not trial.failed]
    failed = {trial.name: trial.failed for trial in trials if trial.failed}
    failures = Failures(failed, store.take_back, run.progress.note)
    if run.train is not None and run.in_child:
        from rankwise.trainers.function_child import FunctionLaunch

        launch = FunctionLaunch(**vars(launch), function=run.train)
    elif run.train is not None:
        return FunctionEngine(run.train, judge, launch, run.progress, failures)
    elif isinstance(launch.command, FunctionName):
        raise RequestError(f"trainer {config.trainer!r}: call rankwise.sweep(train=...) again")
    return TrainerEngine(launch, judge, run.progress, failures, seconds)


def requested_trainer(config: SweepConfig) -> Trainer:
    """Return the trainer that a request names."""
    assert config.trainer is not None
    return parse_trainer(config.trainer, config.trainer_config, config.data)


def open_figures_run(config: SweepConfig, progress: Progress, extension: Extension | None) -> "Run":
    """Lock the directory of a sweep whose trainer measures by itself; no base is loaded.

    The noise of seeds is judged by these figures alone: what other tasks show is in nats.
    """
    from rankwise.planning.machine_fit import Fit
    from rankwise.sweeps.memory_fit import choice
    from rankwise.sweeps.run_context import Run
    from rankwise.trainers.figures import figures_task

    config = replace(config, no_prior=True)
    task = figures_task(config.metric, config.direction)
    fit = Fit(at_once=config.trials_at_once)
    record = request_record(config, task, None, choice(config, fit))
    store = SweepStore(config.out, record, extend=config.extend and extension is None)
    for note in (*store.notes, f"trained by: {config.trainer}"):
        progress.note(note)
    if config.metric is None:
        progress.note(
            "judged by losses of examples that each trial writes, as EvidenceCallback does; --data "
            "has rankwise score the adapters, --metric takes a number from the logs"
        )
    else:
        progress.note(f"judged by {config.metric}, as the trainer measures it")
        progress.note(
            f"a smaller rank may cost {config.margin:g} of {config.metric}, in its own unit: "
            "--margin says how much"
        )
    return Run(config, task, None, store, progress, fit, extension)


def make_launch(config: SweepConfig, out: Path) -> "Launch":
    """Return how the trials of a request are launched, with their directories below ``out``."""
    from rankwise.trainers.engine import Launch

    command = requested_trainer(config)
    return Launch(
        command=command,
        trials=out / "trials",
        at_once=config.trials_at_once,
        timeout=None if config.trial_timeout is None else 60 * config.trial_timeout,
        train_data=out / TRAIN_DATA if command.has("train_data") else None,
    )


def first_commands(config: SweepConfig, out: Path, trials: Sequence["Trial"]) -> tuple[str, ...]:
    """Return the command lines of trials, as they can be pasted into a shell."""
    launch = make_launch(config, out)
    return tuple(shell(launch.words(trial)) for trial in trials)


def write_train_data(config: SweepConfig, task: Task, path: Path) -> None:
    """Write the rows of the data that are neither held out nor test examples, as JSON lines."""
    assert config.data is not None
    rows = read_table(config.data).rows.loc[list(task.train.ids)]
    rows.to_json(path, orient="records", lines=True, force_ascii=False)


def note_trainer(config: SweepConfig, task: Task, note: Callable[[str], None]) -> None:
    """Say who trains, and what it must not train on."""
    command = requested_trainer(config)
    note(f"trained by: {config.trainer}")
    if isinstance(command, ToolCommand):
        for line in notes_on_file(command, config.quantization):
            note(line)
    if config.eval_data is None and not command.has("train_data"):
        note(
            f"{len(task.held_out)} rows of {config.data} judge the adapters, so the trainer must "
            "not train on them: pass it {train_data}, a file of the other rows, or name rows that "
            "it does not have with --eval-data"
        )
