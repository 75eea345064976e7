"""Strategies on a tiny real model: what ends up on disk."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import rankwise
from rankwise.analysis.read import read_results
from rankwise.engine.reference import score_adapter
from rankwise.exports.recipe import read_recipe
from rankwise.exports.yaml_text import rank_note
from rankwise.lora import read_adapter, spectrum, truncate
from rankwise.store.records import read_evidence, read_json
from rankwise.sweeps.config import make_config
from rankwise.sweeps.engines import TruncatingEngine, choose_engine
from rankwise.sweeps.progress import Silent
from rankwise.sweeps.run import open_run
from tests.conftest import make_reviews

RATES = (5e-3, 1e-2)


@pytest.fixture(scope="module")
def request_of(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = tmp_path_factory.mktemp("once") / "reviews.csv"
    make_reviews(400).to_csv(data, index=False)
    return {
        "model": str(tiny_model),
        "data": data,
        "ranks": (2, 4, 8),
        "learning_rate": RATES,
        "margin": 0.5,
    }


@pytest.fixture(scope="module")
def once(request_of: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "once"
    rankwise.sweep(**request_of, strategy="once", out=out)
    return out


def test_once_keeps_one_of_two_adapters_that_tried_a_rate_each(
    request_of: dict[str, Any], tmp_path: Path
) -> None:
    changes = {"learning_rate": "auto", "max_steps": 4, "ranks": (4, 8), "out": tmp_path / "out"}
    decision = rankwise.sweep(**{**request_of, **changes}, strategy="once").decision
    trained, cuts = [], []
    for path in (tmp_path / "out/trials").glob("r*"):
        config = read_json(path / "config.json") or {}
        (cuts if "truncated_from" in config else trained).append(config)
    by_seed = {config["seed"]: config["learning_rate"] for config in trained}
    assert len(trained) == 2
    assert by_seed[1] == pytest.approx(2 * by_seed[0], rel=0.01)
    (cut,) = cuts
    assert cut["learning_rate"] == by_seed[cut["seed"]] == decision.table[-1].learning_rate
    assert [row.seeds for row in decision.table] == [1, 1]


def truncated_trials(out: Path) -> list[tuple[Path, dict[str, Any]]]:
    configs = [
        (path, read_json(path / "config.json") or {})
        for path in sorted((out / "trials").glob("r*"))
    ]
    return [(path, config) for path, config in configs if "truncated_from" in config]


def test_smaller_ranks_are_truncated_from_the_largest(once: Path) -> None:
    names = {path.name for path in (once / "trials").glob("r*")}
    cuts = truncated_trials(once)
    assert len(names) == 3 + 4  # two rates and a second seed; two cuts of each seed
    assert {config["rank"] for _, config in cuts} == {2, 4}
    for path, config in cuts:
        assert config["truncated_from"] in names
        assert config["truncated_from"].startswith("r8-")
        assert json.loads((path / "metrics.jsonl").read_text())["train_seconds"] == 0


def test_truncated_adapters_load_in_peft_and_reproduce_the_stored_evidence(
    once: Path, request_of: dict[str, Any]
) -> None:
    with open_run(make_config({**request_of, "strategy": "once", "out": once}), Silent()) as run:
        held_out = run.encode("held_out")
        for path, _ in truncated_trials(once):
            stored = pd.read_parquet(path / "evidence.parquet")
            again = (
                score_adapter(run.base, path / "adapter", held_out)
                .set_index("example_id")
                .loc[stored["example_id"]]
            )
            np.testing.assert_allclose(again["loss"], stored["loss"], rtol=1e-4)


@pytest.mark.parametrize("engine", ["fused", "reference"])
def test_truncation_to_the_trained_rank_changes_nothing(
    once: Path, request_of: dict[str, Any], tmp_path: Path, engine: str
) -> None:
    trained = next(path for path in sorted((once / "trials").glob("r8-*")))
    adapter = read_adapter(trained / "adapter")
    cut = truncate(spectrum(adapter), 8)
    assert all(bool((cut.tensors[key] == value).all()) for key, value in adapter.tensors.items())
    with open_run(
        make_config({**request_of, "engine": engine, "out": tmp_path / "out"}), Silent()
    ) as run:
        (scored,) = TruncatingEngine(choose_engine(run), run.store.adapter_directory).score([cut])
    stored = pd.read_parquet(trained / "evidence.parquet")
    np.testing.assert_allclose(scored["loss"], stored["loss"], rtol=1e-4)


def test_once_decides_which_rank_to_keep_and_saves_its_adapter(once: Path) -> None:
    decision = read_json(once / "decision.json") or {}
    assert (decision["question"], decision["trained_at"], decision["rank"]) == ("keep", 8, 2)
    assert decision["answer"].startswith("Keep rank 2 of an adapter trained at rank 8. ")
    assert decision["diagnosis"] == []
    assert json.loads((once / "best" / "adapter_config.json").read_text())["r"] == 2
    kept = once / "trials" / decision["test"]["trial"] / "adapter"
    assert (once / "best" / "adapter_model.safetensors").read_bytes() == (
        kept / "adapter_model.safetensors"
    ).read_bytes()
    assert [row["train_seconds"] is None for row in decision["table"]] == [True, True, False]
    assert "Keep rank 2" in (once / "report.html").read_text()
    assert rankwise.analyze(once, margin=0.5).decision.question == "keep"


@pytest.mark.parametrize("lost", ["r2-", "r8-", "r*seed1"])
def test_once_resumes_after_losing_trials(
    once: Path, request_of: dict[str, Any], tmp_path: Path, lost: str
) -> None:
    """A trial exists whole or not at all, so that a killed sweep is one that lacks some."""
    out = tmp_path / "out"
    shutil.copytree(once, out)
    for path in (out / "trials").glob(f"{lost}*"):
        shutil.rmtree(path)
    again = rankwise.sweep(**request_of, strategy="once", out=out)
    pd.testing.assert_frame_equal(read_evidence(out), read_evidence(once))
    assert again.decision.answer == (read_json(once / "decision.json") or {})["answer"]


def test_a_cut_that_fails_is_healed_and_stored_as_a_trial(
    request_of: dict[str, Any], tmp_path: Path
) -> None:
    """At this margin rank 2 fails, and is healed from the cut of each seed."""
    out = tmp_path / "out"
    request = {**request_of, "learning_rate": 1e-2, "margin": 1e-5, "strategy": "once", "out": out}
    result = rankwise.sweep(**request)
    configs = [read_json(path / "config.json") or {} for path in (out / "trials").glob("r*")]
    healed = [config for config in configs if "starts_from" in config]
    assert [config["rank"] for config in healed] == [2, 2]
    for config in healed:
        assert config["starts_from"] == f"r2-lr0.01-seed{config['seed']}"
        assert config["learning_rate"] == 0.005005  # a quarter of the law's, told from a cut's rate
        name = f"r2-lr0.005005-seed{config['seed']}-steps0.1-from-{config['starts_from']}"
        steps = (out / "trials" / name / "metrics.jsonl").read_text().splitlines()
        assert len(steps) - 1 == 4  # a tenth of 35, rounded up
        cut = read_adapter(out / "trials" / config["starts_from"] / "adapter")
        after = read_adapter(out / "trials" / name / "adapter")
        assert {key: value.shape for key, value in cut.tensors.items()} == {
            key: value.shape for key, value in after.tensors.items()
        }
    recipe = read_recipe(out, name)
    assert (recipe.adapter.rank, recipe.adapter.truncate_to) == (8, 2)
    assert recipe.adapter.healing == (4, 0.005005)
    assert "--rank 2; then train that for 4 steps at learning rate 0.005005" in rank_note(recipe)
    again = rankwise.analyze(out, margin=1e-5).decision
    assert (again.question, again.trained_at) == ("keep", 8)
    assert again.recommended == result.decision.recommended


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("grid", marks=pytest.mark.slow),  # the default of most tests of sweeps
        "race",
        "ends",
        pytest.param("escalate", marks=pytest.mark.slow),  # the next test runs it too
    ],
)
def test_other_strategies_decide_which_rank_to_train_at(
    request_of: dict[str, Any], tmp_path: Path, name: str
) -> None:
    decision = rankwise.sweep(**request_of, strategy=name, out=tmp_path / "out").decision
    assert (decision.question, decision.trained_at) == ("train", None)
    assert decision.answer.startswith("Use rank 2. ")


def test_a_spent_budget_ends_the_sweep_and_a_larger_one_resumes_it(
    request_of: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = rankwise.sweep(**request_of, strategy="escalate", budget=1e-6, out=out).decision
    assert len(list((out / "trials").glob("r*"))) == 1
    assert (first.verdict, first.next) == ("undetermined", ())
    assert "budget of 1e-06 min is spent" in first.caveats[0]
    again = rankwise.sweep(**request_of, strategy="escalate", budget=1e-6, out=out).decision
    assert len(list((out / "trials").glob("r*"))) == 1  # what was spent counts
    assert again.answer == first.answer
    whole = rankwise.sweep(**request_of, strategy="escalate", budget=1000, out=out).decision
    assert whole.rank == 2
    assert not any("budget" in caveat for caveat in whole.caveats)


def test_a_budget_spent_before_any_truncation_still_decides_which_rank_to_keep(
    request_of: dict[str, Any], tmp_path: Path
) -> None:
    decision = rankwise.sweep(
        **request_of, strategy="once", budget=1e-6, out=tmp_path / "out"
    ).decision
    assert (decision.verdict, decision.question, decision.trained_at) == ("undetermined", "keep", 8)


def test_analyze_keeps_truncated_trials_apart(once: Path) -> None:
    assert rankwise.analyze(once).decision.question == "keep"
    found = read_results([once / "trials"])
    assert set(found.evidence["rank"]) == {8}
    assert (
        sum("its adapter was truncated from another trial's" in note for note in found.notes) == 4
    )


def test_an_unknown_strategy_is_refused_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from rankwise.cli import main

    assert main(["sweep", "--strategy", "onec"]) == 2
    assert capsys.readouterr().err == (
        "rankwise: strategy 'onec': allowed are grid, once, ends, escalate and race "
        "(did you mean 'once'?)\n"
    )
    with pytest.raises(rankwise.RequestError, match="run_rank_comparison trains every rank"):
        rankwise.run_rank_comparison([2, 4], strategy="race")  # type: ignore[call-arg]
