import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankwise import analyze
from rankwise.analysis.read import read_results
from rankwise.errors import RequestError
from tests import factories

PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "published_sweeps.json").read_text())


def save_sweep(
    directory: Path, diverged: tuple[int, ...] = (), ranks: tuple[int, ...] = (4, 8)
) -> None:
    """Save a rankwise sweep of two held-out examples."""
    trials = []
    for rank in ranks:
        steps = [
            {"step": 1, "train_loss": 0.7},
            {"step": 2, "train_loss": float("nan") if diverged else 0.6},
        ]
        trials.append(
            factories.finished(
                rank, diverged=rank in diverged, losses=(1 / rank, 0.75), steps=steps
            )
        )
    factories.save_sweep(directory, trials, factories.request(ranks=list(ranks)))


def comparison(
    rank: int = 32, accuracy: float = 0.48, loss: float = 0.6069, **changes: Any
) -> dict[str, Any]:
    """Return a result of PEFT's method comparison (MetaMathQA), shortened.

    Args:
        rank: the rank.
        accuracy: on the test data.
        loss: the last train loss.
        changes: to ``peft_config``, or to ``train_config`` where they are its own.
    """
    train = {
        "model_id": "meta-llama/Llama-3.2-3B", "dtype": "bfloat16", "max_seq_length": 768, "batch_size": 4,
        "max_steps": 5000, "eval_steps": 250, "seed": 0, "optimizer_type": "AdamW",
        "optimizer_kwargs": {"lr": 0.0001, "weight_decay": 0.1}, "lr_scheduler": "cosine", "use_amp": False,
    }  # fmt: skip
    peft = {
        "task_type": "CAUSAL_LM", "peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-3.2-3B",
        "r": rank, "target_modules": ["v_proj", "q_proj"], "lora_alpha": 64, "lora_dropout": 0.0, "bias": "none",
        "use_rslora": False, "init_lora_weights": True, "rank_pattern": {}, "use_dora": False,
    }  # fmt: skip
    for name, value in changes.items():
        (train if name in train else peft)[name] = value
    metrics = [
        {
            "step": 250,
            "valid accuracy": 0.34,
            "train loss": 0.98,
            "train samples": 1000,
            "eval time": 11.3,
        },
        {
            "step": 5000,
            "valid accuracy": 0.5,
            "train loss": loss,
            "train samples": 20000,
            "eval time": 11.3,
        },
        {"step": 5000, "test accuracy": accuracy, "train loss": loss, "train samples": 20000},
    ]
    return {
        "run_info": {
            "created_at": "2025-06-19T19:15:35+00:00", "experiment_name": f"lora/llama-3.2-3B-rank{rank}",
            "peft_branch": "main", "train_config": train, "peft_config": peft, "error_msg": "",
        },
        "train_info": {"train_time": 1796.2, "file_size": 36715216, "status": "success", "metrics": metrics},
        "meta_info": {"package_info": {"peft-version": "0.15.2.dev0"}},
    }  # fmt: skip


def save(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content, indent=2))
    return path


