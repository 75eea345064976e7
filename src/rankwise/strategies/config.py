"""Settings of the search: which ranks, seeds and learning rates are tried."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import PlainValidator

from rankwise.checks import check_number
from rankwise.errors import RequestError
from rankwise.models.config import AlphaPolicyName
from rankwise.settings import Option, Positive, Ranks, Seeds, Settings, items

AUTO: Literal["auto"] = "auto"
StrategyName = Literal["grid", "once", "ends", "escalate", "race"]
STRATEGIES: tuple[StrategyName, ...] = get_args(StrategyName)
LearningRates = Literal["auto"] | tuple[float, ...]


def _learning_rates(value: object) -> LearningRates:
    if isinstance(value, str) and value == AUTO:
        return AUTO
    try:
        rates = [check_number("learning_rate", item, above=0, below=10) for item in items(value)]
    except RequestError as error:
        raise RequestError(f"{error}, or {AUTO!r}") from None
    if not rates:
        raise RequestError(
            "learning_rate: none given; allowed is 'auto', or rates such as 1e-3,2e-3"
        )
    return tuple(sorted(set(rates)))


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Settings):
    """Settings of the search: which ranks, seeds and learning rates are tried."""

    ranks: Annotated[Ranks, Option("Ranks to compare.", "search", "R,R,...")] = (4, 8, 16, 32)
    seeds: Annotated[Seeds, Option("Trials per rank, each with its own seed.", "search")] = 2
    strategy: Annotated[
        StrategyName,
        Option(
            "Search strategy: grid trains every rank; race drops ranks shown to be worse; ends "
            "trains the largest and the smallest, and others only if the smallest does not hold; "
            "escalate goes up from rank 8, then down; once trains the largest rank and truncates "
            "its adapters to the others.",
            "search",
        ),
    ] = "grid"
    learning_rate: Annotated[
        LearningRates,
        PlainValidator(_learning_rates),
        Option(
            "One learning rate, or several to choose from, as in 1e-3,2e-3; auto searches at a "
            "middle rank and carries the best rate to the others by a law.",
            "search",
            "RATE,...",
            aliases=("learning_rates",),
        ),
    ] = AUTO
    budget: Annotated[
        Positive | None,
        Option(
            "Stop starting trials after this many minutes of training and scoring.",
            "search",
            "MINUTES",
            "unlimited",
        ),
    ] = None
    lora_alpha: Annotated[
        AlphaPolicyName,
        Option("lora_alpha at each rank: r, 2r, fixed:32 or rslora.", "adapter", "POLICY"),
    ] = "r"
