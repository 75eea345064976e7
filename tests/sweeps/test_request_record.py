import json
import shutil
from pathlib import Path

import pytest

from rankwise import SweepConfig
from rankwise.store.records import SweepRecord, read_sweep
from rankwise.sweeps.progress import Silent
from rankwise.sweeps.run import open_run


@pytest.fixture
def settings(tiny_model: Path, reviews: Path) -> dict[str, object]:
    return {"model": str(tiny_model), "data": reviews, "ranks": (2, 4)}


def record_of(out: Path, **settings: object) -> SweepRecord:
    with open_run(SweepConfig(**settings, out=out), Silent()):  # type: ignore[arg-type]
        record = read_sweep(out)
    assert record is not None
    return record


def test_settings_that_do_not_affect_results_do_not_identify_a_sweep(
    settings: dict[str, object], tmp_path: Path
) -> None:
    plain = record_of(tmp_path / "plain", **settings)
    limited = record_of(tmp_path / "limited", **settings, budget=5, max_memory="1GB", extend=True)
    assert limited.settings == plain.settings
    other = {"micro_batch_tokens": 64, "gradient_checkpointing": "on", "checkpoint_minutes": 1}
    elsewhere = record_of(tmp_path / "elsewhere", **settings, **other)
    assert elsewhere.settings == plain.settings
    assert elsewhere.machine == plain.machine | other
    assert not {"budget", "max_memory", "out", "model", "data"} & set(plain.settings)
    assert plain.chosen["gradient_checkpointing"] == "off"  # a CPU that nobody limits chooses none
    assert plain.chosen["micro_batch_tokens"] is None
    chosen = {name: other[name] for name in ("gradient_checkpointing", "micro_batch_tokens")}
    assert elsewhere.chosen == plain.chosen | chosen
    changes = {"epochs": 2, "max_steps": 9, "lr_scheduler": "cosine", "warmup_ratio": 0.1,
               "weight_decay": 0.1, "max_grad_norm": 0.5, "lora_dropout": 0.1}  # fmt: skip
    for name, value in changes.items():
        changed = record_of(tmp_path / name, **settings, **{name: value})
        assert changed.settings == plain.settings | {name: value}


def test_a_moved_file_is_the_same_file_and_a_changed_one_is_not(
    settings: dict[str, object], reviews: Path, tmp_path: Path
) -> None:
    before = record_of(tmp_path / "before", **settings)
    moved = shutil.copy(reviews, tmp_path / "moved.csv")
    after = record_of(tmp_path / "after", **{**settings, "data": moved})
    assert after.fingerprints == before.fingerprints
    assert (before.paths.data, after.paths.data) == (str(reviews), str(moved))
    with reviews.open("a") as file:
        file.write("a new review,1\n")
    changed = record_of(tmp_path / "changed", **settings)
    assert changed.fingerprints.data != before.fingerprints.data
    assert changed.fingerprints.model == before.fingerprints.model


def test_the_record_describes_the_task(settings: dict[str, object], tmp_path: Path) -> None:
    record = record_of(tmp_path / "out", **settings)
    task = record.task
    assert (task.name, task.task_type, task.score) == ("reviews.csv", "SEQ_CLS", "accuracy")
    assert task.train_examples + task.held_out_examples + task.test_examples == 120
    assert list(json.loads((tmp_path / "out" / "sweep.json").read_text())) == [
        "settings", "machine", "chosen", "paths", "fingerprints", "task", "environment", "command",
        "sha256",
    ]  # fmt: skip
