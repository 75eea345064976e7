"""Scenarios of `benchmarks.calibration`: true losses, and the noise that evidence is drawn with."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rankwise.decide import best_learning_rate
from rankwise.decide.variance import seed_variance

RESULTS = Path(__file__).parent / "results"

MARGIN = 0.02
CONFIDENCE = 0.95
BEYOND = 0.5 + MARGIN * 1.001  # just beyond the margin above 0.5: a wrong choice is easiest there


@dataclass(frozen=True)
class Scenario:
    """True losses, and the noise of the evidence drawn from them.

    Attributes:
        name: name in the table.
        losses: true loss of each rank.
        smallest: the smallest rank; each further one is twice the one before.
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
    smallest: int = 4
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
        """All ranks, ascending."""
        return [self.smallest * 2**power for power in range(len(self.losses))]

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
    *(
        Scenario(
            f"{ranks} ranks of which one is good, 2 seeds, {100 * sd / 0.5:.0f} % noise",
            (BEYOND,) * (ranks - 1) + (0.5,),
            seeds=2,
            seed_sd=sd,
            example_sd=0.02,
            replications=2,
        )
        for ranks in (2, 3, 5)
        for sd in (0.005, 0.01, 0.02)
    ),
    *(
        Scenario(f"{name}, 5 ranks, 2 seeds", losses, seeds=2, seed_sd=0.008)
        for name, losses in (
            ("flat", plateau(0, 5)),
            ("plateau from the 3rd rank", plateau(2, 5)),
            ("slow climb", tuple(0.532 - 0.008 * index for index in range(5))),
            ("largest rank worse", (0.54, 0.5, 0.5, 0.5, 0.53)),
        )
    ),
    *(
        Scenario(
            f"heavy tails, {examples} examples, 1 seed",
            (BEYOND, 0.5),
            seeds=1,
            seed_sd=0.0,
            shared_sd=0.0,
            tails="heavy",
            examples=examples,
            example_sd=0.005 * examples**0.5,
            replications=2,
        )
        for examples in (20, 40, 200)
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


def recorded_tasks(seeds: int) -> list[Scenario]:
    """Return a scenario for each task of ``strategies.json``: the truth is what was measured there.

    A rank's true loss is the mean over its three seeds, and the effects of seeds are those
    estimated from them. Losses per example were not kept, so their noise is the default's share.
    """
    tasks = json.loads((RESULTS / "strategies.json").read_text())["tasks"]
    scenarios = []
    for name, content in tasks.items():
        losses = np.array([row["held_out_loss"] for row in content["grid"]])  # (R, S)
        variance = seed_variance(losses)
        scenarios.append(
            Scenario(
                f"{name}, {seeds} seeds" if seeds > 1 else f"{name}, 1 seed",
                tuple(float(loss) for loss in losses.mean(1)),
                smallest=content["grid"][0]["rank"],
                seeds=seeds,
                seed_sd=variance.own**0.5,
                shared_sd=variance.shared**0.5,
                example_sd=0.2 * float(losses.mean()),
            )
        )
    return scenarios


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
