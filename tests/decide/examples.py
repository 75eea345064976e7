"""Builders of evidence with known true losses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from rankwise.decide.evidence import RankResults

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
    """Draw losses (R, S, N) around known true losses, with noise of examples, trials and both."""
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
    results = []
    for rank, loss in zip(ranks, values, strict=True):
        score, means = (loss < 0.7).astype(float), (float(loss.mean()),)
        one = RankResults(rank, 1e-3, (1e-3,), seeds, examples, loss, loss, score, 0, means)
        results.append(one)
    return results


def seeded(means: dict[int, float], seeds: int, sd: float, rng: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(rng)
    rows = [
        {"rank": rank, "seed": seed, "loss": mean + sd * generator.normal()}
        for rank, mean in means.items()
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)
