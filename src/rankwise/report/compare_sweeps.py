"""Several sweeps of one task side by side, for example one for each alpha policy."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.errors import RequestError
from rankwise.store.directory import read_evidence, read_json

SAME = ("data", "eval_data")  # of the fingerprints: losses on other examples cannot be compared
SAME_SETTINGS = ("train_examples",)
SAME_TASK = ("loss",)  # its unit


@dataclass(frozen=True)
class Line:
    """One sweep among others.

    Attributes:
        label: what distinguishes it: the settings that are not the same in all sweeps.
        unit: of its losses.
        directory: its own.
        rank: the decision's; None if undetermined.
        table: the decision's rows, as in ``decision.json``.
        spread: how far the ranks' held-out losses lie apart, each rank at its own learning rate, first seed;
            None where a rank diverged.
        spread_at: the same with all ranks at one learning rate, for each rate that every rank was tried at.
    """

    label: str
    unit: str
    directory: Path
    rank: int | None
    table: tuple[dict[str, Any], ...]
    spread: float | None
    spread_at: dict[float, float]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        spreads = [
            {"learning_rate": rate, "spread": value} for rate, value in self.spread_at.items()
        ]
        return {
            **asdict(self),
            "directory": str(self.directory),
            "spread_at": spreads,
            "table": list(self.table),
        }

    @classmethod
    def from_dict(cls, written: Mapping[str, Any]) -> "Line":
        """Return a line from what `as_dict` gave."""
        values = {name: written[name] for name in ("label", "unit", "rank", "spread")}
        rates = {one["learning_rate"]: one["spread"] for one in written["spread_at"]}
        return cls(
            directory=Path(written["directory"]),
            table=tuple(written["table"]),
            spread_at=rates,
            **values,
        )


def read_lines(directories: Sequence[Path]) -> list[Line]:
    """Read finished sweeps of one task.

    Raises:
        RequestError: a directory holds no finished sweep, or they are not of the same data and loss.
    """
    sweeps, decisions = [], []
    for directory in directories:
        sweep, decision = (
            read_json(directory / "sweep.json"),
            read_json(directory / "decision.json"),
        )
        if sweep is None or decision is None:
            missing = "sweep.json" if sweep is None else "decision.json"
            raise RequestError(f"{str(directory)!r} holds no finished sweep: it has no {missing}")
        sweeps.append(sweep)
        decisions.append(decision)
        for part, names in (
            ("fingerprints", SAME),
            ("settings", SAME_SETTINGS),
            ("task", SAME_TASK),
        ):
            for name in names:
                if sweep[part].get(name) != sweeps[0][part].get(name):
                    raise RequestError(
                        f"{str(directory)!r} and {str(directories[0])!r} differ in {name}: their losses cannot be "
                        "compared"
                    )
    lines = []
    unit = sweeps[0]["task"]["loss"]
    for directory, label, decision in zip(
        directories, _labels(directories, sweeps), decisions, strict=True
    ):
        own, at_rate = _spreads(read_evidence(directory), decision["table"])
        lines.append(
            Line(label, unit, directory, decision["rank"], tuple(decision["table"]), own, at_rate)
        )
    return lines


def _labels(directories: Sequence[Path], sweeps: Sequence[dict[str, Any]]) -> list[str]:
    """Name each sweep by the settings in which they differ, by its directory where that tells too little."""
    described = [{**sweep["settings"], "model": sweep["paths"]["model"]} for sweep in sweeps]
    names = list(dict.fromkeys(name for settings in described for name in settings))
    differing = [
        name for name in names if len({str(settings.get(name)) for settings in described}) > 1
    ]
    labels = [
        ", ".join(f"{name.replace('_', ' ')} {_plain(settings.get(name))}" for name in differing)
        for settings in described
    ]
    return (
        labels if len(set(labels)) == len(labels) else [directory.name for directory in directories]
    )


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _spreads(
    evidence: pd.DataFrame, table: Sequence[dict[str, Any]]
) -> tuple[float | None, dict[float, float]]:
    """Return the largest difference of mean losses between ranks: at their own rates, and at each common rate."""
    first = evidence[
        (evidence["seed"] == evidence["seed"].min()) & ~evidence["diverged"].astype(bool)
    ]
    losses = (
        first.groupby(["rank", "learning_rate"])["loss"].mean().unstack("learning_rate")
    )  # (ranks, rates)
    ranks = {row["rank"] for row in table}
    complete = losses.dropna(axis="columns")
    common = complete if set(complete.index) == ranks else complete.iloc[:, :0]
    own = [
        losses.loc[row["rank"], row["learning_rate"]]
        for row in table
        if row["learning_rate"] is not None and row["rank"] in losses.index
    ]
    spread = float(max(own) - min(own)) if len(own) == len(ranks) else None
    return spread, {
        float(rate): float(values.max() - values.min()) for rate, values in common.items()
    }
