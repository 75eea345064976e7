"""W&B's export of a chart."""

from pathlib import Path

import pandas as pd

from rankwise import analyze
from rankwise.analysis.charts import runs_of_chart
from tests.analysis.results import refused, runs, save_table


def chart() -> pd.DataFrame:
    """Return a chart of runs: a first evaluation, and the last one."""
    columns: dict[str, list[float]] = {"Step": [100, 200]}
    for _, run in runs().iterrows():
        name = f"r{run['lora_r']:g}-s{run['seed']:g} - eval/loss"
        for ending in ("", "__MIN", "__MAX"):
            columns[name + ending] = [1.2, run["eval_loss"]]
    return pd.DataFrame(columns)


def test_a_chart_needs_a_pattern_and_the_advised_one_works(tmp_path: Path) -> None:
    path = save_table(tmp_path / "chart.csv", chart())
    line = refused(path)
    assert "if 'r4-s1' has rank 4, give --rank-pattern 'r(\\d+)'" in line
    found = analyze(path, rank_pattern=r"r(\d+)")
    assert (found.decision.rank, found.decision.metric, len(found.evidence)) == (16, "loss", 12)
    assert sorted(found.evidence["seed"].unique()) == [1, 2, 3]
    assert (
        "chart.csv: read a chart of 12 runs over 'Step'; the columns __MIN and __MAX are left out"
        in found.notes
    )
    assert "chart.csv: the last evaluation of each run counts (step 200)" in found.notes


def test_a_table_with_such_a_name_alone_is_no_chart() -> None:
    assert runs_of_chart(pd.DataFrame({"Step": [1], "a - b": [2]})) is None
