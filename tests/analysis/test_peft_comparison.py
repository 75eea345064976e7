"""Results of PEFT's method comparison."""

from pathlib import Path

import pandas as pd

from rankwise.analysis.read import read_results
from tests.analysis.results import PUBLISHED, comparison, refused, save


def test_a_result_gives_the_test_metric_and_the_training_losses(tmp_path: Path) -> None:
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


def test_results_without_a_lora_rank_or_a_test_metric_are_left_out(tmp_path: Path) -> None:
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


def test_runs_that_differ_in_more_than_their_rank_are_refused_or_noted(tmp_path: Path) -> None:
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


def test_comparisons_of_other_tasks_have_other_metrics(tmp_path: Path) -> None:
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
