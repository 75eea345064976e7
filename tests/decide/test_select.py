import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankwise import RequestError, select
from rankwise.decide import best_learning_rate
from rankwise.decide.evidence import RankResults, read_rank_results
from rankwise.decide.findings import Rule
from rankwise.decide.pairwise import Comparison
from rankwise.decide.selection import decide

RANKS = (4, 8, 16, 32)


def make_losses(
    losses: Sequence[float],
    *,
    seeds: int = 3,
    examples: int = 500,
    seed_noise: float = 0.005,
    example_noise: float = 0.3,
    generator: np.random.Generator | None = None,
) -> np.ndarray:
    """Draw losses (R, S, N) with known true losses, and noise of examples, of trials and of both together."""
    generator = generator or np.random.default_rng(0)
    shared = generator.normal(size=(1, 1, examples)) * example_noise
    own = (
        generator.normal(size=(len(losses), 1, examples)) * example_noise / 3
    )  # how a rank differs on an example
    trial = generator.normal(size=(len(losses), seeds, 1)) * seed_noise
    rest = generator.normal(size=(len(losses), seeds, examples)) * example_noise / 3
    values = np.reshape(losses, (-1, 1, 1)) + shared + own + trial + rest  # (R, S, N)
    return values


def make_evidence(
    losses: Sequence[float], ranks: Sequence[int] = RANKS, **sizes: Any
) -> pd.DataFrame:
    """Put `make_losses` into a table."""
    values = make_losses(losses, **sizes)  # (R, S, N)
    levels = [ranks, range(values.shape[1]), range(values.shape[2])]
    index = pd.MultiIndex.from_product(levels, names=["rank", "seed", "example_id"])
    frame = pd.DataFrame({"loss": values.reshape(-1)}, index=index).reset_index()
    return frame.assign(
        score=(frame["loss"] < 0.7).astype(float), learning_rate=1e-3, diverged=False
    )


def make_results(
    losses: Sequence[float], ranks: Sequence[int] = RANKS, **sizes: Any
) -> list[RankResults]:
    """Put `make_losses` into runs, as `read_rank_results` does with a table, only faster."""
    values = make_losses(losses, **sizes)  # (R, S, N)
    seeds, examples = tuple(range(values.shape[1])), np.arange(values.shape[2])
    return [
        RankResults(rank, 1e-3, (1e-3,), seeds, examples, loss, loss, (loss < 0.7).astype(float), 0)
        for rank, loss in zip(ranks, values, strict=True)
    ]


def test_runs_made_directly_are_those_of_the_table() -> None:
    for run, read in zip(
        make_results([0.5] * 4), read_rank_results(make_evidence([0.5] * 4)), strict=True
    ):
        assert (run.rank, run.seeds, run.rates) == (read.rank, read.seeds, read.rates)
        np.testing.assert_array_equal(run.loss, read.loss)
        np.testing.assert_array_equal(run.score, read.score)


def test_the_smallest_rank_that_is_not_worse() -> None:
    decision = select(make_evidence([0.60, 0.502, 0.50, 0.499], examples=4000), margin=0.02)
    assert (decision.verdict, decision.rank) == ("selected", 8)
    assert [row.non_inferior for row in decision.table] == [False, True, True, True]
    assert decision.next is None
    assert decision.answer.startswith("Use rank 8. It is at most ")


def test_the_best_mean_is_not_what_decides() -> None:
    evidence = make_evidence([0.501, 0.5, 0.499, 0.498], examples=4000)
    assert evidence.groupby("rank")["loss"].mean().idxmin() != 4
    assert select(evidence, margin=0.02).rank == 4


def test_noise_leaves_it_open_and_says_what_would_settle_it() -> None:
    evidence = make_evidence([0.52, 0.51, 0.50, 0.49], seeds=2, examples=100, seed_noise=0.01)
    decision = select(evidence, margin=0.01)
    assert (decision.verdict, decision.rank) == ("undetermined", None)
    assert decision.next is not None
    assert decision.next.seeds > 2
    assert decision.next.rank in (4, 8, 16, 32)
    assert "none is shown to be within 0.01 nats of the best" in decision.answer


