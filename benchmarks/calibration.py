"""How often the decision is wrong, and how often it decides, by simulation with a known truth.

    python benchmarks/calibration.py [--replications 1000]

Evidence is drawn as crossed noise around known true losses: effects of an example on all ranks
and on each, effects of a seed on all ranks and on each, and a residual. A rank is wrong if its
true loss exceeds the best by more than the margin. For each scenario the first table shows how
often rankwise selects a wrong rank (at most 5 %, up to Monte Carlo error), how often it selects
the smallest right rank, how often it is undetermined, and the coverage of the ranks' 95 %
intervals. Then follow the wrong and right choices of three rules that always choose: the best
mean, one standard error (Breiman et al. 1984, section 3.4.3) and kneedle (Satopaa et al. 2011).

A second table does the same for ``--strategy race``, which looks at the evidence after every seed
from the second on, and for a single look at all seeds.

In the scenarios with a search, some ranks try several learning rates with the first seed, all
equally good in truth, and use the one that rankwise takes. Ranks that try a single rate have no
such luck.
"""

import argparse
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from kneed import KneeLocator
from rich.console import Console
from rich.table import Table

from rankwise import select
from rankwise.decide import best_learning_rate
from rankwise.decide.pairwise import Comparison
from rankwise.strategies.race import FIRST_LOOK

MARGIN = 0.02
CONFIDENCE = 0.95
BEYOND = 0.5 + MARGIN * 1.001  # just beyond the margin above 0.5: a wrong choice is easiest there


@dataclass(frozen=True)
class Scenario:
    """True losses, and the noise of the evidence drawn from them.

    Attributes:
        name: name in the table.
        losses: true loss of each rank, ranks 4, 8, 16, ...
        seeds: number of seeds, for each rank or for all.
        examples: number of held-out examples; 1 for aggregates.
        seed_sd: effect of a seed on one rank alone, for each rank or for all.
        shared_sd: effect of a seed on all ranks alike.
        example_sd: effect of an example on one rank alone, and residual; the effect on all ranks
            alike is three times as large.
        tails: "normal", or "heavy" for log-normal noise of skewness 3.7, twice that of the losses
            on the built-in task.
        rates: number of learning rates that each rank tries with its first seed.
        replications: factor of the replications, for shares of wrong choices near their limit.
        assumed: whether the model behind the intervals holds; otherwise the row shows the harm.
    """

    name: str
    losses: tuple[float, ...]
    seeds: int | tuple[int, ...] = 3
    examples: int = 500
    seed_sd: float | tuple[float, ...] = 0.005
    shared_sd: float = 0.005
    example_sd: float = 0.1
    tails: str = "normal"
    rates: tuple[int, ...] | None = None
    replications: int = 1
    assumed: bool = True

    @property
    def ranks(self) -> list[int]:
        """4, 8, 16, ..."""
        return [4 * 2**power for power in range(len(self.losses))]

    @property
    def right(self) -> list[int]:
        """Ranks whose true loss is within the margin of the lowest."""
        pairs = zip(self.ranks, self.losses, strict=True)
        return [rank for rank, loss in pairs if loss <= min(self.losses) + MARGIN]


def plateau(at: int, of: int = 4, step: float = 0.04) -> tuple[float, ...]:
    """Fall by a step with each doubling until the plateau begins at the rank numbered ``at``."""
    return tuple(0.5 + step * max(0, at - index) for index in range(of))


