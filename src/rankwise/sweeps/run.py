"""A sweep at work: its request checked, its base loaded, its directory held, its trials run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack

from rankwise.decide.wording import LeftOut
from rankwise.errors import RequestError
from rankwise.models.compat import quiet_libraries
from rankwise.models.files import check_model_files, load_arguments
from rankwise.settings import requested_config
from rankwise.store.directory import SweepStore, refuse_bad_directory
from rankwise.store.records import UNTRAINED_FILE, read_chance_loss
from rankwise.sweeps.config import SweepConfig, SweepSettings
from rankwise.sweeps.finish import SweepResult, finish
from rankwise.sweeps.progress import Progress, Silent
from rankwise.sweeps.request_record import max_length, model_name, request_record
from rankwise.sweeps.trackers import report_trials, require_trackers
from rankwise.tasks.base import Encoded, Task
from rankwise.tasks.load import load_task

if TYPE_CHECKING:
    from rankwise.decide.evidence import ChanceLoss
    from rankwise.engine.trial import Engine, FinishedTrial, Trial
    from rankwise.models.base_model import BaseModel
    from rankwise.planning.planner import Fit
    from rankwise.strategies.base import Strategy
    from rankwise.sweeps.truncating_engine import TruncatingEngine


def sweep(
    config: SweepConfig | None = None,
    *,
    progress: Progress | None = None,
    **settings: Unpack[SweepSettings],
) -> SweepResult:
    """Train adapters of several ranks, decide which rank the task needs, and leave everything on disk.

    An existing directory of the same request is resumed: trials that are complete are not run again, and the result
    is the same as if the sweep had never stopped.

    Args:
        config: the request; or give its fields as keyword arguments.
        progress: is told how the sweep goes on.
        **settings: fields of `SweepConfig`, for example ``ranks=[4, 8, 16]``, ``out="sweep"``.

    Returns:
        The decision, the evidence and the directory.

    Raises:
        RequestError: the request was wrong; nothing was trained.
        RankwiseError: something failed while running; trials complete until then are kept.

    Example:
        >>> import rankwise
        >>> result = rankwise.sweep(ranks=[4, 8], seeds=2, out="my-sweep")  # doctest: +SKIP
        >>> result.decision.rank  # doctest: +SKIP
        4
    """
    config = requested(config, settings)
    progress = progress or Silent()
    with open_run(config, progress) as run:
        return finish(run, run_trials(run))


def requested(config: SweepConfig | None, settings: Mapping[str, object]) -> SweepConfig:
    """Return a sweep's request from a config or its fields.

    Raises:
        RequestError: both are given, the config is none, a field is not allowed, or there are no ranks to compare.
    """
    config = requested_config(SweepConfig, config, settings, "a sweep")
    if len(config.ranks) < 2:
        raise RequestError(
            f"rank {config.ranks[0]} alone has nothing to be compared with; give at least two, as in 4,8"
        )
    return config


@dataclass(frozen=True)
class Run:
    """A sweep at work: its directory is held until the end of the ``with`` block."""

    config: SweepConfig
    task: Task
    base: "BaseModel"
    store: SweepStore
    progress: Progress
    fit: "Fit"

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: Any) -> None:
        self.store.__exit__(*error)

    @cached_property
    def engine(self) -> "TruncatingEngine":
        """What trains, cuts and scores; its making tokenises the examples."""
        from rankwise.sweeps.truncating_engine import TruncatingEngine

        return TruncatingEngine(_engine(self), self.store.adapter_directory)

    @cached_property
    def chance_loss(self) -> "ChanceLoss | None":
        """The held-out loss that says nothing is learnt: of guessing, or of the base as it is where no guess is known.

        A base whose head is drawn anew guesses too, badly, and says nothing.
        """
        if self.task.chance_loss is not None or self.base.newly_initialized:
            return self.task.chance_loss
        known = read_chance_loss(self.store.directory)
        if known is None:
            from rankwise.engine.adapter_init import untrained_adapter

            (scored,) = self.engine.score([untrained_adapter(self.base)])
            self.store.write_json(
                UNTRAINED_FILE, {name: scored[name].tolist() for name in ("example_id", "loss")}
            )
            known = read_chance_loss(self.store.directory)
        return known

    def encode(self, part: str) -> Encoded:
        """Tokenise a part of the data, and say how many texts were cut, or cut so short that nothing is left to learn.

        Raises:
            RequestError: of no text anything is left to learn, and a decision needs one.
        """
        length = min(max_length(self.config, self.task), self.base.max_length)
        examples, name = getattr(self.task, part), part.replace("_", "-")
        encoded, cut = self.task.encoder(examples, self.base.tokenizer, length)
        lost = len(examples) - len(encoded)
        if cut:
            self.progress.note(f"{cut} of {len(examples)} {name} texts were cut at {length} tokens")
        if lost:
            self.progress.note(
                f"{lost} of {len(examples)} {name} texts are left out: nothing to learn within {length}"
            )
        if len(examples) and not len(encoded) and part != "test":
            raise RequestError(
                f"max_length {length} leaves nothing to learn of any {name} text; give a larger one"
            )
        return encoded


def open_run(config: SweepConfig, progress: Progress) -> Run:
    """Check the whole request, load the base and open the directory; nothing is trained yet.

    Raises:
        RequestError: the request was wrong. No directory was made.
    """
    refuse_bad_directory(config.out)
    require_trackers(config.report_to)
    task = load_task(config)
    name = model_name(config)
    check_model_files(name)
    with (
        quiet_libraries()
    ):  # PEFT imports bitsandbytes, which on some processors asks for one more package
        from rankwise.models.base_model import load_base

    fit = _fit(name, config, task)
    base = load_base(
        name,
        task.objective,
        config.target_modules,
        config.ranks,
        config.trust_remote_code,
        config.quantization,
    )
    store = SweepStore(config.out, request_record(config, task, base), extend=config.extend)
    for note in task.notes:
        progress.note(note)
    if fit.unknown:
        kept = "" if config.max_memory is None else ", max_memory is not kept to"
        progress.note(f"memory is not checked{kept}, and one trial trains at a time: {fit.unknown}")
    progress.note(
        f"{task.name}: {task.objective.describe()}; {len(task.train)} training, {len(task.held_out)} held-out "
        f"and {len(task.test)} test examples"
    )
    return Run(config, task, base, store, progress, fit)


def _fit(name: str, config: SweepConfig, task: Task) -> "Fit":
    """Refuse a sweep that cannot fit this machine, and say how its trials fit (see `how_many_fit`)."""
    from rankwise.planning.config import PlanConfig
    from rankwise.planning.planner import how_many_fit

    def longest_text() -> int:
        from transformers import AutoTokenizer

        place, file = load_arguments(name)
        tokenizer = AutoTokenizer.from_pretrained(
            place, **file, trust_remote_code=config.trust_remote_code
        )
        return max(task.encoder(task.train, tokenizer, max_length(config, task))[0].lengths)

    request = PlanConfig(
        model=name,
        ranks=config.ranks,
        batch_size=config.batch_size,
        seq_len=max_length(config, task),
        precision="fp32",
        quantization=config.quantization,
        use_dora=config.use_dora,
        target_modules=config.target_modules,
        task_type=task.objective.task_type,  # type: ignore[arg-type]
        num_labels=task.objective.settings.get("num_labels"),
        trust_remote_code=config.trust_remote_code,
    )
    return how_many_fit(request, longest_text, config.max_memory)


def run_trials(run: Run) -> LeftOut | None:
    """Run the trials that are missing, and return what the budget left out."""
    config = run.config
    strategy = make_strategy(run, run.chance_loss)

    def report(finished: "FinishedTrial | None" = None) -> None:
        if finished is not None:
            run.progress.trial(finished)
        report_trials(run.store.directory, config.report_to, run.progress.note)

    report()  # what an interruption left unreported
    left_out = run_strategy(
        strategy,
        run.engine,
        run.store,
        {
            "lora_alpha_policy": config.lora_alpha,
            "epochs": config.epochs,
            "batch_size": config.batch_size,
        },
        on_trial=report,
        on_plan=run.progress.plan,
        budget=None if config.budget is None else 60 * config.budget,
    )
    if not left_out:
        return None
    more = strategy.expected_trials(run.store.evidence()) - len(run.store.trial_names())
    first = left_out[0]
    assert config.budget is not None  # nothing else leaves trials out
    return LeftOut(
        budget=config.budget,
        trials=max(more, len(left_out)),
        rank=first.rank,
        learning_rate=first.learning_rate,
        seed=first.seed,
    )


def run_strategy(
    strategy: "Strategy",
    engine: "Engine",
    store: SweepStore,
    settings: Mapping[str, Any],
    on_trial: Callable[["FinishedTrial"], None] = lambda finished: None,
    on_plan: Callable[[int, int], None] = lambda complete, expected: None,
    budget: float | None = None,
) -> "list[Trial]":
    """Run a strategy's trials until it proposes no more, keeping each as soon as it is finished.

    The strategy is asked again after every pack, so that the budget is looked at before each.

    Args:
        strategy: says what to run.
        engine: trains it.
        store: keeps it.
        settings: written into each trial's ``config.json`` beside the trial itself.
        on_trial: told of every finished trial.
        on_plan: told before each round how many trials are complete and how many are expected in all.
        budget: seconds of training and scoring, of all complete trials together; once they are spent no adapter is
            trained any more. Cuts of those that are there are still made.

    Returns:
        The trials that come next, which the budget left out; none when the sweep is complete.
    """
    while True:
        evidence = store.evidence()
        on_plan(len(store.trial_names()), strategy.expected_trials(evidence))
        trials = strategy.propose(evidence)
        cuts = [trial for trial in trials if trial.truncated_from is not None]
        if not cuts and (not trials or (budget is not None and store.seconds_spent() >= budget)):
            return trials
        for finished in engine.train(cuts or trials[: engine.pack_size]):
            store.add(finished, settings)
            on_trial(finished)


def make_strategy(run: Run, chance_loss: "ChanceLoss | None") -> "Strategy":
    """Return the strategy asked for; `chance_loss` tells it where nothing is learnt."""
    from rankwise.strategies import strategies

    config = run.config
    return strategies()[config.strategy](config, config, chance_loss)


def _engine(run: Run) -> "Engine":
    """Return the engine asked for, or the reference where a base is beyond the fused one, which is said aloud."""
    from rankwise.engine.config import TrainingConfig
    from rankwise.engine.fused.engine import FusedEngine, lower_precision
    from rankwise.engine.fused.model import unsupported_reason
    from rankwise.engine.reference import ReferenceEngine

    config = run.config
    train, held_out = run.encode("train"), run.encode("held_out")
    recipe = TrainingConfig(
        epochs=config.epochs,
        batch_size=config.batch_size,
        loraplus_ratio=config.loraplus_ratio,
        use_dora=config.use_dora,
        init=config.init,
    )
    if config.engine == "fused":
        reason = unsupported_reason(run.base, train)
        if reason is None:
            if run.fit.at_once > 1:
                run.progress.note(f"up to {run.fit.at_once} trials train at once")
            return FusedEngine(
                run.base,
                train,
                held_out,
                recipe,
                run.progress.work,
                run.fit.at_once,
                lower_precision(run.base),
            )
        run.progress.note(f"the reference engine trains instead of the fused one: {reason}")
    return ReferenceEngine(run.base, train, held_out, recipe, run.progress.work)
