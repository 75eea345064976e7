"""Estimate how much seeds matter from recorded sweeps: the prior of `rankwise.decide.seed_prior`.

Each recorded sweep gives a variance over seeds (a rank's own, at the rates that ranks are judged
by), as a share of its squared mean loss, with its degrees of freedom. A scaled F distribution is
fitted to these (Smyth 2004, section 6.2). Tasks are few, so the fit is made without each task in
turn, and the prior takes the smallest degrees of freedom and the largest standard deviation found.

    python benchmarks/seed_prior.py [--write]
"""

import argparse
import json
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, special

from rankwise.decide import seed_prior
from rankwise.decide.variance import seed_variance

RESULTS = Path(__file__).parent / "results"
PRIOR = Path(seed_prior.__file__).with_suffix(".json")


class Recorded(NamedTuple):
    """One sweep's relative variance over seeds, with its degrees of freedom and trials."""

    task: str
    variance: float
    df: float
    trials: int


def recorded_sweeps() -> list[Recorded]:
    """Return the variance over seeds of each recorded sweep with several seeds."""
    sweeps = []
    strategies = json.loads((RESULTS / "strategies.json").read_text())
    for task, content in strategies["tasks"].items():
        losses = np.array([row["held_out_loss"] for row in content["grid"]])  # (R, S)
        sweeps.append(_recorded(task.rpartition("-")[0], losses))
    scaling = json.loads((RESULTS / "scaling.json").read_text())
    for task, policies in scaling["tasks"].items():
        for policy in policies:
            trials = pd.DataFrame(policy["trials"])
            chosen = pd.DataFrame(policy["table"])[["rank", "learning_rate"]]
            judged = trials.merge(chosen, on=["rank", "learning_rate"])
            table = judged.pivot_table(index="rank", columns="seed", values="eval_loss")
            sweeps.append(_recorded(task, table.to_numpy()))
    return [sweep for sweep in sweeps if sweep.df > 0]


def _recorded(task: str, losses: np.ndarray) -> Recorded:
    """Return the record of one sweep's losses, (R, S), NaN where a trial is missing."""
    variance = seed_variance(losses)
    trials = int(np.isfinite(losses).sum())
    return Recorded(task, variance.own / float(np.nanmean(losses)) ** 2, variance.own_df, trials)


def fit(sweeps: list[Recorded]) -> tuple[float, float]:
    """Return the prior's degrees of freedom and standard deviation (Smyth 2004, section 6.2)."""
    half_df = np.array([sweep.df for sweep in sweeps]) / 2
    logs = np.log([sweep.variance for sweep in sweeps])
    centred = logs - special.digamma(half_df) + np.log(half_df)
    excess = centred.var(ddof=1) - special.polygamma(1, half_df).mean()
    if excess <= 0:
        return np.inf, float(np.exp(centred.mean() / 2))
    half = optimize.brentq(lambda x: special.polygamma(1, x) - excess, 1e-3, 1e4)
    return 2 * half, float(np.exp((centred.mean() + special.digamma(half) - np.log(half)) / 2))


def estimate(sweeps: list[Recorded]) -> tuple[float, float]:
    """Return the most cautious fit among those that leave one task out."""
    tasks = sorted({sweep.task for sweep in sweeps})
    fits = [fit([sweep for sweep in sweeps if sweep.task != task]) for task in tasks]
    return min(df for df, _ in fits), max(sd for _, sd in fits)


def main() -> None:
    """Print the recorded sweeps and the prior."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {PRIOR.name}")
    options = parser.parse_args()
    sweeps = recorded_sweeps()
    for sweep in sweeps:
        deviation = 100 * sweep.variance**0.5
        print(f"{sweep.task:16} {sweep.df:4.0f} df  {deviation:5.2f} % of the loss")
    df, deviation = fit(sweeps)
    trials = sum(sweep.trials for sweep in sweeps)
    print(f"all {len(sweeps)} sweeps, {trials} trials: {df:.2f} df, {100 * deviation:.2f} %")
    df, deviation = estimate(sweeps)
    print(f"the most cautious without one task: {df:.2f} df, {100 * deviation:.2f} %")
    if options.write:
        content = {
            "version": date.today().isoformat(),
            "df": round(df, 2),
            "relative_sd": round(deviation, 4),
            "sweeps": len(sweeps),
            "trials": trials,
        }
        PRIOR.write_text(json.dumps(content, indent=2) + "\n")
        print(f"written to {PRIOR}")


if __name__ == "__main__":
    main()