SCENARIOS = (
    Scenario("flat", plateau(0)),
    Scenario("plateau from the 2nd rank", plateau(1)),
    Scenario("plateau from the 3rd rank", plateau(2)),
    Scenario("plateau from the 4th rank", plateau(3)),
    Scenario("slow climb", tuple(0.54 - 0.008 * index for index in range(6))),
    Scenario("best in the middle", (0.56, 0.52, 0.50, 0.52, 0.56)),
    Scenario("one rank just beyond the margin", (BEYOND, 0.5, 0.5, 0.5)),
    Scenario("all but one just beyond", (BEYOND,) * 3 + (0.5,)),
    Scenario("heavy-tailed losses", (BEYOND, 0.5, 0.5, 0.5), tails="heavy", example_sd=0.2),
    Scenario("heavy tails, few examples", (BEYOND, 0.5, 0.5, 0.5), tails="heavy", examples=60),
    Scenario("few examples (40)", (BEYOND, 0.5, 0.5, 0.5), examples=40),
    Scenario("aggregates, 5 seeds", (BEYOND, 0.5, 0.5, 0.5), seeds=5, examples=1, example_sd=0.0),
    Scenario(
        "1 seed, seeds do nothing", (BEYOND, 0.5, 0.5, 0.5), seeds=1, seed_sd=0.0, shared_sd=0.0
    ),
    Scenario("2 seeds", (BEYOND, 0.5, 0.5, 0.5), seeds=2),
    Scenario("5 seeds", (BEYOND, 0.5, 0.5, 0.5), seeds=5),
    Scenario("10 seeds", (BEYOND, 0.5, 0.5, 0.5), seeds=10),
    Scenario("seeds matter little", (BEYOND, 0.5, 0.5, 0.5), seed_sd=0.0005, shared_sd=0.0005),
    Scenario(
        "seeds matter much", (BEYOND, 0.5, 0.5, 0.5), seed_sd=0.03, shared_sd=0.0, example_sd=0.02
    ),
    Scenario("seeds matter, alike for all", (BEYOND, 0.5, 0.5, 0.5), shared_sd=0.05),
    Scenario("unequal seeds (2, 3, 5, 5)", (BEYOND, 0.5, 0.5, 0.5), seeds=(2, 3, 5, 5)),
    Scenario("3 ranks", (BEYOND, 0.5, 0.5)),
    Scenario("8 ranks", (BEYOND,) * 4 + (0.5,) * 4),
    *(
        Scenario(
            f"all but one, {ranks} ranks, 2 seeds",
            (BEYOND,) * (ranks - 1) + (0.5,),
            seeds=2,
            replications=4,
        )
        for ranks in (2, 3, 4)
    ),
    Scenario("the same, 2 ranks, noisier", (BEYOND, 0.5), seeds=2, seed_sd=0.01, replications=4),
    Scenario(
        "the same, 3 ranks, noisier", (BEYOND, BEYOND, 0.5), seeds=2, seed_sd=0.01, replications=4
    ),
    *(
        Scenario(
            f"search {'/'.join(map(str, rates))}, {seeds} seeds",
            (BEYOND, 0.5, BEYOND)[: len(rates)],
            seeds=seeds,
            seed_sd=0.01,
            example_sd=0.03,
            rates=rates,
            replications=2,
        )
        for rates, seeds in (((3, 1), 2), ((3, 1), 3), ((3, 1), 5), ((3, 1, 3), 2))
    ),
    Scenario(
        "small ranks noisier",
        (BEYOND, 0.5, 0.5, 0.5),
        seed_sd=(0.02, 0.01, 0.005, 0.005),
        assumed=False,
    ),
    Scenario("1 seed, seeds matter", (BEYOND, 0.5, 0.5, 0.5), seeds=1, seed_sd=0.01, assumed=False),
)

RACES = tuple(
    Scenario(
        f"{name}, up to {seeds} seeds",
        losses,
        seeds=seeds,
        seed_sd=sd,
        example_sd=0.03,
        replications=2,
    )
    for name, losses, sd in (
        ("one of two just beyond", (BEYOND, 0.5), 0.01),
        ("all but one of 4 just beyond", (BEYOND,) * 3 + (0.5,), 0.01),
        ("the same, seeds matter less", (BEYOND,) * 3 + (0.5,), 0.005),
        ("plateau from the 3rd rank", plateau(2), 0.01),
    )
    for seeds in (3, 6, 10)
)


