"""``rankwise analyze``: options reach the call, and wrong ones are refused."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import rankwise
from rankwise.cli import main
from tests.cli.test_main import refuse


@pytest.fixture
def results(tmp_path: Path) -> Path:
    table = pd.DataFrame({"r": [4, 4, 8, 8], "trial": [0, 1] * 2, "hits": [0.7, 0.6, 0.8, 0.7]})
    table.to_csv(tmp_path / "results.csv", index=False)
    return tmp_path / "results.csv"


@pytest.mark.parametrize("direction", ["--higher-is-better", "--lower-is-better"])
def test_options_are_the_arguments_of_the_call(
    results: Path, direction: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["analyze", str(results), "--metric", "hits", direction, "--rank-column", "r",
               "--seed-column", "trial", "--margin", "0.2", "--json"]  # fmt: skip
    assert main(command) == 0
    expected = rankwise.analyze(
        results,
        metric="hits",
        higher_is_better=direction == "--higher-is-better",
        rank_column="r",
        seed_column="trial",
        margin=0.2,
    )
    assert json.loads(capsys.readouterr().out) == expected.as_dict()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--margin", "0"], "margin '0': allowed is a number above 0"),
        (["--confidence", "95"], "confidence '95': allowed is a number above 0 and below 1"),
        (["--higher-is-better", "--lower-is-better"], "not allowed with"),
        (["--metrics", "hits"], "did you mean '--metric'"),
    ],
)
def test_wrong_options_are_refused(
    results: Path, options: list[str], words: str, capfd: Any
) -> None:
    assert words in refuse(capfd, "analyze", results, *options)
