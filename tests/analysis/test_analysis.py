"""``rankwise analyze`` on results that others produced."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import rankwise
from rankwise.cli import main
from tests.analysis.results import PUBLISHED
from tests.cli.test_main import rankwise as run


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """The GPT-2 table of the LoRA paper, as a CSV."""
    table = PUBLISHED["gpt2_medium_e2e"]
    path = tmp_path / "gpt2.csv"
    pd.DataFrame(table["rows"], columns=table["columns"]).to_csv(path, index=False)
    return path


@pytest.fixture
def reruns(tmp_path: Path) -> Path:
    """PEFT's reruns under other library versions, as JSON lines."""
    accuracy = PUBLISHED["peft_metamathqa_repeats"]["test_accuracy"]
    rows = [
        {"lora_rank": rank, "seed": run, "test_accuracy": value}
        for rank, name in ((32, "r32"), (64, "r64"))
        for run, value in enumerate(accuracy[name])
    ]
    path = tmp_path / "reruns.jsonl"
    pd.DataFrame(rows).to_json(path, orient="records", lines=True)
    return path


def test_the_published_losses_support_16_where_a_small_noise_is_stated(gpt2: Path) -> None:
    assert rankwise.analyze(gpt2, margin=0.005, noise=0.0005).decision.rank == 16
    alone = rankwise.analyze(gpt2)
    assert alone.decision.verdict == "undetermined"
    assert alone.decision.metric == "loss"
    assert any("'val_loss'" in note for note in alone.notes)


def test_bleu_alone_supports_nothing(gpt2: Path) -> None:
    decision = rankwise.analyze(gpt2, metric="bleu", margin=0.5).decision
    assert (decision.metric, decision.verdict) == ("bleu", "undetermined")
    assert rankwise.analyze(gpt2, metric="bleu").decision.verdict == "undetermined"


def test_reruns_do_not_support_the_larger_rank(reruns: Path) -> None:
    found = rankwise.analyze(reruns)
    assert found.decision.metric == "accuracy"
    assert found.decision.rank != 64
    assert found.evidence.groupby("rank").size().tolist() == [4, 4]


def test_a_sweep_directory_gives_the_decision_of_the_sweep(swept: Path) -> None:
    on_disk = json.loads((swept / "decision.json").read_text())
    again = rankwise.analyze(swept, margin=0.5).as_dict()
    assert again["score"] == "accuracy"
    for key in (
        "verdict",
        "rank",
        "answer",
        "evidence",
        "caveats",
        "table",
        "diagnosis",
        "confirmation",
        "detectable_difference",
    ):
        assert again[key] == on_disk[key], key


