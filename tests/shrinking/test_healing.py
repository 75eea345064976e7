"""Healing on a sweep's classifier and on a tiny language model, held to PEFT."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import rankwise
from rankwise.engine.reference import score_adapter
from rankwise.errors import RequestError
from rankwise.lora.adapter import Adapter
from rankwise.lora.files import read_adapter, write_adapter
from rankwise.models.base_model import BaseModel, load_base
from rankwise.shrinking.config import ShrinkConfig
from rankwise.shrinking.cuts import decompose, make_cuts
from rankwise.shrinking.healing import Healer, read_training_data
from rankwise.shrinking.held_out import base_for, encode_held_out, read_held_out
from rankwise.shrinking.scoring import Scorer
from rankwise.tasks.base import Task
from tests.conftest import make_reviews
from tests.factories import Notes
from tests.tiny_models import make_dialogues


@pytest.fixture
def trial(swept: Path) -> Path:
    """The adapter of rank 8 that a sweep of made-up reviews trained."""
    return next((swept / "trials").glob("r8-*seed0/adapter"))


def load(adapter: Adapter, task: Task) -> BaseModel:
    """Load the base of an adapter, with its layers as targets."""
    name = str(adapter.config["base_model_name_or_path"])
    return base_for(load_base(name, task.objective, "all-linear", []), adapter, "it")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Held-out reviews, and training reviews of which twelve are held out too."""
    held_out = make_reviews(200, seed=9)
    train = pd.concat([make_reviews(120, seed=8), held_out[:12]])
    paths = {"data": tmp_path / "held-out.csv", "heal": tmp_path / "train.csv"}
    held_out.to_csv(paths["data"], index=False)
    train.to_csv(paths["heal"], index=False)
    return paths


@pytest.mark.parametrize("engine", ["fused", pytest.param("reference", marks=pytest.mark.slow)])
def test_healing_lowers_the_loss_and_gives_an_adapter_for_peft(
    trial: Path, files: dict[str, Path], tmp_path: Path, engine: Any
) -> None:
    config = ShrinkConfig(adapters=(trial,), engine=engine, heal_steps=8, **files)
    decomposed = decompose(trial)
    task = read_held_out(config, "", decomposed.adapter)
    base = load(decomposed.adapter, task)
    examples = encode_held_out(task, base, None).encoded
    scorer = Scorer(base, decomposed.adapter, examples, config.engine)
    data = read_training_data(config, task, base, decomposed.adapter)
    (cut,) = make_cuts(decomposed, [1])
    healed, healing = Healer(config, scorer, data).heal(cut)
    assert (healed.rank, healed.healed) == (1, True)
    assert (healing.rank, healing.steps, healing.shared) == (1, 8, 12)
    assert healing.learning_rate in healing.rates and len(healing.rates) > 1
    before, after = scorer.score([cut.adapter, healed.adapter], 0, len(examples))
    assert after["loss"].mean() < before["loss"].mean()
    write_adapter(healed.adapter, tmp_path / "healed")
    in_peft = score_adapter(base, tmp_path / "healed", examples).set_index("example_id")
    assert list(in_peft["loss"].loc[after.index]) == pytest.approx(list(after["loss"]), abs=1e-5)


def test_shrink_heals_and_says_so(trial: Path, files: dict[str, Path], tmp_path: Path) -> None:
    notes, out = Notes(), tmp_path / "out"
    result = rankwise.shrink(trial, progress=notes, heal_steps=4, margin=0.05, out=out, **files)
    assert any("12 examples of" in note and "left out" in note for note in notes.notes)
    document = json.loads((out / "decision.json").read_text())
    (healing,) = (each["healing"] for each in document["adapters"])
    (row,) = (each for each in document["table"] if each["healed"])
    assert (healing["steps"], healing["rank"]) == (4, row["rank"])
    assert healing["taken"] <= (row["outcome"] == "within")
    assert "4 steps at rank" in result.decisions[0].evidence
    assert f"{row['rank']} healed" in (out / "report.html").read_text()
    if healing["taken"]:
        assert "then trained for 4 steps" in (result.written[0] / "README.md").read_text()


def test_training_data_leave_out_held_out_examples_and_keep_the_classes(
    trial: Path, files: dict[str, Path]
) -> None:
    config = ShrinkConfig(adapters=(trial,), labels=("1", "0"), **files)
    adapter = read_adapter(trial)
    task = read_held_out(config, "", adapter)
    data = read_training_data(config, task, load(adapter, task), adapter)
    assert data.shared == 12
    assert len(data.train) + len(data.held_back) == 120
    assert 10 < len(data.held_back) < len(data.train)
    labels = pd.read_csv(files["heal"])["label"]
    for examples in (data.train, data.held_back):
        for example_id, number in zip(examples.ids, examples.labels, strict=True):
            assert ("1", "0")[number] == str(labels[example_id])


def test_bad_training_data_are_refused_in_one_line(
    trial: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    reviews = make_reviews(60, seed=3)
    reviews.assign(label=["x", "y", "z"] * 20).to_csv(tmp_path / "three.csv", index=False)
    reviews[:20].to_csv(tmp_path / "few.csv", index=False)
    reviews.assign(label=[0.5 + row for row in range(60)]).to_csv(tmp_path / "n.csv", index=False)
    for changes, words in [
        ({"heal": files["data"]}, "besides 200 that are held-out examples too"),
        ({"heal": tmp_path / "none.csv"}, "none.csv"),
        ({"heal": tmp_path / "three.csv"}, "classes that the held-out data lack: x, y, z"),
        ({"heal": tmp_path / "few.csv"}, "usable examples"),
        ({"heal": None, "heal_steps": 5}, "heal_steps goes with heal"),
        ({"heal_steps": 0}, "heal_steps 0"),
        ({"heal_steps": "some"}, "heal_steps"),
    ]:
        with pytest.raises(RequestError) as error:
            rankwise.shrink(trial, **{**files, **changes})
        assert words in str(error.value), str(error.value)
        assert "\n" not in str(error.value)


def test_a_language_models_cut_is_healed(lm: Path, tmp_path: Path) -> None:
    """The adapter learnt random words, so it is judged by how much worse cuts of it are."""
    dialogues = make_dialogues(60, seed=7)
    pd.DataFrame(dialogues).to_json(tmp_path / "train.jsonl", orient="records", lines=True)
    config = ShrinkConfig(
        adapters=(lm / "adapter",),
        data=lm / "held-out.jsonl",
        heal=tmp_path / "train.jsonl",
        heal_steps=6,
    )
    decomposed = decompose(lm / "adapter")
    task = read_held_out(config, "", decomposed.adapter)
    base = load(decomposed.adapter, task)
    examples = encode_held_out(task, base, None).encoded
    scorer = Scorer(base, decomposed.adapter, examples, config.engine)
    data = read_training_data(config, task, base, decomposed.adapter)
    (cut,) = make_cuts(decomposed, [2])
    healed, healing = Healer(config, scorer, data).heal(cut)
    assert healing.examples == len(data.train) > len(data.held_back)
    before, after = scorer.score([cut.adapter, healed.adapter], 0, len(examples))
    assert after["loss"].mean() < before["loss"].mean()
    assert healed.adapter.config == cut.adapter.config