def test_where_nothing_would_settle_it_that_is_said() -> None:
    # Two ranks whose seeds lie 0.4 apart and cancel: no difference seen, and much noise.
    losses = {(4, 0): 0.7, (4, 1): 0.3, (8, 0): 0.3, (8, 1): 0.7}
    rows = [
        {"rank": rank, "seed": seed, "example_id": example, "loss": loss, "score": 0.5}
        for (rank, seed), loss in losses.items()
        for example in range(20)
    ]
    decision = select(pd.DataFrame(rows), margin=0.001)
    assert decision.next is None
    assert "a larger margin would" in decision.answer


@pytest.mark.parametrize(("examples", "seed_noise"), [(100, 0.004), (300, 0.008)])
def test_what_is_advised_settles_it_in_four_cases_of_five(examples: int, seed_noise: float) -> None:
    generator = np.random.default_rng(1)
    settled = []
    for _ in range(100):
        first = make_results(
            [0.55, 0.5, 0.5, 0.5],
            seeds=2,
            examples=examples,
            seed_noise=seed_noise,
            generator=generator,
        )
        advice = decide(first, Rule(margin=0.02)).next
        if advice is None:
            continue
        seen = [float(run.cost.mean()) for run in first]  # these differences are to persist
        sizes = {"seeds": advice.seeds, "examples": advice.held_out_examples}
        again = make_results(seen, seed_noise=seed_noise, generator=generator, **sizes)
        settled.append(decide(again, Rule(margin=0.02)).rank is not None)
    assert len(settled) >= 40
    # 80 % and two Monte Carlo standard errors
    assert np.mean(settled) >= 0.8 - 2 * np.sqrt(0.8 * 0.2 / len(settled))


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([0.53, 0.50, 0.50, 0.50], marks=pytest.mark.slow),
        pytest.param([0.5201, 0.51, 0.505, 0.50], marks=pytest.mark.slow),
        [0.5205, 0.5205, 0.5205, 0.5],
    ],
)
def test_a_rank_that_is_truly_worse_is_seldom_chosen(losses: list[float], seeds: int) -> None:
    generator = np.random.default_rng(7)
    worse = [
        rank for rank, loss in zip((4, 8, 16, 32), losses, strict=True) if loss > min(losses) + 0.02
    ]
    wrong, replications = 0, 400
    for _ in range(replications):
        noise = 0.004 if seeds > 1 else 0.0  # one seed cannot tell
        runs = make_results(
            losses, seeds=seeds, examples=200, seed_noise=noise, generator=generator
        )
        wrong += decide(runs, Rule(margin=0.02)).rank in worse
    # 5 % and three Monte Carlo standard errors
    assert wrong / replications <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / replications)


@pytest.mark.parametrize("ranks", [2, 3])
def test_two_seeds_do_not_make_a_wrong_choice_more_likely(ranks: int) -> None:
    """Where the one degree of freedom of the seeds makes half of the noise or more."""
    generator = np.random.default_rng(11)
    losses, wrong, replications = [0.5201] * (ranks - 1) + [0.5], 0, 3000
    for _ in range(replications):
        values = make_losses(
            losses, seeds=2, examples=100, seed_noise=0.01, example_noise=0.15, generator=generator
        )
        comparison = Comparison(
            dict(zip(RANKS, values, strict=False)), {rank: (0, 1) for rank in RANKS[:ranks]}
        )
        wrong += (
            min(comparison.upper_bound(rank, 0.95).upper for rank in RANKS[: ranks - 1]) <= 0.02
        )
    # 5 % and two Monte Carlo standard errors
    assert wrong / replications <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / replications)