def draw(scenario: Scenario, generator: np.random.Generator) -> dict[int, np.ndarray]:
    """Draw one sweep's losses: for each rank (S, N)."""
    counts = (
        (scenario.seeds,) * len(scenario.losses)
        if isinstance(scenario.seeds, int)
        else scenario.seeds
    )
    most, ranks, examples = max(counts), len(scenario.losses), scenario.examples

    def noise(*shape: int) -> np.ndarray:
        if scenario.tails == "normal":
            return generator.normal(size=shape)
        square = 0.8**2
        skewed = generator.lognormal(sigma=0.8, size=shape)
        return (skewed - np.exp(square / 2)) / np.sqrt((np.exp(square) - 1) * np.exp(square))

    own = np.reshape(scenario.seed_sd, (-1, 1, 1)) * generator.normal(size=(ranks, most, 1))
    alike = scenario.shared_sd * generator.normal(size=(1, most, 1))
    by_example = scenario.example_sd * (3 * noise(1, 1, examples) + noise(ranks, 1, examples))
    rest = scenario.example_sd * noise(ranks, most, examples)
    values = np.reshape(scenario.losses, (-1, 1, 1)) + own + alike + by_example + rest  # (R, S, N)
    for row, rates in enumerate(scenario.rates or ()):
        # Each rate is a separate trial; the effect of an example on the rank is the same in all.
        trials = np.reshape(scenario.seed_sd, (-1, 1))[
            row % np.size(scenario.seed_sd)
        ] * generator.normal(size=rates)
        again = scenario.example_sd * noise(rates, examples)  # (L, N)
        seen = values[row, 0] - own[row, 0] - rest[row, 0] + trials[:, None] + again  # (L, N)
        values[row, 0] = seen[rate_taken(seen)]
    return {rank: values[row, : counts[row]] for row, rank in enumerate(scenario.ranks)}


def rate_taken(losses: np.ndarray) -> int:
    """Return which of several rates, (L, N) ascending, a rank would be judged by."""
    if len(losses) == 1:
        return 0
    index = pd.MultiIndex.from_product(
        [range(len(losses)), range(losses.shape[1])], names=["learning_rate", "example_id"]
    )
    table = pd.DataFrame(
        {"loss": losses.ravel(), "seed": 0, "diverged": False}, index=index
    ).reset_index()
    return int(best_learning_rate(table) or 0)


def rankwise_choice(values: dict[int, np.ndarray]) -> tuple[int | None, Comparison]:
    """Choose as `rankwise.select` does."""
    comparison = Comparison(values, {rank: range(len(losses)) for rank, losses in values.items()})
    fit = [
        rank
        for rank in comparison.ranks
        if comparison.upper_bound(rank, CONFIDENCE).upper <= MARGIN
    ]
    return (fit[0] if fit else None), comparison


def race_choice(values: dict[int, np.ndarray]) -> tuple[int | None, int]:
    """Choose as `rankwise.strategies.race` does; return the choice and the trials that it took."""
    most = min(len(losses) for losses in values.values())
    racing = list(values)
    seen: dict[int, np.ndarray] = {}
    choice = None
    for seeds in range(FIRST_LOOK, most + 1):
        seen.update({rank: values[rank][:seeds] for rank in racing})
        choice, comparison = rankwise_choice(dict(sorted(seen.items())))
        racing = [
            rank for rank in racing if not comparison.is_shown_worse(rank, MARGIN, CONFIDENCE)
        ]
        if choice is not None or len(racing) < 2:
            break
    return choice, sum(len(losses) for losses in seen.values())


def best_mean(values: dict[int, np.ndarray]) -> int | None:
    """Choose the best mean."""
    return min(values, key=lambda rank: float(values[rank].mean()))


def one_standard_error(values: dict[int, np.ndarray]) -> int | None:
    """Choose the smallest rank within one standard error of the best mean."""
    best = values[best_mean(values) or 0]
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


