"""Whether an adapter learnt anything: each adapter's held-out loss against chance level."""

from dataclasses import dataclass

import numpy as np

from rankwise.decide.evidence import LEAST_GAIN, ChanceLoss, chance_losses
from rankwise.decide.pairwise import Comparison
from rankwise.decide.variance import NOTHING_KNOWN, mean_interval


@dataclass(frozen=True)
class Learnt:
    """How far one adapter's held-out loss lies above the chance-level loss, nats.

    Attributes:
        seed: seed of the adapter; None for all of a rank's, where results are aggregates.
        mean: negative if the loss is below.
        upper: upper end of its interval, plus the least gain that counts as one.
    """

    seed: int | None
    mean: float
    upper: float

    @property
    def is_shown(self) -> bool:
        """Whether the adapter is shown to be below chance level."""
        return self.upper < 0


def learnt_by_trial(
    losses: Comparison,
    examples: np.ndarray,
    chance_loss: ChanceLoss,
    confidence: float,
    noise: float | None = None,
) -> dict[int, list[Learnt]]:
    """Compare each adapter with chance level over examples; that seeds differ is another matter.

    With aggregates there are no examples, so a rank is compared over its seeds. The intervals hold
    for all adapters together (Bonferroni).

    Args:
        losses: the ranks compared by held-out loss.
        examples: ids of the held-out examples, (N,).
        chance_loss: chance-level loss, see `rankwise.select`.
        confidence: confidence of all intervals together.
        noise: standard deviation over seeds, if known.
    """
    chance = chance_losses(chance_loss, examples)
    least = LEAST_GAIN * float(np.mean(chance))
    over = {rank: values - chance for rank, values in losses.values.items()}
    learnt: dict[int, list[Learnt]] = {}
    if len(examples) < 2:
        compared = Comparison(over, losses.seeds, noise)
        for rank in compared.ranks:
            upper = compared.mean_interval(rank, confidence)[1] + least
            learnt[rank] = [Learnt(None, compared.mean(rank), upper)]
        return learnt
    share = (1 - confidence) / sum(len(values) for values in over.values())
    for rank, values in over.items():
        learnt[rank] = []
        for seed, one in zip(losses.seeds[rank], values, strict=True):
            upper = mean_interval(one[None], NOTHING_KNOWN, 1 - share)[1] + least
            learnt[rank].append(Learnt(int(seed), float(one.mean()), upper))
    return learnt
