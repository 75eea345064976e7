"""The course of a sweep: open a run, train the strategy's trials, finish with a decision.

`rankwise.dry_run` and `rankwise.run_rank_comparison` share its first steps.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Unpack

from rankwise.decide.evidence import ChanceLoss
from rankwise.decide.wording import LeftOut
from rankwise.engine.schedule import total_steps
from rankwise.engine.trial import Engine, Trial
from rankwise.errors import RequestError
from rankwise.lora.alpha import USUAL_STEPS
from rankwise.models.compat import importing
from rankwise.models.files import check_model_files
from rankwise.models.targets import check_ranks
from rankwise.settings import requested_config
from rankwise.store.directory import SweepStore
from rankwise.store.resuming import refuse_bad_directory
from rankwise.strategies import strategies
from rankwise.strategies.base import Strategy
from rankwise.strategies.config import SearchConfig
from rankwise.strategies.more_seeds import MoreSeeds
from rankwise.sweeps.config import SweepConfig, SweepSettings, for_task
from rankwise.sweeps.extension import read_extension
from rankwise.sweeps.finish import SweepResult, finish, import_report
from rankwise.sweeps.memory_fit import choice, fit_to_machine, kept_choice
from rankwise.sweeps.progress import Progress, Silent
from rankwise.sweeps.request_record import model_name, request_record
from rankwise.sweeps.run_context import Run
from rankwise.sweeps.tokenised import tokenise, tokens_digest
from rankwise.sweeps.trackers import report_trials, require_trackers
from rankwise.sweeps.user_trainer import check_function, note_trainer, open_figures_run
from rankwise.tasks.load import load_task

if TYPE_CHECKING:
    from rankwise.trainers.function import TrainFunction


def sweep(
    config: SweepConfig | None = None,
    *,
    progress: Progress | None = None,
    train: "TrainFunction | None" = None,
    train_in: Literal["process", "child"] = "process",
    **settings: Unpack[SweepSettings],
) -> SweepResult:
    """Train adapters of several ranks, decide which rank the task needs, and write everything down.

    The directory of an earlier sweep with the same request is resumed: complete trials are not
    trained again, and the result is the same as if the sweep had never stopped.

    Args:
        config: the request; alternatively, give its fields as keyword arguments.
        progress: receives notes and finished trials.
        train: a function that trains in place of our engine. It gets a trial (``rank``, ``seed``,
            ``learning_rate``, ``lora_alpha``, ``use_rslora``, ``name``, ``out``, a directory for
            what it leaves, and with ``data`` ``train_data``, a file of the training rows) and
            returns the path of an adapter, a PeftModel, or, with ``metric``, a mapping of metrics.
        train_in: where the function runs: in this process, or each call in a child, a new process
            that is treated like a trainer's command.
        **settings: fields of `SweepConfig`.

    Raises:
        RequestError: the request was wrong; nothing was trained.
        RankwiseError: something failed while running; trials complete until then are kept.

    Example:
        >>> import rankwise
        >>> result = rankwise.sweep(ranks=[4, 8], seeds=2, out="my-sweep")  # doctest: +SKIP
        >>> result.decision.rank  # doctest: +SKIP
        4
    """
    values: Mapping[str, object] = settings
    if train is not None or train_in != "process":
        values = check_function(train, train_in, config, settings)
    config = requested(config, values)
    with open_run(config, progress or Silent()) as opened:
        run = replace(opened, train=train, in_child=train_in == "child")
        left_out = run_trials(run)
        return finish(run, left_out)


def requested(config: SweepConfig | None, settings: Mapping[str, object]) -> SweepConfig:
    """Return the request from a config or from its fields.

    Raises:
        RequestError: both are given, a field is not allowed, or there are no ranks to compare.
    """
    config = requested_config(SweepConfig, config, settings, "a sweep")
    if len(config.ranks) < 2 and not config.extend:
        raise RequestError(f"rank {config.ranks[0]} alone is no sweep; give two or more, as in 4,8")
    return config


def open_run(config: SweepConfig, progress: Progress) -> Run:
    """Check the whole request, load data and base model, and lock the sweep directory.

    Raises:
        RequestError: the request was wrong; no directory was created.
    """
    refuse_bad_directory(config.out)
    config, extension = read_extension(config)
    require_trackers(config.report_to)
    if config.trainer is not None and config.data is None:
        return open_figures_run(config, progress, extension)
    task = load_task(config)
    config = for_task(config, task.objective.task_type)
    check_model_files(model_name(config))
    with importing(compiles=config.quantization != "none"):
        import peft  # noqa: F401  # before the memory plan does it

        from rankwise.models.base_model import Loading, load_base
        from rankwise.models.device import find_dtype, find_torch_device
        from rankwise.models.quantization import check_optimizer

    device = find_torch_device(config.device)
    find_dtype(config.precision, device)  # or refuse it
    check_optimizer(config.optimizer, device)
    fit = fit_to_machine(config, task)
    base = load_base(
        model_name(config),
        task.objective,
        config.target_modules,
        [] if config.ranks == SearchConfig.ranks else config.ranks,
        config.quantization,
        Loading(config.device, config.precision, config.trust_remote_code),
    )
    config = _without_too_large_ranks(config, base.targets, progress.note)
    template_notes = task.notes_on(base.tokenizer)
    extends_request = config.extend and extension is None
    tokenised = tokenise(config, task, base)
    record = request_record(config, task, base, choice(config, fit), tokens_digest(tokenised))
    fit = kept_choice(fit, config.out, record, extend=extends_request)
    record = replace(record, chosen=choice(config, fit))
    store = SweepStore(config.out, record, extend=extends_request)
    for note in (*store.notes, *task.notes, *template_notes):
        progress.note(note)
    if fit.unknown:
        ignored = "" if config.max_memory is None else ", max_memory is ignored"
        progress.note(
            f"memory is not checked{ignored}, and one trial trains at a time: {fit.unknown}"
        )
    progress.note(
        f"{task.name}: {task.objective.describe()}; {len(task.train)} training, "
        f"{len(task.held_out)} held-out and {len(task.test)} test examples"
    )
    if config.trainer is not None:
        note_trainer(config, task, progress.note)
    elif task.objective.task_type == "CAUSAL_LM":
        progress.note(_training_note(config))
    return Run(config, task, base, store, progress, fit, extension, tokenised=tokenised)


def _training_note(config: SweepConfig) -> str:
    """Say which settings of training are in force, so that nobody must look up the defaults."""
    return (
        f"training: batches of {config.batch_size} examples; {config.lr_scheduler} learning rate "
        f"after a warm-up of {100 * config.warmup_ratio:g} % of the steps; {config.optimizer}, "
        f"weight decay {config.weight_decay:g}, gradients clipped to norm "
        f"{config.max_grad_norm:g}, lora_dropout {config.lora_dropout:g}"
    )


def _without_too_large_ranks(
    config: SweepConfig, targets: dict[str, tuple[int, int]], note: Callable[[str], None]
) -> SweepConfig:
    """Leave out default ranks that a small model does not allow; refuse ranks asked for."""
    limit = min(min(size) for size in targets.values())
    allowed = tuple(rank for rank in config.ranks if rank <= limit)
    if config.ranks == SearchConfig.ranks and 2 <= len(allowed) < len(config.ranks):
        kept = ", ".join(map(str, allowed))
        note(
            f"the target layers of this model allow ranks up to {limit}; ranks {kept} are compared"
        )
        return replace(config, ranks=allowed)
    check_ranks(config.ranks, targets)
    return config


def run_trials(run: Run) -> LeftOut | None:
    """Train the strategy's trials; return what the budget left out."""
    config, store = run.config, run.store
    strategy = make_strategy(run, run.chance_loss)
    # An interruption may have left trials unreported.
    report_trials(store.directory, config.report_to, run.progress.note)
    left_out = run_strategy(run, strategy, run.engine)
    if not left_out:
        return None
    expected = strategy.expected_trials(store.evidence()) - len(store.trial_names())
    first = left_out[0]
    assert config.budget is not None  # nothing else leaves trials out
    return LeftOut(
        budget=config.budget,
        trials=max(expected, len(left_out)),
        rank=first.rank,
        learning_rate=first.learning_rate,
        seed=first.seed,
    )