def test_a_second_metric_confirms_or_contradicts(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [
        {
            "rank": rank,
            "seed": seed,
            "eval_loss": 0.5 + 0.001 * noise,
            "eval_accuracy": accuracy + 0.001 * noise,
        }
        for rank, accuracy in ((4, 0.60), (8, 0.80))
        for seed, noise in enumerate(generator.normal(size=4))
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv", index=False)
    found = rankwise.analyze(tmp_path / "runs.csv")
    assert found.score == "accuracy"
    assert found.decision.rank == 4
    assert found.decision.confirmation is not None
    assert found.decision.confirmation.status == "contradicts"


def conflict(path: Path, **scores: tuple[float, float]) -> Path:
    """Save results with equal losses at ranks 4 and 8, and other metrics with a value for each rank."""
    generator = np.random.default_rng(0)
    rows = [
        {"rank": rank, "seed": seed, "eval_loss": 0.5 + 0.001 * generator.normal()}
        | {
            name: values[place] * (1 + 0.001 * generator.normal())
            for name, values in scores.items()
        }
        for place, rank in enumerate((4, 8))
        for seed in range(4)
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("name", "values", "status"),
    [
        ("accuracy", (60.0, 80.0), "contradicts"),
        ("accuracy", (80.0, 80.1), "confirms"),
        ("rouge_l", (40.0, 60.0), "contradicts"),
        ("pearson", (-0.4, 0.3), "contradicts"),
        ("matthews_correlation", (-0.401, -0.4), "confirms"),
    ],
)
def test_scores_in_percent_and_correlations(
    tmp_path: Path, name: str, values: tuple[float, float], status: str
) -> None:
    found = rankwise.analyze(conflict(tmp_path / "runs.csv", **{name: values}))
    assert (found.decision.rank, found.score) == (4, name)
    assert found.decision.confirmation is not None
    assert found.decision.confirmation.status == status
    in_percent = max(values) > 1
    assert found.decision.confirmation.margin == (1.0 if in_percent else 0.01)
    assert any(f"{name} is in percent" in note for note in found.notes) == in_percent


def test_percentages_are_not_multiplied_by_a_hundred(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, values in (("shares.csv", (0.8, 0.82)), ("percent.csv", (80.0, 82.0))):
        assert main(["analyze", str(conflict(tmp_path / name, accuracy=values))]) == 0
        out = capsys.readouterr().out
        assert "80.0" in out
        assert "8000" not in out


def test_a_note_names_metrics_that_are_not_used(tmp_path: Path) -> None:
    found = rankwise.analyze(conflict(tmp_path / "one.csv", reward=(150.0, 900.0)))
    assert (found.score, found.decision.confirmation) == (None, None)
    assert any(
        "metrics not used to confirm the choice: reward; they are not shares" in note
        for note in found.notes
    )
    found = rankwise.analyze(
        conflict(tmp_path / "two.csv", reward=(150.0, 900.0), accuracy=(0.6, 0.8))
    )
    assert found.score == "accuracy"
    assert any("to confirm the choice: reward; accuracy is used" in note for note in found.notes)
    assert not any(
        "not used" in note for note in rankwise.analyze(tmp_path / "one.csv", metric="reward").notes
    )


def test_a_note_says_that_a_score_margin_is_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = str(conflict(tmp_path / "runs.csv", accuracy=(0.6, 0.8)))
    for options, said in (([], False), (["--metric", "accuracy"], True)):
        assert main(["analyze", table, "--score-margin", "0.02", *options]) == 0
        assert ("score_margin is not used" in capsys.readouterr().err) == said
    alone = str(conflict(tmp_path / "alone.csv"))
    assert main(["analyze", alone, "--score-margin", "0.02"]) == 0
    assert "score_margin is not used" in capsys.readouterr().err
    assert main(["analyze", alone]) == 0
    assert "score_margin" not in capsys.readouterr().err


def test_the_command_prints_its_guesses_and_decides(gpt2: Path) -> None:
    done = run("analyze", gpt2, "--margin", "0.005", "--noise", "0.0005")
    assert done.returncode == 0, done.stderr
    assert "Use rank 16. It is at most" in done.stdout
    assert done.stdout.splitlines()[-1] == "Recommended rank: 16"
    assert "val_loss" in done.stderr
    assert "Traceback" not in done.stderr


def test_stdout_holds_json_only(gpt2: Path) -> None:
    done = run("analyze", gpt2, "--json", "--metric", "val_loss")
    content = json.loads(done.stdout)
    assert content["verdict"] == "undetermined"
    assert content["table"][0]["rank"] == 1
    assert content["notes"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--metric", "blue"], "'blue' (did you mean 'bleu'?)"),
        (["--margin", "-1"], "margin '-1'"),
        (["--confidence", "95"], "confidence '95'"),
        (["--noise", "nan"], "noise 'nan'"),
        (["--rank-column", "r"], "'r'"),
        (["--higher-is-better", "--lower-is-better"], "not allowed with"),
    ],
)
def test_bad_requests_are_one_line_and_exit_2(
    gpt2: Path, options: list[str], words: str, capfd: Any
) -> None:
    assert main(["analyze", str(gpt2), *options]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("rankwise: ")
    assert err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pd.DataFrame({"r": [8, 8], "seed": [0, 1], "loss": [0.5, 0.6]}), "holds 1 rank"),
        (pd.DataFrame({"size": [4, 8], "loss": [0.5, 0.6]}), "size, loss"),
        (pd.DataFrame({"rank": [4, 8.5], "loss": [0.5, 0.6]}), "8.5"),
        (pd.DataFrame({"rank": [4, 8], "loss": [0.5, np.inf]}), "inf"),
        (pd.DataFrame({"rank": [4, 4, 8], "loss": [0.5, 0.5, 0.6]}), "rank"),
    ],
)
def test_tables_that_cannot_be_compared_are_refused(
    tmp_path: Path, table: pd.DataFrame, words: str, capfd: Any
) -> None:
    path = tmp_path / "results.csv"
    table.to_csv(path, index=False)
    assert main(["analyze", str(path)]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
