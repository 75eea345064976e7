"""The rule, on evidence of many kinds: complete, with few seeds, or a single number each."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rankwise import RequestError, select
from rankwise.decide.findings import Rule
from rankwise.decide.selection import decide
from tests.decide.examples import make_evidence, make_results, seeded

PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "published_sweeps.json").read_text())


def test_the_smallest_rank_that_is_not_worse_is_selected() -> None:
    decision = select(make_evidence([0.60, 0.502, 0.50, 0.499], examples=4000), margin=0.02)
    assert (decision.verdict, decision.rank) == ("selected", 8)
    assert [row.non_inferior for row in decision.table] == [False, True, True, True]
    assert decision.next == ()
    assert decision.answer.startswith("Use rank 8. It is at most ")


def test_the_best_mean_does_not_decide() -> None:
    evidence = make_evidence([0.501, 0.5, 0.499, 0.498], examples=4000)
    assert evidence.groupby("rank")["loss"].mean().idxmin() != 4
    assert select(evidence, margin=0.02).rank == 4


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([0.53, 0.50, 0.50, 0.50], marks=pytest.mark.slow),
        pytest.param([0.5201, 0.51, 0.505, 0.50], marks=pytest.mark.slow),
        [0.5205, 0.5205, 0.5205, 0.5],
    ],
)
@pytest.mark.parametrize("replications", [100, pytest.param(400, marks=pytest.mark.slow)])
def test_a_rank_that_is_truly_worse_is_seldom_chosen(
    losses: list[float], seeds: int, replications: int
) -> None:
    generator = np.random.default_rng(7)
    worse = [
        rank for rank, loss in zip((4, 8, 16, 32), losses, strict=True) if loss > min(losses) + 0.02
    ]
    wrong = 0
    for _ in range(replications):
        noise = 0.004 if seeds > 1 else 0.0  # one seed cannot tell
        runs = make_results(
            losses, seeds=seeds, examples=200, seed_noise=noise, generator=generator
        )
        wrong += decide(runs, Rule(margin=0.02)).rank in worse
    # 5 % and three Monte Carlo standard errors
    assert wrong / replications <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / replications)


def test_pairing_cancels_the_noise_that_ranks_share() -> None:
    evidence = make_evidence([0.5, 0.5, 0.5, 0.5], example_noise=0.05, seed_noise=0.001)
    hard = evidence["example_id"] % 2 * 5.0  # half of the examples are hard for every rank
    decision = select(evidence.assign(loss=evidence["loss"] + hard), margin=0.02)
    assert decision.rank == 4
    first = decision.table[0]
    assert first.loss_ci is not None
    assert first.loss_ci[1] - first.loss_ci[0] > 0.1


def test_a_diverged_trial_excludes_its_learning_rate() -> None:
    evidence = make_evidence([0.5, 0.5, 0.5, 0.5], examples=2000)
    gone = (evidence["rank"] == 4) & (evidence["seed"] == 1)
    row = evidence[gone].head(1).assign(loss=np.nan, diverged=True, example_id=-1)
    decision = select(pd.concat([evidence[~gone], row]))
    assert decision.rank == 8
    assert decision.table[0].diverged == 1
    assert decision.table[0].loss_mean is None
    assert any("Rank 4 is left out" in caveat for caveat in decision.caveats)


def test_every_trial_diverged() -> None:
    rows = [
        {"rank": rank, "seed": 0, "example_id": -1, "loss": np.nan, "score": 0, "diverged": True}
        for rank in (4, 8)
    ]
    decision = select(pd.DataFrame(rows))
    assert (decision.verdict, decision.rank) == ("undetermined", None)
    json.dumps(decision.as_dict(), allow_nan=False)


def test_each_rank_is_judged_at_its_best_rate() -> None:
    slow, fast = make_evidence([0.60, 0.55, 0.50, 0.50]), make_evidence([0.50, 0.50, 0.60, 0.70])
    evidence = pd.concat([slow.assign(learning_rate=1e-3), fast.assign(learning_rate=5e-3)])
    decision = select(evidence, margin=0.05)
    assert [row.learning_rate for row in decision.table] == [5e-3, 5e-3, 1e-3, 1e-3]
    assert decision.rank == 4
    # At either rate alone rank would seem to matter.
    assert select(slow, margin=0.05).rank != 4
    assert any("lowest learning rate" in caveat for caveat in decision.caveats)


def test_rows_may_come_in_any_order() -> None:
    evidence = make_evidence([0.52, 0.51, 0.50, 0.50])
    assert select(evidence) == select(evidence.sample(frac=1, random_state=0))


def test_a_rank_with_fewer_seeds_is_compared_on_its_seeds() -> None:
    evidence = make_evidence([0.5, 0.5, 0.5, 0.5], examples=2000)
    decision = select(evidence[(evidence["rank"] != 4) | (evidence["seed"] < 2)])
    assert decision.table[0].seeds == 2
    assert decision.rank == 4


def gpt2() -> pd.DataFrame:
    table = PUBLISHED["gpt2_medium_e2e"]
    return pd.DataFrame(table["rows"], columns=table["columns"]).rename(
        columns={"val_loss": "loss"}
    )


def test_one_number_for_each_rank_decides_nothing() -> None:
    for metric, margin in (("loss", 0.005), ("bleu", 0.5), ("meteor", None)):
        decision = select(gpt2(), metric=metric, margin=margin)
        assert (decision.verdict, decision.rank, decision.next) == ("undetermined", None, ())
        assert decision.recommended is not None
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


def test_aggregates_with_seeds_are_decided_by_their_spread() -> None:
    means = {4: 0.6, 8: 0.5, 16: 0.5}
    assert select(seeded(means, 6, 0.002)).rank == 8
    decision = select(seeded(means, 3, 0.1))
    assert decision.verdict == "undetermined"
    # an aggregate has no examples to add
    assert {step.held_out_examples for step in decision.next} == {1}


@pytest.mark.parametrize("examples", [1, 5, 19])
def test_too_few_held_out_examples_decide_nothing(examples: int) -> None:
    evidence = make_evidence([0.6, 0.5, 0.5, 0.5], examples=examples, example_noise=1e-4)
    decision = select(evidence)
    assert (decision.verdict, decision.recommended) == ("undetermined", 8)
    assert decision.confidence_reached is None
    assert "Hold out at least 20" in decision.answer


@pytest.mark.parametrize(
    ("metric", "values", "margin", "rank"),
    [
        ("accuracy", {4: 0.70, 8: 0.80, 16: 0.802}, None, 8),
        ("bleu", {4: 60.0, 8: 69.9, 16: 70.0}, 0.5, 8),
        ("perplexity", {4: 9.0, 8: 7.01, 16: 7.0}, 0.1, 8),
    ],
)
def test_other_metrics_are_compared_in_their_direction(
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


def test_an_unknown_metric_needs_a_direction_and_gets_a_margin_with_a_caveat() -> None:
    table = seeded({4: 1.0, 8: 3.0}, 4, 0.01).rename(columns={"loss": "zing"})
    with pytest.raises(RequestError, match="state higher_is_better"):
        select(table, metric="zing")
    taken = select(table, metric="zing", higher_is_better=True)
    assert taken.margin == pytest.approx(0.02, rel=0.05)  # a hundredth of the mean
    assert "No margin was given for zing" in taken.caveats[0]
    assert select(table, metric="zing", higher_is_better=True, margin=0.1).rank == 8
    assert select(table, metric="zing", higher_is_better=False, margin=0.1).rank == 4
