"""What a decision says in sentences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rankwise.decide.evidence import RankResults
from rankwise.decide.pairwise import Comparison
from rankwise.decide.power import MOST_EXAMPLES, MOST_SEEDS
from rankwise.errors import some

NOTHING_WOULD = (
    f" Up to {MOST_SEEDS} seeds and {MOST_EXAMPLES} times the held-out examples would not settle it if the differences "
    "seen persist; a larger margin would."
)


@dataclass(frozen=True)
class Wording:
    """How sentences speak of a task's loss.

    Attributes:
        unit: of the loss.
        chance: what gives the loss that has to be beaten.
    """

    unit: str = "nats"
    chance: str = "guessing by the classes' shares"

    def name(self, metric: str) -> tuple[str, str, str]:
        """Return how a sentence names the metric, its unit, and the side that is worse."""
        return (
            ("held-out loss", f" {self.unit}", "above")
            if metric == "loss"
            else (metric, "", "worse than")
        )


PLAIN = Wording()


def wording_of(loss: str, chance: str) -> Wording:
    """Return the wording of a task whose loss is measured in this, ``nats per example``, and can be guessed so."""
    return Wording(loss.partition(" per ")[0], chance)


def why(
    rank: int,
    costs: Comparison,
    worst: tuple[float, int],
    metric: str,
    margin: float,
    confidence: float,
    wording: Wording,
    trained_at: int | None,
) -> str:
    """Say why a rank was selected; ``worst`` is its bound, and the rank that sets it."""
    answer = f"Train at rank {rank}"
    if trained_at is not None:
        answer = f"Keep rank {rank} of an adapter trained at rank {trained_at}"
    (name, unit, side), (bound, other) = wording.name(metric), worst
    return (
        f"{answer}: it is the smallest whose {name} is, with {confidence:.0%} confidence, at most {margin:.3g}{unit} "
        f"{side} that of every other rank tried ({', '.join(map(str, costs.ranks))}); the bound is {bound:+.4f}, "
        f"against rank {other}."
    )


def why_not(
    costs: Comparison,
    worst: dict[int, tuple[float, int]],
    metric: str,
    margin: float,
    confidence: float,
    wording: Wording,
) -> str:
    """Say why no rank was selected; ``worst`` holds each rank's bound, nothing where no noise is known."""
    if len(costs.ranks) < 2:
        return "Fewer than two ranks trained without diverging, so there is nothing to compare."
    if not worst and max(len(seeds) for seeds in costs.seeds.values()) > 1:
        return (
            "The ranks differ by the same with every seed, so nothing says how much that would vary: results may be "
            "copies or rounded. Keep results per example, run more seeds, or state the noise that you know."
        )
    if not worst:
        return (
            "There is a single number for each rank, and nothing says how much it would vary: run at least 2 seeds, "
            "keep results per example, or state the noise that you know."
        )
    (name, unit, side), rank = wording.name(metric), min(worst, key=lambda r: worst[r][0])
    bound, other = worst[rank]
    if not math.isfinite(bound):
        return "The ranks share no seed, and no rank has two, so that nothing says how much seeds vary: run at least 2."
    return (
        f"No rank is shown to be within {margin:.3g}{unit} of the best at {confidence:.0%} confidence: the nearest is "
        f"rank {rank}, whose {name} may be up to {bound:.4f}{unit} {side} rank {other}'s "
        f"(difference seen: {costs.difference(rank, other).mean:+.4f})."
    )


def why_nothing(losses: Comparison, above: dict[int, tuple[float, float]], wording: Wording) -> str:
    """Say that no rank is shown to have learnt anything; ``above`` is each rank's loss over guessing, and its bound."""
    rank = min(above, key=lambda r: above[r][1])
    loss, (difference, bound) = float(losses.values[rank].mean()), above[rank]
    chance = loss - difference
    return (
        f"No rank is shown to have learnt anything: the nearest is rank {rank}, whose held-out loss of "
        f"{loss:.4f} {wording.unit} may be up to {chance + bound:.4f}, and {wording.chance} gives {chance:.4f}."
    )


