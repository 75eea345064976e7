"""Logs of training runs."""

import json
import math
import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rankwise.analysis.read import read_results
from tests.analysis.results import refused


def save_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))


def save_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_state(directory: Path, steps: int, loss: float, accuracy: float | None = None) -> None:
    """Save what transformers' Trainer leaves after some steps, evaluated at each second one."""
    from transformers import TrainerState

    log: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        log.append(
            {
                "loss": 2.0 / step,
                "grad_norm": 1.0,
                "learning_rate": 1e-4 / step,
                "epoch": step / 4,
                "step": step,
            }
        )
        if step % 2 == 0:
            scores = {
                "eval_loss": loss + 1 / step,
                "eval_runtime": 0.5,
                "eval_samples_per_second": 20.0,
            }
            scores |= {"eval_accuracy": accuracy} if accuracy is not None else {}
            log.append({**scores, "eval_steps_per_second": 2.0, "epoch": step / 4, "step": step})
    directory.mkdir(parents=True, exist_ok=True)
    TrainerState(global_step=steps, max_steps=steps, log_history=log).save_to_json(
        str(directory / "trainer_state.json")
    )


def save_tinker_run(directory: Path, rank: int, loss: float, rate: float = 1e-3) -> None:
    """Save what tinker-cookbook's supervised training leaves, as its ml_log module writes it."""
    save_json(
        directory / "config.json",
        {
            "log_path": str(directory), "model_name": "meta-llama/Llama-3.2-1B", "load_checkpoint_path": None,
            "dataset_builder": {"common_config": {"batch_size": 128}, "shuffle_seed": 7}, "learning_rate": rate,
            "lr_schedule": "linear", "num_epochs": 1, "lora_rank": rank, "eval_every": 2,
        },
    )  # fmt: skip
    rows = []
    for step in range(5):
        row = {
            "step": step,
            "epoch": 0,
            "progress": step / 5,
            "learning_rate": rate * (1 - step / 5),
        }
        row |= {
            "num_sequences": 128,
            "num_tokens": 4096,
            "train_mean_nll": 2 - step / 10,
            "time/total": 1.5,
        }
        if step % 2 == 0:
            row |= {"test/nll": loss + 1 / (step + 1), "test/bpb": 0.9, "time/evals": 0.2}
        rows.append(row)
    save_lines(directory / "metrics.jsonl", rows)


def test_runs_of_tinker_cookbook_are_read(tmp_path: Path) -> None:
    for rank, loss in ((4, 0.5), (8, 0.4)):
        save_tinker_run(tmp_path / "sweep" / f"lora_rank={rank}", rank, loss)
    imported = read_results([tmp_path / "sweep"])
    assert imported.metrics == ("loss", "bpb")
    assert imported.evidence.to_dict("list") == {
        "rank": [4, 8], "seed": [0, 0], "learning_rate": [1e-3] * 2, "diverged": [False] * 2,
        "loss": [0.7, 0.6000000000000001], "bpb": [0.9, 0.9],
    }  # fmt: skip
    assert imported.train_loss is not None
    assert imported.train_loss.query("rank == 8")[["step", "train_loss"]].to_numpy().T.tolist() == [
        [0, 1, 2, 3, 4],
        [2.0, 1.9, 1.8, 1.7, 1.6],
    ]
    assert "the last evaluation of each run counts (step 4)" in imported.notes
    assert "no seed is recorded; it is taken as 0" in imported.notes  # shuffle_seed is the data's


def test_a_single_run_may_be_given(tmp_path: Path) -> None:
    for rank in (4, 8):
        save_tinker_run(tmp_path / str(rank), rank, 0.5)
    assert read_results([tmp_path / "8", tmp_path / "4"]).evidence["rank"].tolist() == [8, 4]


