"""Evidence that is less than complete: single numbers, few seeds, seeds not shared, other metrics."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankwise import RequestError, select

PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "published_sweeps.json").read_text())


def gpt2() -> pd.DataFrame:
    table = PUBLISHED["gpt2_medium_e2e"]
    return pd.DataFrame(table["rows"], columns=table["columns"]).rename(
        columns={"val_loss": "loss"}
    )


def test_one_number_for_each_rank_decides_nothing() -> None:
    for metric, margin in (("loss", 0.005), ("bleu", 0.5), ("meteor", None)):
        decision = select(gpt2(), metric=metric, margin=margin)
        assert (decision.verdict, decision.rank, decision.next) == ("undetermined", None, None)
        assert "state the noise" in decision.answer
        row = decision.table[3]
        assert (row.rank, row.seeds) == (8, 1)
        assert row.loss_mean == 1.17  # described all the same
        assert row.loss_ci is None
        assert row.worst_difference is None
        assert not row.non_inferior
        json.dumps(decision.as_dict(), allow_nan=False)


def test_a_stated_small_noise_decides_the_published_losses() -> None:
    decision = select(gpt2(), margin=0.005, noise=0.0005)
    assert decision.rank == 16  # 1.16 from there on, 1.17 and more below
    assert select(gpt2(), margin=0.005, noise=0.02).verdict == "undetermined"
    assert select(gpt2(), margin=0.015, noise=0.0005).rank == 8


def test_reruns_under_other_library_versions_do_not_support_the_larger_rank() -> None:
    repeats = PUBLISHED["peft_metamathqa_repeats"]["test_accuracy"]
    rows = [
        {"rank": rank, "seed": run, "accuracy": value}
        for rank, name in ((32, "r32"), (64, "r64"))
        for run, value in enumerate(repeats[name])
    ]
    for margin in (0.005, 0.01, 0.02):
        assert select(pd.DataFrame(rows), metric="accuracy", margin=margin).rank != 64


@pytest.mark.parametrize("second", [0.80, 0.83])
def test_seeds_that_do_not_differ_tell_nothing(second: float) -> None:
    """Copies of one result, or results rounded until all ranks move alike."""
    shift = second - 0.80
    rows = [
        (4, 0, 0.80),
        (4, 1, second),
        (8, 0, 0.81),
        (8, 1, 0.81 + shift),
        (16, 0, 0.79),
        (16, 1, 0.79 + shift),
    ]
    table = pd.DataFrame(rows, columns=["rank", "seed", "accuracy"])
    decision = select(table, metric="accuracy", margin=0.02)
    assert (decision.verdict, decision.next) == ("undetermined", None)
    assert "differ by the same amount with every seed" in decision.answer
    assert decision.table[0].score_ci is None
    assert select(table, metric="accuracy", margin=0.02, noise=0.001).rank == 4


def seeded(means: dict[int, float], seeds: int, sd: float, rng: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(rng)
    rows = [
        {"rank": rank, "seed": seed, "loss": mean + sd * generator.normal()}
        for rank, mean in means.items()
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def test_aggregates_with_seeds_are_decided_by_their_spread() -> None:
    means = {4: 0.6, 8: 0.5, 16: 0.5}
    assert select(seeded(means, 6, 0.002)).rank == 8
    decision = select(seeded(means, 3, 0.1))
    assert decision.verdict == "undetermined"
    assert decision.next is not None
    assert decision.next.held_out_examples == 1  # an aggregate has no examples to add


@pytest.mark.parametrize("seeds", [2, 5])
def test_two_ranks_of_aggregates_are_student_s_paired_test(seeds: int) -> None:
    from scipy import stats

    table = seeded({4: 0.5, 8: 0.49}, seeds, 0.01, rng=seeds)
    decision = select(table)
    first, second = (table[table["rank"] == rank]["loss"].to_numpy() for rank in (4, 8))
    paired = stats.ttest_rel(first, second)
    upper = (first - second).mean() + stats.t.ppf(0.95, seeds - 1) * stats.sem(first - second)
    assert decision.table[0].worst_difference == pytest.approx(upper, rel=1e-3)
    gain = decision.table[1].gain_over_previous
    assert gain is not None
    assert gain.loss_ci == pytest.approx(tuple(paired.confidence_interval(0.95)), rel=1e-6)


def test_seeds_that_ranks_do_not_share_are_student_s_two_sample_test() -> None:
    from scipy import stats

    generator = np.random.default_rng(0)
    first, second = generator.normal(0.5, 0.01, 4), generator.normal(0.5, 0.01, 4)
    rows = [{"rank": 4, "seed": seed, "loss": loss} for seed, loss in enumerate(first)]
    rows += [{"rank": 8, "seed": 10 + seed, "loss": loss} for seed, loss in enumerate(second)]
    gain = select(pd.DataFrame(rows)).table[1].gain_over_previous
    assert gain is not None
    expected = stats.ttest_ind(first, second).confidence_interval(0.95)
    assert gain.loss_ci == pytest.approx(tuple(expected), rel=1e-6)


def test_seeds_not_shared_and_one_each_tell_nothing() -> None:
    rows = [
        {"rank": rank, "seed": rank, "example_id": example, "loss": 0.5 + 0.001 * example}
        for rank in (4, 8)
        for example in range(50)
    ]
    decision = select(pd.DataFrame(rows))
    assert decision.verdict == "undetermined"
    assert "share no seed" in decision.answer
    assert "larger margin" not in decision.answer  # it would not help
    json.dumps(decision.as_dict(), allow_nan=False)


def test_one_seed_with_a_stated_noise_covers_more() -> None:
    generator = np.random.default_rng(0)
    rows = [
        {"rank": rank, "seed": 0, "example_id": example, "loss": float(generator.normal(0.5, 0.01))}
        for rank in (4, 8)
        for example in range(400)
    ]
    plain, noisy = select(pd.DataFrame(rows)), select(pd.DataFrame(rows), noise=0.02)
    assert plain.rank == 4
    assert any("Only one seed" in caveat for caveat in plain.caveats)
    assert noisy.verdict == "undetermined"
    assert not any("Only one seed" in caveat for caveat in noisy.caveats)


@pytest.mark.parametrize(
    ("metric", "values", "margin", "rank"),
    [
        ("accuracy", {4: 0.70, 8: 0.80, 16: 0.802}, None, 8),
        ("bleu", {4: 60.0, 8: 69.9, 16: 70.0}, 0.5, 8),
        ("perplexity", {4: 9.0, 8: 7.01, 16: 7.0}, 0.1, 8),
    ],
)
def test_other_metrics_go_the_way_that_is_better(
    metric: str, values: dict[int, float], margin: float | None, rank: int
) -> None:
    table = seeded(values, 5, 0.0005).rename(columns={"loss": metric})
    decision = select(table, metric=metric, margin=margin)
    assert decision.rank == rank
    assert decision.metric == metric
    assert decision.table[1].score_mean == pytest.approx(values[8], abs=0.002)
    assert decision.table[1].loss_mean is None
    gain = decision.table[1].gain_over_previous
    assert gain is not None
    better = abs(
        values[8] - values[4]
    )  # rank 8 is better than rank 4, whichever way the metric goes
    assert gain.score == pytest.approx(better, abs=0.002)
    assert gain.score_ci == pytest.approx((better, better), abs=0.005)


def test_a_metric_of_one_s_own_needs_its_direction_and_margin() -> None:
    table = seeded({4: 1.0, 8: 3.0}, 4, 0.01).rename(columns={"loss": "zing"})
    with pytest.raises(RequestError, match="state higher_is_better"):
        select(table, metric="zing")
    taken = select(table, metric="zing", higher_is_better=True)
    assert taken.margin == pytest.approx(0.02, rel=0.05)  # a hundredth of the mean
    assert "No margin was given for zing" in taken.caveats[0]
    assert select(table, metric="zing", higher_is_better=True, margin=0.1).rank == 8
    assert select(table, metric="zing", higher_is_better=False, margin=0.1).rank == 4


@pytest.mark.parametrize("settings", [{"noise": 0}, {"noise": np.nan}, {"score_margin": -1}])
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(settings))):
        select(seeded({4: 0.5, 8: 0.5}, 3, 0.01), **settings)


def test_what_the_evidence_could_have_seen() -> None:
    """A margin as wide as the detectable difference clears a rank that equals the best in four cases of five."""
    cleared = []
    for rng in range(300):
        table = seeded({4: 0.5, 8: 0.5}, 4, 0.01, rng=rng)
        margin = (
            0.01 * np.sqrt(2 / 4) * (2.353 + 0.978)
        )  # of the true noise, at 3 degrees of freedom
        cleared.append(select(table, margin=margin).table[0].non_inferior)
    assert np.mean(cleared) == pytest.approx(0.8, abs=0.07)
    detectable = [
        select(seeded({4: 0.5, 8: 0.5}, 4, 0.01, rng=rng)).detectable_difference
        for rng in range(300)
    ]
    assert np.median([value for value in detectable if value]) == pytest.approx(margin, rel=0.15)