def test_intervals_cover_the_true_means_and_gains() -> None:
    generator = np.random.default_rng(3)
    truth, covered, gains, replications = [0.55, 0.52, 0.50], 0, 0, 600
    for _ in range(replications):
        runs = make_results(
            truth, ranks=(4, 8, 16), examples=100, seed_noise=0.02, generator=generator
        )
        table = decide(runs, Rule(margin=0.02)).table
        for row, loss in zip(table, truth, strict=True):
            assert row.loss_ci is not None
            covered += row.loss_ci[0] <= loss <= row.loss_ci[1]
        gain = table[1].gain_over_previous
        assert gain is not None
        gains += gain.loss_ci[0] <= truth[0] - truth[1] <= gain.loss_ci[1]
    assert 0.93 <= covered / (3 * replications) <= 0.97
    assert 0.925 <= gains / replications <= 0.975


def test_pairing_cancels_the_noise_that_ranks_share() -> None:
    evidence = make_evidence([0.5, 0.5, 0.5, 0.5], example_noise=0.05, seed_noise=0.001)
    hard = evidence["example_id"] % 2 * 5.0  # half of the examples are hard for every rank
    decision = select(evidence.assign(loss=evidence["loss"] + hard), margin=0.02)
    assert decision.rank == 4
    first = decision.table[0]
    assert first.loss_ci is not None
    assert first.loss_ci[1] - first.loss_ci[0] > 0.1


def test_diverged_trials_put_their_learning_rate_out() -> None:
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


def test_each_rank_stands_at_its_own_best_rate() -> None:
    slow, fast = make_evidence([0.60, 0.55, 0.50, 0.50]), make_evidence([0.50, 0.50, 0.60, 0.70])
    evidence = pd.concat([slow.assign(learning_rate=1e-3), fast.assign(learning_rate=5e-3)])
    decision = select(evidence, margin=0.05)
    assert [row.learning_rate for row in decision.table] == [5e-3, 5e-3, 1e-3, 1e-3]
    assert decision.rank == 4
    # At either rate alone rank would seem to matter.
    assert select(slow, margin=0.05).rank != 4
    assert any("lowest learning rate" in caveat for caveat in decision.caveats)


def test_one_rate_and_one_seed_are_warned_of() -> None:
    caveats = " ".join(select(make_evidence([0.5, 0.5, 0.5, 0.5], seeds=1)).caveats)
    assert "Only one seed" in caveats
    assert "confounded" in caveats


def test_a_rate_of_its_own_for_each_rank_is_warned_of_unless_rates_were_searched() -> None:
    evidence = make_evidence([0.5, 0.5, 0.5, 0.5])
    evidence["learning_rate"] = 1e-3 * 4 / evidence["rank"]
    (caveat,) = select(evidence).caveats
    assert "(rank 4 at 0.001, 8 at 0.0005, 16 at 0.00025, 32 at 0.000125)" in caveat
    assert "confounded" in caveat
    # One rank that tried several is a sweep that searched: the ranks between take theirs from a line.
    tried = evidence[(evidence["rank"] == 4) & (evidence["seed"] == 0)]
    worse = [tried.assign(learning_rate=rate, loss=tried["loss"] + 0.1) for rate in (5e-4, 2e-3)]
    assert select(pd.concat([evidence, *worse])).caveats == ()


def test_a_score_that_contradicts_the_loss_is_reported() -> None:
    evidence = make_evidence([0.5, 0.5, 0.5, 0.5], examples=2000)
    evidence["score"] = np.where(
        evidence["rank"] == 32, 1.0, (evidence["example_id"] % 10 > 0).astype(float)
    )
    caveats = select(evidence).caveats
    assert any("rank 32 scores 0.1000 higher" in caveat for caveat in caveats)
    assert select(evidence, score_margin=0.2).confirmation.status == "confirms"  # type: ignore[union-attr]


def test_a_score_that_is_no_lower_is_called_so() -> None:
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


def test_ranks_that_learnt_nothing_are_not_chosen_from() -> None:
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


