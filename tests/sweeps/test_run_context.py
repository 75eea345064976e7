import json
from pathlib import Path

import pandas as pd
import pytest

from rankwise import RequestError, SweepConfig
from rankwise.sweeps.run import open_run
from tests.factories import Notes
from tests.tiny_models import save_tiny_lm


def test_the_directory_is_locked_until_the_run_is_closed(
    tiny_model: Path, reviews: Path, tmp_path: Path
) -> None:
    config = SweepConfig(model=str(tiny_model), data=reviews, ranks=(2, 4), out=tmp_path / "out")
    with (
        open_run(config, Notes()),
        pytest.raises(RequestError, match="in use by another running sweep"),
    ):
        open_run(config, Notes())
    with open_run(config, Notes()):
        pass


def test_shortened_texts_are_counted_in_a_note(
    tiny_model: Path, reviews: Path, tmp_path: Path
) -> None:
    config = SweepConfig(
        model=str(tiny_model), data=reviews, ranks=(2, 4), max_length=6, out=tmp_path / "out"
    )
    notes = Notes()
    with open_run(config, notes) as run:
        encoded = run.encode("train")
        lengths = [len(text.split()) + 2 for text in run.task.train.inputs]
    assert max(encoded.lengths) == 6
    shortened = sum(length > 6 for length in lengths)
    assert f"{shortened} of {len(lengths)} train texts were cut at 6 tokens" in notes.notes


def test_a_classifier_takes_the_chance_loss_from_its_task(
    tiny_model: Path, reviews: Path, tmp_path: Path
) -> None:
    config = SweepConfig(model=str(tiny_model), data=reviews, ranks=(2, 4), out=tmp_path / "out")
    with open_run(config, Notes()) as run:
        assert run.chance_loss == pytest.approx(0.6931, abs=1e-4)
    assert not (tmp_path / "out" / "untrained.json").exists()


def test_a_language_model_takes_the_losses_of_the_untrained_base(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"the film {n}", "completion": f"was {n}"} for n in range(20)]
    pd.DataFrame(rows).to_json(data, orient="records", lines=True)
    config = SweepConfig(
        model=str(save_tiny_lm("llama", tmp_path / "lm")),
        data=data,
        ranks=(2, 4),
        out=tmp_path / "out",
    )
    with open_run(config, Notes()) as run:
        chance = run.chance_loss
        assert isinstance(chance, pd.Series)
        assert set(chance.index) == set(run.task.held_out.ids)
    stored = json.loads((tmp_path / "out" / "untrained.json").read_text())
    assert stored["loss"] == chance.tolist()
    with open_run(config, Notes()) as run:  # it is not scored again
        pd.testing.assert_series_equal(run.chance_loss, chance)
