"""Results of lm-eval-harness: ``results_DATE.json`` for each evaluated model.

``results`` holds, for each task, values such as ``acc,none`` (metric and filter) and their standard
errors over examples, ``acc_stderr,none``. ``higher_is_better`` gives each metric's direction.
``config`` names the model and, in ``model_args``, the adapter: ``peft=out/r16`` (Hugging Face) or
``lora_local_path=out/r16`` (vLLM). No file holds the rank or the seed: they are in the adapter's
config, if it is there, or in its name or path.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.analysis.config import Reading
from rankwise.analysis.name_patterns import (
    SEED_WORDS,
    check_rank_pattern,
    number_in_name,
    pattern_advice,
    rank_in_name,
)
from rankwise.analysis.source import ResultsSource, is_number, is_scalar, read_json_object
from rankwise.decide.metrics import LOSSES, higher_is_better, snake
from rankwise.errors import RequestError, some

ADAPTER_ARGUMENTS = ("peft", "lora_local_path", "adapter", "delta")
NO_FILTER = "none"
NO_METRICS = ("alias", "sample_len", "sample_count")


def is_lm_eval(content: Any) -> bool:
    """Return whether a JSON file's content is a result of lm-eval-harness."""
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        return False
    tasks = content["results"].values()
    named = any(name in content for name in ("versions", "configs", "n-shot", "config"))
    return named and bool(tasks) and all(isinstance(task, dict) for task in tasks)


@dataclass
class Evaluated:
    """One adapter, with its values over all files."""

    name: str
    where: str
    adapter: str | None
    values: dict[str, float]
    directions: dict[str, bool]
    files: list[Path]


def read_lm_eval(files: Mapping[Path, Any], root: Path, reading: Reading) -> ResultsSource:
    """Read the results of several adapters, one row each.

    Args:
        files: each file's path and content.
        root: the directory that the files were found in.
        reading: the pattern that finds ranks in names, and the metric.

    Raises:
        RequestError: ranks are not known, or several tasks were evaluated and none is named.
    """
    models, notes = _join_files(files, root)
    where = (name for one in models for name in (one.adapter, one.where) if name)
    check_rank_pattern(reading.rank_pattern, where)
    rows, directions = [], dict[str, bool]()
    unknown: list[Evaluated] = []
    sources: set[str] = set()
    bases = []
    for one in models:
        directions |= one.directions
        identity, source = _identity(one, root, reading)
        if identity:
            sources.add(source)
            rows.append({**identity, **one.values})
        elif one.adapter is None and any(other.adapter for other in models):
            bases.append(one.where)
        else:
            unknown.append(one)
    if unknown:
        raise RequestError(_rank_is_missing(unknown, root))
    if bases:
        notes.append(f"{len(bases)} results of a base model without adapter are left out")
    if not rows:
        raise RequestError(f"{str(root)!r} holds results of base models only; none has an adapter")
    metrics = _metrics(rows, directions, reading, root)
    names = [f"{name} from {written!r}" for written, name in metrics.items()]
    notes.append(
        f"{root.name}: lm-eval-harness: rank from {some(sources)}; read {', '.join(names)}"
    )
    notes.append("standard errors are over examples, which all adapters share; they are not used")
    table = pd.DataFrame(rows, index=range(1, len(rows) + 1)).rename(columns=metrics)
    table["diverged"] = False
    return ResultsSource(
        origin=root.name,
        rows=table,
        metrics=metrics,
        notes=tuple(notes),
        directions={metrics[name]: up for name, up in directions.items() if name in metrics},
    )


def _join_files(files: Mapping[Path, Any], root: Path) -> tuple[list[Evaluated], list[str]]:
    """Join the files of each adapter, of two with the same task the later one counts; say so."""
    # The names of the files hold their dates.
    ordered = sorted(files, key=lambda file: (file.name, file))
    evaluated = [_evaluated(path, files[path], root) for path in ordered]
    # One name for all, such as "./adapter", distinguishes nothing.
    is_told = len({one.adapter for one in evaluated if one.adapter}) > 1
    models: dict[str, Evaluated] = {}
    replaced = 0
    for one in evaluated:
        known = models.setdefault(one.adapter if is_told and one.adapter else one.where, one)
        replaced += known is not one and bool(known.values.keys() & one.values.keys())
        known.values |= one.values
        known.directions |= one.directions
    notes = [f"{replaced} results are left out for later ones of the same adapter and task"]
    return list(models.values()), notes if replaced else []


