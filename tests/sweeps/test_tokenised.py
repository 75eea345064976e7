"""The tokenised parts of a sweep's data."""

from dataclasses import replace
from pathlib import Path

import pytest

from rankwise.sweeps.config import SweepConfig
from rankwise.sweeps.progress import Silent
from rankwise.sweeps.run import open_run
from rankwise.sweeps.run_context import Run
from rankwise.sweeps.tokenised import tokenise, tokens_digest


@pytest.fixture
def run(tiny_model: Path, reviews: Path, tmp_path: Path) -> Run:
    config = SweepConfig(model=str(tiny_model), data=reviews, ranks=(2, 4), out=tmp_path / "out")
    with open_run(config, Silent()) as opened:
        return opened


def test_all_parts_are_tokenised_once_and_identify_the_sweep(run: Run) -> None:
    parts = run.tokenised
    assert set(parts) == {"train", "held_out", "test"}
    for name, part in parts.items():
        assert run.encode(name) is part.encoded
        examples = getattr(run.task, name)
        expected, _ = run.task.encoder(examples, run.loaded_base.tokenizer, run.max_length)
        assert part.encoded == expected
    digest = tokens_digest(parts)
    assert tokens_digest(tokenise(run.config, run.task, run.loaded_base)) == digest
    for name, part in parts.items():
        fewer = replace(part, encoded=part.encoded.take(range(len(part.encoded) - 1)))
        assert tokens_digest({**parts, name: fewer}) != digest


def test_other_examples_of_a_part_are_tokenised_anew(run: Run) -> None:
    fewer = replace(run, task=replace(run.task, test=run.task.test.take([0, 2])))
    assert len(fewer.encode("test")) == 2


def test_what_a_trainer_of_the_user_reads_is_left_to_it(run: Run) -> None:
    data, words = run.config.data, "python train.py --out {out} --rank {rank} --lr {learning_rate}"
    config = SweepConfig(model=run.config.model, data=data, ranks=(2, 4), seeds=1, trainer=words)
    assert set(tokenise(config, run.task, run.loaded_base)) == {"held_out", "test"}
