"""Settings of the search: which ranks, seeds and learning rates are tried."""

from dataclasses import dataclass
from typing import Literal

from rankwise.checks import check_number, check_whole
from rankwise.errors import RequestError
from rankwise.lora.alpha import parse_alpha_policy
from rankwise.settings import Settings, items, one_of, option, optional, whole_items

AUTO: Literal["auto"] = "auto"
STRATEGIES = ("grid", "once", "escalate", "race")


def parse_learning_rate(value: object) -> Literal["auto"] | tuple[float, ...]:
    """Return ``auto`` or the rates, ascending."""
    if isinstance(value, str) and value.strip().lower() == AUTO:
        return AUTO
    try:
        rates = [check_number("learning_rate", item, above=0, below=10) for item in items(value)]
    except RequestError as error:
        raise RequestError(f"{error}, or {AUTO!r}") from None
    if not rates:
        raise RequestError(
            "learning_rate: none given; allowed is 'auto', a rate, or several such as 1e-3,2e-3,4e-3"
        )
    return tuple(sorted(set(rates)))


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Settings):
    """Settings of the search: which ranks, seeds and learning rates are tried."""

    ranks: tuple[int, ...] = option(
        (4, 8, 16, 32),
        "Ranks to compare, as in 4,8,16,32.",
        lambda value: whole_items("rank", value, at_least=1),
    )
    strategy: str = option(
        "grid",
        "Which trials to run: grid (every rank), race (drop ranks that are shown to be worse), escalate (up from 8, "
        "then down) or once (train the largest, cut it to the others).",
        lambda value: one_of("strategy", STRATEGIES, value),
    )
    budget: float | None = option(
        None,
        "Minutes of training and scoring after which no trial is begun. Default: no end.",
        optional(lambda value: check_number("budget", value, above=0)),
    )
    seeds: int = option(
        2,
        "Trials per rank, each with its own seed.",
        lambda value: check_whole("seeds", value, at_least=1),
    )
    learning_rate: Literal["auto"] | tuple[float, ...] = option(
        AUTO,
        "auto (each rank's own best, by search), one rate, or several as in 1e-3,2e-3.",
        parse_learning_rate,
    )
    lora_alpha: str = option(
        "r",
        "lora_alpha for each rank: r, 2r, fixed:32 or rslora.",
        lambda value: parse_alpha_policy(value).name,
    )
