"""Strategies of a sweep: which trials to run next, from the evidence so far."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rankwise.strategies.base import Strategy


def strategies() -> "dict[str, type[Strategy]]":
    """Return the strategy classes by their names in `rankwise.strategies.config.STRATEGIES`."""
    from rankwise.strategies.ends import Ends
    from rankwise.strategies.escalate import Escalate
    from rankwise.strategies.grid import Grid
    from rankwise.strategies.once import Once
    from rankwise.strategies.race import Race

    return {"grid": Grid, "once": Once, "ends": Ends, "escalate": Escalate, "race": Race}
