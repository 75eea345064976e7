"""What a reader is told to keep in mind."""

import numpy as np
import pandas as pd

from rankwise import select
from rankwise.decide.caveats import caveats
from rankwise.decide.evidence import read_rank_results
from rankwise.decide.findings import Findings, Rule
from rankwise.decide.wording import Context, FailedTrial
from tests.decide.examples import make_evidence


def test_a_single_rate_and_a_single_seed_are_caveats() -> None:
    caveats = " ".join(select(make_evidence([0.5, 0.5, 0.5, 0.5], seeds=1)).caveats)
    assert "Only one seed" in caveats
    assert "confounded" in caveats


def test_different_single_rates_are_a_caveat_unless_rates_were_searched() -> None:
    evidence = make_evidence([0.5, 0.5, 0.5, 0.5])
    evidence["learning_rate"] = 1e-3 * 4 / evidence["rank"]
    (caveat,) = select(evidence).caveats
    assert "(rank 4 at 0.001, 8 at 0.0005, 16 at 0.00025, 32 at 0.000125)" in caveat
    assert "confounded" in caveat
    # A rank that tried several rates shows that rates were searched.
    tried = evidence[(evidence["rank"] == 4) & (evidence["seed"] == 0)]
    worse = [tried.assign(learning_rate=rate, loss=tried["loss"] + 0.1) for rate in (5e-4, 2e-3)]
    assert select(pd.concat([evidence, *worse])).caveats == ()


def test_the_rate_at_which_training_collapses_is_a_caveat() -> None:
    """At 2e-3 rank 8 learns a fifth as much as at 1e-3; rank 16 diverges at 4e-3 only."""
    evidence = make_evidence([0.5, 0.5, 0.5, 0.5])
    evidence["learning_rate"], evidence["diverged"] = 1e-3, False

    def tried(rank: int, rate: float, loss: float, diverged: bool = False) -> pd.DataFrame:
        rows = evidence[(evidence["rank"] == rank) & (evidence["seed"] == 0)]
        return rows.assign(learning_rate=rate, loss=loss, diverged=diverged)

    lower = tried(8, 5e-4, 0.7)
    seen = [evidence, lower, tried(8, 2e-3, 0.66), tried(16, 4e-3, 0.0, diverged=True)]
    told = [
        caveat
        for known in (0.7, None)
        for caveat in select(pd.concat(seen), chance_loss=known).caveats
        if "collapses" in caveat
    ]
    assert told == [
        "Training collapses at a learning rate of 0.002 at rank 8, 2 times the one used. Do not "
        "raise it that far.",
        "Training collapses at a learning rate of 0.004 at rank 16, 4 times the one used. Do not "
        "raise it that far.",
    ]
    mild = pd.concat([evidence, lower, tried(8, 2e-3, 0.64)])
    assert not any("collapses" in caveat for caveat in select(mild, chance_loss=0.7).caveats)


def test_the_lowest_rate_of_an_adapter_to_keep_is_no_edge_below_a_cliff() -> None:
    """Rank 32 was trained at two rates, and its cuts have the lower one."""
    evidence = make_evidence([0.5, 0.5, 0.5, 0.5]).assign(learning_rate=1e-3)
    for worse, is_told in ((0.1, False), (0.01, True)):
        higher = evidence[evidence["rank"] == 32].assign(learning_rate=2e-3)
        higher["loss"] += worse
        results = read_rank_results(pd.concat([evidence, higher]), trained_at=32)
        findings = Findings(results, Rule(margin=0.02, trained_at=32))
        told = " ".join(caveats(findings, Context()))
        assert ("Rank 32 is best at the lowest learning rate" in told) == is_told


def test_a_failed_trial_is_no_collapse() -> None:
    evidence = make_evidence([0.5, 0.5, 0.5, 0.5])
    evidence["learning_rate"], evidence["diverged"] = 1e-3, False
    failed = evidence[(evidence["rank"] == 16) & (evidence["seed"] == 0)]
    failed = failed.assign(learning_rate=2e-3, diverged=True)
    findings = Findings(read_rank_results(pd.concat([evidence, failed])), Rule())
    for trials in ([], [FailedTrial("r16-lr0.002-seed0", 16, 2e-3, "exit code 1")]):
        told = " ".join(caveats(findings, Context(failed=trials)))
        assert ("collapses at a learning rate of 0.002" in told) == (not trials)
        assert ("diverged: r16-lr0.002-seed0: exit code 1." in told) == bool(trials)


def test_a_score_that_contradicts_the_loss_is_a_caveat() -> None:
    evidence = make_evidence([0.5, 0.5, 0.5, 0.5], examples=2000)
    evidence["score"] = np.where(
        evidence["rank"] == 32, 1.0, (evidence["example_id"] % 10 > 0).astype(float)
    )
    caveats = select(evidence).caveats
    assert any("rank 32 scores 0.1000 higher" in caveat for caveat in caveats)
    confirmation = select(evidence, score_margin=0.2).confirmation
    assert confirmation is not None
    assert confirmation.status == "confirms"


def test_a_chosen_rank_that_learnt_nothing_is_a_caveat() -> None:
    chance = float(np.log(2))
    quiet = {"examples": 2000, "seed_noise": 0.0005, "example_noise": 0.05}
    words = "Rank 4 itself is not shown to get below"
    for gain, warned in ((0.0, True), (0.1, False)):
        losses = [chance + 0.001 - gain, *[chance - 0.01 - gain] * 3]
        decision = select(make_evidence(losses, **quiet), chance_loss=chance)
        assert decision.rank == 4
        assert any(words in caveat for caveat in decision.caveats) == warned


def test_choosing_the_largest_rank_is_a_caveat_if_it_gains() -> None:
    assert any("try 64" in caveat for caveat in select(make_evidence([0.9, 0.8, 0.7, 0.5])).caveats)
    assert not any(
        "try 64" in caveat for caveat in select(make_evidence([0.9, 0.8, 0.5, 0.5])).caveats
    )


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
