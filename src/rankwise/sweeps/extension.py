"""An extension of a finished sweep by seeds of some of its ranks."""

from dataclasses import dataclass, replace

from rankwise.errors import RequestError, some
from rankwise.store.records import read_sweep
from rankwise.sweeps.config import SweepConfig


@dataclass(frozen=True)
class Extension:
    """The ranks of a sweep that get more seeds, and how many seeds each of them has then."""

    ranks: tuple[int, ...]
    seeds: int


def read_extension(config: SweepConfig) -> tuple[SweepConfig, Extension | None]:
    """Split a request that extends some ranks of a sweep into that sweep's request and the rest.

    The sweep keeps its request, so the command that made it still resumes it; its decision counts
    all trials.

    Returns:
        The request of the sweep in ``config.out``, and the extension; the request itself and None
        if it extends no sweep, or all its ranks.

    Raises:
        RequestError: the sweep does not have these ranks, or cannot be extended by them.
    """
    sweep = read_sweep(config.out) if config.extend else None
    if sweep is None:
        return config, None
    ranks, seeds = tuple(sweep.settings["ranks"]), int(sweep.settings["seeds"])
    if set(config.ranks) == set(ranks):
        return config, None
    out = str(config.out)
    if missing := sorted(set(config.ranks) - set(ranks)):
        raise RequestError(
            f"ranks {some(missing)} are not in the sweep in {out!r}, so they cannot be extended; "
            f"it has {some(ranks, 12)}"
        )
    if sweep.settings["strategy"] == "once":
        raise RequestError(
            "ranks of a sweep by the strategy once are truncated from one adapter and cannot be "
            "extended alone; leave out --ranks"
        )
    if config.seeds <= seeds:
        raise RequestError(f"seeds {config.seeds} adds none: the sweep in {out!r} has {seeds}")
    return replace(config, ranks=ranks, seeds=seeds), Extension(config.ranks, config.seeds)
