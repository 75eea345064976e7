"""Settings that say how results of others are read."""

import re
from dataclasses import dataclass

from rankwise.checks import check_text, check_whole
from rankwise.errors import RequestError, not_allowed

EVALUATIONS = ("best", "last")
SPREADS = ("seeds", "examples")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How results of others are read; None leaves the choice to the results.

    Attributes:
        metric: metric to compare by, besides those with known names.
        rank_column: column of ranks in tables.
        seed_column: column of seeds in tables.
        learning_rate_column: column of learning rates in tables.
        example_column: column of the held-out examples' ids in tables.
        rank_pattern: regular expression that finds the rank in a run's name or path. Its group
            ``rank``, or else its first, is the rank; its group ``seed`` is the seed.
        evaluation: evaluation of a run that counts, "best" or "last".
        spread: source of the spread in "54.0 ± 0.4" and columns such as ``std``: "seeds" or
            "examples".
        seeds_per_mean: number of seeds behind each row of a table of means.
        higher_is_better: direction of the metric, if its name does not tell.
        noise_is_stated: whether the noise is known, so that no spread is needed.

    Raises:
        RequestError: a value is not allowed.
    """

    metric: str | None = None
    rank_column: str | None = None
    seed_column: str | None = None
    learning_rate_column: str | None = None
    example_column: str | None = None
    rank_pattern: str | None = None
    evaluation: str | None = None
    spread: str | None = None
    seeds_per_mean: int | None = None
    higher_is_better: bool | None = None
    noise_is_stated: bool = False

    def __post_init__(self) -> None:
        for name in ("metric", *(f"{role}_column" for role in self.columns)):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))
        for name, allowed in (("evaluation", EVALUATIONS), ("spread", SPREADS)):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise not_allowed(name, value, " or ".join(allowed))
        if self.seeds_per_mean is not None:
            check_whole("seeds_per_mean", self.seeds_per_mean, at_least=2)
            if self.spread == "examples":
                raise RequestError("seeds_per_mean is for a spread over seeds; leave out spread")
        if self.rank_pattern is not None:
            _check_pattern(self.rank_pattern)

    @property
    def columns(self) -> dict[str, str | None]:
        """The column that was named for each role of a table."""
        return {
            "rank": self.rank_column,
            "seed": self.seed_column,
            "learning_rate": self.learning_rate_column,
            "example": self.example_column,
        }


def _check_pattern(pattern: str) -> None:
    allowed = r"a regular expression with a group of digits, such as 'r(\d+)'"
    try:
        groups = re.compile(check_text("rank_pattern", pattern)).groups
    except re.error:
        groups = 0
    if not groups:
        raise not_allowed("rank_pattern", pattern, allowed)
