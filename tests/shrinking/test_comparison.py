"""The course of one adapter, with losses that are made up, so that the truth is known."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankwise.errors import RequestError
from rankwise.lora.adapter import Adapter, factor_pairs
from rankwise.shrinking.comparison import Comparison
from rankwise.shrinking.config import ShrinkConfig
from rankwise.shrinking.cuts import Cut, decompose, make_cuts
from rankwise.shrinking.outcome import Healing

COSTS = {8: 0.0, 4: 0.001, 2: 0.2, 1: 0.3, 0: 1.0}  # above the adapter's loss, by rank


class MadeUp:
    """A scorer with known mean losses; it notes which ranks were scored on which examples."""

    def __init__(self, costs: dict[int, float], examples: int = 1000, noise: float = 0.05) -> None:
        self.costs, self.noise = costs, noise
        self.examples = range(examples)
        self.name, self.passes, self.seconds = "fused", 0, 0.0
        self.base = SimpleNamespace(objective=SimpleNamespace(unit="nats per token"))
        self.calls: list[tuple[list[int], int, int]] = []

    def score(self, adapters: list[Adapter], start: int, stop: int) -> list[pd.DataFrame]:
        shared = np.random.default_rng(start).exponential(0.5, stop - start)
        frames, ranks = [], []
        for adapter in adapters:
            pairs = factor_pairs(adapter)
            is_empty = all(bool((pair.b == 0).all()) for pair in pairs)
            rank = 0 if is_empty else max(pair.rank for pair in pairs)
            ranks.append(rank)
            own = self.noise * (-1.0) ** np.arange(stop - start)  # its mean is 0
            loss = shared + own * (rank != 8) + self.costs[rank]
            frames.append(pd.DataFrame({"loss": loss, "score": 0.5}))
        self.calls.append((ranks, start, stop))
        self.passes += len(adapters) * (stop - start)
        return frames


class MadeUpHealer:
    """A healer whose adapters have rank 3, by which `MadeUp` knows them."""

    def __init__(self, lm: Path) -> None:
        (self.cut,) = make_cuts(decompose(lm / "adapter"), [3])
        self.asked: list[int] = []

    def heal(self, cut: Cut) -> tuple[Cut, Healing]:
        self.asked.append(cut.rank)
        healing = Healing(
            rank=cut.rank,
            steps=9,
            learning_rate=1e-3,
            rates=(1e-3,),
            examples=72,
            shared=0,
            seconds=1.0,
        )
        return replace(cut, adapter=self.cut.adapter, healed=True), healing


def compare(
    lm: Path, scorer: Any, chance: float | None = None, healer: Any = None, **settings: Any
) -> Comparison:
    config = ShrinkConfig(adapters=(lm / "adapter",), **settings)
    comparison = Comparison(decompose(lm / "adapter"), config, scorer, chance, healer)
    comparison.run()
    return comparison


def test_the_smallest_rank_that_holds_is_found_and_scoring_stops_early(lm: Path) -> None:
    scorer = MadeUp(COSTS)
    decision, handed = compare(lm, scorer).decide(Path("here"))
    assert (decision.verdict, decision.rank) == ("smaller", 4)
    assert [cut.rank for cut in handed] == [4]
    assert [row.outcome for row in decision.table] == [
        "itself", "within", "worse", "not asked", "not asked",
    ]  # fmt: skip
    assert decision.examples < 1000
    assert decision.passes < 0.3 * 5 * 1000
    assert "Rank 4 of 8 is enough" in decision.answer


def test_ranks_that_are_settled_are_scored_no_more(lm: Path) -> None:
    scorer = MadeUp({**COSTS, 2: 0.018}, noise=0.1)  # rank 2 is close to the margin
    compare(lm, scorer)
    first, last = scorer.calls[0], scorer.calls[-1]
    assert first[0] == [8, 0, 4, 2, 1] and first[1:] == (0, 128)
    assert last[0] == [8, 2]
    assert [call[1] for call in scorer.calls[1:]] == [call[2] for call in scorer.calls[:-1]]


def test_an_open_rank_is_not_taken_and_the_examples_it_needs_are_named(lm: Path) -> None:
    scorer = MadeUp({**COSTS, 2: 0.018}, noise=0.1)
    decision, _ = compare(lm, scorer).decide(Path("here"))
    assert decision.rank == 4
    assert next(row for row in decision.table if row.rank == 2).outcome == "open"
    assert any("held-out examples would show that rank 2" in each for each in decision.caveats)


def test_no_cut_holds(lm: Path) -> None:
    decision, handed = compare(lm, MadeUp({**COSTS, 4: 0.3})).decide(Path("here"))
    assert (decision.verdict, decision.rank, handed) == ("keep", 8, [])
    assert decision.answer.startswith("Keep rank 8")


@pytest.mark.parametrize("empty", [0.0, -0.5])
def test_an_adapter_that_learnt_nothing_is_said_so(lm: Path, empty: float) -> None:
    decision, handed = compare(lm, MadeUp({**COSTS, 0: empty})).decide(Path("here"))
    assert (decision.verdict, decision.rank, handed) == ("nothing-learnt", None, [])


def test_an_adapter_no_better_than_guessing_learnt_nothing(lm: Path) -> None:
    decision, _ = compare(lm, MadeUp(COSTS), chance=0.4).decide(Path("here"))
    assert decision.verdict == "nothing-learnt"


def test_a_margin_above_the_adapters_gain_is_refused(lm: Path) -> None:
    with pytest.raises(RequestError, match=r"margin 5: the adapter gains only 1 .*nats per token"):
        compare(lm, MadeUp(COSTS), margin=5.0)


def test_losses_that_are_not_finite_are_refused_for_the_adapter_and_count_as_worse_for_a_cut(
    lm: Path,
) -> None:
    with pytest.raises(RequestError, match="own losses are not finite"):
        compare(lm, MadeUp({**COSTS, 8: float("nan")}))
    decision, _ = compare(lm, MadeUp({**COSTS, 2: float("inf")})).decide(Path("here"))
    assert decision.rank == 4


def test_ranks_for_each_layer_share_the_error(lm: Path) -> None:
    scorer = MadeUp({**COSTS, **dict.fromkeys((3, 5, 6, 7), 0.001)})
    comparison = compare(lm, scorer, per_layer=True)
    assert comparison.confidence == pytest.approx(0.975)
    decision, _ = comparison.decide(Path("here"))
    assert [row.rank for row in decision.table if row.per_layer] == [4, 2, 1]


def test_the_first_cut_that_fails_is_healed_and_judged_on_the_same_examples(lm: Path) -> None:
    scorer, healer = MadeUp({**COSTS, 3: 0.002}), MadeUpHealer(lm)
    comparison = compare(lm, scorer, healer=healer)
    assert comparison.confidence == pytest.approx(0.975)  # both judgements share the error
    decision, handed = comparison.decide(Path("here"))
    assert healer.asked == [2]
    assert (decision.verdict, decision.rank) == ("smaller", 2)
    assert [(cut.rank, cut.healed) for cut in handed] == [(2, True)]
    assert [(row.rank, row.outcome) for row in decision.table] == [
        (8, "itself"), (4, "within"), (2, "worse"), (1, "not asked"), (2, "within"),
        (0, "not asked"),
    ]  # fmt: skip
    assert decision.chosen is not None and decision.chosen.healed
    assert next(call[1] for call in scorer.calls if 3 in call[0]) == 0
    assert "Rank 2 of 8 is enough after a short training" in decision.answer
    assert "9 steps at rank 2" in decision.evidence


@pytest.mark.parametrize(
    ("costs", "rank", "is_healed"),
    [
        ({3: 0.3}, 4, False),  # it fails as the cut did
        ({3: 0.018}, 4, False),  # it stays open
        ({2: 0.002, 1: 0.003, 3: 0.001}, 1, True),  # all hold, and it gains a little
        ({2: 0.002, 1: 0.003, 3: 0.004}, 1, False),  # all hold, and it gains nothing
        ({4: 0.3, 3: 0.3}, 8, False),
        ({4: 0.3, 3: 0.001}, 4, True),
    ],
)
def test_a_healed_cut_is_taken_where_it_holds(
    lm: Path, costs: dict[int, float], rank: int, is_healed: bool
) -> None:
    scorer = MadeUp({**COSTS, **costs}, noise=0.1)
    decision, handed = compare(lm, scorer, healer=MadeUpHealer(lm)).decide(Path("here"))
    assert decision.rank == rank
    assert decision.verdict == ("keep" if rank == 8 else "smaller")
    assert [cut.healed for cut in handed] == ([is_healed] if rank < 8 else [])
    assert decision.healing is not None and decision.healing.taken == is_healed


def test_nothing_is_healed_where_nothing_was_learnt(lm: Path) -> None:
    healer = MadeUpHealer(lm)
    decision, _ = compare(lm, MadeUp({**COSTS, 0: -0.5}), healer=healer).decide(Path("here"))
    assert healer.asked == [] and decision.healing is None
