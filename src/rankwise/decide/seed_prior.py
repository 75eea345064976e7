"""The prior of how much seeds matter, estimated from recorded sweeps of other tasks.

Two seeds of one sweep hardly show how much seeds vary. Tasks are alike in this, so the variance of
one sweep is moderated by a prior that has degrees of freedom of its own (Smyth 2004, *Stat. Appl.
Genet. Mol. Biol.* 3, article 3, sections 3 and 6). ``python benchmarks/seed_prior.py --write``
estimates the prior anew from ``benchmarks/results/``, and writes it to ``seed_prior.json``.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class SeedPrior:
    """A scaled inverse chi-squared prior of a seed's effect on one rank alone.

    Attributes:
        version: date of the estimate.
        df: degrees of freedom that the prior is worth.
        relative_sd: standard deviation over seeds, as a share of the held-out loss.
    """

    version: str
    df: float
    relative_sd: float

    def moderate(self, variance: float, df: float, loss: float) -> tuple[float, float]:
        """Return a variance over seeds moderated by the prior, and its degrees of freedom.

        Args:
            variance: estimate from a sweep's own seeds.
            df: its degrees of freedom.
            loss: mean held-out loss of the sweep.
        """
        prior = (self.relative_sd * loss) ** 2
        return (self.df * prior + df * variance) / (self.df + df), self.df + df


@cache
def seed_prior() -> SeedPrior:
    """Return the prior that comes with this version of rankwise."""
    text = Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
    content = json.loads(text)
    return SeedPrior(content["version"], content["df"], content["relative_sd"])
