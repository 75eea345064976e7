"""Judging by what a trial says itself: losses of examples that it wrote, or numbers in its logs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rankwise.analysis.evaluations import until
from rankwise.analysis.run_logs import find_runs, read_log
from rankwise.analysis.source import last_values
from rankwise.decide.evidence import NO_EXAMPLE, as_measures, check_columns
from rankwise.decide.metrics import higher_is_better
from rankwise.engine.trial import Trial, no_evidence
from rankwise.errors import RequestError, nearest, reading, shown, some
from rankwise.tasks.base import Encoded, Examples, Objective, Task
from rankwise.tasks.hf_datasets import refuse_damaged
from rankwise.tasks.splits import NO_EXAMPLES
from rankwise.trainers.engine import DIVERGED, LOG, Judged
from rankwise.trainers.left_adapter import (
    UnusableTrialError,
    find_adapter,
    read_trained_adapter,
)

if TYPE_CHECKING:
    from rankwise.lora.adapter import Adapter

NOT_SCORED = "scoring of an adapter needs --data; the trainer's figures are not it"

EVIDENCE = ("rankwise_evidence.parquet", "rankwise_evidence.jsonl")
"""Names of the file of example ids and losses that a trial may write."""


def goes_up(metric: str, direction: str | None) -> bool:
    """Return whether more of a metric is better, by its name if the request does not say so."""
    return bool(higher_is_better(metric)) if direction is None else direction == "max"


@dataclass(frozen=True)
class FiguresObjective(Objective):
    """Words for figures that a trainer measured itself; nothing is scored here."""

    unit: str
    score: str
    chance: str = "chance"

    def describe(self) -> str:
        """Return who measured."""
        return "measured by the trainer itself"

    def targets(self, examples: Encoded) -> Any:
        """Refuse: the trainer measures."""
        raise RequestError(NOT_SCORED)

    def measure(self, logits: Any, examples: Encoded) -> dict[str, np.ndarray]:
        """Refuse: the trainer measures."""
        raise RequestError(NOT_SCORED)


def figures_task(metric: str | None, direction: str | None) -> Task:
    """Return the task of a sweep that is judged by its trainer's own figures.

    Where more of the metric is better, its negative stands in the place of the loss.
    """
    objective = FiguresObjective("loss per example", "negative loss")
    if metric is not None:
        up = goes_up(metric, direction)
        signed, other = (f"negative {metric}", metric) if up else (metric, f"negative {metric}")
        objective = FiguresObjective(f"{signed} per trial", other)

    def encode(examples: Examples, tokenizer: Any, length: int) -> tuple[Encoded, int]:
        return Encoded((), [], ()), 0

    name = "examples" if metric is None else metric
    return Task(name, objective, encode, NO_EXAMPLES, NO_EXAMPLES, NO_EXAMPLES)


class FiguresJudge:
    """Takes the figures that a trial wrote, and its adapter if there is one.

    Args:
        metric: the metric in its logs; None for a file of example ids and losses.
        up: whether more of the metric is better.
        base: name of the base that its adapter must have; None for any.
        examples: ids of the examples of earlier trials; empty for a first one.
    """

    def __init__(
        self, metric: str | None, up: bool, base: str | None, examples: Iterable[object] = ()
    ) -> None:
        self.metric = metric
        self.up = up
        self.base = base
        self.examples = set(examples)

    def judge(self, trial: Trial, out: Path) -> Judged:
        """Read the figures of a trial."""
        config: Mapping[str, Any] = {}
        tensors: Mapping[str, Any] = {}
        if any(out.rglob("adapter_config.json")):
            adapter = read_trained_adapter(find_adapter(out), trial, self.base)
            if adapter is None:
                return DIVERGED
            config, tensors = adapter.config, adapter.tensors
        try:
            evidence = self._evidence(out)
        except RequestError as error:
            raise UnusableTrialError(str(error)) from None
        diverged = not bool(np.isfinite(evidence["loss"]).all())
        if not diverged:
            self._check_examples(set(evidence["example_id"]))
        return Judged(
            evidence=no_evidence() if diverged else evidence,
            diverged=diverged,
            adapter_config=dict(config),
            adapter=dict(tensors),
        )

    def _check_examples(self, examples: set[object]) -> None:
        """Refuse other examples than those of earlier trials, which could not be compared."""
        if self.examples and examples != self.examples:
            raise UnusableTrialError(
                f"its losses are of other examples than those of earlier trials: {len(examples)} "
                f"examples, {len(examples & self.examples)} of them among the {len(self.examples)} "
                "of those; evaluate every trial on the same rows"
            )
        self.examples = examples

    def score(
        self, adapters: "Sequence[Adapter]", examples: Encoded | None = None
    ) -> list[pd.DataFrame]:
        """Refuse: there are no examples to score on.

        Raises:
            RequestError: always.
        """
        raise RequestError(NOT_SCORED)

    def _evidence(self, out: Path) -> pd.DataFrame:
        if self.metric is None:
            return read_example_losses(out)
        value = read_metric(self.metric, out)
        cost = -value if self.up else value
        return pd.DataFrame({"example_id": [NO_EXAMPLE], "loss": [cost], "score": [-cost]})


def read_example_losses(out: Path) -> pd.DataFrame:
    """Read the file of example ids and losses that a trial wrote.

    Raises:
        RequestError: there is none, or it lacks a column.
    """
    found = [path for name in EVIDENCE for path in sorted(out.rglob(name))]
    if not found:
        raise RequestError(
            f"it wrote no {' or '.join(EVIDENCE)} (EvidenceCallback does), and the sweep has "
            "neither --data to score adapters on nor a --metric of its logs"
        )
    with reading(f"its {found[0].name} cannot be read"):
        rows = _read_table(found[0])
    missing = [name for name in ("example_id", "loss") if name not in rows.columns]
    if missing:
        raise RequestError(
            f"its {found[0].name} lacks {some(missing)}; it has {some(rows.columns)}"
        )
    return _checked(rows, found[0].name)


def _checked(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return ids, losses and scores with their types.

    Raises:
        RequestError: there are no rows, an id is missing or there twice, or a value is no number.
    """

    def refuse(column: pd.Series, good: np.ndarray, allowed: str) -> None:
        if not good.all():
            value = shown(column[~good].tolist()[0])
            raise RequestError(f"its {name} has {column.name} {value}; allowed are {allowed}")

    if rows.empty:
        raise RequestError(f"its {name} has no rows")
    names = [each for each in ("example_id", "loss", "score") if each in rows.columns]
    rows = rows[names].reset_index(drop=True)
    is_float = rows["loss"].map(lambda value: isinstance(value, float)).to_numpy()
    refuse(rows["loss"], np.isfinite(as_measures(rows["loss"])) | is_float, "numbers")
    # A loss that is not finite has diverged, which is no mistake.
    lost = ~np.isfinite(as_measures(rows["loss"]))
    rows = rows.assign(rank=1, seed=0, learning_rate=0.0, diverged=lost)
    refuse(rows["example_id"], rows["example_id"].notna().to_numpy(), "an id for each example")
    rows = check_columns(rows, [each for each in names if each != "example_id"], refuse)
    refuse(rows["example_id"], ~rows["example_id"].duplicated().to_numpy(), "ids that differ")
    if "score" not in names:
        rows = rows.assign(score=-rows["loss"])
    return rows[["example_id", "loss", "score"]]


def _read_table(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        refuse_damaged(path)
        return pd.read_parquet(path)
    return pd.read_json(path, lines=True, dtype=False)


def read_metric(metric: str, out: Path) -> float:
    """Return a metric's value in a trial's logs: of the checkpoint it kept, or else the last.

    Its directory is searched for ``trainer_state.json``, ``metrics.jsonl`` and the like, then its
    output for lines of JSON.

    Raises:
        RequestError: it is not there; the message names the metrics that are.
    """
    known: dict[str, float] = {}
    for run in find_runs(out):
        log = read_log(run)
        if log is not None:
            rows = log.rows if log.kept is None else until(log.rows, log.kept)
            known = {**last_values(rows), **known}
    known = {**last_values(_json_lines(out.with_name(LOG))), **known}
    if metric in known:
        return known[metric]
    there = f"there are: {some(sorted(known), 20)}" if known else "there are no numbers in them"
    raise RequestError(f"metric {metric!r} is not in its logs{nearest(metric, known)}; {there}")


def _json_lines(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a log that are JSON objects."""
    rows = []
    text = log.read_text(errors="replace") if log.is_file() else ""
    for line in text.splitlines():
        if line.lstrip().startswith("{"):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            rows += [row] if isinstance(row, dict) else []
    return rows
