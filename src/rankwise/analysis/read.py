"""Read results of others, from one or more sources, into one checked table of evidence."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rankwise.analysis.config import Reading
from rankwise.analysis.lm_eval import is_lm_eval, read_lm_eval
from rankwise.analysis.names import UNNAMED, bare_name, unqualified
from rankwise.analysis.peft_comparison import is_comparison, read_comparison
from rankwise.analysis.run_logs import CONFIGS, DEPTH, RUN_FILES, read_run_directories
from rankwise.analysis.source import ResultsSource, separate
from rankwise.analysis.sweep_directory import read_sweep
from rankwise.analysis.table_files import read_json, read_rows, records_in
from rankwise.analysis.tables import read_result_table
from rankwise.decide.evidence import HEALED, ChanceLoss, as_numbers, check_columns
from rankwise.decide.metrics import snake
from rankwise.decide.wording import PLAIN, Wording
from rankwise.errors import RequestError, nearest, reading, some
from rankwise.escaping import LONGEST_MESSAGE
from rankwise.settings import MOST_RANKS
from rankwise.store.records import TrialRecord

KEY = ["rank", "seed", "learning_rate", "example_id"]
EVALUATIONS = {
    "kept": ("the best", ", whose checkpoint it kept; --evaluation last counts the last"),
    "best": ("the best", ""),
    "last": ("the last", ""),
}
DEFAULTS = {"seed": 0, "learning_rate": 0.0}  # values where none is recorded


@dataclass(frozen=True)
class ImportedResults:
    """Results of others as evidence.

    Attributes:
        evidence: one row per (rank, seed, learning_rate) or, for results per example, per (rank,
            seed, learning_rate, example_id). Columns: ``rank`` and ``seed`` (int),
            ``learning_rate`` (float), ``example_id`` (int or str; only for results per example),
            ``diverged`` (bool) and a float column per metric, finite except where a trial
            diverged. The held-out loss is always called ``loss``; other metrics keep their name in
            lower case without the split's (``eval_accuracy`` is ``accuracy``). Seeds and rates that
            are not recorded are 0.
        metrics: names of the metric columns: the requested one first, then the held-out loss;
            ``train_loss``, which is not held out, last.
        train_loss: columns ``rank``, ``seed``, ``learning_rate``, ``step`` and ``train_loss``
            (finite); None if no source logged training losses.
        trials: trials of the rankwise sweeps among the results; empty if there are none.
        notes: guesses and omissions that the user should know of.
        chance_loss: chance-level held-out loss, of a single sweep that knows it.
        wording: names of the loss in sentences.
        noise: standard deviation of a trial over seeds in the first metric, where results say it.
        higher_is_better: direction of the first metric, where a file says it.
    """

    evidence: pd.DataFrame
    metrics: tuple[str, ...]
    train_loss: pd.DataFrame | None
    trials: tuple[TrialRecord, ...]
    notes: tuple[str, ...]
    chance_loss: ChanceLoss | None
    wording: Wording
    noise: float | None = None
    higher_is_better: bool | None = None


def read_results(paths: Sequence[Path], **options: Any) -> ImportedResults:
    """Read results that others produced, and join those of several paths.

    Each path is one of: a rankwise sweep directory; a table (CSV, TSV, JSON, JSON lines, Parquet);
    a directory of training runs, or one run (see `rankwise.analysis.run_logs`); a result file of
    PEFT's method comparison or of lm-eval-harness, or a directory of them.

    Args:
        paths: files and directories.
        options: fields of `rankwise.analysis.config.Reading`: columns of tables, by default those
            with conventional names; a metric, which comes first; and others.

    Raises:
        RequestError: a path cannot be read or holds no results, a column or metric is missing, a
            rank is not a positive whole number, a metric is not finite in a row that did not
            diverge, or a result occurs twice.
    """
    if not paths:
        raise RequestError("no results were named; allowed are files and directories")
    how = Reading(**options)
    sources: list[ResultsSource] = []
    notes: list[str] = []
    for path in paths:
        with reading(f"{str(path)!r} cannot be read"):
            read, omissions = _read_path(path, how)
        if not read:
            # One run for each reason, the commonest first, and as many as the line has room for.
            runs = {text.partition(": ")[2]: text for text in omissions}
            counts = Counter(text.partition(": ")[2] for text in omissions)
            reasons = [runs[reason] for reason, _ in counts.most_common()]
            lines = [f"{str(path)!r} holds no results: {some(reasons, n)}" for n in (3, 2, 1)]
            raise RequestError(next((e for e in lines if len(e) <= LONGEST_MESSAGE), lines[-1]))
        sources += read
        notes += omissions
    for source in sources:
        notes += source.notes
    named = [f"{role}_column" for role, column in how.columns.items() if column is not None]
    if named and all(path.is_dir() for path in paths):
        holds = f"{some(map(str, paths))} holds none"
        raise RequestError(f"{named[0]} is for tables, and {holds}; leave it out")
    metrics = _common_metrics(sources, how.metric, notes)
    evidence = _join(sources, metrics, notes)
    if (count := evidence["rank"].nunique()) > MOST_RANKS:  # every pair is compared
        raise RequestError(
            f"results of {count} ranks in {some(source.origin for source in sources)}; allowed are "
            f"{MOST_RANKS} at most; leave some out, or name the column of ranks (rank_column)"
        )
    _refuse_repeats(sources, evidence, how.rank_pattern is not None)
    notes += _comparability_notes(sources)
    if how.evaluation is not None and not any("evaluation of each run" in one for one in notes):
        notes.append("evaluation is not used: there is one evaluation for each run")
    single = sources[0] if len(sources) == 1 else None
    noises = [source.noise[metrics[0]] for source in sources if metrics[0] in source.noise]
    directions = [source.directions.get(metrics[0]) for source in sources]
    return ImportedResults(
        evidence=evidence.reset_index(drop=True),
        metrics=tuple(metrics),
        train_loss=_join_train_losses(sources),
        trials=tuple(trial for source in sources for trial in source.trials),
        notes=tuple(dict.fromkeys(notes)),
        chance_loss=single.chance_loss if single else None,
        wording=single.wording if single else PLAIN,
        noise=max(noises, default=None),
        higher_is_better=next((up for up in directions if up is not None), None),
    )


def _read_path(path: Path, how: Reading) -> tuple[list[ResultsSource], list[str]]:
    """Return the sources at a path, and notes on what was left out."""
    if path.is_file() and path.name in RUN_FILES:
        return read_run_directories(path.parent, how)
    if path.is_file() and path.suffix.lower() == ".json":
        content = read_json(path)
        if isinstance(content, dict) and is_comparison(content):
            return separate([(path.name, read_comparison(path, content, how.metric))])
        if is_lm_eval(content):
            return [read_lm_eval({path: content}, path.parent, how)], []
        return [read_result_table(records_in(content, path), path.name, how)], []
    if not path.is_dir():
        rows, notes = read_rows(path)
        return [read_result_table(rows, path.name, how)], notes
    if (path / "sweep.json").is_file() and (path / "trials").is_dir():
        return [read_sweep(path)], []
    runs, notes = read_run_directories(path, how)
    contents = {} if runs else _json_files(path)
    evaluations = {file: content for file, content in contents.items() if is_lm_eval(content)}
    if evaluations:
        return [read_lm_eval(evaluations, path, how)], []
    comparisons = {
        file: content
        for file, content in contents.items()
        if isinstance(content, dict) and is_comparison(content)
    }
    if comparisons:
        return separate(
            (file.name, read_comparison(file, content, how.metric))
            for file, content in comparisons.items()
        )
    if not runs and not notes:
        raise RequestError(
            f"{str(path)!r} holds no results; allowed are a sweep, runs at most {DEPTH} "
            f"directories down ({' or '.join(CONFIGS[:2])} with metrics), Ray Tune's trials, and "
            "results of PEFT's method comparison or lm-eval-harness; name the file of a table"
        )
    return runs, notes


def _json_files(directory: Path) -> dict[Path, Any]:
    """Return the JSON files in a directory and the results at most DEPTH levels below it."""
    files = list(directory.glob("*.json"))
    for depth in range(1, DEPTH + 1):
        files += directory.glob("*/" * depth + "results*.json")
    return {file: read_json(file) for file in sorted(files)}


def _common_metrics(
    sources: list[ResultsSource], requested: str | None, notes: list[str]
) -> list[str]:
    """Return the metrics that all sources have, the requested one first and train_loss last.

    Sources whose trials all diverged do not count. Notes name the metrics that only some have.
    """
    finite = [source for source in sources if not source.rows["diverged"].astype(bool).all()]
    counted = finite or sources
    metrics = list(dict.fromkeys(name for source in counted for name in source.metrics.values()))
    if not metrics:
        origins = some(source.origin for source in sources)
        raise RequestError(f"every trial diverged and no metric is recorded; results: {origins}")
    chosen = None if requested is None else _find_metric(requested, metrics, counted)
    without = {
        name: [source.origin for source in counted if name not in source.metrics.values()]
        for name in metrics
    }
    common = [name for name in metrics if not without[name]]
    for name in metrics:
        if name in common:
            continue
        count = f"{len(without[name])} of {len(counted)} results"
        missing = f"metric {name!r} is missing in {count} ({some(without[name])})"
        if name == chosen or not common:
            advice = "leave those results out, or name a metric that all have"
            raise RequestError(f"{missing}; {advice}: {some(common) or 'none'}")
        notes.append(f"{missing} and left out")
    order = {chosen: -2, "loss": -1, "train_loss": 1}
    return sorted(common, key=lambda name: order.get(name, 0))


def _find_metric(requested: str, metrics: list[str], sources: list[ResultsSource]) -> str:
    """Return the metric that the user requested, by its name in a source or in the evidence."""
    written = {name: metric for source in sources for name, metric in source.metrics.items()}
    asked = snake(requested.removesuffix(",none"))  # lm-eval-harness writes "acc,none"
    spellings: dict[str, str] = {}
    for name, metric in written.items():
        rest = bare_name(name).rest
        spellings |= {snake(each): metric for each in (unqualified(rest), rest, name)}
        if bare_name(name).last in UNNAMED:  # the user said which metric it holds
            spellings[asked] = metric
    spellings |= {metric: metric for metric in metrics}
    found = written.get(requested) or spellings.get(asked)
    of_tasks = [metric for metric in metrics if metric.endswith(f"_{asked}")]
    if found is None and len(of_tasks) == 1 and of_tasks[0] != "train_loss":
        found = of_tasks[0]
    if found is None:
        hint = nearest(requested, [*metrics, *written])
        raise RequestError(f"there is no metric {requested!r}{hint}; metrics: {some(metrics, 12)}")
    return found


def _join(sources: list[ResultsSource], metrics: list[str], notes: list[str]) -> pd.DataFrame:
    """Join the rows of all sources and check them; the index is (source, row)."""
    per_example = ["example_id" in source.rows.columns for source in sources]
    if any(per_example) and not all(per_example):
        with_ids = sources[per_example.index(True)].origin
        without = sources[per_example.index(False)].origin
        kinds = f"{with_ids} holds results per example and {without} does not"
        raise RequestError(f"{kinds}; give results of one kind")
    for name, default in DEFAULTS.items():
        lacking = [source.origin for source in sources if name not in source.rows.columns]
        if lacking:
            where = f" in {some(lacking)}" if len(lacking) < len(sources) else ""
            recorded = f"no {name.replace('_', ' ')} is recorded{where}"
            notes.append(f"{recorded}; it is taken as {default:g}")
    columns = [*KEY[: 3 + any(per_example)], "diverged", *metrics]
    if any(source.trials and HEALED in source.rows.columns for source in sources):
        columns.append(HEALED)  # only a sweep's directory has it
    rows = [pd.DataFrame({**DEFAULTS, **source.rows}) for source in sources]
    evidence = pd.concat(rows, keys=range(len(sources))).reindex(columns=columns)
    return check_columns(evidence, metrics, partial(_refuse, sources))


def _refuse(
    sources: list[ResultsSource], values: pd.Series, good: np.ndarray, allowed: str
) -> None:
    """Refuse a column with bad values; name the column, the values and their rows."""
    bad = values[~good]
    if bad.empty:
        return
    metrics = sources[bad.index[0][0]].metrics
    written = next((each for each, name in metrics.items() if name == values.name), values.name)
    column = values.name if written == values.name else f"{values.name} ({written!r})"
    shown, places = some(bad.astype(str).unique()), _places(sources, bad.index)
    raise RequestError(
        f"{column}: {shown} in {len(bad)} of {len(values)} rows ({places}); allowed are {allowed}"
    )


def _places(sources: list[ResultsSource], rows: pd.Index) -> str:
    """Return the origins and numbers of rows, given as (source, row)."""
    places = []
    for number in dict.fromkeys(source for source, _ in rows):
        inside = [row for source, row in rows if source == number]
        one_row = len(sources[number].rows) == 1
        places.append(sources[number].origin + ("" if one_row else f" row {some(inside)}"))
    return some(places)


def _refuse_repeats(sources: list[ResultsSource], evidence: pd.DataFrame, patterned: bool) -> None:
    """Refuse results that occur twice, with advice on what would distinguish them."""
    key = [name for name in KEY if name in evidence.columns]
    repeated = evidence.duplicated(key)
    if not repeated.any():
        return
    first = {name: evidence.loc[repeated, name].iloc[0] for name in key}
    equal = [(evidence[name] == value).to_numpy() for name, value in first.items()]
    same = evidence.index[np.logical_and.reduce(equal)]
    result = f"rank {first['rank']}, seed {first['seed']}, learning rate {first['learning_rate']:g}"
    if "example_id" in key:
        result += f", example {first['example_id']}"
    pair = [sources[same[0][0]], sources[same[1][0]]]
    if differing := _differing_settings(pair):
        advice = f"they differ in {some(differing)}; give runs that differ in their rank only"
    elif all(source.is_run for source in pair):
        advice = (
            "keep one of them, or record what distinguishes it in its args.json: "
            '{"seed": 1}, or another learning rate, such as {"learning_rate": 1e-4}'
        )
    else:
        column = "seed_column" if "example_id" in key else "seed_column or example_column"
        keep = "keep one of each, such as a run's last step"
        advice = f"{keep}, or name the column that distinguishes them with {column}"
        if distinct := next(
            (each.distinguished_by for each in pair if each.distinguished_by), None
        ):
            advice = f"{advice}, such as --seed-column {distinct!r}"
        if patterned:
            group = r"(?P<seed>\d+)"
            advice = f"{advice}, or give rank_pattern a group for the seed, such as {group}"
    count = int(repeated.sum())
    rows = f"{count} row repeats another" if count == 1 else f"{count} rows repeat another"
    raise RequestError(f"{rows}, such as {result} ({_places(sources, same[:5])}); {advice}")


def _differing_settings(sources: Sequence[ResultsSource]) -> list[str]:
    """Return the settings that differ between sources, where they are known."""
    values: dict[str, set[str]] = {}
    for source in sources:
        for name, value in source.settings.items():
            values.setdefault(name, set()).add(value)
    return [name for name, different in values.items() if len(different) > 1]


def _comparability_notes(sources: list[ResultsSource]) -> list[str]:
    """Return notes on what limits a comparison of the results."""
    notes = []
    spellings: dict[str, dict[str, None]] = {}
    for source in sources:
        for written, metric in source.metrics.items():
            spellings.setdefault(metric, {})[written] = None
    for metric, names in spellings.items():
        if len(names) > 1:
            called = f"{metric} is called {some(map(repr, names))}"
            notes.append(f"{called}; they are comparable if the held-out data are the same")
    for evaluation, said in EVALUATIONS.items():
        chosen = [source for source in sources if source.evaluation == evaluation]
        steps = [source.step for source in chosen if source.step is not None]
        if not steps:
            continue
        reached = f"step {steps[0]}"
        if min(steps) < max(steps):
            reached = f"steps {min(steps)} to {max(steps)}, not the same"
        each = "each run" if len(chosen) == len(sources) else f"{len(chosen)} of the runs"
        notes.append(f"{said[0]} evaluation of {each} counts{said[1]} ({reached})")
    if differing := _differing_settings(sources):
        notes.append(f"the runs differ in more than their rank: {some(differing)}")
    return notes


def _join_train_losses(sources: list[ResultsSource]) -> pd.DataFrame | None:
    """Join the training losses of all sources, without those that are not finite."""
    frames = [source.train_loss for source in sources if source.train_loss is not None]
    if not frames:
        return None
    joined = pd.concat(frames, ignore_index=True)
    losses = joined.reindex(columns=[*KEY[:3], "step", "train_loss"])
    finite = losses[np.isfinite(as_numbers(losses["train_loss"]))].fillna(DEFAULTS)
    types = {"learning_rate": float, "train_loss": float}
    columns = {
        name: as_numbers(finite[name]).astype(types.get(name, np.int64)) for name in finite.columns
    }
    return None if finite.empty else pd.DataFrame(columns)
