"""Settings of the search: which ranks, seeds and learning rates are tried."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import PlainValidator

from rankwise.checks import check_number
from rankwise.errors import RequestError
from rankwise.models.config import AlphaPolicyName
from rankwise.settings import (
    ADAPTER,
    SEARCH,
    Count,
    Option,
    Positive,
    Ranks,
    Settings,
    items,
)

AUTO: Literal["auto"] = "auto"
StrategyName = Literal["grid", "once", "escalate", "race"]
STRATEGIES: tuple[StrategyName, ...] = get_args(StrategyName)

LearningRates = Literal["auto"] | tuple[float, ...]


def _learning_rates(value: object) -> LearningRates:
    if isinstance(value, str) and value.strip().lower() == AUTO:
        return AUTO
    try:
        rates = [check_number("learning_rate", item, above=0, below=10) for item in items(value)]
    except RequestError as error:
        raise RequestError(f"{error}, or {AUTO!r}") from None
    if not rates:
        raise RequestError(
            "learning_rate: none given; allowed is 'auto', a rate, or several such as "
            "1e-3,2e-3,4e-3"
        )
    return tuple(sorted(set(rates)))


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Settings):
    """Settings of the search: which ranks, seeds and learning rates are tried."""

    ranks: Annotated[Ranks, Option("Ranks to compare, as in 4,8,16,32.", SEARCH, "R,R,...")] = (
        4,
        8,
        16,
        32,
    )
    seeds: Annotated[
        Count, Option("Train this many trials per rank, each with its own seed.", SEARCH)
    ] = 2
    strategy: Annotated[
        StrategyName,
        Option(
            "How ranks are explored: grid trains every rank; race drops ranks shown to be worse; "
            "escalate goes up from rank 8, then down; once trains the largest rank and truncates "
            "its adapters to the others.",
            SEARCH,
        ),
    ] = "grid"
    learning_rate: Annotated[
        LearningRates,
        PlainValidator(_learning_rates),
        Option(
            "Learning rate: auto searches the best one of each rank; or one rate, or several as "
            "in 1e-3,2e-3.",
            SEARCH,
            "RATE,...",
            aliases=("learning_rates",),
        ),
    ] = AUTO
    budget: Annotated[
        Positive | None,
        Option(
            "Stop starting trials after this many minutes of training and scoring.",
            SEARCH,
            "MINUTES",
            "unlimited",
        ),
    ] = None
    lora_alpha: Annotated[
        AlphaPolicyName,
        Option("lora_alpha of each rank: r, 2r, fixed:32 or rslora.", ADAPTER, "POLICY"),
    ] = "r"