def test_runs_of_the_trainer_are_read(tmp_path: Path) -> None:
    """PEFT and Trainer write the directory; its pickle is left alone."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import Dataset
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    class Examples(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"input_ids": torch.tensor([index, 1, 2]), "labels": torch.tensor(index % 2)}

    sizes = {
        "vocab_size": 16,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    losses = []
    for rank in (2, 4):
        model = BertForSequenceClassification(BertConfig(**sizes))
        model = get_peft_model(
            model, LoraConfig(task_type="SEQ_CLS", r=rank, target_modules=["query"])
        )
        arguments = TrainingArguments(
            str(tmp_path / "sweep" / f"r{rank}-seed7"), max_steps=4, per_device_train_batch_size=4, logging_steps=1,
            eval_strategy="steps", eval_steps=2, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, seed=7,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=Examples(), eval_dataset=Examples())
        trainer.train()
        trainer.save_state()  # with the summary row, whose train_loss is the mean of all steps
        losses.append(
            [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row][-1]
        )
    assert (tmp_path / "sweep/r4-seed7/checkpoint-4/training_args.bin").exists()
    imported = read_results([tmp_path / "sweep"])
    assert imported.metrics == ("loss",)
    assert imported.evidence["rank"].tolist() == [2, 4]
    assert imported.evidence["seed"].tolist() == [7, 7]
    assert imported.evidence["loss"].tolist() == losses
    assert imported.train_loss is not None
    assert imported.train_loss["step"].tolist() == [1, 2, 3, 4] * 2
    assert "seed is read from the run's name where no config has it" in imported.notes
    assert "no learning rate is recorded; it is taken as 0" in imported.notes


def test_the_last_checkpoint_of_a_run_counts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for steps in (2, 10, 4):
        save_state(run / f"checkpoint-{steps}", steps, loss=1.0, accuracy=0.5)
        save_json(
            run / f"checkpoint-{steps}" / "adapter_config.json", {"peft_type": "LORA", "r": 8}
        )
    save_json(run / "args.json", {"seed": 3, "learning_rate": 2e-4})
    imported = read_results([tmp_path])
    assert imported.evidence.to_dict("records") == [
        {
            "rank": 8,
            "seed": 3,
            "learning_rate": 2e-4,
            "diverged": False,
            "loss": 1.1,
            "accuracy": 0.5,
        }
    ]
    assert "the last evaluation of each run counts (step 10)" in imported.notes
    save_state(run, 12, loss=2.0)  # of save_state() at the end
    assert read_results([tmp_path]).evidence["loss"].tolist() == [2.0 + 1 / 12]
    save_state(run, 6, loss=3.0)  # of an earlier end, resumed since
    assert read_results([tmp_path]).evidence["loss"].tolist() == [1.1]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("adapter_config.json", {"peft_type": "LORA", "r": 16, "lora_alpha": 16}),
        ("config.json", {"lora_rank": 16}),
        ("config.json", {"rank": 16}),
        ("config.json", {"lora_r": "16"}),
        ("config.json", {"distributed": {"rank": 0}, "lora_config": {"r": 16}}),
        ("config.json", {"peft_config": {"default": {"r": 16}}}),
        ("config.json", {"model": {"lora": {"rank": 16}}}),
        ("args.json", {"lora_r": 16}),
        ("adapter/adapter_config.json", {"r": 16}),
    ],
)
def test_the_rank_is_found_in_every_known_place(
    tmp_path: Path, name: str, config: dict[str, Any]
) -> None:
    save_state(tmp_path / "run", 2, 1.0)
    save_json(tmp_path / "run" / name, config)
    assert read_results([tmp_path]).evidence["rank"].tolist() == [16]


@pytest.mark.parametrize(
    "config",
    [
        {"seed": 5, "learning_rate": 3e-4},
        {"training": {"seed": 5, "lr": 3e-4}, "data": {"seed": 9}},
        {"training_args": {"seed": 5}, "optimizer": {"lr": 3e-4}},
    ],
)
def test_seed_and_learning_rate_are_found_in_every_known_place(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    save_state(tmp_path / "run-seed1-lr1e-2", 2, 1.0)
    save_json(tmp_path / "run-seed1-lr1e-2" / "config.json", {"lora_rank": 4, **config})
    evidence = read_results([tmp_path]).evidence
    assert evidence[["seed", "learning_rate"]].to_numpy().tolist() == [[5, 3e-4]]


def test_seed_and_learning_rate_may_be_in_the_names_of_runs(tmp_path: Path) -> None:
    for name in ("r4_lr1e-3_seed0", "r4_lr3e-4_seed0", "r4_lr3e-4_seed1"):
        save_state(tmp_path / name, 2, 1.0)
        save_json(tmp_path / name / "adapter_config.json", {"r": 4})
    evidence = read_results([tmp_path]).evidence
    assert evidence[["learning_rate", "seed"]].to_numpy().tolist() == [
        [1e-3, 0],
        [3e-4, 0],
        [3e-4, 1],
    ]


def test_choices_of_a_hyperparameter_search_are_read_from_the_state(tmp_path: Path) -> None:
    save_state(tmp_path / "run-0" / "checkpoint-2", 2, 1.0)
    path = tmp_path / "run-0" / "checkpoint-2" / "trainer_state.json"
    save_json(
        path, {**json.loads(path.read_text()), "trial_params": {"learning_rate": 5e-4, "r": 8}}
    )
    evidence = read_results([tmp_path]).evidence
    assert evidence[["rank", "learning_rate"]].to_numpy().tolist() == [[8, 5e-4]]


def test_notes_name_the_runs_left_out(tmp_path: Path) -> None:
    save_tinker_run(tmp_path / "good", 4, 0.5)
    save_tinker_run(tmp_path / "rankless", 4, 0.5)
    save_json(tmp_path / "rankless" / "config.json", {"model_name": "m"})
    save_tinker_run(tmp_path / "untested", 4, 0.5)
    save_lines(
        tmp_path / "untested" / "metrics.jsonl", [{"step": 0, "train_mean_nll": 2.0, "loss": 2.0}]
    )
    save_tinker_run(tmp_path / "other", 4, 0.5)
    save_json(tmp_path / "other" / "adapter_config.json", {"peft_type": "ADALORA", "r": 8})
    save_json(tmp_path / "adapter-only" / "adapter_config.json", {"peft_type": "LORA", "r": 8})
    save_tinker_run(tmp_path / "a" / "b" / "c" / "too-deep", 8, 0.5)
    imported = read_results([tmp_path])
    assert imported.evidence["rank"].tolist() == [4]
    for words in (
        "run rankless is left out: no rank (lora_rank, lora_r, lora_dim, adapter_rank, network_dim, r, rank) in adapter_config.json",
        "run untested is left out: metrics.jsonl holds no evaluation",
        "run other is left out: its peft_type is ADALORA, not LORA",
        "run adapter-only is left out: it has no trainer_state.json, metrics.jsonl, eval_results.json",
    ):
        assert any(note.startswith(words) for note in imported.notes), words
    shutil.rmtree(tmp_path / "good")
    assert (
        "holds no results: run adapter-only is left out: it has no trainer_state.json"
        in refused(tmp_path)
    )


def test_a_run_whose_loss_is_not_finite_diverged(tmp_path: Path) -> None:
    save_tinker_run(tmp_path / "r4", 4, 0.5)
    save_tinker_run(tmp_path / "r8", 8, math.nan)
    imported = read_results([tmp_path])
    assert imported.evidence["diverged"].tolist() == [False, True]
    assert any(
        note.startswith("run r8 diverged: its held-out loss is not finite")
        for note in imported.notes
    )
    save_lines(
        tmp_path / "r8" / "metrics.jsonl", [{"step": 1, "eval_loss": None, "diverged": True}]
    )
    assert read_results([tmp_path]).evidence["diverged"].tolist() == [False, True]
    save_tinker_run(tmp_path / "r8", 8, 0.5)
    path = tmp_path / "r8" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 5, "test/bpb": Infinity}\n')
    assert r"bpb ('test/bpb'): inf in 1 of 2 rows (r8)" in refused(tmp_path)


def test_a_note_names_the_other_settings_that_differ(tmp_path: Path) -> None:
    for rank, targets in ((4, ["q_proj", "v_proj"]), (8, ["v_proj", "q_proj"])):
        save_state(tmp_path / str(rank), 2, 1.0)
        save_json(
            tmp_path / str(rank) / "adapter_config.json", {"r": rank, "target_modules": targets}
        )
    assert not any("differ" in note for note in read_results([tmp_path]).notes)
    save_json(
        tmp_path / "8" / "adapter_config.json",
        {"r": 8, "target_modules": ["all"], "use_rslora": True},
    )
    save_state(tmp_path / "8", 4, 1.0)
    notes = read_results([tmp_path]).notes
    assert "the runs differ in more than their rank: target_modules" in notes
    assert "the last evaluation of each run counts (steps 2 to 4, not the same)" in notes


def test_runs_that_cannot_be_distinguished_are_refused(tmp_path: Path) -> None:
    save_tinker_run(tmp_path / "a", 4, 0.5)
    save_tinker_run(tmp_path / "b", 4, 0.6)
    line = refused(tmp_path)
    assert "1 row repeats another, such as rank 4, seed 0, learning rate 0.001 (a, b)" in line
    assert (
        'record what distinguishes it in its args.json: {"seed": 1}, or another learning rate'
        in line
    )
    save_json(tmp_path / "b" / "args.json", {"seed": 1})
    assert read_results([tmp_path]).evidence["seed"].tolist() == [0, 1]


def test_a_resumed_log_counts_each_step_once(tmp_path: Path) -> None:
    save_json(tmp_path / "run" / "config.json", {"rank": 4})
    rows = [
        {"step": 1, "train_loss": 3.0},
        {"step": 2, "train_loss": 9.0},
        {"step": 2, "train_loss": 2.0},
    ]
    save_lines(
        tmp_path / "run" / "metrics.jsonl",
        [*rows, {"step": 3, "train_loss": None, "eval_loss": 1.0}],
    )
    histories = read_results([tmp_path]).train_loss
    pd.testing.assert_frame_equal(
        histories,
        pd.DataFrame(
            {"rank": 4, "seed": 0, "learning_rate": 0.0, "step": [1, 2], "train_loss": [3.0, 2.0]}
        ),
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", '{"lora_rank": 4', "config.json' cannot be read as JSON"),
        ("config.json", "[1, 2]", "config.json' holds a JSON list; allowed is an object"),
        (
            "config.json",
            '{"lora_rank": 0}',
            "run run is left out: it was trained without LoRA (rank 0)",
        ),
        (
            "metrics.jsonl",
            '{"step": 0, "test/nll": 1.0}\n{"step": 1, "te',
            "metrics.jsonl' line 2 is not JSON",
        ),
        ("metrics.jsonl", "[0]\n", "metrics.jsonl' line 1 holds a JSON list"),
        ("metrics.jsonl", "", "run run is left out: metrics.jsonl holds no evaluation"),
        ("metrics.jsonl", '{"step": 1, "test/nll": "low"}', "metrics.jsonl holds no evaluation"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    save_tinker_run(tmp_path / "run", 4, 0.5)
    (tmp_path / "run" / name).write_text(content)
    assert words in refused(tmp_path)


@pytest.mark.parametrize("content", [{}, {"log_history": 3}, {"log_history": [3, {"loss": 1.0}]}])
def test_a_trainer_state_without_an_evaluation_is_left_out(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    save_json(tmp_path / "run" / "trainer_state.json", content)
    save_json(tmp_path / "run" / "adapter_config.json", {"r": 8})
    assert "run run is left out: trainer_state.json holds no evaluation" in refused(tmp_path)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    save_tinker_run(tmp_path / "run", 4, 0.5)
    (tmp_path / "run" / "training_args.bin").write_bytes(pickle.dumps(Trap()))
    read_results([tmp_path])
    assert not (tmp_path / "sprung").exists()


def test_evaluations_without_a_prefix_count_where_none_has_one(tmp_path: Path) -> None:
    """Early tinker-cookbook logged the held-out loss as ``nll``, beside ``train_mean_nll``."""
    save_json(tmp_path / "run" / "config.json", {"lora_rank": 4})
    log = tmp_path / "run" / "metrics.jsonl"
    save_lines(
        log,
        [
            {"step": 0, "train_mean_nll": 2.0, "nll": 1.5},
            {"step": 1, "train_mean_nll": 1.0, "loss": 1.0},
        ],
    )
    imported = read_results([tmp_path])
    assert imported.metrics == ("loss",)
    assert imported.evidence["loss"].tolist() == [1.5]
    save_lines(log, [{"step": 0, "eval_math_loss": 0.7, "eval_code_loss": 0.9, "nll": 1.5}])
    assert read_results([tmp_path]).metrics == ("math_loss", "code_loss")


@pytest.mark.parametrize(
    "names",
    [("eval_results.json",), ("all_results.json",), ("eval_results.json", "all_results.json")],
)
@pytest.mark.parametrize("has_state", [True, False])
def test_metrics_saved_after_training_are_the_evaluation(
    tmp_path: Path, names: tuple[str, ...], has_state: bool
) -> None:
    """As run_clm.py and LLaMA-Factory call ``Trainer.save_metrics``."""
    for rank in (4, 8):
        run = tmp_path / f"r{rank}"
        save_json(run / "adapter_config.json", {"peft_type": "LORA", "r": rank})
        if has_state:
            rows = [{"loss": 1.0, "step": 10}]
            save_json(run / "trainer_state.json", {"global_step": 30, "log_history": rows})
        for name in names:
            save_json(run / name, {"epoch": 3.0, "eval_loss": 1 / rank, "train_loss": 0.1})
    imported = read_results([tmp_path])
    assert imported.evidence["loss"].tolist() == [0.25, 0.125]
    assert read_results([tmp_path / "r4" / names[0], tmp_path / "r8"]).evidence[
        "loss"
    ].tolist() == [0.25, 0.125]


def test_a_lora_rank_comes_before_the_rank_of_a_process(tmp_path: Path) -> None:
    save_state(tmp_path / "run", 2, 1.0)
    config = {
        "rank": 0,
        "train_loop_config": {"lora_r": 8},
        "data": {"seed": 5},
        "args": {"seed": 3},
    }
    save_json(tmp_path / "run" / "config.json", config)
    assert read_results([tmp_path]).evidence[["rank", "seed"]].to_numpy().tolist() == [[8, 3]]


def test_a_rank_in_the_names_of_runs_is_asked_for(tmp_path: Path) -> None:
    for rank in (4, 8):
        save_state(tmp_path / f"r{rank}-s1", 2, 1.0)
    assert "if 'r4-s1' has rank 4, give --rank-pattern 'r(\\d+)'" in refused(tmp_path)
    evidence = read_results([tmp_path], rank_pattern=r"r(\d+)").evidence
    assert evidence[["rank", "seed"]].to_numpy().tolist() == [[4, 1], [8, 1]]


@pytest.mark.parametrize(
    "config", [{"finetuning_type": "full", "lora_rank": 8}, {"lora_rank": 0}, {"r": "none"}]
)
def test_runs_without_lora_are_left_out(tmp_path: Path, config: dict[str, Any]) -> None:
    for name, settings in (("lora", {"lora_rank": 8}), ("full", config)):
        save_state(tmp_path / name, 2, 1.0)
        save_json(tmp_path / name / "config.json", settings)
    imported = read_results([tmp_path])
    assert imported.evidence["rank"].tolist() == [8]
    assert any(
        note.startswith("run full is left out: it was trained without LoRA")
        for note in imported.notes
    )
