"""Answers and their evidence in words."""

import json

import pandas as pd
import pytest

from rankwise import select
from tests.decide.examples import make_evidence


def test_the_last_step_is_a_wider_margin_that_is_reached_already() -> None:
    # Two ranks whose seeds lie 0.4 apart and cancel: no difference seen, and much noise.
    losses = {(4, 0): 0.7, (4, 1): 0.3, (8, 0): 0.3, (8, 1): 0.7}
    rows = [
        {"rank": rank, "seed": seed, "example_id": example, "loss": loss, "score": 0.5}
        for (rank, seed), loss in losses.items()
        for example in range(20)
    ]
    decision = select(pd.DataFrame(rows), margin=0.001)
    assert decision.next[-1].action == "margin"
    assert decision.next[-1].margin == decision.margin_reached
    assert "rank 4 is within it already" in decision.next[-1].advice


@pytest.mark.parametrize("second", [0.80, 0.83])
def test_seeds_that_move_all_ranks_alike_decide_nothing(second: float) -> None:
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
    assert (decision.verdict, decision.next) == ("undetermined", ())
    assert (decision.recommended, decision.confidence_reached) == (4, None)
    assert "differ by the same amount with every seed" in decision.answer
    assert decision.table[0].score_ci is None
    assert select(table, metric="accuracy", margin=0.02, noise=0.001).rank == 4


def test_one_seed_per_rank_without_a_common_seed_decides_nothing() -> None:
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


def test_the_answer_names_rank_bound_margin_and_confidence() -> None:
    evidence = make_evidence([0.60, 0.502, 0.50, 0.499], examples=4000)
    decision = select(evidence, margin=0.02)
    bound = decision.row(8).worst_difference
    assert decision.answer == (
        f"Use rank 8. It is at most {bound:.3g} nats worse than the best rank tried, within your "
        "margin of 0.02, at 95 % confidence."
    )
    assert "within the margin of 0.02" in select(evidence).answer
    exact = make_evidence([0.60, 0.502, 0.50, 0.499], examples=4000, seed_noise=0.0)
    kept = select(exact, margin=0.02, trained_at=32)
    assert kept.answer.startswith("Keep rank 8 of an adapter trained at rank 32. ")


def test_an_open_answer_gives_a_rank_for_now_and_both_readings_of_how_sure_it_is() -> None:
    evidence = make_evidence([0.51, 0.50, 0.50, 0.50], seeds=2, examples=300, seed_noise=0.01)
    decision = select(evidence)
    row = decision.row(decision.recommended or 0)
    assert decision.verdict == "undetermined"
    assert row.confidence_within_margin == decision.confidence_reached < 0.95
    assert decision.answer == (
        f"Use rank {row.rank} for now: {int(100 * decision.confidence_reached)} % sure that it is "
        "within 0.02 nats of the best (you asked for 95 %); at 95 %, within "
        f"{decision.margin_reached:.3g} nats."
    )
    # Both readings are true: the rank is selected at that confidence, and at that margin.
    lower = select(evidence, confidence=decision.confidence_reached - 0.01)
    assert row.rank in [one.rank for one in lower.table if one.non_inferior]
    wider = select(evidence, margin=decision.margin_reached + 1e-9)
    assert row.rank in [one.rank for one in wider.table if one.non_inferior]


def test_the_evidence_names_ranks_seeds_examples_and_the_closest_rank() -> None:
    decision = select(make_evidence([0.60, 0.502, 0.50, 0.499], examples=4000), margin=0.02)
    assert decision.evidence.startswith(
        "Ranks 4, 8, 16 and 32 were compared by held-out loss, over 3 seeds and 4,000 examples."
    )
    assert f"up to {decision.row(8).worst_difference:.4f} nats worse" in decision.evidence
