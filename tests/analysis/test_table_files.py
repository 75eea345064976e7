"""Tables of results as files."""

import json
from pathlib import Path

import pandas as pd
import pytest

from rankwise import analyze
from tests.analysis.results import MEANS, refused, runs, save, save_table


@pytest.mark.parametrize("percent", [False, True])
def test_semicolons_and_decimal_commas_are_read(tmp_path: Path, percent: bool) -> None:
    table, expected = runs(), runs()["eval_loss"].tolist()
    if percent:
        table = table.assign(
            accuracy=[f"{100 - 50 * loss:.4f} %".replace(".", ",") for loss in expected]
        )
        table = table.drop(columns="eval_loss")
        expected = [round(100 - 50 * loss, 4) / 100 for loss in expected]
    path = save_table(tmp_path / "a.csv", table, sep=";", decimal=",")
    found = analyze(path)
    assert found.evidence["accuracy" if percent else "loss"].tolist() == pytest.approx(expected)
    assert found.decision.rank == 16


@pytest.mark.parametrize(
    "orient", ["records", "list", "columns", "split", "lines", "named", "utf-8-sig"]
)
def test_json_tables_are_read(tmp_path: Path, orient: str) -> None:
    path = tmp_path / "results.json"
    records = runs().to_dict("records")
    match orient:
        case "lines":
            path.write_text("".join(json.dumps(row) + "\n" for row in records))
        case "named":
            save(path, {"sweep": "x", "runs": records})
        case "list":
            save(path, runs().to_dict("list"))
        case "utf-8-sig":
            path.write_text(json.dumps(records), encoding=orient)
        case _:
            runs().to_json(path, orient=orient)  # type: ignore[call-overload]
    found = analyze(path)
    assert (found.decision.rank, len(found.evidence)) == (16, 12)


def test_json_without_records_is_refused(tmp_path: Path) -> None:
    for content in ([], {}, {"rank": 4}, [1, 2], "x", {"a": [1, 2], "b": [1]}):
        assert "holds no results; allowed are a list of records" in refused(
            save(tmp_path / "a.json", content)
        )


def test_records_under_the_names_of_runs_are_read(tmp_path: Path) -> None:
    records = {
        f"r{row['lora_r']:g}-s{row['seed']:g}": {"eval_loss": row["eval_loss"]}
        for row in runs().to_dict("records")
    }
    path = save(tmp_path / "a.json", records)
    assert "give --rank-pattern 'r(\\d+)'" in refused(path)
    assert analyze(path, rank_pattern=r"r(\d+)").decision.rank == 16


@pytest.mark.parametrize("name", ["api.csv", "api.json", "api.jsonl"])
def test_the_table_that_wandbs_guide_exports_is_read(tmp_path: Path, name: str) -> None:
    """``DataFrame({"summary": ..., "config": ..., "name": ...})``, with a dictionary in each cell."""
    rows = runs().to_dict("records")
    table = pd.DataFrame({
        "summary": [{"_timestamp": 1.7e9, "eval/loss": row["eval_loss"], "train/learning_rate": 0.0,
                     "gap": float("nan")} for row in rows],
        "config": [{"peft_config": {"default": {"r": int(row["lora_r"])}}, "seed": int(row["seed"]),
                    "learning_rate": 1e-4, "router_aux_loss_coef": 0.001} for row in rows],
        "name": [f"run-{number}" for number in range(12)],
    })  # fmt: skip
    path = tmp_path / name
    if name.endswith(".csv"):
        table.to_csv(path)
    else:
        table.to_json(path, orient="records", lines=name.endswith("l"))
    found = analyze(path)
    assert (found.decision.rank, found.decision.metric) == (16, "loss")
    assert found.evidence["learning_rate"].unique().tolist() == [1e-4]


def test_two_lines_of_names_are_joined(tmp_path: Path) -> None:
    grouped = runs().groupby("lora_r")[["eval_loss"]].agg(["mean", "std", "count"])
    grouped.to_csv(tmp_path / "agg.csv")
    found = analyze(tmp_path / "agg.csv", seeds_per_mean=3)
    assert found.decision.rank == 16
    assert any("loss from 'eval_loss.mean'" in note for note in found.notes)
    levels = [("number", ""), ("value", ""), ("params", "lora_r"), ("params", "lr"), ("state", "")]
    rows = [
        (number, loss, float(rank), 1e-3, "COMPLETE")
        for number, (rank, loss) in enumerate(MEANS.items())
    ]
    rows.append((4, None, 4.0, 1e-2, "FAIL"))  # type: ignore[arg-type]
    pd.DataFrame(rows, columns=pd.MultiIndex.from_tuples(levels)).to_csv(tmp_path / "optuna.csv")
    optuna = analyze(tmp_path / "optuna.csv", metric="eval_loss", noise=0.001)
    assert optuna.decision.rank == 16
    assert any("state is FAIL (1)" in note for note in optuna.notes)


def test_mlflows_own_table_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    try:
        for row in runs().to_dict("records"):
            with mlflow.start_run():
                mlflow.log_params(
                    {"lora_r": int(row["lora_r"]), "seed": int(row["seed"]), "learning_rate": 2e-4}
                )
                mlflow.log_metrics({"eval_loss": row["eval_loss"], "learning_rate": 0.0})
        mlflow.search_runs(experiment_ids=["0"]).to_csv(tmp_path / "mlflow.csv")
    finally:
        mlflow.set_tracking_uri(None)
    found = analyze(tmp_path / "mlflow.csv")
    assert (found.decision.rank, found.decision.metric, found.decision.margin) == (16, "loss", 0.02)
    assert found.evidence["learning_rate"].unique().tolist() == [2e-4]