def learn_first(above: dict[int, tuple[float, float]], wording: Wording) -> str:
    """Say what may help where no rank is shown to have learnt anything."""
    if min(difference for difference, _ in above.values()) < 0:
        return (
            f"Some loss is below what {wording.chance} gives: more seeds or held-out examples may show it, longer "
            "training or other learning rates may make it clearer."
        )
    return (
        "Ranks can be compared once something is learnt: try other learning rates, lower ones where losses lie above "
        f"what {wording.chance} gives and higher ones where they do not move from it, more epochs or more training data."
    )


def less_than_the_margin(rank: int, margin: float, wording: Wording) -> str:
    """Say that the chosen rank is not shown to have learnt anything itself: others did, by less than the margin."""
    return (
        f"Rank {rank} itself is not shown to get below what {wording.chance} gives: it is chosen because others gain no "
        f"more than the margin of {margin:.3g}, which may be all that there is to learn; try a smaller margin."
    )


def larger_may_be_better(costs: Comparison, rank: int, margin: float) -> str | None:
    """Say that ranks above the chosen one may be better still: it is the largest, and better than the one before."""
    if rank != costs.ranks[-1] or len(costs.ranks) < 2:
        return None
    smaller = costs.ranks[-2]
    if costs.difference(smaller, rank).mean <= margin:
        return None
    return (
        f"Rank {rank} is the largest tried, and better than rank {smaller} by more than the margin: larger ranks may "
        f"be better still; try {2 * rank}."
    )


def warnings_of(
    all_runs: Sequence[RankResults],
    noise: float | None,
    trained_at: int | None,
    *,
    rates_differ: bool,
) -> list[str]:
    """Say what a reader should know before relying on the decision.

    Args:
        all_runs: ranks ascending.
        noise: that was stated.
        trained_at: the trained rank, where the others are cuts.
        rates_differ: whether some rates may be said to be better than others: not where nothing is learnt.
    """
    warnings: list[str] = []
    per_example = any(len(run.examples) > 1 for run in all_runs)
    if noise is None and per_example and max(len(run.seeds) for run in all_runs) == 1:
        warnings.append(
            "One seed only: the intervals cover the choice of held-out examples, not the luck of initial values and "
            "data order; run at least 2 seeds."
        )
    dead = [run.rank for run in all_runs if not run.seeds]
    if dead:
        warnings.append(
            f"Rank {some(dead)} diverged at every learning rate tried, with some seed, and is left out."
        )
    rates = {rate for run in all_runs for rate in run.rates}
    if trained_at is None and len(rates) > 1 and all(len(run.rates) == 1 for run in all_runs):
        each = ", ".join(f"{run.rank} at {run.rates[0]:g}" for run in all_runs)
        warnings.append(
            f"Each rank ran at one learning rate, and not all at the same (rank {each}): rank and learning rate are "
            "confounded, and what looks like an effect of rank may be one of the rate, unless each rate is the best of "
            "several tried for its rank (docs/learning-rate.md)."
        )
    if trained_at is None and len(rates) == 1 and len(all_runs) > 1:
        warnings.append(
            "One learning rate only, or none recorded: rank and learning rate are confounded. With lora_alpha = r a "
            "larger rank learns faster at the same rate, and what looks like an effect of rank may be one of the rate: "
            "on the built-in task, at one rate, rank 32 looked 0.17 nats better than rank 4, and 0.00 with each at its "
            "own (docs/learning-rate.md). Try several rates for each rank."
        )
    for run in all_runs if rates_differ else ():
        if len(run.rates) > 1 and run.learning_rate in (run.rates[0], run.rates[-1]):
            side, end = (
                ("below", "lowest") if run.learning_rate == run.rates[0] else ("above", "highest")
            )
            rate = f"the {end} learning rate tried for it ({run.learning_rate:g})"
            warnings.append(f"Rank {run.rank} is best at {rate}; try {side} it.")
    return warnings
