"""Power: what would settle an open question, and which margin the evidence can resolve."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
import scipy

from rankwise.decide.clearing import Pairs, step_down
from rankwise.decide.decision import Next
from rankwise.decide.pairwise import Comparison, Difference
from rankwise.decide.seed_prior import seed_prior
from rankwise.decide.variance import Spread

MOST_SEEDS = 8  # an offer asks for no more seeds: few would run them
MOST_TIMES = 4  # nor for more than this many times the held-out examples
GOOD_CHANCES = (0.5, 0.8)  # an offer is the smallest step that settles the question so often
LEAST_CHANCE = 0.1  # a step that settles the question less often is not offered
MOST_OFFERS = 3
DRAWS = 400
POWER = 0.8


class _Step(NamedTuple):
    """More evidence: seeds of some ranks in all, or a multiple of the held-out examples."""

    ranks: tuple[int, ...]
    seeds: int
    times: int


def next_steps(
    comparison: Comparison,
    recommended: int,
    margin: float,
    confidence: float,
    seconds: Mapping[int, float | None],
) -> list[Next]:
    """Return steps that may select a rank, those that bring most for a minute first.

    The chance of each is found by drawing the evidence that the step would add, given the evidence
    so far: ranks differ as they were seen to, give or take the error of what was seen.

    Args:
        comparison: the ranks compared in the metric that decides.
        recommended: the rank to use for now.
        margin: margin of the decision.
        confidence: confidence of the decision.
        seconds: training time of one trial of each rank, None where that is not known.
    """
    if len(comparison.ranks) < 2:
        return []
    forecast = _Forecast(comparison, margin, confidence)
    offers: list[Next] = []
    for steps in _ladders(forecast, recommended):
        ladder = [_offer(forecast, step, seconds) for step in steps]
        for good in GOOD_CHANCES:
            offers += [offer for offer in ladder if (offer.probability or 0) >= good][:1]
        best = max(ladder, key=lambda offer: offer.probability or 0)
        if LEAST_CHANCE <= (best.probability or 0) < GOOD_CHANCES[0]:
            offers.append(best)
    offers = list(dict.fromkeys(offers))
    offers.sort(key=lambda offer: -_worth(comparison, offer))
    return offers[:MOST_OFFERS]


def detectable_difference(comparison: Comparison, confidence: float) -> float | None:
    """Return the smallest margin at which this evidence would clear a rank that equals the best.

    It would do so with a probability of `POWER`, for the pair of ranks that is known least well:
    the distance of its bound plus Student's quantile. None if the noise is not known.
    """
    ranks = comparison.ranks
    if len(ranks) < 2 or not comparison.noise_is_known:
        return None
    pairs = [comparison.difference(*pair) for pair in combinations(ranks, 2)]
    return max(_reach(pair, len(ranks) - 1, confidence) - pair.mean for pair in pairs)


def _reach(pair: Difference, comparisons: int, confidence: float) -> float:
    """Return what the upper bound of a difference stays below with a probability of `POWER`."""
    shortfall = min(
        spread.half_width(lambda df: float(scipy.stats.t.ppf(POWER, df))) for spread in pair.spreads
    )
    return pair.upper(comparisons, confidence) + shortfall


def _ladders(forecast: "_Forecast", recommended: int) -> Iterator[list[_Step]]:
    """Yield series of growing steps: seeds of the ranks that matter, of all, and examples."""
    comparison = forecast.comparison
    ranks = comparison.ranks
    matter = tuple(sorted([recommended, *forecast.rivals(recommended)]))
    now = max(len(comparison.seeds[rank]) for rank in ranks)
    if not comparison.fixed_seeds:
        for some in dict.fromkeys((matter, tuple(ranks))):
            least = min(len(comparison.seeds[rank]) for rank in some)
            yield [_Step(some, seeds, 1) for seeds in range(max(2, least + 1), MOST_SEEDS + 1)]
    if comparison.values[ranks[0]].shape[1] > 1:
        yield [_Step(tuple(ranks), now, times) for times in (2, MOST_TIMES)]


def _offer(forecast: "_Forecast", step: _Step, seconds: Mapping[int, float | None]) -> Next:
    chance, rank = forecast.chance(step)
    comparison = forecast.comparison
    examples = comparison.values[comparison.ranks[0]].shape[1]
    return Next(
        action="seeds" if step.times == 1 else "examples",
        ranks=step.ranks,
        seeds=step.seeds,
        held_out_examples=examples * step.times,
        margin=forecast.margin,
        rank=rank,
        probability=chance,
        estimated_seconds=_seconds(comparison, step, seconds),
    )


def _seconds(
    comparison: Comparison, step: _Step, seconds: Mapping[int, float | None]
) -> float | None:
    """Return the training time of a step; None if times are not known."""
    total = 0.0
    for rank in step.ranks:
        time = seconds.get(rank)
        if time is None:
            return None
        total += time * max(0, step.seeds - len(comparison.seeds[rank]))
    return total


def _worth(comparison: Comparison, offer: Next) -> float:
    """Return the chance per minute of training, or per trial where times are not known."""
    trials = sum(max(0, offer.seeds - len(comparison.seeds[rank])) for rank in offer.ranks)
    cost = trials if offer.estimated_seconds is None else offer.estimated_seconds / 60
    # New examples need no training, but must be found; they count as a trial of each rank.
    return (offer.probability or 0.0) / (cost or len(offer.ranks))


class _Forecast:
    """Draws the evidence that a step would add, and counts how often a rank is then selected."""

    def __init__(self, comparison: Comparison, margin: float, confidence: float) -> None:
        self.comparison, self.margin, self.confidence = comparison, margin, confidence
        ranks = comparison.ranks
        self.pairs = Pairs(ranks, comparison.differences())
        by_example = np.stack([comparison.values[rank].mean(0) for rank in ranks])  # (R, N)
        count = by_example.shape[1]
        self.examples = np.zeros((len(ranks),) * 2)  # covariance of the means over examples
        if count > 1:
            self.examples = np.atleast_2d(np.cov(by_example)) / count
        self.own, self.own_df = comparison.variance.own, comparison.variance.own_df
        if not self.own_df and not comparison.fixed_seeds:
            # One seed shows nothing of seeds, so the forecast takes what other tasks show.
            loss = float(np.abs(by_example.mean()))
            self.own, self.own_df = seed_prior().moderate(0.0, 0.0, loss)

    def rivals(self, rank: int) -> list[int]:
        """Return the ranks against which a rank is not cleared."""
        ranks = self.comparison.ranks
        widths = self.pairs.half_widths(self.confidence)
        reached = step_down(self.pairs.means, widths)[0, ranks.index(rank)]  # (R,)
        return [other for other, one in zip(ranks, reached, strict=True) if one > self.margin]

    def chance(self, step: _Step) -> tuple[float, int | None]:
        """Return the chance that a rank is selected after a step, and which one most often."""
        ranks = self.comparison.ranks
        generator = np.random.default_rng(0)
        shifts = self._shifts(step, generator)  # (draws, R)
        involved = np.isin(ranks, step.ranks)
        both = involved[:, None] & involved[None, :]
        moved = np.where(both, shifts[:, :, None] - shifts[:, None, :], 0.0)
        means = self.pairs.means + moved  # (draws, R, R)
        differences = self.comparison.differences()
        for pair, difference in differences.items():
            if set(pair) <= set(step.ranks):
                differences[pair] = self._after(difference, step)
        widths = Pairs(ranks, differences).half_widths(self.confidence)  # (1, M, R, R)
        cleared = step_down(means, widths).max(-1) <= self.margin  # (draws, R)
        selected = cleared.any(1)
        if not selected.any():
            return 0.0, None
        smallest = np.bincount(cleared[selected].argmax(1), minlength=len(ranks))
        return float(selected.mean()), ranks[int(smallest.argmax())]

    def _shifts(self, step: _Step, generator: np.random.Generator) -> np.ndarray:
        """Draw how far each rank's mean moves, (draws, R)."""
        ranks = self.comparison.ranks
        normal = generator.standard_normal((DRAWS, len(ranks)))
        if step.times > 1:
            values, vectors = np.linalg.eigh(self.examples * (1 - 1 / step.times))
            return normal @ (vectors * np.sqrt(values.clip(min=0))).T
        now = np.array([len(self.comparison.seeds[rank]) for rank in ranks])
        more = np.maximum(step.seeds - now, 0)
        # The mean of all seeds differs from that of the first by this variance, if the true mean
        # is only known from the first.
        return normal * np.sqrt(self.own * more / (now * (now + more)))

    def _after(self, pair: Difference, step: _Step) -> Difference:
        """Return a difference with the spread that it would have after a step."""
        return replace(
            pair,
            spread=self._spread(pair.spread, pair, step),
            moderated=pair.moderated and self._spread(pair.moderated, pair, step),
        )

    def _spread(self, spread: Spread, pair: Difference, step: _Step) -> Spread:
        if step.times > 1:
            return spread.scaled(1, step.times, spread.seeds_df)
        if not spread.seeds_df and self.own_df:
            spread = replace(spread, seeds=2 * self.own / pair.seeds, seeds_df=self.own_df)
        factor = max(1.0, step.seeds / pair.seeds)
        more = (len(step.ranks) - 1) * max(0, step.seeds - pair.seeds)
        return spread.scaled(factor, 1, spread.seeds_df + more)
