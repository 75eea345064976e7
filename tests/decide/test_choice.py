"""The choice of a rank, or of the next step."""

import numpy as np

from rankwise import select
from tests.decide.examples import make_evidence


def test_an_open_question_comes_with_what_would_settle_it() -> None:
    evidence = make_evidence([0.52, 0.51, 0.50, 0.49], seeds=2, examples=100, seed_noise=0.01)
    decision = select(evidence, margin=0.01)
    assert (decision.verdict, decision.rank) == ("undetermined", None)
    assert decision.next is not None
    assert decision.next.seeds > 2
    assert decision.next.rank in (4, 8, 16, 32)
    assert "none is shown to be within 0.01 nats of the best" in decision.answer


def test_no_rank_is_chosen_if_none_has_learnt_anything() -> None:
    chance = float(np.log(2))
    evidence = make_evidence([chance + 0.05] * 4, example_noise=0.05)
    assert select(evidence).rank == 4  # they are alike indeed
    decision = select(evidence, chance_loss=chance)
    assert (decision.verdict, decision.rank, decision.next, decision.diagnosis) == (
        "undetermined",
        None,
        None,
        (),
    )
    assert "none is shown to have learnt anything" in decision.answer
    assert "guessing by the classes' shares gives 0.6931" in decision.evidence
    assert "lower ones where the loss is above" in decision.answer
    below = select(make_evidence([chance - 0.005] * 4, example_noise=0.5), chance_loss=chance)
    assert below.verdict == "undetermined"
    assert "more seeds or held-out examples" in below.answer
    # One rank that learns is enough to choose by.
    learnt = make_evidence([chance, chance, chance, 0.5], example_noise=0.05)
    assert select(learnt, chance_loss=chance) == select(learnt)
    assert select(learnt, chance_loss=chance).rank == 32


def test_the_confirmation_says_when_the_score_is_no_lower() -> None:
    evidence = make_evidence([0.5, 0.5, 0.5, 0.5], examples=2000)
    evidence["score"] = np.where(
        evidence["rank"] == 4, 1.0, (evidence["example_id"] % 10 > 0).astype(float)
    )
    confirmation = select(evidence).confirmation
    assert confirmation is not None
    assert confirmation.bound < 0
    assert (
        confirmation.reason
        == "The task score confirms it: rank 4 scores no lower than the best other rank."
    )