def simulate(
    scenario: Scenario, replications: int, generator: np.random.Generator
) -> dict[str, float]:
    """Return the shares of wrong, right and open choices, and the coverage of intervals."""
    truth = dict(zip(scenario.ranks, scenario.losses, strict=True))
    right = scenario.right
    rules = {"best mean": best_mean, "one SE": one_standard_error, "kneedle": kneedle}
    counts: dict[str, float] = dict.fromkeys(
        [f"{name} {what}" for name in ("rankwise", *rules) for what in ("wrong", "right")]
        + ["open", "covered"],
        0.0,
    )

    def count(name: str, choice: int | None) -> None:
        counts[f"{name} wrong"] += choice is not None and choice not in right
        counts[f"{name} right"] += choice == right[0]

    for _ in range(replications):
        values = draw(scenario, generator)
        choice, comparison = rankwise_choice(values)
        count("rankwise", choice)
        counts["open"] += choice is None
        for rank, loss in truth.items():
            low, high = comparison.mean_interval(rank, CONFIDENCE)
            counts["covered"] += (low <= loss <= high) / len(truth)
        for name, rule in rules.items():
            count(name, rule(values))
    return {name: number / replications for name, number in counts.items()}


def print_scenarios(scenarios: Sequence[Scenario], replications: int, console: Console) -> None:
    """Print a row for each scenario."""
    limit = 1 - CONFIDENCE + 3 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / replications)
    table = Table(
        title=f"{replications} replications each, in some a multiple; margin {MARGIN}, "
        f"confidence {CONFIDENCE:.0%}; wrong is to stay below "
        f"5 %, to Monte Carlo error below {limit:.1%}; per cent",
        caption="(in brackets: the model that the intervals assume does not hold)",
    )
    table.add_column("scenario")
    columns = ["wrong", "right", "open", "coverage", "best mean wrong", "right",
               "one SE wrong", "right", "kneedle wrong", "right"]  # fmt: skip
    for column in columns:
        table.add_column(column, justify="right")
    for number, scenario in enumerate(scenarios):
        found = simulate(
            scenario, scenario.replications * replications, np.random.default_rng([2026, number])
        )
        keys = ["rankwise wrong", "rankwise right", "open", "covered"]
        keys += [
            f"{rule} {what}"
            for rule in ("best mean", "one SE", "kneedle")
            for what in ("wrong", "right")
        ]
        cells = [f"{100 * found[key]:.1f}" for key in keys]
        table.add_row(scenario.name if scenario.assumed else f"({scenario.name})", *cells)
    console.print(table)


def print_races(scenarios: Sequence[Scenario], replications: int, console: Console) -> None:
    """Print a row for each scenario: the race, and the decision from all seeds."""
    table = Table(
        title="Looking after every seed, and once at the end; per cent, and trials as a share of "
        "all"
    )
    table.add_column("scenario")
    for column in ("race wrong", "right", "open", "trials", "at the end wrong", "right", "open"):
        table.add_column(column, justify="right")
    for number, scenario in enumerate(scenarios):
        generator = np.random.default_rng([2026, 1000 + number])
        rows, right = [], scenario.right
        for _ in range(scenario.replications * replications):
            values = draw(scenario, generator)
            raced, trials = race_choice(values)
            share = trials / sum(len(losses) for losses in values.values())
            row: list[float] = []
            for choice in (raced, rankwise_choice(values)[0]):
                row += [
                    choice is not None and choice not in right,
                    choice == right[0],
                    choice is None,
                ]
            rows.append([*row[:3], share, *row[3:]])
        table.add_row(scenario.name, *(f"{100 * cell:.1f}" for cell in np.mean(rows, axis=0)))
    console.print(table)


def print_time(console: Console) -> None:
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
    console.print(f"8 ranks x 10 seeds x 10,000 examples: a decision takes {duration:.2f} s")


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replications", type=int, default=1000)
    options = parser.parse_args()
    console = Console(width=150)
    print_scenarios(SCENARIOS, options.replications, console)
    print_races(RACES, options.replications, console)
    print_time(console)


if __name__ == "__main__":
    main()