def make_strategy(run: Run, chance_loss: ChanceLoss | None) -> Strategy:
    """Return the strategy that the request names, or the one that extends some of its ranks."""
    config, extension = run.config, run.extension
    if extension is not None:
        request = replace(config, ranks=extension.ranks, seeds=extension.seeds)
        return MoreSeeds(request, config, chance_loss)
    make = strategies()[config.strategy]
    # A user's trainer takes its own number of steps.
    steps = USUAL_STEPS if config.trainer is not None else total_steps(config, run.task.train)
    strategy = make(config, config, chance_loss, run.task.objective.task_type, steps)
    strategy.can_heal = config.trainer is None
    return strategy


def run_strategy(run: Run, strategy: Strategy, engine: Engine) -> list[Trial]:
    """Train a strategy's trials until it proposes no more, and store each when it is finished.

    The strategy is consulted after every pack, so that the budget is checked before each. Once
    the budget is spent, no adapter is trained; finished adapters are still truncated.

    Returns:
        The next trials, which the budget left out; none when the sweep is complete.
    """
    config, store = run.config, run.store
    while True:
        evidence = store.evidence()
        complete, expected = len(store.trial_names()), strategy.expected_trials(evidence)
        run.progress.plan(complete, expected)
        trials = strategy.propose(evidence)
        truncations = [trial for trial in trials if trial.truncated_from is not None]
        spent = config.budget is not None and store.seconds_spent() >= 60 * config.budget
        if not truncations and (not trials or spent):
            if not config.diagnose:  # whose trial may be among them
                store.checkpoints.clear()  # of trials that no strategy asks for any more
            return trials
        if expected - complete <= engine.pack_size:
            import_report()
        # Closed on an error too, so that the commands of a trainer end at once.
        with closing(engine.train(truncations or trials[: engine.pack_size])) as trained:
            for finished in trained:
                store.add(finished, run.trial_settings)
                store.keep_choice(run.choice)  # memory may have lowered it
                run.progress.trial(finished)
                report_trials(store.directory, config.report_to, run.progress.note)