def _evaluated(path: Path, content: Mapping[str, Any], root: Path) -> Evaluated:
    values: dict[str, float] = {}
    directions: dict[str, bool] = {}
    for task, measured in content["results"].items():
        ups = content.get("higher_is_better", {}).get(task) or {}
        for key, value in measured.items():
            metric, _, chosen = key.partition(",")
            if (
                not is_number(value)
                or metric.endswith("_stderr")
                or metric in ("alias", "sample_len")
            ):
                continue
            name = f"{task}/{metric}" if chosen in ("", NO_FILTER) else f"{task}/{metric},{chosen}"
            values[name] = float(value)
            up = ups.get(key, ups.get(metric, higher_is_better(metric)))
            if isinstance(up, bool):
                directions[name] = up
    arguments = _arguments(content)
    adapter = next((arguments[name] for name in ADAPTER_ARGUMENTS if arguments.get(name)), None)
    where = str(path.parent.relative_to(root)) if path.parent != root else path.stem
    return Evaluated(path.name, where, adapter, values, directions, [path])


def _arguments(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments of the model, written as ``a=1,b=2`` or as an object."""
    config = content.get("config")
    written = config.get("model_args") if isinstance(config, dict) else None
    if isinstance(written, dict):
        return {name: str(value) for name, value in written.items() if value is not None}
    pairs = [part.partition("=") for part in str(written or "").split(",")]
    return {name.strip(): value.strip() for name, _, value in pairs if value}


def _identity(one: Evaluated, root: Path, reading: Reading) -> tuple[dict[str, Any], str]:
    """Return an adapter's rank and seed, and what they were read from; {} if they are not known."""
    names = [name for name in (one.adapter, one.where) if name]
    identity: dict[str, Any] = {}
    source = ""
    for name in names if reading.rank_pattern is not None else ():
        assert reading.rank_pattern is not None
        rank, seed = rank_in_name(reading.rank_pattern, name)
        if rank is not None:
            identity, source = {"rank": rank}, "the names, by rank_pattern"
            identity |= {} if seed is None else {"seed": seed}
            break
    if not identity:
        rank = _adapter_rank(one, root)
        if rank is None:
            return {}, ""
        identity, source = {"rank": rank}, "adapter_config.json"
    for name in names:
        found = number_in_name(name, SEED_WORDS)
        if found is not None:
            return {"seed": found, **identity}, source
    return identity, source


def _adapter_rank(one: Evaluated, root: Path) -> Any:
    """Return the rank in the adapter's config, near the results or where the arguments say."""
    places = [*one.files[0].parents[: len(one.files[0].parents) - len(root.parents)]]
    if one.adapter:
        places += [Path(one.adapter), root / one.adapter, root.parent / one.adapter]
    for place in places:
        config = place / "adapter_config.json"
        if config.is_file() and is_scalar(rank := read_json_object(config).get("r")):
            return rank
    return None


def _rank_is_missing(unknown: Iterable[Evaluated], root: Path) -> str:
    names = [one.adapter or one.where for one in unknown]
    advice = pattern_advice(names)
    if not advice:
        names = [one.where for one in unknown]
        advice = pattern_advice(names)
    advice = advice or (
        "give --rank-pattern (rank_pattern), a regular expression whose group is the rank in the "
        "adapter's name or path"
    )
    return (
        f"{str(root)!r} holds results of lm-eval-harness, which do not say the rank "
        f"({some(names, 3)}); {advice}"
    )


def _metrics(
    rows: list[dict[str, Any]], directions: Mapping[str, bool], reading: Reading, root: Path
) -> dict[str, str]:
    """Return the metrics to read, the one asked for first; of a single task without its name."""
    names = list(dict.fromkeys(name for row in rows for name in row if "/" in name))
    tasks = list(dict.fromkeys(name.rpartition("/")[0] for name in names))
    known = [name for name in names if name in directions]
    asked = reading.metric
    if asked is not None:
        known = [name for name in names if _is_asked(asked, name)]
    elif len(tasks) > 1:
        known = [name for name in known if all(name in row for row in rows)]
        raise RequestError(
            f"{str(root)!r} holds results of {len(tasks)} tasks; compare one, such as "
            f"--metric {known[0] if known else names[0]} (metric); there are: {some(names, 12)}"
        )
    if not known:
        raise RequestError(f"{str(root)!r} has no metric {asked!r}; there are: {some(names, 12)}")
    if len({name.rpartition("/")[0] for name in known}) > 1:
        raise RequestError(
            f"several tasks in {str(root)!r} have the metric {asked!r}; name one: {some(known, 12)}"
        )
    shorts = {}
    for name in known:
        short = snake(name.rpartition("/")[2] if len(tasks) == 1 else name)
        shorts[name] = "loss" if short in LOSSES else short
    return shorts


def _is_asked(asked: str, name: str) -> bool:
    spellings = (name, name.rpartition("/")[2], name.partition(",")[0])
    return snake(asked.removesuffix(f",{NO_FILTER}")) in map(snake, spellings)
