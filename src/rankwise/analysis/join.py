"""Several sources of results put together into one table of evidence, and checked."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from rankwise.analysis.source import ResultsSource
from rankwise.decide.evidence import check_columns
from rankwise.decide.metrics import snake
from rankwise.errors import RequestError, nearest, some

KEY = ["rank", "seed", "learning_rate", "example_id"]
UNKNOWN = {"seed": 0, "learning_rate": 0.0}  # what stands where none is known


def common_metrics(parts: list[ResultsSource], asked: str | None, notes: list[str]) -> list[str]:
    """Return the metrics that every part has, but those whose trials all diverged; the one asked for first."""
    alive = [part for part in parts if not part.rows["diverged"].astype(bool).all()] or parts
    there = list(dict.fromkeys(own for part in alive for own in part.names.values()))
    if not there:
        raise RequestError(
            f"every trial diverged and no metric is known; results: {some(part.origin for part in parts)}"
        )
    common = [own for own in there if all(own in part.names.values() for part in alive)]
    chosen = None
    if asked is not None:
        written = {name: own for part in alive for name, own in part.names.items()}
        spellings = {
            **{snake(name): own for name, own in written.items()},
            **{own: own for own in there},
        }
        chosen = written.get(asked) or spellings.get(snake(asked))
        if chosen is None:
            known = [*there, *written]
            raise RequestError(
                f"metric {asked!r} is not there{nearest(asked, known)}; metrics: {some(there, 12)}"
            )
    for own in there:
        if own in common:
            continue
        without = [part.origin for part in alive if own not in part.names.values()]
        missing = (
            f"metric {own!r} is missing in {len(without)} of {len(alive)} results ({some(without)})"
        )
        if own == chosen or not common:
            raise RequestError(
                f"{missing}; leave those out, or name a metric that all have: {some(common) or 'none'}"
            )
        notes.append(f"{missing} and left out")
    rest = sorted(
        (own for own in common if own != chosen),
        key=lambda own: {"loss": -1, "train_loss": 1}.get(own, 0),
    )
    return ([chosen] if chosen is not None else []) + rest


def join_evidence(parts: list[ResultsSource], metrics: list[str], notes: list[str]) -> pd.DataFrame:
    """Put the parts' rows together and check them; the index is (part, row)."""
    per_example = ["example_id" in part.rows.columns for part in parts]
    if any(per_example) and not all(per_example):
        one, other = parts[per_example.index(True)].origin, parts[per_example.index(False)].origin
        raise RequestError(
            f"{one} holds results per example and {other} does not; give results of one kind"
        )
    for name, unknown in UNKNOWN.items():
        without = [part.origin for part in parts if name not in part.rows.columns]
        if without:
            said = f" in {some(without)}" if len(without) < len(parts) else ""
            notes.append(f"no {name.replace('_', ' ')} is known{said}; taken as {unknown:g}")
    columns = [*KEY[: 3 + any(per_example)], "diverged", *metrics]
    rows = [
        part.rows.assign(**{n: v for n, v in UNKNOWN.items() if n not in part.rows.columns})
        for part in parts
    ]
    evidence = pd.concat(rows, keys=range(len(parts))).reindex(columns=columns)
    return check_columns(evidence, metrics, partial(_refuse, parts))


def _refuse(parts: list[ResultsSource], values: pd.Series, good: np.ndarray, allowed: str) -> None:
    """Refuse values, naming them and their rows."""
    bad = values[~good]
    if len(bad):
        names = parts[bad.index[0][0]].names
        written = [
            f" ({name!r})" for name, own in names.items() if own == values.name and name != own
        ]
        raise RequestError(
            f"{values.name}{''.join(written)}: {some(bad.astype(str).unique())} in {len(bad)} of {len(values)} rows "
            f"({_where(parts, bad.index)}); allowed are {allowed}"
        )


def _where(parts: list[ResultsSource], rows: pd.Index) -> str:
    """Name rows, (part, row), by their source."""
    places = []
    for number in dict.fromkeys(part for part, _ in rows):
        inside = [row for part, row in rows if part == number]
        alone = len(parts[number].rows) == 1
        places.append(parts[number].origin + ("" if alone else f" row {some(inside)}"))
    return some(places)


def refuse_repeats(parts: list[ResultsSource], evidence: pd.DataFrame) -> None:
    """Refuse results that stand twice, and say what would tell them apart."""
    key = [name for name in KEY if name in evidence.columns]
    again = evidence.duplicated(key)
    if not again.any():
        return
    first = {name: evidence[name][again].iloc[0] for name in key}
    same = evidence.index[
        np.logical_and.reduce([evidence[name] == value for name, value in first.items()])
    ]
    what = f"rank {first['rank']}, seed {first['seed']}, learning rate {first['learning_rate']:g}"
    what += f", example {first['example_id']}" if "example_id" in key else ""
    one, other = parts[same[0][0]], parts[same[1][0]]
    if differ := differences([one, other]):
        fix = f"they differ in {some(differ)}; give runs that differ in their rank only"
    elif one.is_run and other.is_run:
        fix = (
            'keep one of them, or say in its args.json what sets it apart: {"seed": 1}, or another learning rate, such '
            'as {"learning_rate": 1e-4}'
        )
    else:
        fix = "keep one of each, a run's last step, or name the column that tells them apart: seed_column"
        fix += "" if "example_id" in key else " or example_column"
    raise RequestError(
        f"{int(again.sum())} rows repeat another, such as {what} ({_where(parts, same[:5])}); {fix}"
    )


def differences(parts: Sequence[ResultsSource]) -> list[str]:
    """Return the settings in which parts differ, as far as they are known."""
    names = dict.fromkeys(name for part in parts for name in part.settings)
    return [
        name
        for name in names
        if len({part.settings[name] for part in parts if name in part.settings}) > 1
    ]
