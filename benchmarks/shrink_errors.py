"""Error rates of ``rankwise shrink``'s test for cuts that truly lie at the margin.

python benchmarks/shrink_errors.py [figure.png] prints the table of docs/shrink.md.
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
    looks = planned_looks(examples)
    passes = 0
    for _ in range(4):
        values = KINDS[kind](random, (RUNS // 4, examples)) + MARGIN
        settled, within = np.zeros(len(values), bool), np.zeros(len(values), bool)
        for size, error in zip(looks, spent_errors(looks, ERROR), strict=True):
            lower, upper = mean_bounds(values[:, :size], error)
            within |= (upper < MARGIN) & ~settled
            settled |= (upper < MARGIN) | (lower > MARGIN)
        passes += int(within.sum())
    return passes / RUNS


def main() -> None:
    """Print the table, and draw it if a file is named."""
    figure = go.Figure()
    print(f"| differences of losses | {' | '.join(map(str, SIZES))} |")
    print("|---" + "|---:" * len(SIZES) + "|")
    for kind in KINDS:
        shares = [wrong_share(kind, size) for size in SIZES]
        print(f"| {kind} | {' | '.join(f'{100 * share:.1f} %' for share in shares)} |", flush=True)
        figure.add_scatter(x=list(SIZES), y=[100 * each for each in shares], name=kind)
    figure.add_hline(y=100 * ERROR, line={"dash": "dot"}, annotation={"text": "stated"})
    title = "Cuts at the margin that pass, % (4,000 runs)"
    figure.update_layout(title=title, template="plotly_white", height=420)
    figure.update_xaxes(title="held-out examples", type="log", tickvals=list(SIZES))
    if len(sys.argv) > 1:
        write_figure(figure, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
