"""The built-in task, with the pretrained model and the real data that packages carry."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch

from rankwise import SweepConfig, sweep
from rankwise.tasks import samples
from rankwise.tasks.load import load_task

ROOT = Path(__file__).parents[2]


def test_the_sample_is_split_for_good() -> None:
    task = load_task(SweepConfig())
    assert task.objective.label_names == ("negative", "positive")
    assert (len(task.train), len(task.held_out), len(task.test)) == (
        samples.TRAIN_EXAMPLES,
        1024,
        1024,
    )
    parts = [set(part.ids) for part in (task.train, task.held_out, task.test)]
    assert len(set.union(*parts)) == sum(map(len, parts))
    for part in (task.train, task.held_out, task.test):
        assert sum(part.labels) * 2 == len(part)
    again = load_task(SweepConfig())
    assert (again.train, again.held_out, again.test) == (task.train, task.held_out, task.test)


@pytest.mark.slow
def test_minilm_learns_the_task_and_best_scores_the_same(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    result = sweep(
        ranks=(2, 4),
        seeds=1,
        learning_rate=2e-3,
        train_examples=400,
        margin=1.0,
        out=tmp_path / "out",
    )
    assert result.decision.test is not None
    assert result.decision.test.score > 0.6  # guessing gives 0.5, with a standard error of 0.016
    name = str(samples.minilm_directory())
    base = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    model = PeftModel.from_pretrained(base, tmp_path / "out" / "best").eval()
    tokenizer = AutoTokenizer.from_pretrained(name)
    table = samples.rotten_tomatoes()
    kept = pd.read_parquet(
        tmp_path / "out" / "trials" / result.decision.test.trial / "evidence.parquet"
    )
    with torch.no_grad():
        for row in kept.head(64).itertuples():
            logits = (
                model(**tokenizer(table["text"][row.example_id], return_tensors="pt"))
                .logits[0]
                .double()
            )
            label = {"negative": 0, "positive": 1}[table["label"][row.example_id]]
            assert row.loss == pytest.approx(-torch.log_softmax(logits, 0)[label].item(), rel=1e-3)


@pytest.mark.slow
def test_wheel_and_sdist_build_and_the_wheel_runs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "rankwise/py.typed",
        "rankwise/report/report.html.j2",
        "rankwise/cli/__init__.py",
    } <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "benchmarks/", "examples/")) for name in names)
    target = tmp_path / "installed"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(pip, check=True)
    version = [sys.executable, "-m", "rankwise", "--version"]
    shown = subprocess.run(
        version, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(target)}
    )
    assert shown.stdout.startswith("rankwise ")
    assert sdist.name.removesuffix(".tar.gz") == f"rankwise-{shown.stdout.split()[1]}"
