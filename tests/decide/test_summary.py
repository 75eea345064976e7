"""The whole decision as lines of text."""

from dataclasses import replace

from rankwise import select
from rankwise.decide.decision import TestScore
from rankwise.decide.summary import decision_sentences, training_time_note
from tests.decide.examples import make_evidence


def test_the_answer_comes_first_and_the_caveats_last() -> None:
    decision = select(make_evidence([0.60, 0.502, 0.50, 0.499], examples=4000), margin=0.02)
    lines = decision_sentences(decision, "accuracy")
    assert lines[:2] == [decision.answer, decision.evidence]
    assert lines[-len(decision.caveats) :] == [f"Note: {caveat}" for caveat in decision.caveats]


def test_an_open_question_names_the_next_step() -> None:
    evidence = make_evidence([0.52, 0.51, 0.50, 0.49], seeds=2, examples=100, seed_noise=0.01)
    decision = select(evidence, margin=0.01)
    assert decision.next
    sentences = decision_sentences(decision, "accuracy")
    assert {f"Next: {step.advice}" for step in decision.next} <= set(sentences)


def test_scores_on_unseen_data_are_in_percent_if_they_are_shares() -> None:
    decision = select(make_evidence([0.5] * 4))
    test = TestScore(
        trial="r4", examples=50, loss=0.5, loss_ci=(0.4, 0.6), score=0.8, score_ci=(0.7, 0.9)
    )
    (line,) = [
        line
        for line in decision_sentences(replace(decision, test=test), "accuracy")
        if line.startswith("On 50 test examples")
    ]
    assert "accuracy 80.0 % [70.0, 90.0] and loss 0.5000 [0.400, 0.600]" in line


def test_training_times_are_explained_only_if_trials_trained_together() -> None:
    assert training_time_note([{"pack_size": 1, "pack_seconds": 3.0}, {"pack_size": None}]) is None
    note = training_time_note(
        [{"pack_size": 4, "pack_seconds": 30.0}, {"pack_size": 2, "pack_seconds": 60.0}]
    )
    assert note is not None
    assert "Up to 4 trials trained together; the longest pack took 60.0 s." in note
