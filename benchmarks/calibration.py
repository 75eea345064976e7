"""How often the decision is wrong, and how often it decides, by simulation with a known truth.

    python benchmarks/calibration.py [--replications 1000]

Evidence is drawn as crossed noise around known true losses: effects of an example on all ranks
and on each, effects of a seed on all ranks and on each, and a residual (`benchmarks.scenarios`). A
rank is wrong if its true loss exceeds the best by more than the margin. The tables show, in per
cent:

1. how often a rank is selected, how often a wrong one (at most 5 %, up to Monte Carlo error) and
   how often the smallest right one; the same for the rule before (all bounds at once, with
   Dunnett's value for all ranks, and no prior) and for three rules that always choose: the best
   mean, one standard error (Breiman et al. 1984, section 3.4.3) and kneedle (Satopaa et al. 2011);
2. the tasks of ``benchmarks/results/strategies.json``, drawn anew from what was measured there: how
   often a rank is selected, how often a wrong one is selected or recommended, and how much loss the
   recommended rank costs, beside always rank 8, always rank 16 and the best mean;
3. whether the confidence given for the recommended rank is reached, where no rank is selected;
4. ``--strategy race``, which looks at the evidence after every seed from the second on.

In the scenarios with a search, some ranks try several learning rates with the first seed, all
equally good in truth, and use the one that rankwise takes. Ranks that try a single rate have no
such luck.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from kneed import KneeLocator

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the package benchmarks

from benchmarks.scenarios import (
    CONFIDENCE,
    MARGIN,
    RACES,
    SCENARIOS,
    Scenario,
    draw,
    recorded_tasks,
)
from rankwise import select
from rankwise.decide.clearing import Clearing
from rankwise.decide.findings import smallest_of_the_surest
from rankwise.decide.pairwise import Comparison
from rankwise.decide.seed_prior import seed_prior
from rankwise.strategies.race import FIRST_LOOK

BANDS = ((0.0, 0.5), (0.5, 0.65), (0.65, 0.75), (0.75, 0.85), (0.85, 0.95))


@dataclass
class Choice:
    """What rankwise decides on one draw, as `rankwise.select` does."""

    selected: int | None
    recommended: int
    confidence: float


@dataclass
class Claims:
    """The confidence given for each recommended rank that was not selected, and if it was right."""

    confidences: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)


def compare(values: dict[int, np.ndarray], prior: bool = True) -> Comparison:
    """Compare ranks by their losses, (S, N) each."""
    seeds = {rank: range(len(losses)) for rank, losses in values.items()}
    return Comparison(values, seeds, prior=seed_prior() if prior else None)


def select_rank(comparison: Comparison, confidence: float = CONFIDENCE) -> int | None:
    """Select the smallest rank that is cleared."""
    bounds = Clearing([comparison]).bounds(confidence)
    return min((rank for rank, bound in bounds.items() if bound.upper <= MARGIN), default=None)


def rankwise_choice(values: dict[int, np.ndarray]) -> Choice:
    """Choose as `rankwise.select` does."""
    comparison = compare(values)
    selected = select_rank(comparison)
    if selected is not None:
        return Choice(selected, selected, CONFIDENCE)
    confidences = Clearing([comparison]).confidences(MARGIN)
    recommended = smallest_of_the_surest(confidences)
    return Choice(None, recommended, confidences[recommended])


def former_choice(values: dict[int, np.ndarray]) -> int | None:
    """Choose by the rule before: bounds that hold for all ranks at once, and no prior."""
    comparison = compare(values, prior=False)
    count = len(comparison.ranks) - 1
    for rank in comparison.ranks:
        pairs = (comparison.difference(rank, other) for other in comparison.others(rank))
        if max(pair.upper(count, CONFIDENCE) for pair in pairs) <= MARGIN:
            return rank
    return None


def race_choice(values: dict[int, np.ndarray]) -> tuple[int | None, int]:
    """Choose as `rankwise.strategies.race` does; return the choice and the trials that it took."""
    most = min(len(losses) for losses in values.values())
    confidence = 1 - (1 - CONFIDENCE) / max(1, most - FIRST_LOOK + 1)
    racing = list(values)
    seen: dict[int, np.ndarray] = {}
    choice = None
    for seeds in range(FIRST_LOOK, most + 1):
        seen.update({rank: values[rank][:seeds] for rank in racing})
        comparison = compare(dict(sorted(seen.items())))
        choice = select_rank(comparison, confidence)
        racing = [
            rank for rank in racing if not comparison.is_shown_worse(rank, MARGIN, confidence)
        ]
        if choice is not None or len(racing) < 2:
            break
    return choice, sum(len(losses) for losses in seen.values())


def best_mean(values: dict[int, np.ndarray]) -> int:
    """Choose the best mean."""
    return min(values, key=lambda rank: float(values[rank].mean()))


def one_standard_error(values: dict[int, np.ndarray]) -> int:
    """Choose the smallest rank within one standard error of the best mean."""
    best = values[best_mean(values)]
    units = best.mean(0) if best.shape[1] > 1 else best[:, 0]
    limit = best.mean() + (units.std(ddof=1) / np.sqrt(len(units)) if len(units) > 1 else 0.0)
    return next(rank for rank, losses in values.items() if losses.mean() <= limit)


def kneedle(values: dict[int, np.ndarray]) -> int | None:
    """Choose the knee of the mean over log rank, if there is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        means = [float(losses.mean()) for losses in values.values()]
        knee = KneeLocator(
            np.log2(list(values)), means, curve="convex", direction="decreasing"
        ).knee
    return None if knee is None else round(2**knee)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table in Markdown, numbers to the right."""
    print(f"| {' | '.join(header)} |\n|---|{' ---: |' * (len(header) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)
    print()


def percents(shares: Iterable[float]) -> list[str]:
    """Write shares in per cent with one digit."""
    return [f"{100 * share:.1f}" for share in shares]


def print_scenarios(replications: int, claims: Claims) -> None:
    """Print a row for each scenario, and the means over all; collect the claims."""
    header = ["scenario", "selected", "wrong", "smallest right", "coverage"]
    for rule in ("rule before", "best mean", "one SE", "kneedle"):
        header += [f"{rule}: {what}" for what in ("selected", "wrong", "smallest right")]
    header = [name for name in header if not name.endswith(("mean: selected", "SE: selected"))]
    rows, figures = [], []
    for number, scenario in enumerate(SCENARIOS):
        generator = np.random.default_rng([2026, number])
        shares = simulate(scenario, scenario.replications * replications, generator, claims)
        figures.append(shares)
        name = scenario.name if scenario.assumed else f"({scenario.name})"
        rows.append([name, *percents(shares)])
    rows.append(["mean", *percents(np.mean(figures, axis=0))])
    limit = 1 - CONFIDENCE + 3 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / replications)
    print(
        f"{replications} replications each, in some a multiple; margin {MARGIN}, confidence "
        f"{CONFIDENCE:.0%}; per cent. Wrong choices are to stay below 5 %, which is below "
        f"{limit:.1%} up to Monte Carlo error. In brackets: the model that the intervals assume "
        "does not hold.\n"
    )
    print_table(header, rows)


def simulate(
    scenario: Scenario, replications: int, generator: np.random.Generator, claims: Claims
) -> np.ndarray:
    """Return shares: selected, wrong, smallest right, coverage, and those of the other rules."""
    truth = dict(zip(scenario.ranks, scenario.losses, strict=True))
    right = scenario.right

    def judge(choice: int | None) -> list[float]:
        return [choice is not None, choice is not None and choice not in right, choice == right[0]]

    rows = []
    for _ in range(replications):
        values = draw(scenario, generator)
        choice = rankwise_choice(values)
        if choice.selected is None and scenario.assumed:
            claims.confidences.append(choice.confidence)
            claims.right.append(choice.recommended in right)
        comparison = compare(values, prior=False)
        intervals = {rank: comparison.mean_interval(rank, CONFIDENCE) for rank in truth}
        covered = np.mean([low <= truth[rank] <= high for rank, (low, high) in intervals.items()])
        row: list[float] = [*judge(choice.selected), float(covered)]
        row += judge(former_choice(values))
        row += judge(best_mean(values))[1:] + judge(one_standard_error(values))[1:]
        rows.append(row + judge(kneedle(values)))
    return np.mean(rows, axis=0)


def print_tasks(scenarios: Sequence[Scenario], replications: int, claims: Claims) -> None:
    """Print a row for each recorded task: verdicts, and the loss that each rule costs."""
    rows = []
    for number, scenario in enumerate(scenarios):
        generator = np.random.default_rng([2026, 2000 + number])
        truth = dict(zip(scenario.ranks, scenario.losses, strict=True))
        least, right = min(truth.values()), scenario.right
        shares, costs = [], []
        for _ in range(replications):
            values = draw(scenario, generator)
            choice = rankwise_choice(values)
            if choice.selected is None:
                claims.confidences.append(choice.confidence)
                claims.right.append(choice.recommended in right)
            former = former_choice(values)
            shares.append(
                [
                    choice.selected is not None,
                    choice.selected is not None and choice.selected not in right,
                    choice.recommended not in right,
                    former is not None,
                    former is not None and former not in right,
                ]
            )
            costs.append([truth[rank] - least for rank in (choice.recommended, best_mean(values))])
        always = [truth[rank] - least for rank in (8, 16)]
        figures = [f"{cost:.4f}" for cost in (*np.mean(costs, axis=0), *always)]
        rows.append([scenario.name, *percents(np.mean(shares, axis=0)), *figures])
    header = ["task", "selected", "wrong", "recommended is wrong", "rule before: selected"]
    header += ["rule before: wrong", "recommended: cost", "best mean: cost"]
    print("Tasks as recorded: per cent, and the cost in nats above the best rank's true loss.\n")
    print_table([*header, "always 8: cost", "always 16: cost"], rows)


def print_claims(claims: Claims) -> None:
    """Print how often a recommended rank was right, by the confidence given for it."""
    confidences, right = np.array(claims.confidences), np.array(claims.right)
    rows = []
    for low, high in BANDS:
        inside = (low <= confidences) & (confidences < high)
        if inside.any():
            band = f"{low:.0%} to {high:.0%}"
            shares = percents([confidences[inside].mean(), right[inside].mean()])
            rows.append([band, f"{inside.sum():,}", *shares])
    print(
        "Recommended where nothing is selected: the confidence given, and how often it is right.\n"
    )
    print_table(["confidence given", "decisions", "mean confidence, %", "right, %"], rows)


def print_races(replications: int) -> None:
    """Print a row for each scenario: the race, and the decision from all seeds."""
    rows = []
    for number, scenario in enumerate(RACES):
        generator = np.random.default_rng([2026, 1000 + number])
        figures, right = [], scenario.right
        for _ in range(scenario.replications * replications):
            values = draw(scenario, generator)
            raced, trials = race_choice(values)
            share = trials / sum(len(losses) for losses in values.values())
            row: list[float] = [share]
            for choice in (raced, rankwise_choice(values).selected):
                row += [
                    choice is not None,
                    choice is not None and choice not in right,
                    choice == right[0],
                ]
            figures.append(row)
        rows.append([scenario.name, *percents(np.mean(figures, axis=0))])
    header = ["race", "trials of all", "selected", "wrong", "smallest right"]
    header += [f"at the end: {what}" for what in header[2:]]
    print("Looking after every seed, and once at the end; per cent.\n")
    print_table(header, rows)


def print_time() -> None:
    """Print how long a large decision takes."""
    generator = np.random.default_rng(0)
    ranks, seeds, examples = [2**power for power in range(8)], range(10), range(10_000)
    index = pd.MultiIndex.from_product(
        [ranks, seeds, examples], names=["rank", "seed", "example_id"]
    )
    evidence = pd.DataFrame(
        {"loss": generator.normal(0.5, 0.3, len(index)), "score": 1.0}, index=index
    ).reset_index()
    start = time.perf_counter()
    select(evidence)
    duration = time.perf_counter() - start
    print(f"8 ranks x 10 seeds x 10,000 examples: a decision takes {duration:.2f} s")


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replications", type=int, default=1000)
    options = parser.parse_args()
    claims = Claims()
    print_scenarios(options.replications, claims)
    tasks = [task for seeds in (1, 2, 3) for task in recorded_tasks(seeds)]
    print_tasks(tasks, options.replications, claims)
    print_claims(claims)
    print_races(options.replications)
    print_time()


if __name__ == "__main__":
    main()
