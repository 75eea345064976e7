"""Rank, rate or steps in sentences."""

from dataclasses import replace

import pytest

from rankwise import select
from rankwise.decide.decision import Decision, Need
from rankwise.decide.explain_needs import explain_capacity, explain_need, needs_sentence
from rankwise.decide.findings import Findings, Rule
from rankwise.decide.needs import capacity
from rankwise.decide.wording import Context
from tests.decide.examples import make_evidence, make_results

CI = (0.01, 0.09)


def reason(need: Need, *, is_sweep: bool = True, trained_at: int | None = None) -> str:
    findings = Findings(make_results([0.5, 0.5], (4, 8)), Rule(trained_at=trained_at))
    return explain_need(need, findings, Context(is_sweep=is_sweep, can_diagnose=is_sweep)).reason


def test_each_gain_has_its_figure() -> None:
    rank = Need(name="more rank", state="shown", gain=0.05, gain_ci=CI, rank=32, start=32, end=64)
    assert reason(rank) == (
        "More rank: yes. From rank 32 to rank 64 the gain is +0.0500 nats [+0.0100, +0.0900]."
    )
    steps = replace(rank, name="more steps or data", state="open", rank=8, start=100, end=200)
    assert reason(steps) == (
        "More steps or data: open. At rank 8, from 100 to 200 steps the gain is +0.0500 nats "
        "[+0.0100, +0.0900]."
    )


def test_an_edge_names_the_side_to_go_on() -> None:
    need = Need(
        name="another rate", state="shown", gain=0.05, gain_ci=CI, rank=8, start=1e-3, end=2e-3,
        edge="highest",
    )  # fmt: skip
    assert "Rank 8 is best at the highest learning rate tried; try higher ones." in reason(need)
    settled = replace(need, state="ruled out", gain=0.001, gain_ci=(-0.002, 0.004))
    assert "try higher" not in reason(settled)


@pytest.mark.parametrize(
    ("name", "is_sweep", "command"),
    [
        ("more rank", True, "The same command with --diagnose would tell."),
        ("more steps or data", True, "The same command with --diagnose would tell."),
        ("another rate", True, "--learning-rate auto, with another --out, would tell."),
        ("more rank", False, "Results with a larger rank would tell."),
        ("more steps or data", False, "Results with twice the steps would tell."),
        ("another rate", False, "Results at several learning rates for a rank would tell."),
    ],
)
def test_what_is_not_known_comes_with_what_would_tell(
    name: str, is_sweep: bool, command: str
) -> None:
    need = Need(name=name, state="not known")  # type: ignore[arg-type]
    assert reason(need, is_sweep=is_sweep) == f"{name.capitalize()}: not known. {command}"


def test_a_truncated_rank_that_loses_asks_for_a_training_at_it() -> None:
    need = Need(name="more rank", state="not known")
    assert reason(need, trained_at=32).endswith("as --strategy grid does.")


def test_a_decision_says_all_in_one_paragraph() -> None:
    decision = select(make_evidence([0.6, 0.5, 0.5, 0.5]))
    text = needs_sentence(decision)
    assert text is not None
    assert text.startswith("Rank, rate or steps? Not known yet. More rank: no, the gain is within")
    assert text.count("not known") == 2
    bare = Decision(**{**vars(decision), "needs": ()})
    assert needs_sentence(bare) is None


def test_the_capacity_is_a_bound() -> None:
    bound = explain_capacity(capacity(8, 300_000, 2000, 0.693))
    assert bound is not None
    assert bound.reason == (
        "Capacity, a bound that nearly never binds: an adapter of rank 8 holds at most 600 kbit, "
        "and the training data have about 2 kbit to learn, so size is no limit."
    )
    binding = explain_capacity(capacity(1, 100, 1e6, 2.0))
    assert binding is not None
    assert binding.reason.endswith("so the adapter cannot hold all of it by heart.")
