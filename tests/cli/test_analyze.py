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


def test_what_is_said_of_the_results_reaches_the_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = pd.DataFrame(
        {
            "run": ["r4"] * 2 + ["r8"] * 2,
            "step": [1, 2] * 2,
            "hits": ["70% ± 1%", "60% ± 1%", "80% ± 1%", "90% ± 1%"],
        }
    )
    log.to_csv(tmp_path / "log.csv", index=False)
    options = ["--rank-pattern", r"r(\d+)", "--evaluation", "best", "--seeds-per-mean", "3"]
    command = ["analyze", str(tmp_path / "log.csv"), "--metric", "hits", "--higher-is-better"]
    assert main([*command, *options, "--spread", "seeds", "--json"]) == 0
    expected = rankwise.analyze(
        tmp_path / "log.csv",
        metric="hits",
        higher_is_better=True,
        rank_pattern=r"r(\d+)",
        evaluation="best",
        seeds_per_mean=3,
        spread="seeds",
    )
    assert json.loads(capsys.readouterr().out) == expected.as_dict()
    assert expected.evidence.groupby("rank")["hits"].mean().round(9).to_dict() == {4: 0.7, 8: 0.9}


def test_the_last_line_recommends_a_rank_even_where_nothing_shows_how_sure_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = tmp_path / "single.csv"
    pd.DataFrame({"rank": [4, 8], "accuracy": [0.8, 0.801]}).to_csv(single, index=False)
    assert main(["analyze", str(single)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == (
        "Recommended rank: 4 (provisional: how sure is not known, 95 % asked)"
    )
    assert "How sure that a rank" not in out


@pytest.mark.parametrize("options", [[], ["--no-prior"]])
def test_the_prior_is_used_unless_it_is_forbidden(
    provisional: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", str(provisional), "--json", *options]) == 0
    expected = rankwise.analyze(provisional, no_prior=bool(options))
    assert json.loads(capsys.readouterr().out) == expected.as_dict()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--evaluation", "worst"], "'worst'"),
        (["--spread", "runs"], "'runs'"),
        (["--seeds-per-mean", "1"], "seeds_per_mean 1: allowed is"),
        (["--rank-pattern", "r("], "rank_pattern 'r('"),
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
