import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from rankwise import RequestError, SweepConfig
from rankwise.engine.fused.model import PackedModel
from rankwise.sweeps.memory_fit import (
    choice,
    fit_to_machine,
    in_force,
    longest_text,
    plan_config,
)
from rankwise.sweeps.progress import Silent
from rankwise.sweeps.run import open_run, run_trials
from rankwise.tasks.load import load_task
from tests.factories import write_sealed


@pytest.fixture
def config(tiny_model: Path, reviews: Path) -> SweepConfig:
    return SweepConfig(model=str(tiny_model), data=reviews, ranks=(2, 8), batch_size=4)


def test_the_plan_has_the_settings_of_the_sweep(config: SweepConfig) -> None:
    request = plan_config(config, load_task(config))
    assert (request.ranks, request.batch_size, request.seq_len) == ((2, 8), 4, 256)
    assert (request.precision, request.task_type, request.num_labels) == ("fp32", "SEQ_CLS", 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_reference_engine_is_planned_with_its_autocast(
    config: SweepConfig, precision: str
) -> None:
    request = plan_config(replace(config, precision=precision, device="cpu"), load_task(config))
    assert request.autocast == (precision == "bf16")


def test_the_longest_text_is_counted_in_tokens(config: SweepConfig, reviews: Path) -> None:
    task = load_task(config)
    table = pd.read_csv(reviews)
    words = [len(text.split()) for text in table["text"].iloc[list(task.train.ids)]]
    assert longest_text(config, task) == max(words) + 2  # [CLS] and [SEP]


def test_ranks_need_more_memory_the_larger_they_are(config: SweepConfig) -> None:
    fit = fit_to_machine(config, load_task(config))
    assert fit.needed[2] < fit.needed[8]
    assert fit.at_once >= 1


def test_a_rank_that_does_not_fit_is_refused(config: SweepConfig) -> None:
    task = load_task(config)
    config = replace(config, gradient_checkpointing="off", micro_batch_tokens=4 * 256)
    ample = fit_to_machine(replace(config, max_memory="1GB"), task)
    # Where memory is short, the longest text counts instead of the longest length allowed.
    tight = fit_to_machine(replace(config, max_memory=ample.needed[8]), task)
    with pytest.raises(RequestError, match=r"rank 8 needs about .* ranks up to 2 fit"):
        fit_to_machine(replace(config, max_memory=tight.needed[8] - 1), task)


def test_auto_is_off_and_whole_batches_where_they_fit(config: SweepConfig) -> None:
    fit = fit_to_machine(replace(config, max_memory="1GB"), load_task(config))
    assert (fit.micro_batch_tokens, fit.gradient_checkpointing) == (None, False)


def test_checkpointing_is_taken_before_a_rank_is_refused(config: SweepConfig) -> None:
    task = load_task(config)
    config = replace(config, max_length=longest_text(config, task), batch_size=2)
    whole = fit_to_machine(replace(config, max_memory="1GB"), task)
    short = replace(config, max_memory=whole.needed[8] - 1)
    fit = fit_to_machine(short, task)
    assert fit.gradient_checkpointing
    assert fit.needed[8] < whole.needed[8]
    assert in_force(short, fit).gradient_checkpointing == "on"
    with pytest.raises(RequestError, match="rank 8 needs about") as error:
        fit_to_machine(replace(config, max_memory="100kB"), task)
    assert "\n" not in str(error.value)
    assert f"in passes of at most {whole.length} tokens" in str(error.value)


@pytest.mark.parametrize("asked", [None, 128])
def test_a_resumed_sweep_keeps_what_was_chosen(
    config: SweepConfig, tmp_path: Path, asked: int | None
) -> None:
    config = replace(config, out=tmp_path / "out", max_memory="1GB", micro_batch_tokens=asked)
    with open_run(config, Silent()) as run:
        first = run.fit
    # As if another program had taken memory when the sweep began.
    path = config.out / "sweep.json"
    record = json.loads(path.read_text())
    assert record["machine"]["gradient_checkpointing"] == "auto"
    slower = {"gradient_checkpointing": "on", "micro_batch_tokens": 64, "pack_size": 2}
    assert record["chosen"] != slower
    write_sealed(path, {**record, "chosen": slower})
    with open_run(config, Silent()) as run:
        assert choice(run.config, run.fit) == slower
        assert run.in_force.gradient_checkpointing == "on"
    with open_run(replace(config, max_memory="2GB"), Silent()) as run:
        assert run.fit.gradient_checkpointing == first.gradient_checkpointing
    now = json.loads(path.read_text())
    assert now["chosen"] == record["chosen"]
    assert now["machine"]["max_memory"] == 2 * record["machine"]["max_memory"]


def test_a_resumed_sweep_keeps_what_memory_lowered(
    config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, out=tmp_path / "out", max_memory="1GB", max_steps=2)
    config = replace(config, learning_rate=5e-3)
    plain = PackedModel.loss_sums

    def loss_sums(self: PackedModel, states: Any, batches: Any) -> torch.Tensor:
        if len(states) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, states, batches)

    with open_run(config, Silent()) as run:
        assert run.fit.at_once > 1
        monkeypatch.setattr(PackedModel, "loss_sums", loss_sums)
        run_trials(run)
    monkeypatch.undo()
    lowered = json.loads((config.out / "sweep.json").read_text())["chosen"]
    assert lowered == {**choice(config, run.fit), "pack_size": 1}
    with open_run(config, Silent()) as resumed:
        assert resumed.fit.at_once == 1
        assert resumed.engine.pack_size == 1
