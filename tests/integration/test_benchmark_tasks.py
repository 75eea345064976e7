"""The benchmarks' tasks: each has the data that its question says."""

import re
from pathlib import Path

import pandas as pd
import pytest
from benchmarks.tasks import GENRES, SOURCES, TASKS

from rankwise.tasks import samples
from rankwise.tasks.load import load_task


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_its_examples_and_a_held_out_part(name: str, directory: Path) -> None:
    task = load_task(TASKS[name].sweep_config(directory))
    assert len(task.train) == TASKS[name].train_examples
    assert len(task.held_out) >= 96
    assert len(task.test) >= 48
    assert (task.objective.task_type == "CAUSAL_LM") == TASKS[name].is_language_model


def test_a_review_does_not_name_its_genre(directory: Path) -> None:
    table = pd.read_csv(TASKS["genre-800"].settings(directory)["data"])
    for label, words in GENRES.items():
        texts = table.loc[table["label"] == label, "text"]
        assert len(texts) == 400
        assert not any(set(words) & set(re.split(r"\W+", text.lower())) for text in texts)


def test_a_balance_counts_the_good_sentences() -> None:
    verdicts = samples.rotten_tomatoes().set_index("text")["label"].eq("positive")
    known = sorted(verdicts.index, key=len, reverse=True)
    for text, label in SOURCES["balance"]()[["text", "label"]].head(3).itertuples(index=False):
        found = []
        for sentence in known:
            if sentence in text:
                found.append(verdicts[sentence])
                text = text.replace(sentence, "", 1)
        assert label == pytest.approx((2 * sum(found) - 4) / 4)


def test_a_kind_is_the_source_and_the_verdict_of_the_text(directory: Path) -> None:
    table = pd.read_csv(TASKS["kind-800"].settings(directory)["data"])
    assert table["label"].value_counts().to_dict() == {
        f"{source} {verdict}": 500
        for source in ("imdb", "rotten_tomatoes")
        for verdict in ("complaint", "praise")
    }
    critics = samples.rotten_tomatoes()
    lower = critics["text"].str.replace(r"[^a-z' ]", " ", regex=True).str.split().str[:24]
    verdicts = dict(zip(lower.str.join(" "), critics["label"], strict=True))
    for row in table[table["label"].str.startswith("rotten")].head(50).itertuples():
        is_praise = verdicts[row.text] == "positive"
        assert row.label == f"rotten_tomatoes {'praise' if is_praise else 'complaint'}"
