import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rankwise.errors import RankwiseError, RequestError
from rankwise.store import records
from rankwise.store.records import (
    TRAIN_LOSS_COLUMNS,
    SweepRecord,
    read_chance_loss,
    read_json,
    read_sweep,
    read_train_losses,
    read_trial,
    read_trials,
    select_trials,
)
from tests.factories import REQUEST, finished, save_sweep, seal_trial, write_sealed


def test_a_sweep_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    save_sweep(tmp_path, [])
    assert read_sweep(tmp_path) == REQUEST
    assert read_sweep(tmp_path / "elsewhere") is None


def test_the_settings_that_exports_repeat_are_typed() -> None:
    settings = {
        "epochs": 2, "max_steps": None, "batch_size": 4, "max_length": 256, "train_examples": None,
        "target_modules": ["q", "v"], "quantization": "nf4", "init": "default", "loraplus_ratio": 1.0,
        "lr_scheduler": "linear", "warmup_ratio": 0.1, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "lora_dropout": 0.0, "optimizer": "adamw", "precision": "bf16", "trust_remote_code": False, "seeds": 3,
    }  # fmt: skip
    machine = {"gradient_checkpointing": "auto", "micro_batch_tokens": None, "device": "cuda:1"}
    chosen = {"gradient_checkpointing": "on", "micro_batch_tokens": 512, "pack_size": 1}
    training = replace(REQUEST, settings=settings, machine=machine, chosen=chosen).training
    assert (training.epochs, training.quantization) == (2, "nf4")
    assert (training.gradient_checkpointing, training.micro_batch_tokens) == ("on", 512)


@pytest.mark.parametrize("part", ["settings", "machine", "chosen", "task", "command"])
def test_a_sweep_json_that_lacks_a_part_is_refused_in_one_line(tmp_path: Path, part: str) -> None:
    save_sweep(tmp_path, [])
    content = json.loads((tmp_path / "sweep.json").read_text())
    del content[part]
    write_sealed(tmp_path / "sweep.json", content)
    with pytest.raises(RequestError, match=f"sweep.json' cannot be read: it lacks .*{part}"):
        read_sweep(tmp_path)


@pytest.mark.parametrize("value", [None, 5, ["a"]])
def test_an_entry_of_another_type_is_refused_in_one_line(tmp_path: Path, value: Any) -> None:
    save_sweep(tmp_path, [])
    content = json.loads((tmp_path / "sweep.json").read_text())
    content["task"] = value
    write_sealed(tmp_path / "sweep.json", content)
    with pytest.raises(RequestError, match=r"sweep.json' cannot be read: its task is "):
        read_sweep(tmp_path)


def test_a_trial_record_holds_config_and_summary(tmp_path: Path) -> None:
    save_sweep(tmp_path, [finished(8, seed=1, train_seconds=2.5)])
    (trial,) = read_trials(tmp_path)
    assert (trial.name, trial.rank, trial.seed) == ("r8-lr0.001-seed1", 8, 1)
    assert (trial.train_seconds, trial.eval_loss, trial.step) == (2.5, 0.5, 1)
    assert trial.truncated_from is None
    assert trial == read_trial(tmp_path / "trials" / trial.name)


def test_trials_are_selected_by_rank_and_rate(tmp_path: Path) -> None:
    save_sweep(tmp_path, [finished(rank, seed) for rank in (4, 8) for seed in (0, 1)])
    trials = read_trials(tmp_path)
    assert [trial.seed for trial in select_trials(trials, rank=8)] == [0, 1]
    assert len(select_trials(trials, learning_rate=1e-3)) == 4
    assert select_trials(trials, rank=8, learning_rate=1e-2) == []


def test_a_diverged_trial_has_no_loss(tmp_path: Path) -> None:
    save_sweep(tmp_path, [finished(diverged=True)])
    (trial,) = read_trials(tmp_path)
    assert trial.diverged
    assert math.isnan(trial.eval_loss)
    assert read_train_losses(tmp_path)["train_loss"].isna().all()


def test_a_trial_whose_files_lack_an_entry_is_named_with_the_remedy(tmp_path: Path) -> None:
    save_sweep(tmp_path, [finished()])
    path = tmp_path / "trials" / "r4-lr0.001-seed0" / "config.json"
    config = json.loads(path.read_text())
    del config["use_rslora"]
    path.write_text(json.dumps(config))
    seal_trial(path.parent)
    with pytest.raises(RankwiseError, match=r"lack 'use_rslora'; to redo it, .* rm -r "):
        read_trials(tmp_path)


def test_training_losses_are_a_row_per_step(tmp_path: Path) -> None:
    steps = [{"step": 1, "train_loss": 0.7}, {"step": 2, "train_loss": 0.6}]
    save_sweep(tmp_path, [finished(rank, steps=steps) for rank in (4, 8)])
    losses = read_train_losses(tmp_path)
    assert tuple(losses.columns) == TRAIN_LOSS_COLUMNS
    assert losses[["rank", "step", "train_loss"]].to_numpy().tolist() == [
        [4, 1, 0.7], [4, 2, 0.6], [8, 1, 0.7], [8, 2, 0.6]
    ]  # fmt: skip


def test_the_chance_loss_comes_from_the_task_or_the_untrained_base(tmp_path: Path) -> None:
    save_sweep(tmp_path, [])
    assert read_chance_loss(tmp_path) is None
    write_sealed(tmp_path / "untrained.json", {"example_id": [3, 5], "loss": [2.0, 4.0]})
    expected = pd.Series([2.0, 4.0], index=[3, 5])
    pd.testing.assert_series_equal(read_chance_loss(tmp_path), expected)
    task = replace(REQUEST.task, chance_loss=0.6931)
    save_sweep(tmp_path / "guessed", [], replace(REQUEST, task=task))
    assert read_chance_loss(tmp_path / "guessed") == 0.6931


@pytest.mark.parametrize("text", ["{", "[1]", '"text"'])
def test_a_file_without_a_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(RequestError, match=r"file.json' cannot be read"):
        read_json(tmp_path / "file.json")
    assert read_json(tmp_path / "missing.json") is None


def test_a_decision_that_is_being_replaced_counts_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_sweep(tmp_path, [finished(4)])
    write_sealed(tmp_path / "decision.json", {"rank": 4})
    assert records.read_finished_sweep(tmp_path)[1] == {"rank": 4}
    read = records.read_sweep

    def read_during_the_end_of_a_sweep(directory: Path) -> SweepRecord | None:
        (directory / "decision.json").unlink(missing_ok=True)
        return read(directory)

    monkeypatch.setattr(records, "read_sweep", read_during_the_end_of_a_sweep)
    with pytest.raises(RequestError, match=r"holds no finished sweep: it has no decision\.json"):
        records.read_finished_sweep(tmp_path)
