"""Sentences about truncations."""

from rankwise.decide.sequential import Judgement
from rankwise.shrinking import words
from tests.shrinking.test_outcome import decision, row

LEARNT = Judgement("within", 256, -0.4, -0.5, -0.3)


def test_answers_name_the_rank_the_bound_and_the_margin() -> None:
    smaller = words.answer("smaller", 16, row(4, "within"), 0.02, 0.95, "nats per example")
    assert smaller == (
        "Rank 4 of 16 is enough: the truncated adapter is at most 0.0100 nats worse, within your "
        "margin of 0.02, at 95 % confidence."
    )
    assert "Keep rank 16" in words.answer("keep", 16, None, 0.02, 0.95, "nats per example")


def test_evidence_counts_examples_and_names_the_rank_that_stopped_it() -> None:
    text = words.evidence(decision().table, LEARNT, 256, 1000)
    assert "256 of 1,000 held-out examples were enough" in text
    assert "Rank 2 is shown to cost more" in text
    assert "Without its low-rank update the loss changes by +0.4000." in text
    assert "all 256 held-out" in words.evidence(decision().table, LEARNT, 256, 256)


def test_the_examples_that_would_settle_an_open_rank_follow_the_root_law() -> None:
    rows = [row(8, "within"), row(4, "open")]
    # The bound's distance 0.007 must become 0.017 less than it is: (0.007 / 0.007)^2 at 0.01.
    assert words.what_would_settle(rows, 0.0065)[0].startswith("About 1,000 held-out examples")
    assert words.what_would_settle([row(4, "worse"), row(2, "open")], 0.02) == []


def test_a_server_saves_room_and_bytes() -> None:
    lines = words.serving([decision()], 4, heads=False)
    assert lines[0] == "vLLM: --enable-lora --max-lora-rank 8"
    assert "1.6 KiB for each adapter instead of 3.1 KiB (rank 16)" in lines[1]
    assert "1.6 KiB instead of 6.2 KiB" in lines[2]
    assert "does not load" in words.serving([decision()], 4, heads=True)[-1]
    assert words.serving([decision()], None, heads=False) == []
