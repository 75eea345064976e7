"""The end of a sweep: what is handed over and when, and the scores behind a margin."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import rankwise
from rankwise.decide.evidence import read_rank_results
from rankwise.engine.reference import score_adapter
from rankwise.errors import RankwiseError
from rankwise.store.conclusion import CONCLUSION
from rankwise.store.records import read_trials
from rankwise.sweeps.config import SweepConfig
from rankwise.sweeps.finish import _known_test_score, _scores, as_json
from rankwise.sweeps.progress import Silent
from rankwise.sweeps.run import open_run
from tests.conftest import provisional_request
from tests.factories import flipped_bit, write_sealed


def read_decision(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "decision.json").read_text())
    return content


def test_a_provisional_sweep_hands_over_the_recommended_adapter(provisional: Path) -> None:
    decision = read_decision(provisional)
    assert (decision["verdict"], decision["rank"]) == ("undetermined", None)
    rank = decision["recommended"]
    (row,) = [row for row in decision["table"] if row["rank"] == rank]
    assert decision["confidence_reached"] == row["confidence_within_margin"] < 0.95
    assert decision["margin_reached"] > 0.002
    best = min(
        (trial for trial in read_trials(provisional) if trial.rank == rank),
        key=lambda trial: trial.eval_loss,
    )
    assert decision["test"]["trial"] == best.name
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        copied, own = provisional / "best" / name, best.directory / "adapter" / name
        assert copied.read_bytes() == own.read_bytes()
    assert (provisional / "export" / "peft_config.py").exists()


def test_a_sweep_that_requires_confidence_hands_over_nothing_short_of_it(
    provisional: Path, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(provisional.parent, tmp_path / "home")
    request = provisional_request(tiny_model, tmp_path / "home" / "out")
    result = rankwise.sweep(**request, require_confidence=True)
    assert (result.best, result.export, result.decision.test) == (None, None, None)
    assert not (request["out"] / "best").exists()
    assert not (request["out"] / "export").exists()
    # The decision still says what one could use; only the files are withheld.
    assert result.decision.provisional
    content = json.loads(as_json(result))
    assert (content["best"], content["export"]) == (None, None)
    assert content["report"] == str(request["out"] / "report.html")

    again = rankwise.sweep(**request)
    assert again.best == request["out"] / "best"
    assert again.export == request["out"] / "export"
    assert json.loads(as_json(again)) == {
        **again.decision.as_dict(),
        "directory": str(request["out"]),
        "report": str(request["out"] / "report.html"),
        "best": str(again.best),
        "export": str(again.export),
    }
    assert again.best.is_dir() and again.export.is_dir()


def test_a_selected_rank_is_handed_over_with_or_without_the_requirement(
    swept: Path, tiny_model: Path
) -> None:
    request: dict[str, Any] = {"ranks": (2, 4, 8), "learning_rate": (5e-3, 1e-2), "margin": 0.5}
    result = rankwise.sweep(
        model=str(tiny_model),
        data=swept.parent / "reviews.csv",
        out=swept,
        require_confidence=True,
        **request,
    )
    assert (result.decision.rank, result.best) == (result.decision.recommended, swept / "best")
    assert not result.decision.provisional


def test_the_prior_is_used_unless_the_request_forbids_it(
    provisional: Path, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(provisional.parent, tmp_path / "home")
    request = provisional_request(tiny_model, tmp_path / "home" / "out")
    record = json.loads((request["out"] / "sweep.json").read_text())
    record["settings"]["no_prior"] = True
    write_sealed(request["out"] / "sweep.json", record)
    alone = rankwise.sweep(**request, no_prior=True).decision
    expected = rankwise.analyze(request["out"], margin=0.002, no_prior=True).decision
    with_prior = rankwise.analyze(request["out"], margin=0.002).decision
    assert alone.table == expected.table
    assert [row.worst_difference for row in alone.table] != [
        row.worst_difference for row in with_prior.table
    ]


def test_the_test_part_is_scored_as_peft_scores_it(
    provisional: Path, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(provisional.parent, tmp_path / "home")
    config = SweepConfig(**provisional_request(tiny_model, tmp_path / "home" / "out"))
    test = read_decision(provisional)["test"]
    with open_run(config, Silent()) as run:
        examples = run.encode("test")
        expected = score_adapter(run.base, run.store.adapter_directory(test["trial"]), examples)
    assert test["examples"] == len(expected)
    assert test["loss"] == pytest.approx(expected["loss"].mean(), rel=1e-5)
    assert test["score"] == expected["score"].mean()


def contents(out: Path) -> dict[str, bytes]:
    """Return the files of a conclusion by their paths."""
    parts = [path for name in CONCLUSION for path in (out / name, *(out / name).rglob("*"))]
    return {str(path.relative_to(out)): path.read_bytes() for path in parts if path.is_file()}


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(flipped_bit(content, 8 * (len(content) // 2)))


@pytest.mark.parametrize("kind", ["flipped", "gone", "of another version"])
def test_whatever_is_derived_is_made_anew(
    provisional: Path, tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    shutil.copytree(provisional.parent, tmp_path / "home")
    request = provisional_request(tiny_model, tmp_path / "home" / "out")
    before = contents(request["out"])
    assert {Path(name).parts[0] for name in before} == {
        "best", "export", "report.html", "decision.json"
    }  # fmt: skip
    for name in before:
        path = request["out"] / name
        if kind == "flipped":
            damage(path)
        elif kind == "gone":
            path.unlink()
        elif path.suffix == ".json":
            write_sealed(path, {"test": {"trial": "r2-lr0.01-seed0", "accuracy": 0.5}})
    rankwise.sweep(**request)
    assert contents(request["out"]) == before


def test_a_damaged_adapter_is_named_and_the_old_conclusion_stays(
    provisional: Path, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(provisional.parent, tmp_path / "home")
    request = provisional_request(tiny_model, tmp_path / "home" / "out")
    before, name = contents(request["out"]), read_decision(provisional)["test"]["trial"]
    trial = request["out"] / "trials" / name
    damage(trial / "adapter" / "adapter_model.safetensors")
    with pytest.raises(RankwiseError, match=f"{name} cannot be used: .*safetensors: damaged"):
        rankwise.sweep(**request)
    assert contents(request["out"]) == before
    shutil.rmtree(trial)  # as the message says
    assert rankwise.sweep(**request).trial == name
    weights = "best/adapter_model.safetensors"
    assert contents(request["out"])[weights] == before[weights]


def test_the_libraries_of_the_report_load_on_a_thread() -> None:
    code = (
        "import sys; from rankwise.sweeps.finish import REPORT_MODULES, import_report;"
        "assert 'plotly' not in sys.modules and 'scipy.stats' not in sys.modules;"
        "import_report().join(); assert set(REPORT_MODULES) <= set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scores_at_rejected_rates_do_not_affect_the_margin_of_the_score() -> None:
    rows = [
        {
            "rank": rank,
            "learning_rate": rate,
            "seed": 0,
            "example_id": example,
            "loss": loss,
            "score": -40.0 * loss,
        }
        for rank in (4, 8)
        for rate, loss in ((1e-3, 0.05), (1e-2, 1e4))
        for example in range(3)
    ]
    assert set(_scores(read_rank_results(pd.DataFrame(rows)))) == {-2.0}


def test_a_test_score_is_kept_for_the_same_adapter_alone(provisional: Path) -> None:
    decision = read_decision(provisional)
    name, weights = decision["test"]["trial"], provisional / "best" / "adapter_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    known = _known_test_score(decision, name, digest)
    assert known is not None
    assert known.loss == decision["test"]["loss"]
    assert _known_test_score(decision, name, "0" * 64) is None