def test_a_rank_that_learnt_nothing_is_chosen_with_a_warning() -> None:
    chance = float(np.log(2))
    quiet = {"examples": 2000, "seed_noise": 0.0005, "example_noise": 0.05}
    words = "Rank 4 itself is not shown to get below"
    for gain, warned in ((0.0, True), (0.1, False)):
        losses = [chance + 0.001 - gain, *[chance - 0.01 - gain] * 3]
        decision = select(make_evidence(losses, **quiet), chance_loss=chance)
        assert decision.rank == 4
        assert any(words in caveat for caveat in decision.caveats) == warned


def test_rates_that_were_scored_on_other_examples_are_refused() -> None:
    evidence = make_evidence([0.5, 0.5, 0.5, 0.5])
    better = evidence.assign(learning_rate=2e-3, loss=evidence["loss"] - 0.1)
    both = pd.concat([evidence.assign(learning_rate=1e-3), better[better["example_id"] > 5]])
    with pytest.raises(
        RequestError, match="evidence of rank 4: its learning rates were not scored on the same"
    ):
        select(both)


def test_what_the_base_does_is_compared_example_by_example() -> None:
    """Examples differ by far more than is learnt, and every one of them gains."""
    generator = np.random.default_rng(0)
    base = pd.Series(np.linspace(1, 5, 10), index=range(100, 110))
    rows = [
        {
            "rank": rank,
            "seed": seed,
            "example_id": example,
            "loss": loss - 0.2 + 0.005 * generator.normal(),
        }
        for rank in (4, 8)
        for seed in range(2)
        for example, loss in base.items()
    ]
    evidence = pd.DataFrame(rows)
    assert select(evidence, chance_loss=float(base.mean())).verdict == "undetermined"
    assert select(evidence, chance_loss=base).rank == 4
    rounded = evidence.assign(
        loss=evidence["example_id"].map(base) - 1e-6 * generator.random(len(evidence))
    )
    assert (
        select(rounded, chance_loss=base).verdict == "undetermined"
    )  # a millionth may be rounding
    with pytest.raises(RequestError, match="chance_loss: 2 of 10 held-out examples have none"):
        select(evidence, chance_loss=base.iloc[2:])


def test_the_largest_rank_is_said_to_be_the_largest() -> None:
    assert any("try 64" in caveat for caveat in select(make_evidence([0.9, 0.8, 0.7, 0.5])).caveats)
    assert not any(
        "try 64" in caveat for caveat in select(make_evidence([0.9, 0.8, 0.5, 0.5])).caveats
    )


def test_a_loss_of_which_more_is_better_is_refused() -> None:
    with pytest.raises(RequestError, match="higher_is_better true"):
        select(make_evidence([0.5] * 4), higher_is_better=True)
    with pytest.raises(RequestError, match="evidence None: allowed is a pandas DataFrame"):
        select(None)  # type: ignore[arg-type]


def test_rows_may_come_in_any_order() -> None:
    evidence = make_evidence([0.52, 0.51, 0.50, 0.50])
    assert select(evidence) == select(evidence.sample(frac=1, random_state=0))


def test_a_rank_with_fewer_seeds_is_compared_on_those_it_has() -> None:
    evidence = make_evidence([0.5, 0.5, 0.5, 0.5], examples=2000)
    decision = select(evidence[(evidence["rank"] != 4) | (evidence["seed"] < 2)])
    assert decision.table[0].seeds == 2
    assert decision.rank == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e.drop(columns="rank"), "lacks the column rank; it has: seed, example_id"),
        (
            lambda e: e.rename(columns={"loss": "los"}),
            r"'loss' is not in the evidence \(did you mean 'los'\?\)",
        ),
        (
            lambda e: e.assign(rank=e["rank"] + 0.5),
            r"rank 4.5, 8.5, 16.5, 32.5 in 6000 of 6000 rows",
        ),
        (lambda e: e[e["rank"] == 4], "holds 1 rank; at least two"),
        (
            lambda e: e.assign(loss=np.where(e.index == 7, np.inf, e["loss"])),
            r"loss inf in 1 of 6000 rows \(row 7\)",
        ),
        (lambda e: pd.concat([e, e.head(1)]), "1 rows repeat"),
        (
            lambda e: e[(e["rank"] != 4) | (e["seed"] != 1) | (e["example_id"] < 100)],
            "rank 4: its seeds were not scored",
        ),
        (
            lambda e: e[(e["rank"] != 4) | (e["example_id"] < 100)],
            "ranks 4 and 8 were not scored on the same",
        ),
    ],
)
def test_evidence_that_cannot_serve(change, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RequestError, match=words):
        select(change(make_evidence([0.5, 0.5, 0.5, 0.5])))


