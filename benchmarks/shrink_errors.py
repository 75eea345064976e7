"""Error rates of ``rankwise shrink``'s test for cuts that truly lie at the margin.

python benchmarks/shrink_errors.py [figure.png] prints the tables of docs/shrink.md.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from rankwise.decide.sequential import mean_bounds, planned_looks, spent_errors
from rankwise.report.figures import write_figure

RUNS, MARGIN, ERROR = 4000, 0.02, 0.05
SIZES = (128, 500, 1000, 4000)
HEALED_RANKS, HEALED_EXAMPLES = 5, 500
CORRELATIONS = (-0.5, 0.0, 0.5, 0.9)  # of a cut's differences with those of its healed adapter


def rare(random: np.random.Generator, shape: tuple[int, int], share: float) -> np.ndarray:
    """Return differences of which a share is large; their mean is 0."""
    harmed = (random.random(shape) < share) * random.exponential(1.0, shape)
    return random.normal(0, 0.05, shape) + harmed - share


KINDS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda random, shape: random.normal(0, 0.3, shape),
    "heavy tails (t, 3 degrees of freedom)": lambda random, shape: (
        0.2 * random.standard_t(3, shape)
    ),
    "skewed (exponential)": lambda random, shape: random.exponential(0.3, shape) - 0.3,
    "very skewed (lognormal)": lambda random, shape: (
        0.1 * (random.lognormal(0, 1.2, shape) - np.exp(0.72))
    ),
    "3 % of examples lose a nat": lambda random, shape: rare(random, shape, 0.03),
    "1 % of examples lose a nat": lambda random, shape: rare(random, shape, 0.01),
}


def wrong_share(kind: str, examples: int) -> float:
    """Return the share of runs in which a cut at the margin passes at some look."""
    random = np.random.default_rng(0)
    passes = 0
    for _ in range(4):
        values = KINDS[kind](random, (RUNS // 4, examples)) + MARGIN
        passes += int(holds(values, ERROR).sum())
    return passes / RUNS


def holds(values: np.ndarray, level: float) -> np.ndarray:
    """Return whether a mean is shown to be below the margin at some look, in each run, (runs,)."""
    looks = planned_looks(values.shape[1])
    settled, within = np.zeros(len(values), bool), np.zeros(len(values), bool)
    for size, error in zip(looks, spent_errors(looks, level), strict=True):
        lower, upper = mean_bounds(values[:, :size], error)
        within |= (upper < MARGIN) & ~settled
        settled |= (upper < MARGIN) | (lower > MARGIN)
    return within


def wrong_healed_share(cut_mean: float, correlation: float) -> float:
    """Return the share of runs that end with an adapter at the margin, with healing.

    Ranks are tested from the largest down. The first that fails is healed, or the last; every
    healed adapter lies at the margin. Cuts and healed adapters are tested at half the error each.
    All have a part of their differences in common, which is that of the full adapter.
    """
    random = np.random.default_rng(0)
    shape = (RUNS, HEALED_EXAMPLES)
    common = random.normal(0, 0.2, shape)
    going, wrong = np.ones(RUNS, bool), np.zeros(RUNS, bool)
    for place in range(HEALED_RANKS):
        own, other = random.normal(0, 0.2, (2, *shape))
        after = correlation * own + np.sqrt(1 - correlation**2) * other
        passes = holds(cut_mean + common + own, ERROR / 2)
        is_healed = going & (~passes | (place == HEALED_RANKS - 1))
        wrong |= is_healed & holds(MARGIN + common + after, ERROR / 2)
        going &= passes
        wrong |= going & (cut_mean >= MARGIN)
    return float(wrong.mean())


def main() -> None:
    """Print the table, and draw it if a file is named."""
    figure = go.Figure()
    print(f"| differences of losses | {' | '.join(map(str, SIZES))} |")
    print("|---" + "|---:" * len(SIZES) + "|")
    for kind in KINDS:
        shares = [wrong_share(kind, size) for size in SIZES]
        print(f"| {kind} | {' | '.join(f'{100 * share:.1f} %' for share in shares)} |", flush=True)
        figure.add_scatter(x=list(SIZES), y=[100 * each for each in shares], name=kind)
    print(f"\n| true mean of the cuts | {' | '.join(f'{each:+.1f}' for each in CORRELATIONS)} |")
    print("|---" + "|---:" * len(CORRELATIONS) + "|")
    for name, mean in (("a quarter", 0.25), ("half", 0.5), ("three quarters", 0.75), ("all", 1.0)):
        shares = [wrong_healed_share(mean * MARGIN, each) for each in CORRELATIONS]
        cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
        print(f"| {name} of the margin | {cells} |", flush=True)
    figure.add_hline(y=100 * ERROR, line={"dash": "dot"}, annotation={"text": "stated"})
    title = "Cuts at the margin that pass, % (4,000 runs)"
    figure.update_layout(title=title, template="plotly_white", height=420)
    figure.update_xaxes(title="held-out examples", type="log", tickvals=list(SIZES))
    if len(sys.argv) > 1:
        write_figure(figure, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
