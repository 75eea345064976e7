r"""Rank and seed in the name or path of a run, such as ``out/r16-seed3``."""

import re
from collections.abc import Iterable, Sequence
from functools import cache

from rankwise.checks import check_matching_ends
from rankwise.errors import RequestError, shown

# Tried in this order to suggest a pattern; the plain one only where it finds the same ranks.
SUGGESTIONS = (
    r"lora_r(?:ank)?[=:_ -]*(\d+)", r"rank[=:_ -]*(\d+)", r"(?<![a-zA-Z])[rR][=:_-]?(\d+)",
    r"(?<![a-zA-Z])lora[=:_-]?(\d+)", r"^(\d+)$",
)  # fmt: skip
PLAIN = r"r(\d+)"
SEED_WORDS = ("seed", "s")


def check_rank_pattern(pattern: str | None, names: Iterable[str]) -> None:
    """Refuse a pattern of the user's that takes forever to match one of the names."""
    if pattern is not None:
        check_matching_ends("rank_pattern", [pattern], list(dict.fromkeys(names)))


@cache
def rank_in_name(pattern: str, name: str) -> tuple[int | None, int | None]:
    """Return the rank and the seed that a pattern finds in a name; None where it finds none.

    The pattern must end on the name, which `check_rank_pattern` finds out for many names at once.

    Raises:
        RequestError: the group that should hold a rank or a seed holds other than digits.
    """
    match = re.search(pattern, name)
    if match is None:
        return None, None
    places = match.re.groupindex
    others = (place for place in range(1, match.re.groups + 1) if place != places.get("seed"))
    rank = match[places.get("rank", next(others, 0))]
    seed = match["seed"] if "seed" in places else None
    return _whole(pattern, name, rank), _whole(pattern, name, seed)


def suggest_pattern(names: Iterable[str]) -> str | None:
    """Return a pattern that finds different ranks in most of the names; None if none does."""
    names = list(dict.fromkeys(names))
    for pattern in SUGGESTIONS:
        ranks = _ranks(pattern, names)
        found = {rank for rank in ranks if rank is not None}
        if len(found) > 1 and 2 * sum(rank is not None for rank in ranks) > len(names):
            return PLAIN if _ranks(PLAIN, names) == ranks else pattern
    return None


def pattern_advice(names: Sequence[str]) -> str:
    """Return advice to give a pattern, with one that fits the names; "" if none fits."""
    pattern = suggest_pattern(names)
    if pattern is None:
        return ""
    example = next(name for name in names if rank_in_name(pattern, name)[0] is not None)
    rank, _ = rank_in_name(pattern, example)
    return f"if {shown(example)} has rank {rank}, give --rank-pattern '{pattern}' (rank_pattern)"


def number_in_name(name: str, words: Sequence[str]) -> str | None:
    """Return the number after a word in a run's name: 1 after "seed" in ``r8-seed1``."""
    for word in words:
        pattern = rf"(?:^|[^a-z]){word}[-_=:]?\s?(\d+(?:\.\d+)?(?:e-?\d+)?)(?![a-z0-9.])"
        match = re.search(pattern, name.lower())
        if match:
            return match[1]
    return None


def _ranks(pattern: str, names: Sequence[str]) -> list[int | None]:
    return [rank_in_name(pattern, name)[0] for name in names]


def _whole(pattern: str, name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal():
        found = f"finds {shown(text)} in {shown(name)}"
        raise RequestError(f"rank_pattern {shown(pattern)} {found}; allowed is a group of digits")
    return int(text)
