"""``rankwise sweep --dry-run``: what it predicts is what a sweep then does, and nothing is written."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import rankwise
from rankwise.cli import main
from rankwise.errors import RequestError
from rankwise.tasks.config import DataConfig
from rankwise.tasks.load import load_task


@pytest.fixture
def settings(tiny_model: Path, reviews: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_model),
        "data": reviews,
        "ranks": (2, 4, 8),
        "learning_rate": (5e-3, 1e-2),
        "margin": 0.5,
        "out": tmp_path / "out",
    }


def test_a_sweep_runs_the_trials_that_its_dry_run_predicts(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    settings["ranks"] = (2, 4)
    planned = rankwise.dry_run(**settings)
    assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"reviews.csv"}
    assert planned.complete == 0
    assert [row.rank for row in planned.ranks] == [2, 4]
    assert {row.first_rates for row in planned.ranks} == {(5e-3, 1e-2)}
    swept = rankwise.sweep(**settings)
    trials = swept.evidence.groupby(["rank", "learning_rate", "seed"]).ngroups
    assert planned.expected == trials == 6
    done = rankwise.dry_run(**settings)
    assert (done.complete, done.expected, done.seconds) == (6, 6, 0.0)


def test_memory_is_that_of_the_check_that_refuses_a_sweep(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    # Where memory is short, the longest text there is counts, not the length at which texts are cut.
    settings |= {"gradient_checkpointing": "off", "micro_batch_tokens": 10_000}
    ample = rankwise.dry_run(**settings, max_memory="1GB")
    planned = rankwise.dry_run(**settings, max_memory=ample.ranks[-1].memory_bytes)
    assert planned.batch[1] < ample.batch[1]
    needed = [row.memory_bytes for row in planned.ranks]
    assert needed == sorted(needed)
    with pytest.raises(RequestError, match=r"rank 8 needs about .* ranks up to 4 fit"):
        rankwise.dry_run(**settings, max_memory=needed[-1] - 1)
    assert rankwise.dry_run(**settings, max_memory=needed[-1]).at_once == 1
    assert not (tmp_path / "out").exists()


def test_time_is_interpolated_between_the_timed_ranks(settings: dict[str, Any]) -> None:
    planned = rankwise.dry_run(**settings, seeds=1)
    assert all(row.train_seconds > 0 and row.eval_seconds > 0 for row in planned.ranks)
    times = [row.train_seconds for row in planned.ranks]
    assert times[1] == pytest.approx(
        times[0] + (times[2] - times[0]) / 3
    )  # 4 lies a third of the way from 2 to 8
    assert planned.seconds == pytest.approx(
        sum(2 * (row.train_seconds + row.eval_seconds) for row in planned.ranks)
    )


def test_the_speed_is_that_of_the_time(settings: dict[str, Any], reviews: Path) -> None:
    planned = rankwise.dry_run(**settings, seeds=1)
    rows = list(load_task(DataConfig(data=reviews)).train.ids)
    words = pd.read_csv(reviews)["text"].iloc[rows].str.split().str.len()
    tokens = words.sum() + 2 * len(words)  # [CLS] and [SEP]
    assert planned.tokens_per_second * planned.ranks[-1].train_seconds == pytest.approx(tokens)
    assert 0 < planned.tflops < 10


def test_the_time_is_that_of_the_steps_asked_for(settings: dict[str, Any]) -> None:
    slow = {"gradient_checkpointing": "on", "micro_batch_tokens": 64}
    brief, long = (
        rankwise.dry_run(**settings, **slow, seeds=1, max_steps=steps) for steps in (2, 2000)
    )
    assert long.ranks[0].train_seconds > 100 * brief.ranks[0].train_seconds
    assert (brief.micro_batch_tokens, brief.gradient_checkpointing) == (64, True)


def test_truncated_adapters_cost_only_their_scoring(settings: dict[str, Any]) -> None:
    planned = rankwise.dry_run(**settings, strategy="once")
    assert [len(row.first_rates) for row in planned.ranks] == [0, 0, 2]
    largest = planned.ranks[-1].train_seconds + planned.ranks[-1].eval_seconds
    assert (
        planned.expected == 3 + 2 * 2
    )  # two rates and a second seed, each seed's adapter cut twice
    assert planned.seconds == pytest.approx(3 * largest + 4 * planned.ranks[0].eval_seconds)


def test_the_command_prints_a_document_or_a_table_and_stops(
    settings: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", "--model", settings["model"], "--data", str(settings["data"]), "--ranks", "2,4",
               "--learning-rate", "5e-3", "--out", str(tmp_path / "out"), "--dry-run"]  # fmt: skip
    assert main([*command, "--json"]) == 0
    content = json.loads(capfd.readouterr().out)
    assert (content["strategy"], content["complete"], content["expected"]) == ("grid", 0, 4)
    assert main(command) == 0
    said = capfd.readouterr().out
    assert "Trials: about 4, of which 0 are complete" in said
    assert "Training: on cpu in fp32, whole batches, gradient checkpointing off," in said
    assert said.rstrip().endswith("Nothing was written.")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_refuses_what_a_sweep_refuses(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="rank 32 is larger than a target layer allows"):
        rankwise.dry_run(**{**settings, "ranks": (2, 32)})
    rankwise.sweep(**{**settings, "ranks": (2, 4), "learning_rate": 5e-3, "seeds": 1})
    with pytest.raises(RequestError, match="holds a sweep with another request: ranks"):
        rankwise.dry_run(**settings)


def test_examples_are_shown_as_the_model_will_see_them(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (example,) = rankwise.dry_run(**settings, show=1).examples
    assert example.label is not None
    arguments = ["--dry-run", "--show", "1", "--seeds", "1", "--ranks", "2,4"]
    for name in ("model", "data", "out"):
        arguments += [f"--{name}", str(settings[name])]
    assert main(["sweep", *arguments]) == 0
    assert "".join(piece.text for piece in example.pieces) in capsys.readouterr().out
    assert main(["sweep", *arguments, "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["examples"]
    assert shown["label"] == example.label
    assert main(["sweep", "--show", "1"]) == 2
    assert "add" in capsys.readouterr().err
