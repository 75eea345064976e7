"""``rankwise shrink`` on the command line."""

import json
from pathlib import Path
from typing import Any

from rankwise.cli import main
from tests.cli.test_main import refuse
from tests.conftest import make_reviews


def test_the_answer_table_and_files(swept: Path, tmp_path: Path, capfd: Any) -> None:
    make_reviews(300, seed=9).to_csv(tmp_path / "new.csv", index=False)
    trial = next((swept / "trials").glob("r8-*seed0/adapter"))
    arguments = ["shrink", trial, "--data", tmp_path / "new.csv", "--margin", "0.2"]
    assert main([*map(str, arguments), "--out", str(tmp_path / "out")]) == 0
    out = capfd.readouterr().out
    for words in ("forward passes", "--max-lora-rank", "Report:", "8 (itself)", "no update"):
        assert words in out
    assert main([*map(str, arguments), "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["verdict"] == "smaller"
    assert document["rank"] < 8


def test_bad_requests_are_one_line_and_exit_2(swept: Path, tmp_path: Path, capfd: Any) -> None:
    trial = next((swept / "trials").glob("r8-*seed0/adapter"))
    assert "data is missing" in refuse(capfd, "shrink", trial)
    assert "'--epochs'" in refuse(capfd, "shrink", trial, "--epochs", 2)
    make_reviews(60).assign(label=["x", "y", "z"] * 20).to_csv(tmp_path / "three.csv", index=False)
    line = refuse(capfd, "shrink", trial, "--data", tmp_path / "three.csv")
    assert "2 outputs, the data's task needs 3" in line
