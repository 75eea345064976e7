"""A function as the trainer, in whole sweeps of a tiny language model."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import rankwise
from rankwise import RankwiseError, RequestError, SweepConfig
from rankwise.engine.trial import Trial
from rankwise.sweeps.run import open_run
from rankwise.trainers.function import FunctionTrial
from tests.factories import Notes
from tests.tiny_models import save_lm_inputs
from tests.trainers.fake_trainer import write_adapter


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = save_lm_inputs(tmp_path_factory.mktemp("inputs"), 100)
    return {**settings, "learning_rate": 1e-3, "margin": 0.5}


def test_a_function_that_returns_a_path_or_a_model(inputs: dict[str, Any], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    told: list[Path | None] = []

    def path(trial: FunctionTrial) -> Path:
        told.append(trial.train_data)
        write_adapter(trial.out, trial.rank, trial.lora_alpha, trial.seed)
        return trial.out

    def model(trial: FunctionTrial) -> PeftModel:
        base = AutoModelForCausalLM.from_pretrained(inputs["model"])
        return PeftModel.from_pretrained(base, path(trial))

    first = rankwise.sweep(**inputs, out=tmp_path / "paths", train=path)
    second = rankwise.sweep(**inputs, out=tmp_path / "models", train=model)
    np.testing.assert_array_equal(first.evidence["loss"], second.evidence["loss"])
    assert len(first.evidence) == len(second.evidence) > 0
    assert told[0] == tmp_path / "paths/train_data.jsonl"
    rows = pd.read_json(told[0], lines=True)["messages"].map(str)
    with open_run(SweepConfig(**inputs, out=tmp_path / "third"), Notes()) as run:
        whole = pd.read_json(inputs["data"], lines=True)["messages"].map(str)
        assert set(rows) == set(whole[list(run.task.train.ids)])
        assert not set(rows) & set(whole[list(run.task.held_out.ids)])


def test_a_function_that_returns_metrics(tmp_path: Path) -> None:
    """The noise of seeds is a hundredth of the gain of rank 4."""

    def measure(trial: Trial) -> dict[str, float]:
        return {
            "eval_accuracy": 0.5 + 0.1 * (trial.rank >= 4) + 0.001 * trial.seed * trial.rank / 8
        }

    request = {"ranks": (2, 4, 8), "learning_rate": 1e-3, "seeds": 3, "metric": "eval_accuracy"}
    notes = Notes()
    result = rankwise.sweep(
        **request, out=tmp_path / "out", train=measure, margin=0.02, progress=notes
    )
    assert any("may cost 0.02 of eval_accuracy, in its own unit" in x for x in notes.notes)
    assert result.decision.rank == 4
    assert " of eval_accuracy worse than the best rank tried" in result.decision.answer
    assert (result.best, result.score) == (None, "eval_accuracy")
    assert result.report.exists()
    assert "measure' rank=4 lora_alpha=4" in (tmp_path / "out/export/command.txt").read_text()
    scores = {row.rank: row.score_mean for row in result.decision.table}
    assert scores[8] == pytest.approx(0.601)
    assert result.decision.confirmation is None  # the score is the loss with another sign
    again = rankwise.analyze(tmp_path / "out", margin=0.02)
    assert again.decision.rank == 4


def test_a_sweep_by_ends_accepts_the_smallest_rank_by_a_metric(tmp_path: Path) -> None:
    def measure(trial: Trial) -> dict[str, float]:
        return {"eval_loss": 0.5 + 0.0001 * trial.seed * trial.rank / 8}

    request = {"ranks": (2, 4, 8), "learning_rate": 1e-3, "seeds": 3, "metric": "eval_loss"}
    for strategy, ranks in (("ends", {2, 8}), ("escalate", {2, 4, 8}), ("race", {2, 4, 8})):
        out = tmp_path / strategy
        result = rankwise.sweep(**request, out=out, train=measure, strategy=strategy)
        assert result.decision.rank == 2
        assert set(result.evidence["rank"]) == ranks


@pytest.mark.slow
def test_a_budget_a_later_start_more_seeds_and_a_tracker(tmp_path: Path) -> None:
    calls = []

    def measure(trial: Trial) -> dict[str, float]:
        calls.append(trial.name)
        time.sleep(0.05)
        return {"eval_loss": 0.5 + 0.0001 * trial.seed * trial.rank / 8}

    request = {"ranks": (2, 4), "learning_rate": 1e-3, "seeds": 2, "metric": "eval_loss"}
    out, report_to = tmp_path / "out", ("tensorboard",)
    first = rankwise.sweep(**request, out=out, train=measure, budget=0.0005)
    assert len(calls) == 1
    assert first.decision.provisional or first.decision.recommended is None
    assert "budget" in " ".join([first.decision.answer, *first.decision.caveats])
    second = rankwise.sweep(**request, out=out, train=measure, report_to=report_to)
    assert len(calls) == len(set(calls)) == 4
    request["seeds"] = 4
    third = rankwise.sweep(**request, out=out, train=measure, extend=True, report_to=report_to)
    assert len(calls) == len(set(calls)) == 8
    assert third.decision.table[0].seeds == 2 * second.decision.table[0].seeds == 4
    assert all(name in (out / "reported.json").read_text() for name in calls)


@pytest.mark.slow
def test_a_search_for_the_rate_by_a_metric(tmp_path: Path) -> None:
    def measure(trial: Trial) -> dict[str, float]:
        scaling = trial.lora_alpha / trial.rank
        distance = np.log(trial.learning_rate * np.sqrt(scaling * trial.rank / 8) / 2e-3)
        return {"eval_loss": 1 + 0.1 * distance**2 + 0.0005 * trial.seed}

    request = {"ranks": (4, 8, 16), "seeds": 2, "metric": "eval_loss", "margin": 0.05}
    result = rankwise.sweep(**request, out=tmp_path / "out", train=measure)
    assert result.decision.recommended == 4
    for row in result.decision.table:
        assert row.learning_rate is not None
        assert row.learning_rate == pytest.approx(2e-3 * np.sqrt(8 / row.rank), rel=0.5)


def test_errors_of_a_function_are_failures(inputs: dict[str, Any], tmp_path: Path) -> None:
    def broken(trial: Trial) -> str:
        raise OSError(f"no file for rank {trial.rank}")

    with pytest.raises(RankwiseError, match=r"failed alike.*it raised OSError: no file for rank 4"):
        rankwise.sweep(**inputs, out=tmp_path / "out", train=broken)
    with pytest.raises(RankwiseError, match=r"returned a int; allowed"):
        rankwise.sweep(**inputs, out=tmp_path / "other", train=lambda trial: 3)


def test_a_machine_out_of_memory_is_no_failure_of_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(*arguments: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("rankwise.trainers.figures.FiguresJudge.judge", judge)
    request = {"ranks": (2, 4), "learning_rate": 1e-3, "seeds": 2, "metric": "eval_loss"}
    with pytest.raises(MemoryError):
        rankwise.sweep(**request, out=tmp_path / "out", train=lambda trial: {"eval_loss": 1.0})
    assert not any((tmp_path / "out/trials").glob("[!.]*"))


def test_a_function_and_a_command_exclude_each_other(inputs: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="train"):
        rankwise.sweep(**inputs, trainer="python x {rank} {out}", train=lambda trial: 3)
    for settings in ({"trials_at_once": 2}, {"trial_timeout": 5.0}):
        with pytest.raises(RequestError, match=f"{next(iter(settings))}: a function runs in this"):
            rankwise.sweep(**inputs, **settings, train=lambda trial: 3)
    with pytest.raises(RequestError, match="'python x' is no function; a command goes to trainer"):
        rankwise.sweep(**inputs, train="python x")  # type: ignore[arg-type]