@pytest.mark.parametrize(
    "settings",
    [
        {"margin": -0.1},
        {"margin": np.nan},
        {"confidence": 0},
        {"confidence": 1.2},
        {"chance_loss": -1},
    ],
)
def test_settings_that_cannot_be(settings: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(settings))):
        select(make_evidence([0.5, 0.5, 0.5, 0.5]), **settings)


def test_the_decision_is_plain_json() -> None:
    content = json.loads(
        json.dumps(select(make_evidence([0.5, 0.5, 0.5, 0.5])).as_dict(), allow_nan=False)
    )
    assert {
        "verdict", "rank", "metric", "margin", "confidence", "answer", "evidence", "caveats", "next",
        "table",
    } <= set(content)  # fmt: skip
    assert {
        "rank", "seeds", "loss_mean", "loss_ci", "score_mean", "score_ci", "trainable_params", "adapter_bytes",
        "train_seconds", "peak_memory_bytes", "worst_difference", "non_inferior", "gain_over_previous",
    } <= set(content["table"][0])  # fmt: skip


class TestBestLearningRate:
    def rates(
        self, losses: dict[float, list[float]], seeds: dict[float, list[int]] | None = None
    ) -> pd.DataFrame:
        rows = [
            {
                "learning_rate": rate,
                "seed": seed,
                "example_id": i,
                "loss": loss,
                "diverged": not np.isfinite(loss),
            }
            for rate, values in losses.items()
            for seed in (seeds or {}).get(rate, [0])
            for i, loss in enumerate(values)
        ]
        return pd.DataFrame(rows)

    def test_the_lowest_loss(self) -> None:
        assert (
            best_learning_rate(self.rates({1e-3: [0.6, 0.7], 2e-3: [0.3, 0.41], 4e-3: [0.5, 0.6]}))
            == 2e-3
        )

    def test_the_smaller_of_two_that_cannot_be_told_apart(self) -> None:
        assert (
            best_learning_rate(self.rates({1e-3: [0.2, 0.9, 0.5], 2e-3: [0.9, 0.1, 0.5]})) == 1e-3
        )

    def test_a_rate_that_diverged_is_out(self) -> None:
        assert best_learning_rate(self.rates({1e-3: [0.6, 0.7], 2e-3: [np.nan]})) == 1e-3
        assert best_learning_rate(self.rates({2e-3: [np.nan]})) is None

    def test_aggregates_without_a_common_seed_are_judged_by_their_means(self) -> None:
        assert (
            best_learning_rate(self.rates({1e-4: [0.9], 1e-3: [0.5]}, {1e-4: [0], 1e-3: [1]}))
            == 1e-3
        )

    def test_of_rates_that_cannot_be_told_apart_the_one_with_more_seeds(self) -> None:
        alike = {1e-3: [0.5, 0.7], 2e-3: [0.7, 0.5]}
        assert best_learning_rate(self.rates(alike, {1e-3: [0], 2e-3: [0, 1, 2]})) == 2e-3
        assert best_learning_rate(self.rates(alike)) == 1e-3

    def test_only_seeds_that_every_rate_has_count(self) -> None:
        both = self.rates({1e-3: [0.6, 0.62], 2e-3: [0.5, 0.51]}, {1e-3: [0], 2e-3: [0, 1]})
        both.loc[both["seed"] == 1, "loss"] = 0.9
        assert best_learning_rate(both) == 2e-3
