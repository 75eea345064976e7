import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from rankwise import SweepConfig
from rankwise.errors import RequestError
from rankwise.store.records import SweepRecord, read_sweep
from rankwise.sweeps.progress import Silent
from rankwise.sweeps.run import open_run
from tests.factories import finished, flipped_bit


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
    assert changed.fingerprints.weights == before.fingerprints.weights
    assert changed.fingerprints.tokens != before.fingerprints.tokens


def test_the_record_describes_the_task(settings: dict[str, object], tmp_path: Path) -> None:
    record = record_of(tmp_path / "out", **settings)
    task = record.task
    assert (task.name, task.task_type, task.score) == ("reviews.csv", "SEQ_CLS", "accuracy")
    assert task.train_examples + task.held_out_examples + task.test_examples == 120
    assert list(json.loads((tmp_path / "out" / "sweep.json").read_text())) == [
        "settings", "machine", "chosen", "paths", "fingerprints", "task", "environment", "command",
        "sha256",
    ]  # fmt: skip


def change_a_weight(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(flipped_bit(path.read_bytes(), -40))


def add_a_template(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages }}")


def turn_two_words_round(model: Path) -> None:
    path = model / "tokenizer.json"
    text = path.read_text()
    assert '"good"' in text and '"bad"' in text
    path.write_text(
        text.replace('"good"', '"x"').replace('"bad"', '"good"').replace('"x"', '"bad"')
    )


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (change_a_weight, {"weights"}),
        (add_a_template, {"model_files", "chat_template"}),
        (turn_two_words_round, {"model_files", "tokens"}),
        (lambda model: (model / "README.md").write_text("a card"), set()),
    ],
)
def test_whatever_decides_the_training_identifies_a_sweep(
    settings: dict[str, object],
    tiny_model: Path,
    tmp_path: Path,
    change: Callable[[Path], object],
    changed: set[str],
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    before = asdict(record_of(tmp_path / "out", **{**settings, "model": str(model)}).fingerprints)
    change(model)
    after = asdict(record_of(tmp_path / "out", **{**settings, "model": str(model)}).fingerprints)
    assert {name for name in after if after[name] != before[name]} == changed


def test_trials_over_another_model_are_refused_by_name(
    settings: dict[str, object], tiny_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    request = {**settings, "model": str(model), "out": tmp_path / "out"}
    with open_run(SweepConfig(**request), Silent()) as run:  # type: ignore[arg-type]
        run.store.add(finished(2), {})
    add_a_template(model)
    with pytest.raises(RequestError, match="another request: its model files changed; give the"):
        open_run(SweepConfig(**request), Silent())  # type: ignore[arg-type]
