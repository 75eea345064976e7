import math
from dataclasses import replace

import pytest

from rankwise.engine.config import TrainingConfig
from rankwise.engine.trial import Trial, no_evidence, share_of_training

TRIAL = Trial(rank=8, seed=1, learning_rate=2e-4, lora_alpha=16)


def test_a_name_tells_rank_rate_and_seed_apart() -> None:
    assert TRIAL.name == "r8-lr0.0002-seed1"
    changed = [
        {"rank": 4},
        {"seed": 0},
        {"learning_rate": 2.5e-4},
        {"starts_from": "r8-lr0.001-seed1"},
        {"starts_from": "r8-lr0.001-seed0"},
        {"share_of_steps": 0.1},
        {"share_of_steps": 0.1, "starts_from": "r8-lr0.001-seed0"},
    ]
    names = {replace(TRIAL, **change).name for change in changed}  # type: ignore[arg-type]
    assert len(names | {TRIAL.name}) == 8


def test_rates_that_agree_to_many_digits_have_names_of_their_own() -> None:
    rates = (1e-4, 1.0000001e-4, math.nextafter(1e-4, 1), 1e-05, 2e-4, 0.1 + 0.2, 0.3, 1.0, 1e6)
    names = [replace(TRIAL, learning_rate=rate).name for rate in rates]
    assert len(set(names)) == len(rates)
    texts = [name.removeprefix("r8-lr").removesuffix("-seed1") for name in names]
    assert [float(text) for text in texts] == list(rates)
    assert [texts[0], texts[3], texts[7]] == ["0.0001", "1e-05", "1"]
    shares = {replace(TRIAL, share_of_steps=share).name for share in (0.1, 0.1000000001)}
    assert len(shares) == 2


def test_a_diverged_trial_has_the_columns_of_evidence_and_no_rows() -> None:
    table = no_evidence()
    assert table.empty
    assert list(table.dtypes.items()) == [
        ("example_id", "int64"),
        ("loss", "float64"),
        ("score", "float64"),
    ]


@pytest.mark.parametrize(("epochs", "held_out", "share"), [(1, 300, 0.5), (3, 300, 0.75)])
def test_a_training_step_counts_as_three_passes(epochs: int, held_out: int, share: float) -> None:
    config = TrainingConfig(epochs=epochs, batch_size=8)
    assert share_of_training(config, range(100), range(held_out)) == share