def refused(*paths: Path, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        read_results(list(paths), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_rankwise_sweep(tmp_path: Path) -> None:
    save_sweep(tmp_path)
    imported = read_results([tmp_path])
    assert imported.metrics == ("loss", "accuracy")
    assert imported.evidence.to_dict("list") == {
        "rank": [4, 4, 8, 8], "seed": [0] * 4, "learning_rate": [1e-3] * 4, "example_id": [3, 5, 3, 5],
        "diverged": [False] * 4, "loss": [0.25, 0.75, 0.125, 0.75], "accuracy": [1.0, 0.0, 1.0, 0.0],
    }  # fmt: skip
    assert imported.train_loss is not None
    assert imported.train_loss.groupby("rank")["train_loss"].apply(list).to_dict() == {
        4: [0.7, 0.6],
        8: [0.7, 0.6],
    }
    assert imported.notes == ()


def test_a_rankwise_sweep_with_a_diverged_trial(tmp_path: Path) -> None:
    save_sweep(tmp_path, diverged=(8,))
    imported = read_results([tmp_path])
    gone = imported.evidence.query("diverged")
    assert gone[["rank", "example_id"]].to_numpy().tolist() == [[8, -1]]
    assert np.isnan(gone["loss"]).all()
    assert imported.train_loss is not None
    assert np.isfinite(imported.train_loss["train_loss"]).all()


def test_a_sweep_s_costs(tmp_path: Path) -> None:
    save_sweep(tmp_path)
    found = analyze(tmp_path)
    assert found.score == "accuracy"
    for row in found.decision.table:
        assert (row.trainable_params, row.train_seconds, row.peak_memory_bytes) == (6, 1.5, 1000)
    more = pd.DataFrame(
        {"rank": [16, 16, 32, 32], "learning_rate": 1e-3, "example_id": [3, 5] * 2, "loss": 0.5}
    )
    more.to_csv(tmp_path / "more.csv", index=False)
    table = analyze(tmp_path, tmp_path / "more.csv").decision.table
    assert [row.train_seconds for row in table] == [1.5, 1.5, None, None]


def test_two_sweeps_are_put_together(tmp_path: Path) -> None:
    save_sweep(tmp_path / "one")
    save_sweep(tmp_path / "two", ranks=(16,))
    assert sorted(read_results([tmp_path / "one", tmp_path / "two"]).evidence["rank"].unique()) == [
        4,
        8,
        16,
    ]


def test_sweeps_that_cannot_be_read(tmp_path: Path) -> None:
    save(tmp_path / "sweep.json", {})
    assert "holds no results" in refused(tmp_path)
    (tmp_path / "trials").mkdir()
    assert "has no complete trial yet; run it first" in refused(tmp_path)
    save_sweep(tmp_path / "sweep")
    evidence = next((tmp_path / "sweep" / "trials").glob("r4*")) / "evidence.parquet"
    evidence.write_bytes(b"not parquet")
    assert "cannot be read" in refused(tmp_path / "sweep")
    evidence.unlink()
    assert "cannot be read" in refused(tmp_path / "sweep")
    for file in (tmp_path / "sweep" / "trials").glob("*/evidence.parquet"):
        file.unlink()
    for trial in (tmp_path / "sweep" / "trials").iterdir():
        pd.DataFrame({"rank": [4], "loss": [1.0]}).to_parquet(trial / "evidence.parquet")
    assert (
        "its evidence lacks the column seed, learning_rate, example_id, score, diverged"
        in refused(tmp_path / "sweep")
    )


def test_pefts_method_comparison(tmp_path: Path) -> None:
    accuracy, loss = (
        PUBLISHED["peft_metamathqa_repeats"][name] for name in ("test_accuracy", "train_loss")
    )
    paths = [
        save(
            tmp_path / f"lora--llama-3.2-3B-rank{rank}.json",
            comparison(rank, accuracy[f"r{rank}"][0], loss[f"r{rank}"][0]),
        )
        for rank in (32, 64)
    ]
    imported = read_results(paths)
    assert imported.metrics == ("accuracy", "train_loss")
    assert imported.evidence.to_dict("list") == {
        "rank": [32, 64], "seed": [0, 0], "learning_rate": [1e-4, 1e-4], "diverged": [False, False],
        "accuracy": [0.4822, 0.4882], "train_loss": [0.607, 0.5929],
    }  # fmt: skip
    assert imported.train_loss is not None
    assert imported.train_loss.query("rank == 32")[["step", "train_loss"]].to_numpy().tolist() == [
        [250, 0.98],
        [5000, 0.607],
    ]
    assert imported.notes == ("the last evaluation of each run counts (step 5000)",)
    pd.testing.assert_frame_equal(read_results([tmp_path]).evidence, imported.evidence)


def test_what_of_pefts_comparison_is_left_out(tmp_path: Path) -> None:
    save(tmp_path / "lora.json", comparison())
    save(tmp_path / "adalora.json", comparison(peft_type="ADALORA"))
    full, failed, untested = comparison(), comparison(), comparison()
    full["run_info"]["peft_config"] = None
    failed["train_info"]["status"] = "failed"
    untested["train_info"]["metrics"].pop()
    rankless = comparison()
    rankless["run_info"]["peft_config"]["r"] = None
    for name, content in (
        ("full", full),
        ("failed", failed),
        ("untested", untested),
        ("rankless", rankless),
    ):
        save(tmp_path / f"{name}.json", content)
    imported = read_results([tmp_path])
    assert imported.evidence["rank"].tolist() == [32]
    assert set(imported.notes) >= {
        "adalora.json is left out: its peft_type is ADALORA, not LORA",
        "full.json is left out: it has no peft_config (full fine-tuning)",
        "failed.json is left out: its status is failed, not success",
        "untested.json is left out: it has no test metric",
        "rankless.json is left out: its peft_config has no r",
    }
    assert "holds no results: full.json is left out" in refused(tmp_path / "full.json")


def test_peft_runs_that_differ_in_more_than_their_rank(tmp_path: Path) -> None:
    plain = save(tmp_path / "rank64.json", comparison(64))
    rslora = save(tmp_path / "rank64-rslora.json", comparison(64, 0.5299, use_rslora=True))
    line = refused(plain, rslora)
    assert "rank 64, seed 0, learning rate 0.0001 (rank64.json, rank64-rslora.json)" in line
    assert "they differ in use_rslora; give runs that differ in their rank only" in line
    smaller = save(tmp_path / "rank32.json", comparison(32, target_modules=["q_proj", "v_proj"]))
    assert (
        "the runs differ in more than their rank: use_rslora"
        in read_results([smaller, rslora]).notes
    )
    assert not any("differ" in note for note in read_results([smaller, plain]).notes)


def test_other_comparisons_of_peft_have_other_metrics(tmp_path: Path) -> None:
    content = comparison()
    content["train_info"]["metrics"][-1] = {
        "step": 750,
        "test dino_similarity": 0.7,
        "drift": 0.26,
        "train loss": 0.73,
    }
    imported = read_results([save(tmp_path / "lora.json", content)])
    assert imported.metrics == ("dino_similarity", "drift", "train_loss")
    assert imported.evidence[["dino_similarity", "drift"]].to_numpy().tolist() == [[0.7, 0.26]]


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no results were named"):
        read_results([])
    assert "no such file" in refused(tmp_path / "absent.csv")
    assert "no such file" in refused(tmp_path / "absent")
    assert "holds no results; allowed are a rankwise sweep" in refused(tmp_path)
    assert "is not a result of PEFT's method comparison" in refused(
        save(tmp_path / "a.json", {"rank": 4})
    )
    assert "holds a JSON list" in refused(save(tmp_path / "b.json", [{"rank": 4}]))
    (tmp_path / "c.json").write_text('{"run_info": ')
    assert "c.json' cannot be read as JSON" in refused(tmp_path / "c.json")
    (tmp_path / "d.xlsx").write_text("rank")
    assert "allowed endings are .csv" in refused(tmp_path / "d.xlsx")


def test_columns_are_for_tables(tmp_path: Path) -> None:
    save_sweep(tmp_path)
    assert "seed_column is for tables" in refused(tmp_path, seed_column="run")
    assert "there is no metric 'bleu'; metrics: loss, accuracy" in refused(tmp_path, metric="bleu")
    assert read_results([tmp_path], metric="accuracy").metrics == ("accuracy", "loss")
    assert read_results([tmp_path], metric="score").metrics == ("accuracy", "loss")


def test_reading_results_loads_no_torch() -> None:
    code = "import sys, rankwise.analysis.read; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
