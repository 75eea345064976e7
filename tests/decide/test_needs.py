"""Rank, rate or steps, on evidence whose truth is known."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankwise.decide.decision import Need
from rankwise.decide.evidence import RankResults, read_rank_results
from rankwise.decide.findings import Findings, Rule
from rankwise.decide.needs import FurtherTrial, capacity, find_needs, short_of

MARGIN = 0.02
STEPS = 100
Truth = Mapping[tuple[int, float], float]  # true loss by rank and learning rate
SEARCHED = {(8, 5e-4): 0.6, (8, 1e-3): 0.5, (8, 2e-3): 0.6}  # a rate between two that are worse


def evidence(
    truth: Truth,
    further: float | None = None,
    *,
    seeds: int = 3,
    examples: int = 1000,
    seed_noise: float = 0.002,
    generator: np.random.Generator | None = None,
) -> tuple[list[RankResults], FurtherTrial | None]:
    """Draw a sweep that searched with the first seed, and a trial with twice the steps.

    The trial is one of rank 8 at 1e-3 with the last seed; ``further`` is its true loss.
    """
    generator = generator or np.random.default_rng(0)
    shared = 0.3 * generator.normal(size=examples)

    def draw(rank: int, rate: float, seed: int, loss: float) -> pd.DataFrame:
        own = 0.03 * generator.normal(size=examples) + seed_noise * generator.normal()
        losses = loss + shared + own
        return pd.DataFrame(
            {
                "rank": rank,
                "learning_rate": rate,
                "seed": seed,
                "example_id": range(examples),
                "loss": losses,
                "diverged": False,
            }
        )

    best = {rank: min(v for (r, _), v in truth.items() if r == rank) for rank, _ in truth}
    trials = [
        draw(rank, rate, seed, loss)
        for (rank, rate), loss in truth.items()
        for seed in range(seeds if loss == best[rank] else 1)
    ]
    results = read_rank_results(pd.concat(trials, ignore_index=True))
    if further is None:
        return results, None
    (longer,) = read_rank_results(draw(8, 1e-3, seeds - 1, further))
    return results, FurtherTrial(longer, steps=2 * STEPS, sweep_steps=STEPS)


def needs_of(truth: Truth, further: float | None = None, **more: Any) -> dict[str, Need]:
    results, longer = evidence(truth, further, **more)
    needs = find_needs(results, 8, MARGIN, 0.95, further=longer)
    return {need.name: need for need in needs}


def states(needs: Mapping[str, Need]) -> list[str]:
    return [need.state for need in needs.values()]


def test_where_nothing_gains_the_task_is_short_of_none() -> None:
    needs = needs_of({**SEARCHED, (16, 7e-4): 0.5}, 0.5)
    assert states(needs) == ["ruled out", "ruled out", "ruled out"]
    assert short_of(list(needs.values())) == "none of these"


def test_a_larger_rank_that_gains() -> None:
    needs = needs_of({**SEARCHED, (16, 7e-4): 0.4}, 0.5)
    assert states(needs) == ["shown", "ruled out", "ruled out"]
    rank = needs["more rank"]
    assert (rank.start, rank.end) == (8, 16)
    assert rank.gain == pytest.approx(0.1, abs=0.02)
    assert rank.gain_ci is not None
    assert rank.gain_ci[0] < 0.1 < rank.gain_ci[1]
    assert short_of(list(needs.values())) == "more rank"


def test_twice_the_steps_that_gain() -> None:
    needs = needs_of({**SEARCHED, (16, 7e-4): 0.5}, 0.4)
    assert states(needs) == ["ruled out", "ruled out", "shown"]
    steps = needs["more steps or data"]
    assert (steps.rank, steps.start, steps.end) == (8, 100, 200)
    assert steps.gain == pytest.approx(0.1, abs=0.02)
    assert short_of(list(needs.values())) == "more steps or data"


def test_a_loss_that_still_falls_at_the_edge_of_the_rates() -> None:
    needs = needs_of({(8, 2.5e-4): 0.7, (8, 5e-4): 0.6, (8, 1e-3): 0.5, (16, 7e-4): 0.5}, 0.5)
    rate = needs["another rate"]
    assert (rate.state, rate.edge, rate.start, rate.end) == ("shown", "highest", 5e-4, 1e-3)
    assert rate.gain == pytest.approx(0.1, abs=0.02)
    assert short_of(list(needs.values())) == "another rate"


def test_an_edge_where_the_loss_is_flat_is_no_need() -> None:
    rate = needs_of({(8, 1e-3): 0.5, (8, 2e-3): 0.503, (16, 7e-4): 0.5})["another rate"]
    assert (rate.state, rate.edge) == ("ruled out", "lowest")


def test_of_two_needs_the_larger_gain_is_named() -> None:
    needs = needs_of({**SEARCHED, (16, 7e-4): 0.45}, 0.3)
    assert states(needs) == ["shown", "ruled out", "shown"]
    assert short_of(list(needs.values())) == "more steps or data"


def test_a_rank_that_tried_one_rate_leaves_it_to_the_rank_that_searched() -> None:
    results, _ = evidence({**SEARCHED, (16, 7e-4): 0.5, (32, 5e-4): 0.5})
    needs = find_needs(results, 32, MARGIN, 0.95)
    assert needs[1].rank == 8
    assert needs[1].state == "ruled out"


def test_without_evidence_it_is_not_known() -> None:
    needs = needs_of({(8, 1e-3): 0.5})
    assert states(needs) == ["not known", "not known", "not known"]
    assert short_of(list(needs.values())) == "not known"
    assert short_of([]) == "not known"


def test_noise_leaves_it_open() -> None:
    truth = {**SEARCHED, (16, 7e-4): 0.48}
    rank, _, steps = states(needs_of(truth, 0.48, seed_noise=0.03))
    assert (rank, steps) == ("open", "open")


def test_a_trial_of_the_largest_rank_tells_of_rank_alone() -> None:
    results, longer = evidence(SEARCHED, 0.4)
    assert longer is not None
    (larger,) = read_rank_results(
        pd.DataFrame(
            {
                "rank": 64,
                "learning_rate": 4e-4,
                "seed": 1,
                "example_id": longer.results.examples,
                "loss": longer.results.cost[0],
                "diverged": False,
            }
        )
    )
    further = FurtherTrial(larger, steps=STEPS, sweep_steps=STEPS)
    rank, _, steps = find_needs(results, 8, MARGIN, 0.95, further=further)
    assert (rank.state, rank.start, rank.end) == ("shown", 8, 64)
    assert steps.state == "not known"


def test_a_further_trial_that_diverged_tells_nothing() -> None:
    results, _ = evidence(SEARCHED)
    dead = RankResults(
        8, None, (1e-3,), (), np.empty(0), np.empty((0, 0)), None, None, 1, (np.nan,)
    )
    needs = find_needs(results, 8, MARGIN, 0.95, further=FurtherTrial(dead, 200, 100))
    assert needs[2].state == "not known"


def test_truncations_show_that_rank_suffices_but_not_that_it_lacks() -> None:
    for loss, state in ((0.5, "ruled out"), (0.6, "not known")):
        results, _ = evidence({**SEARCHED, (4, 1e-3): loss})
        needs = find_needs(results, 4, MARGIN, 0.95, trained_at=8)
        assert needs[0].state == state
        assert needs[1].rank == 8


def test_diverged_neighbours_leave_no_other_rate() -> None:
    results, _ = evidence({**SEARCHED, (16, 7e-4): 0.5})
    one = results[0]
    alone = {1e-3: one.cost_by_rate[1e-3]}
    fields = {**vars(one), "cost_by_rate": alone, "diverged": 2}
    needs = find_needs([RankResults(**fields), results[1]], 8, MARGIN, 0.95)
    assert (needs[1].state, needs[1].gain) == ("ruled out", None)


def test_a_rate_whose_seeds_lack_examples_is_not_compared() -> None:
    results, _ = evidence({**SEARCHED, (16, 7e-4): 0.5})
    one = results[0]
    rates = dict(one.cost_by_rate)
    for ragged in (2e-3, 5e-4):
        seeds, cost = rates[ragged]
        rates[ragged] = seeds, np.where(np.arange(cost.shape[1]) == 3, np.nan, cost)
        known = RankResults(**{**vars(one), "cost_by_rate": dict(rates)})
        needs = find_needs([known, results[1]], 8, MARGIN, 0.95)
        assert needs[1].state == ("ruled out" if ragged == 2e-3 else "not known")


def test_needs_that_do_not_exist_are_shown_as_seldom_as_stated() -> None:
    """All true gains are zero: whatever is shown is wrong."""
    generator = np.random.default_rng(1)
    flat = {(8, 5e-4): 0.5, (8, 1e-3): 0.49999, (8, 2e-3): 0.5, (16, 7e-4): 0.49999}
    wrong = np.zeros(3)
    for _ in range(100):
        needs = needs_of(flat, 0.49999, examples=100, seed_noise=0.02, generator=generator)
        wrong += [state == "shown" for state in states(needs)]
    assert (wrong <= 9).all()  # 5 % of 100, and two standard errors


def test_gains_beyond_the_margin_are_ruled_out_as_seldom_as_stated() -> None:
    """All true gains lie just beyond the margin: to rule any out is wrong."""
    generator = np.random.default_rng(2)
    beyond = MARGIN * 1.01
    truth = {(8, 5e-4): 0.5 + beyond, (8, 1e-3): 0.5, (16, 7e-4): 0.5 - beyond}
    wrong = np.zeros(3)
    for _ in range(100):
        needs = needs_of(truth, 0.5 - beyond, examples=100, generator=generator)
        wrong += [state == "ruled out" for state in states(needs)]
    assert (wrong <= 9).all()


def test_findings_answer_only_where_a_rank_is_recommended() -> None:
    results, longer = evidence({**SEARCHED, (16, 7e-4): 0.5}, 0.5)
    rule = Rule(margin=MARGIN)
    assert states({need.name: need for need in Findings(results, rule, further=longer).needs}) == [
        "ruled out",
        "ruled out",
        "ruled out",
    ]
    assert Findings(results, Rule(margin=MARGIN, chance_loss=0.4)).needs == ()


def test_the_further_trial_does_not_enter_the_decision_on_rank() -> None:
    results, longer = evidence({**SEARCHED, (16, 7e-4): 0.5}, 0.1)
    rule = Rule(margin=MARGIN)
    without, with_it = Findings(results, rule), Findings(results, rule, further=longer)
    assert with_it.bounds == without.bounds
    assert with_it.table == without.table
    assert with_it.recommended == without.recommended


def test_capacity_is_two_bits_an_entry_against_the_loss_of_knowing_nothing() -> None:
    bound = capacity(8, 1000, units=800, chance_loss=float(np.log(2)))
    assert bound.adapter_bits == 2000
    assert bound.data_bits == pytest.approx(800)  # a yes or no for each example
