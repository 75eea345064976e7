"""Numbers as labels, and pairs of texts, against the losses of transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rankwise
from rankwise.engine.evaluate import evaluate
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.model import unsupported_reason
from rankwise.engine.reference import ReferenceEngine
from rankwise.errors import RequestError
from rankwise.models.base_model import load_base
from rankwise.tasks.base import Task
from rankwise.tasks.config import DataConfig
from rankwise.tasks.load import load_task
from tests.conftest import make_reviews
from tests.engine.parity import CONFIG, TRIALS, assert_same_training
from tests.tiny_models import save_tiny


def write(path: Path, kind: str, count: int = 300) -> Path:
    table = make_reviews(count)
    if kind != "classes":
        # Numbers that a text tells, with fractions, so that they name no classes.
        table["label"] += table["text"].str.split().str.len() / 100
    if kind == "pairs":
        table = table.rename(columns={"text": "premise"}).assign(
            hypothesis=make_reviews(count, seed=1)["text"]
        )
    table.to_csv(path, index=False)
    return path


def prepare(task: Task, model: Path) -> Any:
    base = load_base(str(model), task.objective, ["all-linear"], [4])
    return base, *(
        task.encoder(part, base.tokenizer, 64)[0] for part in (task.train, task.held_out)
    )


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("kind", ["numbers", "pairs"])
def test_training_matches_peft_and_the_trainer(kind: str, name: str, tmp_path: Path) -> None:
    task = load_task(DataConfig(data=write(tmp_path / "data.csv", kind)))
    base, train, held_out = prepare(task, save_tiny(name, tmp_path))
    assert base.model.config.problem_type == "regression"
    assert (train.token_type_ids is not None) == (kind == "pairs" and name == "bert")
    assert unsupported_reason(base, train) is None
    expected = next(iter(ReferenceEngine(base, train, held_out, CONFIG).train(TRIALS[:1])))
    fused = next(iter(FusedEngine(base, train, held_out, CONFIG).train(TRIALS[:1])))
    assert_same_training(fused, expected)
    assert list(fused.evidence["score"]) == pytest.approx(
        list(expected.evidence["score"]), abs=1e-5
    )


@pytest.mark.parametrize("kind", ["numbers", "pairs"])
def test_losses_match_transformers(kind: str, tmp_path: Path) -> None:
    """Texts tokenised anew, one at a time; R² is that of the residuals."""
    path = write(tmp_path / "data.csv", kind)
    task, table = load_task(DataConfig(data=path)), pd.read_csv(path)
    model = save_tiny("bert", tmp_path)
    base, _, held_out = prepare(task, model)
    found = evaluate(base.model, base.tokenizer, held_out, base.objective)
    variance = np.var(task.train.labels)
    plain = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=1, problem_type="regression"
    ).eval()
    plain.classifier.load_state_dict(base.model.classifier.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(model)
    columns = ["premise", "hypothesis"] if kind == "pairs" else ["text"]
    errors = []
    with torch.no_grad():
        for row, loss, score in zip(held_out.ids, found["loss"], found["score"], strict=True):
            inputs = tokenizer(*table.loc[row, columns], return_tensors="pt")
            label = torch.tensor([table.loc[row, "label"]], dtype=torch.float32)
            squared = plain(**inputs, labels=label).loss.item()
            assert loss == pytest.approx(squared / variance, rel=1e-4)
            assert score == pytest.approx(-(squared**0.5), rel=1e-4)
            errors.append(squared)
    assert task.chance_loss == pytest.approx(np.var(task.held_out.labels) / variance)
    assert found["loss"].mean() == pytest.approx(np.mean(errors) / variance, rel=1e-4)


def test_a_regression_sweep_decides_and_reports_in_its_own_units(
    tiny_model: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "data.csv", "numbers")
    result = rankwise.sweep(
        model=str(tiny_model), data=data, ranks=(2, 4), learning_rate=1e-2, epochs=3, margin=5.0,
        out=tmp_path / "out",
    )  # fmt: skip
    assert result.decision.rank == 2
    assert result.score == "negative absolute error"
    page = result.report.read_text()
    assert "<th>negative absolute error</th>" in page
    assert "<th>accuracy</th>" not in page
    assert "of the labels' variance worse" in result.decision.answer
    assert result.decision.test is not None
    assert (
        "from_pretrained(base, num_labels=1)"
        in (tmp_path / "out" / "best" / "README.md").read_text()
    )
    found = rankwise.analyze(tmp_path / "out", metric="negative absolute error", margin=100.0)
    assert found.decision.rank == 2


def test_pairs_of_texts_are_found_by_column_names(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    one, two = make_reviews(60), make_reviews(60, seed=1)
    pd.DataFrame(
        {"sentence1": one["text"], "sentence2": two["text"], "label": one["label"]}
    ).to_csv(path, index=False)
    task = load_task(DataConfig(data=path))
    assert task.objective.describe() == "2 classes"
    assert task.train.inputs[0] == (one["text"][task.train.ids[0]], two["text"][task.train.ids[0]])
    assert "pairs of texts from columns 'sentence1' and 'sentence2'" in task.notes[0]
    single = load_task(DataConfig(data=path, text_column="sentence2"))
    assert single.train.inputs[0] == two["text"][single.train.ids[0]]
    named = load_task(DataConfig(data=path, text_column="sentence2", text_pair_column="sentence1"))
    assert named.train.inputs[0] == (
        two["text"][named.train.ids[0]],
        one["text"][named.train.ids[0]],
    )
    with pytest.raises(RequestError, match="text_column and text_pair_column are both 'sentence1'"):
        load_task(DataConfig(data=path, text_column="sentence1", text_pair_column="sentence1"))


@pytest.mark.parametrize(
    ("labels", "words"),
    [(["1.5", "x", "2"] * 10, "not a number in 10 of 30 rows"), ([2.0] * 30, "one number only")],
)
def test_unusable_labels_are_refused(tmp_path: Path, labels: list[Any], words: str) -> None:
    path = tmp_path / "data.csv"
    make_reviews(30).assign(label=labels).to_csv(path, index=False)
    with pytest.raises(RequestError, match=words):
        load_task(DataConfig(data=path, task="regression"))
