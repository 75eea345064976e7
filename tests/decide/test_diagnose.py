import numpy as np
import pandas as pd
import pytest

from rankwise import select
from tests.decide.examples import make_evidence

STEPS = 60


def histories(
    train: dict[int, float], *, noise: float = 0.02, growing: bool = False
) -> pd.DataFrame:
    """Training losses that fall to a level of each rank; batches are the same for all ranks."""
    generator = np.random.default_rng(0)
    rows = []
    for seed in range(3):
        batches = 0.2 * generator.normal(size=STEPS)
        for rank, level in train.items():
            for step in range(STEPS):
                share = step / STEPS if growing else 1.0
                loss = 0.7 + share * (level - 0.7) + batches[step] + noise * generator.normal()
                rows.append(
                    {
                        "rank": rank,
                        "seed": seed,
                        "learning_rate": 1e-3,
                        "step": step + 1,
                        "train_loss": loss,
                    }
                )
    return pd.DataFrame(rows)


def verdicts(losses: list[float], train: dict[int, float] | None) -> list[str]:
    evidence = make_evidence(losses, ranks=(4, 8, 16), examples=2000)
    found = select(evidence, histories=histories(train) if train else None).diagnosis
    assert [(one.rank, one.next_rank) for one in found] == [(4, 8), (8, 16)]
    return [one.verdict for one in found]


def test_a_rank_that_fits_worse_in_training_and_outside_is_to_be_raised() -> None:
    assert verdicts([0.6, 0.5, 0.5], {4: 0.55, 8: 0.4, 16: 0.4}) == [
        "raise the rank",
        "rank suffices",
    ]


def test_fitting_better_and_doing_worse_outside_is_overfitting() -> None:
    assert verdicts([0.5, 0.5, 0.6], {4: 0.4, 8: 0.4, 16: 0.2}) == ["rank suffices", "overfitting"]


def test_a_larger_rank_that_trains_worse_is_no_matter_of_rank() -> None:
    assert verdicts([0.5, 0.5, 0.6], {4: 0.4, 8: 0.4, 16: 0.55})[1] == "not a rank problem"
    assert verdicts([0.6, 0.5, 0.5], {4: 0.4, 8: 0.4, 16: 0.4})[0] == "not a rank problem"


def test_without_training_losses_the_held_out_gap_speaks_alone() -> None:
    assert verdicts([0.6, 0.5, 0.5], None) == ["raise the rank", "rank suffices"]


def test_noise_leaves_it_open() -> None:
    evidence = make_evidence([0.5, 0.5], ranks=(4, 8), examples=30, seed_noise=0.05)
    (one,) = select(evidence, histories=histories({4: 0.5, 8: 0.5})).diagnosis
    assert one.verdict == "open"


def test_the_numbers_are_those_of_the_losses() -> None:
    evidence = make_evidence([0.6, 0.5], ranks=(4, 8), examples=2000)
    (one,) = select(evidence, histories=histories({4: 0.55, 8: 0.40}, growing=True)).diagnosis
    assert one.train_gap_by_third is not None
    assert one.train_gap_by_third == pytest.approx((0.15 / 6, 0.15 / 2, 0.15 * 5 / 6), abs=0.015)
    assert one.train_gap == pytest.approx(one.train_gap_by_third[2])
    assert one.train_ci is not None
    assert one.train_ci[0] < one.train_gap < one.train_ci[1]
    assert f"{one.held_out_gap:+.4f}" in one.reason
    assert f"{one.train_gap:+.4f}" in one.reason


@pytest.mark.parametrize("replications", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_the_train_interval_covers_the_true_gap(replications: int) -> None:
    """Steps of a seed share their batches; what is left after pairing is the noise of each."""
    evidence = make_evidence([0.5, 0.5], ranks=(4, 8), examples=50)
    generator = np.random.default_rng(1)
    covered = []
    for _ in range(replications):
        table = histories({4: 0.5, 8: 0.4}, noise=0.0)
        table["train_loss"] += 0.05 * generator.normal(size=len(table))
        (one,) = select(evidence, histories=table).diagnosis
        assert one.train_ci is not None
        covered.append(one.train_ci[0] <= 0.1 <= one.train_ci[1])
    errors = 3 * np.sqrt(0.05 * 0.95 / replications)  # three Monte Carlo standard errors
    assert np.mean(covered) == pytest.approx(0.95, abs=errors)


def test_too_few_steps_in_common_are_no_history() -> None:
    evidence = make_evidence([0.6, 0.5], ranks=(4, 8), examples=2000)
    table = histories({4: 0.55, 8: 0.4})
    (one,) = select(evidence, histories=table[table["step"] <= 10]).diagnosis
    assert one.train_gap is None
    assert one.verdict == "raise the rank"
